"""The paper's comparison: networks x rows (ways to choose the bits) x seeds, at three lengths of training.

    python -m benchmarks.paper.prepare data=CIFAR10_PARQUET_FOLDER output=DATA/cifar10-16.npz size=16
    python -m benchmarks.paper size=proxy data=DATA output=runs/proxy          # trains; go on: the same command again
    python -m benchmarks.paper report=runs/proxy                               # table and figures

In the order of reading: recipes (how each network is trained), rows (how its bits are chosen), networks, data, cells (what is
to be done), training and graphs (one cell), costs, store and lease (what is done, and by whom), work (all cells), table,
figures. Torch, numpy and pyarrow are enough for all but the figures (matplotlib) and `prepare` (pillow; tokenizers for text).
"""
