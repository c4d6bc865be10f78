"""ldp_search.bench, and the line on the step's cost at the start of a run."""

import pytest
import tiny
import torch
from torch import nn

import ldp_search
from ldp_search.bench import main
from ldp_search.config.overlay import ConfigError
from ldp_search.config.program import exit_status
from ldp_search.core.backends import saved_activations
from ldp_search.run import main as run
from ldp_search.runner.bench import overhead, step, timing
from ldp_search.runner.training import finish

WORDS = ["task=digits", "limit=160", "eval_limit=50", "model=tiny:net", "batch_size=32"]


def rows(text: str) -> dict[str, list[str]]:
    return {line[:20].strip(): line[20:].split() for line in text.splitlines()}


def test_what_it_prints(capsys, monkeypatch):
    senses, times = [], step.layer_times
    monkeypatch.setattr(
        step, "layer_times", lambda *args: (senses.append(ldp_search.controller(args[1]).sensing), times(*args))[1]
    )
    words = [*WORDS, "rounds=3", "layers=2", "accumulate=2", "backend.choose=never", "backend=int8", "sense_every=2"]
    assert main(words) == 0 and senses == [False]  # layers are timed as in an ordinary step
    text = capsys.readouterr().out
    found = rows(text)
    plain, _, ldp, _, ratio, _, spread = found["step"]
    assert float(plain) > 0 and float(ldp) > 0 and float(ratio) > 0 and float(spread) >= 0
    one, mean = found["one that measures"], found["mean of 2 steps"]
    assert float(mean[4]) == pytest.approx((float(ratio) + float(one[4])) / 2, abs=0.011) and "one step in 2" in text
    assert float(mean[2]) == pytest.approx((float(ldp) + float(one[2])) / 2, abs=0.11)
    assert float(found["kept for backward"][0]) > 0 and float(found["peak of the step"][2]) > 0
    assert text.startswith("net on digits, batch 32, fp32; policy learned, bits 2-8, backend int8; cpu x 1")
    assert "integer arithmetic: 0 of 3 layers" in text and "each alone, one part of the batch" in text
    listed = [line.split()[0] for line in text.splitlines()[text.splitlines().index(next(
        line for line in text.splitlines() if line.startswith("layer "))) + 1 :]]  # fmt: skip
    assert len(set(listed[:2]) & {"0", "3", "9"}) == 2 and listed[2] == "all"


def test_without_layers(capsys):
    assert main([*WORDS, "rounds=1", "layers=0", "precision=bf16", "policy=static"]) == 0
    assert "layers that cost most" not in (text := capsys.readouterr().out) and "one that measures" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["batchsize=4"], "Did you mean 'batch_size'"),
        (["rounds=0"], "rounds must be a whole number, at least 1; received 0"),
        (["layers=some"], "layers must be a whole number; received 'some'"),
        (["--layers"], "Unknown option '--layers'"),
        (["trials=3", "storage=x.journal"], "leave out trials="),
        (["model=tiny:nett"], "importable 'module:attribute'"),
        (["batch_size=4000"], "batch_size must be at most"),
    ],
)
def test_mistakes_end_with_2_and_one_message(words, message, capsys):
    assert main([*WORDS, *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("ldp_search.bench: ") and not captured.out


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "rounds=7" in capsys.readouterr().out


def test_times_are_ratios_of_rounds():
    times = timing.Times([1.0, 10.0, 2.0], [2.0, 30.0, 2.0])
    assert times.seconds == (2.0, 2.0) and times.ratio == 2.0 and times.spread == 1.0


def test_bytes_by_hand():
    model = nn.Sequential(nn.Linear(100, 50, bias=False), nn.Tanh())
    x = torch.randn(10, 100)
    assert timing.saved_bytes(model, lambda: model(x).sum()) == 4 * (10 * 100 + 10 * 50)  # the input, and tanh's output


def test_bytes_of_packed_tensors_by_hand():
    x, found = torch.randn(16, 512), {}
    for mode in ("exact", "16bit"):
        model = nn.Sequential(nn.Linear(512, 512, bias=False), nn.Tanh())
        ldp_search.apply(model, "ldp", x, activations=mode, grad_bits=32)
        found[mode] = timing.saved_bytes(model, lambda model=model: model(x).sum())
    elements, ranges = 16 * 512, 2 * 4 * (16 * 512 // saved_activations.BLOCK)
    assert found["exact"] >= 2 * 4 * elements
    assert found["exact"] - found["16bit"] == 2 * (4 * elements - 2 * elements - ranges)  # the input, and tanh's output


def test_peak_by_hand():
    assert timing.peak_bytes(lambda: torch.empty(1000), torch.device("cpu")) == 4000


def test_the_first_line_of_a_run_leaves_its_result_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(finish, "write_report_page", lambda output: None)
    monkeypatch.setattr(overhead, "STEPS", 0)  # a run of 15 steps would be too short for it
    words = [*tiny.WORDS, "weight_quantizer=clip", "input_quantizer=clip"]
    assert run([*words, f"output={tmp_path / 'with'}"]) == 0
    assert "of the plain step (" in capsys.readouterr().out
    assert run([*words, f"output={tmp_path / 'without'}", "overhead=false"]) == 0
    assert "of the plain step (" not in capsys.readouterr().out
    tiny.same_result(tmp_path / "with", tmp_path / "without")


def test_a_short_run_is_not_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(finish, "write_report_page", lambda output: None)
    assert run([*tiny.WORDS, f"output={tmp_path}", "backend=int8"]) == 0
    out = capsys.readouterr().out
    assert "of the plain step (" not in out and "integer arithmetic: " in out and "of 3 layers" in out


def test_a_mistake_of_a_program_keeps_its_traceback():
    def fails(error):
        raise error

    for error in (KeyError("layer4"), IndexError("3"), RuntimeError("shapes")):
        with pytest.raises(type(error)):
            exit_status("ldp_search.export", "Stopped.", lambda error=error: fails(error))
    with pytest.raises(OSError, match="unhappy"):
        exit_status("ldp_search.bench", "Stopped.", lambda: fails(OSError("CUDA driver is unhappy")), writes=False)
    ends = [(ConfigError("c"), 2), (LookupError("l"), 2), (ImportError("i"), 2), (OSError("o"), 1), (KeyboardInterrupt(), 130)]
    assert [exit_status("p", "Stopped.", lambda error=error: fails(error)) for error, _ in ends] == [code for _, code in ends]
