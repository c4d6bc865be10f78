"""A forward, its backward and `ldp.step` on CUDA, without a GPU: on fake tensors, where mixed devices and transfers to the host
raise.

Autograd's engine refuses fake CUDA tensors, so what each product would be called with in backward is called directly.
"""

import dataclasses

import pytest
import timm
import torch
from breadth import breadth
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from transformers import GPT2Config, GPT2LMHeadModel

import ldp_search
import ldp_search.runner.models.cifar  # noqa: F401  (registers the CIFAR networks with timm)
from ldp_search.core.backends import simulate
from ldp_search.core.backends.int8 import backend as int8
from ldp_search.core.bits import damage
from ldp_search.core.controller import damage_sensor
from ldp_search.core.controller.tensors import NAMES

SMALL_GPT2 = GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=1, n_head=2)


def gpt2():
    SMALL_GPT2.use_cache = False
    return GPT2LMHeadModel(SMALL_GPT2)


def convolutions():
    """As many layers as there are kinds of them, one grouped."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, bias=False), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1, groups=2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 3),
    )  # fmt: skip


MODELS = {
    "convolutions": (convolutions, lambda: torch.randn(2, 3, 16, 16)),
    "resnet20": (lambda: timm.create_model("cifar_resnet20"), lambda: torch.randn(2, 3, 16, 16)),
    "vit": (lambda: timm.create_model("test_vit", img_size=32), lambda: torch.randn(2, 3, 32, 32)),
    "gpt2": (gpt2, lambda: torch.randint(0, 50, (2, 8))),
}
SPACES = {
    "learned": {"policy": "learned", "target_cost": 0.5},
    "ldp_sgd": {"policy": "ldp_sgd", "target_cost": 0.5},
    "random": {"policy": "random", "target_cost": 0.5},
    "static": {"policy": "static"},
    "cyclic": {"policy": "cyclic"},
    "progressive": {"policy": {"name": "progressive", "window": 100}},
    "interpolate": {"policy": "bit_gradient", "target_cost": 0.5, "relaxation": "interpolate"},
    "sample": {"policy": "bit_gradient", "target_cost": 0.5, "relaxation": "sample"},
    "clip": {"policy": "bit_gradient", "target_cost": 0.5, "weight_quantizer": "clip", "input_quantizer": "clip"},
    "symmetric": {"policy": "bit_gradient", "target_cost": 0.5, "weight_quantizer": "symmetric", "input_quantizer": "symmetric",
                  "grad_quantizer": "symmetric"},
    "attention": {"policy": "learned", "target_cost": 0.5, "attention": True, "embeddings": True},
    "int8": {"policy": "static", "backend": {"name": "int8", "choose": "always"}},
    "16bit": {"policy": "static", "activations": "16bit"},
    "reference": {"policy": "static", "backend": "reference"},
}  # fmt: skip
TABLE = {
    "convolutions": ("clip", "random", "static", "ldp_sgd"),
    "resnet20": ("learned", "ldp_sgd", "interpolate", "clip", "int8", "16bit"),
    "vit": ("learned", "random", "static", "sample", "symmetric", "attention"),
    "gpt2": ("learned", "cyclic", "progressive", "attention", "int8", "16bit", "reference"),
}
CASES = [(model, space) for model, spaces in TABLE.items() for space in spaces]
ALWAYS = [(model, space) for model in ("gpt2", "convolutions") for space in TABLE[model]]


class Recorder:
    """Notes the contexts of a product's forwards, as autograd would keep them."""

    def __init__(self, monkeypatch, *functions):
        self.calls = []
        for function in functions:
            monkeypatch.setattr(function, "apply", self._apply(function))

    def _apply(self, function):
        def apply(*args):
            context = _Context(args)
            out = function.forward(context, *args)
            self.calls.append((function, context, out))
            return out

        return apply


class _Context:
    """What stands for autograd's: everything needs a gradient that may have one."""

    def __init__(self, args):
        self.needs_input_grad = tuple(isinstance(x, torch.Tensor) and x.is_floating_point() for x in args)
        self.saved_tensors = ()

    def save_for_backward(self, *tensors):
        self.saved_tensors = tensors

    def mark_dirty(self, *tensors):
        """Nothing follows from it here."""


def to_cuda(mode, module) -> None:
    """Every parameter and buffer as a fake CUDA tensor."""
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = fake(mode, tensor)


def controller_to_fake(mode, ldp) -> None:
    """The tensors of the controller and of its policy as fake ones, still on the CPU."""
    for name in NAMES:
        setattr(ldp.tensors, name, mode.from_tensor(getattr(ldp.tensors, name)))
    ldp.levels = mode.from_tensor(ldp.levels)
    if ldp.sensor is not None:
        record = ldp.sensor.record
        record.levels, record.places = mode.from_tensor(record.levels), mode.from_tensor(record.places)
        record.curves, record.scalars, record.sketch = (mode.from_tensor(tensor) for tensor in record.tensors())
    fields = {field.name: getattr(ldp.problem, field.name) for field in dataclasses.fields(ldp.problem)}
    problem = {name: mode.from_tensor(value) for name, value in fields.items() if isinstance(value, torch.Tensor)}
    ldp.problem = ldp.policy.problem = dataclasses.replace(ldp.problem, **problem)
    ldp.policy.state = pytree.tree_map_only(torch.Tensor, mode.from_tensor, ldp.policy.state)


def fake(mode, tensor):
    made = mode.from_tensor(tensor).detach().to("cuda")
    return torch.nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else made


def takes_in(meter, sensed, terms, others, share, known) -> None:
    """As `DamageMeter.update`, of a step that did not overflow."""
    meter._take_in(*(tensor.to("cpu", torch.float64) for tensor in (*sensed.tensors(), terms, *others, share, known)))


def paths(sensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `DamageSensor._paths`, of a graph that tells of nothing."""
    shape = len(sensor.specs), len(sensor.specs) + len(sensor.others.holders)
    return sensor.record.curves.new_zeros(shape), sensor.record.curves.new_ones(shape)


@pytest.fixture
def on_cuda(monkeypatch):
    """CUDA's own questions, which there is no driver to answer."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(int8, "misfit", lambda call: None)


@breadth("model, space", CASES, always=ALWAYS, ids=lambda value: value)
def test_a_step_runs_on_cuda_alone(model, space, on_cuda, monkeypatch):
    make, inputs = MODELS[model]
    torch.manual_seed(0)
    network, x = make(), inputs()
    ldp_search.apply(network, example_inputs=x[:1], **SPACES[space])
    ldp = ldp_search.controller(network)
    # Fake tensors have no values to ask for.
    monkeypatch.setattr(damage.DamageMeter, "update", takes_in)
    monkeypatch.setattr(damage_sensor.DamageSensor, "_paths", paths)
    monkeypatch.setattr(damage_sensor.DamageSensor, "_clipped", lambda sensor, factor: 1.0)
    seen = Recorder(monkeypatch, simulate._Product, int8._Product)
    with FakeTensorMode() as mode, torch.no_grad():
        to_cuda(mode, network)
        controller_to_fake(mode, ldp)
        ldp.to("cuda")
        y = network(mode.from_tensor(x).to("cuda"))
        y = y.logits if hasattr(y, "logits") else y
        assert y.device.type == "cuda"
        for function, context, out in seen.calls:
            gradients = function.backward(context, torch.empty_like(out))
            assert {g.device.type for g in gradients if g is not None} <= {"cuda"}
        ldp.step(0.01, loss=y.float().mean())
        assert {tensor.device.type for tensor in ldp.tensors.all()} == {"cuda"}
    products = len(seen.calls)
    assert products or space in ("interpolate", "reference"), "the products' own backward was reached"
