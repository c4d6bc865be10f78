"""Image classification through timm's pipeline: any folder of pictures, any size, any model; and what is measured."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from sklearn.metrics import top_k_accuracy_score

import ldp_search
from ldp_search.config.resolve import resolve
from ldp_search.run import main
from ldp_search.runner.tasks import build_task
from ldp_search.runner.training import finish
from ldp_search.runner.training.batches import train_loader

TINY_VIT = ["model=vit", "pretrained=false", "model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=2"]
TINY_VIT += ["model.intermediate_size=32", "model.image_size=32", "model.patch_size=16"]
COLOURS = {"blue": (30, 40, 200), "green": (30, 190, 50), "red": (200, 30, 40)}


@pytest.fixture(autouse=True)
def quietly(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(finish, "write_report_page", lambda output: None)


@pytest.fixture
def folder(tmp_path):
    """train/CLASS/*.png and validation/CLASS/*.png of several sizes; a class is a colour."""
    random = np.random.default_rng(0)
    for split, n in (("train", 8), ("validation", 4)):
        for name, colour in COLOURS.items():
            place = tmp_path / "pictures" / split / name
            place.mkdir(parents=True)
            for i in range(n):
                noise = random.integers(-30, 30, (40 + i, 48 - i, 3))
                Pillow.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(place / f"{i}.png")
    return tmp_path / "pictures"


def made(folder, *words):
    settings = resolve(["task=image_folder", f"data={folder}", *words])
    task = build_task(settings.task, settings.config)
    return task, task.create_model(settings.config.model, settings.config.pretrained), settings.config


def test_pictures_come_at_the_size_of_the_model(folder):
    task, model, _ = made(folder, "model=timm:test_vit", "pretrained=false", "model.img_size=64")
    assert task.names == sorted(COLOURS) and task.labels[1].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert task.example_inputs()[0].shape == (1, 3, 64, 64) == (1, *task.batch(torch.tensor([0]), 0)[0].shape[1:])
    assert model(task.batch(torch.arange(3), None)[0]).shape == (3, 3)
    task, model, _ = made(folder, *TINY_VIT)
    assert task.example_inputs()[0].shape == (1, 3, 32, 32) and model.config.id2label == {0: "blue", 1: "green", 2: "red"}
    assert made(folder, "model=timm:test_resnet", "pretrained=false", "dataset.size=48")[0].example_inputs()[0].shape[-1] == 48


def test_evaluation_is_timms_own_transform(folder):
    from timm.data import create_transform, resolve_model_data_config

    task, model, _ = made(folder, "model=timm:test_resnet", "pretrained=false")
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    expected = transform(Pillow.open(folder / "validation" / "green" / "1.png"))
    assert torch.equal(task.batch(torch.tensor([5]), None)[0][0], expected)


@pytest.mark.parametrize("options", [(), ("dataset.auto_augment=rand-m9-mstd0.5-inc1", "dataset.random_erase=0.5")])
def test_augmentation_depends_on_seed_epoch_and_picture_alone(folder, options):
    mix = ("dataset.mixup=0.4", "dataset.cutmix=1.0", "dataset.label_smoothing=0.1") if options else ()
    words = ("model=timm:test_resnet", "pretrained=false", "dataset.size=24", "batch_size=8", *options, *mix)
    task, _, config = made(folder, *words)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = [task.batch(torch.tensor([4, 2]), epoch) for epoch in (3, 4)]
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]
    torch.manual_seed(77)
    again = task.batch(torch.tensor([4, 2]), 3)
    assert torch.equal(first[0][0], again[0]) and torch.equal(first[0][1], again[1])
    assert not torch.equal(first[0][0], first[1][0])
    plain, workers = (
        list(train_loader(task, config, 0, 4, 0, 1)) for config.data_workers in ((0, 2) if not options else (0, 0))
    )
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(plain, workers, strict=True))
    if mix:
        assert first[0][1].shape == (2, 3) and torch.allclose(first[0][1].sum(1), torch.ones(2))


def test_mixed_labels_are_learned_from_and_scored_by_the_larger_share(folder):
    task, model, _ = made(folder, "model=timm:test_resnet", "pretrained=false", "dataset.mixup=0.4", "dataset.size=24")
    pictures, labels = task.batch(torch.arange(8), 0)
    loss, sums = task.measure(model.train(), (pictures, labels))
    logits = model(pictures).double()
    expected = -(labels * logits.log_softmax(1)).sum(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4) and sums[-1] == 8


def test_metrics_are_scikit_learns(folder):
    task, _, _ = made(folder, "model=timm:test_resnet", "pretrained=false", "dataset.size=24")
    task.names = [str(i) for i in range(20)]
    logits, labels = torch.randn(300, 20), torch.randint(0, 20, (300,))
    batches = zip(logits.split(70), labels.split(70), strict=True)
    sums = sum(task.measure(torch.nn.Identity(), batch)[1] for batch in batches)
    found = task.metrics(sums.tolist())
    for key, k in (("accuracy", 1), ("top5", 5)):
        assert found[key] == pytest.approx(top_k_accuracy_score(labels, logits, k=k, labels=range(20)))
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_a_broken_picture_is_named_by_its_file(folder, tmp_path, capsys):
    file = folder / "train" / "green" / "3.png"
    file.write_bytes(file.read_bytes()[:60])
    words = ["task=image_folder", f"data={folder}", f"output={tmp_path / 'run'}", "model=timm:test_resnet", "pretrained=false"]
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "1 row of split 'train' cannot be used" in err and "green/3.png" in err and "bad_rows=skip" in err
    assert not (tmp_path / "run").exists()
    task, _, _ = made(folder, *words[3:], "bad_rows=skip")
    assert task.train_size == 23 and "green/3.png" in task.notes[0]


def test_a_picture_that_breaks_later_is_replaced_by_the_next_and_its_label(folder):
    task, _, _ = made(folder, "model=timm:test_resnet", "pretrained=false", "dataset.size=24")
    expected, label = task.batch(torch.tensor([8]), None)
    file = folder / "validation" / "green" / "3.png"  # the last of its class
    file.write_bytes(b"no picture any more")
    with pytest.warns(UserWarning, match="row 7 cannot be decoded and is replaced"):
        found, its = task.batch(torch.tensor([7]), None)
    assert torch.equal(found, expected) and its == label == 2


def test_photographs_are_turned_as_they_say(tmp_path):
    from ldp_search.runner.data.pictures import PictureReader

    picture, exif = Pillow.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)), Pillow.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "phone.png", exif=exif)
    found = np.asarray(PictureReader(1)({"bytes": None, "path": str(tmp_path / "phone.png")}))
    assert np.array_equal(found, np.rot90(np.asarray(picture), -1))


def test_odd_batches_are_mixed_and_smoothed_too(folder):
    words = ("model=timm:test_resnet", "pretrained=false", "dataset.mixup=1.0", "dataset.label_smoothing=0.1")
    task, _, _ = made(folder, *words, "dataset.size=24")
    _, labels = task.batch(torch.tensor([0, 9, 17]), 0)  # one of each class
    assert torch.allclose(labels.sum(1), torch.ones(3)) and (labels > 0.01).all()  # smoothed
    assert (
        torch.allclose(labels[2], torch.tensor([0.1 / 3, 0.1 / 3, 0.9 + 0.1 / 3])) and (labels[:2].max(1).values < 0.93).all()
    )


def test_a_run_on_ones_own_pictures(folder, tmp_path, capsys, unpainted):
    words = ["task=image_folder", f"data={folder}", f"output={tmp_path / 'run'}", "model=timm:test_resnet", "pretrained=false"]
    words += ["dataset.size=32", "batch_size=8", "epochs=8", "lr=3e-3", "ema=0.9", "target_cost=0.6", "trackers=none"]
    assert main(words) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["accuracy"] > 0.6 and result["steps"] == 24 and abs(result["mean_cost"] / 0.6 - 1) < 0.05
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == sorted(COLOURS)
    model = ldp_search.load_pretrained(tmp_path / "run")
    task, _, _ = made(folder, *words[3:])
    pictures, labels = task.batch(torch.arange(12), None)
    with torch.no_grad():
        assert (model(pictures).argmax(1) == labels).float().mean().item() == pytest.approx(result["accuracy"])


def test_streams_take_their_first_rows(tmp_path):
    import datasets

    for split, n in (("train", 30), ("test", 20)):
        buffers = []
        for i in range(n):
            buffers.append(io.BytesIO())
            Pillow.fromarray(np.full((6, 6, 3), 4 * i, dtype=np.uint8)).save(buffers[-1], "PNG")
        rows = {"image": [{"bytes": b.getvalue(), "path": None} for b in buffers], "label": [i % 10 for i in range(n)]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
        (tmp_path / "d").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "d" / f"{split}-0.parquet")
    words = ["task=cifar10", f"data={tmp_path / 'd'}", "dataset.streaming=true"]
    settings = resolve([*words, "limit=12", "eval_limit=11"])
    task = build_task(settings.task, settings.config)
    assert task.train_size == 12 and task.eval_size == 11 and task.stores[0].pictures[7, 0, 0, 0] == 28
    settings = resolve(words)
    with pytest.raises(ValueError, match="give limit=N"):
        build_task(settings.task, settings.config)
