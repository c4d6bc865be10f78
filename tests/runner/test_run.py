"""A run from words to folder: what it leaves, that it repeats bitwise, and how it ends when something goes wrong."""

import json
import math
import resource
import signal

import pytest
import tiny
import torch
from omegaconf import OmegaConf
from tiny import WORDS, same_result

import ldp_search
from ldp_search.config.resolve import resolve
from ldp_search.core import Trajectory
from ldp_search.run import main
from ldp_search.runner.data import DataError
from ldp_search.runner.io import checkpoint_files
from ldp_search.runner.tasks.images import ImageClassification, ImageData
from ldp_search.runner.training import finish, loop
from ldp_search.runner.training.optimizers import lr_factor
from ldp_search.runner.training.setup import open_session
from ldp_search.runner.training.stopping import StopRequest


@pytest.fixture(autouse=True)
def no_report(request, monkeypatch):
    """The report takes seconds; one test makes it."""
    if "report" not in request.node.name:
        monkeypatch.setattr(finish, "write_report_page", lambda output: None)


def run(folder, *words):
    return main([*WORDS, f"output={folder}", *words])


def rows(folder, split=None):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if split in (None, row["split"])]


def test_everything_that_a_run_leaves_with_report(tmp_path, capsys):
    assert run(tmp_path / "run", "trackers=tensorboard") == 0
    out = capsys.readouterr().out
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "metrics.jsonl", "schedule.parquet", "allocation.json", "model.safetensors", "result.json"} <= left
    assert "report.html" in left and any(name.endswith(".png") for name in left)
    assert not {"checkpoints", "layers.json"} & left and not [name for name in left if name.startswith(".")]
    assert list((tmp_path / "run" / "tensorboard").rglob("events.out.tfevents.*"))
    assert "accuracy" in out and str(tmp_path / "run" / "report.html") in out and "Try next" in out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["steps"] == 15 and result["policy"] == "learned" and result["task"] == "digits" and result["seed"] == 0
    assert abs(result["mean_cost"] / result["target_cost"] - 1) < 0.02 and result["coverage"] == 1
    final = rows(tmp_path / "run", "final")
    assert len(final) == 1 and rows(tmp_path / "run")[-1] == final[0] and result["accuracy"] == final[0]["accuracy"]
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").epochs == 3


@pytest.mark.parametrize(
    ("words", "told"), [(["epochs=1"], "5 steps (1 epoch) of"), (["epochs=null", "steps=11"], "11 steps (2.2 epochs) of")]
)
def test_the_first_lines_tell_how_far_the_steps_go(tmp_path, capsys, words, told):
    open_session(resolve([*WORDS, f"output={tmp_path / 'run'}", *words])).journal.close()
    assert told in capsys.readouterr().out


def test_the_folder_is_the_trained_model(tmp_path):
    """Loaded again without another word, it scores what the run said, at the bits that the run said."""
    assert run(tmp_path / "run", "model=resnet20", "model.shortcut=A", "epochs=1") == 0
    model = ldp_search.load_pretrained(tmp_path / "run")
    settings = resolve(WORDS)
    task = ImageClassification(ImageData(**settings.task.dataset), settings.config)
    pictures, labels = task.batch(torch.arange(task.eval_size), None)
    with torch.no_grad():
        accuracy = (model(pictures).argmax(1) == labels).float().mean().item()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert accuracy == pytest.approx(result["accuracy"]) and ldp_search.controller(model).cost().relative == result["cost"]


def test_metrics(tmp_path):
    assert run(tmp_path / "run") == 0
    assert [row["step"] for row in rows(tmp_path / "run", "train")] == [*range(2, 15, 2), 15]
    assert [row["step"] for row in rows(tmp_path / "run", "eval")] == [5, 10, 15]
    for row in rows(tmp_path / "run"):
        assert 0 < row["progress"] <= 1 and row["epoch"] == pytest.approx(row["step"] / 5)
        assert 0 <= row["accuracy"] <= 1 and 0 < row["cost"] <= 1 and 2 <= row["mean_bits"] <= 8 and row["seconds"] > 0
    assert [row["lr"] for row in rows(tmp_path / "run", "train")][::7] == pytest.approx([0.1, 0.001])


def test_a_line_tells_the_bits_of_its_own_step(tmp_path):
    assert run(tmp_path / "run", "log_every=1") == 0
    found, bits = rows(tmp_path / "run", "train"), Trajectory.load(tmp_path / "run" / "schedule.parquet").bits.double()
    costs = [row["cost"] for row in found]
    means = [sum(costs[: i + 1]) / (i + 1) for i in range(len(costs))]
    assert len(set(costs)) > 2 and [row["mean_cost"] for row in found] == pytest.approx(means, rel=1e-5)
    assert [row["mean_bits"] for row in found] == pytest.approx(bits[..., :2].mean((1, 2)).tolist())


def test_what_to_try_next_keeps_the_other_budgets(tmp_path, capsys):
    assert run(tmp_path / "run", "epochs=1", "target_inference=0.6", "target_size=0.0006") == 0
    out = capsys.readouterr().out
    another = next(line for line in out.splitlines() if line.endswith("# another budget")).split()
    assert resolve(another[3:-3]).values["target_size"] == 0.0006 and "target_inference=0.6" in another
    rival = next(line for line in out.splitlines() if line.endswith("# a rival"))
    assert "target_size" not in rival, "which does not look at it"
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert f"weights take {result['weight_mib']:.3g} MiB (budget 0.0006)" in out


def test_the_same_seed_gives_the_same_bits(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert run(tmp_path / name, f"seed={seed}") == 0
    same_result(tmp_path / "a", tmp_path / "b")
    assert tiny.timeless_metrics(tmp_path / "a") != tiny.timeless_metrics(tmp_path / "c")


@pytest.mark.slow(reason="seven runs, of spaces that always run in other tests one by one")
def test_a_learner_learns_and_every_space_runs(tmp_path):
    for space in ("cyclic", "progressive", "ramp", "random", "static", "ldp_paper"):
        words = ["policy.window=1"] if space == "progressive" else []
        assert run(tmp_path / space, f"space={space}", "epochs=1", *words) == 0
    words = ["limit=1442", "epochs=6", "batch_size=64", "log_every=50", "model.width=12", "checkpoint_every=60s"]
    assert run(tmp_path / "ldp", *words) == 0
    losses = [row["loss"] for row in rows(tmp_path / "ldp", "train")]
    assert losses[-1] < losses[0] - 0.5 and rows(tmp_path / "ldp", "final")[0]["accuracy"] > 0.5


def test_accumulated_parts_are_one_step(tmp_path):
    """Without batch norm and dropout, a batch in four parts is the batch at once; the bits move once per step."""
    words = ["model=tiny:plain_net", "space=static", "bits=16", "grad_bits=32"]
    for parts in (1, 4):
        assert run(tmp_path / str(parts), *words, f"accumulate={parts}") == 0
    one, four = (rows(tmp_path / name) for name in ("1", "4"))
    assert [r["step"] for r in one] == [r["step"] for r in four]
    assert [r["loss"] for r in four] == pytest.approx([r["loss"] for r in one], rel=2e-3)


def test_bf16_clipping_warmup_and_other_optimizers(tmp_path):
    words = ["precision=bf16", "clip_norm=1", "optimizer=adamw", "optimizer.betas=[0.9,0.95]", "lr=0.003", "warmup=0.2"]
    assert run(tmp_path / "adamw", *words, "lr_schedule=cosine", "data_workers=1") == 0
    assert run(tmp_path / "lamb", "optimizer=lamb", "lr=0.01") == 0
    assert math.isfinite(json.loads((tmp_path / "adamw" / "result.json").read_text())["loss"])


def test_learning_rates():
    config = resolve(["lr_schedule=multistep"]).config
    assert [lr_factor(config, p) for p in (0, 0.49, 0.5, 0.75)] == pytest.approx([1, 1, 0.1, 0.01])
    for name, middle in (("cosine", 0.5), ("linear", 0.5), ("constant", 1)):
        config = resolve([f"lr_schedule={name}", "warmup=0.2"]).config
        assert [lr_factor(config, p) for p in (0, 0.1, 0.2, 0.6)] == pytest.approx([0, 0.5, 1, middle])


def test_an_evaluation_changes_nothing(tmp_path):
    session = open_session(resolve([*WORDS, f"output={tmp_path / 'run'}"]))
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in session.plain_model.state_dict().items()}
    loop.evaluate(session, "eval")
    assert torch.equal(torch.get_rng_state(), before) and session.model.training
    assert all(torch.equal(v, state[k]) for k, v in session.plain_model.state_dict().items())


def test_a_caller_hears_of_evaluations_and_may_end_the_run(tmp_path):
    session, heard = open_session(resolve([*WORDS, f"output={tmp_path / 'run'}"])), []

    def on_evaluate(row):
        heard.append(row["step"])
        if len(heard) == 2:
            raise StopIteration

    with pytest.raises(StopIteration):
        loop.fit(session, StopRequest(), on_evaluate)
    assert heard == [5, 10] and session.step == 10


def test_a_loss_that_is_no_number_ends_the_run(tmp_path, capsys):
    assert run(tmp_path / "run", "lr=1e30") == 1
    err = capsys.readouterr().err
    assert "The loss is nan at step" in err and "start anew with, for instance, lr=" in err and "Traceback" not in err
    assert not (tmp_path / "run" / "result.json").exists()


def test_weights_that_are_no_numbers_are_never_saved(tmp_path, capsys, monkeypatch):
    step = loop.training_step

    def poisoned(session, parts):
        step(session, parts)
        if session.step == 5:
            next(session.plain_model.parameters()).data.fill_(math.nan)

    monkeypatch.setattr(loop, "training_step", poisoned)
    assert run(tmp_path / "run") == 1
    assert "Not all weights are finite at step 6" in capsys.readouterr().err
    assert checkpoint_files.newest_intact(tmp_path / "run" / "checkpoints", print).name == "step_00000004"


def test_a_finished_run_is_not_run_again(tmp_path, capsys):
    assert run(tmp_path / "run") == 0
    before = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    assert run(tmp_path / "run") == 0 and "finished already" in capsys.readouterr().out
    assert run(tmp_path / "run", "lr=0.2") == 2
    assert "other settings (there -> here):\n  lr: 0.1 -> 0.2" in capsys.readouterr().err
    assert run(tmp_path / "run", "resume=never") == 2 and "holds a run already" in capsys.readouterr().err
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == before


def test_runs_without_a_given_folder_get_one_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main([*WORDS, "epochs=1"]) == 0
    assert [p.name.startswith("digits-net-learned-") for p in (tmp_path / "runs").iterdir()] == [True, True]


def test_a_report_that_fails_costs_nothing(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise DataError("no picture today")

    monkeypatch.setattr("ldp_search.runner.report.write_report", broken)
    assert run(tmp_path / "run", "epochs=1") == 0
    assert "no picture today" in capsys.readouterr().err and (tmp_path / "run" / "result.json").exists()


def test_output_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file" / "run") == 2
    assert f"{tmp_path / 'file'} is a file" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").mkdir()  # in the way of a file
    assert run(tmp_path / "run") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_full_disk(tmp_path, capsys):
    """A limit on the size of files stands for the full disk: writing the checkpoint fails."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        assert run(tmp_path / "run", "model.width=64") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    err = capsys.readouterr().err
    assert "Writing failed at step 2" in err and "Make room" in err and "no checkpoint yet" in err and "Traceback" not in err
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize(("times", "status"), [(1, 143), (2, 143)])
def test_a_termination_saves_and_a_second_one_does_not_wait(times, status, tmp_path, monkeypatch, capsys):
    step = loop.training_step

    def asked_to_stop(session, parts):
        if session.step == 3:
            for _ in range(times):
                signal.raise_signal(signal.SIGTERM)
        step(session, parts)

    monkeypatch.setattr(loop, "training_step", asked_to_stop)
    assert run(tmp_path / "run", "checkpoint_every=3") == status
    newest = checkpoint_files.newest_intact(tmp_path / "run" / "checkpoints", print)
    assert newest.name == {1: "step_00000004", 2: "step_00000003"}[times]
    assert f"To go on from step {newest.name[-1]}" in capsys.readouterr().err


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    process = tiny.start(tmp_path / "run", 2, *WORDS, "model=tiny:slow_net", "checkpoint_every=1h", "epochs=100")
    process.kill(signal.SIGINT)
    assert process.wait() == 130 and "Traceback" not in process.printed, process.printed
    assert f"python -m ldp_search.run resume={tmp_path / 'run'}" in process.printed
    assert checkpoint_files.newest_intact(tmp_path / "run" / "checkpoints", print) is not None
