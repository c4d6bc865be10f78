"""A fuzz run over models, data and command lines; `python -m benchmarks.fuzz` tells how."""
