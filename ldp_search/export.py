"""What was trained, as a file that runs in low precision: `python -m ldp_search.export FOLDER [KEY=VALUE ...]`.

The module is callable, so that `ldp_search.export(model, path, example_inputs)` and this program bear one name.

Exit status: 0 done; 1 a file failed its comparison and lies aside, or a write failed; 2 wrong words, folder or model; 130
stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

from .config.program import HELP, exit_status
from .runner.exports.export import Export, PackedFile, TorchFile, export

__all__ = ["Export", "PackedFile", "TorchFile", "export"]

USAGE = """\
What was trained, as a file that runs in low precision, compared and measured.

  python -m ldp_search.export runs/FOLDER                        model.onnx beside the run, compared on its evaluation data
  python -m ldp_search.export runs/FOLDER format=packed,torch    weights in their true bits; a torch.export program in int8
  python -m ldp_search.export runs/FOLDER cache=true             a causal language model that reads one token at a time
  python -m ldp_search.export FOLDER task=cifar10 data=PLACE     a folder of save_pretrained, with data to compare on
  python -m ldp_search.export FOLDER task=none                   ... or on random inputs

Every file is run on evaluation data before it counts as made, beside the trained network in fp32 (torch, onnxruntime) and in
onnxruntime's own int8. The table is printed, and kept as export.json beside the files. A file that predicts otherwise is kept
aside as *.rejected, with the reason.

"""


def main(words: Sequence[str] | None = None) -> int:
    """Do what the words ask for; returns the exit status. What a user can mend comes as one message, without a traceback."""
    words = list(sys.argv[1:] if words is None else words)
    return exit_status("ldp_search.export", "Stopped; what was not put in place yet is left out.", lambda: _export(words))


def _export(words: list[str]) -> int:
    from .runner.exports import options

    if set(HELP) & set(words):
        print(USAGE + options.keys())
        return 0
    asked = options.parse(words)
    from .runner.exports.command import run

    return run(asked)


class _Callable(ModuleType):
    """A module that is called as its function `export`."""

    def __call__(self, model, path, example_inputs=None, format="onnx", round_outputs=True, nbits=False, cache=False):
        return export(model, path, example_inputs, format, round_outputs, nbits, cache)

    __call__.__doc__ = export.__doc__


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    sys.exit(main())
