"""How long each layer takes on this device, at each number of bits: `python -m ldp_search.profile model=NAME [KEY=VALUE ...]`.

Exit status: 0 done; 1 writing failed; 2 wrong settings, data or model; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from .config.program import HELP, exit_status

USAGE = """\
How long each kind and shape of layer takes on this device, in integers and in floating point, as a table to search with.

  python -m ldp_search.profile model=resnet20 task=cifar10 output=table.json
  python -m ldp_search.run     model=resnet20 task=cifar10 latency=table.json target_latency=0.8 bits=[8,16]

Measured is what `python -m ldp_search.export` makes: format=onnx in onnxruntime (target=onnxruntime-cpu), format=torch on
torch's int8 kernels (target=torch-cpu). Measure on the device that the network is to run on; docs/profile.md.

"""


def main(words: Sequence[str] | None = None, as_program: bool = False) -> int:
    """Do what the words ask for; returns the exit status. What a user can mend comes as one message, without a traceback.

    as_program: this process runs nothing else, so its settings may be changed.
    """
    words = list(sys.argv[1:] if words is None else words)
    return exit_status("ldp_search.profile", "Stopped; no table was written.", lambda: _measure(words, as_program))


def _measure(words: list[str], as_program: bool) -> int:
    from .runner.latency import options

    if set(HELP) & set(words):
        print(USAGE + options.keys())
        return 0
    asked = options.parse(words)
    if as_program:
        from .run import share_cores

        share_cores()
    from .runner.latency.command import run

    return run(asked)


if __name__ == "__main__":
    sys.exit(main(as_program=True))
