"""Data sets: where they come from, what is picked out of them, and what is wrong with single rows.

sources.py    the hub, folders, files; one message where they cannot be had
columns.py    splits and columns by name
subsets.py    which rows: drawn by the seed, held out for evaluation
labels.py     labels as class indices
bad_rows.py   rows that cannot be used
pictures.py   pictures in memory, and their augmentation
embedded.py   real data that needs no network
source_text.py  the same of text: the standard library's own source
tokenizers.py   tokenizers, found or trained
tokenized.py    texts as tokens, in a cache
masking.py      tokens hidden for masked language modelling
masks.py, pairs.py, paired_augmentation.py, mask_folders.py, scenes.py   pictures with masks
"""

from .bad_rows import BadRows, picture_file
from .columns import pick_column, pick_split
from .errors import DataError
from .labels import Classes, one_class_note
from .sources import first_rows, load_splits
from .subsets import check_share, hold_out, shared_split, subset

__all__ = [
    "Classes",
    "DataError",
    "BadRows",
    "check_share",
    "first_rows",
    "hold_out",
    "load_splits",
    "one_class_note",
    "pick_column",
    "pick_split",
    "picture_file",
    "shared_split",
    "subset",
]
