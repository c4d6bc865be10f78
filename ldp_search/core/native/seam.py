"""Where a formula and its kernels meet."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from .operators import operator_of

P = ParamSpec("P")
R = TypeVar("R")


def with_kernel(kernel: Callable[P, R | None]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The decorated function is the formula; calls that the kernel serves have its result instead. In what torch.compile makes,
    the operator of the two together is called.

    kernel: takes the same arguments, and returns None for a call that it does not serve, having changed nothing.
    """

    def over(formula: Callable[P, R]) -> Callable[P, R]:
        def operation(*args: P.args, **kwargs: P.kwargs) -> R:
            found = kernel(*args, **kwargs)
            return formula(*args, **kwargs) if found is None else found

        operator = operator_of(kernel, operation)

        @functools.wraps(formula)
        def compiled_or_not(*args: P.args, **kwargs: P.kwargs) -> R:
            found = operator(*args, **kwargs) if torch.compiler.is_dynamo_compiling() else kernel(*args, **kwargs)
            return formula(*args, **kwargs) if found is None else found

        return compiled_or_not

    return over
