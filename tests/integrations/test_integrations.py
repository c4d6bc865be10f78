"""LDPCallback in real trainings of transformers' Trainer: steps, losses, logs, checkpoints, errors."""

import json
import os
import shutil
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from breadth import breadth
from fork_two import fork_two

import ldp_search
from ldp_search import Schedule, controller

transformers = pytest.importorskip("transformers")
Trainer, TrainerCallback = transformers.Trainer, transformers.TrainerCallback

STEPS = 12
SEEN: list = []  # losses that the policy below was given


@dataclass
class Listener(Schedule):
    """Reads the loss of every step."""

    needs_loss = True

    def fraction(self, progress):
        return 1 - progress

    def step(self, signals):
        SEEN.append(float(signals.loss))
        return super().step(signals)


class Words(torch.utils.data.Dataset):
    """Is the first word in the upper half of the vocabulary?"""

    def __init__(self, size: int = 200, labels: bool = True):
        generator = torch.Generator().manual_seed(1)
        self.words, self.labels = torch.randint(5, 60, (size, 10), generator=generator), labels

    def __len__(self):
        return len(self.words)

    def __getitem__(self, i):
        row = {"input_ids": self.words[i], "attention_mask": torch.ones(10, dtype=torch.long)}
        return row | ({"labels": (self.words[i, 0] > 32).long()} if self.labels else {})


def bert():
    transformers.set_seed(0)
    config = transformers.AutoConfig.for_model(
        "bert", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=64,
        max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    return transformers.AutoModelForSequenceClassification.from_config(config)


def trainer(folder, space=None, callback=None, kind=Trainer, others=(), **options) -> Trainer:
    model = bert()
    if space != "none":
        ldp_search.apply(model, **(space or {"target_cost": 0.5}))
    defaults = {
        "max_steps": STEPS, "per_device_train_batch_size": 8, "logging_steps": 1, "save_steps": 4, "report_to": "none",
        "use_cpu": True, "disable_tqdm": True, "seed": 3, "learning_rate": 1e-3,
    }  # fmt: skip
    arguments = transformers.TrainingArguments(str(folder), **(defaults | options))
    callbacks = [callback or ldp_search.integrations.LDPCallback(), *others]
    return kind(model=model, args=arguments, train_dataset=Words(), eval_dataset=Words(40), callbacks=callbacks)


def same_training(one: Trainer, other: Trainer) -> None:
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, other.model.state_dict()[name]), name
    a, b = controller(one.model), controller(other.model)
    assert torch.equal(a.trajectory.bits, b.trajectory.bits) and a.trajectory.progress == b.trajectory.progress
    for name, value in a.state_dict()["tensors"].items():
        assert torch.equal(value, b.state_dict()["tensors"][name]), name
    assert (a.bits(), a.cost()) == (b.bits(), b.cost())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted training, with checkpoints at 4, 8 and 12 steps."""
    made = trainer(tmp_path_factory.mktemp("whole"))
    made.train()
    return made


def checkpoint(training: Trainer, step: int, into) -> str:
    shutil.copytree(os.path.join(training.args.output_dir, f"checkpoint-{step}"), into)
    return str(into)


# -- steps and logs -------------------------------------------------------------------------------------------------


def test_one_step_per_optimizer_step(whole):
    ldp = controller(whole.model)
    assert ldp.trajectory.seen == STEPS
    assert ldp.trajectory.progress == pytest.approx([(i + 1) / STEPS for i in range(STEPS)])
    assert ldp.cost().mean_relative == pytest.approx(0.5, abs=0.01)  # the budget is met
    assert all(not tensor.grad.any() for tensor in ldp.parameters().values())  # the optimizer's clipping never saw them


def test_logs_tell_bits_and_costs(whole):
    rows = [row for row in whole.state.log_history if "loss" in row]
    assert len(rows) == STEPS
    for row in rows:
        assert 2 <= row["ldp_weight_bits"] <= 8 and 2 <= row["ldp_input_bits"] <= 8 and 3 <= row["ldp_grad_bits"] <= 8
        assert 3 <= row["ldp_weight_grad_bits"] <= 8
        assert 0 < row["ldp_cost"] < 1 and 0 < row["ldp_mean_cost"] < 1
    assert rows[-1]["ldp_mean_cost"] == controller(whole.model).cost().mean_relative
    assert "ldp_cost" not in whole.state.log_history[-1]  # the summary of the whole training


def test_a_gradient_that_no_layer_computes_is_in_no_log():
    model, logs = torch.nn.Sequential(torch.nn.Linear(4, 2)), {"loss": 1.0}
    ldp_search.apply(model, example_inputs=torch.zeros(1, 4))
    callback, state = ldp_search.integrations.LDPCallback(), SimpleNamespace(log_history=[])
    callback.on_log(None, state, None, logs=logs, model=model)
    kinds = {"ldp_weight_bits", "ldp_input_bits", "ldp_weight_grad_bits"}  # no layer takes a gradient on to another one
    assert logs.keys() == {"loss", "ldp_cost", "ldp_mean_cost"} | kinds and logs["ldp_weight_bits"] >= 2


def test_callbacks_behind_it_see_the_numbers(tmp_path):
    class Tracker(TrainerCallback):
        rows = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.rows.append(dict(logs))

    trainer(tmp_path, others=[Tracker()], max_steps=2, save_strategy="no").train()
    assert all("ldp_cost" in row for row in Tracker.rows[:2])


def test_trackers_of_report_to_get_the_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Other(TrainerCallback):
        began = 0

        def on_train_begin(self, args, state, control, **kwargs):
            self.began += 1

    other = Other()
    made = trainer(tmp_path, report_to="tensorboard", others=[other], max_steps=3, save_strategy="no")
    made.train()
    names = [type(callback).__name__ for callback in made.callback_handler.callbacks]
    assert names[0] == "DefaultFlowCallback" and names.index("TensorBoardCallback") == names.index("LDPCallback") + 1
    assert other.began == 1 and len(names) == len(set(names))
    folder = next((tmp_path / "runs").iterdir())
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("train/ldp_weight_bits")] == [1, 2, 3]
    assert "train/ldp_mean_cost" in events.Tags()["scalars"]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_loss_of_a_step_is_the_trainers(tmp_path, accumulation):
    SEEN.clear()
    made = trainer(
        tmp_path, {"policy": "test_integrations:Listener"}, gradient_accumulation_steps=accumulation, save_strategy="no"
    )
    made.train()
    logged = [row["loss"] for row in made.state.log_history if "loss" in row]
    assert controller(made.model).trajectory.seen == STEPS  # once per optimizer step, not per micro-batch
    assert pytest.approx(logged[:-1], abs=1e-4) == SEEN and len(SEEN) == STEPS - 1  # after the last step nothing moves
    assert not made.model._forward_hooks


def test_micro_batches_add_up_in_the_bits_gradients(tmp_path):
    seen = []

    class Peek(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            seen.append(controller(model).parameters()["bits"].grad.abs().sum())

        def on_substep_end(self, args, state, control, model=None, **kwargs):
            seen.append(controller(model).parameters()["bits"].grad.abs().sum())

    options = {"gradient_accumulation_steps": 2, "max_steps": 2, "save_strategy": "no"}
    space = {"space": {"policy": "bit_gradient", "target_cost": 0.5}}
    made = trainer(tmp_path, space, callback=Peek(), others=[ldp_search.integrations.LDPCallback()], **options)
    made.train()
    assert all(value > 0 for value in seen) and seen[0] != seen[1]


def test_scaled_losses_are_told_and_learned_from_unscaled(tmp_path):
    """fp16: what backward brings is multiplied by the scaler's changing scale."""
    SEEN.clear()
    gradients = []
    for scale in (1.0, 1024.0):
        made = trainer(tmp_path, {"space": {"policy": "bit_gradient", "target_cost": 0.5}})
        ldp, callback = controller(made.model), ldp_search.integrations.LDPCallback()
        ldp.policy.needs_loss = True
        callback.on_train_begin(made.args, made.state, made.control, model=made.model)
        batch = {k: torch.stack([Words()[i][k] for i in range(4)]) for k in Words()[0]}
        torch.manual_seed(0)
        loss = made.model.train()(**batch).loss
        (loss * scale).backward()
        step = ldp.step
        ldp.step = lambda progress, loss, optimizer, step=step, ldp=ldp: (
            SEEN.append(float(loss)), gradients.append(ldp.parameters()["bits"].grad.clone()), step(progress, loss)
        )  # fmt: skip
        scaler = SimpleNamespace(is_enabled=lambda: True, get_scale=lambda scale=scale: scale)
        made.state.max_steps = STEPS
        callback.on_pre_optimizer_step(
            made.args, made.state, made.control, model=made.model, optimizer=SimpleNamespace(scaler=scaler)
        )
    assert SEEN[0] == pytest.approx(float(loss.detach()), rel=1e-6) and SEEN[1] == pytest.approx(SEEN[0], rel=1e-6)
    torch.testing.assert_close(gradients[0][:, :2], gradients[1][:, :2], rtol=1e-4, atol=1e-7)


def test_bfloat16(tmp_path):
    made = trainer(tmp_path, bf16=True, max_steps=4, save_strategy="no")
    made.train()
    assert controller(made.model).trajectory.seen == 4


# -- checkpoints ----------------------------------------------------------------------------------------------------


@breadth("step", [4, 8], always=[8])
def test_a_resumed_training_is_bitwise_the_uninterrupted_one(whole, tmp_path, step):
    folder = checkpoint(whole, step, tmp_path / f"checkpoint-{step}")
    assert "ldp_state.pt" in os.listdir(folder)
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=folder)
    same_training(whole, resumed)


@pytest.mark.slow(reason="a second resume of other settings; one always is shown above")
def test_resuming_twice_with_accumulation_learned_clips_and_a_cost_weight(tmp_path):
    space = {"cost_weight": 1.0, "weight_quantizer": "clip", "input_quantizer": "clip"}
    options = {"gradient_accumulation_steps": 2, "max_steps": 8, "save_steps": 2}
    one = trainer(tmp_path / "one", space, **options)
    one.train()
    two = trainer(tmp_path / "two", space, **options)
    two.train(resume_from_checkpoint=checkpoint(one, 2, tmp_path / "two" / "checkpoint-2"))
    shutil.rmtree(tmp_path / "two" / "checkpoint-8")
    three = trainer(tmp_path / "two", space, **options)
    three.train(resume_from_checkpoint=True)  # the newest, checkpoint-6
    same_training(one, two)
    same_training(one, three)


def test_resuming_from_another_place(whole, tmp_path):
    folder = checkpoint(whole, 8, tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"goes on at step 8, but no ldp_state.pt .*LDPCallback\(resume_from=FOLDER\)"):
        trainer(tmp_path / "new").train(resume_from_checkpoint=folder)
    resumed = trainer(tmp_path / "new", callback=ldp_search.integrations.LDPCallback(resume_from=folder))
    resumed.train(resume_from_checkpoint=folder)
    same_training(whole, resumed)


def test_a_state_of_another_training_is_not_taken(whole, tmp_path):
    folder = checkpoint(whole, 8, tmp_path / "checkpoint-8")
    other = torch.load(os.path.join(folder, "ldp_state.pt"))
    torch.save(other | {"run": "another"}, os.path.join(folder, "ldp_state.pt"))
    with pytest.raises(FileNotFoundError, match="no ldp_state.pt of that checkpoint"):
        trainer(tmp_path).train(resume_from_checkpoint=folder)


def test_callback_states_restored_by_the_trainer(whole, tmp_path):
    folder = checkpoint(whole, 8, tmp_path / "checkpoint-8")
    resumed = trainer(tmp_path, restore_callback_states_from_checkpoint=True)
    resumed.train(resume_from_checkpoint=folder)
    same_training(whole, resumed)


def test_the_best_checkpoint_comes_back_with_its_bits(tmp_path):
    made = trainer(
        tmp_path, {"policy": "ramp"}, load_best_model_at_end=True, eval_strategy="steps", eval_steps=4,
        metric_for_best_model="age", greater_is_better=False,
    )  # fmt: skip
    made.compute_metrics = lambda prediction: {"age": made.state.global_step}  # the first is the best
    made.train()
    ldp = controller(made.model)
    assert made.state.best_model_checkpoint.endswith("checkpoint-4")
    state = torch.load(tmp_path / "checkpoint-4" / "ldp_state.pt")["ldp"]["tensors"]
    assert {b.weight for b in ldp.bits().values()} == {int(state["bits"][0, 0].round())} != {8}
    assert ldp.trajectory.seen == STEPS


def test_a_best_checkpoint_without_its_bits_is_said(tmp_path):
    class Lose(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            os.remove(os.path.join(state.best_model_checkpoint, "ldp_state.pt"))

    options = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 4, "max_steps": 4}
    made = trainer(tmp_path, callback=Lose(), others=[ldp_search.integrations.LDPCallback()], **options)
    with pytest.warns(UserWarning, match="the bits are those of the last step"):
        made.train()


@pytest.mark.slow(reason="two processes of the Trainer; it resumes alone, and trainings in two processes run, always")
def test_two_processes_resumed_bitwise(tmp_path):
    """With accumulation, bf16, gradient checkpointing, evaluation in between and the best model at the end."""
    both = fork_two(tmp_path / "printed", "trainer_two", str(tmp_path))
    assert both.wait() == 0, both.printed
    held = [(tmp_path / run / f"rank{rank}.json").read_text() for run in ("whole", "cut") for rank in (0, 1)]
    assert len(set(held)) == 1  # both processes, of both trainings
    row = json.loads(held[0])
    assert row["mode"] == "distributed" and row["seen"] == 8 and row["mean_cost"] == pytest.approx(0.5, abs=0.01)


# -- the end --------------------------------------------------------------------------------------------------------


def test_a_finalize_that_fails_is_a_warning_and_keeps_the_trained_model(tmp_path, monkeypatch):
    made = trainer(tmp_path, callback=ldp_search.integrations.LDPCallback(finalize=True), save_strategy="no")
    trained = {}

    def with_a_batch_that_does_not_fit(loader, *args, **kwargs):
        trained.update({k: v.clone() for k, v in made.model.state_dict().items()}, bits=controller(made.model).bits())
        return finalize([next(iter(loader)), {"input_ids": torch.full((2, 10), 999)}])

    finalize = controller(made.model).finalize
    monkeypatch.setattr(controller(made.model), "finalize", with_a_batch_that_does_not_fit)
    with pytest.warns(UserWarning, match="finalize failed on the training data .IndexError"):
        made.train()
    assert controller(made.model).bits() == trained.pop("bits") and not controller(made.model).frozen
    assert all(torch.equal(v, trained[k]) for k, v in made.model.state_dict().items())


def test_finalize_save_and_load(tmp_path):
    made = trainer(tmp_path, callback=ldp_search.integrations.LDPCallback(finalize=True), save_strategy="no")
    made.train()
    assert controller(made.model).frozen
    loaded = ldp_search.load_pretrained(ldp_search.save_pretrained(made.model, tmp_path / "out"))
    x = {"input_ids": Words().words[:8]}
    with torch.no_grad():
        assert torch.equal(loaded(**x).logits, made.model.eval()(**x).logits)


# -- errors ---------------------------------------------------------------------------------------------------------


def test_apply_was_not_called(tmp_path):
    with pytest.raises(LookupError, match="call ldp_search.apply"):
        trainer(tmp_path, "none").train()


def test_losses_that_cannot_be_read(tmp_path):
    listening = {"policy": "test_integrations:Listener"}
    with pytest.raises(ValueError, match="label_smoothing_factor=0.1 trains on another one"):
        trainer(tmp_path, listening, label_smoothing_factor=0.1).train()

    class Own(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            output = model(**inputs)
            loss = torch.nn.functional.cross_entropy(output.logits, labels)
            return (loss, output) if return_outputs else loss

    made = trainer(tmp_path, listening, kind=Own)
    with pytest.raises(ValueError, match="backward did not go through a loss of the model"):
        made.train()
    assert made.state.global_step == 0  # at once, not after an epoch
    trainer(tmp_path, kind=Own, max_steps=2, save_strategy="no").train()  # policies without the loss do not mind


def test_training_twice_needs_a_new_search(tmp_path):
    made = trainer(tmp_path, max_steps=2, save_strategy="no")
    made.train()
    with pytest.raises(ValueError, match=r"trained for 2 steps before: resume with .*ldp_search.remove\(model\)"):
        made.train()
    ldp_search.apply(ldp_search.remove(made.model), target_cost=0.5)
    made.train()


def test_data_parallel_is_refused(tmp_path, monkeypatch):
    made = trainer(tmp_path)
    monkeypatch.setattr(type(made.args), "parallel_mode", transformers.training_args.ParallelMode.NOT_DISTRIBUTED)
    with pytest.raises(ValueError, match="one process a GPU"):
        made.train()
