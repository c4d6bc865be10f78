"""Segmentation: metrics, augmentation and windows against references, every family of models, and data that is faulty."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from breadth import breadth
from PIL import Image as Pillow
from sklearn.metrics import jaccard_score
from torch import nn
from transformers import MaskFormerImageProcessor

import ldp_search
from ldp_search.config.overlay import ConfigError
from ldp_search.config.resolve import resolve
from ldp_search.run import main
from ldp_search.runner.data.masks import MaskValues
from ldp_search.runner.data.paired_augmentation import moved
from ldp_search.runner.data.pairs import Pair, Pairs
from ldp_search.runner.models.semantic import IGNORED, matching_targets, semantic_logits, slide
from ldp_search.runner.tasks import build_task
from ldp_search.runner.training.optimizers import create_optimizer
from ldp_search.runner.training.setup import searchable


def scenes(*words: str):
    """(task, settings) of a few digit scenes."""
    settings = resolve(["task=digit_scenes", "limit=8", "eval_limit=4", *words])
    return build_task(settings.task, settings.config), settings


# -- metrics and windows --------------------------------------------------------------------------------------------------


class Oracle(nn.Module):
    """Gives logits of a prediction that was fixed before, whatever the picture."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, pictures):
        return self.logits[: len(pictures)]


def test_metrics_equal_scikit_learns_with_ignored_pixels_left_out():
    task, _ = scenes()
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 11, 64, 64, generator=generator)
    masks = torch.randint(-1, 9, (2, 64, 64), generator=generator)  # class 9 never occurs, but is predicted; -1 is ignored
    logits[:, 10] = -100  # class 10 neither occurs nor is predicted: it has no IoU
    loss, sums = task.measure(Oracle(logits).eval(), [(torch.zeros(2, 3, 64, 64), masks)])
    found, valid = task.metrics(sums.tolist()), masks >= 0
    truth, predicted = masks[valid].numpy(), logits.argmax(1)[valid].numpy()
    assert found["mean_iou"] == pytest.approx(jaccard_score(truth, predicted, average="macro", labels=range(10)))
    assert found["pixel_accuracy"] == pytest.approx((truth == predicted).mean())
    reference = nn.functional.cross_entropy(logits, masks, ignore_index=-1).item()
    assert found["loss"] == pytest.approx(reference, rel=1e-5) and loss.item() == pytest.approx(reference, rel=1e-5)


def test_metrics_by_hand():
    task, _ = scenes()
    logits = nn.functional.one_hot(torch.tensor([[[1, 1, 0, 2]]]), 11).permute(0, 3, 1, 2).float()
    masks = torch.tensor([[[1, 0, 0, IGNORED]]])
    found = task.metrics(task.measure(Oracle(logits).eval(), [(torch.zeros(1, 3, 1, 4), masks)])[1].tolist())
    assert found["mean_iou"] == 0.5 and found["pixel_accuracy"] == pytest.approx(2 / 3)  # both classes: 1 hit of a union of 2


def test_pixels_that_are_all_ignored_have_no_loss():
    task, _ = scenes()
    net = nn.Conv2d(3, 11, 1)
    loss, sums = task.measure(net, [(torch.zeros(1, 3, 8, 8), torch.full((1, 8, 8), IGNORED))])
    assert loss.item() == 0 and sums.tolist() == [0, 0, 0]


def test_evaluation_does_not_depend_on_batches_or_sizes():
    task, _ = scenes()
    large, small = Pair(torch.randint(256, (3, 20, 30), dtype=torch.uint8), torch.zeros(40, 60).short()), task.pairs[1][0]
    task.pairs[1] = Pairs([large, small, large])
    model = nn.Conv2d(3, 11, 3, padding=1).eval()

    def sums(*parts):
        with torch.no_grad():
            return sum(task.measure(model, task.batch(torch.tensor(part), None))[1] for part in parts)

    assert torch.allclose(sums([0, 1, 2]), sums([0], [1], [2])) and sums([0])[1] == 2400  # of the mask's own pixels


def test_windows_cover_the_picture_and_agree_where_they_overlap():
    pictures = torch.randn(2, 3, 37, 50)
    pixelwise = nn.Conv2d(3, 5, 1)
    assert torch.allclose(slide(pixelwise, pictures, [16, 16], 0.6), pixelwise(pictures), atol=1e-5)
    assert slide(pixelwise, pictures, [64, 64], 0.6).shape == (2, 5, 37, 50)  # smaller than a window
    seen = []
    slide(lambda x: seen.append(tuple(x.shape[-2:])) or x, pictures, [16, 16], 1.0)
    assert len(seen) == 3 * 4 and set(seen) == {(16, 16)}


def test_mask_classification_predicts_what_transformers_predicts():
    generator, outputs = torch.Generator().manual_seed(0), SimpleNamespace()
    outputs.class_queries_logits = torch.randn(2, 7, 5, generator=generator)
    outputs.masks_queries_logits = torch.randn(2, 7, 384, 384, generator=generator)  # transformers resizes to this first
    expected = MaskFormerImageProcessor().post_process_semantic_segmentation(outputs)
    assert torch.equal(semantic_logits(outputs).argmax(1), torch.stack(expected))


def test_targets_of_the_matching_loss():
    found = matching_targets(torch.tensor([[[2, 2], [IGNORED, 0]], [[IGNORED, IGNORED], [IGNORED, IGNORED]]]))
    assert [labels.tolist() for labels in found["class_labels"]] == [[0, 2], []]
    assert found["mask_labels"][0].tolist() == [[[0, 0], [0, 1]], [[1, 1], [0, 0]]] and found["mask_labels"][1].shape == (
        0,
        2,
        2,
    )


# -- augmentation ---------------------------------------------------------------------------------------------------------


def coordinates(height=60, width=80) -> Pair:
    """A picture whose colours are the coordinates of its pixels, and a mask that is the row."""
    rows, columns = torch.meshgrid(torch.arange(height) + 50, torch.arange(width) + 50, indexing="ij")
    return Pair(torch.stack([rows, columns, rows]).to(torch.uint8), rows.short())


@pytest.mark.parametrize("scale", [(1.0, 1.0), (1.5, 2.0), (0.5, 0.8)])
def test_augmentation_moves_picture_and_mask_together(scale):
    pair, mirrored = coordinates(), 0
    for bits in range(20):
        picture, mask = moved(pair, (32, 48), scale, True, 0.0, bits)
        valid = mask != IGNORED
        assert picture.shape == (3, 32, 48) and mask.shape == (32, 48) and valid.any()
        inner = nn.functional.max_pool2d((~valid)[None].float(), 5, 1, 2)[0] == 0  # the resized edge mixes with the black
        assert (picture[0][inner].float() - mask[inner]).abs().max() <= (0 if scale[0] == scale[1] else 1.6)
        assert (picture[0][nn.functional.max_pool2d(valid[None].float(), 5, 1, 2)[0] == 0] == 0).all()
        across = picture[1][inner.any(1)][0][inner.any(0)].float().diff()
        assert (across >= 0).all() or (across <= 0).all()
        mirrored += int(across.sum() < 0)
    assert 3 < mirrored < 17


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    task, _ = scenes("dataset.scale=[0.5,2]", "dataset.flip=true", "dataset.color_jitter=0.3")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    ((pictures, masks),) = task.batch(torch.tensor([3, 5]), 1)
    assert torch.equal(torch.get_rng_state(), before)
    ((again, _),) = task.batch(torch.tensor([5]), 1)
    assert torch.equal(again[0], pictures[1]) and masks.shape == (2, 64, 64)
    assert not torch.equal(task.batch(torch.tensor([5]), 2)[0][0], again)


def test_values_of_masks():
    plain = MaskValues(3, ignore=[255])
    assert plain.of(np.array([[0, 2, 255]], np.uint8)).tolist() == [[0, 2, IGNORED]]
    assert MaskValues(2, reduce_zero_label=True).of(np.array([[0, 1, 2]])).tolist() == [[IGNORED, 0, 1]]
    assert MaskValues(2, ids=[7, 11]).of(np.array([[7, 8, 11, -1]], np.int32)).tolist() == [[0, IGNORED, 1, IGNORED]]
    for values in (np.array([[1, 3]], np.uint8), np.array([[70000]], np.int32), np.array([[-1]], np.int32)):
        with pytest.raises(ValueError, match="out of range .classes are 0 to 2, left out: 255"):
            plain.of(values)


def test_scenes_are_the_same_for_ever():
    settings = resolve(["task=digit_scenes", "limit=20", "eval_limit=10"])
    assert build_task(settings.task, settings.config).fingerprint == "234c5685141a0cb5"


# -- models ---------------------------------------------------------------------------------------------------------------

_SWIN = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4, "image_size": 64}
FAMILIES = {
    "segformer": {"hidden_sizes": [8, 16, 16, 32], "decoder_hidden_size": 16, "depths": [1, 1, 1, 1],
                  "num_attention_heads": [1, 2, 2, 4]},
    "upernet": {"hidden_size": 16, "backbone_config": {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}},
    "dpt": {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 64,
            "backbone_out_indices": [0, 1, 2, 3], "neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 16},
    "mask2former": {"feature_size": 32, "hidden_dim": 32, "mask_feature_size": 32, "encoder_feedforward_dim": 32,
                    "dim_feedforward": 32, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2,
                    "num_queries": 16, "train_num_points": 256, "backbone_config": _SWIN},
    "timm:resnet18": {"width": 16},
    "timm:mobilenetv3_small_050": {},
    "timm:test_convnext": {},
    "timm:test_vit": {},  # one scale
    "timm:swin_tiny_patch4_window7_224": {"depths": [1, 1, 1, 1], "embed_dim": 24},  # channels last
}  # fmt: skip


@breadth("name", FAMILIES, always=["segformer", "mask2former", "timm:test_vit"])
def test_every_family_trains_evaluates_and_is_loaded_again(name, tmp_path):
    task, settings = scenes()
    settings.config.model = {"name": name} | FAMILIES[name]
    model = searchable(settings, task)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    loss, sums = task.measure(model, task.batch(torch.arange(4), 0))
    loss.backward()
    assert loss.isfinite() and len(sums) == 3 and sums[1] == 4 * 64 * 64
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    ldp = ldp_search.controller(model)
    ldp.step(1.0)
    optimizer.step()
    ldp.finalize()
    assert ldp.coverage.share > 0.8
    batch = task.batch(torch.arange(4), None)
    with torch.no_grad():
        found = task.metrics(task.measure(model.eval(), batch)[1].tolist())
        ldp_search.save_pretrained(model, tmp_path)
        again = ldp_search.load_pretrained(tmp_path)
        assert 0 <= found["mean_iou"] <= 1 and task.metrics(task.measure(again, batch)[1].tolist()) == found


def test_a_loss_inside_the_forward_is_not_quantized():
    """Mask2Former's matching has products of its own; they are none of the network's."""
    task, settings = scenes()
    settings.config.model = {"name": "mask2former"} | FAMILIES["mask2former"]
    model = searchable(settings, task).eval()
    ((pictures, masks),) = task.batch(torch.arange(2), 0)
    targets = matching_targets(masks)
    with torch.no_grad():
        torch.manual_seed(0)
        inside = model(pictures, **targets, output_auxiliary_logits=True)
        torch.manual_seed(0)
        losses = model.get_loss_dict(inside.masks_queries_logits, inside.class_queries_logits, **targets,
                                     auxiliary_predictions=inside.auxiliary_logits)  # fmt: skip
    assert inside.loss.item() == pytest.approx(model.get_loss(losses).item(), rel=1e-5)


def test_models_that_cannot(tmp_path):
    task, settings = scenes()
    for model, message in (
        ("timm:cifar_resnet20", "cannot be the encoder of a segmentation"),
        ("hf:vit", "no semantic segmentation with 'vit'. Did you mean"),
        ("timm:resnet81", "timm knows no model 'resnet81'"),
    ):
        with pytest.raises(ConfigError, match=message):
            task.create_model(model, False)
    task.pairs[1] = Pairs([Pair(torch.zeros(3, 40, 72, dtype=torch.uint8), torch.zeros(40, 72).short())])
    with pytest.raises(ConfigError, match="no whole picture of 40x72.*\n.*dataset.evaluate=slide"):
        task.create_model({"name": "timm:mixer_s16_224"}, False)
    task.data.evaluate = "slide"
    model = task.create_model({"name": "timm:mixer_s16_224"}, False).eval()
    assert task.measure(model, task.batch(torch.tensor([0]), None))[1][1] == 40 * 72


@pytest.mark.parametrize(
    "name, head", [("timm:resnet18", ("lateral", "smooth", "classifier")), ("segformer", ("decode_head",))]
)
def test_the_head_has_a_rate_of_its_own(name, head):
    task, settings = scenes("head_lr_scale=10", "decay_norms=false")
    model = task.create_model({"name": name} | FAMILIES[name], False)
    optimizer = create_optimizer(settings.config, model)
    scaled = {id(p) for group in optimizer.param_groups if group.get("lr_scale") == 10 for p in group["params"]}
    assert scaled == {id(p) for name, p in model.named_parameters() if name.startswith(head)}
    undecayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    assert undecayed == {id(p) for p in model.parameters() if p.dim() < 2}


# -- one's own folders ----------------------------------------------------------------------------------------------------


def picture(file, size=(12, 10), seed=0):
    file.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(file)


def mask(file, values=(0, 1, 2, 255), size=(12, 10), mode="L"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.resize(np.array(values, np.uint8), size[::-1])).convert(mode).save(file)


def folder(place, n=6, splits=("train", "val")):
    for split in splits:
        for i in range(n):
            picture(place / "images" / split / f"{i}.jpg", seed=i)
            mask(place / "masks" / split / f"{i}.png")
    return place


def own(place, *words):
    settings = resolve(["task=segmentation_folder", f"data={place}", "dataset.crop=[8,8]", *words])
    return build_task(settings.task, settings.config)


def test_own_folders_are_paired_by_name(tmp_path):
    place = folder(tmp_path / "a")
    task = own(place)
    assert (task.train_size, task.eval_size, task.names) == (6, 6, ["0", "1", "2"])
    (place / "classes.txt").write_text("ground\nhouse\nroad\n")
    assert own(place).names == ["ground", "house", "road"]
    ((pictures, masks),) = own(place).batch(torch.tensor([2]), None)
    assert pictures.shape == (1, 3, 10, 12) and masks.unique().tolist() == [IGNORED, 0, 1, 2]
    resized = own(place, "dataset.size=20")
    assert [pairs[2].picture.shape for pairs in resized.pairs] == [(3, 20, 24)] * 2
    assert torch.equal(resized.pairs[1][2].mask, masks[0].short())  # in evaluation, of the size that it has
    assert torch.equal(resized.pairs[0][2].mask, masks[0].short().repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_other_layouts(tmp_path):
    for i in range(10):
        picture(tmp_path / "flat" / "images" / f"{i}.png", seed=i)
        mask(tmp_path / "flat" / "masks" / f"{i}.png")
        for split in ("train", "val"):
            picture(tmp_path / "segnet" / split / f"{i}.png", seed=i)
            mask(tmp_path / "segnet" / f"{split}annot" / f"{i}.png", mode="P")
            picture(tmp_path / "city" / "leftImg8bit" / split / "bonn" / f"{i}_leftImg8bit.png", seed=i)
            for kind in ("labelIds", "color"):
                mask(tmp_path / "city" / "gtFine" / split / "bonn" / f"{i}_gtFine_{kind}.png", (7, 8, 11, 1), mode="RGB")
    flat, segnet = own(tmp_path / "flat"), own(tmp_path / "segnet")
    assert (flat.train_size, flat.eval_size) == (8, 2) and (segnet.train_size, segnet.eval_size) == (10, 10)
    settings = resolve(["task=cityscapes", f"data={tmp_path / 'city'}", "limit=4"])
    city = build_task(settings.task, settings.config)
    assert (city.train_size, city.eval_size) == (4, 10)
    assert city.pairs[1][0].mask.unique().tolist() == [IGNORED, 0, 1, 2]  # road, sidewalk, building; 1 is the car's own hood


def test_faults_are_named_and_refused_or_left_out(tmp_path, capsys):
    place = folder(tmp_path / "a", n=8)
    images, masks = place / "images" / "train", place / "masks" / "train"
    (images / "0.jpg").write_bytes((images / "0.jpg").read_bytes()[:60])
    mask(masks / "1.png", size=(12, 11))
    mask(masks / "2.png", values=(0, 1, 7))
    (masks / "3.png").unlink()
    (images / "4.jpg").unlink()
    with pytest.raises(ConfigError) as refused:
        own(place, "dataset.classes=[a,b,c]")
    message = str(refused.value)
    assert "5 rows of split 'train' cannot be used" in message and "bad_rows=skip" in message
    for row, (file, why) in enumerate([
        ("0.jpg", "the picture cannot be decoded"), ("1.jpg", "mask and picture differ in size; 12x11 and 12x10"),
        ("2.jpg", "out of range (classes are 0 to 2, left out: 255); it is 7"), ("3.jpg", "there is no mask"),
        ("4.png", "there is no picture for this mask"),
    ]):  # fmt: skip
        line = next(line for line in message.splitlines() if line.startswith(f"  row {row} "))
        assert file in line and why in line
    task = own(place, "dataset.classes=[a,b,c]", "bad_rows=skip")
    assert task.train_size == 3 and "left out: 5 rows of split 'train'" in task.notes[0]


def test_folders_that_do_not_fit(tmp_path):
    mask(tmp_path / "a" / "masks" / "x_m.png")
    picture(tmp_path / "a" / "images" / "x.png")
    with pytest.raises(ConfigError, match="same names.*x.png.*x_m.png.*none in common.*dataset.mask_suffix="):
        own(tmp_path / "a")
    place = folder(tmp_path / "b", n=3)
    for i in range(3):
        picture(place / "masks" / "train" / f"{i}.png", seed=i)
    with pytest.raises(ConfigError, match="colour picture"):
        own(place, "dataset.classes=[a,b]")
    picture(tmp_path / "c" / "train" / "cat" / "1.png")
    with pytest.raises(ConfigError, match="must hold pictures.*\n.*masks of the same names"):
        own(tmp_path / "c", "dataset.eval=train")
    with pytest.raises(ConfigError, match="`evaluate` must be one of full, slide; received 'tiles'"):
        scenes("dataset.evaluate=tiles")


# -- a whole run ----------------------------------------------------------------------------------------------------------


def test_a_whole_run(tmp_path, capsys, unpainted):
    words = ["task=digit_scenes", "model=timm:test_resnet", "limit=32", "eval_limit=8", "batch_size=16", "epochs=2"]
    assert main([*words, "trackers=none", f"output={tmp_path}"]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["metric"] == "mean_iou" and 0 < result["mean_iou"] < 1 and "mean_iou" in capsys.readouterr().out
    with Pillow.open(tmp_path / "examples.png") as examples:
        assert examples.width > 800
    assert json.loads((tmp_path / "classes.json").read_text())[1:] == list("0123456789")
    task = build_task(*(lambda s: (s.task, s.config))(resolve(words)))
    model = ldp_search.load_pretrained(tmp_path)
    with torch.no_grad():
        found = task.metrics(task.measure(model, task.batch(torch.arange(8), None))[1].tolist())
    assert found["mean_iou"] == pytest.approx(result["mean_iou"], abs=1e-6)
