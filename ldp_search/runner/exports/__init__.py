"""What leaves: a trained model as a file that runs in low precision, checked and measured before it counts as made.

export.py    `ldp_search.export`: one function for every format
packed.py    writes weights in their true bits (`ldp_search/packed.py` reads them)
int8.py      a plain module on torch's int8 kernels, and its torch.export program (`ldp_search/int8.py` runs them)
command.py   `python -m ldp_search.export`: subject.py opens the folder, peers.py and onnx_model.py make what it is compared
             with, parity.py and timing.py compare, table.py shows
The ONNX files are written elsewhere (`runner/onnx`).
"""
