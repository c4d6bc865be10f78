"""`python -m ldp_search.profile`: what it measures and writes, what a run makes of it, its mistakes. No test asserts a time."""

import json

import pytest
from tiny import WORDS, net

import ldp_search
from ldp_search import profile
from ldp_search.config.overlay import ConfigError
from ldp_search.core.bits.latency import TARGETS, LatencyTable
from ldp_search.runner.latency import command
from ldp_search.runner.latency.onnxruntime_nodes import CONVERSIONS, split
from ldp_search.runner.latency.options import parse
from ldp_search.runner.latency.runtimes import RUNTIMES

SMALL = ["task=digits", "limit=160", "eval_limit=50", "model=tiny:net", "turns=5"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """{target: path of the table that the program wrote}."""
    folder = tmp_path_factory.mktemp("tables")
    out = {}
    for target in RUNTIMES:
        out[target] = folder / f"{target}.json"
        assert profile.main([*SMALL, f"target={target}", "containers=[4,8]", f"output={out[target]}"]) == 0
    return out


def test_every_target_has_containers_and_something_that_runs_them():
    assert RUNTIMES.keys() == TARGETS.keys()


@pytest.mark.parametrize("target", RUNTIMES)
def test_a_table_has_every_shape_in_every_container_and_where_it_is_from(tables, target):
    found = LatencyTable.load(tables[target])
    assert found.containers == (4, 8, 32), "floating point is always measured"
    content = found.content
    assert [row["layers"] for row in content["rows"]] == [["0"], ["3"], ["9"]]
    assert content["rows"][0]["shape"].startswith("Conv2d 6x1x3x3 stride=1,1 padding=1,1")
    assert content["target"] == target and content["inputs"] == [[1, 1, 8, 8]] and content["threads"] == content["batch"] == 1
    assert content["device"] and content["date"] and "torch" in content["versions"]
    for row in content["rows"]:
        assert row["times"]["4"] == row["times"]["8"], "there is no kernel of 4 bits: those of 8 run it"
        assert all(each["us"] > 0 and each["spread"] >= 0 and each["edges"] >= 0 for each in row["times"].values())
    assert content["whole"]["4"] == content["whole"]["8"] > 0


@pytest.mark.slow(reason="a run with report and export; a budget of time is always met in test_latency.py")
def test_a_run_searches_within_the_latency_of_its_table_and_tells_it(tables, tmp_path, capsys):
    from ldp_search import run

    table = json.loads(tables["onnxruntime-cpu"].read_text())
    for row in table["rows"]:  # times of one's own: no test asserts what this machine takes
        row["times"] = {"4": _us(10), "8": _us(10), "32": _us(40)}
    table["whole"] = {"4": 30.0, "8": 30.0, "32": 120.0}
    place = tmp_path / "table.json"
    place.write_text(json.dumps(table))
    words = [*WORDS, "bits=[4,16]", f"latency={place}", "target_latency=0.6", "target_cost=null", "export=onnx"]
    assert run.main([*words, f"output={tmp_path / 'run'}"]) == 0
    told = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["latency"] <= 0.6 and result["latency_ms"] == pytest.approx(0.12 * result["latency"])
    assert "(budget 0.6)" in told and f"latency={place} " in told.replace("\n", " ") + " " and ", latency 0.6" in told
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Latency" in page and "; budget 60" in page
    exported = json.loads((tmp_path / "run" / "export.json").read_text())["files"]["onnx"]
    allocation = json.loads((tmp_path / "run" / "allocation.json").read_text())["layers"]
    wide = {name for name, bits in allocation.items() if max(bits["weight"], bits["input"]) > 8}
    assert wide and set(exported["float_layers"]) == wide, "layers of more than 8 bits are floating point in the file"
    assert set(exported["integer_layers"]) == set(allocation) - wide
    place.unlink()
    again = ldp_search.controller(ldp_search.load_pretrained(tmp_path / "run", model=net(10, 1)))
    assert again.cost().relative_latency == pytest.approx(result["latency"]), "the table is in the folder"


def _us(value):
    return {"us": float(value), "spread": 0.0, "edges": 0.0}


def test_the_times_of_a_record_by_hand():
    def node(ts, index, op, dur):
        return {
            "cat": "Node",
            "name": f"{op}{index}_kernel_time",
            "ts": ts,
            "dur": dur,
            "args": {"node_index": index, "op_name": op},
        }

    ops = ("QuantizeLinear", "Transpose", "QLinearConv", "DequantizeLinear")
    events = [node(10 * turn + i, i, op, 2**i) for turn in range(3) for i, op in enumerate(ops)]
    events += [{"cat": "Session", "name": "model_run", "ts": 0, "dur": 99}]
    assert split(events, CONVERSIONS) == [(3.0, 4.0, 8.0)] * 3
    assert split(events, ()) == [(0, 15.0, 0)] * 3, "a linear layer rounds its input whatever its neighbours"


MISTAKES = [
    (["target=onnxruntime"], "Did you mean 'onnxruntime-cpu'?"),
    (["target=cuda"], "no exported file runs on CUDA in integers"),
    (["containers=[1]"], "bits from 2 to 32"),
    (["turns=0"], "turns must be a whole number above 0"),
    (["model=tiny:nothing"], "importable"),
    (["--turns"], "Unknown option"),
    (["batch=some"], "a whole number"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes_end_with_2_and_one_message(words, message, tmp_path, capsys):
    assert profile.main([*SMALL[:3], f"output={tmp_path / 'table.json'}", *words]) == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told
    assert not (tmp_path / "table.json").exists()


def test_a_measurement_that_stops_leaves_no_folder(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("ldp_search.runner.latency.command.build_task", stop)
    with pytest.raises(KeyboardInterrupt):
        command.run(parse([*SMALL, f"output={tmp_path / 'a' / 'b' / 'table.json'}"]))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="must lie in a folder that can be made, but .*file cannot be written in"):
        parse([*SMALL, f"output={tmp_path / 'file' / 'b' / 'table.json'}"])


def test_help(capsys):
    assert profile.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("target=onnxruntime-cpu", "containers=", "batch=1", "threads=1", "target_latency=0.8"))


def test_the_second_objective_of_a_search_takes_every_cost(tables):
    from ldp_search.config.resolve import resolve

    words = [*SMALL[:4], "trials=2", "pareto=true"]
    for cost in ("training_cost", "inference_cost", "weight_mib"):
        assert resolve([*words, f"cost={cost}"]).study.cost == cost
    with_table = [*words, "cost=latency", f"latency={tables['torch-cpu']}", "bits=[8,16]"]
    assert resolve(with_table).study.cost == "latency"
    with pytest.raises(ConfigError, match="needs a table of the device"):
        resolve([*words, "cost=latency"])
