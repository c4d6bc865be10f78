"""Time of a token that a language model writes, by what its ONNX file has: no cache, a cache, a cache and packed weights.

    OMP_NUM_THREADS=1 python -m benchmarks.generate bits=4 prompt=64 tokens=21
    OMP_NUM_THREADS=1 python -m benchmarks.generate bits=2 default_grids=1 ways=1,2

`default_grids=1`: those of the space `ldp`, instead of symmetric ones. `ways`: which of the files, by number.

A Llama of four layers of 2048 with random weights. The files write greedily, one token each in turn, with one thread; times are
the process's CPU time, median and half of the middle half, without the first token after the prompt.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

import ldp_search
from ldp_search.runner.exports.timing import _latency

WAYS = {
    "plain file, the whole text again": {},
    "`cache=true`": {"cache": True},
    "`cache=true nbits=true`": {"cache": True, "nbits": True},
}
WORDS = 4096


def frozen(bits: int, default_grids: bool) -> nn.Module:
    """The network with static weights of `bits` bits, 8-bit inputs and known ranges."""
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 4, "num_attention_heads": 16}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=WORDS, max_position_embeddings=1024, **sizes))
    words = {"policy": "static", "weight_bits": bits, "input_bits": 8, "tie": False}
    grids = {"weight_quantizer": "symmetric", "input_quantizer": "symmetric"}
    if default_grids:
        grids = {"weight_quantizer": {"name": "mse", "exact_zero": False}, "input_quantizer": "mse"}
    ldp_search.apply(model.eval(), example_inputs=texts(1), **words, **grids)
    ldp_search.controller(model).finalize([texts(2)] * 2, forward=lambda inputs: model(**inputs))
    return model.eval()


def texts(rows: int, length: int = 64) -> dict:
    return {"input_ids": torch.randint(0, WORDS, (rows, length), generator=torch.Generator().manual_seed(rows))}


def opened(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def writing(session: onnxruntime.InferenceSession, prompt: np.ndarray) -> Iterator[int]:
    """The tokens that a file writes, one at a time."""
    shapes = {value.name: value.shape for value in session.get_inputs() if value.name.startswith("past_key_values.")}
    past = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in shapes.items()}
    ids = prompt
    while True:
        logits, *present = session.run(None, {"input_ids": ids} | past)
        token = logits[:, -1:].argmax(-1)
        past, ids = dict(zip(past, present, strict=True)), token if past else np.concatenate([ids, token], 1)
        yield int(token[0, 0])


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    chosen = [list(WAYS)[int(number)] for number in given.pop("ways", "0,1,2").split(",")]
    options = {"bits": 4, "prompt": 64, "tokens": 21, "default_grids": 0} | {k: int(v) for k, v in given.items()}
    torch.set_num_threads(1)
    model = frozen(options["bits"], bool(options["default_grids"]))
    prompt = texts(1, options["prompt"])["input_ids"].numpy()
    with tempfile.TemporaryDirectory() as place:
        writers, sizes = {}, {}
        for number, way in enumerate(chosen):
            record = ldp_search.export(model, Path(place) / f"{number}.onnx", texts(1), **WAYS[way])
            print(way, record.max_error, record.own_error, record.same_tokens, file=sys.stderr, flush=True)
            writers[way], sizes[way] = writing(opened(record.path), prompt), record.bytes / 2**20
        del model
        seconds: dict[str, list[float]] = {way: [] for way in chosen}
        written: dict[str, list[int]] = {way: [] for way in chosen}
        for _ in range(options["tokens"] + 2):
            for way, writer in writers.items():
                start = time.process_time()
                written[way].append(next(writer))
                seconds[way].append(time.process_time() - start)
    heads = f"ms, prompt of {options['prompt']} | ms a token, median of {options['tokens']}"
    print(f"| weight bits | file | MiB | {heads} |\n|---|---|---|---|---|")
    for way, found in seconds.items():
        times = _latency(found[2:])
        print(f"| {options['bits']} | {way} | {sizes[way]:.1f} | {1e3 * found[0]:.1f} | {times.ms:.1f} ± {times.spread:.1f} |")
    with_cache = written.get("`cache=true`", written[chosen[0]])
    same = [sum(a == b for a, b in zip(tokens, with_cache, strict=True)) for tokens in written.values()]
    print(f"tokens that are those of `cache=true`: {same} of {options['tokens'] + 2}")


if __name__ == "__main__":
    main(sys.argv[1:])
