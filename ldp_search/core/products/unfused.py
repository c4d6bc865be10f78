"""Fused functions of torch, written as the products that they contain, so that each can be quantized by itself."""

from __future__ import annotations

import math
import types

import torch
import torch.nn.functional as F
from torch import Tensor


def opened(function):
    """A copy of one of torch's Python functions in which the functions that it calls can be met.

    The original hands itself over as a whole to whoever overrides torch functions; the copy does not ask for overriders.
    """
    names = function.__globals__ | {"has_torch_function": lambda *tensors: False}
    copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False) -> Tensor:
    """softmax(query key^T * scale + mask) value, as torch documents its scaled_dot_product_attention.

    query: (..., heads, targets, width); key, value: (..., heads, sources, width). A target that may see no source gets zeros.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = torch.matmul(query, key.transpose(-2, -1)) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = torch.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    if attn_mask is not None:
        weights = weights.masked_fill((scores == -math.inf).all(-1, keepdim=True), 0)
    return torch.matmul(F.dropout(weights, dropout_p) if dropout_p else weights, value)


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input1^T weight input2 + bias: inputs (..., in1), (..., in2), weight (out, in1, in2) -> (..., out)."""
    half = torch.matmul(input1.unsqueeze(-2).unsqueeze(-2), weight)  # (..., out, 1, in2)
    y = torch.matmul(half, input2.unsqueeze(-2).unsqueeze(-1)).flatten(-3)
    return y if bias is None else y + bias


# -- recurrent layers -------------------------------------------------------------------------------------------------


def _lstm(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (x + h).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, h: Tensor, before: Tensor) -> Tensor:
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, -1), h.chunk(3, -1)
    new = (xn + (xr + hr).sigmoid() * hn).tanh()
    return new + (xz + hz).sigmoid() * (before - new)


def _direction(kind: str, x: Tensor, batches: list[int], state: tuple, weights: list, reverse: bool) -> tuple[Tensor, tuple]:
    """One layer in one direction. x: (steps' samples one after the other, features); batches: samples of each step, falling.

    state: (h,) or (h, c) of the first step; returns the outputs, laid out as `x`, and the state after each sample's last step.
    """
    projection = weights[-1] if kind == "lstm" and len(weights) in (3, 5) else None
    w_x, w_h, *biases = weights if projection is None else weights[:-1]
    b_x, b_h = biases or (None, None)
    parts = F.linear(x, w_x, b_x).split(batches)
    outputs: list[Tensor] = []  # in the order in which they are made
    begin = [s[: batches[0]] for s in state]
    done: list[list[Tensor]] = [[] for _ in begin]
    live = [s[: batches[-1]] for s in begin] if reverse else begin
    for t in reversed(range(len(batches))) if reverse else range(len(batches)):
        n = batches[t]
        if len(live[0]) < n:  # backwards, more samples join
            live = [torch.cat([old, s[len(old) : n]]) for old, s in zip(live, begin, strict=True)]
        elif len(live[0]) > n:  # forwards, the shortest ones end
            for ended, old in zip(done, live, strict=True):
                ended.insert(0, old[n:])
            live = [old[:n] for old in live]
        h = F.linear(live[0], w_h, b_h)
        if kind == "lstm":
            live = list(_lstm(parts[t], h, live[1]))
            live[0] = live[0] if projection is None else F.linear(live[0], projection)
        elif kind == "gru":
            live = [_gru(parts[t], h, live[0])]
        else:
            live = [(parts[t] + h).tanh() if kind == "tanh" else (parts[t] + h).relu()]
        outputs.append(live[0])
    finals = tuple(torch.cat([last, *ended]) for last, ended in zip(live, done, strict=True))
    return torch.cat(outputs[::-1] if reverse else outputs), finals


def _stack(kind, x, batches, states, weights, layers, dropout, train, bidirectional):
    """All layers and directions. states: (layers * directions, batch, features) each; returns outputs and final states."""
    directions, finals = 2 if bidirectional else 1, []
    size = len(weights) // (layers * directions)
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            k = layer * directions + direction
            mine = list(weights[k * size : (k + 1) * size])
            out, final = _direction(kind, x, batches, tuple(s[k] for s in states), mine, bool(direction))
            outputs.append(out)
            finals.append(final)
        x = torch.cat(outputs, -1) if bidirectional else outputs[0]
        if dropout and train and layer < layers - 1:
            x = F.dropout(x, dropout)
    return x, *(torch.stack(parts) for parts in zip(*finals, strict=True))


def recurrent(kind: str):
    """The function torch.lstm, torch.gru, torch.rnn_tanh or torch.rnn_relu, of padded or of packed sequences."""

    def run(x, second, third, *rest):
        if isinstance(second, Tensor) and second.dtype == torch.int64:  # packed: batch sizes, then states and weights
            states, weights, options = third, rest[0], rest[1:]
            return _stack(kind, x, second.tolist(), _states(states), weights, *options[1:5])
        states, weights, (_, layers, dropout, train, bidirectional, batch_first) = second, third, rest
        x = x.transpose(0, 1) if batch_first else x
        out, *finals = _stack(
            kind,
            x.flatten(0, 1),
            [x.shape[1]] * len(x),
            _states(states),
            weights,
            layers,
            dropout,
            train,
            bidirectional,
        )
        out = out.unflatten(0, x.shape[:2])
        return out.transpose(0, 1) if batch_first else out, *finals

    return run


def _states(states) -> tuple:
    return (states,) if isinstance(states, Tensor) else tuple(states)


def recurrent_cell(kind: str):
    """The function torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell or torch.rnn_relu_cell."""

    def run(x, states, w_x, w_h, b_x=None, b_h=None):
        states = _states(states)
        x, h = F.linear(x, w_x, b_x), F.linear(states[0], w_h, b_h)
        if kind == "lstm":
            return _lstm(x, h, states[1])
        if kind == "gru":
            return _gru(x, h, states[0])
        return (x + h).tanh() if kind == "tanh" else (x + h).relu()

    return run


UNFUSED = {
    F.multi_head_attention_forward: opened(F.multi_head_attention_forward),
    F.bilinear: bilinear,
    torch.lstm: recurrent("lstm"),
    torch.gru: recurrent("gru"),
    torch.rnn_tanh: recurrent("tanh"),
    torch.rnn_relu: recurrent("relu"),
    torch.lstm_cell: recurrent_cell("lstm"),
    torch.gru_cell: recurrent_cell("gru"),
    torch.rnn_tanh_cell: recurrent_cell("tanh"),
    torch.rnn_relu_cell: recurrent_cell("relu"),
}
"""torch function -> the same in products. Attention is apart: it is opened only where its products are quantized."""
