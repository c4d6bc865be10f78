"""From Parquet files to the arrays that the benchmark trains on.

    python -m benchmarks.paper.prepare data=CIFAR10_FOLDER output=DATA/cifar10-16.npz size=16     # or 32
    python -m benchmarks.paper.prepare data=WIKITEXT2_FOLDER output=DATA/wikitext2.npz

The folder has train*.parquet and test*.parquet with `image` and `label`, or with `text`. size=16 averages pictures of 32x32;
text becomes tokens of a vocabulary of 4096.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np

VOCABULARY = 4096


def tables(folder: Path, split: str):
    """The rows of a split, as one pyarrow table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted(folder.glob(f"{split}*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder} must have {split}*.parquet; it has {sorted(p.name for p in folder.glob('*'))[:8]}.")
    return pa.concat_tables([pq.read_table(f) for f in files])


def pictures(table, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, pixels, pixels, 3) uint8 and (n,) uint8 from a table of 32x32 pictures."""
    from PIL import Image

    column = "image" if "image" in table.column_names else "img"
    images = np.stack(
        [np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in table.column(column).to_pylist()]
    )
    side = images.shape[1] // pixels
    if side > 1:
        blocks = images.reshape(len(images), pixels, side, pixels, side, 3).mean((2, 4), dtype=np.float32)
        images = np.round(blocks).astype(np.uint8)
    return images, np.array(table.column("label").to_pylist(), np.uint8)


def tokens(train: list[str], test: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Token streams (uint16) of a byte-level BPE trained on the training text."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(train, vocab_size=VOCABULARY, show_progress=False)
    return tuple(np.concatenate([np.array(e.ids, np.uint16) for e in tokenizer.encode_batch(lines)]) for lines in (train, test))


def main(words: list[str]) -> None:
    options = dict(word.split("=", 1) for word in words)
    folder, output, pixels = Path(options["data"]), Path(options["output"]), int(options.get("size", 16))
    train, test = (tables(folder, split) for split in ("train", "test"))
    if "text" in train.column_names:
        streams = tokens(*([f"{line}\n" for line in t.column("text").to_pylist()] for t in (train, test)))
        arrays = dict(zip(("train_tokens", "test_tokens"), streams, strict=True))
    else:
        arrays = {
            f"{split}_{name}": array
            for split, table in (("train", train), ("test", test))
            for name, array in zip(("images", "labels"), pictures(table, pixels), strict=True)
        }
    output.parent.mkdir(parents=True, exist_ok=True)
    np.savez(output, **arrays)
    print(f"{output}: " + ", ".join(f"{name} {array.shape} {array.dtype}" for name, array in arrays.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
