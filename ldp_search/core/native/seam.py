"""Where a formula and its kernels meet."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def with_kernel(kernel: Callable[P, R | None]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The decorated function is the formula; calls that the kernel serves have its result instead.

    kernel: takes the same arguments, and returns None for a call that it does not serve, having changed nothing.
    """

    def over(formula: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(formula)
        def operation(*args: P.args, **kwargs: P.kwargs) -> R:
            found = kernel(*args, **kwargs)
            return formula(*args, **kwargs) if found is None else found

        return operation

    return over
