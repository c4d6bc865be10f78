"""The proxy: ResNet-20 on CIFAR-10 averaged to 16x16, 10 epochs, every row, three seeds; then its table and figures.

    python benchmarks/proxy.py data=CIFAR10_PARQUET_FOLDER output=runs/proxy [workers=2] [cells=resnet20/learned_*] [seeds=0]

Prepares the pictures on the first call; the same command again goes on where it stopped. Options: benchmarks/paper/__main__.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the package `benchmarks`, from wherever this is called

from benchmarks.paper import prepare
from benchmarks.paper.__main__ import main

words = dict(word.split("=", 1) for word in sys.argv[1:])
pictures, output = Path(words.pop("data", "data")), words.pop("output", "runs/proxy")
prepared = Path(output) / "data"
if not (prepared / "cifar10-16.npz").is_file():
    prepare.main([f"data={pictures}", f"output={prepared / 'cifar10-16.npz'}", "size=16"])
status = main(["size=proxy", f"data={prepared}", f"output={output}", *(f"{key}={value}" for key, value in words.items())])
sys.exit(status or main([f"report={output}"]))
