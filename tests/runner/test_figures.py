"""`ldp.plot` and `ldp_search.report` of a controller: what they show is what it holds, and needs no folder."""

import io
import json
import re
from functools import cache
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from breadth import breadth
from PIL import Image
from torch import nn
from torch.nn import functional as F

import ldp_search
from ldp_search.core.controller.finalize import allocation
from ldp_search.runner.report import figures, load_run
from ldp_search.runner.report.heatmap import draw_heatmap, draw_schedule, scale_of
from ldp_search.runner.report.layers import layers_of, shown
from ldp_search.runner.report.live import run_of
from ldp_search.runner.report.load import Run
from ldp_search.runner.report.schedule import KINDS, Schedule
from ldp_search.runner.report.style import BitScale, drawing, row_edges, rows_of
from ldp_search.runner.training import setup


def trained(steps: int = 20, until: int | None = None, counted: bool = True, **options):
    """The controller of a small network after `until` of `steps` steps at a budget of a half."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    x, y = torch.randn(64, 8), torch.arange(64) % 3
    options = {"target_cost": 0.5, "sense_every": 4} | options
    ldp = ldp_search.controller(ldp_search.apply(model, "ldp", example_inputs=x[:1] if counted else None, **options))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(steps if until is None else until):
        F.cross_entropy(model(x), y).backward()
        ldp.step((step + 1) / steps, optimizer=optimizer)
        optimizer.step()
        optimizer.zero_grad()
    return ldp


@pytest.fixture(scope="module")
def ldp():
    """A trained one, whose front is computed once: that takes ten times as long as its picture."""
    ldp = trained()
    ldp.front = cache(ldp.front)
    return ldp


@breadth("kind", figures.FIGURES, always=["schedule", "allocation"], reason="the others always are drawn below")
def test_every_kind_is_drawn(ldp, kind):
    figure = ldp.plot(kind)
    assert isinstance(figure, matplotlib.figure.Figure)
    picture = np.asarray(Image.open(io.BytesIO(figure.png())).convert("RGB"))
    assert picture.shape[1] >= 700 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_the_schedule_is_the_trajectory(ldp):
    figure = ldp.plot()
    above, below = figure.subfigs
    pictures = [axis for axis in above.axes if axis.images]
    assert [axis.get_title(loc="left") for axis in pictures] == [
        *("Weight bits", "Input bits", "Gradient bits, dL/dx", "Gradient bits, dL/dw")
    ]
    scale, bits = BitScale(list(range(2, 9))), ldp.trajectory.bits.numpy()
    for kind, axis in enumerate(pictures):
        drawn = axis.images[0].get_array()
        assert [(bar.get_y(), bar.get_width()) for bar in axis.patches] == ([(-0.5, 1)] if kind == 2 else [])
        assert np.ma.getmaskarray(drawn).any(1).tolist() == [kind == 2, False, False]  # the first layer's dL/dx: never computed
        computed = ~np.ma.getmaskarray(drawn)[:, 0]
        for moment in (0, -1):
            assert (drawn[computed, moment] == scale.index(bits[moment, :, kind])[computed]).all()
    spent = next(line for line in below.axes[0].lines if str(line.get_label()).startswith("this run"))
    assert spent.get_ydata()[-1] == pytest.approx(100 * ldp.cost().mean_relative)
    assert any(str(line.get_label()) == "target: 50 %" for line in below.axes[0].lines)


def test_means_of_the_curve_are_those_of_every_moment():
    ldp, steps = trained(until=0), 7
    for step in range(steps):
        ldp.tensors.bits.copy_(torch.full_like(ldp.tensors.bits, 3 + step % 4))
        with torch.no_grad():
            ldp.step((step + 1) / steps)
        assert run_of(ldp).metrics[-1]["mean_cost"] == pytest.approx(ldp.cost().mean_relative)
    means, cost = [row["mean_cost"] for row in run_of(ldp).metrics], [row["cost"] for row in run_of(ldp).metrics]
    assert means == pytest.approx(np.cumsum(cost) / np.arange(1, steps + 1))


def test_half_a_training(ldp, tmp_path):
    half = trained(until=10)
    half.trajectory.save(tmp_path / "schedule.parquet")
    (tmp_path / "layers.json").write_text(setup._counts(SimpleNamespace(ldp=half)))
    saved = load_run(tmp_path)
    assert layers_of(saved) == layers_of(run_of(half)) and saved.coverage["share"] == 1 and not saved.finished
    assert saved.mean_cost is None  # which is told by the newest line of metrics.jsonl, not by what is counted once
    run = run_of(half)
    assert not run.finished and run.progress == 0.5 and run_of(ldp).finished
    shown = half.plot().subfigs[0].axes[0].images[0].get_array()
    assert shown.mask[:, -1].all() and not shown.mask[:, 0].any()
    assert [bar.get_width() for bar in half.plot().subfigs[0].axes[2].patches] == [0.5]  # what comes is not hatched yet


def test_damage_and_front_show_what_the_controller_tells(ldp):
    found, (axis,) = ldp.damage(), ldp.plot("damage").axes
    ends = {patch.get_y() + patch.get_height() / 2: 0.0 for patch in axis.patches}
    for patch in axis.patches:
        middle = patch.get_y() + patch.get_height() / 2
        ends[middle] = max(ends[middle], patch.get_x() + patch.get_width())
    assert [ends[k] for k in sorted(ends)] == pytest.approx([sum(kinds.values()) for kinds in found.layers.values()])
    front, (axis,) = ldp.front(), ldp.plot("front").axes
    assert sorted(axis.lines[0].get_xdata()) == pytest.approx(sorted(100 * point.cost for point in front.points))
    assert list(axis.lines[1].get_ydata()) == [front.now.damage] and axis.lines[2].get_xdata()[0] == 50


def test_layers_are_those_of_the_saved_run(ldp, tmp_path):
    ldp.trajectory.save(tmp_path / "schedule.parquet")
    ldp.finalize().save(tmp_path / "allocation.json")
    assert layers_of(run_of(ldp)) == layers_of(load_run(tmp_path))


def test_split_gradients_are_both_shown_and_both_counted(tmp_path):
    split = trained(until=19, split_gradient=True, grad_bits=(2, 8))
    with torch.no_grad():
        split.tensors.bits.copy_(torch.tensor([[4, 5, 3, 7], [6, 4, 8, 2], [8, 8, 5, 5]]))
    split.trajectory.append(1.0, split.tensors.bits)
    titles = [axis.get_title(loc="left") for axis in split.plot().subfigs[0].axes if axis.images]
    assert titles == ["Weight bits", "Input bits", "Gradient bits, dL/dx", "Gradient bits, dL/dw"]
    layers = layers_of(run_of(split))
    rows = [(one.weight, one.input, one.grad, one.weight_grad) for one in layers]
    assert rows[1:] == list(split.bits().values())[1:]
    assert rows[0] == pytest.approx((4, 5, np.nan, 7), nan_ok=True)  # nobody computes its dL/dx
    spans = torch.tensor(np.diff(split.trajectory.progress, prepend=0.0))
    costs = (split.problem.layer_costs(split.trajectory.bits.double()) * spans[:, None]).sum(0)
    assert [one.cost_share for one in layers] == pytest.approx((costs / costs.sum()).tolist())
    left = split.plot("allocation").axes[0]
    places = {c.get_label(): c.get_offsets()[:, 0].tolist() for c in left.collections}
    assert places["gradients, dL/dx"][1:] == [8, 5] and places["dL/dw"] == [7, 2, 5]
    labels = [text.get_text().partition(":")[0] for text in split.plot("damage").axes[0].get_legend().get_texts()]
    assert labels == ["weights", "inputs", "gradients, dL/dx", "gradients, dL/dw"]
    split.trajectory.save(tmp_path / "schedule.parquet")
    split.finalize().save(tmp_path / "allocation.json")
    assert layers_of(load_run(tmp_path)) == layers
    text = ldp_search.report(tmp_path, tmp_path / "page").read_text()
    assert "gradient bits, dL/dx</th>" in text and "gradient bits, dL/dw</th>" in text and "gradient bits</th>" not in text


def test_before_anything_is_counted_the_picture_says_what_counts(tmp_path):
    bare = trained(until=0, counted=False, policy="cyclic", target_cost=None)
    said = " ".join(" ".join(t.get_text() for t in axis.texts) for axis in bare.plot("allocation").axes).split()
    assert "known after one forward, or from the start with example_inputs given to apply()" in " ".join(said)
    page = ldp_search.report(bare, tmp_path).read_text()
    assert "known after one forward" in page and "allocation.json" not in page


def test_refusals():
    fresh = trained(until=0)
    with pytest.raises(ValueError, match="Did you mean 'schedule'"):
        fresh.plot("schedul")
    with pytest.raises(ValueError, match="No step is recorded yet"):
        fresh.plot()
    with pytest.raises(ValueError, match="Nothing is measured yet"):
        fresh.plot("damage")
    with pytest.raises(ValueError, match="does not measure"):
        trained(until=2, policy="static", target_cost=None).plot("front")
    assert fresh.plot("allocation").axes


def test_without_counts_the_schedule_is_drawn_without_costs():
    ldp = trained(until=0, counted=False, policy="cyclic", target_cost=None)
    ldp.step(0.5)
    assert not ldp.profiled and not ldp.plot().subfigs and ldp.plot("allocation").axes


def test_the_style_is_the_figures_own(ldp):
    plain = ldp.plot("front").png()
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "figure.facecolor": "black"}):
        before = dict(matplotlib.rcParams)
        assert ldp.plot("front").png() == plain
        figure = ldp.plot("front")
        assert figure.png() == plain and dict(matplotlib.rcParams) == before


def test_what_a_notebook_keeps_is_small_and_has_the_same_colours(ldp):
    figure = ldp.plot()
    small, whole = figure._repr_png_(), figure.png()
    one, other = (np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int) for png in (small, whole))
    assert len(small) < 0.6 * len(whole) and np.abs(one - other).max() <= 24


def test_report_of_a_controller(ldp, tmp_path):
    page = ldp_search.report(ldp, tmp_path / "one")
    text = page.read_text()
    assert page == tmp_path / "one" / "report.html" and {p.name for p in page.parent.glob("*.png")} == {
        "schedule.png", "layers.png", "training.png"
    }  # fmt: skip
    assert "Sequential · learned" in text and "Accuracy" not in text and "To repeat this run" not in text
    assert f"{100 * ldp.cost().mean_relative:.1f}" in text
    limited = ldp_search.report(trained(until=0, target_inference=0.6, target_size=0.0004), tmp_path / "two").read_text()
    assert "final bits; budget 60.0\N{NO-BREAK SPACE}%" in limited and "at the final bits; budget 0.0004 MiB" in limited


@pytest.mark.slow(reason="two pages of several runs; others are always drawn in test_report.py, controllers above")
def test_report_of_folders_and_controllers_side_by_side(ldp, tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()
    ldp.trajectory.save(folder / "schedule.parquet")
    evaluated = {"split": "eval", "step": 3, "progress": 0.5, "accuracy": 0.875, "mean_cost": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(evaluated) + "\n")
    text = ldp_search.report([folder, ldp, trained(until=5)], tmp_path / "page").read_text()
    for name in ("saved", "Sequential (1)", "Sequential (2)", "87.50"):
        assert name in text
    text = ldp_search.report([ldp, trained(until=5)], tmp_path / "bare").read_text()
    assert "Accuracy" not in text and not (tmp_path / "bare" / "comparison.png").exists()


def test_report_refuses_what_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="none was given"):
        ldp_search.report([])
    with pytest.raises(ValueError, match="No run folder"):
        ldp_search.report(tmp_path / "nothing")


@pytest.mark.parametrize("split", [True, False])
def test_bits_of_gradients_that_are_never_computed_are_shown_nowhere(split):
    """The first layer's dL/dx everywhere; with its weights frozen, its dL/dw too."""
    whole = trained(split_gradient=split)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    model[0].requires_grad_(False)
    frozen = ldp_search.controller(
        ldp_search.apply(model, "ldp", example_inputs=torch.randn(1, 8), split_gradient=split, sense_every=1)
    )
    for step in range(5):
        F.cross_entropy(model(torch.randn(8, 8)), torch.arange(8) % 3).backward()
        frozen.step((step + 1) / 5)
    plain, dw = {"Weight bits": False, "Input bits": False}, "Gradient bits, dL/dw"
    panels = (
        [plain | {"Gradient bits, dL/dx": True, dw: False}, plain | {dw: True}]
        if split
        else [plain | {"Gradient bits": False}, plain | {"Gradient bits": True}]
    )
    for ldp, hidden in ((whole, [2] if split else []), (frozen, [2, 3] if split else [2])):
        kinds = 4 if split else 3
        rows = {row[0]: row[4 : 4 + kinds] for row in ldp.summary().rows}
        assert [k for k, shown in enumerate(rows["0"]) if shown == "-"] == hidden
        run = run_of(ldp)
        first, *_ = layers_of(run)
        columns = [shown(run).bits[kind][:, 0] for kind in KINDS[:kinds]]
        for k, kind in enumerate(KINDS[:kinds]):
            assert np.isnan(getattr(first, kind)) == np.isnan(columns[k]).all() == np.isnan(columns[k]).any() == (k in hidden)
        assert not np.isnan(run.schedule.bits["grad"]).any()  # what was in force is still recorded
        assert allocation(ldp)._repr_html_().count(">-<") == sum(row.count("-") for row in rows.values())
        moments = re.findall(r"<td[^>]*>(.*?)</td>", ldp.trajectory._repr_html_().split("</tr>")[1])[1:]
        assert len(moments) == 5 and all([k for k in range(kinds) if one.split()[k] == "-"] == hidden for one in moments)
        assert str(allocation(ldp)).splitlines()[1].split()[3:] == [str(bits) for bits in rows["0"]]
        found = ldp.damage()
        assert [k for k, value in enumerate(found.layers["0"].values()) if value == 0] == hidden
        told = {text.get_text().partition(":")[0] for text in ldp.plot("damage").axes[0].get_legend().get_texts()}
        assert len(told) == sum(value > 0 for value in found.kinds.values()) == kinds - (kinds == 4 and ldp is frozen)
        above = ldp.plot().subfigs[0]
        hatched = {axis.get_title(loc="left"): bool(axis.patches) for axis in above.axes if axis.images}
        assert hatched == panels[ldp is frozen]
        said = "" if above._suptitle is None else above._suptitle.get_text()
        assert said == "hatched: this gradient is never computed" * any(hatched.values())
    rest = shown(run_of(whole)).bits["grad"][:, 1:]
    assert not any("-" in row[4:8] for row in whole.summary().rows[1:]) and not np.isnan(rest).any()


def test_rows_of_layers_without_a_bit_are_left_out_of_a_mean():
    bits = np.array([[np.nan, 4.0, np.nan, np.nan, 6.0, 8.0]], dtype=np.float32)
    schedule = Schedule(np.array([1.0]), list("abcdef"), {kind: bits for kind in KINDS[:3]})
    drawn = []

    class Scale(BitScale):
        def index(self, values):
            drawn.append(values[:, 0].copy())
            return super().index(values)

    with drawing(4, 4) as (figure, _):
        draw_heatmap(figure.subplots(), schedule, "grad", Scale([4, 6, 8]), True, most=3)
    assert np.array_equal(drawn[0], [4, np.nan, 7], equal_nan=True)


def test_what_is_hidden_has_no_colour_and_what_is_not_recorded_is_no_gradient():
    bits = {"weight": [[4, 5]], "input": [[4, 5]], "grad": [[16, 6]]}
    details = {"a": {"macs": 9, "backward_macs": [0, 0]}, "b": {"macs": 9, "backward_macs": [9, 9]}}
    schedule = Schedule(np.array([1.0]), ["a", "b"], {k: np.array(v, dtype=np.float32) for k, v in bits.items()})
    run = Run(None, "net", schedule=schedule, allocation={"layers": details}, result={"policy": "static"})
    run.schedule.bits["grad"][0] = 16, 6
    assert scale_of(run).levels == [4, 5]  # one layer's gradient alone has no story
    run.schedule = Schedule(
        np.array([0.5, 1.0]), ["a", "b"], {k: np.array([*v, v[0]], dtype=np.float32) for k, v in bits.items()}
    )
    run.schedule.bits["grad"][1, 1] = 7
    assert scale_of(run).levels == [4, 5, 6, 7]
    run.schedule.bits["input"][:] = np.nan
    run.allocation = {}
    assert scale_of(run).levels[-1] == 16
    with drawing() as (figure, _):
        draw_schedule(figure, run, scale_of(run), 2.0)
        assert figure._suptitle is None


@pytest.mark.parametrize(
    ("count", "most", "words"), [(400, 120, "4 in a row"), (161, 120, "2 in a row, the last of 1"), (3, 9, "1 in a row")]
)
def test_rows_hold_equally_many_layers(count, most, words):
    edges = row_edges(count, most)
    assert len(edges) - 1 <= most and edges[-1] == count and len(set(np.diff(edges)[:-1])) == 1 and rows_of(edges) == words
