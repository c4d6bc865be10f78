"""A process that test_memory.py starts: trains small models under every default, prints one line a case, dies where C does.

A line is `begin CASE`, then `end CASE WORDS`, WORDS being "same" or what differs. A crash leaves a case that began and did not
end.
"""

import contextlib

import torch
from torch import nn

import ldp_search

POLICIES = {
    "static": {"policy": "static"},
    "learned": {"policy": "learned", "target_cost": 0.5},
    "ldp_sgd": {"policy": "ldp_sgd", "target_cost": 0.5},
    "random": {"policy": "random", "target_cost": 0.5},
    "cyclic": {"policy": "cyclic"},
    "progressive": {"policy": {"name": "progressive", "window": 2}},
    "sample": {"policy": "learned", "target_cost": 0.5, "relaxation": "sample"},
    "interpolate": {"policy": "learned", "target_cost": 0.5, "relaxation": "interpolate"},
    "clip": {"policy": "static", "weight_quantizer": "clip", "input_quantizer": "clip"},
    "int8": {"policy": "static", "backend": {"name": "int8", "choose": "always"}},
    "16bit": {"policy": "static", "activations": "16bit"},
    "reference": {"policy": "static", "backend": "reference"},
}
DEFAULTS = ((torch.bfloat16, None), (torch.float64, None), (torch.float32, "meta"), (torch.float16, "meta"))
"""(dtype, device). meta: whatever is made on it has no memory, so that a kernel that met it would write to address 0."""
CASES = [*((name, torch.float32) for name in POLICIES), ("static", torch.bfloat16), ("clip", torch.bfloat16)]
"""(policy, dtype of the model). Each meets every other default: one dtype, and one device."""
STEPS = 3


@contextlib.contextmanager
def defaults(dtype, device):
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def made(space: dict, dtype: torch.dtype):
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 16), nn.ReLU(), nn.Linear(16, 4)
    model = nn.Sequential(*layers)
    x = torch.randn(STEPS, 6, 2, 6, 6)
    return model.to(dtype), x.to(dtype)


def trained(model, x, space: dict) -> list[torch.Tensor]:
    """Outputs, bits, ranges, weights and an evaluation after a training of some steps; `apply` is part of it."""
    ldp_search.apply(model, "static", example_inputs=x[0, :2], **{"bits": (3, 8), "target_cost": None, **space})
    ldp, out = ldp_search.controller(model), []
    torch.manual_seed(1)
    for step, batch in enumerate(x):
        y = model(batch)
        loss = y.float().square().mean()
        loss.backward()
        ldp.step((step + 1) / STEPS, loss=loss.detach())
        with torch.no_grad():
            for p in model.parameters():
                p.sub_(p.grad, alpha=0.1)
                p.grad = None
        out += [y.detach().clone(), ldp.parameters()["bits"].detach().clone()]
    ldp.finalize([x[0]])
    with torch.inference_mode():
        out.append(model.eval()(x[0]).clone())
    return [*out, ldp.ranges.clone(), *(p.detach().clone() for p in model.parameters()), ldp.parameters()["bits"]]


def differences(one: list, other: list) -> str:
    """The first place where two trainings differ, bitwise."""
    for place, (a, b) in enumerate(zip(one, other, strict=True)):
        if a.dtype != b.dtype or a.device != b.device or not torch.equal(a, b):
            return f"place {place}: {a.dtype} {a.device} and {b.dtype} {b.device} differ"
    return "same"


def main() -> None:
    torch.set_num_threads(1)
    for place, (name, dtype) in enumerate(CASES):
        expected = trained(*made(POLICIES[name], dtype), POLICIES[name])
        for default, device in DEFAULTS[place % 2 :: 2]:
            case = f"{name}/{dtype}/{default}/{device}".replace("torch.", "")
            print("begin", case, flush=True)
            model, x = made(POLICIES[name], dtype)
            with defaults(default, device):
                found = trained(model, x, POLICIES[name])
            print("end", case, differences(expected, found), flush=True)


if __name__ == "__main__":
    main()
