"""The benchmark of the paper's comparison: cells that resume bitwise, paired seeds, leases, failures, costs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import ldp_search
from benchmarks.paper import costs, data, expected, graphs, lease, rows
from benchmarks.paper.__main__ import Options, read
from benchmarks.paper.cells import Cell, choose
from benchmarks.paper.networks import NETWORKS
from benchmarks.paper.recipes import recipe_of
from benchmarks.paper.store import Store
from benchmarks.paper.table import markdown, report, summary
from benchmarks.paper.training import Training
from benchmarks.paper.work import Worker

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Prepared data: noise in the shape of pictures of 8x8."""
    monkeypatch.setattr(lease, "SETTLE", 0.0)
    draw = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 256), ("test", 64)):
        arrays[f"{split}_images"] = draw.integers(0, 256, (count, 8, 8, 3), np.uint8)
        arrays[f"{split}_labels"] = draw.integers(0, 10, count, np.uint8)
    np.savez(tmp_path / "cifar10-16.npz", **arrays)
    return tmp_path


def add_row(monkeypatch, name, space, **fields):
    monkeypatch.setitem(rows.ROWS, name, rows.Row(name, space, **fields))
    return Cell("resnet20", name, "proxy", 0, steps=6)


def work(folder, *cells, **options):
    values = {"data": str(folder), "output": str(folder / "out"), "begun": "2026"} | options
    store = Store(folder / "out")
    worker = Worker(list(cells), store, Options(**values))
    worker.run()
    return store.lines()


LEARNED = rows.PUBLISHED | rows.OLD_SIGNAL | {"target_cost": 0.4}


def test_all_rows_of_a_seed_start_from_the_same_weights_and_see_the_same_batches(folder):
    trainings = [Training(Cell("resnet20", row, "proxy", 1, steps=6), folder, CPU) for row in ("fp32", "static448")]
    first, second = trainings
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    second.steps.gradients(False)  # draws of the quantizers do not touch the data's
    for training in trainings:
        training.data.begin_epoch(3, position=1)
    for a, b in zip(first.data.batch(), second.data.batch(), strict=True):
        assert torch.equal(a, b)
    other = Training(Cell("resnet20", "fp32", "proxy", 2, steps=6), folder, CPU)
    assert not torch.equal(other.model.fc.weight, first.model.fc.weight)


def test_a_batch_is_a_moved_and_flipped_picture(folder):
    training = data.open_data(folder, recipe_of("resnet20", "proxy"), 0, CPU)
    training.begin_epoch(0)
    training.moves[0, 0] = torch.tensor([2, 2, 0])  # the padding of 2: the picture itself
    training.moves[0, 1] = torch.tensor([2, 2, 1])
    images, _ = training.batch()
    whole = training.images[training.order[0, :2], 2:-2, 2:-2]
    assert torch.equal(images[0], training._normalized(whole[:1])[0])
    assert torch.equal(images[1], training._normalized(whole[1:])[0].flip(-1))


def test_a_stopped_cell_goes_on_bitwise(folder, monkeypatch):
    cell = add_row(monkeypatch, "learned", LEARNED)
    whole = Training(cell, folder, CPU)
    assert whole.run()
    for stop in (1, 4):  # within an epoch of two steps, and at the end of one
        part = Training(cell, folder, CPU)
        part.load(folder / "checkpoint.pt")

        def pause(training, stop=stop):
            if training.step == stop:
                training.save(folder / "checkpoint.pt")
            return training.step == stop

        assert not part.run(pause)
    last = Training(cell, folder, CPU)
    assert last.load(folder / "checkpoint.pt") and last.step == 4
    assert last.run()
    assert last.curve == whole.curve
    ours, theirs = last.result(), whole.result()
    assert {k: ours[k] for k in ("accuracy", "test_loss", "cost", "curve")} == {
        k: theirs[k] for k in ("accuracy", "test_loss", "cost", "curve")
    }


def test_a_checkpoint_of_other_settings_is_not_taken(folder, monkeypatch):
    Training(add_row(monkeypatch, "one", LEARNED), folder, CPU).save(folder / "checkpoint.pt")
    other = Training(add_row(monkeypatch, "one", LEARNED | {"target_cost": 0.5}), folder, CPU)
    assert not other.load(folder / "checkpoint.pt")


def test_a_done_cell_leaves_its_line_and_its_bits_and_is_not_repeated(folder, monkeypatch):
    cell = add_row(monkeypatch, "static", rows.ROWS["static448"].space)
    (line,) = work(folder, cell)
    assert line["status"] == "done" and line["cost"] == pytest.approx(80 / 192) and line["inference_cost"] == 0.25
    assert {"date", "machine", "versions", "commit", "accuracy", "train_loss", "settings"} <= set(line)
    left = folder / "out" / "cells" / cell.name
    assert ldp_search.Allocation.load(left / "allocation.json").layers["conv1"] == (4, 4, 8)
    assert (left / "schedule.parquet").is_file() and not (left / "checkpoint.pt").exists()
    assert work(folder, cell) == [line]


def test_a_failing_cell_is_recorded_once_and_tried_again_on_request(folder, monkeypatch):
    cell = add_row(monkeypatch, "broken", {"policy": "static", "bits": 99})
    (line,) = work(folder, cell)
    assert line["status"] == "failed" and "99" in line["error"]
    assert len(work(folder, cell)) == 1
    assert len(work(folder, cell, retry=True, begun="9999")) == 2


def test_a_diverged_training_is_recorded_as_failed(folder, monkeypatch):
    cell = add_row(monkeypatch, "plain", None)
    monkeypatch.setattr(data.Pictures, "loss", staticmethod(lambda outputs, targets: outputs.sum() * float("nan")))
    (line,) = work(folder, cell)
    assert line["status"] == "failed" and "Diverged" in line["error"]


def test_a_cell_that_keeps_dying_counts_as_failed(folder, monkeypatch):
    cell = add_row(monkeypatch, "plain", None)
    for _ in range(3):
        Store(folder / "out").count_attempt(cell, 0)
    (line,) = work(folder, cell)
    assert line["status"] == "failed" and "died 3 times" in line["error"]


def test_a_replay_waits_for_its_source_and_has_its_final_bits_from_the_start(folder, monkeypatch, capsys):
    source = add_row(monkeypatch, "learned", LEARNED)
    replay = add_row(monkeypatch, "replayed", {"policy": "replay", "bits": (2, 8), "grad_bits": 8}, replays="learned")
    assert work(folder, replay) == []
    assert "it replays resnet20-learned-proxy-seed0, which is not done" in capsys.readouterr().out
    first, second = work(folder, replay, source)
    assert (first["row"], second["row"]) == ("learned", "replayed")
    assert second["cost"] == pytest.approx(first["final_cost"])


def test_after_the_deadline_no_cell_begins_and_a_running_one_saves(folder, monkeypatch):
    cell = add_row(monkeypatch, "plain", None)
    assert work(folder, cell, until=time.time() - 1) == []
    now = iter([0.0] * 6)  # the worker looks at the clock before it begins, then before every step
    monkeypatch.setattr(time, "time", lambda: next(now, 10.0))
    assert work(folder, cell, until=5.0) == []
    state = torch.load(folder / "out" / "cells" / cell.name / "checkpoint.pt", weights_only=False)
    assert 0 < state["step"] < 6


def test_a_lease_is_held_by_one_and_free_after_release(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "SETTLE", 0.0)
    mine = lease.Lease.take(tmp_path / "lease")
    assert mine is not None and lease.Lease.take(tmp_path / "lease") is None
    mine.release()
    again = lease.Lease.take(tmp_path / "lease")
    assert again is not None
    again.release()


def test_a_lease_of_another_machine_holds_while_it_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "SETTLE", 0.0)
    path = tmp_path / "lease"
    path.write_text("another-machine 17 token")
    assert lease.Lease.take(path) is None
    os.utime(path, (0, 0))
    taken = lease.Lease.take(path)
    assert taken is not None
    taken.release()


def test_a_holder_that_finds_another_name_has_lost_the_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "SETTLE", 0.0)
    monkeypatch.setattr(lease, "BEAT", 0.01)
    mine = lease.Lease.take(tmp_path / "lease")
    (tmp_path / "lease").write_text("another-machine 17 token")
    mine.beats.join(5)
    assert mine.lost
    mine.release()
    assert (tmp_path / "lease").read_text() == "another-machine 17 token"


def test_the_published_cost_of_known_bits():
    macs = torch.tensor([3.0, 1.0])
    for bits, cost in (((4, 4, 8), 80 / 192), ((5, 5, 4), 65 / 192), ((8, 8, 8), 1.0), ((4, 4, 6, 2), 48 / 192)):
        assert costs.over_time(torch.tensor([[bits, bits]], dtype=torch.uint8), macs).item() == pytest.approx(cost)
    halves = torch.tensor([[(8, 8, 8)] * 2, [(4, 4, 4)] * 2], dtype=torch.uint8)
    assert costs.mean_cost([0.25, 1.0], halves, macs) == pytest.approx(0.25 + 0.75 * 0.25)


def test_the_networks_have_the_published_costs():
    for name, millions in (("resnet20", 40.81), ("resnet38", 83.28)):
        model = ldp_search.apply(NETWORKS[name].build(32, 10), policy="static", example_inputs=torch.zeros(1, 3, 32, 32))
        layers = ldp_search.controller(model).layers.values()
        assert sum(layer.macs for layer in layers) / 1e6 == pytest.approx(millions, abs=0.005), name


@pytest.mark.parametrize("network", ["mobilenetv2", "vit", "gpt"])
def test_all_products_of_the_other_networks_are_quantized(network):
    inputs = torch.zeros(1, 8, dtype=torch.long) if network == "gpt" else torch.zeros(1, 3, 16, 16)
    built = NETWORKS[network]
    model = ldp_search.apply(built.build(16, 10), policy="static", example_inputs=inputs, **built.space)
    assert ldp_search.controller(model).coverage.share == 1.0


def test_texts_predict_every_token_once(tmp_path):
    np.savez(tmp_path / "wikitext2.npz", train_tokens=np.arange(128 * 40 + 1, dtype=np.uint16), test_tokens=np.arange(300))
    texts = data.open_data(tmp_path, recipe_of("gpt", "proxy"), 0, CPU)
    assert (texts.samples, len(texts.test)) == (40, 2)
    inputs, targets = texts.batch()
    assert torch.equal(inputs + 1, targets) and inputs.shape == (16, 128)


def test_the_learning_rate_warms_up_and_ends_near_zero_or_falls_in_steps():
    cosine, steps = recipe_of("resnet20", "proxy"), recipe_of("resnet20", "full")
    rates = [cosine.lr_at(step, 1000) for step in range(1000)]
    assert max(rates) == pytest.approx(0.1, rel=0.03) and rates.index(max(rates)) in range(48, 52)
    assert rates[0] < 0.003 and rates[-1] < 1e-5
    assert [round(steps.lr_at(s, 64_000), 6) for s in (0, 31_999, 32_000, 48_000)] == [0.1, 0.1, 0.01, 0.001]


def test_cells_come_by_pattern_priority_and_seed():
    cells = choose(["vit/fp32", "resnet20/*"], "proxy", [0, 1])
    names = [f"{c.network}/{c.row}/{c.seed}" for c in cells]
    assert names[:3] == ["vit/fp32/0", "vit/fp32/1", "resnet20/static8/0"]
    first = [name for name in names if name.startswith("resnet20")]
    assert first.index("resnet20/learned_0.25/1") < first.index("resnet20/fp32/0")
    assert len(names) == len(set(names)) == 2 * (len(rows.ROWS) + 1)


def test_unknown_words_are_told_with_the_nearest_ones():
    with pytest.raises(ValueError, match="Did you mean 'resnet20/static8'"):
        choose(["resnet20/static9"], "proxy", [0])
    with pytest.raises(ValueError, match="Did you mean 'proxy'"):
        choose(["*"], "proxi", [0])
    with pytest.raises(ValueError, match="Did you mean 'seeds'"):
        read(["seed=1"])
    with pytest.raises(ValueError, match="workers must be of type int"):
        read(["workers=many"])


def test_settings_are_plain_data_and_tell_cells_apart():
    cell = Cell("resnet20", "cpt", "full", 0)
    assert json.loads(json.dumps(cell.settings)) == cell.settings
    assert cell.settings["space"]["policy"] == {"name": "cyclic", "cycles": 32}
    assert cell.fingerprint != Cell("resnet20", "cpt", "proxy", 0).fingerprint


def test_differences_are_of_paired_seeds_with_their_standard_error():
    place = {"network": "resnet20", "size": "proxy", "cut": "", "status": "done", "perplexity": None, "commit": "a"}
    place |= {"train_loss": 1.0, "test_loss": 1.0, "cost": 0.5, "inference_cost": 0.5, "training_bitops": 1e12}
    scores = {"cpt": {0: 70.0, 1: 71.0, 2: 75.0}, "learned": {0: 71.0, 1: 73.0}}
    table = [place | {"row": row, "seed": s, "accuracy": a} for row, found in scores.items() for s, a in found.items()]
    table.append(place | {"row": "learned", "seed": 2, "status": "failed", "accuracy": None})
    learned = next(line for line in summary(table) if line["row"] == "learned")
    assert (learned["seeds"], learned["score"], learned["minus_cpt"]) == (2, 72.0, 1.5)
    assert learned["minus_cpt_se"] == pytest.approx(0.5) and learned["minus_static8"] is None
    scores = {"uniform_444": {0: 70.0, 1: 70.5}, "learned_0.25": {0: 71.0, 1: 71.7, 2: 80.0}}
    table = [place | {"row": row, "seed": s, "accuracy": a} for row, found in scores.items() for s, a in found.items()]
    uniform, learned = summary(table)[::-1]
    assert learned["minus_uniform"] == pytest.approx(1.1) and learned["minus_uniform_se"] == pytest.approx(0.1)
    assert uniform["minus_uniform"] is None
    scores = {"learned_as_333": {0: 70.0, 1: 70.5}, "as_333_one_gradient": {0: 69.0, 1: 69.7}}
    table = [place | {"row": row, "seed": s, "accuracy": a} for row, found in scores.items() for s, a in found.items()]
    part, whole = sorted(summary(table), key=lambda line: line["row"])
    assert part["minus_whole"] == pytest.approx(-0.9) and whole["minus_whole"] is None


def test_texts_are_compared_by_the_loss_on_the_test_set():
    """A text is read less than once, so the mean over its only epoch begins at that of no training."""
    place = {"network": "gpt", "size": "proxy", "cut": "", "status": "done", "accuracy": None, "commit": "a", "row": "cpt"}
    place |= {"cost": 0.5, "inference_cost": 0.5, "training_bitops": 1e12}
    table = [place | {"seed": s, "perplexity": 90.0 + s, "train_loss": 5.5, "test_loss": 4.5 + s / 100} for s in (0, 2)]
    head, *_, row, _, _ = markdown(summary(table), []).splitlines()[2:]
    assert head.startswith("| row | seeds | perplexity | test loss |") and "| 91.00 ± 1.41 | 4.510 ± 0.014 |" in row


def test_a_part_is_taken_out_of_a_row_that_there_is():
    for row in rows.ROWS.values():
        if row.part_of is not None:
            whole = rows.ROWS[row.part_of].space
            assert row.space != whole and row.space.get("target_cost") == whole.get("target_cost")


def test_the_uniform_bits_beside_a_learned_row_cost_what_it_costs():
    beside = [row for row in rows.ROWS.values() if row.beside is not None]
    assert {"learned_0.25", "learned_as_443"} <= {row.name for row in beside}
    for row in beside:
        other = rows.ROWS[row.beside].space
        bits = torch.tensor([[other["weight_bits"], other["input_bits"], other["grad_bits"]]])
        assert costs.over_time(bits[None], torch.ones(1)).item() == pytest.approx(row.space["target_cost"])


def test_a_report_has_tables_and_figures_of_what_there_is(folder, monkeypatch, capsys):
    assert report(folder / "out") == 2  # nothing yet
    cells = [add_row(monkeypatch, "learned_0.4", LEARNED), add_row(monkeypatch, "fp32", None)]
    work(folder, *cells, add_row(monkeypatch, "broken", {"policy": "static", "bits": 99}))
    assert report(folder / "out") == 0
    printed = capsys.readouterr().out
    assert "| learned_0.4 | 1 |" in printed and "Failed: resnet20-broken-proxy-seed0: ValueError" in printed
    assert len((folder / "out" / "table.csv").read_text().splitlines()) == 4
    drawn = {path.name for path in (folder / "out" / "figures").iterdir()}
    kinds = ("accuracy-{}", "cost-{}", "allocation-{}", "schedule-{}-learned_0.4")
    assert drawn == {f"{kind.format('resnet20-proxy-steps6')}.png" for kind in kinds}


BARE = """
import builtins, sys

def without(name, globals=None, locals=None, fromlist=(), level=0, do=builtins.__import__):
    if level == 0 and name.partition(".")[0] in sys.argv[1].split(","):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return do(name, globals, locals, fromlist, level)

builtins.__import__ = without
from benchmarks.paper.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow(reason="two processes; what they do with all packages there is always shown above")
def test_a_machine_with_torch_numpy_and_pyarrow_alone_trains_and_tells(folder):
    absent = (
        "timm,transformers,accelerate,datasets,optuna,pandas,matplotlib,omegaconf,safetensors,huggingface_hub,PIL,tokenizers"
    )
    words = [f"data={folder}", f"output={folder / 'out'}", "steps=3", "seeds=0", "cells=resnet20/fp32,resnet20/static448"]
    for last in (words, [f"report={folder / 'out'}"]):
        done = subprocess.run([sys.executable, "-c", BARE, absent, *last], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    assert "| static448 | 1 |" in done.stdout and "No figures" in done.stderr


def test_where_a_capture_fails_the_steps_go_on_as_written(folder, monkeypatch):
    def no_capture(*_, **__):
        raise RuntimeError("nothing to capture on\nand more")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", no_capture)
    cell = Cell("resnet20", "learned_old_signal", "proxy", 0, steps=7)
    written = Training(cell, folder, CPU)
    assert written.run()
    tried = Training(cell, folder, CPU)
    tried.steps = graphs.GraphSteps(tried.model, tried.data, tried.optimizer)
    assert tried.run()
    assert tried.curve == written.curve
    assert tried.steps.note == "eager: the capture of ordinary failed: nothing to capture on"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("row", ["fp32", "cpt", "learned_old_signal"])
def test_graphs_train_as_the_written_loop_does(folder, row):
    cell, device = Cell("resnet20", row, "proxy", 0, epochs=10), torch.device("cuda")
    runs = [Training(cell, folder, device, graph=graph) for graph in (True, False)]
    for training in runs:
        assert training.run()
    assert runs[0].steps.note == "graph"
    assert runs[0].curve[0] == pytest.approx(runs[1].curve[0], rel=0.05)
    assert runs[0].result()["cost"] == pytest.approx(runs[1].result()["cost"], rel=0.02)


def test_a_training_tells_what_it_expects_of_bits_that_it_does_not_use(folder, monkeypatch):
    cell = add_row(monkeypatch, "one", rows.NEW | rows.SEARCHED | {"policy": "learned", "target_cost": 0.25})
    training = Training(cell, folder, CPU)
    training.run(pause=lambda t: t.step == 2)
    table = [[float(part) for part in line.split("|")[2:5]] for line in expected.lines(training)[2:]]
    assert [cost for cost, _, _ in table] == [1.0, 0.339, 0.25, 0.245, 0.208, 0.141], "the triples' published costs"
    assert table[0][1] < table[1][1] < table[2][1] < table[4][1] < table[5][1], "fewer bits, more loss"
    assert all(0 < best <= uniform for _, uniform, best in table)
    training.save(folder / "checkpoint.pt")
    with pytest.raises(SystemExit, match="must be of resnet20-one-proxy-seed0 as it is trained today"):
        expected.main([f"checkpoint={folder / 'checkpoint.pt'}", "row=one", f"data={folder}"])
