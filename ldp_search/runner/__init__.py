"""The world around the method: data, models, the training loop, checkpoints, reports. Nothing here is imported by `core`.

Rooms, in reading order:

training/     a training from its settings to its folder: setup, session and the loop
tasks/        what a task gives to a training
models/       models by name
data/         rows, pictures, text and masks
report/       one page on one run or on several
search/       the outer search: an Optuna study whose trials are trainings
pretrained/   saved models, and the hub
onnx/         trained models for other programs
bench/        what a step costs
io/           files, checkpoints and networks that may fail
help          the answers to --help, --list and --print-config

Settings and words come resolved from `ldp_search.config`.
"""
