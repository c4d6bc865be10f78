"""Noise in dL/dx reaches what is trained besides the searched weights, and so counts by it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ldp_search
from ldp_search.core.bits.damage import SKETCH, Sensed
from ldp_search.core.controller.other_gradients import OtherGradients

WORDS, WIDTH = 40, 16
LDP = {"target_cost": 0.3, "sense_every": 1, "grad_quantizer": "per_sample"}

ALIKE = {"bits": 16, "grad_bits": 8, "target_cost": 1.0}  # nothing moves


class Looked(nn.Module):
    """Rows of a table, looked up or multiplied by; then two layers."""

    def __init__(self, looks_up: bool):
        super().__init__()
        self.table = nn.Embedding(WORDS, WIDTH) if looks_up else nn.Linear(WORDS, WIDTH, bias=False)
        self.norm, self.up, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, ids):
        looks_up = isinstance(self.table, nn.Embedding)
        rows = self.table(ids) if looks_up else self.table(F.one_hot(ids, WORDS).float())
        return self.head(self.up(self.norm(rows)).relu())


def trained(model: nn.Module, steps: int = 3, **options):
    torch.manual_seed(0)
    ldp_search.apply(model, example_inputs=torch.zeros(2, dtype=torch.long), **LDP | options)
    ldp, draw = ldp_search.controller(model), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        ids = torch.randint(0, WORDS, (64,), generator=draw)
        F.cross_entropy(model(ids), ids % 5).backward()
        ldp.step((step + 1) / (2 * steps), optimizer=optimizer)
        optimizer.step(), optimizer.zero_grad()
    return ldp


def curves_of(ldp, names) -> torch.Tensor:
    rows = [list(ldp.layers).index(name) for name in names]
    return ldp.sensor.curves(4)[rows]


def twins() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    looked = Looked(True)
    multiplied = Looked(False)
    multiplied.load_state_dict({k: v.T if k == "table.weight" else v for k, v in looked.state_dict().items()})
    return looked, multiplied


def test_an_embedding_counts_as_the_layer_that_it_is():
    """Looking up rows is a product with one-hot inputs; kept out of the search, it is trained all the same."""
    looked, multiplied = twins()
    first = trained(looked, steps=1, **ALIKE)
    second = trained(multiplied, steps=1, skip=["table"], **ALIKE)
    one, other = (curves_of(ldp, ["up", "head"])[:, 2] for ldp in (first, second))
    assert (one > 0).all()
    torch.testing.assert_close(one, other, rtol=1e-3, atol=0)


def test_frozen_tables_count_for_nothing():
    looked, _ = twins()
    looked.table.requires_grad_(False), looked.norm.requires_grad_(False)
    ldp = trained(looked)
    assert curves_of(ldp, ["up"])[:, 2].sum() == 0
    assert curves_of(ldp, ["head"])[:, 2].sum() > 0


@pytest.mark.parametrize("factor, less", [(1 / 1024, 1.0), (1 / 3, 1 / 3), (4.0, 1.0)])
def test_gradients_scaled_before_the_step_count_as_they_were_recorded(factor, less):
    """A GradScaler's `unscale_` comes between backward and the step; and clipping, by which an optimizer moves weights less."""
    found = []
    for scale in (1.0, factor):
        looked, _ = twins()
        ldp_search.apply(looked, example_inputs=torch.zeros(2, dtype=torch.long), **LDP | ALIKE)
        ldp, ids = ldp_search.controller(looked), torch.arange(WORDS)
        torch.manual_seed(1)
        F.cross_entropy(looked(ids), ids % 5).backward()
        for parameter in looked.parameters():
            parameter.grad *= scale
        ldp.step(0.5)
        found.append(curves_of(ldp, ["up", "head"])[:, 2])
    assert (found[0] > 0).any()
    torch.testing.assert_close(found[1], less * found[0], rtol=1e-3, atol=0)


def test_a_step_behind_zero_grad_is_named():
    looked, _ = twins()
    ldp_search.apply(looked, example_inputs=torch.zeros(2, dtype=torch.long), **LDP | ALIKE)
    ldp, ids = ldp_search.controller(looked), torch.arange(WORDS)
    F.cross_entropy(looked(ids), ids % 5).backward()
    looked.zero_grad()
    with pytest.warns(UserWarning, match=r"found gradients in no weight.*before optimizer\.zero_grad\(\)"):
        ldp.step(0.5)


def test_a_table_that_several_look_up_counts_once_from_the_first_on():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.up, self.again = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Embedding(WORDS, WIDTH)
            self.again.weight, self.head = self.words.weight, nn.Linear(WIDTH, 5)

        def forward(self, ids):
            return self.head(self.up(self.words(ids)) + self.again(ids))

    others = trained(Twice()).sensor.others
    assert [name for _, name in others.holders] == ["weight", "bias", "bias"]
    assert others.before[:, 0].tolist() == [True, True]


def test_what_comes_before_what():
    model = Looked(True)
    ldp = trained(model)
    others = ldp.sensor.others
    names = {id(p): name for name, p in model.named_parameters()}
    found = [names[id(weights[0])] for weights in others.weights()]
    assert found == ["table.weight", "norm.weight", "norm.bias", "up.bias", "head.bias"]
    rows = dict(zip(ldp.layers, others.before.tolist(), strict=True))
    assert rows["up"] == [True, True, True, False, False] and rows["head"] == [True, True, True, True, False]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.table(ids))


def test_of_a_tied_table_the_rows_alone_count():
    """Its gradient has the head's part in it, which no layer's dL/dx reaches."""
    torch.manual_seed(0)
    model = Tied()
    apart = copy.deepcopy(model)
    apart.head.weight = nn.Parameter(model.table.weight.detach().clone())
    found = []
    for each in (model, apart):
        ldp_search.apply(each, example_inputs=torch.zeros(2, dtype=torch.long), **LDP | ALIKE)
        ldp = ldp_search.controller(each)
        torch.manual_seed(1)
        F.cross_entropy(each(torch.arange(WORDS)), torch.arange(WORDS)).backward()
        found.append(ldp.sensor.others.measured(ldp.sensor.record, torch.ones(())))
    (squares, sketches), (of_apart, sketches_apart) = found
    assert len(squares) == len(of_apart) == 1
    torch.testing.assert_close(sketches, sketches_apart, rtol=1e-3, atol=1e-6)
    assert 0.5 < float(squares[0, 0] / of_apart[0, 0]) < 2, "up to the two parts' own product"


def test_gradients_that_are_none_or_no_plain_tensors_are_left_out():
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 3), nn.LayerNorm(3))
    linear = [spec for spec in trained_specs(model)]
    others, record = OtherGradients(model, linear), Sensed(1, torch.arange(2.0, 9.0))
    assert others.factor(record) == 1
    squares, sketches = others.measured(record, torch.ones(()))
    assert not squares.any() and sketches.shape == (4, SKETCH)
    model(torch.arange(3)).square().sum().backward()
    squares, _ = others.measured(record, torch.ones(()))
    assert squares[0, 0] == 0 and (squares[1:, 0] > 0).any()


def trained_specs(model: nn.Module):
    from ldp_search.core.model.sites import find_sites

    return find_sites(model, ldp_search.SearchSpace(policy="static"), None).values()


@pytest.mark.parametrize("known", [0, 3, 5, 7])
def test_a_state_that_knows_of_another_number_of_them_is_taken(known):
    first, second = (trained(Looked(True)) for _ in range(2))
    state, sites = copy.deepcopy(first.state_dict()), len(first.layers)
    pad = lambda t: torch.cat([t, t.new_ones(2, *t.shape[1:])])[: sites + known]  # noqa: E731
    state["damage"]["rates"] = pad(state["damage"]["rates"])
    for key in ("w_gradient", "sketches", "mean", "square"):
        state["damage"]["meter"][key] = pad(state["damage"]["meter"][key])
    second.load_state_dict(state)
    if known == len(first.sensor.others.holders) == 5:
        assert torch.equal(second.sensor.curves(4), first.sensor.curves(4))
    else:
        assert second.sensor.curves(4).isfinite().all() and curves_of(second, ["up"])[:, 2].sum() == 0


def test_a_state_that_went_by_the_order_of_the_layers_is_taken():
    first, second = (trained(Looked(True)) for _ in range(2))
    state = copy.deepcopy(first.state_dict())
    meter = state["damage"]["meter"]
    meter["order"] = list(range(len(first.layers)))
    del meter["share"], meter["pairs"]
    second.load_state_dict(state)
    torch.testing.assert_close(second.sensor.curves(4), first.sensor.curves(4))  # a chain: all noise goes on
