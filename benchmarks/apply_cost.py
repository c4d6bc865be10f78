"""What `apply` itself costs: seconds, for a 1.1-billion-parameter configuration on the meta device and for many small layers.

OMP_NUM_THREADS=1 python benchmarks/apply_cost.py
"""

import time

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import ldp_search


def seconds(model: nn.Module, example_inputs=None) -> float:
    start = time.perf_counter()
    ldp_search.apply(model, example_inputs=example_inputs)
    elapsed = time.perf_counter() - start
    ldp_search.remove(model)
    return elapsed


def main() -> None:
    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=4, vocab_size=32000))
    inputs = {"input_ids": torch.zeros(1, 128, dtype=torch.long, device="meta")}
    model(**inputs)  # the first forward imports and looks up
    print(f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} billion parameters: {seconds(model):.2f} s without inputs,")
    print(f"  {seconds(model, inputs):.2f} s with inputs of 128 tokens on the meta device (three forwards)")
    for layers in (1000, 4000, 10000):
        model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(layers)])
        print(f"{layers:,} layers: {seconds(model, torch.zeros(1, 4)):.2f} s")


if __name__ == "__main__":
    main()
