"""Who owns a trial, a journal that a kill cut off, and a storage that comes back: piece by piece."""

import errno
import os
import time

import optuna
import pytest
import toy_search

from ldp_search.runner.search import lease, patient_storage, storage
from ldp_search.runner.search.lease import OWNER, Lease, LeaseLost, Timing, Watch

FAST = Timing(beat=0.02, grace=0.2, unowned=0.1, settle=0.0)


@pytest.fixture
def study():
    return optuna.create_study()


def take(study, tmp_path, before=None, timing=FAST):
    trial = study.get_trials()[0] if study.get_trials() else study.ask()
    return Lease.take(study._storage, trial._trial_id, tmp_path / ".owner", timing, before, shared=False)


def running(study):
    return study.get_trials(deepcopy=False)


def test_one_owner_at_a_time(study, tmp_path):
    first = take(study, tmp_path)
    owner = lease.read_owner(study._storage, first.trial_id)
    assert take(study, tmp_path) is None and take(study, tmp_path, before=owner) is None  # its process lives
    assert not lease.is_free(tmp_path / ".owner") and Watch(FAST).abandoned(running(study)) == []
    first.lock.close()  # as when it is killed
    assert len(Watch(FAST).abandoned(running(study))) == 1
    second = take(study, tmp_path, before=owner)
    assert second is not None and second.owner["from"] == first.owner["token"]
    with pytest.raises(LeaseLost):
        first.check()
    second.check()


def test_a_suspended_owner_notices_that_it_lost_its_trial(study, tmp_path):
    with take(study, tmp_path) as mine:
        study._storage.set_trial_system_attr(mine.trial_id, OWNER, mine.owner | {"token": "another"})
        deadline = time.monotonic() + 5
        while not mine.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        assert mine.lost
    assert lease.read_owner(study._storage, mine.trial_id)["token"] == "another"


def test_on_another_machine_beats_tell(study, tmp_path, monkeypatch):
    mine = take(study, tmp_path)
    monkeypatch.setattr(lease, "this_machine", lambda: "elsewhere")
    monkeypatch.setattr(Watch, "LOOK", 0.05)
    watch = Watch(FAST)
    with mine:  # it beats: alive, however long one watches
        until = time.monotonic() + 0.4
        while time.monotonic() < until:
            assert watch.abandoned(running(study)) == []
            time.sleep(0.02)
    begun = time.monotonic()  # it beats no more
    while not watch.abandoned(running(study)):
        time.sleep(0.02)
        assert time.monotonic() < begun + 5
    assert time.monotonic() - begun >= 0.15


def test_time_without_a_look_is_no_evidence(study, tmp_path, monkeypatch):
    """While the storage was away, nobody could beat."""
    take(study, tmp_path)
    monkeypatch.setattr(lease, "this_machine", lambda: "elsewhere")
    now = [100.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: now[0])
    watch = Watch(Timing(grace=90))
    for _ in range(10):
        assert watch.abandoned(running(study)) == []
        now[0] += 3600
    for _ in range(30):
        now[0] += 5
        if watch.abandoned(running(study)):
            break
    assert watch.abandoned(running(study))


def test_released_and_unowned_trials_may_be_taken(study, tmp_path, monkeypatch):
    mine = take(study, tmp_path)
    mine.release()
    assert len(Watch(FAST).abandoned(running(study))) == 1
    other = optuna.create_study()
    other.ask()
    monkeypatch.setattr(Watch, "LOOK", 0.05)
    watch, begun = Watch(FAST), time.monotonic()
    while not watch.abandoned(running(other)):
        time.sleep(0.01)
    assert time.monotonic() - begun >= FAST.unowned


@pytest.mark.parametrize("rest", [b'{"op_code":', b'{"op_code":4,"worker_id":"x"}'])
def test_a_cut_off_line_does_not_spoil_the_journal(rest, tmp_path):
    path = tmp_path / "s.journal"
    study = optuna.create_study(storage=storage.open_storage(str(path)))
    study.tell(study.ask(), 1.0)
    with open(path, "ab") as file:
        file.write(rest)
    study.tell(study.ask(), 2.0)
    again = optuna.load_study(study_name=study.study_name, storage=storage.open_storage(str(path)))
    assert [t.value for t in again.trials] == [1.0, 2.0] and path.read_bytes().endswith(b"\n")


def test_a_lock_left_by_a_killed_process_is_no_hindrance_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "DEAD_OWNER", 1)
    (tmp_path / "s.journal").touch()
    os.symlink(tmp_path / "s.journal", tmp_path / "s.journal.lock")
    begun = time.monotonic()
    optuna.create_study(storage=storage.open_storage(str(tmp_path / "s.journal")))
    assert time.monotonic() - begun < 20


def test_a_full_disk_is_waited_for_and_leaves_the_journal_whole(tmp_path, monkeypatch):
    said, naps = [], []
    opened = storage.open_storage(str(tmp_path / "s.journal"), said.append)
    study = optuna.create_study(storage=opened)
    plain, fails = os.fsync, [OSError(errno.ENOSPC, "No space left on device")] * 3

    def fsync(handle):
        if fails:
            raise fails.pop()
        plain(handle)

    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(patient_storage.time, "sleep", naps.append)
    monkeypatch.setattr(patient_storage.time, "monotonic", lambda: next(clock))
    study.set_user_attr("a", 1)
    monkeypatch.undo()
    assert len(naps) == 3 and "No space left" in said[0] and "The storage is back" in said[1]
    lines = (tmp_path / "s.journal").read_text().splitlines()
    assert len([line for line in lines if '"user_attr":{"a":1}' in line]) == 1


def test_mistakes_are_not_waited_for(tmp_path):
    opened = storage.open_storage(str(tmp_path / "s.journal"))
    with pytest.raises(KeyError):
        opened.get_study_id_from_name("none")
    study = optuna.create_study(storage=opened)
    trial = study.ask()
    study.tell(trial, 1.0)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        opened.set_trial_state_values(trial._trial_id, optuna.trial.TrialState.COMPLETE, [1.0])


def test_a_lost_answer_to_the_end_of_a_trial():
    """The database took the result, the answer did not arrive: the second attempt finds it and is content."""
    inner = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=patient_storage.PatientStorage(inner, lambda text: None))
    plain, lost = inner.set_trial_state_values, [True]

    def unlucky(*args):
        result = plain(*args)
        if lost and lost.pop():
            raise ConnectionError("the answer was lost")
        return result

    trial = study.ask()
    inner.set_trial_state_values = unlucky
    study.tell(trial, 3.0)
    assert study.trials[0].value == 3.0 and not lost


def test_passwords_are_not_shown():
    assert storage.hidden("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert storage.hidden("s.journal") == "s.journal" and storage.hidden("postgresql://me@host/db") == "postgresql://me@host/db"
    assert storage.with_driver("postgresql://me@h/d").startswith("postgresql+psycopg")


def test_the_grpc_proxy(tmp_path, monkeypatch):
    grpc = pytest.importorskip("grpc", reason="pip install grpcio")
    from optuna.storages._grpc.server import make_server

    toy_search.hurried(monkeypatch)
    with toy_search.socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = make_server(storage._open(f"sqlite:///{tmp_path / 's.db'}"), "127.0.0.1", port)
    server.start()
    try:
        found = toy_search.search(f"grpc://127.0.0.1:{port}", tmp_path / "out", 4)
    finally:
        server.stop(None)
    assert found.number in range(4) and grpc
