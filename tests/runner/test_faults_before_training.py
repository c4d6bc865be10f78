"""What fails is said before the training, once, in words of the command line; and several processes choose alike.

Each input is one that people met with other tools, or of the same kind.
"""

import json

import numpy as np
import pytest
from PIL import Image as Pillow

from ldp_search.run import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def folder(place):
    """FOLDER/train and FOLDER/validation of three classes with four pictures each."""
    for split in ("train", "validation"):
        for label in "abc":
            (place / split / label).mkdir(parents=True)
            for i in range(4):
                pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Pillow.fromarray(pixels).save(place / split / label / f"{i}.png")
    return place


def refused(capsys, tmp_path, *words) -> str:
    """The message on what cannot be used: one, with status 2, no traceback and nothing written."""
    status = main([*words, f"output={tmp_path / 'run'}"])
    err = capsys.readouterr().err
    assert status == 2 and "Traceback" not in err and not (tmp_path / "run").exists(), err
    return err


# -- before the training ----------------------------------------------------------------------------------------------


def test_a_batch_norm_on_one_value_is_said_before_the_training(tmp_path, capsys):
    words = ["task=digits", "limit=40", "eval_limit=20", "model=timm:cifar_resnet20", "epochs=1", "trackers=none"]
    message = refused(capsys, tmp_path, *words, "batch_size=4", "accumulate=4", "model=faulty:narrow")
    assert "The first training step fails on its first batch (batch_size=4, accumulate=4" in message
    assert "Batch norm needs two values a channel" in message and "Nothing was trained or written" in message


@pytest.mark.parametrize("model, what", [
    ("fails_in_evaluation", "The evaluation fails on its first batch"),
    ("fails_in_training", "The first training step fails on its first batch"),
    ("learns_nothing", "Is the whole model frozen?"),
])  # fmt: skip
def test_what_a_run_needs_later_is_tried_first(tmp_path, capsys, model, what):
    words = ["task=digits", "limit=40", "eval_limit=20", "epochs=1", "batch_size=4", "trackers=none"]
    assert what in refused(capsys, tmp_path, *words, f"model=faulty:{model}")


def test_a_rehearsal_leaves_no_trace(tmp_path, monkeypatch):
    """The same numbers with it and without."""
    from tiny import WORDS, same_result

    from ldp_search.runner.training import finish, setup

    monkeypatch.setattr(finish, "write_report_page", lambda output: None)
    assert main([*WORDS, f"output={tmp_path / 'with'}"]) == 0
    monkeypatch.setattr(setup, "rehearse", lambda run: None)
    assert main([*WORDS, f"output={tmp_path / 'without'}"]) == 0
    same_result(tmp_path / "with", tmp_path / "without")


# -- messages of libraries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words, says, never", [
    (("model=timm:cifar_resnet20",), "has no published weights: train it from scratch with pretrained=false",
     "pretrained_cfg_overlay"),
    (("model=timm:resnet18.nonsense", "pretrained=true"), "has no weights called 'nonsense'", "Invalid pretrained tag"),
    (("model=timm:test_vit", "pretrained=false", "model.nonsense=3"), "takes no option 'nonsense': leave out model.nonsense=",
     "__init__()"),
    (("model=faulty:missing_package", "pretrained=false"), "pip install nowhere_to_be_found", "ModuleNotFoundError"),
])  # fmt: skip
def test_messages_of_libraries_come_in_words_of_the_command_line(tmp_path, capsys, words, says, never):
    message = refused(capsys, tmp_path, "task=image_folder", f"data={folder(tmp_path / 'p')}", "batch_size=4", *words)
    assert says in message and never not in message


def test_configurations_of_a_data_set_are_a_word():
    from ldp_search.runner.remedies import in_words

    error = ValueError("Config name is missing.\nPlease pick one among the available configs: ['cola', 'sst2']\n"
                       "Example of usage:\n\t`load_dataset('glue', 'cola')`")  # fmt: skip
    assert "dataset.config=NAME, one of 'cola', 'sst2'" in in_words(error) and "load_dataset" not in in_words(error)
    assert "model=module:function" in in_words(ValueError("set the option `trust_remote_code=True` to remove this error."))
    assert "hf auth login" in in_words(OSError("You are trying to access a gated repo."))


# -- several processes choose alike -----------------------------------------------------------------------------------


def test_processes_take_one_anothers_choices():
    from ldp_search.core.backends.int8.choice import Choices

    ranks = [Choices(), Choices()]
    ranks[0].proposed, ranks[1].proposed = {"a": [1.0, 2.0]}, {"a": [2.0, 1.0], "b": [3.0, 4.0]}
    proposals = [rank.proposed for rank in ranks]
    for rank in ranks:
        rank.agree(list(proposals))
    assert ranks[0].seconds == ranks[1].seconds == {"a": [1.0, 2.0], "b": [3.0, 4.0]}
    assert not ranks[0].proposed and json.dumps(ranks[0].state_dict()) == json.dumps(ranks[1].state_dict())
    ranks[0].agree([{"a": [9.0, 1.0]}, {}])
    assert ranks[0].seconds["a"] == [1.0, 2.0]  # agreed once
