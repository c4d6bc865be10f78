"""Which rows are trained and evaluated on, which labels they have, and how bad ones are named."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image as Pillow
from tiny_text import SMALL, make, sentence

from ldp_search.config.overlay import ConfigError
from ldp_search.config.resolve import resolve
from ldp_search.runner.data import BadRows, Classes, DataError, load_splits
from ldp_search.runner.data.mask_folders import paired_folders
from ldp_search.runner.data.subsets import ending, spread
from ldp_search.runner.models import hugging_face
from ldp_search.runner.tasks import build_task


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def csv(file, rows, head="text,label"):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([head, *(f"{text},{label}" for text, label in rows)]) + "\n")
    return file


def text_task(place, *words):
    return make("task=text_folder", f"data={place}", "model=bert", *SMALL, *words)[0]


def pictures(folder, count=10):
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Pillow.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(folder / name / f"{i}.png")
    return folder


def picture_task(folder, *words):
    settings = resolve(["task=image_folder", f"data={folder}", "pretrained=false", *words])
    return build_task(settings.task, settings.config)


# -- held out ---------------------------------------------------------------------------------------------------------


def test_parts_are_complete_and_of_no_period():
    for size, share in ((400, 0.1), (40, 0.05), (10, 0.3), (37, 0.2)):
        for parts in (spread, ending):
            kept, held = parts(size, share)
            assert len(held) == int(round(size * share, 6)) and sorted(kept + held) == list(range(size))
            assert kept == sorted(kept) and held == sorted(held) and parts(size, share) == (kept, held)
    for period in range(2, 11):  # of a file that repeats so many classes, each is drawn
        assert {i % period for i in spread(1000, 0.1)[1]} == set(range(period))
    assert ending(10, 0.3)[1] == [7, 8, 9]


def test_an_alternating_file_is_held_out_fairly(tmp_path):
    task = text_task(csv(tmp_path / "a.csv", [(sentence(i), ["pos", "neg"][i % 2]) for i in range(400)]))
    assert (task.train_size, task.eval_size) == (360, 40) and 14 <= task.labels[1].sum() <= 26
    assert not any("ONLY ONE CLASS" in note for note in task.notes)


def test_one_class_alone_is_noted(tmp_path):
    csv(tmp_path / "d" / "train.csv", [(sentence(i), ["pos", "neg"][i % 2]) for i in range(20)])
    csv(tmp_path / "d" / "validation.csv", [(sentence(i), "pos") for i in range(6)])
    assert "ONLY ONE CLASS is evaluated: all 6 rows of split 'validation' are 'pos'" in text_task(tmp_path / "d").notes


def test_the_training_data_as_evaluation_is_noted(tmp_path):
    file = csv(tmp_path / "a.csv", [(sentence(i), i % 2) for i in range(20)])
    for task in (text_task(file, "dataset.eval=train"), picture_task(pictures(tmp_path / "p"), "dataset.eval=train")):
        assert task.train_size == task.eval_size == 20 and task.notes[0].startswith("EVALUATED ON THE TRAINING DATA")
    with pytest.raises(DataError, match="a split that is not trained on. Where there is none, dataset.hold_out=0.1"):
        text_task(file, "dataset.hold_out=0")


def test_pictures_without_folders_of_splits(tmp_path):
    task = picture_task(pictures(tmp_path / "p"))
    assert (task.names, task.train_size, task.eval_size) == (["a", "b"], 18, 2)
    assert "held out for evaluation: 2 of the 20 rows of split 'train'" in task.notes[0]
    with pytest.raises(ConfigError, match="`hold_out` must be a share below 0.5; received 0.7"):
        picture_task(tmp_path / "p", "dataset.hold_out=0.7")


def test_pairs_without_folders_of_splits(tmp_path):
    for folder in ("images", "masks"):
        pictures(tmp_path / "all" / folder)
    found, *_ = paired_folders(tmp_path / "all", ["train"], "", "")
    kept, held = ({Path(item["path"]).stem + Path(item["path"]).parent.name for item in found[k]["image"]} for k in found)
    assert len(kept) == 16 and len(held) == 4 and not kept & held


# -- bad rows ---------------------------------------------------------------------------------------------------------


def test_bad_rows_have_the_numbers_and_the_name_of_their_file(tmp_path):
    rows = [(sentence(i), ["pos", "neg"][i % 2]) for i in range(100)]
    kept, held = spread(100, 0.1)
    bad = [kept[i] for i in (45, 46, 60)]
    for i in bad:
        rows[i] = (sentence(i), "")
    rows[held[3]] = ("", "pos")
    file = csv(tmp_path / "a.csv", rows)
    with pytest.raises(DataError) as refused:
        text_task(file)
    assert [int(n) for n in re.findall(r"row (\d+) \(", str(refused.value))] == bad and f"({file})" in str(refused.value)
    notes = text_task(file, "bad_rows=skip").notes
    assert any(f"row {held[3]} ({file}): the text in column 'text' must not be empty" in note for note in notes)


@pytest.mark.parametrize("pipeline", ["memory", "timm"])
def test_every_bad_picture_is_named_once_by_its_file(tmp_path, pipeline):
    for split in ("train", "validation"):
        pictures(tmp_path / "p" / split)
    broken = [tmp_path / "p" / "train" / name for name in ("a/0.png", "a/3.png", "b/2.png")]
    for file in broken:
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError) as refused:
        picture_task(tmp_path / "p", f"dataset.pipeline={pipeline}")
    assert all(str(refused.value).count(f"({file})") == 1 for file in broken)


def test_files_are_asked_for_shown_rows_alone_and_other_rows_are_forgotten():
    asked = []
    faults = BadRows("train", "skip", lambda row: asked.append(row))
    for row in range(100):
        faults.add(row, "bad")
    assert faults.kept([*range(50), 200]) == [200] and faults.note.startswith("left out: 50 rows") and len(asked) == 5
    faults = BadRows("train", "refuse")
    faults.add(7, "bad")
    assert faults.kept([1, 2]) == [1, 2] and faults.note is None


def test_a_bad_row_outside_of_the_limit_does_no_harm(tmp_path):
    file = csv(tmp_path / "a.csv", [(sentence(i), i % 2 if i < 99 else "") for i in range(100)])
    assert 99 in spread(100, 0.1)[0] and text_task(file, "limit=5", "seed=1").train_size == 5
    with pytest.raises(DataError, match="row 99"):
        text_task(file)


# -- classes ----------------------------------------------------------------------------------------------------------


def labels(classes, values, declared=None):
    kind = ClassLabel(names=declared) if declared else None
    split = Dataset.from_dict({"y": values}, features=Features({"y": kind}) if kind else None)
    faults = BadRows("s", "skip")
    return classes.labels(split, "y", "s", faults), faults


def test_declared_names_in_another_order():
    classes = Classes(0)
    assert labels(classes, [0, 1, 1], ["neg", "pos"])[0] == [0, 1, 1]
    assert labels(classes, [0, 1, 1], ["pos", "neg"])[0] == [1, 0, 0]
    assert labels(classes, [0, 1, 2])[0] == [0, 1, -1] and labels(classes, ["pos", "neg"])[0] == [1, 0]
    found, faults = labels(classes, [0, 1], ["neg", "meh"])
    assert found == [0, -1]
    assert faults.rows == {1: "the label in column 'y' must be an integer from 0 to 1 or one of neg, pos; it is 'meh'"}


@pytest.mark.parametrize(
    ("values", "names", "found"),
    [
        ([-1, 1, 1, -1], ["-1", "1"], [0, 1, 1, 0]),
        ([5, 10**6, 5], ["5", "1000000"], [0, 1, 0]),
        ([1.0, None, 0.0], ["0", "1"], [1, -1, 0]),
        ([1, 0, 2], ["0", "1", "2"], [1, 0, 2]),
        ([10, 9], ["9", "10"], [1, 0]),
        (["b", "a", None], ["a", "b"], [1, 0, -1]),
    ],
)
def test_values_as_classes(values, names, found):
    classes = Classes(0)
    assert labels(classes, values)[0] == found and classes.names == names
    assert labels(classes, values[:1])[0] == found[:1]  # another split need not have all of them


def test_a_class_that_training_lacks():
    classes = Classes(4)
    assert labels(classes, [0, 3, 1, 4])[0] == [0, 3, 1, -1] and labels(classes, [2])[0] == [2]


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["a.csv", "d", "e"])
def test_words_that_pandas_takes_for_missing(tmp_path, place):
    rows = [("some", "None"), ("n/a", "NA"), ("null", "yes"), ("", "")]
    csv(tmp_path / "a.csv", rows)
    csv(tmp_path / "d" / "train.csv", rows)
    csv(tmp_path / "e" / "x" / "train.tsv", rows)
    file = tmp_path / "e" / "x" / "train.tsv"
    file.write_text(file.read_text().replace(",", "\t"))
    split = load_splits("", None, str(tmp_path / place), "")["train"]
    assert split["text"][:] == ["some", "n/a", "null", None] and split["label"][:] == ["None", "NA", "yes", None]


def test_numbers_beside_a_word(tmp_path):
    file = csv(tmp_path / "a.csv", [(sentence(i), i / 2 if i != 50 else "NA") for i in range(100)])
    task = text_task(file, "dataset.classes=1", "bad_rows=skip")
    assert task.train_size + task.eval_size == 99 and task.labels[0][:3].tolist() == [i / 2 for i in spread(100, 0.1)[0][:3]]


def test_a_single_split_saved_to_disk(tmp_path):
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    rows = {"text": [sentence(i) for i in range(20)], "label": [i % 2 for i in range(20)]}
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    task = text_task(tmp_path / "saved")
    assert (task.names, task.train_size, task.eval_size) == (["neg", "pos"], 18, 2)
    task.save_extras(tmp_path)
    assert json.loads((tmp_path / "classes.json").read_text()) == ["neg", "pos"]


def test_the_documented_task_of_ones_own(tmp_path):
    page = Path(__file__).parents[2].joinpath("docs", "tasks_text.md").read_text()
    (tmp_path / "reviews.yaml").write_text(re.search(r"```yaml\n(description: reviews.*?)```", page, re.DOTALL)[1])
    csv(
        tmp_path / "reviews" / "train.csv", [(sentence(i), ["bad", "fine", "good"][i % 3]) for i in range(60)], "review,verdict"
    )
    task, _ = make(f"task={tmp_path / 'reviews.yaml'}", *SMALL)
    assert (task.names, task.train_size, task.eval_size) == (["bad", "fine", "good"], 54, 6)


# -- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "auto", "some"),
    [("vit", "AutoModelForSequenceClassification", "bert"), ("vit", "AutoModelForCausalLM", "gpt2"),
     ("bert", "AutoModelForImageClassification", "vit")],
)  # fmt: skip
def test_a_model_without_a_head_for_the_task(kind, auto, some):
    with pytest.raises(ConfigError) as refused:
        hugging_face.create(kind, {"model_type": kind}, auto, False, {}, {})
    message = str(refused.value)
    assert f"The model type '{kind}' has no head for this task" in message and some in message and len(message) < 400
