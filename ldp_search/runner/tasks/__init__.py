"""Tasks: a YAML file of `tasks/` says what to train on; a kind of task knows its batches, losses and metrics.

base.py      what every kind gives the training loop
metrics.py   what is measured, and which way is better
images.py    image classification
text_base.py what the two kinds of text tasks share: their splits, their tokenizer, what they ask of a model
text.py      text classification and regression: one text or two, one label
language.py  language modelling, causal and masked
segmentation.py       semantic segmentation; segmentation_data.py is its data
"""

from .base import Task, build_task

__all__ = ["Task", "build_task"]
