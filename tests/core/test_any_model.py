"""What must hold for any model, over a table: what `apply` reaches, what stays as it was, gradients, ways of running."""

import copy
import pickle

import pytest
import timm
import torch
import transformers as hf
from breadth import breadth
from older import COMPILED
from signals import deaf_layers
from timm.layers import ScaledStdConv2d  # standardizes its weights in every forward
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from torch import nn
from torch.utils.checkpoint import checkpoint

import ldp_search

hf.logging.set_verbosity_error()
TEXT = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
TWICE = TEXT | {"num_hidden_layers": 2}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "use_cache": False}
CAUSAL = TEXT | SPECIAL | {"num_key_value_heads": 2}
PICTURE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 32}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 60, "decoder_start_token_id": 0}
IDS = {"input_ids": torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(0))}
IMAGE = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PIXELS = {"pixel_values": IMAGE}
XLNET = {"vocab_size": 60, "d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 48}
SEVERAL = {"input_ids": IDS["input_ids"], "decoder_input_ids": IDS["input_ids"]}
VIT = {"num_classes": 3, "img_size": 32, "depth": 1, "embed_dim": 32, "num_heads": 4}


def picture(name, **options):
    return lambda: timm.create_model(name, **options)


def condconv():
    """The first blocks of timm's efficientnet_cc_b0_4e, the second with experts."""
    blocks = [["ds_r1_k3_s1_e1_c16_se0.25"], ["ir_r1_k3_s2_e6_c24_se0.25_cc4"]]
    return EfficientNet(decode_arch_def(blocks), num_classes=3, num_features=48, stem_size=16)


class Shared(nn.Module):
    """A layer used twice on inputs of other sizes, a frozen blur, tied weights, a recurrent layer, a bilinear one."""

    def __init__(self):
        super().__init__()
        self.table, self.twice = nn.Embedding(60, 16), nn.Linear(16, 16)
        self.recurrent, self.pair = nn.GRU(16, 8, batch_first=True), nn.Bilinear(8, 8, 16)
        self.head = nn.Linear(16, 60, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("blur", torch.rand(16, 1, 3))

    def forward(self, input_ids):
        x = self.twice(10 * self.twice(self.table(input_ids)))
        x = nn.functional.conv1d(x.transpose(1, 2), self.blur, padding=1, groups=16).transpose(1, 2)
        x = self.recurrent(x)[0]
        return self.head(self.pair(x, x.flip(1)))


MODELS = {  # name: (make, inputs)
    "resnet": (picture("resnet10t", num_classes=3, channels=(16, 24, 32, 48)), (IMAGE,)),
    "nfnet": (picture("nf_resnet26", num_classes=3, depths=(1, 1), channels=(32, 64)), (IMAGE,)),
    "standardized": (lambda: nn.Sequential(ScaledStdConv2d(3, 4, 3), nn.ReLU(), ScaledStdConv2d(4, 4, 3)), (IMAGE,)),
    "beit": (picture("beit_base_patch16_224", **VIT), (IMAGE,)),  # reads the weight of a layer from outside
    "condconv": (condconv, (IMAGE,)),  # kernels made from the input
    "shared": (Shared, IDS),
    "bert": (lambda: hf.BertForSequenceClassification(hf.BertConfig(**TEXT)), IDS),
    "gpt2": (lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=4, **SPECIAL)), IDS),
    "llama": (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**CAUSAL)), IDS),
    "mixtral": (lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**CAUSAL, num_local_experts=4)), IDS),
    "experts, one by one": (
        lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**CAUSAL, num_local_experts=4, experts_implementation="eager")),
        IDS,
    ),
    "xlnet": (lambda: hf.XLNetLMHeadModel(hf.XLNetConfig(**XLNET)), IDS),  # raw parameters in einsum
    "mamba": (lambda: hf.MambaForCausalLM(hf.MambaConfig(**TEXT | SPECIAL, state_size=4)), IDS),
    "albert": (lambda: hf.AlbertModel(hf.AlbertConfig(**TWICE, embedding_size=16)), IDS),  # one block, run twice
    "t5": (lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)), SEVERAL),
    "siglip": (lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**PICTURE, patch_size=8)), PIXELS),
}  # fmt: skip


def make(name):
    torch.manual_seed(0)
    build, inputs = MODELS[name]
    model = build()
    with torch.no_grad():
        for p in model.parameters():  # a zero gain at the end of a branch would hide the branch
            p.add_(0.02 * torch.randn_like(p))
    return model.eval(), inputs


def run(model, inputs):
    out = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return out if isinstance(out, torch.Tensor) else getattr(out, "logits", out[0])


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", MODELS)
def test_everything_is_reached_and_nothing_else_changes(name):
    model, inputs = make(name)
    parameters, state = dict(model.named_parameters()), list(model.state_dict())
    anatomy = {n: (type(m), sorted(m.__dict__)) for n, m in model.named_modules()}
    expected = run(model, inputs).detach()
    ldp = ldp_search.controller(ldp_search.apply(model, example_inputs=inputs, attention=True))
    assert ldp.coverage.share == 1, ldp.coverage.left_out
    assert list(model.state_dict()) == state and all(p is parameters[n] for n, p in model.named_parameters())
    with ldp.disabled():
        assert torch.equal(run(model, inputs), expected)
    ldp_search.remove(model)
    assert {n: (type(m), sorted(m.__dict__)) for n, m in model.named_modules()} == anatomy
    assert torch.equal(run(model, inputs), expected)


@breadth("name", MODELS, always=["standardized", "beit", "condconv", "shared", "gpt2", "mixtral", "xlnet", "mamba", "siglip"])
def test_near_at_many_bits(name):
    model, inputs = make(name)
    expected = run(model, inputs).detach()
    for bits, most in ((16, 2e-3), (8, 0.3)):
        ldp_search.apply(model, "static", bits=bits, grad_bits=32, attention=True, example_inputs=inputs)
        assert 0 < error(run(model, inputs).detach(), expected) < most
        ldp_search.remove(model)


@breadth(
    "space", [{"target_cost": 0.5}, {"policy": "bit_gradient", "target_cost": 0.5}], always=1, ids=["learned", "bit_gradient"]
)
@pytest.mark.parametrize("name", MODELS)
def test_every_bit_learns(name, space):
    model, inputs = make(name)
    ldp = ldp_search.controller(ldp_search.apply(model, space, attention=True, example_inputs=inputs))
    model.train()
    out = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    out = [out] if isinstance(out, torch.Tensor) else out.to_tuple()
    sum(x.float().pow(3).mean() for x in out if isinstance(x, torch.Tensor)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert not deaf_layers(ldp)
    ldp.step(0.5)
    with torch.no_grad():
        assert run(model.eval(), inputs).isfinite().all()


@pytest.mark.parametrize("name", ["nfnet", "gpt2", "mixtral", "shared", "siglip"])
def test_copies_of_owners(name):
    model, inputs = make(name)
    ldp_search.apply(model, "static", bits=5, attention=True, example_inputs=inputs)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(twin, inputs), run(model, inputs))
        other = ldp_search.controller(twin)
        assert other is not ldp_search.controller(model) and other.model is twin
        other.parameters()["bits"].detach().fill_(2)
        assert not torch.equal(run(twin, inputs), run(model, inputs))


class Rare(nn.Module):
    """What is rare in a model: a block that runs twice, a raw weight in an einsum, attention, experts with a weight each."""

    def __init__(self):
        super().__init__()
        self.twice, self.heads = nn.Linear(8, 8), nn.Parameter(torch.randn(8, 2, 4))
        self.experts = nn.Parameter(torch.randn(2, 4, 8))

    def forward(self, x):
        x = self.twice(torch.tanh(self.twice(x)))
        x = torch.einsum("bnd,dhk->bhnk", x, self.heads)
        x = nn.functional.scaled_dot_product_attention(x, x, x)
        return torch.bmm(x.transpose(0, 1).flatten(1, 2), self.experts)


@COMPILED
@breadth("name", ["standardized", "gpt2", "rare"], always=["rare"])
def test_one_graph_whatever_the_bits(name):
    torch._dynamo.reset()
    model, inputs = (Rare().eval(), (torch.randn(2, 5, 8),)) if name == "rare" else make(name)
    ldp = ldp_search.controller(ldp_search.apply(model, grad_bits=32, attention=True, example_inputs=inputs))
    graphs = []

    def backend(graph, given):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, given)

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    for bits in (4, 6):
        ldp.parameters()["bits"].detach().fill_(bits)
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs), rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


def test_a_layer_that_runs_twice_has_two_ranges_and_tied_tensors_one_decision():
    model, inputs = make("shared")
    ldp = ldp_search.controller(ldp_search.apply(model, embeddings=True, attention=True, example_inputs=inputs))
    site = next(s for s in ldp.sites if s.name == "twice")
    run(model.train(), inputs)
    assert site.ranges.shape == (2, 4)
    first, second = (site.ranges[:, 1] / site.ranges[:, 3]).tolist()
    assert second > 2 * first
    at = list(ldp.layers).index
    group = ldp.problem.group
    assert group[at("table"), 0] == group[at("head"), 0] and group[at("table"), 0] != group[at("twice"), 0]
    assert ldp.layers["table"].weight_numel == 60 * 16 and ldp.layers["head"].weight_numel == 0
    assert ldp.layers["blur"].weight_numel == 0 and ldp.layers["blur"].macs > 0
    before = site.ranges.clone()
    with torch.no_grad():
        run(model.eval(), inputs)
    assert torch.equal(site.ranges, before) and site.call_site == 0


class Recomputed(nn.Module):
    """Runs its layer twice, each time under activation checkpointing where that is asked for."""

    def __init__(self):
        super().__init__()
        self.layer, self.reentrant = nn.Linear(4, 4), None

    def forward(self, x):
        for scale in (1, 5):
            again = (checkpoint, {"use_reentrant": self.reentrant}) if self.reentrant is not None else (lambda f, x: f(x), {})
            x = again[0](self.layer, scale * x, **again[1])
        return x


SPACE = {"policy": "bit_gradient", "bits": (3, 8), "grad_bits": 32, "target_cost": 0.5}


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_forwards_are_recorded_once(reentrant):
    model, x, ranges = Recomputed(), torch.randn(3, 4, requires_grad=True), []
    ldp = ldp_search.controller(ldp_search.apply(model, SPACE, example_inputs=x.detach()))
    for model.reentrant in (None, reentrant):
        ldp.ranges.zero_()
        ldp.parameters()["bits"].grad.zero_()
        model(x).square().sum().backward()
        ranges.append((ldp.ranges.clone(), ldp.parameters()["bits"].grad.clone()))
    assert ldp.ranges.shape == (2, 4)
    for one, other in zip(*ranges, strict=True):
        torch.testing.assert_close(one, other)


def test_what_transformers_reads_off_a_model_stays():
    """The class name goes into a checkpoint, and the Trainer keeps the columns that the forward's signature names."""
    import inspect

    model, inputs = make("gpt2")
    model.transformer.wte.weight = nn.Parameter(model.transformer.wte.weight.detach().clone())
    expected = inspect.signature(model.forward)

    class WithOwnProduct(type(model)):
        def forward(self, input_ids, attention_mask=None):
            hidden = self.transformer(input_ids, attention_mask=attention_mask)[0]
            return hidden @ self.transformer.wte.weight.t()

    model.__class__ = WithOwnProduct
    signature = inspect.signature(model.forward)
    ldp_search.apply(model, example_inputs=inputs)
    assert type(model).__name__ == "WithOwnProduct" and inspect.signature(model.forward) == signature != expected
    assert "transformer.wte" in ldp_search.controller(model).layers
    assert type(ldp_search.remove(model)) is WithOwnProduct


class Moody(nn.Module):
    """Computes something else once its layer is of another class."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x):
        return self.inside(x) if type(self.inside[0]) is nn.Linear else -self.inside(x)


def test_apply_verifies_itself_and_names_the_culprit():
    model, x = Moody(), torch.randn(2, 4)
    expected = model(x)
    with pytest.raises(RuntimeError, match="what it computed before .*but the output of the model itself differs"):
        ldp_search.apply(model, example_inputs=x)
    assert type(model.inside[0]) is nn.Linear and torch.equal(model(x), expected)
    ldp_search.apply(model)  # without inputs there is nothing to check on


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.other = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x, both=False):
        x = nn.functional.linear(x, self.first)
        return nn.functional.linear(x, self.other) if both else x


def test_a_weight_that_was_not_met_is_said():
    model, x = Branching(), torch.randn(2, 4)
    ldp_search.apply(model, "static", bits=4, example_inputs=x)
    model(x)
    with pytest.warns(
        UserWarning, match="The model calls linear on a weight that it did not use when its products were counted"
    ):
        model(x, both=True)
    ldp_search.remove(model)
    ldp_search.apply(model, "static", bits=4, example_inputs={"x": x, "both": True})
    assert list(ldp_search.controller(model).layers) == ["first", "other"]


def test_without_memory_and_large():
    """On the meta device a model of 1.1 billion parameters is a search space; its products are found at the first forward."""
    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
    with torch.device("meta"):
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, num_key_value_heads=4, vocab_size=32000))
    ldp = ldp_search.controller(ldp_search.apply(model))
    assert sum(p.numel() for p in model.parameters()) > 1e9 and len(ldp.layers) == 22 * 7 + 1 and not ldp.profiled
    model(input_ids=torch.zeros(1, 16, dtype=torch.long, device="meta"))
    assert ldp.profiled and ldp.coverage.share > 0.9


@pytest.mark.parametrize("call", ["apply", "first step", "summary"])
def test_weights_that_move_when_they_are_read_stay(call):
    """Spectral norm takes a step of power iteration whenever its weight is read in training mode."""
    model = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)))
    x, state = torch.randn(2, 4), model[1].parametrizations.weight[0]
    before = state._u.clone()
    ldp = ldp_search.controller(ldp_search.apply(model, policy="cyclic"))
    if call != "apply":
        model(x).sum().backward()
        before = state._u.clone()
        ldp.step(0.1) if call == "first step" else ldp.summary()
    assert torch.equal(state._u, before)
