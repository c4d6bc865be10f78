"""`python -m ldp_search.export` and `export=` of a run: files compared with what was trained, kept, put aside or refused."""

import copy
import inspect
import json
import subprocess
import sys

import pytest
import tiny
import torch
from torch import nn

import ldp_search
from ldp_search import controller, packed
from ldp_search.config.program import own_keys
from ldp_search.export import main
from ldp_search.run import main as run_main
from ldp_search.runner.exports import command, export, options, parity, peers, subject, table, timing
from ldp_search.runner.exports.outputs import difference, predictions
from ldp_search.runner.training import finish as results

QUICK = ("compare=false", "batch=2", "rounds=2", "samples=40")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A finished run of a second, with a model that its folder cannot make again by itself."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "write_report_page", lambda output: None)
        assert run_main([*tiny.WORDS, f"output={folder}", "epochs=6"]) == 0
    return folder


def copied(folder, tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


# -- one name for a function and a program ----------------------------------------------------------------------------


@pytest.mark.slow(reason="two processes that import all; main is always called in this one")
def test_the_function_and_the_program_bear_one_name(tmp_path):
    program = """
import sys, ldp_search
first = ldp_search.export
import ldp_search.export
from ldp_search import export
assert first is ldp_search.export is export is sys.modules["ldp_search.export"] and callable(export)
from ldp_search.export import main
try:
    ldp_search.export(None, "x", None, format="onxx")
except ValueError as error:
    assert "Did you mean 'onnx'" in str(error)
"""
    subprocess.run([sys.executable, "-c", program], check=True, env=tiny.environment())
    command = [sys.executable, "-m", "ldp_search.export", str(tmp_path)]
    done = subprocess.run(command, env=tiny.environment(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("ldp_search.export: ") and "holds no ldp.json" in done.stderr


def test_help_names_every_key(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {key}=" in out for key in own_keys(options.ExportOptions)) and "task=" in out


def test_the_callable_module_takes_what_the_function_takes():
    assert inspect.signature(ldp_search.export).parameters.keys() == inspect.signature(export.export).parameters.keys()
    model = nn.Sequential(nn.Linear(4, 3))
    ldp_search.apply(model, example_inputs=torch.zeros(1, 4), policy="static")
    controller(model).freeze()
    with pytest.raises(ValueError, match="needs example_inputs"):
        ldp_search.export(model, "x.onnx")


# -- the program ------------------------------------------------------------------------------------------------------


def test_a_run_leaves_as_every_format_and_scores_what_the_run_said(run_folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    folder = copied(run_folder, tmp_path)
    assert main([str(folder), "format=onnx,packed,torch", "batch=1,2", "rounds=2", "agreement=0.8"]) == 0
    out = capsys.readouterr().out
    report, result = json.loads((folder / "export.json").read_text()), json.loads((folder / "result.json").read_text())
    found = {row["name"]: row for row in report["rows"]}
    assert found[peers.TRAINED]["accuracy"] == pytest.approx(result["accuracy"])
    assert found["ours, packed"]["accuracy"] == pytest.approx(result["accuracy"]) and found["ours, packed"]["agreement"] == 1
    for name in (peers.FP32_TORCH, peers.FP32_ORT, peers.STATIC_ORT, peers.DYNAMIC_ORT, "ours, onnx", "ours, torch"):
        row = found[name]
        assert "failed" not in row and 0 <= row["accuracy"] <= 1 and row["mib"] > 0 and name in out
        assert set(row["ms"]) == {"1", "2"} and min(row["ms"].values()) > 0
    for name, file in {"onnx": "model.onnx", "packed": "model.packed.safetensors", "torch": "model.pt2"}.items():
        assert report["files"][name]["rejected"] is None
        assert (folder / file).stat().st_size == report["files"][name]["bytes"]
        assert found[f"ours, {name}"]["mib"] == pytest.approx((folder / file).stat().st_size / 2**20)
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".") or "rejected" in p.name]
    assert report["data"] == "evaluation data of digits" and "ms, batch 2" in out and "Accuracy" in out


def test_without_onnxruntime_there_are_no_rows_of_it(run_folder, tmp_path, capsys, monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)  # an import would fail
    folder = copied(run_folder, tmp_path)
    assert main([str(folder), "format=packed", "batch=2", "rounds=2", "samples=40"]) == 0
    out = capsys.readouterr().out
    assert (
        "Did not run" not in out and peers.FP32_ORT not in out and out.count("pip install '.[onnx]' adds the comparison") == 1
    )
    assert [row["name"] for row in json.loads((folder / "export.json").read_text())["rows"]][2:] == ["ours, packed"]
    assert main([str(folder), "format=packed", *QUICK]) == 0
    assert "adds the comparison" not in capsys.readouterr().out, "nobody asked for the comparison"


def test_a_folder_of_save_pretrained_is_compared_on_a_task_or_on_random_inputs(tmp_path, capsys):
    timm = pytest.importorskip("timm")
    import ldp_search.runner.models.cifar  # noqa: F401 (the import registers the names)

    x = torch.randn(8, 1, 8, 8)
    model = timm.create_model("cifar_resnet20", num_classes=10, in_chans=1)
    ldp_search.apply(model, example_inputs=x, policy="static")
    controller(model).finalize([x])
    ldp_search.save_pretrained(model, tmp_path / "saved")
    words = [str(tmp_path / "saved"), "format=packed", *QUICK]
    assert main([*words, f"output={tmp_path / 'a' / 'mine.safetensors'}"]) == 0
    assert "random inputs" in capsys.readouterr().out and packed.read(tmp_path / "a" / "mine.safetensors")
    assert main([*words, "task=digits", f"output={tmp_path / 'b'}"]) == 0
    assert "evaluation data of digits" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "b").iterdir()} == {"model.packed.safetensors", "export.json"}
    assert main([*words, "eval_limit=10"]) == 2 and "add task=NAME" in capsys.readouterr().err


def test_inputs_that_nobody_knows_are_asked_for(tmp_path, capsys):
    model = nn.Sequential(nn.Linear(4, 3))
    ldp_search.apply(model, example_inputs=torch.zeros(1, 4), policy="static")
    controller(model).finalize([torch.randn(4, 4)])
    ldp_search.save_pretrained(model, tmp_path)
    assert main([str(tmp_path)]) == 2
    assert "neither timm's nor of transformers" in capsys.readouterr().err
    with pytest.raises(ValueError, match="give task=NAME"):
        subject.random_inputs(model, 2, 0)


@pytest.mark.parametrize(
    "words, reason",
    [
        (["--hepl"], "Did you mean '--help'"),
        ([], "Give one folder"),
        (["a", "b"], r"Give one folder.*\['a', 'b'\]"),
        (["a", "format=onxx"], "Unknown export format 'onxx'. Did you mean 'onnx'"),
        (["a", "format="], "format must"),
        (["a", "formt=onnx"], "Unknown key 'formt'.*Did you mean 'format'"),
        (["a", "format=packed,torch", "nbits=true"], "nbits=true belongs to format=onnx; received format=packed,torch"),
        (["a", "format=packed,torch", "cache=true"], "cache=true belongs to format=onnx; received format=packed,torch"),
        (["a", "nbits=four"], "nbits must be true or false"),
        (["a", "bits=3"], "The bits are learned already"),
        (["a", "batch=0"], "batch must be whole numbers above 0"),
        (["a", "batch=x"], "batch must be a list of whole numbers"),
        (["a", "agreement=2"], "agreement must be a share"),
        (["a", "lr=0.1"], "Unknown key 'lr'"),
        (["no_such_folder"], "holds no ldp.json"),
    ],
)
def test_wrong_words_are_one_message(words, reason, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    found = capsys.readouterr()
    assert not found.out and found.err.startswith("ldp_search.export: ")
    pytest.fail(found.err) if __import__("re").search(reason, found.err) is None else None


def test_folders_that_are_not_whole_are_refused(run_folder, tmp_path, capsys):
    folder = copied(run_folder, tmp_path)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-7])
    assert main([str(folder), *QUICK]) == 2 and "cut off or replaced" in capsys.readouterr().err
    (folder / "ldp.json").write_text("{")
    assert main([str(folder), *QUICK]) == 2 and "not a whole record" in capsys.readouterr().err
    (folder / "ldp.json").unlink()
    assert main([str(folder), *QUICK]) == 2 and "has not finished: resume=FOLDER" in capsys.readouterr().err


def test_layers_that_nbits_leaves_int8_are_told(run_folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    folder = copied(run_folder, tmp_path)
    assert main([str(folder), "format=onnx,packed", "nbits=true", "agreement=0.8", *QUICK]) == 0
    record = json.loads((folder / "export.json").read_text())["files"]["onnx"]
    assert not record["nbits_layers"] and list(record["not_nbits"]) == ["9"]  # the linear one, of 12 inputs
    assert "MiB; int8, not nbits: 9\n" in capsys.readouterr().out


def test_a_network_without_a_cache_is_refused_and_leaves_nothing(run_folder, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    folder = copied(run_folder, tmp_path)
    before = sorted(p.name for p in folder.iterdir())
    assert main([str(folder), "cache=true", *QUICK]) == 2
    err = capsys.readouterr().err
    assert "takes a cache of keys and values; that of Sequential takes none" in err and err.endswith("Export without cache.\n")
    assert sorted(p.name for p in folder.iterdir()) == before


# -- what does not agree lies aside ---------------------------------------------------------------------------------


def test_a_file_that_predicts_otherwise_is_put_aside_and_the_earlier_one_stays(run_folder, tmp_path, capsys, monkeypatch):
    folder = copied(run_folder, tmp_path)
    words = [str(folder), "format=packed", *QUICK]
    assert main(words) == 0
    good = (folder / "model.packed.safetensors").read_bytes()

    def broken(model, path, inputs, **options):
        other = copy.deepcopy(model)
        other[-1].weight.data.neg_()
        return export.export(other, path, inputs, **options)

    monkeypatch.setattr(command, "export", broken)
    assert main(words) == 1
    err, aside = capsys.readouterr().err, folder / "model.packed.safetensors.rejected"
    assert "put aside" in err and "must give the same" in err and (folder / "model.packed.safetensors").read_bytes() == good
    assert aside.read_bytes() != good and "must give the same" in aside.with_name(aside.name + ".txt").read_text()
    report = json.loads((folder / "export.json").read_text())["files"]["packed"]
    assert "must give the same" in report["rejected"] and report["path"] == str(aside)
    monkeypatch.undo()
    assert main(words) == 0 and not [p for p in folder.iterdir() if "rejected" in p.name]  # the next good one clears up


def test_what_counts_as_agreement():
    own = parity.Parity(error=0.001, equal=99, predicted=100)
    judge = parity.rejection
    assert judge("torch", parity.Parity(equal=96, predicted=100), own, None) is None
    assert "94.0%" in judge("torch", parity.Parity(equal=94, predicted=100), own, None)
    assert judge("torch", parity.Parity(equal=94, predicted=100), own, 0.9) is None
    shaky = parity.Parity(equal=90, predicted=100)  # few bits: the network hardly agrees with itself
    assert judge("torch", parity.Parity(equal=71, predicted=100), shaky, None) is None
    assert judge("torch", parity.Parity(error=float("inf"), equal=1, predicted=1), own, None) is not None
    assert "does not run" in judge("onnx", parity.Parity(failed="no kernel"), own, None)
    assert judge("onnx", parity.Parity(error=0.05), parity.Parity(error=0.001), None) is None  # outputs that are no classes
    assert judge("onnx", parity.Parity(error=0.2), parity.Parity(error=0.001), None) is not None


def test_differences_and_predictions():
    a = torch.tensor([[1.0, 2.0], [4.0, 3.0]])
    assert difference({"logits": a, "past_key_values": a}, {"logits": a}) == 0 and difference(a, a + 0.4) == pytest.approx(
        0.4 / 4.4
    )
    assert difference(a, a[:1]) == float("inf") and difference(a * float("nan"), a) == float("inf")
    assert predictions(a).tolist() == [1, 0] and predictions(a[:, :1]) is None
    assert predictions(torch.zeros(2, 5, 3, 3)).shape == (2, 3, 3) and predictions(torch.zeros(2, 7, 5)).shape == (2, 7)


def test_ways_that_do_not_run_are_named_and_do_not_end_the_comparison(run_folder):
    found = subject.open_subject(run_folder, [])
    ways = [
        peers.Way(peers.TRAINED, found.model, timed=False),
        peers.Way("broken", nn.Linear(3, 3), 8),
        peers.Way("none", None, failed="no"),
    ]
    compared = parity.compare(found, ways, 20)
    times = timing.latencies(found, ways, [2], 2)
    rows = {row["name"]: row for row in table.rows(ways, compared, times, "accuracy")}
    assert "shapes cannot be multiplied" in rows["broken"]["failed"] and rows["none"]["failed"] == "no"
    assert rows[peers.TRAINED]["agreement"] == 1 and "Did not run:" in table.text(list(rows.values()), [2], "accuracy")
    assert 0 < compared[parity.YARDSTICK].error < 1


# -- export= of a run -----------------------------------------------------------------------------------------------


def test_a_run_exports_at_its_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "write_report_page", lambda output: None)
    assert run_main([*tiny.WORDS, "epochs=1", f"output={tmp_path / 'run'}", "export=packed"]) == 0
    assert packed.read(tmp_path / "run" / "model.packed.safetensors").description["layers"]
    assert "ours, packed" in capsys.readouterr().out and (tmp_path / "run" / "export.json").is_file()


def untraceable(num_classes: int, in_chans: int) -> nn.Module:
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = tiny.plain_net(num_classes, in_chans)

        def forward(self, x):
            return self.net(x) * (1 if float(x.sum()) > 1e9 else 2)  # Python looks at the data

    return Odd()


def test_what_an_export_will_need_is_checked_before_the_training(tmp_path, monkeypatch, capsys):
    words = [*tiny.WORDS, f"output={tmp_path / 'run'}"]
    assert run_main([*words, "export=onxx"]) == 2 and "Did you mean 'onnx'" in capsys.readouterr().err
    assert run_main([*words, "export=torch", "model=test_export_command:untraceable"]) == 2
    assert "so nothing was trained" in capsys.readouterr().err
    assert run_main([*words, "export=onnx", "trials=2"]) == 2 and "belongs to a single run" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run_main([*words, "export=onnx"]) == 2 and "pip install 'ldp_search[onnx]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_the_packages_of_onnx_the_other_formats_are_there_and_the_remedy_is_told(tmp_path):
    """As after an installation without extras."""
    program = f"""
import sys
for name in ("onnx", "onnxscript", "onnxruntime"):
    sys.modules[name] = None  # an import would fail
import torch, ldp_search
from ldp_search.export import main
assert main(["--help"]) == 0
model, x = torch.nn.Sequential(torch.nn.Linear(8, 4)), torch.randn(4, 8)
ldp_search.apply(model, "static", bits=4, example_inputs=x)
ldp_search.controller(model).finalize([x])
for format, name in (("packed", "m.packed.safetensors"), ("torch", "m.pt2")):
    ldp_search.export(model, {str(tmp_path)!r} + "/" + name, x, format=format)
try:
    ldp_search.export(model, {str(tmp_path)!r} + "/m.onnx", x)
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, env=tiny.environment()
    )
    assert done.returncode == 0, done.stderr
    assert "needs onnx and onnxscript: pip install 'ldp_search[onnx]'" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"m.packed.safetensors", "m.pt2"}
