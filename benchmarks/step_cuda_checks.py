"""Whether each Triton pass equals its formula on a CUDA device, for `step_cuda.py`."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn

import ldp_search
from ldp_search.core import native
from ldp_search.core.native import cuda
from ldp_search.core.native.shapes import shape_along
from ldp_search.core.quantize import fake_quantize as fq
from ldp_search.core.quantize.gradient_quantizers import Stochastic, SymmetricStochastic
from ldp_search.core.quantize.grid import Grid, measure

LAYOUTS = {  # name: (shape, its order in memory, axis of its channels or None)
    "whole": ((3, 5, 7), torch.contiguous_format, None),
    "large": ((1023, 4097), torch.contiguous_format, None),
    "channels outermost": ((48, 32, 3, 3), torch.contiguous_format, 0),
    "long channels": ((3, 90001), torch.contiguous_format, 0),
    "channels in the middle": ((65, 6, 99), torch.contiguous_format, 1),
    "channels innermost": ((2049, 768), torch.contiguous_format, 1),
    "channels last": ((64, 16, 15, 15), torch.channels_last, 1),
}
CASES = [(name, torch.float32) for name in LAYOUTS]
CASES += [("large", torch.bfloat16), ("channels last", torch.bfloat16), ("large", torch.float16)]
GRAD_QUANTIZERS = Stochastic(), SymmetricStochastic()


def close(a, b, room) -> bool:
    return bool(((a - b).abs() <= room).all())


def grids(x, axis) -> dict[str, Grid]:
    """An affine one of the whole range, and a symmetric one that clips."""
    low, high, _ = measure(x, axis)
    bound = 0.6 * torch.maximum(-low, high)
    return {"affine": Grid((high - low) / 255, low), "clipped": Grid(bound / 7, None, -bound, bound)}


def different(name: str, dtype: torch.dtype) -> list[str]:
    """Which passes differ on a tensor of this layout. Waiting for the device is an error while the Triton passes run."""
    shape, memory, axis = LAYOUTS[name]
    x = torch.randn(shape, device="cuda").to(dtype, memory_format=memory)
    bits = torch.full((), 4.0, device="cuda")
    with native.disabled():
        known, expected = grids(x, axis), measure(x, axis, spread=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = measure(x, axis, spread=True)
        rounded = {form: fq.rounded(x, grid, dtype) for form, grid in known.items()}
        gradients = {form: fq.backward(x.clone(), x, grid, True) for form, grid in known.items()}
        drawn = [(*quantizer.grid(x, bits), quantizer(x, bits)) for quantizer in GRAD_QUANTIZERS]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    wrong = []
    if not all(torch.equal(a, b) for a, b in zip(found[:2], expected[:2], strict=True)):
        wrong.append("range")
    if not close(found.spread, expected.spread, 1e-5 * expected.spread):
        wrong.append("mean magnitude")
    for form, grid in known.items():
        with native.disabled():
            want = fq.rounded(x, grid, dtype)
            want_g, want_grid = fq.backward(x.float().clone(), x.float(), grid, True)
        g, of_grid = gradients[form]
        if not torch.equal(rounded[form], want):
            wrong.append(f"rounding, {form}")
        room = 2e-6 * x.float().abs().sum_to_size(grid.scale.shape)
        if not torch.equal(g.float(), want_g) or not all(
            a is None or close(a, b, room) for a, b in zip(of_grid, want_grid, strict=True)
        ):
            wrong.append(f"gradients, {form}")
    for scale, _, _, y in drawn:
        error = (y.float() - x.float()) / scale
        room = 0.001 + float(x.float().abs().max() / scale) * torch.finfo(dtype).eps  # of the result's type
        if error.abs().max() > 1 + room or error.mean().abs() > 6 * 0.5 / x.numel() ** 0.5 + room:
            wrong.append("stochastic rounding")
    return wrong


def slices_differ() -> bool:
    """Scales of samples: on the grid of each, and the variance is the formula's."""
    x = torch.randn(100, 777, device="cuda")
    scale, passes = x.abs().amax(1, keepdim=True) / 7, cuda.passes(x)
    y, variance = passes.stochastic(
        x, scale, None, torch.full((), 7.0, device="cuda"), passes.draw_seed(x.device), x.dtype,
        shape_along(x, (0,)), variance=True,
    )  # fmt: skip
    f = x / scale - (x / scale).floor()
    want = (scale**2 * f * (1 - f)).sum(1)
    return not (close(y, x, 1.001 * scale) and close(variance, want, 1e-4 * want))


def graph_differs() -> bool:
    """A captured range, rounding and stochastic rounding follow their input, and draw anew at each replay."""
    x, bits = torch.randn(300, 400, device="cuda"), torch.full((), 4.0, device="cuda")

    def run():
        return fq.rounded(x, grids(x, None)["affine"]), SymmetricStochastic()(x, bits)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        rounded, drawn = run()
    x.mul_(3)
    graph.replay()
    first = drawn.clone()
    graph.replay()
    scale = SymmetricStochastic().grid(x, bits)[0]
    return not torch.equal(rounded, run()[0]) or torch.equal(first, drawn) or not close(first, x, 1.001 * scale)


def step_differs() -> bool:
    """Outputs, gradients and moving averages of a step whose gradients are not rounded."""
    results = []
    for off in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10)).cuda()
        x = torch.randn(64, 16, 8, 8, device="cuda")
        ldp_search.apply(model, {"bits": (3, 8), "grad_bits": 32, "target_cost": 0.5}, x[:1])
        with native.disabled() if off else nullcontext():
            y = model(x)
            y.square().mean().backward()
        ldp = ldp_search.controller(model)
        results.append([y, *(p.grad for p in model.parameters()), ldp.parameters()["bits"].grad])
    return not all(close(a, b, 1e-3 * b.abs().max()) for a, b in zip(*results, strict=True))


OTHERS = {"a scale a sample": slices_differ, "a captured graph": graph_differs, "a step": step_differs}


def run_checks(enough_time) -> dict[str, list[str]]:
    """{case: what differs}, empty where all is well; enough_time(): whether another case fits."""
    wrong, done = {}, 0
    for name, differs in OTHERS.items():
        if differs():
            wrong[name] = ["results"]
    for name, dtype in CASES:
        if not enough_time():
            break
        done += 1
        if found := different(name, dtype):
            wrong[f"{name}, {dtype}"] = found
    print(f"checks: {done} of {len(CASES)} layouts, {', '.join(OTHERS)}; different: {wrong or 'nothing'}")
    return wrong
