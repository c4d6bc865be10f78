"""The networks of `step.py`, small enough for one CPU thread, on random data of a fixed batch."""

from __future__ import annotations

from functools import partial

import timm
import torch
import torch.nn.functional as F
from torch import nn

import ldp_search.runner.models.cifar  # noqa: F401  (registers the CIFAR networks with timm)

VOCABULARY = 4096


def images(name: str, batch: int, size: int, **options):
    """(model, loss of a model, inputs of one sample)."""
    model = timm.create_model(name, num_classes=10, **options)
    x, y = torch.randn(batch, 3, size, size), torch.randint(0, 10, (batch,))
    return model, lambda m: F.cross_entropy(m(x).float(), y), x[:1]


def vit_small(batch: int, size: int):
    """Width 384, six heads, four blocks, 64 patches and a class token."""
    return images("vit_small_patch16_224", batch, size, img_size=size, patch_size=4, depth=4)


def bert(batch: int, length: int, layers: int = 4, width: int = 256):
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )  # fmt: skip
    ids, labels = torch.randint(0, VOCABULARY, (batch, length)), torch.randint(0, 2, (batch,))
    model = transformers.BertForSequenceClassification(config)
    return model, lambda m: m(input_ids=ids, labels=labels).loss, {"input_ids": ids[:1]}


def gpt2(batch: int, length: int, layers: int = 4, width: int = 256):
    import transformers

    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=width, n_layer=layers, n_head=width // 64)
    ids = torch.randint(0, VOCABULARY, (batch, length))
    return transformers.GPT2LMHeadModel(config), lambda m: m(input_ids=ids, labels=ids).loss, {"input_ids": ids[:1]}


MODELS = {  # name: (what it is, maker)
    "resnet20": ("ResNet-20, 32x32, batch 128", partial(images, "cifar_resnet20", 128, 32)),
    "vit": ("ViT-small of 4 blocks, 64 patches, batch 32", partial(vit_small, 32, 32)),
    "bert": ("BERT 4x256, sequence 64, batch 32", partial(bert, 32, 64)),
    "gpt2": ("GPT-2 4x256, sequence 128, batch 16", partial(gpt2, 16, 128)),
}


def make(name: str) -> tuple[nn.Module, object, object]:
    """(model in training mode, loss of a model, example inputs), the same at every call."""
    torch.manual_seed(0)
    model, loss, example = MODELS[name][1]()
    return model.train(), loss, example
