"""Settings: what lies over what, and every wrong word answered in one message with exit status 2 and nothing written."""

import pytest
from omegaconf import OmegaConf

from ldp_search.config import presets
from ldp_search.config.overlay import ConfigError, parse_words
from ldp_search.config.resolve import resolve
from ldp_search.config.settings import interval
from ldp_search.config.task_file import TaskFile
from ldp_search.run import main
from ldp_search.runner.tasks.base import build_task


def values(*words):
    return resolve(list(words)).values


WRONG = {
    "polcy=cyclic": "Unknown key 'polcy' on the command line. Did you mean 'policy'?",
    "bits=8": "This target is that of the space 'ldp'; target_cost=null with policy='static' holds the highest bits",
    "lrr=1": "Unknown key 'lrr' on the command line. Did you mean 'lr'?",
    "lr=abc": "lr must be a number; received 'abc' (on the command line)",
    "lr=-1": "lr must be greater than 0; received -1",
    "lr=": "lr must be a number; received None",
    "epochs=1.5": "epochs must be a whole number, or null; received 1.5",
    "epochs=0": "epochs must be at least 1; received 0",
    "epochs=3 steps=4": "epochs and steps exclude each other",
    "target_cost=0.5 cost_weight=0.1": "target_cost and cost_weight exclude each other",
    "target_cost=2": "target_cost must be in (0, 1]",
    "compile=maybe": "compile must be true or false; received 'maybe'",
    "milestones=0.5,x": "milestones must be a list of numbers",
    "milestones=0.7,0.2": "milestones must be rising shares of the run",
    "warmup=1": "warmup must be a share of the run",
    "lr_schedule=cosin": "Did you mean 'cosine'?",
    "precision=fp16": "Did you mean 'bf16'",
    "recipe=qick": "Did you mean 'quick'?",
    "checkpoint_every=9x": "must be a time (90s, 10min, 1h) or a number of steps (500); received '9x'",
    "task=digit": "Unknown task 'digit'. Did you mean 'digits'",
    "task=./none.yaml": "there is no file 'none.yaml'",
    "space=lpd": "Unknown search space 'lpd'. Did you mean 'ldp'",
    "policy=cylcic": "Unknown policy 'cylcic'. Did you mean 'cyclic'?",
    "policy=cyclic policy.cycle=3": "The policy 'cyclic' has no option 'cycle'. Did you mean 'cycles'?",
    "policy=cyclic policy.cycles=many": "policy.cycles must be a whole number; received 'many'",
    "weight_quantizer=minmaxx": "Unknown quantizer 'minmaxx'. Did you mean 'minmax'?",
    "bits=1": "bits must be integers with 2 <= lowest <= highest <= 16; received 1",
    "bits=[8,3]": "bits must be integers with 2 <= lowest <= highest <= 16",
    "bits=[3": "The value '[3' is not YAML",
    "granularity=layr": "Did you mean 'layer'?",
    "epochs": "words of the form key=value, such as seed=1 or policy.cycles=8; received 'epochs'",
    "--epochs=3": "Unknown option '--epochs=3'",
    "--list": "--list needs one of its kinds",
    "--list task": "Did you mean 'tasks'?",
    "resume=nowhere": "resume=... must be auto, never, or a run's folder",
    "model=timm:cifar_resnet21": "timm knows no model 'cifar_resnet21'. Did you mean 'timm:cifar_resnet",
    "model=resnet21": "or an alias; received 'resnet21'. Did you mean 'resnet",
    "model=convnext_atto": "Did you mean 'timm:convnext_atto'?",
    "model=nowhere:net": "importable 'module:attribute'; received 'nowhere:net'",
    "model.depht=3": "takes no option 'depht'",
    "model=timm:vit_tiny_patch16_224": "must take this task's inputs, of shape 1x8x8, but: AssertionError: Input height (8)",
    "optimizer=adamww": "Unknown optimizer 'adamww'. Did you mean 'adamw'",
    "optimizer=sgd optimizer.beta=3": "The optimizer 'sgd' cannot be made",
    "trackers=tensorbord": "Unknown tracker 'tensorbord'. Did you mean 'tensorboard'",
    "skip=none_such": "the pattern 'none_such' matches no layer",
    "batch_size=9999": "batch_size must be at most the 1442 training samples; received 9999",
    "batch_size=9 accumulate=2": "batch_size must divide by accumulate times the number of processes (2 x 1)",
    "policy=replay": "needs path=FILE",
    "data=nowhere": "data= must be a folder or a file with the data",
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_words(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert WRONG[words] in captured.err, captured.err
    assert "Traceback" not in captured.err and not list(tmp_path.iterdir())


def test_layers_lie_over_each_other():
    assert values("task=cifar10")["steps"] == 64000 and values("task=cifar10")["batch_size"] == 128
    quick = values("task=cifar10", "recipe=quick")
    assert quick["steps"] is None and quick["epochs"] == 6 and quick["weight_decay"] == 1e-4
    mine = values("task=cifar10", "recipe=quick", "steps=7", "lr=1e-3")
    assert mine["epochs"] is None and mine["steps"] == 7 and mine["lr"] == 0.001


def test_a_search_space_lies_below_the_command_line():
    assert values("space=cyclic")["policy"] == {"name": "cyclic", "cycles": 32}
    assert values("space=cyclic", "policy.cycles=4")["policy"] == {"name": "cyclic", "cycles": 4}
    assert values("space=cyclic", "bits=4,6")["bits"] == [4, 6]
    assert values("space=ldp", "cost_weight=0.1")["target_cost"] is None


@pytest.mark.parametrize("words", [("policy=cyclic", "policy.cycles=8"), ("policy.cycles=8", "policy=cyclic")])
def test_name_and_options_in_any_order(words):
    assert values(*words)["policy"] == {"cycles": 8, "name": "cyclic"}
    assert resolve([*words]).space.policy == values(*words)["policy"]


def test_another_name_drops_the_options_of_the_old_one():
    assert values("space=cyclic", "policy=ramp")["policy"] == "ramp"
    assert values("model.shortcut=A")["model"] == {"name": "timm:cifar_resnet20", "shortcut": "A"}
    assert values("model=timm:resnet18")["model"] == "timm:resnet18"


def test_text_may_name_what_omegaconf_looks_up(monkeypatch):
    monkeypatch.setenv("WHERE", "/somewhere")
    assert resolve(["output=${oc.env:WHERE}/run"]).config.output == "/somewhere/run"


def test_values_are_yaml():
    words = ["lr=1e-3", "bits=3,8", "skip=*fc", "fixed={'*head': 8}", "a.b=[1, x]", "a.c=null"]
    assert parse_words(words, components=("a",), lists=("bits", "skip")) == {
        "lr": 0.001, "bits": [3, 8], "skip": "*fc", "fixed": {"*head": 8}, "a": {"b": [1, "x"], "c": None},
    }  # fmt: skip
    assert values("skip=*fc")["skip"] == ["*fc"]


def test_intervals():
    assert interval("90s") == ("seconds", 90) and interval("2min") == ("seconds", 120) and interval("500") == ("steps", 500)


def test_own_files(tmp_path):
    task, space = tmp_path / "mine.yaml", tmp_path / "space.yml"
    task.write_text("dataset: {source: digits, classes: 10, channels: 1}\nrecipe: {epochs: 2, lr: 1e-2, target_cost: 0.3}\n")
    space.write_text("description: mine\npolicy: {name: cyclic, cycles: 3}\nouter: {x: 1}\n")
    settings = resolve([f"task={task}"])
    assert settings.config.lr == 0.01 and settings.space.target_cost == 0.3 and settings.space.policy == "learned"
    settings = resolve([f"task={task}", f"space={space}"])  # what the recipe says about bits goes with its own space
    assert settings.space.target_cost is None and settings.space.policy == {"name": "cyclic", "cycles": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe: {lrr: 1}", "Unknown key 'lrr' in the recipe of task"),
        ("dataset: {clases: 3}", "Unknown key 'clases' in `dataset` of task"),
        ("kind: image_clasification", "Did you mean 'image_classification' or"),
        ("kinds: x", "Unknown key 'kinds' in task"),
        ("recipe: [1", "must be a readable YAML file"),
        ("- 1", "must hold a YAML mapping"),
        ("dataset: {source: digits, classes: 1}", "`classes` must be 2 or more"),
    ],
)
def test_wrong_files(text, message, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(text)
    assert main([f"task={tmp_path / 'mine.yaml'}", f"output={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_no_quick_recipe(tmp_path):
    (tmp_path / "mine.yaml").write_text("dataset: {source: digits, classes: 10, channels: 1}")
    with pytest.raises(ConfigError, match="needs a `quick:` block"):
        resolve([f"task={tmp_path / 'mine.yaml'}", "recipe=quick"])


@pytest.mark.parametrize("kind", ["tasks", "search_spaces"])
def test_every_shipped_file_resolves(kind):
    key = {"tasks": "task", "search_spaces": "space"}[kind]
    for name in presets.names(kind):
        assert presets.load(kind, name)["description"]
        assert values(f"{key}={name}")[key] == name


def test_print_config_prints_what_holds_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--print-config", "task=cifar10", "recipe=quick", "policy=ramp"]) == 0
    printed = OmegaConf.to_container(OmegaConf.create(capsys.readouterr().out))
    assert printed == values("task=cifar10", "recipe=quick", "policy=ramp") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--help", ["task=cifar10", "target_cost=", "checkpoint_every=60s"]),
        ("--list tasks", ["digits", "cifar100"]),
        ("--list=spaces", ["ldp_paper", "static"]),
        ("--list models", ["resnet20", "timm:NAME"]),
        ("--list policies", ["cyclic", "[cycles=32]", "learned"]),
        ("--list quantizers", ["minmax", "stochastic"]),
        ("--version", ["ldp_search 0."]),
    ],
)
def test_answers_without_a_run(words, parts, capsys):
    assert main(words.split()) == 0
    printed = capsys.readouterr().out
    assert all(part in printed for part in parts)


def test_words_of_earlier_versions_are_taken():
    with pytest.warns(FutureWarning) as seen:
        settings = resolve(["task=digits", "policy=paper", "policy.lr=2", "saved=half"])
    assert settings.values["policy"] == {"name": "ldp_sgd", "start": 0.0, "lr": 2.0} and settings.space.activations == "16bit"
    assert sorted({str(w.message).partition(" is")[0] for w in seen}) == ["policy=paper", "saved=half"] and len(seen) == 2


INCOMPLETE = """
from dataclasses import dataclass
from ldp_search.runner.tasks.base import Task

class Mine(Task):
    @dataclass
    class Data:
        pass

    def __init__(self, data, config):
        self.train_size = 1

    def batch(self, indices, epoch):
        return indices
"""


def test_a_kind_of_task_that_lacks_methods_is_refused_with_their_names(tmp_path, monkeypatch):
    (tmp_path / "incomplete_task.py").write_text(INCOMPLETE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="'incomplete_task:Mine' must define create_model and example_inputs and measure and"):
        build_task(TaskFile(kind="incomplete_task:Mine"), None)
