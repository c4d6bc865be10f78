"""The damage of rounding: variances against drawn ones, damages against losses measured, what they do not depend on."""

import copy
import functools
import itertools
import warnings
from dataclasses import dataclass

import pytest
import torch
import torch.utils.checkpoint
from breadth import breadth
from torch import nn

import ldp_search
from ldp_search.core.backends.sensing import Sense
from ldp_search.core.bits.damage import PASSES, SKETCH, SKETCH_SQUARE, TERMS, W_SQUARE, X_SQUARE, DamageMeter, Sensed
from ldp_search.core.model import site as sites

WEIGHT, INPUT, INPUT_GRADIENT, WEIGHT_GRADIENT = range(4)
MEASURES = {"policy": "learned", "target_cost": 0.5, "bits": (2, 8), "grad_bits": (3, 8), "grad_quantizer": "per_sample",
            "weight_quantizer": {"name": "mse", "exact_zero": False}, "input_quantizer": "mse", "sense_every": 1}  # fmt: skip
EXACT = {"weight_quantizer": "minmax", "input_quantizer": "minmax"}


def searched(model, x, **options):
    ldp_search.apply(model, MEASURES | options, example_inputs=x)
    return ldp_search.controller(model)


@pytest.fixture
def whole_batches(monkeypatch):
    """Gradients' variances are measured on all samples, not on a part of them."""
    monkeypatch.setattr(sites, "Sense", functools.partial(Sense, part=1))


# -- the variances that rounding a gradient adds ------------------------------------------------------------------------


class Mixed(nn.Module):
    """A weight outside of a layer."""

    def __init__(self, equation: str, *shape: int):
        super().__init__()
        self.equation, self.weight = equation, nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return torch.einsum(self.equation, x, self.weight)


class Attended(nn.Module):
    """Two activations multiplied."""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(4, 4)

    def forward(self, x, other):
        return self.query(x) @ other.transpose(1, 2)


PRODUCTS = {  # name: (module, shape of its input)
    "linear": (lambda: nn.Linear(6, 5), (4, 6)),
    "linear of sequences": (lambda: nn.Linear(6, 5), (3, 7, 6)),
    "conv": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 3, 5, 5)),
    "conv, stride and groups": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 7, 7)),
    "conv, dilated 1d": (lambda: nn.Conv1d(2, 3, 3, dilation=2), (4, 2, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(3, 2, 3, stride=2), (3, 3, 4, 4)),
    "einsum": (lambda: Mixed("bij,jk->bik", 4, 3), (3, 5, 4)),
    "experts": (lambda: Mixed("ebi,eij->ebj", 3, 4, 2), (3, 5, 4)),
}


def variances_drawn(y, g, operands, draws=300) -> list[float]:
    """Of the gradients of some operands, summed over their elements, by drawing the rounding of g many times."""
    found = [torch.autograd.grad(y, operands, g, retain_graph=True) for _ in range(draws)]
    return [float(torch.stack(each).var(0).sum()) for each in zip(*found, strict=True)]


ROUNDED = list(itertools.product(PRODUCTS, ["per_sample", "per_sample_channel", "per_block", "stochastic"]))
ALWAYS = [row for row in ROUNDED if row[1] == "per_sample"]
ALWAYS += [(name, "per_block") for name in ("linear of sequences", "conv, stride and groups", "experts")]


@breadth("name, quantizer", ROUNDED, always=ALWAYS)
def test_variances_are_those_of_drawn_gradients(name, quantizer, whole_batches):
    make, shape = PRODUCTS[name]
    model, x = nn.Sequential(make()), torch.randn(shape)
    ldp = searched(model, x, grad_quantizer=quantizer, split_gradient=True)
    with torch.no_grad():
        ldp.tensors.bits.copy_(torch.tensor([8.0, 8, 3, 4]))
    x.requires_grad_()
    y = model(x)
    g = torch.randn_like(y) * torch.randn_like(y).exp()
    y.backward(g, retain_graph=True)
    measured = ldp.sensor.record.curves[0].clone()
    ldp.sensing = False
    weight = next(model.parameters())
    y = model(x)
    of_x, of_w = variances_drawn(y, g, (x, weight))
    layered = name not in ("einsum", "experts")  # outside of layers both take the same rounding, with the more bits of the two
    at_x, at_w = (3, 4) if layered else (4, 4)
    assert float(measured[INPUT_GRADIENT, at_x - 2]) == pytest.approx(of_x, rel=0.2)
    assert float(measured[WEIGHT_GRADIENT, at_w - 2]) == pytest.approx(of_w, rel=0.2)


def test_variances_of_a_product_of_two_activations_are_those_of_drawn_gradients():
    model, x, other, held = Attended(), torch.randn(3, 6, 4), torch.randn(3, 5, 4), {}
    ldp = searched(model, (x, other), attention=True)
    row = next(row for row, name in enumerate(ldp.layers) if "products" in name)
    with torch.no_grad():
        ldp.tensors.bits.copy_(torch.tensor([8.0, 8, 3]))
    other.requires_grad_()
    y = model(x, other)
    g = torch.randn_like(y)
    y.backward(g)
    measured = ldp.sensor.record.curves[row, :, 1]
    ldp.sensing = False
    model.query.register_forward_hook(lambda m, a, out: held.update(query=out))
    y = model(x, other)
    of_query, of_other = variances_drawn(y, g, (held["query"], other))
    assert float(measured[INPUT_GRADIENT]) == pytest.approx(of_query, rel=0.2)
    assert float(measured[WEIGHT_GRADIENT]) == pytest.approx(of_other, rel=0.2)


# -- damages of weights and inputs against the loss measured -----------------------------------------------------------


def classifier(kind: str):
    torch.manual_seed(3)
    if kind == "conv":
        model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(),
                              nn.Linear(32, 4))  # fmt: skip
        return model, lambda n: torch.randn(n, 2, 6, 6)
    return nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)), lambda n: torch.randn(
        n, 8
    )


def drawn_labels(model, x):
    """Labels from the model itself: then the mean gradient is zero, and the Fisher matrix is the Hessian."""
    ldp = ldp_search.controller(model)
    with torch.no_grad(), ldp.disabled():
        return torch.multinomial(torch.softmax(2 * model(x), 1), 1).squeeze(1)


def sensed(model, ldp, inputs, bits: float, steps: int, batch: int = 64):
    """Curves after some steps of sensing at so many bits everywhere, without any training."""
    ldp.sensor.meter = DamageMeter(0.98)
    for _ in range(steps):
        with torch.no_grad():
            ldp.tensors.bits.fill_(bits)
        x, ldp.sensing = inputs(batch), False
        labels, ldp.sensing = drawn_labels(model, x), True
        nn.functional.cross_entropy(2 * model(x), labels).backward()
        ldp.sensor.measure()
        model.zero_grad()
    ldp.sensing = False
    return ldp.sensor.curves(3)


def loss_of_rounding(model, ldp, row: int, column: int, bits: int, x) -> float:
    """Cross-entropy, over labels drawn from the model, with one coordinate at so many bits, less that with all at 8."""
    with torch.no_grad():
        with ldp.disabled():
            target = torch.softmax(2 * model(x), 1)
        losses = []
        for number in (8, bits):
            ldp.tensors.bits.fill_(8)
            ldp.tensors.bits[row, column] = number
            losses.append(float(nn.functional.cross_entropy(2 * model(x), target)))
    return losses[1] - losses[0]


@breadth("kind", ["linear", "conv"], always=1)
def test_damages_of_weights_and_inputs_are_the_loss_that_rounding_costs(kind):
    """To a factor of 2, each coordinate at the bits at which it was measured."""
    model, inputs = classifier(kind)
    ldp = searched(model, inputs(2))
    x = inputs(2000)
    curves = {bits: sensed(model, ldp, inputs, bits, 40) for bits in (3, 4)}
    for row in range(len(ldp.layers)):
        for column in (WEIGHT, INPUT)[: 1 if row == 0 else 2]:  # the first input's own gradient is not computed
            for bits, found in curves.items():
                measured, expected = loss_of_rounding(model, ldp, row, column, bits, x), float(found[row, column, bits - 2])
                assert 0.5 < expected / measured < 2, (row, column, bits, expected, measured)


def test_what_is_measured_at_eight_bits_tells_what_three_would_cost():
    """On the whole, to a factor of 2: of a weight it is another error, by chance in better or worse directions."""
    expected = measured = 0.0
    for kind in ("linear", "conv"):
        model, inputs = classifier(kind)
        ldp = searched(model, inputs(2))
        curves, x = sensed(model, ldp, inputs, 8, 40), inputs(2000)
        for row in range(1, len(ldp.layers)):
            measured += loss_of_rounding(model, ldp, row, INPUT, 3, x)
            expected += float(curves[row, INPUT, 1])
    assert 0.5 < expected / measured < 2, (expected, measured)


def test_curves_do_not_depend_on_the_bits_in_force():
    model, inputs = classifier("linear")
    ldp = searched(model, inputs(2))
    state = ldp.state_dict()
    found = []
    for bits in (4, 7):
        torch.manual_seed(5)
        ldp.load_state_dict(state)
        found.append(sensed(model, ldp, inputs, bits, 80))
    ratio = (found[0] / found[1])[:, :, :6]
    rounded_at_all = found[1][:, :, :6] > 0
    assert rounded_at_all[1:].all() and (ratio[rounded_at_all].log2().abs() < 0.585).all(), "within a factor of 1.5"


# -- damages of gradients against the steady state of a training ---------------------------------------------------------


@breadth(
    "kind, momentum", itertools.product(["in dL/dw", "in dL/dx"], [0.0, 0.9]), always=[("in dL/dw", 0.9), ("in dL/dx", 0.0)]
)
def test_damages_of_gradients_are_the_excess_loss_of_a_training_with_them(kind, momentum):
    """Two trainings of a layer before a fixed one, at their optimum, on the same data; one rounds. Half their squared distance
    is what the noise costs, (lr / 4) tr C, here to a factor of 2; no direction is flat, in which noise would cost nothing.
    """
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 3, bias=False), nn.Linear(3, 3, bias=False))
    nn.init.orthogonal_(plain[1].weight)
    plain[1].requires_grad_(False)
    best, rounding = copy.deepcopy(plain).requires_grad_(False), copy.deepcopy(plain)
    ldp = searched(rounding, torch.zeros(2, 6), bits=(3, 16), grad_bits=(3, 16), split_gradient=True, **EXACT)
    with torch.no_grad():
        ldp.tensors.bits.copy_(torch.tensor([16.0, 16, 16, 16]))
        if kind == "in dL/dw":
            ldp.tensors.bits[0, 3] = 4
        else:
            ldp.tensors.bits[1, 2] = 3
    lr = 0.06 * (1 - momentum)
    optimizers = [torch.optim.SGD(m[0].parameters(), lr=lr, momentum=momentum) for m in (plain, rounding)]
    excess, expected, steps = 0.0, 0.0, 500
    for step in range(steps):
        x = torch.randn(16, 6)
        target = best(x) + 0.5 * torch.randn(16, 3)
        ldp.sensing = step >= steps - 60
        out = [model(x) for model in (plain, rounding)]
        for y, optimizer in zip(out, optimizers, strict=True):
            optimizer.zero_grad()
            ((y - target).square().sum(1).mean() / 2).backward()
        if ldp.sensing:
            ldp.sensor.measure(optimizers[1])
        if step >= 150:
            excess += float((out[1] - out[0]).detach().square().sum(1).mean() / 2) / (steps - 150)
        for optimizer in optimizers:
            optimizer.step()
    found = ldp.damage()
    expected = found.kinds["weight_grad" if kind == "in dL/dw" else "grad"]
    assert 0.5 < expected / excess < 2, (expected, excess)


# -- what sensing does not change, and how it adds up ------------------------------------------------------------------


@dataclass
class Watching(ldp_search.Policy):
    """Measures, and moves nothing."""

    needs_damage = True

    def begin(self):
        return torch.full_like(self.problem.low, 4).clamp(self.problem.low, self.problem.high)

    def step(self, signals):
        return signals.bits


class Small(nn.Module):
    """A convolution, layers, a product of two activations, and a weight outside of layers."""

    def __init__(self):
        super().__init__()
        self.conv, self.query, self.last = nn.Conv2d(2, 4, 3, stride=2), nn.Linear(4, 4), nn.Linear(4, 3)
        self.mix = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        x = self.conv(x).relu().flatten(2).transpose(1, 2)
        x = (self.query(x) @ x.transpose(1, 2)).softmax(-1) @ x @ self.mix
        return self.last(x.mean(1))


@pytest.mark.parametrize("options", [{}, {"split_gradient": True, "grad_quantizer": "per_sample_channel"}, {"grad_bits": 32}])
def test_sensing_changes_no_loss_and_no_weight(options):
    results = []
    for every in (1, 1000):
        torch.manual_seed(0)
        model, x = Small(), torch.randn(6, 8, 2, 7, 7)
        space = EXACT | {"policy": Watching(), "attention": True}
        ldp = searched(model, x[0], sense_every=every, **(space | options))
        optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
        torch.manual_seed(1)
        for step, batch in enumerate(x):
            ldp.sensing = ldp.sensing and every == 1
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            ldp.step((step + 1) / 7)
            optimizer.step()
            losses.append(loss.detach())
        assert ldp.sensor.ready == (every == 1)
        results.append([*losses, ldp.ranges.clone(), *(p.detach() for p in model.parameters())])
    for one, other in zip(*results, strict=True):  # grids come from a kernel, or from the formula: equal but for the last bit
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def record_of(parts, whole: int, model, ldp) -> list[torch.Tensor]:
    """What some micro-batches leave; their losses are parts of the mean over `whole` samples."""
    ldp.sensor.record.clear()
    for x in parts:
        ldp.sensing = True
        (model(x).square().sum(1).sum() / whole).backward()
    model.zero_grad()
    return [tensor.clone() for tensor in ldp.sensor.record.tensors()]


def of_one_range(samples: int, width: int) -> list[torch.Tensor]:
    """Two micro-batches with the same smallest and largest value."""
    parts = [torch.randn(samples, width).clamp(-1.9, 1.9) for _ in range(2)]
    for part in parts:
        part[0, 0], part[0, 1] = -2, 2
    return parts


@pytest.fixture
def two_parts(whole_batches):
    """(model, its controller, two micro-batches of one range) at bits of 8, 4 and 8."""
    model = nn.Sequential(nn.Linear(6, 5))
    ldp = searched(model, torch.zeros(2, 6), **EXACT)
    with torch.no_grad():
        ldp.tensors.bits.copy_(torch.tensor([8.0, 4, 8]))
    return model, ldp, [x.requires_grad_() for x in of_one_range(8, 6)]


def test_micro_batches_add_up_to_the_batch(two_parts):
    """At the bits in force; at the others to what a sample of each part tells."""
    model, ldp, parts = two_parts
    together = record_of([torch.cat(parts)], 16, model, ldp)
    apart = record_of(parts, 16, model, ldp)
    torch.testing.assert_close(apart[0][0, INPUT, 2], together[0][0, INPUT, 2], rtol=0.05, atol=0)  # gradients are rounded
    for kind in (INPUT_GRADIENT, WEIGHT_GRADIENT):
        torch.testing.assert_close(apart[0][0, kind, 6], together[0][0, kind, 6], rtol=1e-3, atol=0)
    assert together[1][0, TERMS] == apart[1][0, TERMS] == 16, "terms of the loss"
    torch.testing.assert_close(apart[1][0, X_SQUARE], together[1][0, X_SQUARE], rtol=0.05, atol=0)
    torch.testing.assert_close(apart[2], together[2], rtol=0.05, atol=0.05 * float(together[2].abs().max()))


def test_two_ranks_measure_what_one_process_measures_on_both_their_batches(two_parts):
    """Each takes the mean over its own half, both are averaged; noise of an averaged gradient has half the variance."""
    model, ldp, parts = two_parts
    curves = []
    for ranks, records in (
        (1, [record_of([torch.cat(parts)], 16, model, ldp)]),
        (2, [record_of([x], 8, model, ldp) for x in parts]),
    ):
        sensed = Sensed(1, ldp.levels)
        sensed.met(0)
        for tensor, *found in zip(sensed.tensors(), *records, strict=True):
            tensor.copy_(sum(found) / ranks)
        meter = DamageMeter(0.9, ranks)
        take_in(meter, sensed)
        curves.append(meter.curves(torch.ones(1, dtype=torch.float64), 4))
    torch.testing.assert_close(curves[1][0, INPUT, 2], curves[0][0, INPUT, 2], rtol=0.05, atol=0)  # gradients are rounded
    torch.testing.assert_close(curves[1][0, WEIGHT_GRADIENT, 6], curves[0][0, WEIGHT_GRADIENT, 6], rtol=1e-3, atol=0)


def test_a_scaled_loss_is_undone():
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(8, 6)
    found = []
    for scale in (1.0, 1024.0):
        torch.manual_seed(0)
        twin = copy.deepcopy(model)
        ldp = searched(twin, x)
        torch.manual_seed(1)
        (scale * twin(x).square().mean()).backward()
        ldp.sensor.unscale(scale)
        ldp.sensor.measure()
        found.append(ldp.sensor.curves(3))
    assert found[0][1].all()
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=0)


def test_what_no_backward_reaches_is_taken_for_a_layer_like_the_others():
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "last": nn.Linear(4, 2), "idle": nn.Linear(4, 4)})
    model.forward = lambda x: model["last"](model["used"](x).relu())
    ldp = searched(model, torch.zeros(2, 4))
    model.forward(torch.randn(8, 4)).square().mean().backward()
    ldp.step(0.1)
    curves, rows = ldp.sensor.curves(3), {name: row for row, name in enumerate(ldp.layers)}
    known = ldp.sensor.meter.known
    assert not known[rows["idle"]] and torch.equal(curves[rows["idle"]], curves[known].median(0).values)
    assert curves[rows["last"], :2].all() and curves.isfinite().all() and (curves >= 0).all()


def test_interpolating_bits_are_measured_too():
    """The bits of this policy are integers, at which a mixture of two grids is one of them."""
    found = []
    for relaxation in ("round", "interpolate"):
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(8, 6)
        ldp = searched(model, x, relaxation=relaxation)
        torch.manual_seed(1)
        model(x).square().mean().backward()
        ldp.step(0.1)
        found.append(ldp.sensor.curves(3))
    assert found[0][1].all() and torch.equal(*found)


def test_a_backward_that_shows_nothing_is_no_measurement():
    model, x = nn.Linear(6, 3), torch.randn(4, 6)
    ldp = searched(model, x)
    model.weight.grad, model.bias.grad = torch.autograd.grad(model(x).square().mean(), [model.weight, model.bias])
    ldp.step(0.1)
    assert not ldp.sensor.ready


def test_measuring_goes_on_after_a_backward_that_makes_a_graph():
    held, x = [], torch.randn(4, 6)
    for with_graph in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(6, 3)
        ldp = searched(model, x)
        if with_graph:
            model(x).square().mean().backward(create_graph=True, inputs=[model.weight, *ldp.sensor.record.leaves[0]])
            ldp.sensor.record.clear()
        torch.manual_seed(1)
        model(x).square().mean().backward()
        held.append([tensor.clone() for tensor in ldp.sensor.record.tensors()])
    assert held[0][0].any() and all(map(torch.equal, *held))


# -- what calls a product ---------------------------------------------------------------------------------------------


def test_a_vector_without_a_batch_dimension_is_one_sample():
    torch.manual_seed(0)
    held = []
    for shape in ((6,), (1, 6)):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        ldp, x = searched(model, torch.zeros(1, 6)), torch.randn(6).view(shape)
        y = model(x)
        assert y.shape == (*shape[:-1], 3)
        y.square().mean().backward()
        ldp.step(0.1)
        held.append(ldp.sensor.curves(3))
    assert torch.equal(*held)


@pytest.mark.parametrize("reentrant", [False, True])
def test_noise_reaches_what_lies_before_a_checkpoint(reentrant):
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
    model = nn.Sequential(*layers)
    ldp = searched(model, torch.zeros(2, 6))
    x = torch.randn(8, 6, requires_grad=True)
    for layer in model:
        x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=reentrant)
    x.square().mean().backward()
    ldp.step(0.1)
    weights = ldp.sensor.meter.state["share"][:, :3] / ldp.sensor.meter.state["pairs"][:, :3]
    torch.testing.assert_close(weights, torch.ones(3, 3).tril(-1))


class Twice(nn.Module):
    """One layer called on inputs of two sizes, `together` in one piece that is computed again, or each in its own."""

    def __init__(self, recomputed: str):
        super().__init__()
        self.layer, self.recomputed = nn.Linear(6, 6), recomputed

    def forward(self, x):
        def again(function, x):
            return torch.utils.checkpoint.checkpoint(function, x, use_reentrant=False)

        if self.recomputed == "together":
            return again(lambda x: self.layer(torch.relu(self.layer(x)) * 9), x)
        if self.recomputed == "apart":
            return again(self.layer, torch.relu(again(self.layer, x)) * 9)
        return self.layer(torch.relu(self.layer(x)) * 9)


@pytest.mark.parametrize("recomputed", ["together", "apart"])
def test_a_layer_called_twice_is_computed_again_within_the_bounds_of_each_call(recomputed):
    results = []
    for how in ("never", recomputed):
        torch.manual_seed(0)
        model = Twice(how)
        ldp = searched(model, torch.zeros(2, 6), sense_every=2)
        assert len(ldp.tensors.ranges) == 2
        for step in range(4):
            model.zero_grad()
            model(torch.randn(8, 6, requires_grad=True)).square().mean().backward()
            ldp.step((step + 1) / 10)
        results.append([model.layer.weight.grad, ldp.tensors.ranges])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def take_in(meter: DamageMeter, sensed: Sensed) -> None:
    """A step's measurement of sites that have nothing before them."""
    none = torch.zeros(len(sensed.places), len(sensed.places))
    meter.update(sensed, sensed.terms, (torch.zeros(0, 2), torch.zeros(0, SKETCH)), none, none)


def gradients_of_a_step(sensed: Sensed, parts: list[torch.Tensor], ranks: int = 1) -> None:
    """What `Sense` records of them: each rank has its share of the parts, and the ranks' records are averaged."""
    sensed.clear()
    sensed.met(0)
    for gradient in parts:
        sensed.sketch[0] += gradient / ranks
        sensed.scalars[0, [W_SQUARE, SKETCH_SQUARE]] += gradient.square().sum() / ranks
        sensed.scalars[0, PASSES] += 1


@breadth("parts, ranks", [(1, 1), (4, 1), (2, 2), (8, 4)], always=[(4, 1), (2, 2)])
@breadth("measurements", [2, 3, 10, 40], always=[2, 10])
def test_the_spread_of_a_step_s_gradient_is_right_from_the_second_measurement_on(measurements, parts, ranks):
    """Every element is 1 + noise of variance 1, whatever parts and ranks it is summed over."""
    draw, spreads = torch.Generator().manual_seed(0), []
    for _ in range(60):
        sensed, meter = Sensed(1, torch.arange(3.0, 9.0)), DamageMeter(0.9)
        for _ in range(measurements):
            noise = torch.randn(parts, SKETCH, generator=draw)
            gradients_of_a_step(sensed, [ranks * (1 / parts + n / parts**0.5) for n in noise], ranks)
            take_in(meter, sensed)
        spreads.append(float(meter._spread()))
    assert sum(spreads) / len(spreads) == pytest.approx(SKETCH, rel=0.1)


def test_a_step_that_overflowed_tells_nothing():
    sensed, meter = Sensed(1, torch.arange(3.0, 9.0)), DamageMeter(0.9)
    gradients_of_a_step(sensed, [torch.ones(SKETCH)])
    take_in(meter, sensed)
    before = {name: copy.deepcopy(value) for name, value in meter.state.items()}
    sensed.curves[0, INPUT, 0] = torch.inf
    take_in(meter, sensed)
    assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(before[name])) for name, value in meter.state.items())
    assert not DamageMeter(0.9).ready


def test_measurements_that_tell_nothing_are_named_once(mlp):
    model = ldp_search.apply(mlp(), target_cost=0.4, sense_every=1, example_inputs=torch.zeros(1, 8))
    ldp, x = ldp_search.controller(model), torch.randn(4, 8)
    with pytest.warns(
        UserWarning, match=r"4 measurements told nothing .* Call loss\.backward\(\) before ldp\.step\(\)"
    ) as told:
        for step in range(8):
            torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
            ldp.step((step + 1) / 20)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(8, 20):
            model(x).square().mean().backward()
            ldp.step((step + 1) / 20)
