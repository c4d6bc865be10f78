"""The exact accounting: what training really computes, to the operation; and the published one beside it."""

import copy
import warnings

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForSequenceClassification

import ldp_search
import ldp_search.runner.models.cifar  # noqa: F401 (the import registers the names)
from ldp_search.core.apply import apply
from ldp_search.core.profile import profiler
from ldp_search.core.profile.records import ModelProfile

BATCH = 2


class Adapted(nn.Module):
    """A frozen layer with a trained one of low rank beside it (LoRA)."""

    def __init__(self, layer: nn.Linear, rank: int = 2):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down, self.up = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


class Odd(nn.Module):
    """What a forward may do on the way: detach, write in place, a buffer as an input, two layers over one weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d, self.tied = (nn.Linear(6, 6) for _ in range(5))
        self.register_buffer("table", torch.randn(6, 6))
        self.tied.weight = self.a.weight

    def forward(self, x):
        x = self.a(x).detach()  # nothing behind needs a's gradients through here
        held = x.clone()
        held[:, :3] = self.b(x)[:, :3]  # from here on trained
        y = self.c(held).relu_() + self.c(x) + self.tied(x)
        return self.d(self.table)[:1] + y


def _frozen(model: nn.Module, share: float) -> nn.Module:
    parameters = list(model.parameters())
    for parameter in parameters[: int(share * len(parameters))]:
        parameter.requires_grad_(False)
    return model


def tiny_bert() -> nn.Module:
    sizes = {"vocab_size": 13, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return BertForSequenceClassification(BertConfig(**sizes, max_position_embeddings=8, attn_implementation="eager")).eval()


def _adapted_bert() -> nn.Module:
    model = tiny_bert().requires_grad_(False)
    for layer in model.bert.encoder.layer:
        layer.attention.self.query, layer.attention.self.value = (
            Adapted(layer.attention.self.query),
            Adapted(layer.attention.self.value),
        )
    return model


PICTURES, TOKENS = (BATCH, 3, 16, 16), torch.arange(2 * BATCH * 4).view(BATCH, 8) % 13
MODELS = {
    "convolutions": lambda: timm.create_model("cifar_resnet20"),
    "a frozen half": lambda: _frozen(timm.create_model("cifar_resnet20"), 0.5),
    "a trained head": lambda: _frozen(timm.create_model("cifar_resnet20"), 0.98),
    "a transformer": tiny_bert,
    "a frozen transformer": lambda: _frozen(tiny_bert(), 0.7),
    "low-rank adapters": _adapted_bert,
    "odd forwards": Odd,
    "an input that asks for its gradient": lambda: nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)),
}


def _inputs(name: str):
    if "transformer" in name or "adapters" in name:
        return {"input_ids": TOKENS}
    if "odd" in name or "asks" in name:
        return {"x": torch.randn(BATCH, 6, requires_grad="asks" in name)}
    return {"x": torch.randn(PICTURES)}


def _computed(model: nn.Module, inputs: dict) -> int:
    """MACs of a forward and a backward, as torch counts what it runs."""
    model = copy.deepcopy(model).eval()
    with FlopCounterMode(display=False) as counter:
        out = model(**inputs) if "input_ids" in inputs else model(inputs["x"])
        (out.logits if hasattr(out, "logits") else out).square().mean().backward()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", MODELS)
def test_what_is_counted_is_what_training_computes(name):
    model, inputs = MODELS[name](), _inputs(name)
    computed = _computed(model, inputs)
    call = inputs if "input_ids" in inputs else (inputs["x"],)
    ldp = ldp_search.controller(ldp_search.apply(model, "static", bits=8, attention=True, example_inputs=call))
    assert ldp.coverage.share == 1
    counted = BATCH * sum(layer.macs + sum(layer.backward_macs) for layer in ldp.layers.values())
    assert counted == (computed if name != "odd forwards" else _of_odd(computed))
    assert ldp.cost().training_bitops == 64 * counted / BATCH and ldp.cost().relative == 1
    assert not any(getattr(buffer, "requires_grad", False) for buffer in model.buffers())


def _of_odd(computed: int) -> int:
    """autograd leaves out what a later `detach` cuts off, and what a loss does not depend on: `a` before its `detach`."""
    return computed + BATCH * 36  # dL/dw of a's first call


def test_the_published_accounting_charges_all_three_products():
    model = timm.create_model("cifar_resnet20")
    exact, published = (
        ldp_search.controller(ldp_search.apply(copy.deepcopy(model), "static", bits=8, accounting=accounting))
        for accounting in ("exact", "published")
    )
    first = exact.layers["conv1"]
    assert (first.macs, first.backward_macs) == (442_368, (0, 442_368))
    assert published.layers["conv1"].backward_macs == (442_368, 442_368)
    assert published.cost().training_bitops - exact.cost().training_bitops == 64 * 442_368
    assert published.cost().inference_bitops == exact.cost().inference_bitops


def test_costs_and_prices_know_what_is_not_computed():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2).requires_grad_(False))
    space = {"policy": "static", "bits": (2, 8), "grad_bits": (2, 8), "split_gradient": True}
    ldp = ldp_search.controller(ldp_search.apply(model, space, example_inputs=torch.zeros(1, 4)))
    bits = torch.tensor([[3.0, 5, 2, 4], [6, 7, 5, 8]], dtype=torch.float64, requires_grad=True)
    spent = 16 * (3 * 5 + 5 * 4) + 8 * (6 * 7 + 6 * 5)
    cost = ldp.problem.relative_cost(bits)
    assert float(cost.detach()) == pytest.approx(spent / (64 * (16 * 2 + 8 * 2)))
    cost.backward()
    torch.testing.assert_close(ldp.problem.cost_gradient(bits.detach()), bits.grad)
    assert bits.grad[0, 2] == 0 and bits.grad[1, 3] == 0, "bits of a gradient that nobody computes cost nothing"


def test_a_profile_of_before_counts_all_three():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    held = profiler.profile(model, (torch.zeros(3, 4),), {}).to_dict()
    for counts in held["modules"].values():
        for product in counts["products"]:
            del product["uncomputed"]
    ldp = ldp_search.controller(apply(model, ldp_search.SearchSpace(policy="static"), profile=ModelProfile.from_dict(held)))
    assert all(layer.backward_macs == (layer.macs, layer.macs) for layer in ldp.layers.values())


def _stepping(model, x, ldp, until):
    model(x).sum().backward()
    ldp.step(until)


def test_what_is_frozen_or_unfrozen_after_the_counting_is_named_once():
    model = ldp_search.apply(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), "static", example_inputs=torch.zeros(1, 4))
    ldp, x = ldp_search.controller(model), torch.randn(3, 4)
    model[0].requires_grad_(False)
    with pytest.warns(UserWarning, match=r"unfrozen after apply\(\); their costs are those of before: 0\. Freeze first"):
        _stepping(model, x, ldp, 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _stepping(model, x, ldp, 0.2)
        model[0].requires_grad_(True)  # as it was counted
        for step in range(3, 6):
            _stepping(model, x, ldp, step / 10)
        model[1].requires_grad_(False)
        _stepping(model, x, ldp, 0.7)  # looked for at steps 1, 2, 4, 8, ..., at those that measure, and at the end
    assert "so that their costs are wrong: 1" in ldp.summary()
    with pytest.warns(UserWarning, match="those of before: 1"):
        ldp.finalize()


def test_bits_of_what_is_trained_after_all_are_shown():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    ldp = ldp_search.controller(ldp_search.apply(model, "ldp", example_inputs=torch.zeros(1, 4)))
    assert ldp.summary().rows[0][6:8] == ("-", "-")
    model.requires_grad_(True)
    assert "-" not in ldp.summary().rows[0] and "so that their costs are wrong: 0" in ldp.summary()


@pytest.mark.parametrize("by", ["state", "folder"])
def test_what_was_frozen_at_the_counting_is_known_where_a_training_goes_on(by, tmp_path):
    """Costs counted with a frozen layer stay so in a checkpoint, and are named where that layer is trained afterwards."""

    def built():
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))

    model = built()
    model[0].requires_grad_(False)
    ldp, x = ldp_search.controller(ldp_search.apply(model, "static", example_inputs=torch.zeros(1, 4))), torch.randn(3, 4)
    _stepping(model, x, ldp, 0.1)
    if by == "state":
        other = ldp_search.apply(built(), "static")
        ldp_search.controller(other).load_state_dict(ldp.state_dict())
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a class of the test's own has no recipe
            ldp_search.save_pretrained(model, tmp_path / "out")
        other = ldp_search.load_pretrained(tmp_path / "out", model=built()).train()
    with pytest.warns(UserWarning, match="those of before: 0"):
        _stepping(other, x, ldp_search.controller(other), 0.2)


def test_a_state_of_other_counts_leaves_those_that_there_are():
    models = [nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)) for _ in range(2)]
    models[0][0].requires_grad_(False)
    frozen, whole = (ldp_search.controller(ldp_search.apply(m, "static", example_inputs=torch.zeros(1, 4))) for m in models)
    _stepping(models[0], torch.randn(3, 4), frozen, 0.1)
    counted = whole.layers
    with pytest.warns(UserWarning, match="in which other weights were frozen: what it has spent"):
        whole.load_state_dict(frozen.state_dict())
    assert whole.layers == counted
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # its own costs are right
        _stepping(models[1], torch.randn(3, 4), whole, 0.2)


def test_a_weight_computed_from_frozen_and_trained_ones_is_no_surprise():
    class Merged(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4), requires_grad=False)
            self.a, self.b = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 2))

        def forward(self, x):
            return nn.functional.linear(x, self.w + self.b @ self.a)

    model = ldp_search.apply(Merged(), "static", example_inputs=torch.zeros(2, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _stepping(model, torch.randn(3, 4), ldp_search.controller(model), 0.5)


@pytest.mark.parametrize(
    ("space", "products", "over"),
    [
        ({"policy": "bit_gradient", "target_cost": 0.5}, 6, 0),
        ({"policy": "static", "weight_quantizer": "clip", "input_quantizer": "clip"}, 6, 0),
        ({"policy": "static", "weight_quantizer": "clip"}, 6, 1),  # the first layer's dL/dx
        ({"policy": "static", "input_quantizer": "clip"}, 4, 0),
        ({"policy": "static", "input_quantizer": "mse"}, 1, 0),
    ],
)
def test_what_bits_and_clips_learn_by_gradient_is_computed_everywhere(space, products, over):
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    for parameter in model[:4].parameters():
        parameter.requires_grad_(False)
    x = torch.randn(BATCH, 6)
    ldp = ldp_search.controller(ldp_search.apply(model, space | {"bits": (3, 8)}, example_inputs=x))
    model.train()(x)  # clips begin
    with FlopCounterMode(display=False) as counter:
        loss = model(x).square().mean()
        forward = counter.get_total_flops()
        loss.backward()
    computed = (counter.get_total_flops() - forward) // 2
    counted = sum(sum(layer.backward_macs) for layer in ldp.layers.values())
    assert (counted, computed) == (36 * products, 36 * BATCH * (products - over))


class Alias(nn.Module):
    """A view taken before something trained is written into what it is a view of."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        cache = x.new_zeros(x.shape)
        view = cache[:]
        cache.copy_(self.a(x))
        return self.b(view)


@pytest.mark.parametrize("detach", [torch.detach, lambda x: x.detach(), lambda x: x.data, lambda x: (x * 1).detach_()])
def test_ways_of_cutting_gradients_off(detach):
    class Cut(Alias):
        def forward(self, x):
            return self.b(detach(self.a(x)))

    layers = ldp_search.controller(ldp_search.apply(Cut(), "static", example_inputs=torch.zeros(3, 4))).layers
    assert layers["b"].backward_macs == (0, 8)


def test_a_view_of_what_was_written_is_trained():
    layers = ldp_search.controller(ldp_search.apply(Alias(), "static", example_inputs=torch.zeros(3, 4))).layers
    assert layers["b"].backward_macs == (8, 8) and layers["a"].backward_macs == (0, 16)


def test_the_accounting_is_one_of_two():
    with pytest.raises(ValueError, match="Unknown accounting 'publishd'. Did you mean 'published'"):
        ldp_search.SearchSpace(accounting="publishd")
