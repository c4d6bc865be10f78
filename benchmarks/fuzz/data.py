"""Random data in files and folders: what is read is exactly what was written, or it is refused with a message."""

from __future__ import annotations

import csv
import io
import json
import random
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from ldp_search.config.resolve import resolve
from ldp_search.runner.data.sources import load_splits
from ldp_search.runner.data.text_files import Format
from ldp_search.runner.tasks import build_task

from .worker import Find

LETTERS = list("abc ABC,;|'\"\t\n\\é日ß€#") + [" NA", "null", "0", "1.50", "\r\n"]


def case(seed: int) -> str:
    """One data set of a random kind; raises Find, or what the package raises."""
    import datasets

    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        datasets.disable_progress_bars()
        return draw.choice([_table, _lines, _pictures, _pictures, _masks, _labels])(draw, Path(folder) / "data")


def _table(draw: random.Random, place: Path) -> str:
    """CSV: texts with anything in them, in some encoding and with some delimiter, said or not."""
    place.mkdir()
    encoding = draw.choice(["utf-8"] * 3 + ["utf-8-sig", "utf-16", "utf-16-le", "cp1252", "latin-1", "shift_jis"])
    delimiter, ends = draw.choice([",", ",", ";", "\t", "|"]), draw.choice(["\n", "\r\n"])
    rows = []
    while len(rows) < draw.choice([1, 4, 30]):
        text = "".join(draw.choice(LETTERS) for _ in range(draw.randint(1, 12)))
        rows.append((text.encode(encoding, "ignore").decode(encoding).replace("\r", ""), draw.choice("xyz")))
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator=ends, quoting=draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    writer.writerows([("text", "label"), *rows])
    name = draw.choice(["train.csv", "data.csv", "train.tsv"])
    content = out.getvalue().encode(encoding)
    if draw.random() < 0.15:
        content = content[: draw.randrange(len(content))]
        rows = None
    (place / name).write_bytes(content)
    said = draw.random() < 0.7
    how = Format(encoding if said else "", delimiter if said else "")
    about = f"{name} {encoding} {delimiter!r} {ends!r} {'said' if said else 'not said'}{'' if rows else ' cut off'}"
    found = load_splits("", None, str(place if draw.random() < 0.5 else place / name), "offline", how=how)
    read = next(iter(found.values()))
    if rows is None or (not said and encoding != "utf-8"):  # latin-1 may pass for UTF-8 where nothing in it tells them apart
        return about
    texts = [str(text or "") for text in read["text"][:]]
    wanted = [text for text, _ in rows]
    if read.num_rows != len(wanted):
        raise Find(f"{about}: {len(wanted)} rows were written, {read.num_rows} read")
    if texts != wanted and read.features["text"].dtype in ("string", "large_string"):
        wrong = next((a, b) for a, b in zip(wanted, texts, strict=True) if a != b)
        raise Find(f"{about}: {wrong[0]!r} was written, {wrong[1]!r} read")
    return about


def _lines(draw: random.Random, place: Path) -> str:
    """JSON lines and plain text."""
    place.mkdir()
    texts = ["".join(draw.choice("ab cé日\\\"'") for _ in range(draw.randint(1, 9))) for _ in range(draw.choice([1, 5, 40]))]
    if draw.random() < 0.5:
        encoding = draw.choice(["utf-8", "utf-8-sig", "utf-16"])
        rows = [json.dumps({"text": text, "label": i % 2}, ensure_ascii=draw.random() < 0.5) for i, text in enumerate(texts)]
        (place / "train.jsonl").write_bytes("\n".join(rows).encode(encoding))
        read = load_splits("", None, str(place), "offline")["train"]["text"][:]
    else:
        encoding = draw.choice(["utf-8", "utf-8-sig", "utf-16"])
        (place / "train.txt").write_bytes("\n".join(texts).encode(encoding))
        read = load_splits("", None, str(place), "offline", how=Format(encoding))["train"]["text"][:]
    if list(read) != texts:
        raise Find(f"lines in {encoding}: {len(texts)} were written, {len(read)} read, or others")
    return f"{len(texts)} lines in {encoding}"


def _picture(draw: random.Random, level: int) -> tuple[bytes, str, str]:
    """(file, extension, mode) of an 8x8 picture that is `level` grey all over, of 0 to 255."""
    grey = np.full((8, 8), level, np.uint8)
    mode = draw.choice(["L", "RGB", "RGBA", "LA", "P", "I;16", "I;16 tiff", "CMYK", "jpeg", "webp", "gif", "bmp", "16-bit big"])
    kinds = {
        "I;16 tiff": "TIFF",
        "CMYK": "JPEG",
        "jpeg": "JPEG",
        "webp": "WEBP",
        "gif": "GIF",
        "bmp": "BMP",
        "16-bit big": "TIFF",
    }
    picture = Image.fromarray(grey)
    if mode in ("I;16", "I;16 tiff"):
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "16-bit big":
        picture = Image.frombytes("I;16B", (8, 8), (grey.astype(">u2") * 257).astype(">u2").tobytes())
    elif mode in ("RGB", "RGBA", "LA", "P"):
        picture = picture.convert(mode)
    elif mode == "CMYK":
        picture = picture.convert("RGB").convert("CMYK")
    elif mode == "webp":
        picture = picture.convert("RGB")
    out, kind = io.BytesIO(), kinds.get(mode, "PNG")
    picture.save(out, kind, **({"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}))
    return out.getvalue(), "." + {"JPEG": "jpg", "TIFF": "tif"}.get(kind, kind.lower()), mode


def _pictures(draw: random.Random, place: Path) -> str:
    """A folder for each class, in some layout, with some faults; the grey level of a picture tells its class."""
    levels, per = {"a": 40, "b": 120, "c": 230}, draw.choice([2, 5])
    layout = draw.choice(["splits", "flat", "linked class", "linked split", "deeper"])
    splits = [""] if layout == "flat" else ["train", draw.choice(["val", "validation", "test"])]
    modes, written, broken = set(), 0, 0
    for split in splits:
        for label, level in levels.items():
            where = place / split / ("group" if layout == "deeper" else "") / label
            if layout == "linked class" and label == "b":
                real = place.parent / f"elsewhere-{split}"
                real.mkdir()
                where.parent.mkdir(parents=True, exist_ok=True)
                where.symlink_to(real)
            where.mkdir(parents=True, exist_ok=True)
            for i in range(per if split else 4 * per):
                content, suffix, mode = _picture(draw, level)
                bad = draw.random() < 0.03
                (where / f"{i}{suffix.upper() if draw.random() < 0.1 else suffix}").write_bytes(
                    content[:30] if bad else content
                )
                modes.add(mode)
                written, broken = written + 1, broken + bad
    if layout == "linked split":
        (place / "train").rename(place.parent / "moved")
        (place / "train").symlink_to(place.parent / "moved")
    if draw.random() < 0.2:
        (place / splits[0] / draw.choice(["notes.txt", ".hidden.png", "README.md"])).write_text("none")
    words = ["task=image_folder", f"data={place}", "dataset.pipeline=memory", "dataset.channels=1", "dataset.mean=0"]
    words += ["dataset.std=1", f"bad_rows={draw.choice(['refuse', 'skip'])}"]
    settings = resolve(words)
    task = build_task(settings.task, settings.config)
    about = f"{layout}, {written} pictures of {sorted(modes)}, {broken} of them broken"
    if task.train_size + task.eval_size != written - broken or list(task.names) != list(levels):
        raise Find(f"{about}: {task.train_size} + {task.eval_size} were read, of the classes {task.names}")
    for store, labels in zip(task.stores, task.labels, strict=True):
        wanted = np.array(list(levels.values()))[labels.numpy()]
        far = np.abs(store.pictures.numpy().astype(int).mean((1, 2, 3)) - wanted).max()
        if far > 4:
            raise Find(f"{about}: a picture's grey is {far:.0f} of 255 away from what was written")
    return about


def _masks(draw: random.Random, place: Path) -> str:
    """Masks of some values and modes beside pictures; the classes that are read are those that were written."""
    values = draw.choice([[0, 1], [0, 1, 2], [0, 1, 255], [0, 255], [0, 128], [5], list(range(12)), [1, 2, 3], [0, 1, 2, 3]])
    mode, size = draw.choice(["L", "L", "P", "RGB", "RGBA", "I;16", "F", "jpeg", "webp"]), draw.choice([(8, 8), (8, 12)])
    for split in ("train", "val"):
        for part in ("images", "masks"):
            (place / part / split).mkdir(parents=True)
        for i in range(4):
            numbers = np.resize(np.array(values, np.uint8), size)
            Image.fromarray(np.full((*size, 3), 50 * i, np.uint8)).save(place / "images" / split / f"{i}.jpg")
            picture = Image.fromarray(numbers.astype({"I;16": np.uint16, "F": np.float32}.get(mode, np.uint8)))
            if mode == "P":
                picture.putpalette([j for k in range(256) for j in (k, 255 - k, k)])
            elif mode in ("RGB", "RGBA", "webp"):
                picture = picture.convert("RGB" if mode == "webp" else mode)
            suffix = {"F": "tif", "jpeg": "jpg", "webp": "webp"}.get(mode, "png")
            picture.save(place / "masks" / split / f"{i}.{suffix}", **({"lossless": True} if mode == "webp" else {}))
    words = ["task=segmentation_folder", f"data={place}", "dataset.crop=[8,8]"]
    if by_id := draw.random() < 0.4 and len(values) > 1:
        words += [f"dataset.ids={values}".replace(" ", ""), "dataset.ignore=[]"]
    settings = resolve(words)
    task = build_task(settings.task, settings.config)
    read = np.concatenate([pair.mask.numpy().ravel() for pair in task.pairs[0]])
    wanted = np.concatenate([np.resize(np.array(values, np.uint8), size).ravel() for _ in range(4)]).astype(int)
    wanted = np.searchsorted(values, wanted) if by_id else np.where(wanted == 255, -1, wanted)
    if mode == "jpeg" or not np.array_equal(read, wanted):
        raise Find(f"masks {values} as {mode}{' by ids' if by_id else ''}: read as {np.unique(read)}")
    return f"masks {values} as {mode}"


def _labels(draw: random.Random, place: Path) -> str:
    """Labels of some type in a table of texts: as many classes as were written, or refused."""
    place.mkdir()
    kinds = {
        "words": ["x", "y", "z"], "numbers": [0, 1, 2], "others": [3, 7], "truth": [True, False], "floats": [0.0, 1.0],
        "fractions": [0.1, 0.5], "lists": [[0], [1]], "mappings": [{"a": 1}], "missing": [None, "x", "y"], "none": [None],
        "mixed": ["1", "x"], "dates": ["2020-01-01", "2021-01-01"], "empty": ["", "x", "y"],
    }  # fmt: skip
    name = draw.choice(sorted(kinds))
    rows = [{"text": f"text {i}", "label": draw.choice(kinds[name])} for i in range(40)]
    (place / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["task=text_folder", f"data={place}", "pretrained=false", "dataset.vocab_size=300", "bad_rows=skip"]
    settings = resolve(words)
    task = build_task(settings.task, settings.config)
    wanted = {str(value) for value in kinds[name] if value is not None}
    if name in ("lists", "mappings", "fractions", "none") or len(task.names) != len(wanted):
        raise Find(f"labels {name}: read as the classes {task.names}")
    return f"labels {name}"
