"""What a notebook shows of the method's objects: every number of the text, escaped, in tables of bounded size."""

import copy
import pickle
import re

import pytest
import torch
from torch import nn

import ldp_search
from ldp_search.core import Coverage, Trajectory, tables
from ldp_search.core.bits.specs import LeftOut
from ldp_search.core.controller import display
from ldp_search.core.controller.summary import short


def cells(page: str) -> list[list[str]]:
    """The fields of each row of a page's tables."""
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]


def trained(square, steps: int = 4):
    ldp = square(2, policy="cyclic", target_cost=None, bits=(3, 8))
    for step in range(steps):
        ldp.step((step + 1) / steps)
    return ldp


def test_summary_is_its_text_and_a_table_of_it(square):
    ldp = square(2, bits=(3, 8), skip=["1"], policy="static")
    summary, bits = ldp.summary(), ldp.bits()
    assert isinstance(summary, str) and summary.splitlines()[0].startswith("layer") and repr(summary) == repr(str(summary))
    head, *rows = cells(summary._repr_html_())
    assert head == ["layer", "kind", "MACs", "weights", "w", "x", "g", "range"]
    assert [row[0] for row in rows] == list(bits) and [row[4:7] for row in rows] == [[*map(str, b)] for b in bits.values()]
    for note in summary.notes:
        assert note in summary and tables.escaped(note) in summary._repr_html_()
    for again in (copy.deepcopy(summary), pickle.loads(pickle.dumps(summary))):
        assert again == summary and again._repr_html_() == summary._repr_html_()


def test_split_gradients_have_a_column_each(square):
    ldp = square(2, policy="static", grad_bits=(4, 8), split_gradient=True)
    head, *rows = cells(ldp.summary()._repr_html_())
    assert head[4:8] == ["w", "x", "gx", "gw"] and rows[0][4:8] == [*map(str, ldp.bits()["0"])]
    assert "  w  x gx gw  range" in ldp.summary()


def test_controller_shows_costs_beside_their_budget(square):
    ldp = square(2, bits=(3, 8), target_cost=0.5)
    page, cost = ldp._repr_html_(), ldp.cost()
    assert [f"{cost.mean_relative:.4f}", "0.5"] == next(row[1:] for row in cells(page) if row[0].startswith("training, mean"))
    assert "policy learned, 0% of the training" in page and "<details><summary>layers" in page
    limited = square(2, bits=(3, 8), target_inference=0.6, target_size=2e-5)
    budgets = {row[0]: row[2] for row in cells(limited._repr_html_()) if len(row) == 3}
    assert (budgets["inference, now"], budgets["weights, now"], budgets["training, now"]) == ("0.6", "2e-05 MiB", "")
    uncounted = ldp_search.controller(ldp_search.apply(nn.Sequential(nn.Linear(2, 2)), {"policy": "static"}))
    assert "MACs are not counted yet" in uncounted._repr_html_() and "budget" not in uncounted._repr_html_()


def test_small_numbers_keep_their_digits(square):
    ldp = square(2, bits=(3, 8), target_cost=0.5, target_size=2e-5)
    size, text = f"{ldp.cost().weight_mib:.3g}", str(ldp.summary())
    assert f"weights {size} MiB" in text and f"weights {size} of 2e-05 MiB" in text and " 0.000" not in text
    assert f"{size} MiB" in [row[1] for row in cells(ldp._repr_html_()) if row[0] == "weights, now"]
    shown = [short(value) for value in (0, 0.1, 1234.5678, 0.0123456, 3e-7)]
    assert shown == [
        "0.000",
        "0.100",
        "1,234.568",
        "0.0123",
        "3e-07",
    ]


def test_trajectory_shows_five_moments(square):
    ldp = trained(square, steps=9)
    head, first, second = cells(ldp.trajectory._repr_html_())
    assert head[0] == "layer" and len(head) == 6 and head[-1] == "100%"
    recorded = ldp.trajectory.bits
    assert first[1:] == [" ".join(map(str, recorded[i, 0].tolist())) for i in (0, 2, 4, 6, 8)] and second[0] == "1"
    assert "No step is recorded yet, of 3 layers" in Trajectory(["a", "b", "c"])._repr_html_()


def test_allocation_and_coverage(square):
    ldp = trained(square)
    allocation = ldp.finalize()
    head, *rows = cells(allocation._repr_html_())
    assert head[3:] == ["weight bits", "input bits", "grad bits"]
    assert [row[0] for row in rows] == list(allocation.layers) and rows[0][3:] == [*map(str, allocation.layers["0"])]
    assert f"weight mib {allocation.summary['weight_mib']:.4g}" in allocation._repr_html_()
    assert ldp_search.Allocation({})._repr_html_()
    assert "nothing is left out" in Coverage(1.0, [])._repr_html_()
    assert cells(Coverage(0.25, [LeftOut("head", 1234, "skipped")])._repr_html_())[1] == ["head", "1,234", "skipped"]


def test_names_are_escaped_and_long_tables_are_cut():
    page = tables.as_html(("a", "b"), [(f"<script>{i}", i) for i in range(500)], bits=(1,))
    assert "<script>" not in page and "&lt;script&gt;0" in page and "&lt;script&gt;499" in page
    assert len(cells(page)) == 1 + tables.MOST_ROWS + 1 and "… 440 more …" in page and len(page) < 25_000


def test_full_precision_has_no_shade():
    page = tables.as_html(("b",), [(3,), (8,), (32,)], bits=(0,))
    assert [("background" in cell) for cell in re.findall(r"<td[^>]*>", page)] == [True, True, False]


def test_colours_are_left_to_the_page(square):
    ldp = trained(square)
    for shown in (ldp, ldp.summary(), ldp.trajectory, ldp.finalize(), ldp.coverage):
        assert not re.search(r"[;\"]color:|background:(?!rgba)", shown._repr_html_())


def test_a_core_without_drawing_says_so(square, monkeypatch):
    monkeypatch.setattr(display, "_draw", [])
    with pytest.raises(ImportError, match="import ldp_search"):
        square(policy="static").plot()


def test_tables_do_not_touch_the_training(square):
    ldp = square(2, bits=(3, 8), target_cost=0.5)
    before = torch.random.get_rng_state(), copy.deepcopy(ldp.state_dict())
    ldp._repr_html_()
    assert torch.equal(before[0], torch.random.get_rng_state()) and ldp.state_dict().keys() == before[1].keys()
    assert torch.equal(ldp.tensors.bits, before[1]["tensors"]["bits"])
