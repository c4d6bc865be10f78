"""activations="16bit": what a forward keeps for backward takes half the bytes, and the gradients stay what they were."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from older import COMPILED
from torch import nn
from torch.utils.checkpoint import checkpoint

import ldp_search
from ldp_search.core import native
from ldp_search.core.backends import saved_activations
from ldp_search.runner.bench.timing import saved_bytes


def convolutional():
    block = [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *block, *copy.deepcopy(block), nn.Flatten(), nn.Linear(8 * 256, 5))


def transformer():
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, activation="gelu", batch_first=True)
    return nn.Sequential(layer, copy.deepcopy(layer), nn.Flatten(), nn.Linear(16 * 32, 5))


MODELS = {"convolutional": (convolutional, (16, 3, 16, 16)), "transformer": (transformer, (32, 16, 32))}
EVERY = pytest.mark.parametrize("name", MODELS)


def searched(name, mode, **options):
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = make(), torch.randn(shape)
    space = {"policy": "bit_gradient", "grad_bits": 32, "target_cost": 0.6, "activations": mode} | options
    return ldp_search.apply(model, space, example_inputs=x[:2]), x


def gradients(model, x) -> dict:
    """Of the weights, and of the bits."""
    model.zero_grad()
    F.cross_entropy(model(x), torch.arange(len(x)) % 5).backward()
    ldp = ldp_search.controller(model)
    return {name: p.grad.clone() for name, p in model.named_parameters()} | {"bits": ldp.parameters()["bits"].grad.clone()}


def kept_bytes(model, x) -> int:
    return saved_bytes(model, lambda: model(x).sum())


@EVERY
def test_half_the_bytes(name):
    exact, half = (kept_bytes(*searched(name, mode)) for mode in ("exact", "16bit"))
    plain, x = MODELS[name][0](), torch.randn(MODELS[name][1])
    assert exact == pytest.approx(kept_bytes(plain, x), rel=0.02)
    assert half < 0.55 * exact


@EVERY
@pytest.mark.parametrize("formulas", [False, True])
def test_gradients_are_those_of_exact(name, formulas):
    exact = gradients(*searched(name, "exact"))
    with native.disabled() if formulas else torch.enable_grad():
        half = gradients(*searched(name, "16bit"))
    for key, value in exact.items():
        if value.abs().max() > 1e-6:  # the bias before a batch norm has no gradient but noise
            error = float((half[key] - value).norm() / value.norm())
            assert error < (5e-2 if key == "bits" else 1e-2), (key, error)
    assert any(not torch.equal(half[key], value) for key, value in exact.items()), "something was packed"


@EVERY
def test_damages_are_those_of_exact(name):
    curves = []
    for mode in ("exact", "16bit"):
        model, x = searched(name, mode, policy="learned", grad_bits=8, grad_quantizer="per_sample", sense_every=1)
        gradients(model, x)
        ldp = ldp_search.controller(model)
        ldp.step(0.1)
        curves.append(ldp.sensor.curves(3))
    known = curves[0] > curves[0].max() * 1e-4
    assert known.any() and ((curves[1] / curves[0])[known].log2().abs() < 0.3).all()


def test_a_relu_knows_its_zeros():
    x = torch.randn(3, 50_000).relu_() * torch.logspace(-12, 3, 50_000)
    packed = saved_activations.Packed(x, None)
    assert torch.equal(packed.unpack().view_as(x) > 0, x > 0)


def test_an_estimate_of_the_bits_gradients_has_no_bias():
    """Its square is what the policy reads: the same for every number of bits, within 2 %."""
    torch.manual_seed(0)
    x, g = torch.randn(1 << 18), torch.randn(64, 1 << 18)
    restored = saved_activations.Packed(x, None).unpack()
    for bits in (3, 8):
        scale = (x.max() - x.min()) / (2**bits - 1)
        errors = [torch.round((v - x.min()) / scale) * scale + x.min() - v for v in (x, restored)]
        exact, half = ((g @ e).square().mean() for e in errors)
        assert float(half / exact) == pytest.approx(1, abs=0.02)


def test_what_is_saved_twice_is_packed_once_and_memory_used_again_is_told_apart():
    model = nn.Linear(4, 4)
    keeper = saved_activations.Keeper(model)
    x = torch.randn(100, 100)
    one, other = keeper._pack(x), keeper._pack(x.detach())
    assert one[0] is other[0] and keeper._pack(x.view(10, 1000))[0] is one[0]
    x.add_(1)
    assert keeper._pack(x)[0] is not one[0], "changed since"
    for _ in range(20):  # the allocator gives the same addresses again
        y = torch.randn(100, 100)
        expected = y.clone()
        packed = keeper._pack(y)
        del y
        torch.testing.assert_close(keeper._unpack(packed), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [lambda x: x.t(), lambda x: x[:, :100], lambda x: x[:, ::2], lambda x: x.to(memory_format=torch.channels_last)],
    ids=["transposed", "a part", "strided", "channels last"],
)
def test_layouts(make):
    x = make(torch.randn(64, 8, 16, 16) if "channels_last" in str(make.__code__.co_names) else torch.randn(200, 300))
    keeper = saved_activations.Keeper(nn.Linear(1, 1))
    back = keeper._unpack(keeper._pack(x))
    assert back.shape == x.shape
    torch.testing.assert_close(back, x, rtol=0, atol=1e-3)


def test_what_stays_as_it_is():
    model = nn.Linear(100, 100)
    keeper = saved_activations.Keeper(model)
    for x in (model.weight.detach(), model.weight.t(), torch.randn(10), torch.randn(1, 100).expand(100, 100),
              torch.ones(9999, dtype=torch.int64), torch.randn(100, 100, dtype=torch.float64)):  # fmt: skip
        assert keeper._pack(x) is x


def test_weights_computed_before_use_stay_exact():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(128, 128)))
    x = torch.randn(64, 128)
    ldp_search.apply(model, "ldp", example_inputs=x, target_cost=0.6, activations="16bit")
    model(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_context_ends_with_the_forward_whatever_happens():
    model, x = searched("convolutional", "16bit")
    gradients(model, x)
    with pytest.raises(RuntimeError):
        model(x[:, :1])
    assert not saved_activations._running.keepers
    y = torch.randn(100, 100, requires_grad=True)
    kept = (y * y).grad_fn._saved_self
    assert kept is y, "outside of the model nothing is packed"
    with torch.no_grad():
        model(x)
    assert not saved_activations._running.keepers


def test_off_removed_copied():
    model, x = searched("convolutional", "16bit")
    twin = copy.deepcopy(model)
    for key, value in gradients(model, x).items():
        assert torch.equal(gradients(twin, x)[key], value) or key == "bits"
    assert kept_bytes(twin, x) == kept_bytes(model, x)
    with ldp_search.controller(model).disabled():
        off = kept_bytes(model, x)
    ldp_search.remove(model)
    assert not model._forward_hooks and not model._forward_pre_hooks
    assert kept_bytes(model, x) == off > 1.8 * kept_bytes(twin, x)


def test_checkpointed_parts_and_two_forwards_before_backward():
    exact, half = (searched("convolutional", mode)[0] for mode in ("exact", "16bit"))
    x = torch.randn(16, 3, 16, 16)
    results = []
    for model in (exact, half):
        inner = copy.deepcopy(model[1:4])
        model[1:4].forward = lambda v, part=model[1:4]: part(v)
        y = model(x) + model(x * 2)
        y = y + checkpoint(lambda v, m=model: m(v), x, use_reentrant=False)
        y.square().mean().backward()
        results.append([p.grad.clone() for p in model.parameters()])
        del inner
    for one, other in zip(*results, strict=True):
        if one.abs().max() > 1e-6:
            assert (one - other).norm() < 5e-3 * one.norm()


@COMPILED
def test_compiled_it_keeps_what_the_compiler_keeps():
    options = {"policy": "bit_gradient", "target_cost": 0.6, "grad_bits": 32}  # one that measures nothing breaks no graph
    models = [ldp_search.apply(nn.Sequential(nn.Linear(64, 64)), "ldp", torch.ones(1, 64), activations=mode, **options)
              for mode in ("16bit", "exact")]  # fmt: skip
    models[1].load_state_dict(models[0].state_dict())
    compiled, x = torch.compile(models[0], backend="eager", fullgraph=True), torch.randn(100, 64)
    y = compiled(x)
    y.sum().backward()
    models[1](x).sum().backward()
    torch.testing.assert_close(y, models[1](x))
    torch.testing.assert_close(models[0][0].weight.grad, models[1][0].weight.grad)
    assert not saved_activations._running.keepers


def test_the_memory_comes_back(monkeypatch):
    model, x = searched("convolutional", "16bit")
    made, original = [], saved_activations.Keeper

    def keeper(model):
        out = original(model)
        made.append(weakref.ref(out))
        return out

    monkeypatch.setattr(saved_activations, "Keeper", keeper)
    gradients(model, x)
    gc.collect()
    assert len(made) == 1 and made[0]() is None


@pytest.mark.parametrize("value", ["hlaf", 8])
def test_an_unknown_mode_is_an_error_with_the_known_ones(value):
    with pytest.raises(ValueError, match="activations.*(16bit|word)"):
        ldp_search.SearchSpace(activations=value)
