"""What the tests of runs share: nothing is drawn beside a saved model."""

import pytest


@pytest.fixture(autouse=True)
def schedule_pictures(monkeypatch):
    """A few bytes in place of the picture of every saved model, whose drawing takes longer than all the rest of saving a small
    one. test_hub.py looks at the picture itself.
    """
    drawn = "ldp_search.runner.pretrained.card._picture"
    monkeypatch.setattr(drawn, lambda ldp: b"\x89PNG" if ldp.trajectory.seen else None)
