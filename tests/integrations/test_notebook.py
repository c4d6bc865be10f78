"""A training that is watched: every batch passes, pictures come in time and never stop a training."""

from types import SimpleNamespace

import pytest

import ldp_search
from ldp_search import notebook


@pytest.fixture
def shown(monkeypatch):
    """Pretends to be a notebook; holds, of every picture shown, the steps that were recorded by then."""
    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    seen = []
    monkeypatch.setattr(notebook.Picture, "_show", lambda self, figure: seen.append(self.ldp.trajectory.seen))
    return seen


@pytest.fixture
def ldp(square):
    return square(2, policy="static")


def train(batches, ldp, total: int) -> list:
    seen = []
    for batch in batches:
        seen.append(batch)
        ldp.step((ldp.trajectory.seen + 1) / total)
    return seen


def test_pictures_follow_the_training(ldp, shown):
    watched = notebook.watch(range(3), ldp, every=0)
    assert len(watched) == 3 and train(watched, ldp, 6) + train(watched, ldp, 6) == [0, 1, 2] * 2
    assert shown[-1] == 6 and 3 in shown and shown == sorted(set(shown))  # the end of each epoch, and nothing twice


def test_drawing_takes_a_tenth_of_the_time(ldp, shown, monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(notebook.time, "monotonic", lambda: clock.now)

    def slow_plot(kind):
        clock.now += 3.0
        return SimpleNamespace(clear=lambda: None)

    monkeypatch.setattr(ldp, "plot", slow_plot)
    for batch in notebook.watch(range(1000), ldp, every=5.0):
        ldp.step((batch + 1) / 1000)
        clock.now += 1.0
    assert len(shown) <= 1 + (clock.now - 100) / 30 + 1 and len(shown) > 20


def test_stopping_early_draws_the_last_step(ldp, shown):
    for batch in notebook.watch(range(10), ldp, every=1000):
        ldp.step((batch + 1) / 10)
        if batch == 4:
            break
    assert shown == [5]


def test_a_picture_that_fails_is_a_warning_once(ldp, monkeypatch):
    monkeypatch.setattr(notebook, "in_notebook", lambda: True)
    monkeypatch.setattr(notebook.Picture, "_show", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="not drawn any more: ZeroDivisionError") as caught:
        assert train(notebook.watch(range(5), ldp, every=0), ldp, 5) == [0, 1, 2, 3, 4]
    assert len([w for w in caught if "not drawn" in str(w.message)]) == 1


def test_takes_the_model_and_names_one_without_a_search(ldp):
    assert notebook.watch([], ldp.model).picture.ldp is ldp
    with pytest.raises(LookupError, match="call ldp_search.apply"):
        notebook.watch([], ldp_search.remove(ldp.model))


def test_a_picture_that_cannot_be_drawn_is_refused_before_the_training(ldp):
    with pytest.raises(ValueError, match="Unknown kind of picture 'alocation'. Did you mean 'allocation'"):
        notebook.watch([], ldp, kind="alocation")
    for kind in ("damage", "front"):
        with pytest.raises(ValueError, match="'static' does not measure what rounding costs the loss"):
            notebook.watch([], ldp, kind=kind)
        with pytest.raises(ValueError, match="'static' does not measure what rounding costs the loss"):
            ldp.plot(kind)


def test_callback_of_the_trainer(shown, tmp_path):
    transformers = pytest.importorskip("transformers")
    from test_integrations import Words, bert

    model = ldp_search.apply(bert(), "static")
    callbacks = [ldp_search.integrations.LDPCallback(), ldp_search.integrations.WatchCallback(every=0)]
    settings = {"max_steps": 3, "use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
    arguments = transformers.TrainingArguments(str(tmp_path), **settings)
    transformers.Trainer(model, arguments, train_dataset=Words(), callbacks=callbacks).train()
    assert shown[-1] == 3 and shown == sorted(set(shown))
