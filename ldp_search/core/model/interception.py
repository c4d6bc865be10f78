"""Products that no layer class holds, met inside the forward of the module that owns them.

Attention's own products, experts, raw parameters in `@`, a weight read from outside its layer or changed before its use:
the owner's forward runs as it is, under a mode that sees every torch function called in it and has those that are products
computed by the sites they belong to.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ..products import unfused
from ..products.torch_functions import ATTENTION, TorchProduct, find, trailing
from .guard import not_intercepted, running
from .swap import ATTRIBUTE, Swapped

if TYPE_CHECKING:
    from ..controller.controller import Controller
    from .site import Site

_VIEW_NAMES = (
    "transpose", "t", "permute", "swapaxes", "movedim", "chunk", "split", "unbind", "squeeze", "unsqueeze", "view", "reshape",
    "flatten", "contiguous", "expand", "narrow", "select", "__getitem__",
)  # fmt: skip
_VIEWS = frozenset(getattr(space, name) for space in (Tensor, torch) for name in _VIEW_NAMES if hasattr(space, name)) | {
    getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH")
}


@dataclass
class InterceptionPlan:
    """Which sites the products of one module's own forward belong to; None in place of a site: full precision.

    tensors: (module, attribute, site) of the parameters and buffers that are operands, themselves or in views; looked up anew
    in each forward, since whoever shards or moves a model may replace them. computed: {(function, which operand, trailing
    shape): {place among such calls: site}} of weights that are computed first, from parameters alone. generated: {function:
    site} of weights that depend on the input. activations: the site of the products of two activations. always: on while
    quantization is off too, for whoever only looks at the products (an export).
    """

    name: str
    controller: Controller
    tensors: list[tuple[nn.Module, str, Site | None]] = field(default_factory=list)
    computed: dict[tuple, dict[int, Site | None]] = field(default_factory=dict)
    generated: dict[str, Site | None] = field(default_factory=dict)
    activations: Site | None = None
    always: bool = False

    @property
    def on(self) -> bool:
        return self.always or self.controller.enabled

    @property
    def empty(self) -> bool:
        return not (self.tensors or self.computed or self.generated) and self.activations is None

    def __deepcopy__(self, memo: dict):
        return copy_with_model(self, self.controller, memo)

    def sites(self) -> list[Site]:
        """All of them, but for products in full precision."""
        computed = [site for places in self.computed.values() for site in places.values()]
        every = [*(site for _, _, site in self.tensors), *computed, *self.generated.values(), self.activations]
        return [site for site in every if site is not None]

    def with_sites(self, other: Callable[[Site], Any]) -> InterceptionPlan:
        """The same products, computed by what `other` gives for their sites, whether quantization is on or off."""

        def of(site: Site | None) -> Any:
            return None if site is None else other(site)

        return replace(
            self,
            tensors=[(module, attribute, of(site)) for module, attribute, site in self.tensors],
            computed={call: {place: of(site) for place, site in places.items()} for call, places in self.computed.items()},
            generated={function: of(site) for function, site in self.generated.items()},
            activations=of(self.activations),
            always=True,
        )

    def known(self) -> list[tuple[Tensor, Site | None]]:
        """(tensor, its site), as the modules hold them now."""
        held = ((getattr(module, attribute, None), site) for module, attribute, site in self.tensors)
        return [(tensor, site) for tensor, site in held if tensor is not None]


def copy_with_model(record: Any, controller: Controller, memo: dict[int, Any]) -> Any:
    """A deep copy of what a module's forward asks; itself where the model that it belongs to is not being copied."""
    if memo and id(controller.model) not in memo and id(controller) not in memo:
        return record
    cls: Any = type(record)
    made = memo[id(record)] = cls.__new__(cls)
    state = record.__getstate__() if hasattr(record, "__getstate__") else record.__dict__
    state = copy.deepcopy(state, memo)
    made.__setstate__(state) if hasattr(made, "__setstate__") else made.__dict__.update(state)
    return made


class InterceptProducts(TorchFunctionMode):
    """Quantizes the products that one owner calls itself; those of the modules inside it are theirs."""

    def __init__(self, plan: InterceptionPlan, training: bool):
        super().__init__()
        self.plan, self.training, self.known = plan, training, plan.known()
        self.met: dict[tuple, int] = {}  # kind of call with a computed weight -> the newest one's place

    def __enter__(self):
        running.owners.append(self)
        return super().__enter__()

    def __exit__(self, *exception):
        running.owners.pop()
        return super().__exit__(*exception)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if running.owners[-1] is not self:
            return func(*args, **kwargs)
        whole = unfused.UNFUSED.get(func)
        if func is scaled_dot_product_attention and self.plan.activations is not None:
            whole = unfused.attention
        if whole is not None:
            with self:
                return whole(*args, **kwargs)
        product = find(func, args, kwargs)
        if product is None or product is ATTENTION:
            out = func(*args, **kwargs)
            if func in _VIEWS and torch.compiler.is_compiling():
                self._follow(args[0] if args else kwargs["input"], out)
            return out
        site, weight = self._belongs(product, product.operands(args, kwargs))
        if site is None:
            return func(*args, **kwargs)
        with not_intercepted():  # what quantizing itself computes is not to be quantized
            return site.call(product, func, args, kwargs, weight, self.training)

    def _belongs(self, product: TorchProduct, pair: tuple[Tensor, Tensor]) -> tuple[Site | None, int | None]:
        """(site, which operand is its weight) of a product."""
        first, second = (self._site_of(x) for x in pair)
        if first and second:  # two weights: nothing of a sample is in it
            return None, None
        if not second and product.second_is_weight and not torch.compiler.is_compiling():  # loaded just now, perhaps
            self.known = self.plan.known()
            second = self._site_of(pair[1])
        for which, found in ((1, second), (0, first)):
            if found:
                return found[0], which
        for which in (1, 0) if self.plan.computed else ():
            key = (product.name, which, trailing(product, pair[which]))
            if not _is_symbolic(key[2]) and key in self.plan.computed:
                return self._computed(key), which
        if not product.second_is_weight:
            return self.plan.activations, None
        if product.name not in self.plan.generated:
            _warn_of_the_unknown(self.plan, product)
        return self.plan.generated.get(product.name), 1

    def _computed(self, key: tuple) -> Site | None:
        """The site of the next call of this kind; more calls than were counted are taken for the last one's."""
        places, place = self.plan.computed[key], self.met.get(key, -1) + 1
        self.met[key] = place
        return places.get(place, places[max(places)])

    def _site_of(self, tensor: Tensor) -> tuple[Site | None] | tuple[()]:
        """(site,) of a weight or of a view of one; () of any other tensor."""
        base = None if torch.compiler.is_compiling() else tensor._base
        for known, site in self.known:
            if known is tensor or known is base:
                return (site,)
        return ()

    def _follow(self, tensor: Tensor, views) -> None:
        """While compiling, views do not tell what they are views of, so it is noted as they are made."""
        found = self._site_of(tensor)
        if found:
            self.known += [(view, found[0]) for view in (views if isinstance(views, list | tuple) else [views])]


def _is_symbolic(shape: tuple) -> bool:
    """Whether torch.export traces this shape as one of any size: no weight's is."""
    return not torch.compiler.is_dynamo_compiling() and any(isinstance(n, torch.SymInt) for n in shape)


def _warn_of_the_unknown(plan: InterceptionPlan, product: TorchProduct) -> None:
    plan.generated[product.name] = None  # once
    warnings.warn(
        f"{plan.name or 'The model'} calls {product.name} on a weight that it did not use when its products were counted; it "
        "stays in full precision. Count on inputs that reach it: apply(model, example_inputs=...).",
        stacklevel=4,
    )


class InterceptedForward(Swapped):
    """Mixin before the original class of a module that owns products."""

    training: bool

    def run(self, forward, args, kwargs):
        plan = self.__dict__[ATTRIBUTE]
        if not plan.on or plan.empty:
            return forward(self, *args, **kwargs)
        with InterceptProducts(plan, self.training):
            return forward(self, *args, **kwargs)


class FullPrecisionLayer(Swapped):
    """Mixin of a module left in full precision: the owners that it lies in keep their hands off its products."""

    def run(self, forward, args, kwargs):
        with not_intercepted():
            return forward(self, *args, **kwargs)
