"""A training that is watched in a notebook: its picture is drawn again every few seconds.

    for images, labels in ldp_search.notebook.watch(loader, ldp):
        ...                                    # forward, backward, ldp.step(progress), as always

Outside of a notebook nothing is drawn, and nothing that drawing needs is imported. For transformers' Trainer:
`callbacks=[LDPCallback(), ldp_search.integrations.WatchCallback()]`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from torch import nn

from .api import controller
from .core import Controller
from .core.controller.display import check_picture
from .core.messages import warn

__all__ = ["Picture", "Watch", "watch"]

T = TypeVar("T")
SHARE = 0.1  # of the time that may go into drawing


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, where what is displayed can be replaced."""
    ipython = sys.modules.get("IPython")  # there already in every kernel
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None


class Picture:
    """One place in a notebook that shows the newest `ldp.plot(kind)`.

    Args:
        every: seconds between two drawings at the least; longer where drawing would take more than a tenth of the time.

    Raises:
        ValueError: an unknown kind, or one of damages under a policy that measures none.
    """

    def __init__(self, ldp: Controller, kind: str = "schedule", every: float = 5.0):
        check_picture(ldp, kind)
        self.ldp, self.kind, self.every = ldp, kind, every
        self._handle: Any = None
        self._due, self._steps, self._broken = time.monotonic() + min(every, 2.0), -1, not in_notebook()

    def refresh(self, now: bool = False) -> None:
        """Draw if it is time, or `now`, and if there is anything new. An error is a warning, and the end of drawing."""
        steps = self.ldp.trajectory.seen
        if self._broken or self._steps == steps or steps == 0 or not (now or time.monotonic() >= self._due):
            return
        begun = time.monotonic()
        try:
            figure = self.ldp.plot(self.kind)
            self._show(figure)
            figure.clear()
        except Exception as error:  # a picture must not cost a training
            self._broken = True
            warn(f"The picture is not drawn any more: {type(error).__name__}: {error}")
        self._steps, ended = steps, time.monotonic()
        self._due = ended + max(self.every, (ended - begun) * (1 / SHARE - 1))

    def _show(self, figure) -> None:
        from IPython.display import Image, display

        picture = Image(data=figure._repr_png_())
        if self._handle is None:
            self._handle = display(picture, display_id=True)
        else:
            self._handle.update(picture)


class Watch(Generic[T]):
    """What `watch` returns: the loader, as often as it is iterated, with one picture for all of its epochs."""

    def __init__(self, loader: Iterable[T], picture: Picture):
        self.loader, self.picture = loader, picture

    def __iter__(self) -> Iterator[T]:
        try:
            for batch in self.loader:
                yield batch
                self.picture.refresh()
        finally:
            self.picture.refresh(now=True)

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]


def watch(loader: Iterable[T], ldp: Controller | nn.Module, kind: str = "schedule", every: float = 5.0) -> Watch[T]:
    """`loader`, and a picture below the cell that is drawn again while its batches are trained on.

    Call it once, before the epochs, and iterate over what it returns in each of them: they share the picture.

    Args:
        loader: anything to iterate over: a DataLoader, `range(steps)`.
        ldp: the controller, or a model that `ldp_search.apply` was called on.
        kind: as of `ldp.plot`.
        every: seconds between two drawings.

    Raises:
        LookupError: `ldp_search.apply` was not called on the model. ValueError: as `Picture`.
    """
    return Watch(loader, Picture(ldp if isinstance(ldp, Controller) else controller(ldp), kind, every))
