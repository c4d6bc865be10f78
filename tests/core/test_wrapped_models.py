"""Models as people wrap them: adapters, checkpointing, half precision, memory formats, changing sizes, generation."""

import copy
import itertools
import json

import pytest
import timm
import torch
import torch.nn.functional as F
from breadth import breadth
from fork_two import fork_two
from signals import deaf_layers

import ldp_search
from ldp_search import controller

transformers = pytest.importorskip("transformers")

TOKENS = torch.randint(5, 60, (4, 10), generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 0, 1])
IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
STEPS = 4
SPACES = {
    "learned": {"target_cost": 0.6, "sense_every": 1},
    "bit_gradient": {"space": {"policy": "bit_gradient", "target_cost": 0.6}},
}
"""Both ways of learning: of every layer's damage, and of the gradients of its bits."""
LEARNING = breadth("space", SPACES.values(), always=1, ids=SPACES)
ROWS = "a second transformer of the three models, which always has the other tests"
WITH_BERT = breadth("name", ["bert", "gpt2", "resnet"], always=["bert", "resnet"], reason=ROWS)
WITH_GPT2 = breadth("name", ["bert", "gpt2", "resnet"], always=["gpt2", "resnet"], reason=ROWS)


def bert():
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "bert", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=64,
        max_position_embeddings=32, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return transformers.AutoModelForSequenceClassification.from_config(config)


def gpt2():
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(
        "gpt2", n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=32, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config)


def resnet():
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=2, zero_init_last=False)  # else its branches begin silent


MODELS = {"bert": bert, "gpt2": gpt2, "resnet": resnet}


def inputs(name: str) -> dict:
    """A batch with labels of that model."""
    if name == "resnet":
        return {"x": IMAGES}
    return {"input_ids": TOKENS, "labels": LABELS if name == "bert" else TOKENS}


def loss_of(name: str, model, batch: dict | None = None) -> torch.Tensor:
    batch = inputs(name) if batch is None else batch
    if name == "resnet":
        return F.cross_entropy(model(batch["x"]).float(), LABELS[: len(batch["x"])])
    return model(**batch).loss


def outputs_of(name: str, model) -> torch.Tensor:
    with torch.no_grad():
        return model(IMAGES) if name == "resnet" else model(input_ids=TOKENS).logits


def train(name: str, model, steps: int = STEPS, autocast: bool = False) -> list[float]:
    """A whole training, on one batch; its losses."""
    ldp, losses = controller(model), []
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train()
    for step in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(name, model)
        loss.backward()
        check_gradients(ldp)
        ldp.step((step + 1) / steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def check_gradients(ldp) -> None:
    """What the policy learns from is finite everywhere, and has come from every layer that runs."""
    if ldp.sensing or not ldp.policy.needs_damage:
        assert not deaf_layers(ldp)


# -- adapters -------------------------------------------------------------------------------------------------------


def lora(model, name: str):
    peft = pytest.importorskip("peft")
    target = {"bert": ["query", "value"], "gpt2": ["c_attn"], "resnet": ["conv2"]}[name]
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=target, init_lora_weights=False))


@LEARNING
@WITH_BERT
def test_apply_after_get_peft_model(name, space):
    model = lora(MODELS[name](), name).eval()
    before, state = outputs_of(name, model), list(model.state_dict())
    ldp_search.apply(model, **space)
    ldp = controller(model)
    with ldp.disabled():
        assert torch.equal(outputs_of(name, model), before)
    assert any("lora_A" in layer for layer in ldp.layers)  # adapters are products too
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    train(name, model)
    assert ldp.cost().mean_relative == pytest.approx(0.6, abs=0.02)
    assert list(model.state_dict()) == state
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


@LEARNING
@WITH_GPT2
def test_apply_before_get_peft_model(name, space):
    plain = lora(MODELS[name](), name).eval()
    model = ldp_search.apply(MODELS[name](), **space)
    model = lora(model, name).eval()
    ldp = controller(model)
    with ldp.disabled():
        assert torch.equal(outputs_of(name, model), outputs_of(name, plain))
    assert list(model.state_dict()) == list(plain.state_dict())
    train(name, model)
    assert ldp.trajectory.seen == STEPS


def test_adapters_are_saved_and_loaded_as_always(tmp_path):
    peft = pytest.importorskip("peft")
    model = ldp_search.apply(lora(bert(), "bert"), policy="static", bits=6)
    train("bert", model)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(bert(), tmp_path).eval()
    with controller(model).disabled():
        assert torch.equal(outputs_of("bert", loaded), outputs_of("bert", model.eval()))


def test_a_merged_model_is_plain_after_remove():
    model = ldp_search.apply(lora(bert(), "bert"), policy="static", bits=6)
    train("bert", model)
    ldp_search.remove(model)
    expected = outputs_of("bert", model.eval())
    merged = model.merge_and_unload()
    assert not [m for m in merged.modules() if type(m).__name__.startswith("Quant")]
    torch.testing.assert_close(outputs_of("bert", merged.eval()), expected)


@LEARNING
def test_a_copy_that_peft_trains_has_the_bits_of_its_layer(space):
    """A task_type of classification trains a copy of the classifier (modules_to_save)."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False)
    model = peft.get_peft_model(ldp_search.apply(bert(), **space), config)
    train("bert", model)


@LEARNING
def test_a_copy_that_peft_makes_after_the_count_shares_the_bits_of_its_layer(space):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS", init_lora_weights=False)
    model = peft.get_peft_model(ldp_search.apply(bert(), **space, example_inputs={"input_ids": TOKENS}), config)
    train("bert", model)  # the bits of "classifier" get gradients


@LEARNING
def test_a_merged_model_is_found_again(tmp_path, space):
    model = ldp_search.apply(lora(bert(), "bert"), **space)
    train("bert", model)
    ldp = controller(model)
    merged = model.merge_and_unload()
    assert controller(merged) is ldp
    with pytest.raises(ValueError, match="search space already"):
        ldp_search.apply(merged)
    ldp_search.remove(merged)
    assert not [m for m in merged.modules() if type(m).__name__.startswith("Quant")]


# -- gradient checkpointing -----------------------------------------------------------------------------------------


@breadth("name, reentrant", itertools.product(["bert", "gpt2"], [True, False]), always=[("bert", False), ("gpt2", True)])
@LEARNING
def test_gradient_checkpointing_changes_no_gradient(name, reentrant, space):
    grads = []
    for checkpointing in (False, True):
        model = ldp_search.apply(MODELS[name](), grad_bits=32, **space).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        loss_of(name, model).backward()
        check_gradients(controller(model))
        ldp = controller(model)
        learned_from = ldp.sensor.record.curves if ldp.policy.needs_damage else ldp.parameters()["bits"].grad
        grads.append([learned_from.clone(), *(p.grad for p in model.parameters())])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_averages_no_range_twice(reentrant):
    ranges = []
    for checkpointing in (False, True):
        model = ldp_search.apply(bert(), target_cost=0.6).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        loss_of("bert", model).backward()
        ranges.append(controller(model).ranges.clone())
    torch.testing.assert_close(ranges[1], ranges[0], rtol=1e-5, atol=1e-6)


@LEARNING
def test_gradient_checkpointing_of_timm(space):
    model = ldp_search.apply(resnet(), **space)
    model.set_grad_checkpointing()
    train("resnet", model)


# -- precision ------------------------------------------------------------------------------------------------------


@LEARNING
@WITH_GPT2
def test_autocast_bfloat16(name, space):
    model = ldp_search.apply(MODELS[name](), **space)
    assert all(loss == loss for loss in train(name, model, autocast=True))
    assert controller(model).cost().mean_relative == pytest.approx(0.6, abs=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        half = outputs_of(name, model.eval()).float()
    torch.testing.assert_close(half, outputs_of(name, model), rtol=0.1, atol=0.1)


@LEARNING
@breadth(
    "name, dtype",
    list(itertools.product(MODELS, [torch.bfloat16, torch.float16])),
    always=[("bert", torch.bfloat16), ("gpt2", torch.float16), ("resnet", torch.float16)],
)
def test_models_in_half_precision(name, dtype, space):
    model = MODELS[name]().to(dtype)
    batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs(name).items()}

    def logits():
        with torch.no_grad():
            return model(batch["x"]) if name == "resnet" else model(input_ids=TOKENS).logits

    before = logits()
    ldp_search.apply(model, **space)
    ldp = controller(model)
    with ldp.disabled():
        assert torch.equal(logits(), before)
    model.train()
    (loss_of(name, model, batch) * 64).backward()  # fp16 would lose what is small
    check_gradients(ldp)
    assert all(p.dtype == dtype and p.grad.dtype == dtype and torch.isfinite(p.grad).all() for p in model.parameters())
    ldp.step(0.5)
    assert logits().dtype == dtype and torch.isfinite(logits()).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_sixteen_bits_are_close_in_half_precision(name, dtype):
    model = MODELS[name]().to(dtype).eval()
    before = outputs_of(name, model)
    ldp_search.apply(model, policy="static", bits=16, grad_bits=16)
    torch.testing.assert_close(outputs_of(name, model), before, rtol=0.02, atol=0.02)


# -- shapes and memory ----------------------------------------------------------------------------------------------


def test_channels_last():
    model = ldp_search.apply(resnet(), policy="static", bits=16, grad_bits=32).train()
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    kept = []
    for module in other.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, args, y: kept.append(y.is_contiguous(memory_format=torch.channels_last)))
    results = []
    for one, images in ((model, IMAGES), (other, IMAGES.to(memory_format=torch.channels_last))):
        output = one(images)
        F.cross_entropy(output, LABELS).backward()
        results.append((output.detach(), one.conv1[0].weight.grad))
    assert kept and all(kept)
    for first, second in zip(*results, strict=True):  # a last digit may decide a rounding, and so on through the layers
        assert (first - second).norm() < 0.05 * first.norm()


@pytest.mark.parametrize("groups", [1, 4])
def test_channels_last_of_one_layer(groups):
    layer, images = torch.nn.Conv2d(4, 8, 3, padding=1, groups=groups), torch.randn(2, 4, 9, 9)
    model = ldp_search.apply(torch.nn.Sequential(layer), example_inputs=images, policy="static", bits=5, grad_bits=32)
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        output = model.to(memory_format=memory_format)(images.to(memory_format=memory_format))
        output.square().sum().backward()
        results.append((output.detach(), layer.weight.grad))
        layer.weight.grad = None
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-4)


@LEARNING
@WITH_BERT
def test_changing_sizes(name, space):
    model = ldp_search.apply(MODELS[name](), **space).train()
    ldp, sizes = controller(model), (10, 7, 1, 12)
    for step, size in enumerate(sizes):
        batch = {"x": IMAGES[:, :, : 20 + size, : 24 + size]}
        if name != "resnet":
            batch = {k: v[:, :size] if v.dim() == 2 else v for k, v in inputs(name).items()}
            batch["input_ids"] = TOKENS.repeat(1, 2)[:, : size + 1]
            batch["labels"] = LABELS if name == "bert" else batch["input_ids"]
        loss_of(name, model, batch).backward()
        check_gradients(ldp)
        ldp.step((step + 1) / len(sizes))
    macs = [spec.macs for spec in ldp.layers.values()]
    assert ldp.cost().mean_relative == pytest.approx(0.6, abs=0.02) and all(macs)


# -- evaluation and generation --------------------------------------------------------------------------------------


@LEARNING
@WITH_GPT2
def test_evaluation_leaves_everything_as_it_was(name, space):
    model = ldp_search.apply(MODELS[name](), **space)
    train(name, model, steps=2)
    ldp = controller(model)
    before = copy.deepcopy(ldp.state_dict())
    first, second = outputs_of(name, model.eval()), outputs_of(name, model)
    assert torch.equal(first, second) and not first.requires_grad
    with torch.inference_mode():
        third = model(IMAGES) if name == "resnet" else model(input_ids=TOKENS).logits
    assert torch.equal(first, third)
    for key, value in ldp.state_dict()["tensors"].items():
        assert torch.equal(value, before["tensors"][key]), key
    train(name, model.train(), steps=0)
    loss_of(name, model).backward()  # inference mode left nothing behind that autograd refuses
    check_gradients(ldp)


@pytest.mark.parametrize("sampling", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_generate_with_a_cache(sampling):
    model = gpt2().eval()
    options = {"max_new_tokens": 8, "pad_token_id": 0, **sampling}
    plain = model.generate(TOKENS, **options)
    ldp_search.apply(model, policy="static", bits=8)
    ldp = controller(model)
    with ldp.disabled():
        assert torch.equal(model.generate(TOKENS, **options), plain)
    ldp.finalize([{"input_ids": TOKENS}])
    cached = model.eval().generate(TOKENS, use_cache=True, **options)
    assert torch.equal(cached, model.generate(TOKENS, use_cache=False, **options))
    assert cached.shape == plain.shape


@LEARNING
def test_generation_during_a_training(space):
    model = ldp_search.apply(gpt2(), **space)
    train("gpt2", model, steps=2)
    model.eval().generate(TOKENS, max_new_tokens=3, pad_token_id=0)
    model.train()
    loss_of("gpt2", model).backward()
    check_gradients(controller(model))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_in_the_coverage(attention):
    model = bert()
    model.set_attn_implementation(attention)
    coverage = controller(ldp_search.apply(model, example_inputs={"input_ids": TOKENS})).coverage
    counted = sum(item.macs for item in coverage.left_out if "attention.self" in item.name)
    assert counted == 2 * 2 * 10 * 10 * 32 and coverage.share < 0.95  # QK and PV of two layers


# -- two processes --------------------------------------------------------------------------------------------------


WRAPPERS = ["ddp", "ddp_counted_first", "fsdp2_after_apply", "fsdp2_before_apply", "accelerate_ddp", "accelerate_fsdp2"]
WRAPPERS += ["fsdp2_counted_before_apply", "fsdp2_of_linear_layers", "fsdp2_of_linear_layers_before_apply"]


@pytest.fixture(scope="module")
def two(request, tmp_path_factory):
    """{wrapper: what each of two processes holds after a training in it}, of those that are run; see wrapped_two.py."""
    asked = {item.callspec.params["wrapper"] for item in request.session.items if item.name.startswith("test_wrapped_in_two")}
    folder = tmp_path_factory.mktemp("two")
    both = fork_two(folder / "printed", "wrapped_two", str(folder), *(w for w in WRAPPERS if w in asked | {"ddp"}))
    assert both.wait() == 0, both.printed
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@breadth("wrapper", WRAPPERS, always=["ddp", "accelerate_fsdp2"])
def test_wrapped_in_two_processes(two, wrapper):
    if "fsdp2" in wrapper and torch.__version__ < (2, 7):
        pytest.skip("FSDP2 on a CPU needs torch >= 2.7: 2.6 asks the CPU for a stream")
    zero, one = two[0][wrapper], two[1][wrapper]
    assert "error" not in zero, zero["error"]
    assert zero == one
    assert ("FSDP" in zero["class"]) == ("fsdp" in wrapper)
    assert zero["mean_cost"] == pytest.approx(0.6, abs=0.02) and len(set(zero["schedule"])) > 2
    assert not zero["quiet"]
    assert zero["loaded"] == zero["logits"]  # saved by one of them, from a whole state dict
    assert zero["logits"] == pytest.approx(two[0]["ddp"]["logits"], abs=1e-5)  # however it is spread, the same training
    assert zero["noise"] == pytest.approx(two[0]["ddp"]["noise"], rel=1e-2, abs=1e-12)  # of all that is trained, sharded or not
