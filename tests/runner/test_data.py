"""Pictures: the same for any number of workers and after a resume, and clear words on data that is missing or broken."""

import io
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Pillow

from ldp_search.config.resolve import resolve
from ldp_search.run import main
from ldp_search.runner.data.pictures import augment, random_bits
from ldp_search.runner.tasks.images import ImageClassification, ImageData
from ldp_search.runner.training.batches import TrainKeys, eval_loader, train_loader


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def png(seed: int, size: int = 6) -> bytes:
    out = io.BytesIO()
    Pillow.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def write(folder, pictures=None, labels=None, image="image", label="label", classes=None):
    """A folder of Parquet files with 20 training and 10 test pictures; returns the folder."""
    kind = ClassLabel(num_classes=classes) if classes else Value("int64")
    features = Features({image: Image(), label: kind})
    for split, n in (("train", 20), ("test", 10)):
        rows = {image: [{"bytes": b, "path": None} for b in (pictures or [png(i) for i in range(n)])[:n]]}
        rows[label] = (labels or [i % 4 for i in range(n)])[:n]
        folder.mkdir(exist_ok=True)
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def task_file(tmp_path, **fields):
    lines = {"source": "someone/pictures", "classes": 4, "pad": 1, "flip": True} | fields
    file = tmp_path / "mine.yaml"
    file.write_text("dataset:\n" + "".join(f"  {k}: {v}\n" for k, v in lines.items()) + "recipe: {batch_size: 5, epochs: 1}\n")
    return file


def task(tmp_path, folder=None, words=(), **fields):
    settings = resolve([f"task={task_file(tmp_path, **fields)}", f"data={folder or write(tmp_path / 'data')}", *words])
    return ImageClassification(ImageData(**settings.task.dataset), settings.config), settings.config


def refused(tmp_path, capsys, folder, **fields):
    """The message on a data folder that cannot be used."""
    status = main([f"task={task_file(tmp_path, **fields)}", f"data={folder}", f"output={tmp_path / 'run'}", "model=tiny:net"])
    err = capsys.readouterr().err
    assert status == 2 and "Traceback" not in err and not (tmp_path / "run").exists(), err
    return err


def test_pixels_arrive_unchanged(tmp_path):
    made, _ = task(tmp_path, mean="[0.0]", std="[1.0]")
    pictures, labels = made.batch(torch.tensor([3, 7]), None)
    expected = np.asarray(Pillow.open(io.BytesIO(png(3)))).transpose(2, 0, 1)
    assert np.array_equal((pictures[0] * 255).round().numpy(), expected) and labels.tolist() == [3, 3]
    assert made.train_size == 20 and made.eval_size == 10 and pictures.shape == (2, 3, 6, 6)


def test_saved_with_datasets_own_format(tmp_path):
    ready = DatasetDict({split: Dataset.from_parquet(str(write(tmp_path / "d") / f"{split}-00000-of-00001.parquet"))
                         for split in ("train", "test")})  # fmt: skip
    ready.save_to_disk(tmp_path / "saved")
    assert task(tmp_path, tmp_path / "saved")[0].fingerprint == task(tmp_path, tmp_path / "d")[0].fingerprint


def test_pictures_are_resized_where_the_task_says_so(tmp_path):
    mixed = write(tmp_path / "data", pictures=[png(i, size=5 + i % 3) for i in range(20)])
    assert task(tmp_path, mixed, size=8)[0].stores[0].pictures.shape == (20, 3, 8, 8)


def test_grey_pictures(tmp_path):
    made, _ = task(tmp_path, channels=1)
    assert made.stores[0].pictures.shape == (20, 1, 6, 6) and made.batch(torch.arange(4), 0)[0].shape == (4, 1, 6, 6)


def test_limits_take_a_seeded_subset(tmp_path):
    folder = write(tmp_path / "data")
    some = [task(tmp_path, folder, (f"seed={s}", "limit=8", "eval_limit=3"))[0] for s in (0, 0, 1)]
    assert [t.train_size for t in some] == [8, 8, 8] and some[0].eval_size == 3
    assert some[0].fingerprint == some[1].fingerprint != some[2].fingerprint


def test_augmentation_is_a_crop_of_the_padded_picture():
    pictures = torch.randint(1, 256, (64, 3, 8, 8), dtype=torch.uint8)
    bits = random_bits(0, 0, torch.arange(64))
    for pad, flip in ((2, True), (2, False), (0, True)):
        found = augment(pictures, pad, flip, bits)
        for picture, crop in zip(pictures, found, strict=True):
            padded = torch.nn.functional.pad(picture, (pad,) * 4)
            crops = [padded[:, y : y + 8, x : x + 8] for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
            assert any(torch.equal(crop, c) or (flip and torch.equal(crop, c.flip(2))) for c in crops)


def test_random_bits_are_spread_and_depend_on_everything():
    indices = torch.arange(10000)
    bits = random_bits(0, 0, indices)
    places = (bits >> np.uint64(32)) % np.uint64(9)
    assert len(np.unique(bits)) == 10000
    assert abs((bits & np.uint64(1)).mean() - 0.5) < 0.02
    assert np.abs(np.bincount(places.astype(int)) / 10000 - 1 / 9).max() < 0.02
    for other in (random_bits(1, 0, indices), random_bits(0, 1, indices), random_bits(1, 1, indices)):
        assert not (bits == other).any() and abs(np.corrcoef(places, (other >> np.uint64(32)) % np.uint64(9))[0, 1]) < 0.05


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_do_not_depend_on_workers_or_where_they_begin(workers, tmp_path):
    made, config = task(tmp_path)
    plain = list(train_loader(made, config, 0, 10, 0, 1))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    again = list(train_loader(made, replace(config, data_workers=workers), 3, 10, 0, 1))
    evaluated = list(eval_loader(made, replace(config, data_workers=workers), 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for x, y in zip(plain[3:], again, strict=True) for a, b in zip(x, y, strict=True))
    assert torch.cat([labels for _, labels in evaluated]).tolist() == [i % 4 for i in range(10)]


def test_an_epoch_visits_every_sample_once_whatever_the_processes():
    def stream(world, accumulate):
        ranks = [list(TrainKeys(64, 16, accumulate, 5, 0, 8, rank, world)) for rank in range(world)]
        parts = [ranks[rank][k] for k in range(8 * accumulate) for rank in range(world)]
        return torch.cat([indices for _, indices in parts]), [epoch for epoch, _ in ranks[0]]

    whole, epochs = stream(1, 1)
    assert sorted(whole[:64].tolist()) == list(range(64)) and epochs == [0] * 4 + [1] * 4
    assert whole[:64].tolist() != whole[64:].tolist()
    for world, accumulate in ((2, 1), (2, 4), (1, 8)):
        assert torch.equal(stream(world, accumulate)[0], whole)


def test_digits_are_the_same_for_ever():
    settings = resolve([])
    digits = ImageClassification(ImageData(**settings.task.dataset), settings.config)
    assert (digits.train_size, digits.eval_size, digits.fingerprint) == (1442, 355, "174ac6223419e2b7")
    assert digits.labels[1].bincount().tolist() == [35, 36, 35, 36, 36, 36, 36, 35, 34, 36]
    pixels = digits.stores[0].pictures.double() / 255
    assert abs(pixels.mean() - settings.task.dataset["mean"][0]) < 1e-3 > abs(pixels.std() - settings.task.dataset["std"][0])


def test_missing_and_empty_folders(tmp_path, capsys):
    write(tmp_path / "pictures")
    assert "Did you mean 'pictures'?" in refused(tmp_path, capsys, tmp_path / "picturs")
    assert "data=FILE must end in .csv, .tsv" in refused(tmp_path, capsys, tmp_path / "mine.yaml")
    (tmp_path / "empty").mkdir()
    assert "is empty" in refused(tmp_path, capsys, tmp_path / "empty")
    (tmp_path / "empty" / "readme.txt").write_text("nothing")
    assert "must be in a column called 'image' or 'img'" in refused(tmp_path, capsys, tmp_path / "empty")


def test_a_file_cut_off(tmp_path, capsys):
    folder = write(tmp_path / "data")
    file = folder / "train-00000-of-00001.parquet"
    file.write_bytes(file.read_bytes()[:-200])
    message = refused(tmp_path, capsys, folder)
    assert "cannot be read" in message and "cut off" in message


def test_other_columns_splits_and_classes(tmp_path, capsys):
    message = refused(tmp_path, capsys, write(tmp_path / "a", image="photo"))
    assert "image must be in a column called 'image' or 'img'; the data has the columns: photo, label" in message
    message = refused(tmp_path, capsys, write(tmp_path / "a"), eval="[dev]")
    assert "must be a split called 'dev'; the data has: " in message and "dataset.hold_out=0.1 keeps" in message
    message = refused(tmp_path, capsys, write(tmp_path / "b", classes=7))
    assert "The task has 4 classes, but column 'label' of split 'train' has 7" in message
    message = refused(tmp_path, capsys, write(tmp_path / "a"), image="[label]")
    assert "The column 'label' must hold pictures" in message


def test_bad_rows_are_named(tmp_path, capsys):
    message = refused(tmp_path, capsys, write(tmp_path / "a", labels=[0] * 7 + [9] + [1] * 12))
    assert "1 row of split 'train' cannot be used:\n  row 7: the label in column 'label' must be an integer from" in message
    assert "it is 9\n" in message and "bad_rows=skip" in message
    broken = [png(i) for i in range(20)]
    broken[5] = broken[5][:40]
    assert "row 5: the picture cannot be decoded" in refused(tmp_path, capsys, write(tmp_path / "b", pictures=broken))
    mixed = [png(i, size=6 + (i == 4)) for i in range(20)]
    message = refused(tmp_path, capsys, write(tmp_path / "c", pictures=mixed))
    assert "row 4: the picture is 7x7, others are 6x6" in message and "dataset.size=PIXELS" in message


@pytest.mark.parametrize("pipeline", ["memory", "timm"])
def test_bad_rows_are_left_out_where_the_user_says_so(tmp_path, pipeline):
    broken = [png(i) for i in range(20)]
    broken[5], labels = broken[5][:40], [i % 4 for i in range(20)]
    labels[7] = 9
    words = ("bad_rows=skip", f"dataset.pipeline={pipeline}")
    made, _ = task(tmp_path, write(tmp_path / "data", broken, labels), words)
    assert made.train_size == 18 and made.eval_size == 8  # the first ten are the evaluation set
    assert made.labels[0].tolist() == [i % 4 for i in range(20) if i not in (5, 7)]
    assert "left out: 2 rows of split 'train'" in made.notes[0] and "row 5" in made.notes[0] and "it is 9" in made.notes[0]


def test_a_hub_out_of_reach(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    for module in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", False)
    start = time.monotonic()
    status = main(["task=cifar10", f"output={tmp_path / 'run'}"])
    err = capsys.readouterr().err
    assert status == 2 and time.monotonic() - start < 15 and not (tmp_path / "run").exists()
    assert "'uoft-cs/cifar10' cannot be had: the hub at http://127.0.0.1:9 cannot be reached" in err
    assert all(way in err for way in ("data=FOLDER", "load_dataset('uoft-cs/cifar10')", "task=digits"))
    assert main(["model=hf:someone/net", f"output={tmp_path / 'run'}"]) == 2
    err = capsys.readouterr().err
    assert "The model 'hf:someone/net' cannot be had: the hub at http://127.0.0.1:9 cannot be reached" in err
