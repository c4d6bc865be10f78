"""The report: what it shows is what the run's files say, it stands alone, and no unfinished or broken run stops it."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from breadth import breadth

from ldp_search.config.resolve import resolve
from ldp_search.core import Allocation, Bits, Trajectory
from ldp_search.core.bits.specs import SplitBits
from ldp_search.report import main
from ldp_search.runner.report import ReportError, load_run, write_report
from ldp_search.runner.report.groups import group_runs
from ldp_search.runner.report.layers import layers_of
from ldp_search.runner.report.one import command
from ldp_search.runner.report.style import BitScale, elide, row_edges
from ldp_search.runner.report.words import describe, duration, turning_points

LAYERS = {"stem": 1000, "body.0": 4000, "body.1": 4000, "head": 100}
SPACE = {"learned": "ldp", "cyclic": "cyclic", "static": "static", "ramp": "ramp"}


def bits_over_time(policy: str, progress: np.ndarray, layers: int) -> np.ndarray:
    """(records, layers) weight bits of a made-up run."""
    if policy == "cyclic":
        row = np.rint(5.5 - 2.5 * np.cos(np.pi * ((4 * progress - 1e-9) % 1)))
        return np.repeat(row[:, None], layers, 1)
    if policy == "static":
        return np.full((len(progress), layers), 8.0)
    return np.clip(np.rint(8 - 5 * progress[:, None] * np.linspace(0.2, 1, layers)), 3, 8)


def make_run(folder: Path, policy="learned", seed=0, accuracy=0.9, layers=LAYERS, records=40, words=(), until=1.0):
    """A run folder as the runner leaves it, with the package's own writers of trajectory and allocation."""
    folder.mkdir(parents=True, exist_ok=True)
    values = resolve([f"space={SPACE[policy]}", f"seed={seed}", *words]).values
    (folder / "config.yaml").write_text(yaml.safe_dump(values | {"output": str(folder)}))
    progress = (np.arange(records) + 1) / records
    weights = bits_over_time(policy, progress, len(layers))
    inputs = np.clip(weights + 1, 3, 8) if policy == "learned" else weights
    macs = np.array(list(layers.values()), dtype=float)
    cost = (macs * (weights * inputs + 8 * weights + 8 * inputs)).sum(1) / (macs * 192).sum()
    mean = np.cumsum(cost) / np.arange(1, records + 1)
    trajectory, lines = Trajectory(list(layers)), []
    for i in np.flatnonzero(progress <= until):
        row = np.stack([weights[i], inputs[i], np.full(len(layers), 8)], 1)
        trajectory.append(float(progress[i]), torch.tensor(row, dtype=torch.uint8))
        base = {"step": int(i), "epoch": 0, "progress": progress[i], "loss": 2 - progress[i], "seconds": 2.0 * (i + 1)}
        base |= {"accuracy": accuracy * progress[i], "mean_cost": mean[i]}
        lines.append({"split": "train", "cost": cost[i], "mean_bits": weights[i].mean(), "lr": 0.1} | base)
        if i % 10 == 9:
            lines.append({"split": "eval"} | base)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trajectory.save(folder / "schedule.parquet")
    if until == 1.0:
        _finish(folder, values, layers, weights, inputs, {"accuracy": accuracy, "mean_cost": mean[-1]})
    return folder


def _finish(folder: Path, values: dict, layers: dict, weights: np.ndarray, inputs: np.ndarray, found: dict):
    bits = {name: Bits(int(weights[-1, i]), int(inputs[-1, i]), 8) for i, name in enumerate(layers)}
    details = {n: {"kind": "linear", "macs": m, "weight_numel": m, "searched": n != "head"} for n, m in layers.items()}
    coverage = {"share": 0.91, "left_out": [{"name": "attention", "macs": 900, "reason": "raw matmul"}]}
    summary = {"relative_cost": 0.3, "relative_inference_cost": 0.37, "mean_relative_cost": found["mean_cost"]}
    Allocation(bits, details, summary | {"weight_mib": 0.0123, "coverage": coverage}).save(folder / "allocation.json")
    result = found | {"inference_cost": 0.37, "weight_mib": 0.0123, "seconds": 83.0, "versions": {"torch": "2"}}
    result |= {"seed": values["seed"], "policy": "from result", "task": values["task"], "model": values["model"]}
    (folder / "result.json").write_text(json.dumps(result))


def text_of(page: Path) -> str:
    """The words of the page, without its pictures and tags, with ordinary spaces."""
    raw = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page.read_text(encoding="utf-8"), flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(raw).replace("\u00a0", " "))


def png_pixels(data: bytes) -> np.ndarray:
    """Decode far enough to know that the file is whole and to see its bytes of colour: every checksum must hold."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, body = 8, b""
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, chunk = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        assert struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0] == zlib.crc32(kind + chunk)
        body += chunk if kind == b"IDAT" else b""
        place += 12 + length
    assert kind == b"IEND"
    return np.frombuffer(zlib.decompress(body), dtype=np.uint8)


# ---- one run ----


def test_page_shows_the_numbers_of_the_files(tmp_path, unpainted):
    folder = make_run(tmp_path / "run", accuracy=0.8765, words=["target_cost=0.6"])
    page = write_report([folder], folder)
    text = text_of(page)
    mean = json.loads((folder / "result.json").read_text())["mean_cost"]
    assert page == folder / "report.html"
    assert "Accuracy 87.65 %" in text
    assert f"Training cost {100 * mean:.1f} % of static 8 bits" in text
    assert f"reached {100 * mean:.1f} %: {100 * abs(mean / 0.6 - 1):.1f} % {'above' if mean > 0.6 else 'below'}" in text
    assert "Inference cost 37.0 %" in text and "Target cost 60.0 %" in text
    assert "Weights 0.0123 MiB" in text
    assert "Coverage 91.0 %" in text
    assert "Time 1 min 23 s" in text
    assert "Seed 0" in text
    assert "attention 900 9.00 % raw matmul" in text  # 900 of 10,000 MACs
    assert "not finished" not in text


def test_a_target_is_shown_as_it_was_given(tmp_path, unpainted):
    folder = make_run(tmp_path / "run", words=["target_cost=0.3165"])
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"mean_cost": 0.316502}))
    assert "Target cost 31.65 % reached 31.65 %: on target" in text_of(write_report([folder], folder))


def test_coverage_table_holds_bits_and_shares_of_every_layer(tmp_path, unpainted):
    folder = make_run(tmp_path / "run")
    text = text_of(write_report([folder], folder))
    allocation = json.loads((folder / "allocation.json").read_text())
    for layer in layers_of(load_run(folder)):
        row = allocation["layers"][layer.name]
        share = f"{100 * LAYERS[layer.name] / 10000:.2f} %"
        bits = f"{row['weight']} {row['input']} {row['grad']}"
        state = "fixed" if layer.name == "head" else "searched"
        expected = f"{layer.name} linear {'100' if layer.name == 'head' else f'{LAYERS[layer.name] // 1000} k'} {share} "
        assert expected + f"{100 * layer.cost_share:.2f} % {bits} {state}" in text


def test_shares_of_the_training_cost_by_hand(tmp_path):
    """Two layers, three records of unequal length: b_w b_x + b_w b_g + b_x b_g averaged over progress, times MACs."""
    folder = tmp_path / "run"
    folder.mkdir()
    trajectory = Trajectory(["a", "b"])
    for progress, a, b in ((0.5, 4, 8), (0.75, 4, 8), (1.0, 8, 8)):
        trajectory.append(progress, torch.tensor([[a, a, 8], [b, b, 8]], dtype=torch.uint8))
    trajectory.save(folder / "schedule.parquet")
    details = {name: {"kind": "linear", "macs": macs} for name, macs in (("a", 300), ("b", 100))}
    Allocation({"a": Bits(8, 8, 8), "b": Bits(8, 8, 8)}, details).save(folder / "allocation.json")
    a, b = layers_of(load_run(folder))
    of_a, of_b = 300 * (0.75 * (16 + 32 + 32) + 0.25 * 192), 100 * 192
    assert a.cost_share == pytest.approx(of_a / (of_a + of_b))
    assert b.cost_share == pytest.approx(of_b / (of_a + of_b))
    assert (a.mac_share, b.mac_share) == (0.75, 0.25)


def test_shares_where_the_gradients_are_split_by_hand(tmp_path):
    """b_w b_x + b_w b_gx + b_x b_gw, from the schedule and, without one, from the allocation."""
    details = {name: {"kind": "linear", "macs": 100} for name in ("a", "b")}
    rows = {"a": SplitBits(2, 4, 3, 8), "b": SplitBits(8, 4, 8, 2)}
    Allocation(rows, details).save(tmp_path / "allocation.json")
    expected = [(8 + 6 + 32) / (46 + 104), (32 + 64 + 8) / (46 + 104)]
    assert [one.cost_share for one in layers_of(load_run(tmp_path))] == pytest.approx(expected)
    trajectory = Trajectory(["a", "b"])
    trajectory.append(1.0, torch.tensor([*rows.values()], dtype=torch.uint8))
    trajectory.save(tmp_path / "schedule.parquet")
    layers = layers_of(load_run(tmp_path))
    assert [one.cost_share for one in layers] == pytest.approx(expected)
    assert [one.weight_grad for one in layers] == [8, 2]


def test_pictures_are_whole_not_blank_and_inside_the_page(tmp_path):
    folder = make_run(tmp_path / "run")
    page = write_report([folder], tmp_path / "out").read_text(encoding="utf-8")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert names == ["layers.png", "schedule.png", "training.png"]
    for name in names:
        data = (tmp_path / "out" / name).read_bytes()
        assert len(np.unique(png_pixels(data))) > 10
        assert base64.b64encode(data).decode() in page
    assert not list((tmp_path / "out").glob(".*"))  # no partial file is left


def test_page_loads_nothing(tmp_path, unpainted):
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", "cyclic")
    for page in (write_report([a], a), write_report([a, b], tmp_path / "both")):
        raw = page.read_text(encoding="utf-8")
        assert not re.search(r"https?://|//cdn|@import|<script|<link|<iframe|url\(", raw)
        sources = re.findall(r'(?:src|href|srcset|data)="([^"]*)', raw)
        assert sources and all(source.startswith("data:image/png;base64,") for source in sources)


def test_heatmap_pixels_are_the_bits(tmp_path):
    """The picture at a moment and layer has the colour of the bits then in force: a record holds until its progress."""
    folder = tmp_path / "run"
    folder.mkdir()
    trajectory = Trajectory(["a", "b"])
    for progress, a, b in ((0.25, 3, 8), (1.0, 5, 4)):
        trajectory.append(progress, torch.tensor([[a, a, 8], [b, b, 8]], dtype=torch.uint8))
    trajectory.save(folder / "schedule.parquet")
    schedule = load_run(folder).schedule
    seen = schedule.at("weight", np.array([0.0, 0.25, 0.26, 0.99, 1.0]))
    assert seen[:, 0].tolist() == [3, 3, 5, 5, 5]
    assert seen[:, 1].tolist() == [8, 8, 4, 4, 4]
    scale = BitScale.covering(seen, (3, 8))
    assert scale.levels == [3, 4, 5, 6, 7, 8]
    assert scale.index(seen.T).tolist() == [[0, 0, 2, 2, 2], [5, 5, 1, 1, 1]]


def test_full_precision_stands_apart_in_the_colour_scale():
    scale = BitScale.covering(np.array([3.0, 6.0, 32.0, np.nan]))
    assert scale.levels == [3, 4, 5, 6, 32]
    assert scale.colours[-1] == "#b5b5b5"
    assert scale.index(np.array([32.0, np.nan])).mask.tolist() == [False, True]


def test_names_from_outside_are_escaped(tmp_path):
    evil = "<script>alert('x')</script> & \"q\" $\\frac{$"
    folder = make_run(tmp_path / "run", layers={evil: 10, "b": 20})
    values = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(values | {"model": evil}))
    allocation = json.loads((folder / "allocation.json").read_text())
    allocation["coverage"]["left_out"] = [{"name": evil, "macs": 1, "reason": "<img src=x onerror=y>"}]
    (folder / "allocation.json").write_text(json.dumps(allocation))
    page = write_report([folder], folder)
    raw = page.read_text(encoding="utf-8")
    assert "<script" not in raw and "<img src=x" not in raw
    assert evil in text_of(page) and "<img src=x onerror=y>" in text_of(page)


# ---- the schedule in words ----


def words_of(folder: Path) -> str:
    run = load_run(folder)
    return describe(run, layers_of(run)).replace("\u00a0", " ")


def test_words_on_a_static_run(tmp_path):
    text = words_of(make_run(tmp_path / "run", "static"))
    assert "The 3 searched layers hold 8 bits for weights and inputs throughout." in text
    assert "training costs 100.0 % of static 8 bits" in text


def test_words_count_the_cycles(tmp_path):
    text = words_of(make_run(tmp_path / "run", "cyclic", records=400))
    assert "rise 4 times and fall 3 times between 3 and 8; they are 8 at the end" in text
    assert "share the same bits" in text


def test_words_name_trend_layers_and_changes(tmp_path):
    folder = make_run(tmp_path / "run", records=100)
    text = words_of(folder)
    schedule = load_run(folder).schedule
    bits = (schedule.bits["weight"] + schedule.bits["input"])[:, :3] / 2
    changed = (np.diff(schedule.bits["weight"][:, :3], axis=0) != 0) | (np.diff(schedule.bits["input"][:, :3], axis=0) != 0)
    first, last = bits[0].mean(), bits[-1].mean()
    assert f"begin at {first:.1f}".removesuffix(".0") in text and f"fall to {last:.1f}".removesuffix(".0") in text
    assert "the most bits go to stem" in text and "the fewest to body.1" in text
    assert f"at {100 * changed.any(1).mean():.1f} % of the 100 recorded steps" in text


@pytest.mark.parametrize(
    ("values", "turns"),
    [
        ([3, 4, 5, 6], [0, 3]),
        ([3, 6, 3], [0, 1, 2]),
        ([3, 6, 5.9, 6, 3.1, 3], [0, 1, 5]),
        ([5, 5.1, 5, 4.9, 5], [0]),
        ([3, 8, 8, 7.9], [0, 1]),
        ([3, 8, 3, 8, 3], [0, 1, 2, 3, 4]),
        ([4], [0]),
    ],
)
def test_turning_points(values, turns):
    assert turning_points(np.array(values, dtype=float), 1.0) == turns


def test_durations():
    assert [duration(s) for s in (None, 5.25, 60, 3599, 7290)] == ["–", "5.2 s", "1 min 0 s", "59 min 59 s", "2 h 1 min"]


# ---- unfinished and broken runs ----


def test_report_during_training(tmp_path):
    folder = make_run(tmp_path / "run", until=0.5)
    text = text_of(write_report([folder], folder))
    assert "This run is not finished: it is at 50 %." in text
    assert "allocation.json is not there yet" in text and "result.json is not there yet" in text
    assert "Accuracy 45.00 % at the newest evaluation" in text  # 0.9 * progress 0.5
    assert "over the run so far, training costs" in text.lower()
    assert len(list(folder.glob("*.png"))) == 3


@pytest.mark.parametrize("kept", ["config.yaml", "metrics.jsonl", "schedule.parquet", "allocation.json", "result.json"])
def test_any_single_file_is_enough(tmp_path, kept):
    folder = make_run(tmp_path / "run")
    for path in folder.iterdir():
        if path.name != kept:
            path.unlink()
    text = text_of(write_report([folder], folder))
    lacking = {"config.yaml", "metrics.jsonl", "schedule.parquet", "allocation.json", "result.json"} - {kept}
    assert all(f"{name} is not there yet" in text for name in lacking)
    assert f"{kept} is not there yet" not in text


@pytest.mark.parametrize("broken", ["config.yaml", "schedule.parquet", "allocation.json", "result.json"])
@pytest.mark.parametrize("content", [b"", b"{\x00\xff half", b"[1, 2]"])
def test_unreadable_files_are_named_not_fatal(tmp_path, unpainted, broken, content):
    folder = make_run(tmp_path / "run")
    (folder / broken).write_bytes(content)
    assert f"{broken} could not be read" in text_of(write_report([folder], folder))


def test_cut_off_and_repeated_lines_of_metrics(tmp_path, unpainted):
    folder = make_run(tmp_path / "run", until=0.5)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"split": "eval", "step": 19, "progress": 0.5, "accuracy": 0.77, "loss": NaN}\n{"split": "tra')
    run = load_run(folder)
    assert run.score == 0.77  # the later line of a step that a resume repeated
    assert [p for p, _ in zip(*run.curve("accuracy", "eval"), strict=True)] == [0.25, 0.5]
    assert "metrics.jsonl has 1 unreadable line" in text_of(write_report([folder], folder))


def test_optional_keys_may_be_missing(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "allocation.json").write_text(json.dumps({"layers": {n: {"weight": 4} for n in LAYERS}}))
    (folder / "result.json").write_text(json.dumps({"accuracy": None, "seed": 0}))
    (folder / "metrics.jsonl").write_text('{"split": "train", "step": 1, "progress": 0.1}\n')
    text = text_of(write_report([folder], folder))
    assert "Accuracy –" in text and "Coverage –" in text


# ---- size ----


@breadth("count", [1, 3, 1000], always=[1])
def test_few_and_many_layers(tmp_path, count):
    layers = {f"model.blocks.{i}.attention.output.projection_with_a_long_name": 10 + i for i in range(count)}
    folder = make_run(tmp_path / "run", layers=layers, records=20)
    page = write_report([folder], folder)
    width, height = struct.unpack(">II", (folder / "schedule.png").read_bytes()[16:24])
    assert width == 1210 and 150 < height < 1600
    assert text_of(page).count("_with_a_long_name linear") == count


def test_names_are_shortened_in_the_middle_and_keep_their_numbers():
    name = "bert.encoder.layer.11.attention.output.dense"
    short = elide(name, 30)
    assert len(short) <= 30 and short.startswith("bert") and short.endswith("dense") and "11" in short and "…" in short
    assert elide("conv1", 30) == "conv1"
    assert elide("x" * 50, 21) == "x" * 10 + "…" + "x" * 10
    assert row_edges(10, 3).tolist() == [0, 4, 8, 10] and row_edges(2, 9).tolist() == [0, 1, 2]


@pytest.mark.slow(reason="a process of its own; that nothing is drawn by pyplot is always shown in test_figures.py")
def test_figures_leave_no_global_state(tmp_path):
    folder = make_run(tmp_path / "run", records=10)
    script = (
        "import sys, matplotlib\n"
        "settings = lambda: {k: matplotlib.rcParams[k] for k in matplotlib.rcParams if k != 'backend'}\n"
        "before = settings()\n"
        "from ldp_search.runner.report import write_report\n"
        f"write_report([{str(folder)!r}], {str(tmp_path / 'out')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot'\n"
        "assert settings() == before, 'rcParams'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


# ---- several runs ----


def test_groups_are_means_over_seeds_by_hand(tmp_path, unpainted):
    accuracies = {"learned": (0.90, 0.92, 0.97), "cyclic": (0.80,)}
    folders = [
        make_run(tmp_path / f"{policy}-{seed}", policy, seed, accuracy)
        for policy, values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]
    groups = group_runs([load_run(folder) for folder in folders])
    assert [(group.label, len(group.runs)) for group in groups] == [("learned, target 0.3165", 3), ("cyclic", 1)]
    mean, spread, n = groups[0].mean_sd("score")
    assert (mean, n) == (pytest.approx(0.93), 3)
    assert spread == pytest.approx(((0.03**2 + 0.01**2 + 0.04**2) / 2) ** 0.5)
    assert groups[1].mean_sd("score") == (0.80, None, 1)
    text = text_of(write_report(folders, tmp_path / "out"))
    assert "4 runs side by side" in text
    assert "learned, target 0.3165 3 0, 1, 2 93.00 ± 3.61 %" in text
    assert "cyclic 1 0 80.00 %" in text
    assert "learned-2 learned, target 0.3165 2 97.00 %" in text
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert {"comparison.png", "curves.png", "schedules.png", "run01_schedule.png", "run04_layers.png"} <= pictures


def test_an_unfinished_run_is_listed_but_in_no_mean(tmp_path, unpainted):
    folders = [make_run(tmp_path / "a", seed=0, accuracy=0.9), make_run(tmp_path / "b", seed=1, until=0.5)]
    text = text_of(write_report(folders, tmp_path / "out"))
    assert "learned, target 0.3165 1 of 2 0, 1 90.00 %" in text
    assert "Not finished, and therefore in no mean: b: at 50 %" in text


def test_runs_of_different_settings_are_not_one_group(tmp_path, unpainted):
    settings = (["target_cost=0.5"], ["target_cost=0.6"], ["target_cost=0.6", "batch_size=32"])
    folders = [make_run(tmp_path / f"r{i}", words=words) for i, words in enumerate(settings)]
    labels = [group.label for group in group_runs([load_run(folder) for folder in folders])]
    assert labels[0] == "learned, target 0.5"
    assert labels[1] == "learned, target 0.6, batch_size 64" and labels[2] == "learned, target 0.6, batch_size 32"
    static = [make_run(tmp_path / f"s{b}", "static", words=[f"policy.bits={b}"]) for b in (4, 6)]
    labels = [group.label for group in group_runs([load_run(folder) for folder in static])]
    assert labels == ["static, policy.bits 4", "static, policy.bits 6"]


def test_costs_in_different_units_are_pointed_out(tmp_path, unpainted):
    same = [make_run(tmp_path / "a"), make_run(tmp_path / "b", "cyclic")]
    assert "different units" not in text_of(write_report(same, tmp_path / "out"))
    other = make_run(tmp_path / "c", words=["bits=[3, 6]"])
    text = text_of(write_report([*same, other], tmp_path / "out"))
    assert "different units" in text and "8/8/8 bits: a, b" in text and "6/6/8 bits: c" in text


def test_a_run_given_twice_counts_once_and_equal_names_are_told_apart(tmp_path, unpainted):
    a, b = make_run(tmp_path / "x" / "run"), make_run(tmp_path / "y" / "run", seed=1)
    assert "1 runs" not in text_of(write_report([a, a], tmp_path / "once"))
    text = text_of(write_report([a, b, a], tmp_path / "out"))
    assert "2 runs side by side" in text and "x/run" in text and "y/run" in text


def test_no_run_of_several_finished(tmp_path, unpainted):
    folders = [make_run(tmp_path / "a", until=0.5), make_run(tmp_path / "b", seed=1, until=0.2)]
    assert "0 of 2" in text_of(write_report(folders, tmp_path / "out"))


# ---- to repeat a run ----


@pytest.mark.parametrize(
    "words",
    [
        ["seed=3"],
        ["task=cifar10", "space=cyclic", "policy.cycles=8", "recipe=quick"],
        ["cost_weight=0.1", "skip=['*.fc', 'a b']", "steps=50"],
    ],
)
def test_the_command_gives_the_configuration_again(tmp_path, words):
    folder = tmp_path / "run"
    folder.mkdir()
    values = resolve([*words, f"output={folder}"]).values
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    line = shlex.split(command(load_run(folder)))
    assert line[:3] == ["python", "-m", "ldp_search.run"]
    again = resolve(line[3:]).values
    assert {k: v for k, v in again.items() if k != "output"} == {k: v for k, v in values.items() if k != "output"}
    assert len(line) < 13 and not [word for word in line if word.endswith("=null")]  # only what the recipe does not say


def test_the_command_when_the_task_file_is_gone(tmp_path):
    (tmp_path / "config.yaml").write_text("task: /gone/mine.yaml\nmodel: timm:x\nseed: 1\nlr: null\noutput: here\n")
    assert command(load_run(tmp_path)) == "python -m ldp_search.run task=/gone/mine.yaml model=timm:x seed=1"


# ---- the command line ----


def fails(capsys, *words) -> str:
    assert main([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err and captured.out == ""
    return captured.err


def test_command_line_writes_and_prints_the_page(tmp_path, unpainted, capsys):
    folder = make_run(tmp_path / "lr=0.1")  # a folder whose name looks like a word
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert main([str(folder), f"output={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out" / "report.html").is_file()


def test_command_line_errors(tmp_path, unpainted, capsys):
    folder = make_run(tmp_path / "runs" / "first")
    assert f"Did you mean '{folder}'" in fails(capsys, tmp_path / "runs" / "frist")
    assert f"Runs in '{tmp_path / 'runs'}': '{folder}'" in fails(capsys, tmp_path / "runs")
    assert f"Did you mean '{folder}'" in fails(capsys, folder / "metrics.jsonl")
    assert "there is no such folder" in fails(capsys, tmp_path / "else" / "deep" / "zzz")
    assert "Did you mean 'output=FOLDER'" in fails(capsys, folder, "ouput=x")
    assert "Did you mean 'output=FOLDER'" in fails(capsys, folder, "--output=x")
    assert "one folder, once" in fails(capsys, folder, "output=")
    assert "one folder, once" in fails(capsys, folder, "output=a", "output=b")
    assert "No run given" in fails(capsys)
    (tmp_path / "file").write_text("")
    assert "file" in fails(capsys, folder, f"output={tmp_path / 'file' / 'x'}")
    assert not list(folder.glob("*.png"))  # nothing was written on any of these


@pytest.mark.slow(reason="a process of its own around main, which is always called here")
def test_command_line_in_a_process_of_its_own(tmp_path):
    call = [sys.executable, "-m", "ldp_search.report", str(tmp_path / "none")]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "No run folder" in done.stderr and "Traceback" not in done.stderr


def test_command_line_help(capsys):
    assert main(["--help"]) == 0
    assert "output=FOLDER" in capsys.readouterr().out


def test_write_report_needs_a_run():
    with pytest.raises(ReportError, match="at least one"):
        write_report([])
