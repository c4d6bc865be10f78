"""A search from words to folder: what it leaves, how it goes on, and how it ends when something goes wrong."""

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import tiny
from omegaconf import OmegaConf
from optuna.trial import TrialState
from tiny import WORDS

import ldp_search
from ldp_search.report import main as report
from ldp_search.run import main
from ldp_search.runner.search import best, launch, run_trial
from ldp_search.runner.training import finish, loop

SEARCH = [*WORDS, "space=quick", "epochs=1"]


def no_page(study, output):
    """In place of the page on a study."""


@pytest.fixture(autouse=True)
def no_reports(request, monkeypatch):
    """Pages take seconds; only tests with `report` in their name make them."""
    if "report" not in request.node.name:
        monkeypatch.setattr(finish, "write_report_page", lambda output: None)
        monkeypatch.setattr(run_trial, "write_report_page", lambda output: None)
        monkeypatch.setattr("ldp_search.runner.report.study.write_study_report", no_page)


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def search(*words):
    return main([*SEARCH, "storage=s.journal", *words])


def trials(storage="s.journal"):
    return best.load_study(storage).get_trials()


@pytest.mark.slow(reason="a whole search with its dashboard and report; the tests beside it look at each part")
def test_a_search_shows_and_reports_everything(tmp_path, capsys, monkeypatch):
    """Artifacts before the end of a trial, a note with the commands, the best settings as YAML, one page."""
    drawn, pictures = finish.write_report_page, {"schedule.png", "layers.png", "training.png"}
    monkeypatch.setattr(finish, "write_report_page", lambda output: drawn(output) if output.name == "0000" else None)
    assert search("trials=4", "model=resnet20") == 0
    out, rows = capsys.readouterr().out, trials()
    assert [t.state for t in rows] == [TrialState.COMPLETE] * 4
    assert rows[0].params == {"lr": 0.1, "policy.grad_rate": 1.0, "policy.freeze": 0.1}  # the defaults come first
    assert len({str(t.params) for t in rows}) == 4
    for row in rows:
        attrs, folder = row.user_attrs, tmp_path / "s" / "trials" / f"{row.number:04d}"
        shown = [json.loads(v)["filename"] for k, v in row.system_attrs.items() if k.startswith("artifacts:")]
        assert sorted(shown) == sorted({*shown}) and {"metrics.jsonl"} | (pictures if row.number == 0 else set()) <= set(shown)
        assert attrs["folder"] == str(folder) and attrs["seeds"] == [0] and attrs["coverage"] == 1 and attrs["seconds"] > 0
        assert attrs["training_cost"] == pytest.approx(0.3165, rel=0.02) and attrs["data"] and attrs["versions"]["torch"]
        result = json.loads((folder / "result.json").read_text())
        assert row.value == result["accuracy"] and attrs["inference_cost"] == pytest.approx(result["inference_cost"])
        assert row.constraints["training_cost"] == pytest.approx(attrs["training_cost"] - 0.3165 * 1.005)
    assert len(list((tmp_path / "s" / "artifacts").iterdir())) >= 4 * len(shown)
    study = best.load_study("s.journal")
    attrs = study._storage.get_study_system_attrs(study._study_id)
    notes = "".join(str(value) for key, value in sorted(attrs.items()) if "note_str" in key)
    assert "python -m ldp_search.run" in notes and "--artifact-dir s/artifacts" in notes and "**Best: trial" in notes
    for text in ("best settings: s/best.yaml", "report: s/report.html", "optuna-dashboard s.journal", "[4 of 4]"):
        assert text in out
    assert {"front.png", "history.png", "coordinates.png", "importance.png", "schedules.png"} <= {
        p.name for p in (tmp_path / "s").iterdir()
    }
    page = (tmp_path / "s" / "report.html").read_text()
    assert 'src="data:' in page and "http" not in page.replace("http-equiv", "") and page.count("<tr>") >= 5
    assert report(["s.journal", "output=elsewhere"]) == 0 and (tmp_path / "elsewhere" / "front.png").exists()

    found = ldp_search.best("s.journal")
    assert found.metric == max(t.value for t in rows if t.constraints["training_cost"] <= 0)
    assert found.figures["training_cost"] < 0.46 and len(found.allocation.layers) == 22
    assert ldp_search.controller(found.model).cost().relative_inference == pytest.approx(found.figures["inference_cost"])
    config = OmegaConf.load("s/best.yaml")
    assert config.policy.freeze == found.params["policy.freeze"] and config.model == "resnet20"
    assert main(["config=s/best.yaml", "output=again"]) == 0
    tiny.same_result(found.folder, tmp_path / "again")


def test_trials_is_the_total(capsys):
    assert search("trials=2") == 0 and search("trials=2") == 0
    assert len(trials()) == 2 and "2 of 2 trials done" in (out := capsys.readouterr().out)
    commands = [line for line in out.splitlines() if line.startswith("  python -m ldp_search.run ")]
    assert "to search on" in out and commands and all(line.split()[-1] == "trials=4" for line in commands)
    assert search("trials=3", "sampler=random") == 0 and [t.state.name for t in trials()] == ["COMPLETE"] * 3


def test_another_configuration_is_refused(tmp_path, capsys):
    assert search("trials=1") == 0
    before = (tmp_path / "s.journal").read_bytes()
    for words, shown in (
        (["batch_size=16"], "batch_size: 32 -> 16"),
        (["lr=0.1"], "outer.params.lr:"),
        (["max_cost=0.3"], "max_cost: 0.3165 -> 0.3"),
        (["pareto=true"], "pareto: False -> True"),
        (["limit=120"], "data (fingerprint):"),
    ):
        assert search("trials=2", *words) == 2
        err = capsys.readouterr().err
        assert "with another configuration (there -> here):" in err and shown in err and "study=NAME" in err
    assert (tmp_path / "s.journal").read_bytes() == before
    assert search("trials=1", "batch_size=16", "study=other") == 0
    assert report(["s.journal"]) == 2
    assert "several studies: name one, study=NAME: digits-net-quick, other" in capsys.readouterr().err


WRONG = {
    "trials=0": "trials must be at least 1; received 0",
    "trials=many": "trials must be a whole number, or null; received 'many'",
    "trails=3 storage=s.journal": "Unknown key 'trails' on the command line. Did you mean 'trials'",
    "storage=s.journal": "storage=... belongs to a search, which trials=N begins",
    "trials=2 sampler=tpee": "Unknown sampler 'tpee'. Did you mean 'tpe'?",
    "trials=2 pruner=mediam": "Unknown pruner 'mediam'. Did you mean 'median'?",
    "trials=2 sampler.startup=3": "sampler=tpe has no option 'startup'",
    "trials=2 pareto=true pruner=median": "Optuna prunes with one only",
    "trials=2 cost=training": "Did you mean 'training_cost'",
    "trials=2 isolation=proces": "Did you mean 'process'?",
    "trials=2 storage=postgre://x": "Unknown storage 'postgre://x'. Did you mean 'postgresql'",
    "trials=2 storage=sqlite:/x.db": "A storage URL has :// after its scheme",
    "trials=2 workers=2 storage=sqlite:///x.db": "SQLite locks up under several workers",
    "trials=2 storage=.": "storage must be a journal file, but '.' is a folder",
    "trials=2 storage=postgresql://nobody@127.0.0.1:1/none": "storage=postgresql://nobody@127.0.0.1:1/none cannot be opened",
    "trials=2 space=static": "A search needs `outer: {params: ...}` in search space 'static'",
    "trials=2 model=timm:cifar_resnet21": "Did you mean 'timm:cifar_resnet",
    "trials=2 data=nowhere": "data= must be a folder or a file",
    "trials=2 resume=somewhere": "resume=... must be",
    "config=none.yaml": "config=FILE must be a YAML file of settings; there is no file 'none.yaml'",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words(words, capsys, tmp_path):
    assert main([*(w for w in SEARCH if w.partition("=")[0] not in words), *words.split()]) == 2
    err = capsys.readouterr().err
    assert WRONG[words] in err and "Traceback" not in err, err
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_journal(tmp_path, capsys):
    (tmp_path / "s.journal").write_text("hello")
    assert search("trials=2") == 2 and "but 's.journal' holds something else" in capsys.readouterr().err
    (tmp_path / "s.journal").write_bytes(b"SQLite format 3\0 ...")
    assert search("trials=2") == 2 and "write storage=sqlite:///s.journal" in capsys.readouterr().err
    assert report(["none.journal"]) == 2 and "There is no journal 'none.journal'" in capsys.readouterr().err


def test_a_trial_that_fails_says_why_and_the_study_goes_on(monkeypatch, capsys):
    step, causes = loop.training_step, {1: MemoryError(), 2: OSError(errno.ENOSPC, "No space left on device")}

    def harmed(session, parts):
        number = int(session.output.name)
        if number == 3:
            next(session.plain_model.parameters()).data.fill_(float("nan"))
        elif number in causes and session.step == 2:
            raise causes[number]
        step(session, parts)

    monkeypatch.setattr(loop, "training_step", harmed)
    assert search("trials=5") == 0
    rows, out = trials(), capsys.readouterr().out
    assert [t.state.name for t in rows] == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE"]
    reasons = [t.user_attrs.get("reason", "") for t in rows]
    assert reasons[1] == "out of memory" and reasons[2].startswith("disk full: [Errno 28]") and "nan" in reasons[3]
    assert "trial 2: failed: disk full" in out
    assert "Traceback" in Path(rows[1].user_attrs["folder"], "error.txt").read_text()


def test_a_search_of_nothing_but_failures_stops(monkeypatch, capsys):
    monkeypatch.setattr(loop, "training_step", lambda session, parts: 1 / 0)
    assert search("trials=9") == 1
    assert "All trials fail, the last one: division by zero" in capsys.readouterr().err
    assert [t.state.name for t in trials()] == ["FAIL"] * 3 + ["WAITING"] * 6


@pytest.mark.slow(reason="a whole search more")
def test_pareto(capsys):
    assert search("trials=3", "pareto=true", "space=policies", "seeds=2", "epochs=1") == 0
    study = best.load_study("s.journal")
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["accuracy", "training_cost"]
    for row in study.trials:
        assert row.values[1] == row.user_attrs["training_cost"] and row.user_attrs["seeds"] == [0, 1]
        assert row.values[0] == pytest.approx(sum(row.user_attrs["metrics"]) / 2)
    assert len({round(t.values[1], 2) for t in study.trials}) > 1
    cheap = min(t.values[1] for t in study.trials)
    assert ldp_search.best("s.journal", max_cost=cheap).figures["training_cost"] == pytest.approx(cheap)


def test_pruned_trials_show_what_they_have(monkeypatch):
    monkeypatch.setattr("ldp_search.runner.search.samplers.AmongFeasible.prune", lambda self, study, trial: trial.number == 1)
    assert search("trials=2", "epochs=3") == 0
    row = trials()[1]
    shown = {json.loads(v)["filename"] for k, v in row.system_attrs.items() if k.startswith("artifacts:")}
    assert row.state == TrialState.PRUNED and {"metrics.jsonl", "config.yaml"} <= shown and "training_cost" in row.user_attrs
    assert not os.path.exists(f"{row.user_attrs['folder']}/checkpoints")


SLOW = ("trials=2", "model=tiny:slow_net", "epochs=4", "checkpoint_every=1")


def start(log):
    """A search in a process of its own, that has gone on some steps with its second trial."""
    before = newest()

    def run():
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os._exit(search(*SLOW))

    pid, deadline = tiny.fork(run), time.monotonic() + 60
    while newest() <= before + 2:
        time.sleep(0.01)
        assert time.monotonic() < deadline, log.read_text()
    return pid


def newest():
    """The step of the newest checkpoint of the second trial."""
    return max((int(p.name[5:]) for p in Path("s/trials/0001/checkpoints").glob("step_*")), default=0)


@pytest.mark.slow(reason="five searches; kills always are of runs in test_resume.py, of searches in test_search_faults.py")
def test_killed_and_stopped_and_gone_on_with(tmp_path):
    """kill -9 in the second trial, then Ctrl-C in it, then the same command: the results of a search left in peace."""
    (tmp_path / "calm").mkdir()
    os.chdir("calm")
    assert search(*SLOW) == 0
    calm = [(t.state, t.values, t.params) for t in trials()]
    os.chdir("..")
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        pid = start(tmp_path / "log")
        os.kill(pid, number)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status
        assert trials()[1].state == TrialState.RUNNING
    out = (tmp_path / "log").read_text()
    assert "stopped; nothing is lost. To go on:\n  python -m ldp_search.run" in out and "trials=2" in out
    assert "Traceback" not in out
    assert search(*SLOW) == 0
    assert [(t.state, t.values, t.params) for t in trials()] == calm
    for number in ("0000", "0001"):
        tiny.same_result(tmp_path / "calm" / "s" / "trials" / number, tmp_path / "s" / "trials" / number)


class Forked:
    """In place of `subprocess.Popen`: the same words in a fork, which need not import anew."""

    def __init__(self, command, stdout, env, **options):
        def run():
            os.environ |= env
            return main(command[3:])

        self.child = tiny.Child(Path(stdout.name), run)
        self.pid = self.child.pid

    def poll(self):
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None


def check_two_workers(out):
    assert [t.state.name for t in trials()] == ["COMPLETE"] * 2 and "[2 of 2]" in out
    assert sorted(os.listdir("s/workers")) == ["worker-1.log", "worker-2.log"]
    machines = {t.system_attrs["ldp_search:owner"]["token"] for t in trials()}
    assert len(machines) == 2


def test_two_forked_workers(capsys, monkeypatch):
    monkeypatch.setattr(launch, "subprocess", SimpleNamespace(Popen=Forked, STDOUT=None, DEVNULL=None))
    assert search("trials=2", "workers=2", "isolation=process", "epochs=1") == 0
    check_two_workers(capsys.readouterr().out)


@pytest.mark.slow(reason="three processes that import all; the same always is shown of forks")
def test_two_workers_and_a_process_for_every_trial(capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", tiny.environment()["PYTHONPATH"])
    assert search("trials=2", "workers=2", "isolation=process", "epochs=1") == 0
    check_two_workers(capsys.readouterr().out)


def test_reports_on_studies_without_results(capsys):
    study = optuna.create_study(study_name="x", storage=best.open_storage("s.journal"))
    assert report(["s.journal"]) == 2 and "The study 'x' holds no trial yet" in capsys.readouterr().err
    study.tell(study.ask(), 1.0)
    assert report(["s.journal", "study=y"]) == 2 and "holds no study 'y'" in capsys.readouterr().err
    assert main([*SEARCH, "storage=s.journal", "study=x", "trials=2"]) == 2
    assert "a study 'x' that ldp_search did not make" in capsys.readouterr().err
