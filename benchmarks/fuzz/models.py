"""Random small models: layers, wrappers, types, ways to call; against the plain model, the shapes and the reference backend."""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import ldp_search
from ldp_search.core.model.site import Site

from .layers import Net, random_net
from .worker import Find, Invalid

UNCOUNTED = ("bilinear", "recurrent")
"""Parts of which torch's counter knows less than there is."""
CLOSE = 0.05
"""Relative distance of outputs at 8 bits between two backends: a sum on the other side of a rounding moves a code."""


def case(seed: int) -> str:
    """Everything that must hold for one model; returns what it was. Raises Find, Invalid, or what the package raises."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float32)
    try:
        net, inputs, about = random_net(draw)
        return _check(draw, net, inputs, about)
    finally:
        torch.set_default_dtype(torch.float32)


def _check(draw: random.Random, net: Net, inputs: tuple, about: str) -> str:
    try:
        plain = _outputs(copy.deepcopy(net).eval(), inputs)
        _step(copy.deepcopy(net).train(), inputs)
        macs = _macs(copy.deepcopy(net).train(), inputs)  # in evaluation some layers of torch have a way that nothing counts
    except Exception as error:  # whatever a random model does
        raise Invalid(f"{about}: {type(error).__name__}: {error}") from error
    if not plain.isfinite().all() or not macs:
        raise Invalid(f"{about}: not finite, or nothing is multiplied")
    options = _options(draw)
    about += f" with {options}"
    try:
        given = inputs if draw.random() < 0.7 else None
        _compare(about, net, inputs, plain, macs, options, given)
        _backends(about, net, inputs)
    except Find:
        raise
    except Exception as error:
        error.args = (f"{about}: {error}",)
        raise
    return about


def _options(draw: random.Random) -> dict[str, Any]:
    return {
        "policy": draw.choice(["learned", "static", "cyclic", "random", "progressive"]),
        "bits": draw.choice([(3, 8), (2, 4), 8]),
        "weight_quantizer": draw.choice(["minmax", "clip"]), "attention": draw.random() < 0.5,
        "embeddings": draw.random() < 0.2, "granularity": draw.choice(["layer", "block", "network"]),
        "relaxation": draw.choice(["round", "interpolate", "sample"]), "activations": draw.choice(["exact", "16bit"]),
    }  # fmt: skip


def _compare(about: str, net: Net, inputs: tuple, plain: Tensor, macs: int, options: dict, given: tuple | None) -> None:
    model = copy.deepcopy(net)
    options = options | ({"bits": (3, 8), "target_cost": 0.6} if options["policy"] == "learned" else {})
    named = [name for name, _ in model.named_parameters()]
    ldp_search.apply(model, space=options, example_inputs=given)
    ldp = ldp_search.controller(model)
    if [name for name, _ in model.named_parameters()] != named:
        raise Find(f"{about}: names of parameters changed")
    with ldp.disabled():
        if not _same(_outputs(model.eval(), inputs), plain):
            raise Find(f"{about}: with quantization off the output differs from the plain model's")
    for step in range(2):
        with _reached() as reached:
            _step(model.train(), inputs)
        ldp.step((step + 1) / 2, loss=torch.tensor(1.0))
    for name, site in ldp.searched_sites().items():
        if site is not None and ldp.layers[name].macs and name not in reached:
            raise Find(f"{about}: {name} counts as quantized, but the forward does not reach it")
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if bad:
        raise Find(f"{about}: gradients are not finite: {bad[:3]}")
    _check_coverage(about, ldp, inputs, macs)
    ldp.finalize([inputs])
    trained = _outputs(model.eval(), inputs)
    with tempfile.TemporaryDirectory() as folder:
        ldp_search.save_pretrained(model, folder)
        loaded = ldp_search.load_pretrained(folder, model=copy.deepcopy(net))
        if not _same(_outputs(loaded.eval(), inputs), trained):
            raise Find(f"{about}: the model that was saved and loaded gives other outputs")
    ldp_search.remove(model)
    if [type(module) for module in model.modules()] != [type(module) for module in net.modules()]:
        raise Find(f"{about}: after remove() the classes are others than before apply()")


def _check_coverage(about: str, ldp: Any, inputs: tuple, macs: int) -> None:
    """What is quantized and what is named as left out are together what the shapes say."""
    batch = next(x.shape[0] for x in inputs if isinstance(x, Tensor))
    sites = ldp.searched_sites()
    inside = sum(layer.macs for name, layer in ldp.layers.items() if sites[name] is not None)
    left_out = sum(item.macs for item in ldp.coverage.left_out)
    more = (inside + left_out) * batch - macs
    margin = 0.01 * macs + 64 * batch
    if more < -margin or (more > margin and not any(part in about for part in UNCOUNTED)):
        raise Find(f"{about}: {inside:,} quantized, {left_out:,} left out a sample; the shapes say {macs / batch:,.0f}")


@contextmanager
def _reached() -> Iterator[set[str]]:
    """Names of the sites whose quantized product, function or looked-up rows were asked for within."""
    names, originals = set(), {method: getattr(Site, method) for method in ("product", "call", "rows")}

    def noted(original: Any) -> Any:
        def method(site: Site, *args: Any, **kwargs: Any) -> Any:
            names.add(site.name)
            return original(site, *args, **kwargs)

        return method

    for method, original in originals.items():
        setattr(Site, method, noted(original))
    try:
        yield names
    finally:
        for method, original in originals.items():
            setattr(Site, method, original)


def _backends(about: str, net: Net, inputs: tuple) -> None:
    """The same model at 8 bits computed by each backend; gradients in full precision, whose rounding would draw numbers."""
    found: dict[str, tuple[Tensor, list[Tensor]]] = {}
    for backend in ("reference", "simulate", "int8"):
        model = copy.deepcopy(net)
        choose = {"name": "int8", "choose": "always"} if backend == "int8" else backend
        space = {"policy": "static", "bits": 8, "grad_bits": 32, "backend": choose, "attention": True}
        ldp_search.apply(model, space=space, example_inputs=inputs)
        torch.manual_seed(0)
        _step(model.train(), inputs)
        gradients = [p.grad.detach().clone() for p in model.parameters() if p.grad is not None]
        torch.manual_seed(0)
        found[backend] = _outputs(model.eval(), inputs), gradients
    reference = found.pop("reference")
    for backend, (outputs, gradients) in found.items():
        if (far := _distance(outputs, reference[0])) > CLOSE:
            raise Find(f"{about}: at 8 bits the output of {backend} is {far:.3g} from that of reference")
        if len(gradients) != len(reference[1]):
            raise Find(f"{about}: {backend} gives {len(gradients)} gradients, reference {len(reference[1])}")
        far = max((_distance(a, b) for a, b in zip(gradients, reference[1], strict=True) if b.norm() > 1e-3), default=0.0)
        if far > 10 * CLOSE:
            raise Find(f"{about}: at 8 bits a gradient of {backend} is {far:.3g} from that of reference")


def _outputs(model: nn.Module, inputs: tuple) -> Tensor:
    with torch.no_grad():
        torch.manual_seed(1)
        return model(*inputs).detach().clone()


def _step(model: nn.Module, inputs: tuple) -> None:
    model.zero_grad()
    model(*inputs).float().square().mean().backward()


def _macs(model: nn.Module, inputs: tuple) -> int:
    """Multiply-accumulates of a forward, by torch's own counter; attention by its formula, which the counter knows whole."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs)
    return counter.get_total_flops() // 2


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12))
