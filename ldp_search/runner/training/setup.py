"""From settings to a run that can train: data, model, search space, optimizer, output folder, and where to go on from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import ProjectConfiguration, broadcast_object_list, set_seed
from omegaconf import OmegaConf
from torch import nn

import ldp_search

from ...config.overlay import ConfigError, as_component
from ...config.settings import Settings
from ...config.task_file import display_name
from ...core.apply import as_call
from ...core.bits.policies.budget import TargetOutOfReach
from ...core.bits.space import SearchSpace
from ...core.controller.finalize import allocation
from ...core.messages import did_you_mean
from .. import models
from ..exports.of_run import check_possible
from ..io import checkpoint_files
from ..io.atomic import write_whole
from ..remedies import in_words, shapes_of
from ..tasks import Task, build_task
from .batches import check_sizes
from .ema import Ema
from .journal import Journal
from .optimizers import create_optimizer
from .rehearsal import rehearse
from .run_folder import Finished, checkpoint_of, output_folder, refuse_other
from .run_session import LAYERS, Session, restore_session, set_random_state


def open_session(settings: Settings, task: Task | None = None, quiet: bool = False) -> Session:
    """Everything that a run needs, at its beginning or where its newest checkpoint ends.

    The output folder is made last, when everything else has proved right.

    Args:
        task: the settings' task, where it was made before. quiet: nothing is printed.

    Raises:
        ConfigError: wrong settings, data or model, an output folder that cannot be used, or a checkpoint of another run.
        Finished: there is nothing left to do.
    """
    AcceleratorState._reset_state()  # of an earlier run in this process: precision and compilation are kept there for good
    GradientState._reset_state()
    config, cpu = settings.config, on_cpu()
    world = PartialState(cpu=cpu)
    trackers = _trackers(config.trackers)
    output = Path(_agreed(world, lambda: str(output_folder(settings))))
    found = _agreed(world, lambda: checkpoint_of(settings, output))
    project = ProjectConfiguration(project_dir=str(output), logging_dir=str(output / "tensorboard"))
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision={"fp32": "no", "bf16": "bf16"}[config.precision],
        dynamo_backend="inductor" if config.compile else "no",
        gradient_accumulation_steps=config.accumulate,
        log_with=trackers or None,
        project_config=project,
    )
    if task is None:
        with accelerator.main_process_first():  # data may have to be downloaded, once
            task = build_task(settings.task, config)
    check_sizes(task, config, accelerator.num_processes)
    set_seed(config.seed)
    model = searchable(settings, task)
    if config.export:
        _agreed(world, lambda: check_possible(model, task.example_inputs(), config.export))
    optimizer = create_optimizer(config, model)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    per_epoch = task.train_size // config.batch_size
    total = config.steps or config.epochs * per_epoch
    journal = Journal(output / "metrics.jsonl", accelerator, total, quiet)
    ldp = ldp_search.controller(model)
    ema = None if config.ema is None else Ema(model, config.ema)
    run = Session(settings, accelerator, task, wrapped, ldp, optimizer, journal, output, per_epoch, total, ema)
    set_seed(config.seed, device_specific=True)  # from here on, every process draws its own numbers
    _start(run, checkpoint_files.load(Path(found)) if found else None, found)
    return run


def _start(run: Session, state: dict[str, Any] | None, found: str | None) -> None:
    """From the beginning, after a rehearsal, or from the checkpoint `found`, whose state is given. Raises ConfigError."""
    if state is None:
        rehearse(run)
    else:
        refuse_other(state["identity"], run.identity, f"The checkpoint {found}")
        restore_session(run, state)
    _begin(run, state)
    if state is not None:
        set_random_state(state["processes"][run.accelerator.process_index]["random"])


def on_cpu() -> bool:
    """Whether to compute on the CPU. Accelerate has to be told when there are several processes and no accelerator: under
    torchrun it would otherwise run each of them by itself.
    """
    forced = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "on")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return forced or (several and not (torch.cuda.is_available() or torch.accelerator.is_available()))


def _agreed(world: PartialState, decide: Any) -> Any:
    """What the main process decides, on every process; its error too."""
    answer: list[Any] = [None, None]
    if world.is_main_process:
        try:
            answer = [decide(), None]
        except (ConfigError, Finished) as error:
            answer = [None, error]
    if world.num_processes > 1:
        broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def _trackers(names: list[str]) -> list[str]:
    """Raises ConfigError for a tracker that is unknown or not installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    wanted = [name for name in names if name != "none"]
    for name in wanted:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"Unknown tracker {name!r}.{did_you_mean(name, [*LOGGER_TYPE_TO_CLASS, 'none'])}")
        if name not in [str(getattr(t, "value", t)) for t in get_available_trackers()]:
            raise ConfigError(f"The tracker {name!r} is not installed: pip install {name}, or trackers=none.")
    return wanted


def searchable(settings: Settings, task: Task) -> nn.Module:
    """The task's model, with the search space applied. Raises ConfigError."""
    model, inputs = task.create_model(settings.config.model, settings.config.pretrained), task.example_inputs()
    try:
        with torch.no_grad():
            args, kwargs = as_call(inputs)
            model.eval()(*args, **kwargs)
    except Exception as error:  # whatever a model of someone else's finds wrong with its inputs
        raise ConfigError(
            f"The model {settings.config.model!r} must take this task's inputs, of shape {shapes_of(inputs)}, but: "
            f"{in_words(error)}\n"
            "Many models have an option for it (model.img_size=32); pictures are resized to what a model "
            "needs by dataset.pipeline=timm, or by dataset.size=PIXELS."
        ) from error
    try:
        return ldp_search.apply(model.train(), space=settings.space, example_inputs=inputs)
    except TargetOutOfReach as error:
        asked = "target_cost" in settings.asked
        raise ConfigError(str(error if asked else error.of_space(display_name(settings.values["space"]), "null"))) from error
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error


def _begin(run: Session, state: dict[str, Any] | None) -> None:
    """Write the first files, on the main process. Raises ConfigError when the output folder cannot be used."""
    try:
        if run.accelerator.is_main_process:
            run.output.mkdir(parents=True, exist_ok=True)
            values = run.settings.values | {"output": str(run.output)}
            write_whole(run.output / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(values)))
            write_whole(run.output / LAYERS, _counts(run))
        if state is None:
            run.journal.begin()
        else:
            run.journal.begin(state["metrics"], state["seconds"], state["step"])
    except OSError as error:
        raise ConfigError(f"output={run.output} cannot be written: {error}. Give another output=FOLDER.") from error
    flat = {key: v if isinstance(v, int | float | str) else str(v) for key, v in run.settings.values.items()}
    purge = {"tensorboard": {"purge_step": run.step + 1}} if state is not None else {}
    run.accelerator.init_trackers("ldp_search", config=flat, init_kwargs=purge)
    run.journal.say(_headline(run))
    for note in run.task.notes:
        run.journal.say(note)


def _counts(run: Session) -> str:
    """What allocation.json will say of layers and coverage, without any bits: for a report while the run is under way."""
    found = allocation(run.ldp)
    return json.dumps({"layers": found.details, "coverage": found.summary["coverage"]}, indent=1) + "\n"


def _headline(run: Session) -> str:
    config, where = run.config, run.accelerator
    device = f"{where.num_processes} x {where.device.type}" if where.num_processes > 1 else where.device.type
    coverage = run.ldp.coverage
    left = "" if coverage.share > 0.9995 else f" (left out: {', '.join(item.name for item in coverage.left_out[:3])})"
    return (
        f"{display_name(config.task)}: {run.task.train_size:,} training and {run.task.eval_size:,} evaluation samples; "
        f"{models.display_name(config.model)}: {len(run.ldp.layers)} quantized layers, {coverage.share:.1%} of the MACs{left}\n"
        f"space {display_name(config.space)}, policy {as_component(run.settings.values['policy'])['name']}, "
        f"target cost {run.settings.space.target_cost}{_other_budgets(run.settings.space)}; {run.total_steps:,} steps "
        f"({_epochs(run.total_steps / run.steps_per_epoch)}) of {config.batch_size} on {device}, "
        f"torch {torch.__version__}; output {run.output}"
        + (f"\ngoing on from step {run.step:,}" if run.step else "")
    )  # fmt: skip


def _epochs(many: float) -> str:
    """2.7 epochs, 160 epochs, 0.02 epochs: as far as the steps go, which may end within an epoch."""
    shown = f"{many:,.1f}".removesuffix(".0") if many >= 0.95 else f"{many:.1g}"
    return "1 epoch" if shown == "1" else f"{shown} epochs"


def _other_budgets(space: SearchSpace) -> str:
    """What is asked of the final bits, as the headline goes on."""
    inference = f", inference {space.target_inference:g}" if space.target_inference is not None else ""
    size = f", weights {space.target_size:g} MiB" if space.target_size is not None else ""
    latency = f", latency {space.target_latency:g}" if space.target_latency is not None else ""
    return inference + size + latency + (f", containers {list(space.widths)}" if space.widths else "")
