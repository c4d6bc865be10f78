"""What folders and files hold is what is read, values are kept, and messages name the true cause and a remedy that works.

Each input is one that people met with other tools, or of the same kind.
"""

import io

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Sequence, Value
from PIL import Image as Pillow

from ldp_search.config.resolve import resolve
from ldp_search.run import main
from ldp_search.runner.data import DataError
from ldp_search.runner.data.masks import MaskValues, open_mask
from ldp_search.runner.data.pictures import PictureReader
from ldp_search.runner.data.sources import load_splits
from ldp_search.runner.data.text_files import Format
from ldp_search.runner.tasks import build_task

RAMP = np.linspace(0, 65535, 64).round().astype(np.uint16).reshape(8, 8)
EIGHT = np.rint(RAMP / 257).astype(np.uint8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def encoded(picture, kind="PNG", **options) -> dict:
    """An array or picture as `datasets` holds it."""
    out = io.BytesIO()
    picture = picture if isinstance(picture, Pillow.Image) else Pillow.fromarray(picture)
    picture.save(out, kind, **options)
    return {"bytes": out.getvalue(), "path": None}


def save(file, array):
    file.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(array).save(file)


def colour(seed, size=8):
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def refused(capsys, tmp_path, *words) -> str:
    """The message on what cannot be used: one, with status 2, no traceback and nothing written."""
    status = main([*words, f"output={tmp_path / 'run'}"])
    err = capsys.readouterr().err
    assert status == 2 and "Traceback" not in err and not (tmp_path / "run").exists(), err
    return err


# -- pictures keep their values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled_by_what_its_type_says(kind):
    read = PictureReader(1)
    assert np.array_equal(np.asarray(read(encoded(RAMP, kind))), EIGHT)
    assert "16 bits" in read.note("train")[0]
    big_endian = Pillow.frombytes("I;16B", (8, 8), RAMP.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(PictureReader(1)(encoded(big_endian, "TIFF"))), EIGHT)
    assert np.array_equal(np.asarray(PictureReader(3)(encoded(RAMP, kind)))[..., 2], EIGHT)


def test_values_without_a_range_need_one():
    for array, what in ((RAMP.astype(np.float32), "floating-point"), (RAMP.astype(np.int32), "32-bit")):
        with pytest.raises(ValueError, match=f"{what}.*dataset.value_range"):
            PictureReader(1)(encoded(array, "TIFF"))
        read = PictureReader(1, [0, 65535])
        assert np.array_equal(np.asarray(read(encoded(array, "TIFF"))), EIGHT)
    twelve_bits = PictureReader(1, [0, 4095])
    found = np.asarray(twelve_bits(encoded((RAMP // 16).astype(np.uint16))))
    assert np.abs(found.astype(int) - EIGHT).max() <= 1 and found.max() == 255


def test_transparent_pixels_lie_on_white():
    drawn = np.zeros((8, 8, 4), np.uint8)  # black ink, the rest transparent black: without the alpha channel nothing is left
    drawn[2:5, 2:5, 3] = 255
    read = PictureReader(1)
    found = np.asarray(read(encoded(drawn)))
    assert (found[2:5, 2:5] == 0).all() and found.sum() == (64 - 9) * 255 and "transparent" in read.note("train")[0]
    opaque = np.dstack([colour(0), np.full((8, 8), 255, np.uint8)])
    assert np.array_equal(np.asarray(PictureReader(3)(encoded(opaque))), colour(0))


def test_palettes_ink_and_bits_become_the_colours_that_they_mean():
    few = Pillow.fromarray(colour(1)).quantize(16)
    assert np.array_equal(np.asarray(PictureReader(3)(encoded(few))), np.asarray(few.convert("RGB")))
    ink = Pillow.fromarray(np.full((16, 16, 3), (200, 30, 40), np.uint8)).convert("CMYK")
    assert np.abs(np.asarray(PictureReader(3)(encoded(ink, "JPEG", quality=95))).astype(int) - (200, 30, 40)).max() < 8
    bits = Pillow.fromarray(colour(2)[..., 0] > 128)
    assert set(np.unique(np.asarray(PictureReader(1)(encoded(bits))))) == {0, 255}


def test_a_run_reads_16_bits_as_it_reads_8(tmp_path):
    tasks = []
    for name, pictures in (("eight", EIGHT), ("sixteen", RAMP)):
        for label in "ab":
            for split in ("train", "validation"):
                save(tmp_path / name / split / label / "0.png", pictures if label == "a" else pictures[::-1].copy())
        settings = resolve(["task=image_folder", f"data={tmp_path / name}", "dataset.pipeline=memory", "dataset.channels=1",
                            "dataset.mean=0", "dataset.std=1"])  # fmt: skip
        tasks.append(build_task(settings.task, settings.config))
    assert torch.equal(tasks[0].stores[0].pictures, tasks[1].stores[0].pictures)
    assert any("16 bits" in note for note in tasks[1].notes) and not any("16 bits" in note for note in tasks[0].notes)


# -- folders ----------------------------------------------------------------------------------------------------------


def folder(place, splits=("train", "validation"), classes="abc", n=2):
    for split in splits:
        for label in classes:
            for i in range(n):
                save(place / split / label / f"{i}.png", colour(i))
    return place


def load(place, **options):
    return load_splits("", None, str(place), "offline", **options)


def classes(place, split="train"):
    rows = load(place)[split]
    return sorted({rows.features["label"].int2str(label) for label in rows["label"] if label is not None})


def test_classes_behind_links_are_read(tmp_path):
    place = folder(tmp_path / "p", classes="bc")
    for i in range(2):
        save(tmp_path / "elsewhere" / f"{i}.png", colour(i))
    (place / "train" / "a").symlink_to(tmp_path / "elsewhere")
    assert classes(place) == ["a", "b", "c"] and load(place)["train"].num_rows == 6
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "train").symlink_to(place / "train")  # a whole split
    (place / "train" / "b" / "9.png").symlink_to(tmp_path / "elsewhere" / "0.png")  # a file
    assert load(tmp_path / "q")["train"].num_rows == 7


def test_tables_behind_links_are_read(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "part.csv").write_text("text,label\nhello,a\n")
    (tmp_path / "t" / "train").mkdir(parents=True)
    (tmp_path / "t" / "train" / "one.csv").write_text("text,label\nworld,b\n")
    (tmp_path / "t" / "train" / "more").symlink_to(tmp_path / "elsewhere")
    assert load(tmp_path / "t")["train"].num_rows == 2


@pytest.mark.parametrize("where, what", [
    ("train/d", "must hold pictures; it holds nothing"),
    ("train/d/x.heic", "holds files of .heic"),
    ("extra/x.png", "belong to none of them: extra .1 pictures.*dataset.eval=extra"),
    ("train/a/deeper/x.png", "must lie at one depth"),
])  # fmt: skip
def test_what_a_folder_holds_and_would_not_be_read_is_refused(tmp_path, where, what):
    place = folder(tmp_path / "p")
    file = place / where
    if file.suffix == ".png":
        save(file, colour(0))
    else:
        (file if not file.suffix else file.parent).mkdir(parents=True)
        if file.suffix:
            file.write_bytes(b"none that Pillow knows")
    with pytest.raises(DataError, match=what):
        load(place)


def test_links_that_lead_nowhere_or_back_are_named(tmp_path):
    place = folder(tmp_path / "p")
    (place / "train" / "a" / "gone.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match="gone.png' leads nowhere"):
        load(place)
    (place / "train" / "a" / "gone.png").unlink()
    (place / "train" / "back").symlink_to(place)
    with pytest.raises(DataError, match="leads back to"):
        load(place)


def test_a_picture_beside_the_classes_is_a_bad_row_and_other_files_are_named(tmp_path):
    place = folder(tmp_path / "p")
    save(place / "train" / "stray.png", colour(0))
    (place / "train" / "a" / "notes.txt").write_text("of somebody")
    settings = resolve(["task=image_folder", f"data={place}", "bad_rows=skip"])
    task = build_task(settings.task, settings.config)
    assert task.train_size == 6 and any("stray.png" in note for note in task.notes)
    assert any("NOT READ: 1 files" in note and "train/a/notes.txt" in note for note in task.notes)


def test_a_class_that_is_evaluated_but_never_trained_is_named(tmp_path):
    place = folder(tmp_path / "p", splits=("train",), classes="ab")
    folder(place, splits=("validation",), classes="abz")
    settings = resolve(["task=image_folder", f"data={place}"])
    notes = build_task(settings.task, settings.config).notes
    assert any("NEVER TRAINED: of 1 classes" in note and "'z'" in note for note in notes)


# -- text in files ----------------------------------------------------------------------------------------------------

ROWS = "text{0}label\ncafé{0}a\nthé{0}b\n"


@pytest.mark.parametrize("encoding, remedy", [
    ("cp1252", "line 2 is not utf-8.*dataset.encoding=cp1252"),
    ("utf-16", "begins as UTF-16 does. Say its encoding: dataset.encoding=utf-16"),
    ("utf-16-le", "dataset.encoding=utf-16-le"),
    ("shift_jis", None),
])  # fmt: skip
def test_other_encodings_are_named_and_read_when_said(tmp_path, encoding, remedy):
    content = ROWS.format(",") if remedy else "text,label\n日本,a\n東京,b\n"
    (tmp_path / "data.csv").write_bytes(content.encode(encoding))
    with pytest.raises(DataError, match=remedy or "is not utf-8.*shift_jis"):
        load(tmp_path / "data.csv")
    found = load(tmp_path / "data.csv", how=Format(encoding))["train"]
    assert found["text"][:] == [line.split(",")[0] for line in content.splitlines()[1:]]


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    for name in ("data.csv", "data.txt"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + b"text\nhello\n")
    assert load(tmp_path / "data.csv")["train"].column_names == ["text"]
    assert load(tmp_path / "data.txt")["train"]["text"][:] == ["text", "hello"]


@pytest.mark.parametrize("delimiter, name", [(";", "semicolon"), ("\t", "tab"), ("|", "pipe")])
def test_other_delimiters_are_named_and_read_when_said(tmp_path, delimiter, name):
    (tmp_path / "data.csv").write_text(ROWS.format(delimiter))
    with pytest.raises(DataError, match=f"has none, but {name}: dataset.delimiter={name}"):
        load(tmp_path / "data.csv")
    for word in (delimiter, name):
        assert load(tmp_path / "data.csv", how=Format(delimiter=word))["train"]["text"][:] == ["café", "thé"]


@pytest.mark.parametrize("name, content, cause", [
    ("a.csv", "text,label\nhello, you,a\nhello, me,b\n", "must have the 2 fields.*line 2 has 3"),
    ("a.csv", 'text,label\n"hello,a\nworld,b\n', "EOF inside string"),
    ("a.csv", "text,label\nhel\0lo,a\nworld,b\n", "Line 2 of .* holds a zero byte"),
    ("a.csv", "", "is empty"),
    ("a.parquet", "PAR1 and then nothing more", "its end is missing, it was cut off"),
    ("a.parquet", "something else", "is no Parquet file"),
    ("a.jsonl", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
])  # fmt: skip
def test_files_that_cannot_be_read_say_the_true_cause(tmp_path, name, content, cause):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=cause) as error:
        load(tmp_path / name)
    assert ("cut off" in str(error.value)) == ("cut off" in cause)


def test_encoding_and_delimiter_are_words_of_the_command_line(tmp_path, capsys):
    file = tmp_path / "data.csv"
    file.write_bytes(("text;label\n" + "".join(f"café {i};{'ab'[i % 2]}\n" for i in range(40))).encode("cp1252"))
    words = ["task=text_folder", f"data={file}", "pretrained=false", "dataset.vocab_size=300"]
    assert "dataset.encoding=cp1252" in refused(capsys, tmp_path, *words)
    words.append("dataset.encoding=cp1252")
    assert "dataset.delimiter=semicolon" in refused(capsys, tmp_path, *words)
    settings = resolve([*words, "dataset.delimiter=;"])
    task = build_task(settings.task, settings.config)
    assert task.names == ["a", "b"] and task.train_size + task.eval_size == 40
    assert "must be one that Python knows" in refused(capsys, tmp_path, *words, "dataset.encoding=cp9")


# -- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature, labels, why", [
    (Sequence(Value("int64")), [[i % 3, 1] for i in range(20)], "multi-label"),
    (Sequence(Value("string")), [["a"]] * 20, "multi-label"),
    ({"name": Value("string")}, [{"name": "a"}] * 20, "must hold one label a row"),
    (Value("float64"), [i / 7 for i in range(20)], "dataset.classes=1"),
    (Value("null"), [None] * 20, "empty in every row"),
    (Value("string"), [f"row {i}" for i in range(24)], "has one of its own, such as 'row 0'"),
])  # fmt: skip
def test_columns_that_hold_no_labels_are_refused(tmp_path, capsys, feature, labels, why):
    rows = {"text": [f"text {i}" for i in range(len(labels))], "label": labels}
    Dataset.from_dict(rows, features=Features({"text": Value("string"), "label": feature})).to_parquet(tmp_path / "a.parquet")
    words = ["task=text_folder", f"data={tmp_path / 'a.parquet'}", "pretrained=false", "dataset.vocab_size=300"]
    assert why in refused(capsys, tmp_path, *words)


def test_labels_of_pictures_are_checked_too(tmp_path, capsys):
    features = Features({"image": Image(), "label": Sequence(Value("int64"))})
    rows = {"image": [encoded(colour(i)) for i in range(20)], "label": [[0, 1]] * 20}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    assert "multi-label" in refused(capsys, tmp_path, "task=image_folder", f"data={tmp_path}")


# -- masks ------------------------------------------------------------------------------------------------------------


def segmentation(place, values, n=6, kind="png"):
    for split in ("train", "val"):
        for i in range(n):
            save(place / "images" / split / f"{i}.png", colour(i))
            save(place / "masks" / split / f"{i}.{kind}", np.resize(np.array(values, np.uint8), (8, 8)))
    return place


def of_masks(place, *words):
    settings = resolve(["task=segmentation_folder", f"data={place}", "dataset.crop=[8,8]", *words])
    return build_task(settings.task, settings.config)


@pytest.mark.parametrize("values, said, words, names", [
    ((0, 255), r"values 0, 255, of which 255 is left out.*dataset.ids=\[0,255\] dataset.ignore=\[\]",
     ("dataset.ids=[0,255]", "dataset.ignore=[]"), ["0", "255"]),
    ((0, 128), r"values 0, 128.*dataset.ids=\[0,128\]", ("dataset.ids=[0,128]",), ["0", "128"]),
    ((7, 7), "have the values 7", ("dataset.classes=[a,b]", "dataset.ids=[7,8]"), ["a", "b"]),
])  # fmt: skip
def test_values_of_masks_that_are_no_numbers_of_classes(tmp_path, values, said, words, names):
    place = segmentation(tmp_path, values)
    with pytest.raises(DataError, match=said):
        of_masks(place)
    task = of_masks(place, *words)
    assert task.names == names and set(task.pairs[0][0].mask.unique().tolist()) <= {0, 1}


def test_masks_whose_compression_changes_values_are_refused(tmp_path, capsys):
    place = segmentation(tmp_path / "a", (0, 1, 2), kind="jpg")
    message = refused(capsys, tmp_path, "task=segmentation_folder", f"data={place}", "dataset.crop=[8,8]")
    assert "the mask is a JPEG file, whose compression changes the class numbers" in message and "save masks as PNG" in message
    for kind, options in (("WEBP", {}), ("TIFF", {"compression": "jpeg"})):
        with pytest.raises(ValueError, match="compression changes"):
            open_mask(encoded(Pillow.fromarray(colour(0)[..., 0]), kind, **options))
    exact = np.resize(np.arange(3, dtype=np.uint8), (8, 8))
    found = open_mask(encoded(Pillow.fromarray(exact).convert("RGB"), "WEBP", lossless=True))
    assert np.array_equal(found, exact)


def test_masks_of_few_bits_and_palettes_keep_their_numbers():
    numbers = np.resize(np.arange(4, dtype=np.uint8), (8, 8))
    few = Pillow.fromarray(numbers)
    few.putpalette([value for i in range(256) for value in (i, i, i)])
    assert np.array_equal(open_mask(encoded(few)), numbers)
    assert np.array_equal(open_mask(grey_of_four_bits(numbers)), numbers)  # Pillow stretches these to 0, 17, 34, 51
    assert np.array_equal(open_mask(encoded(numbers.astype(np.float32), "TIFF")), numbers)
    with pytest.raises(ValueError, match="colour picture"):
        open_mask(encoded(Pillow.fromarray(numbers).convert("CMYK"), "TIFF"))


def grey_of_four_bits(numbers) -> dict:
    """A PNG of four bits a pixel, which Pillow reads but does not write."""
    import struct
    import zlib

    packed = (numbers[:, ::2] << 4) | numbers[:, 1::2]
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 4, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts]
    return {"bytes": b"\x89PNG\r\n\x1a\n" + b"".join(chunks), "path": None}


def test_masks_of_which_every_pixel_is_left_out_are_refused(tmp_path):
    with pytest.raises(DataError, match="No pixel of split 'train' is of a class"):
        of_masks(segmentation(tmp_path, (0, 255)), "dataset.classes=[a,b]", "dataset.ids=[3,4]")
    assert MaskValues(2, ids=[3, 4]).of(np.array([[3, 4, 5]])).tolist() == [[0, 1, -1]]


def test_pictures_of_one_name_and_names_of_classes_are_checked(tmp_path):
    place = segmentation(tmp_path, (0, 1))
    save(place / "images" / "train" / "0.bmp", colour(0))
    with pytest.raises(DataError, match="0.bmp and 0.png are of one name"):
        of_masks(place)
    (place / "images" / "train" / "0.bmp").unlink()
    (place / "classes.txt").write_bytes("cafés\nthé\n".encode("cp1252"))
    with pytest.raises(DataError, match="classes.txt' must be UTF-8"):
        of_masks(place)
    (place / "classes.txt").write_text("house\nhouse\n")
    with pytest.raises(DataError, match="each once"):
        of_masks(place)
