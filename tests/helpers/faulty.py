"""Models that fail somewhere; `model=faulty:narrow` finds them, since tests/ is on the path."""

import torch
from torch import nn


def narrow(num_classes: int, in_chans: int) -> nn.Module:
    """Ends in a batch norm over maps of a single pixel."""
    return nn.Sequential(
        nn.Conv2d(in_chans, 6, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, num_classes)
    )


class _Fails(nn.Sequential):
    training_only = True

    def forward(self, x):
        if len(x) > 1 and self.training == self.training_only:
            raise RuntimeError("a kernel that is not there")
        return super().forward(x)


def fails_in_training(num_classes: int, in_chans: int) -> nn.Module:
    return _Fails(nn.Flatten(), nn.Linear(64 * in_chans, num_classes))


def fails_in_evaluation(num_classes: int, in_chans: int) -> nn.Module:
    model = fails_in_training(num_classes, in_chans)
    model.training_only = False
    return model


class _Detached(nn.Sequential):
    def forward(self, x):
        return super().forward(x).detach()


def learns_nothing(num_classes: int, in_chans: int) -> nn.Module:
    return _Detached(nn.Flatten(), nn.Linear(64 * in_chans, num_classes))


def missing_package(num_classes: int) -> nn.Module:
    import nowhere_to_be_found  # noqa: F401

    return nn.Linear(num_classes, torch.zeros(1).numel())
