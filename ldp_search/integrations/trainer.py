"""transformers' Trainer:

ldp_search.apply(model, target_cost=0.5)
trainer = Trainer(model=model, ..., callbacks=[ldp_search.integrations.LDPCallback()])
trainer.train()
ldp_search.save_pretrained(model, "out")
"""

from __future__ import annotations

import inspect
import os
import uuid
from pathlib import Path
from typing import Any

import torch

try:
    from transformers import TrainerCallback
    from transformers.integrations import get_reporting_integration_callbacks
    from transformers.trainer_callback import CallbackHandler, ExportableState
    from transformers.training_args import ParallelMode
except ImportError as error:
    raise ImportError(f"ldp_search.integrations needs transformers>=4.56: pip install -U transformers ({error})") from error

from ..api import controller
from ..core.bits.space import FULL_PRECISION
from ..core.messages import warn
from .length import Stand, stand_of
from .training_loss import LossListener

STATE = "ldp_state.pt"  # in every checkpoint folder


class LDPCallback(TrainerCallback, ExportableState):
    """Takes one LDP step per optimizer step, logs bits and costs, and makes checkpoints complete.

    * After backward and before the optimizer's step: `controller(model).step(progress)`, with the step's mean training loss
      for policies that read it (it is read off the model's own loss as backward reaches it, so accumulation, label counts
      and mixed precision are accounted for as the Trainer does).
    * With every training log: `ldp_weight_bits`, `ldp_input_bits`, `ldp_grad_bits` (means over the quantized layers), where the
      space splits the gradient's bits `ldp_grad_bits` of dL/dx and `ldp_weight_grad_bits` of dL/dw, each over the layers that
      compute that gradient and left out where none does; `ldp_cost` (training cost now, relative to the highest bits) and
      `ldp_mean_cost` (so far): in `trainer.state.log_history`, on the console, and in every tracker of `report_to`.
    * `ldp_state.pt` in every checkpoint folder; `trainer.train(resume_from_checkpoint=...)` goes on bitwise as if it had not
      been interrupted, and `load_best_model_at_end` also brings back the bits of the best checkpoint.
    * A training that begins again after one that did not end (`auto_find_batch_size`, a stopped cell of a notebook) begins with
      the bits that the first one began with.

    Args:
        finalize: at the end of training, freeze the bits at integers and re-estimate input ranges and batch-norm statistics
            on batches of the training data.
        resume_from: the checkpoint folder, where it is resumed from another place than the Trainer's output folder.

    Raises (when training begins):
        LookupError: `ldp_search.apply(model)` was not called. ValueError: the Trainer would run nn.DataParallel, the model
        has been trained to the end already, a resumed training is longer than the one that was saved, or the policy reads
        the training loss and the model's own is not what is trained on. FileNotFoundError: the checkpoint has no LDP state.
    """

    def __init__(self, finalize: bool = False, resume_from: str | os.PathLike | None = None):
        if "on_pre_optimizer_step" not in vars(TrainerCallback):
            raise ImportError(
                "LDPCallback needs a Trainer that announces its optimizer steps: pip install 'transformers>=4.56'"
            )
        self.finalize, self.resume_from = finalize, None if resume_from is None else str(resume_from)
        self.run = uuid.uuid4().hex  # tells this run's states from those of another run in the same folder
        self._losses = LossListener()
        self._begun: tuple[Any, dict] | None = None  # controller, and its state when the training under way began

    def state(self) -> dict[str, dict[str, Any]]:
        """What the Trainer keeps of this callback in trainer_state.json."""
        return {"args": {"finalize": self.finalize, "resume_from": self.resume_from}, "attributes": {"run": self.run}}

    # -- events -----------------------------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        ldp = controller(model)
        if args.parallel_mode == ParallelMode.NOT_DISTRIBUTED:
            raise ValueError(
                f"LDP needs one process a GPU, but the Trainer would run nn.DataParallel on {args.n_gpu}: start with "
                "`accelerate launch` or `torchrun`, or show it one GPU (CUDA_VISIBLE_DEVICES=0)."
            )
        if ldp.policy.needs_loss and args.label_smoothing_factor:
            raise ValueError(
                f"The policy {ldp.policy.name!r} reads the loss that the model computes, but label_smoothing_factor="
                f"{args.label_smoothing_factor} trains on another one: set it to 0, or take another policy."
            )
        if self._begun is None or self._begun[0] is not ldp:
            self._begun = ldp, ldp.state_dict()
        if state.global_step:
            self._resume(ldp, args, state)
        else:
            self._begin(ldp, args)
        _trackers_behind(self, args)
        self._losses.stop()  # a training that ended with an error may have left its hook
        if ldp.policy.needs_loss:
            self._losses.start(ldp.model)

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        ldp, loss = controller(model), self._losses.take()
        scaler = getattr(optimizer, "scaler", None)
        if scaler is not None and scaler.is_enabled():  # fp16: gradients and loss are multiplied by a changing scale
            scale = scaler.get_scale()
            for tensor in ldp.parameters().values():
                tensor.grad.div_(scale)
            if ldp.sensor is not None:
                ldp.sensor.unscale(scale)
            loss = None if loss is None else loss / scale
        if loss is None and ldp.policy.needs_loss and not ldp.frozen:
            raise ValueError(
                f"The policy {ldp.policy.name!r} reads the training loss, but backward did not go through a loss of the "
                "model: give it labels (no compute_loss_func, no compute_loss of one's own), or take another policy."
            )
        ldp.step(min((state.global_step + 1) / state.max_steps, 1.0), loss=loss, optimizer=optimizer)

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if logs is None or "loss" not in logs:
            return
        ldp = controller(model)
        named, layers, cost = ldp.bits(), ldp.layers, ldp.cost()
        bits: dict[str, list[int]] = {}
        for name, each in named.items():
            used = zip(each._fields, each, layers[name].computes(each), strict=True)
            for kind, value, computed in used if each.weight < FULL_PRECISION else ():
                bits.setdefault(kind, []).extend([value] * computed)
        row = {f"ldp_{kind}_bits": sum(values) / len(values) for kind, values in bits.items() if values}
        row |= {"ldp_cost": cost.relative, "ldp_mean_cost": cost.mean_relative}
        logs.update(row)
        if state.log_history:
            state.log_history[-1].update(row)

    def on_save(self, args, state, control, model=None, **kwargs):
        folder = _checkpoint(args, state)
        if not args.should_save:
            return
        if not folder.is_dir():  # hyperparameter_search puts its checkpoints elsewhere, and does not say where
            warn(f"No checkpoint folder {folder}: the LDP state is not saved, this run cannot be resumed.")
            return
        unfinished = folder / f"{STATE}.unfinished"
        try:
            torch.save({"run": self.run, "step": state.global_step, "ldp": controller(model).state_dict()}, unfinished)
            os.replace(unfinished, folder / STATE)
        finally:
            unfinished.unlink(missing_ok=True)

    def on_train_end(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        self._losses.stop()
        ldp, self._begun = controller(model), None
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            best = Path(state.best_model_checkpoint) / STATE
            if best.is_file():
                _take_bits(ldp, torch.load(best, map_location="cpu", weights_only=True)["ldp"])
            else:
                warn(f"No {best}: the best weights are loaded, but the bits are those of the last step.")
        if self.finalize:
            try:
                ldp.finalize(train_dataloader)
            except Exception as error:  # hours of training are worth more than its statistics
                warn(
                    f"finalize failed on the training data ({type(error).__name__}: {error}); the trained model and its bits "
                    "are as the last step left them. ldp_search.controller(model).finalize(loader) takes other batches.",
                )

    # -- beginning and resuming -------------------------------------------------------------------------------------

    def _begin(self, ldp, args) -> None:
        """A training from its first step on begins with fresh bits: also where one before it in this process did not end."""
        steps, begun = ldp.trajectory.seen, self._begun[1]
        if begun["trajectory"]["seen"]:
            raise ValueError(
                f"A training begins with fresh bits, but those of this model were trained for {steps} steps before: resume "
                "with trainer.train(resume_from_checkpoint=True), or call ldp_search.remove(model) and "
                "ldp_search.apply(model, ...) for a new search."
            )
        if not steps:
            return
        ldp.load_state_dict(begun)
        if not args.auto_find_batch_size:
            warn(
                f"The training before this one stopped after {steps} steps. Its bits are forgotten and begin anew; the weights "
                "go on from where they were. To go on with both: trainer.train(resume_from_checkpoint=True).",
            )

    def _resume(self, ldp, args, state) -> None:
        """Find the LDP state that belongs to the Trainer's, and take it over."""
        saved = (state.stateful_callbacks or {}).get(type(self).__name__)
        saved = saved[0] if isinstance(saved, list) else saved
        run = (saved or {}).get("attributes", {}).get("run")
        places = [self.resume_from, args.resume_from_checkpoint, _checkpoint(args, state)]
        for place in [Path(p) / STATE for p in places if isinstance(p, str | Path)]:
            if place.is_file():
                found = torch.load(place, map_location="cpu", weights_only=True)
                if (found["run"], found["step"]) == (run, state.global_step):
                    _check_length(stand_of(found["ldp"]), state)
                    ldp.load_state_dict(found["ldp"])
                    self.run = run
                    return
        raise FileNotFoundError(
            f"The training goes on at step {state.global_step}, but no {STATE} of that checkpoint was found in "
            f"{' or '.join(str(p) for p in places if p)}: give its folder, LDPCallback(resume_from=FOLDER). A checkpoint made "
            "without LDPCallback cannot be resumed with it."
        )


def _trackers_behind(callback: LDPCallback, args) -> None:
    """Move the trackers of report_to, which the Trainer puts before all callbacks that it is given, right behind `callback`.

    They would be done with a row of the log before LDP's numbers are in it. The Trainer offers no order and does not hand
    out its list of callbacks, so it is looked up where the events come from; not found, all else works as before.
    """
    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), CallbackHandler):
        frame = frame.f_back
    if frame is None:
        return
    callbacks, kinds = frame.f_locals["self"].callbacks, tuple(get_reporting_integration_callbacks(args.report_to))
    place = callbacks.index(callback)
    trackers = [other for other in callbacks[:place] if isinstance(other, kinds)]
    others = [other for other in callbacks[:place] if other not in trackers]
    callbacks[: place + 1] = [*others, callback, *trackers]  # whoever has heard this event stands before the next to hear it


def _checkpoint(args, state) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _check_length(saved: Stand, state) -> None:
    """A resumed training has the length of the one that was saved: longer is refused, much shorter is warned of."""
    step, total = state.global_step, state.max_steps
    here = f"this training has {total} steps, of which step {step} is {step / total:.0%}"
    same = f"num_train_epochs (or max_steps), batch size, accumulation and processes that make {saved.total} steps"
    if saved.too_far_for(step + 1, total):
        raise ValueError(
            f"Bits follow the share of the training that is done, which cannot go back: the checkpoint stands at {saved}, but "
            f"{here}. Set what the first training had: {same}. For a longer training start a new one: "
            "ldp_search.remove(model), ldp_search.apply(model, ...), trainer.train()."
        )
    if saved.jumps_in(step + 1, total):
        warn(
            f"The checkpoint stands at {saved}, but {here}: the bits jump ahead to there, and the mean cost may miss its "
            f"target. To go on without a jump set {same}.",
        )


def _take_bits(ldp, best: dict) -> None:
    """Bits, ranges and clips of another moment of this training; trajectory and costs stay those of the whole."""
    now = ldp.state_dict()
    tensors = best["tensors"] | {name: value for name, value in now["tensors"].items() if name == "spent"}
    ldp.load_state_dict(now | {"tensors": tensors})
