"""examples/tour.ipynb: runs from its first cell to its last, draws while it trains, and is small as it lies here."""

import re
from pathlib import Path

import pytest

import ldp_search

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("onnxruntime")

ROOT = Path(ldp_search.__file__).parents[1]
TOUR = ROOT / "examples" / "tour.ipynb"
SHORT = "EPOCHS = 1\nTRIALS, TRIAL_EPOCHS = 1, 1"


def parameters(notebook):
    """The cell that says how long everything takes."""
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    return cell


def shown(notebook, kind: str) -> list[str]:
    """Everything of this kind that the cells show."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [o["data"][kind] for o in outputs if kind in o.get("data", {})] + [
        o["text"] for o in outputs if o.output_type == "stream" and kind == "text"
    ]


@pytest.mark.slow(reason="a notebook from end to end; what its cells call is always called in docs/ and in test_notebook.py")
@pytest.mark.timeout(600)
def test_the_tour_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(TOUR, 4)
    assert set(re.findall(r"[A-Z_]{4,}", SHORT)) == set(re.findall(r"[A-Z_]{4,}", parameters(notebook).source))
    parameters(notebook).source = SHORT
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3", resources=resources).execute()
    assert len(shown(notebook, "image/png")) == 4  # the watched schedule, and three of `plot`
    assert len(shown(notebook, "text/html")) == 3  # controller, allocation, trajectory
    printed = "".join(shown(notebook, "text"))
    assert float(re.search(r"training cost ([\d.]+)", printed)[1]) == pytest.approx(0.32, rel=0.01)
    assert float(re.search(r"([\d.]+)% of the predictions are those", printed)[1]) >= 98
    assert "Traceback" not in printed


def test_what_lies_here_was_run_and_is_small():
    notebook = nbformat.read(TOUR, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert len(shown(notebook, "image/png")) == 4 and TOUR.stat().st_size < 300_000
    assert max(len(line) for cell in code for line in cell.source.splitlines()) <= 88
    for words in shown(notebook, "text"):
        assert not re.search(r"/(home|root|Users|work|venv)\b|Warning|Error", words), words
    assert float(re.search(r"accuracy ([\d.]+)%", "".join(shown(notebook, "text")))[1]) > 93
