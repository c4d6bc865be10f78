"""Products outside of layers, met in their owner's forward: whose row they are, quantized once, exact when off."""

import copy

import pytest
import torch
from torch import nn

import ldp_search


class Attention(nn.Module):
    """Every form of product that a layer class cannot hold: @, bmm, einsum, a raw parameter, a weight read from outside."""

    def __init__(self, width=16):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.mix = nn.Parameter(torch.randn(width, width) * 0.1)
        self.outer = nn.Linear(width, width, bias=False)

    def forward(self, x):
        weights = (self.q(x) @ self.k(x).transpose(1, 2) / 4).softmax(-1)
        mixed = torch.einsum("bij,jk->bik", torch.bmm(weights, self.v(x)), self.mix)
        return nn.functional.linear(mixed, self.outer.weight)


TOKENS, WIDTH = 5, 16
ATTENTION_MACS = 2 * TOKENS * TOKENS * WIDTH  # QK and PV
WEIGHT_MACS = TOKENS * WIDTH * WIDTH  # the einsum, and the linear from outside


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, WIDTH), Attention(), nn.Flatten(), nn.Linear(TOKENS * WIDTH, 3))


@pytest.fixture
def x():
    return torch.randn(2, TOKENS, 8, generator=torch.Generator().manual_seed(1))


def test_attention_is_left_out_by_default_named_and_costed(model, x):
    ldp = ldp_search.controller(ldp_search.apply(model, example_inputs=x))
    assert [(item.name, item.macs) for item in ldp.coverage.left_out] == [("1", ATTENTION_MACS // 2)] * 2
    assert [item.reason.partition(" of ")[0] for item in ldp.coverage.left_out] == ["matmul", "bmm"]
    assert all("attention=True" in item.reason for item in ldp.coverage.left_out)
    assert ldp.cost().left_out_bitops == 3 * 32 * 32 * ATTENTION_MACS
    assert list(ldp.layers) == ["0", "1.mix", "1.q", "1.k", "1.v", "1.outer", "3"]


def test_everything_has_its_row_with_attention(model, x):
    ldp = ldp_search.controller(ldp_search.apply(model, example_inputs=x, attention=True))
    assert ldp.coverage == (1, []) and ldp.cost().left_out_bitops == 0
    specs = {name: (s.kind, s.macs, s.weight_numel) for name, s in ldp.layers.items()}
    assert specs["1.mix"] == ("einsum", WEIGHT_MACS, WIDTH * WIDTH)
    assert specs["1.outer"] == ("Linear", WEIGHT_MACS, WIDTH * WIDTH)
    assert specs["1.products"] == ("products", ATTENTION_MACS, 0)


@pytest.mark.parametrize(("bits", "most"), [(16, 1e-4), (8, 0.05)])
def test_close_at_many_bits_and_exact_when_off(model, x, bits, most):
    before = model(x)
    ldp_search.apply(model, example_inputs=x, attention=True, policy="static", bits=bits)
    error = (model(x) - before).abs().max() / before.abs().max()
    assert 0 < error < most
    with ldp_search.controller(model).disabled():
        assert torch.equal(model(x), before)
    ldp_search.remove(model)
    assert type(model[1]) is Attention and torch.equal(model(x), before)


def test_their_own_products_are_quantized_once_and_layers_inside_by_themselves(model, x):
    """With the owner at 16 bits, its layers at 3 bits give what they give without the owner (up to the 16-bit rounding)."""
    fixed = {"1.products": 16, "*.q": 3, "*.k": 3, "*.v": 3}
    rest = {"bits": 16, "policy": "static", "weight_quantizer": "symmetric", "input_quantizer": "symmetric"}
    both, layers = copy.deepcopy(model), copy.deepcopy(model)
    ldp_search.apply(both, example_inputs=x, attention=True, fixed=fixed, **rest)
    ldp_search.apply(layers, example_inputs=x, fixed={k: v for k, v in fixed.items() if k != "1.products"}, **rest)
    plain = model(x)
    assert (both(x) - layers(x)).abs().max() < 0.01 * (layers(x) - plain).abs().max()


@pytest.mark.parametrize("relaxation", ["round", "interpolate", "sample"])
def test_gradient_reaches_every_rows_bits(model, x, relaxation):
    space = {"policy": "bit_gradient", "target_cost": 0.5, "relaxation": relaxation, "bits": (3, 6)}
    ldp = ldp_search.controller(ldp_search.apply(model, space, example_inputs=x, attention=True))
    model(x).square().mean().backward()
    grad = ldp.parameters()["bits"].grad
    assert torch.isfinite(grad).all() and (grad[:, :2] != 0).all()
    ldp.step(0.5)


def test_copies_are_independent(model, x):
    ldp_search.apply(model, example_inputs=x, attention=True)
    other = copy.deepcopy(model)
    assert torch.equal(model(x), other(x))
    ldp_search.remove(model)
    assert ldp_search.controller(other).coverage.share == 1 and type(other[1]) is not Attention


def test_without_inputs_the_first_forward_finds_them(model, x):
    late, early = copy.deepcopy(model), model
    ldp_search.apply(late, "static", bits=5, attention=True)
    assert "1.products" not in ldp_search.controller(late).layers
    ldp_search.apply(early, "static", bits=5, attention=True, example_inputs=x)
    assert torch.equal(late(x), early(x))
    late, early = ldp_search.controller(late), ldp_search.controller(early)
    assert late.layers == early.layers and late.bits() == early.bits() and late.coverage == early.coverage


class Nested(nn.Module):
    """An owner around an owner around a layer."""

    def __init__(self, inside=None):
        super().__init__()
        self.inside, self.weight = inside, nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return self.inside(x) @ self.weight


@pytest.mark.parametrize(("skip", "kept"), [(["inside.inside"], "inside.inside"), (["inside", "inside.inside"], "inside")])
def test_what_is_skipped_inside_an_owner_stays_exact(skip, kept):
    """`inside` is both the row of a raw weight and an owner around a layer."""
    model, x, seen = Nested(Nested(nn.Linear(4, 4))), torch.randn(3, 4), []
    model.get_submodule(kept).register_forward_hook(lambda module, inputs, output: seen.append(output))
    original = model(x)
    ldp_search.apply(model, "static", bits=2, skip=skip, example_inputs=x)
    del seen[1:]
    assert not torch.equal(model(x), original) and torch.equal(seen[-1], seen[0])
    assert type(ldp_search.remove(model).inside.inside) is nn.Linear and torch.equal(model(x), original)


class Experts(nn.Module):
    """Some experts get no tokens; the sum is added to in place."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 4))

    def forward(self, x, chosen):
        y = nn.functional.conv1d(x.t()[None], torch.ones(4, 4, 1))[0].t()
        for expert in range(3):
            y[chosen == expert] += nn.functional.linear(x[chosen == expert], self.weight[expert])
        return y


def test_experts_share_a_row_and_may_be_idle():
    model, x = Experts(), torch.randn(5, 4)
    ldp_search.apply(model, "static", bits=4, example_inputs=(x, torch.tensor([0, 0, 1, 1, 0])))
    ldp = ldp_search.controller(model)
    assert ldp.layers["weight"].kind == "linear" and ldp.layers["weight"].weight_numel == 48
    model(x, torch.tensor([2, 2, 2, 0, 2])).sum().backward()
    assert ldp.ranges.shape[0] == len(ldp.layers) and model.weight.grad[2].any() and not model.weight.grad[1].any()


@pytest.mark.parametrize("kwargs", [{"pixel_values": torch.zeros(6, 4), "input_ids": torch.zeros(2, 4)}])
def test_samples_are_counted_on_the_main_input(kwargs):
    class Both(nn.Module):
        main_input_name = "input_ids"

        def __init__(self):
            super().__init__()
            self.see, self.read = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, pixel_values, input_ids):
            return self.see(pixel_values).sum() + self.read(input_ids)

    ldp = ldp_search.controller(ldp_search.apply(Both(), "static", bits=4, example_inputs=kwargs))
    assert {name: spec.macs for name, spec in ldp.layers.items()} == {"see": 3 * 16, "read": 16}


def test_an_empty_layer_inside_an_owner_is_no_product_of_it(recwarn):
    model = Nested(nn.Linear(4, 4))
    ldp_search.apply(model, "static", bits=2, example_inputs=torch.randn(3, 4))
    assert model(torch.empty(0, 4)).shape == (0, 4) and not recwarn.list


class Computed(nn.Module):
    """Two weights of one shape, each changed before its use."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        for weight in (self.first, self.second):
            x = nn.functional.linear(x, weight / weight.norm(dim=1, keepdim=True)).relu()
        return x


@pytest.mark.parametrize("skip", ["first", "second"])
def test_computed_weights_of_one_shape_are_told_apart(skip):
    model, x = Computed(), torch.randn(3, 4)
    ldp = ldp_search.controller(
        ldp_search.apply(model, {"policy": "bit_gradient"}, bits=(2, 6), cost_weight=0.1, skip=[skip], example_inputs=x)
    )
    model(x).sum().backward()
    grad = dict(zip(ldp.layers, ldp.parameters()["bits"].grad, strict=True))
    searched = {"first": "second", "second": "first"}[skip]
    assert grad[searched][:2].all() and not grad[skip].any()


class Cached(nn.Module):
    """Writes into a buffer what depends on the input, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.keys = nn.Linear(4, 4)
        self.register_buffer("cache", torch.zeros(8, 4))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.cache[: len(x)] = self.keys(x).detach()
        return x @ self.cache.t()


@pytest.mark.parametrize("given", [True, False])
def test_buffers_are_left_alone_and_what_is_written_is_no_weight(given):
    model, x = Cached(), torch.randn(3, 4)
    ldp_search.apply(model, "static", bits=8, example_inputs=x if given else None)
    assert model.calls == 0 and not model.cache.any()
    model(x)
    ldp = ldp_search.controller(model)
    assert model.calls == 1 and list(ldp.layers) == ["keys"]
    assert [item.reason.partition(";")[0] for item in ldp.coverage.left_out] == ["matmul of two activations"]


def test_the_first_forward_is_one_like_all_others():
    """It counts, on copies of what it is given, and quantizes the model's own products as the later ones do."""

    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))
            self.layer = nn.Linear(4, 4)

        def forward(self, x, seen):
            seen.append(len(seen))
            return self.layer(x) @ self.weight * len(seen)

    model, x, seen = Root(), torch.randn(3, 4), []
    ldp_search.apply(model, "static", bits=3)
    first = model(x, seen)
    assert seen == [0] and torch.equal(first, model(x, [])) and not torch.equal(first, ldp_search.remove(model)(x, []))


def test_an_error_of_the_first_forward_is_said_every_time():
    model, x = Computed(), torch.randn(3, 4)
    model.layer = nn.Linear(4, 4)
    ldp_search.apply(model, skip=["*typo"])
    for _ in range(2):
        with pytest.raises(ValueError, match="the pattern .*typo.* matches no layer"):
            model(x)


def test_threads_do_not_meet():
    from concurrent.futures import ThreadPoolExecutor

    model = nn.Sequential(Nested(nn.Linear(4, 4)), Computed()).eval()
    inputs = [torch.randn(3, 4) for _ in range(40)]
    ldp_search.apply(model, "static", bits=4, example_inputs=inputs[0])
    with torch.no_grad():
        expected = [model(x) for x in inputs]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(torch.no_grad()(model), inputs))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_counting_in_inference_mode_leaves_a_model_that_trains():
    model, x = nn.Sequential(nn.Linear(4, 4), Computed()), torch.randn(3, 4)
    ldp_search.apply(model, bits=(3, 6))
    with torch.inference_mode():
        model.eval()(x)
    model.train()(x).sum().backward()
    ldp = ldp_search.controller(model)
    ldp.step(0.5)
    assert list(ldp.layers) == ["0", "1.first", "1.second"]
