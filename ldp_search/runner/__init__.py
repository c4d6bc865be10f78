"""The world around the method: data, models, the training loop, checkpoints, reports. Nothing here is imported by `core`.

Read in this order: train (the loop), tasks (what a task gives to it), images and data (the first kind of task), models,
checkpoint and journal (what a run leaves on disk), results (how it ends).
"""
