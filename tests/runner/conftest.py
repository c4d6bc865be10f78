"""What the tests of runs share: nothing is drawn beside a saved model, nor on a page of which the words are read."""

import pytest

from ldp_search.core.older_torch import TORCH
from ldp_search.runner.report import one, several


@pytest.fixture(autouse=True)
def schedule_pictures(monkeypatch):
    """A few bytes in place of the picture of every saved model, whose drawing takes longer than all the rest of saving a small
    one. test_hub.py looks at the picture itself.
    """
    drawn = "ldp_search.runner.pretrained.card._picture"
    monkeypatch.setattr(drawn, lambda ldp: b"\x89PNG" if ldp.trajectory.seen else None)


@pytest.fixture
def unpainted(monkeypatch):
    """For tests on words alone: pictures, which take most of the time, are replaced by one pixel."""
    pixel = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010806000000")
    for name in ("schedule_figure", "layers_figure", "course_figure"):
        monkeypatch.setattr(one, name, lambda *args, **options: pixel)
    for name in ("scatter_figure", "curves_figure", "schedules_figure"):
        monkeypatch.setattr(several, name, lambda *args, **options: pixel)


ONNX = {f"test_export{what}.py" for what in ("", "_cache", "_integers", "_nbits", "_of_any", "_products")}


def pytest_collection_modifyitems(items):
    for item in items:
        if TORCH < (2, 7) and item.path.name in ONNX:
            item.add_marker(pytest.mark.skip(reason="export to ONNX needs torch >= 2.7"))
