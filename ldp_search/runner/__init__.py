"""The world around the method: data, models, the training loop, checkpoints, reports. Nothing here is imported by `core`.

Read in this order: train (the loop), session and setup (what it works on), tasks (what a task gives to it), images, pictures
and data (the first kind of task), batches, models, optimizers; checkpoint, folders and journal (what a run leaves on disk),
results (how it ends); overlay, typed and usage (settings and words). Exchange of models: pretrained, export. Pages: report.
"""
