"""What each format of an export takes on disk and in time, beside the same network in fp32 and in onnxruntime's own int8.

    OMP_NUM_THREADS=1 python benchmarks/export.py [models=resnet20,...] [batch=1,8] [bits=8] [rounds=7] [clock=cpu|wall]

Random weights: size, time and agreement, no accuracy. clock=cpu counts the process's own seconds, for one thread on a machine
that others use too. Rows are printed as they are made, as a table for benchmarks/export.md.
"""

from __future__ import annotations

import platform
import sys
import tempfile
import time
import warnings
from pathlib import Path

import timm
import torch
from torch import nn

import ldp_search
import ldp_search.runner.models.cifar  # noqa: F401  (registers the CIFAR networks with timm)
from ldp_search.runner.exports import parity, peers, timing
from ldp_search.runner.exports.command import _written
from ldp_search.runner.exports.subject import Subject, random_inputs


def bert() -> nn.Module:
    import transformers

    return transformers.BertForSequenceClassification(transformers.BertConfig())


def gpt2() -> nn.Module:
    import transformers

    return transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False))


def llama() -> nn.Module:
    import transformers

    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(vocab_size=8192, num_key_value_heads=4, use_cache=False, max_position_embeddings=1024, **sizes)
    )


def segformer() -> nn.Module:
    import transformers

    return transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(num_labels=19))


MODELS = {
    "resnet20": ("ResNet-20, 32 x 32", lambda: timm.create_model("cifar_resnet20", num_classes=10)),
    "resnet18": ("ResNet-18, 224 x 224", lambda: timm.create_model("resnet18", num_classes=10)),
    "resnet50": ("ResNet-50, 224 x 224", lambda: timm.create_model("resnet50", num_classes=10)),
    "mobilenetv2": ("MobileNetV2, 224 x 224", lambda: timm.create_model("mobilenetv2_100", num_classes=10)),
    "vit_tiny": ("ViT-tiny, 224 x 224", lambda: timm.create_model("vit_tiny_patch16_224", num_classes=10)),
    "segformer": ("SegFormer-B0, 224 x 224", segformer),
    "bert": ("BERT-base-sized, 64 tokens", bert),
    "gpt2": ("GPT-2-small-sized, 64 tokens", gpt2),
    "llama": ("Llama, 8 layers of 512, 64 tokens", llama),
}
FORMATS = {"onnx": "m.onnx", "torch": "m.pt2", "packed": "m.packed.safetensors"}
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def frozen(name: str, bits: int) -> nn.Module:
    """A network with static bits and known ranges; symmetric grids, as onnxruntime's weights have."""
    torch.manual_seed(0)
    model = MODELS[name][1]().eval()
    args, kwargs = random_inputs(model, 2, 0)
    ldp_search.apply(
        model,
        example_inputs=kwargs or args,
        policy="static",
        bits=bits,
        weight_quantizer="symmetric",
        input_quantizer="symmetric",
    )
    batches = [random_inputs(model, 4, seed) for seed in range(100, 104)]
    ldp_search.controller(model).finalize(batches, forward=lambda inputs: model(*inputs[0], **inputs[1]))
    return model.eval()


def measure(name: str, options: dict) -> list[str]:
    """Lines of the table for one network."""
    lines = []
    with tempfile.TemporaryDirectory() as place:
        subject, folder = Subject(frozen(name, options["bits"]), Path(place)), Path(place)
        ways = list(peers.peers(subject, folder, True))
        for format, file in FORMATS.items():
            _written(subject, format, folder / file)
            ways.append(peers.exported(format, folder / file, subject))
        found = parity.compare(subject, ways, 32)
        times = timing.latencies(subject, ways, options["batch"], options["rounds"], CLOCKS[options["clock"]])
    for way in ways[1:]:
        one = found[way.name]
        if one.failed:
            lines.append(f"| {MODELS[name][0]} | {way.name} | failed: {one.failed} |" + " |" * (len(options["batch"]) + 1))
            continue
        ms = [f"{t.ms:.1f} ± {t.spread:.1f}" if (t := times[way.name].get(size)) else "" for size in options["batch"]]
        lines.append(f"| {MODELS[name][0]} | {way.name} | {way.bytes / 2**20:.2f} | {' | '.join(ms)} | {one.agreement:.1%} |")
    return lines


def main(words: list[str]) -> None:
    options = {"models": ",".join(MODELS), "batch": "1,8", "bits": 8, "rounds": 7, "clock": "cpu"}
    for word in words:
        key, _, value = word.partition("=")
        if key not in options:
            sys.exit(f"Unknown word {word!r}; known: {', '.join(options)}")
        options[key] = type(options[key])(value)
    options["batch"] = [int(size) for size in options["batch"].split(",")]
    import onnxruntime

    warnings.simplefilter("ignore")
    where = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {torch.get_num_threads()} thread(s)"
    kernels = f"{platform.machine()}, int8 kernels {ldp_search.int8.has_kernels()}"
    print(f"{where}, {kernels}, {options['clock']} clock, {options['bits']} bits")
    print(f"\n| network | way | MiB | {' | '.join(f'ms, batch {size}' for size in options['batch'])} | agreement |")
    print("|" + "---|" * (4 + len(options["batch"])))
    for name in options["models"].split(","):
        print("\n".join(measure(name, options)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
