"""A short training's losses and bits, number by number: a change that should not touch the arithmetic does not.

After a change that should, `PYTHONPATH=tests/helpers python tests/runner/test_golden_curves.py` writes them anew, and the
change of the file is looked at.
"""

import json
import platform
import tempfile
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).parents[1] / "data" / "golden_curves.json"
WORDS = [
    "task=digits",
    "limit=640",
    "eval_limit=50",
    "model=tiny:net",
    "batch_size=32",
    "steps=40",
    "trackers=none",
    "log_every=1",
    "overhead=false",
]
SPACES = {"learned": "ldp", "bit_gradient": str(FILE.with_name("bit_gradient.yaml")), "cyclic": "cyclic"}


def curves(space: str, folder: Path) -> dict[str, list]:
    """{"losses": [of each step], "bits": [of each step: [of each layer: weight, input, gradient]]}."""
    from ldp_search.config.resolve import resolve
    from ldp_search.runner.training.loop import fit
    from ldp_search.runner.training.setup import open_session
    from ldp_search.runner.training.stopping import StopRequest

    run = open_session(resolve([*WORDS, f"space={space}", f"output={folder}"]), quiet=True)
    try:
        fit(run, StopRequest(), None)
    finally:
        run.journal.close()
    rows = [json.loads(line) for line in run.journal.text.splitlines()]
    return {"losses": [row["loss"] for row in rows if row["split"] == "train"], "bits": run.ldp.trajectory.bits.tolist()}


def machine() -> list[str]:
    """What the last digits depend on."""
    info = Path("/proc/cpuinfo")
    lines = [] if not info.is_file() else info.read_text().split("\n\n")[0].splitlines()
    known = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    processor = " ".join(known.get(key, "") for key in ("vendor_id", "cpu family", "model", "stepping"))
    return [torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability(), processor]


@pytest.mark.parametrize("policy", SPACES)
def test_a_short_training_computes_what_it_did(policy, tmp_path):
    golden = json.loads(FILE.read_text())
    expected, found = golden[policy], json.loads(json.dumps(curves(SPACES[policy], tmp_path)))
    if golden["machine"] == machine():
        assert found == expected
    else:
        assert found["losses"][:10] == pytest.approx(expected["losses"][:10], rel=0.02)
        assert len(found["bits"]) == len(expected["bits"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        golden = {policy: curves(space, Path(temporary) / policy) for policy, space in SPACES.items()}
    FILE.write_text(json.dumps({"machine": machine()} | golden) + "\n")
