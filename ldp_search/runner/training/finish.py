"""The end of a run: bits frozen, statistics estimated anew, the last evaluation, the files, the table."""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device

import ldp_search

from ...config.overlay import as_component
from ...config.task_file import display_name
from ...core.bits.space import FINAL_BUDGETS
from ...core.controller.summary import short
from ..io.atomic import finite, write_whole
from ..tasks import metrics
from .batches import TrainKeys
from .loop import evaluate
from .run_session import CHECKPOINTS, LAYERS, Session, save_schedule

CALIBRATION_BATCHES = 50
_PACKAGES = ("torch", "accelerate", "timm", "transformers", "datasets", "numpy")


def finish(run: Session) -> dict[str, Any]:
    """Freeze, evaluate, save and report. Returns the contents of result.json, which is written last.

    Raises:
        OSError: the output cannot be written.
    """
    if run.ema is not None:
        run.ema.apply()
    forward = partial(run.task.measure, run.plain_model)
    allocation = run.ldp.finalize(_calibration(run), forward=forward, batches=CALIBRATION_BATCHES)
    row = evaluate(run, "final")
    result = _result(run, row)
    run.journal.close()
    if run.accelerator.is_main_process:
        save_schedule(run)
        allocation.save(run.output / "allocation.json")
        if "transformers" in sys.modules:
            sys.modules["transformers"].logging.disable_progress_bar()  # of a file that is written in a second
        ldp_search.save_pretrained(run.plain_model, run.output, create=run.task.creation(run.config.model))
        run.task.save_extras(run.output)
        _save_examples(run)
        write_whole(run.output / "result.json", json.dumps({k: finite(v) for k, v in result.items()}, indent=1) + "\n")
        write_report_page(run.output)
        (run.output / LAYERS).unlink(missing_ok=True)
        shutil.rmtree(run.output / CHECKPOINTS, ignore_errors=True)  # everything of worth is beside it now
    return result


def _save_examples(run: Session) -> None:
    """Predictions beside the truth, as pictures with a caption, for the report."""
    for name, (png, caption) in run.task.examples(run.plain_model).items():
        (run.output / name).write_bytes(png)
        write_whole(run.output / f"{name}.txt", caption + "\n")


def _calibration(run: Session) -> Iterator[Any]:
    """Training batches of an epoch that was not trained on, the same on every process."""
    config, first = run.config, run.total_steps + run.steps_per_epoch
    keys = TrainKeys(run.task.train_size, config.batch_size, 1, config.seed, first, first + CALIBRATION_BATCHES, 0, 1)
    for epoch, indices in itertools.islice(keys, min(CALIBRATION_BATCHES, run.steps_per_epoch)):
        yield send_to_device(run.task.batch(indices, epoch), run.accelerator.device)


def _result(run: Session, row: dict[str, Any]) -> dict[str, Any]:
    cost, values, metric = run.ldp.cost(), run.settings.values, run.task.metric
    space = run.settings.space
    target = space.target_cost if run.ldp.policy.meets_target else None  # others do not look at it
    return {
        "task": display_name(run.config.task), "model": as_component(values["model"])["name"],
        "space": display_name(run.config.space), "policy": as_component(values["policy"])["name"], "seed": run.config.seed,
        "metric": metric, metric: row[metric], "loss": row["loss"], f"best_{metric}": run.best[metric] if run.best else None,
        "mean_cost": cost.mean_relative, "target_cost": target, "cost": cost.relative,
        "inference_cost": cost.relative_inference, "target_inference": space.target_inference,
        "weight_mib": cost.weight_mib, "target_size": space.target_size, "mean_bits": row["mean_bits"],
        "latency": cost.relative_latency, "latency_ms": cost.latency_ms, "target_latency": space.target_latency,
        "latency_table": values["latency"] if isinstance(values["latency"], str) else None,
        "training_bitops": cost.training_bitops, "inference_bitops": cost.inference_bitops, "coverage": run.ldp.coverage.share,
        "steps": run.total_steps, "seconds": round(run.journal.seconds, 1), "processes": run.accelerator.num_processes,
        "device": run.accelerator.device.type, "data": run.task.fingerprint, "versions": _versions(),
    } | _arithmetic(run)  # fmt: skip


def _arithmetic(run: Session) -> dict[str, str]:
    """Which layers ran in integers, where the backend tells."""
    arithmetic = run.ldp.backend.report(list(run.ldp.layers))
    return {"arithmetic": arithmetic} if arithmetic else {}


def _versions() -> dict[str, str]:
    out = {"ldp_search": ldp_search.__version__, "python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed"
    return out | {"torch": torch.__version__}


def write_report_page(output: Path) -> None:
    """report.html and its pictures. A report that fails must not cost a finished run: it says so and can be made later."""
    try:
        from ..report import write_report

        write_report([output], output)
    except Exception as error:
        again = f"Try later: python -m ldp_search.report {output}"
        print(f"The report could not be made ({type(error).__name__}: {error}).\n{again}", file=sys.stderr)


CARRIED = (
    "task", "name", "model", "recipe", "data", "dataset", "tokenizer", "pretrained", "epochs", "steps", "limit", "eval_limit",
    "batch_size", "lr", "lr_schedule", "precision",
)  # fmt: skip


RANGES = ("bits", "weight_bits", "input_bits", "containers")


def _again(output: Path, more: tuple[str, ...] = ()) -> str:
    """The command that trains the same network on the same data for as long. Of this run's choices about bits `more` alone."""
    from ..report.load import load_run
    from ..report.one import command

    words = shlex.split(command(load_run(output)))
    kept = [word for word in words[3:] if word.partition("=")[0] in (*CARRIED, *more)]
    return " ".join([*words[:3], *map(shlex.quote, kept)])


def _budgets(result: dict[str, Any]) -> str:
    """This run's other budgets, as words."""
    kept = {name: result.get(name) for name in FINAL_BUDGETS}
    kept["latency"] = result.get("latency_table") if kept["target_latency"] is not None else None
    return "".join(f" {name}={value}" for name, value in kept.items() if value is not None)


def _at_most(target: float | None) -> str:
    return "" if target is None else f" (budget {target:g})"


def _latency(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The line of a predicted latency, where there is one."""
    if result.get("latency") is None:
        return []
    note = f"of the highest bits, as predicted: {short(result['latency_ms'])} ms{_at_most(result['target_latency'])}"
    return [("latency", f"{result['latency']:.3f}", note)]


def table(output: Path) -> str:
    """The result as text, with the report's path and what to try next."""
    r = json.loads((output / "result.json").read_text())
    metric = r["metric"]
    target = f" (target {r['target_cost']:g})" if r["target_cost"] else ""
    lines = [
        (metric, metrics.metric(metric).show(r[metric]), "last step, at the final bits"),
        ("training cost", f"{r['mean_cost']:.3f}", f"of the highest bits, averaged over the run{target}"),
        ("inference cost", f"{r['inference_cost']:.3f}", f"of the highest bits{_at_most(r.get('target_inference'))}"),
        (
            "mean bits",
            f"{r['mean_bits']:.2f}",
            f"of weights and inputs at the end; weights take {short(r['weight_mib'])} MiB{_at_most(r.get('target_size'))}",
        ),
        *_latency(r),
        ("time", f"{r['seconds']:.0f} s", f"{r['steps']:,} steps on {r['processes']} x {r['device']}"),
    ]
    body = "\n".join(f"  {name:<15} {value:>8}  {note}" for name, value, note in lines)
    body += f"\n  {r['arithmetic']}" if r.get("arithmetic") else ""
    rival = "cyclic" if r["policy"] != "cyclic" else "ldp"
    again = _again(output)
    other = again if r.get("target_latency") is None else _again(output, RANGES)  # which a table's containers ask for
    return (
        f"\n{r['task']}, {r['model']}, policy {r['policy']}, seed {r['seed']}\n{body}\n\n"
        f"Report       {output / 'report.html'}\n"
        f"Everything   {output}\n\n"
        "Try next\n"
        f"  {again} space={rival} output=runs/{rival}    # a rival\n"
        f"  python -m ldp_search.report {output} runs/{rival} output=runs/compared    # both side by side\n"
        f"  {other} target_cost=0.3{_budgets(r)}    # another budget\n"
        f"  tensorboard --logdir {output}\n"
        "  python -m ldp_search.run --help"
    )
