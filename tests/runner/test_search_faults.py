"""Workers killed at any moment, storages that go away: every trial counts exactly once, and nothing comes out differently."""

import json
import os
import threading
import time

import optuna
import pytest
import tiny
import toy_search
from optuna.trial import TrialState
from toy_search import Postgres, search, search_under_fire

from ldp_search.runner.search import best

TRIALS, KILLS = 10, 5


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    toy_search.hurried(monkeypatch)
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="module")
def postgres():
    server = Postgres()
    if server.lacking:
        pytest.skip(server.lacking)
    with server:
        yield server


def results(storage, name="tune"):
    """What counts of a study: per trial its state, values, parameters and costs."""
    trials = best.load_study(storage, name).get_trials()
    assert [t.number for t in trials] == list(range(len(trials)))
    return [(t.state.name, t.values, t.params, t.user_attrs.get("training_cost"), t.constraints) for t in trials]


def check_after_fire(storage, folder, name, undisturbed):
    found = results(storage, name)
    assert len(found) == TRIALS and {row[0] for row in found} == {"COMPLETE"}
    assert found == undisturbed
    for number in range(TRIALS):  # every step happened; again only the one that a kill cut off
        assert {line.split()[0] for line in steps_of(folder, number)} == {"0", "1", "2", "3"}
    return sum(len(steps_of(folder, number)) for number in range(TRIALS))


def steps_of(folder, number):
    return (folder / "trials" / f"{number:04d}" / "steps.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calm")
    search(folder / "calm.journal", folder / "calm", TRIALS)
    return results(folder / "calm.journal")


def test_kills_on_a_journal(tmp_path, undisturbed):
    journal, slow = tmp_path / "study.journal", toy_search.toy(nap=0.15)
    made = search_under_fire(journal, tmp_path / "out", TRIALS, workers=3, kills=KILLS, seed=1, train=slow)
    total = check_after_fire(journal, tmp_path / "out", "tune", undisturbed)
    assert made == KILLS and total <= 4 * TRIALS + KILLS  # they went on from checkpoints
    for line in journal.read_text().splitlines():
        json.loads(line)


@pytest.mark.slow(reason="on a database what is always shown on a journal")
def test_kills_on_postgresql(tmp_path, postgres, undisturbed):
    made = search_under_fire(
        postgres.url, tmp_path / "out", TRIALS, workers=3, kills=KILLS, seed=2, train=toy_search.toy(nap=0.25), study="fire"
    )
    total = check_after_fire(postgres.url, tmp_path / "out", "fire", undisturbed)
    assert made == KILLS and total <= 4 * TRIALS + KILLS


@pytest.mark.slow(reason="a storage that comes back is always shown in test_lease.py, without a database")
def test_a_database_that_restarts_is_waited_for(tmp_path, postgres, undisturbed):
    folder, slow = tmp_path / "out", toy_search.toy(nap=0.1)
    workers = [tiny.fork(search, postgres.url, folder, TRIALS, slow, study="outage") for _ in range(2)]
    deadline = time.monotonic() + 60
    while len(toy_search.workers_seen(folder)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    postgres.stop()
    time.sleep(0.3)
    postgres.start()
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers] == [0, 0]
    check_after_fire(postgres.url, folder, "outage", undisturbed)


def test_workers_that_start_at_once_make_one_study(tmp_path, postgres):
    for storage, name in ((tmp_path / "study.journal", "tune"), (postgres.url, "together")):
        pids = [tiny.fork(search, storage, tmp_path / name, 9, study=name) for _ in range(3)]
        assert {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids} == {0}
        assert len(results(storage, name)) == 9


def test_a_trial_that_always_kills_its_worker_fails_with_the_reason(tmp_path):
    def deadly(trial):
        if trial.number == 1:
            os.kill(os.getpid(), 9)
        return 1.0

    for _ in range(3):
        pid = tiny.fork(search, tmp_path / "s.journal", tmp_path / "out", 3, deadly, retries=2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    search(tmp_path / "s.journal", tmp_path / "out", 3, deadly, retries=2)
    rows = best.load_study(tmp_path / "s.journal").get_trials()
    assert [t.state for t in rows] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert "its worker died 3 times at the same place" in rows[1].user_attrs["reason"]


def test_threads_of_the_lease_end(tmp_path):
    search(tmp_path / "s.journal", tmp_path / "out", 3)
    assert not [t.name for t in threading.enumerate() if t.name.startswith("lease")]
