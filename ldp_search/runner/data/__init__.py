"""Data sets: where they come from, what is picked out of them, and what is wrong with single rows.

sources.py    the hub, folders, files; one message where they cannot be had
columns.py    splits and columns by name, labels
faults.py     rows that cannot be used
pictures.py   pictures in memory, and their augmentation
embedded.py   real data that needs no network
source_text.py  the same of text: the standard library's own source
vocabulary.py   tokenizers, found or trained
tokenized.py    texts as tokens, in a cache
masking.py      tokens hidden for masked language modelling
masks.py, pairs.py, moved.py, mask_folders.py, scenes.py   pictures with masks
"""

from .columns import class_labels, class_names, pick_column, pick_split
from .errors import DataError
from .faults import Faults, files_of
from .sources import first_rows, load_splits

__all__ = [
    "DataError",
    "Faults",
    "class_labels",
    "class_names",
    "files_of",
    "first_rows",
    "load_splits",
    "pick_column",
    "pick_split",
]
