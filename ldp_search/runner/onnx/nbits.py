"""Weights of few bits as onnxruntime's MatMulNBits takes them, for products of one row (one token, batch 1).

w_q = scale * (code - zero_point) + beyond, with codes of 2 or 4 bits packed in bytes, so that such a product reads less memory.
They are the very values that training used, also on grids that `integer_codes` rounds once more. The operator's zero points are
whole numbers. Where zero lies between two levels (minmax, mse without exact_zero) the rest, `beyond`, is one number an output,
whose part of the product is that number times the sum of the inputs: three small nodes. (Its zero points may be floats too, but
then its kernels take 5 to 150 times as long.) Codes of more than 4 bits win nothing: such a layer stays int8.

The operator has a scale and a zero point a block of inputs; here all blocks of an output have the same. Its kernels round each
block of the input to int8 by the block's largest magnitude, in addition to what training did.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import NamedTuple

import numpy as np
import torch

from ...core.quantize.fake_quantize import rounded
from .integer_codes import NEGLIGIBLE_SHIFT

DOMAIN, OPERATOR = "com.microsoft", "MatMulNBits"
CONTAINERS = (2, 4)  # bits of a code. The operator has 8 too, but takes longer with them than int8 products do
BLOCK = 128  # inputs that share a scale
IN_INTEGERS = 4  # the operator's accuracy_level. Others, or blocks of 32, take 1.3 to 100 times as long
REMEDY = "pip install -U onnxruntime, or export without nbits"


class NBitsCodes(NamedTuple):
    """w_q = scale * (codes - zero) + beyond: (outputs, inputs) codes below 2^bits, the others (outputs,).

    exact: these are the very values that training used.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray
    bits: int
    beyond: np.ndarray
    exact = True

    def channel_sums(self) -> np.ndarray:
        """(outputs,) sums of w_q over the inputs."""
        inputs = self.codes.shape[1]
        return (self.codes.sum(1, dtype=np.int64) - inputs * self.zero.astype(np.int64)) * self.scale + inputs * self.beyond

    def constants(self) -> dict[str, np.ndarray]:
        """{input of the operator: value}; the last block is filled up with zero points. No zero_points where all are the
        operator's own, the middle of the codes.
        """
        outputs, inputs = self.codes.shape
        blocks = -(-inputs // BLOCK)
        codes = np.repeat(self.zero[:, None], blocks * BLOCK, 1)
        codes[:, :inputs] = self.codes
        found = {
            "codes": packed(codes.reshape(outputs, blocks, BLOCK), self.bits),
            "scale": np.repeat(self.scale.astype(np.float32)[:, None], blocks, 1),
        }
        if (self.zero != 2 ** (self.bits - 1)).any():
            found["zero_point"] = packed(np.repeat(self.zero[:, None], blocks, 1), self.bits)
        return found

    def attributes(self) -> dict[str, int]:
        """The operator's."""
        outputs, inputs = self.codes.shape
        return {"K": inputs, "N": outputs, "bits": self.bits, "block_size": BLOCK, "accuracy_level": IN_INTEGERS}


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """(..., n) uint8 codes below 2^bits as (..., ceil(n * bits / 8)) bytes, the first code lowest."""
    each = 8 // bits
    filled = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % each)])
    places = np.arange(each, dtype=np.uint8) * np.uint8(bits)
    return np.bitwise_or.reduce(filled.reshape(*filled.shape[:-1], -1, each) << places, axis=-1)


@torch.no_grad()
def nbits_codes(site, weight: torch.Tensor, containers: tuple[int, ...]) -> NBitsCodes | str:
    """The codes of a linear layer's weight at its bits, or why it has none.

    containers: numbers of bits, ascending (see `integer_kernels`), of which the first that holds the codes is taken.
    """
    w = weight.detach().float()
    inputs = w.shape[1 - site.axis]
    if inputs < BLOCK:
        return f"{inputs} inputs are fewer than a block of {OPERATOR}, {BLOCK}"
    grid = site.weight_grid(w)
    scale = grid.scale.double().expand([n if d == site.axis else 1 for d, n in enumerate(w.shape)])
    offset = torch.zeros_like(scale) if grid.offset is None else grid.offset.double().expand_as(scale)
    whole = torch.floor(offset / scale + 0.5 + NEGLIGIBLE_SHIFT)  # steps from zero to the grid's first level, but for a rest
    codes = torch.round((rounded(w, grid).double() - offset) / scale) + whole
    lowest, highest = (getattr(codes, f)(1 - site.axis, keepdim=True) for f in ("amin", "amax"))
    bits = next((bits for bits in containers if float((highest - lowest).max()) < 2**bits), None)
    if bits is None:
        return f"its weight needs codes of more than {max(containers)} bits, which win nothing over int8"
    middle, most = 2 ** (bits - 1), 2**bits - 1
    zero = torch.where((lowest >= -middle) & (highest < middle), torch.full_like(lowest, middle), (-lowest).clamp(0, most))
    fits = (lowest + zero >= 0) & (highest + zero <= most)  # zero may lie outside of the codes
    moved = torch.where(fits, torch.zeros_like(zero), -lowest - zero)
    beyond = offset - scale * (whole + moved)
    beyond = torch.where(beyond.abs() < NEGLIGIBLE_SHIFT * scale, torch.zeros_like(beyond), beyond)
    codes = codes + zero + moved
    codes = codes if site.axis == 0 else codes.T
    scale, zero, beyond = (value.flatten().cpu().numpy() for value in (scale, zero, beyond))
    packable = np.ascontiguousarray(codes.to(torch.uint8).cpu().numpy())
    return NBitsCodes(packable, scale, zero.astype(np.uint8), bits, beyond)


@functools.cache
def integer_kernels() -> tuple[int, ...]:
    """The containers whose products the installed onnxruntime computes in integers on this machine, which is tried out: others
    it refuses, or unpacks to floats (2 bits before 1.28), a hundred times slower. Without onnxruntime 4 bits.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return (4,)
    return tuple(bits for bits in CONTAINERS if _computes_in_integers(bits))


def check_runtime() -> None:
    """ValueError where the installed onnxruntime has no integer kernel even for 4 bits."""
    if 4 not in integer_kernels():
        import onnxruntime

        raise ValueError(
            f"nbits needs an onnxruntime that computes {OPERATOR} of 4 bits in integers on this machine; received "
            f"{onnxruntime.__version__}, which does not: {REMEDY}."
        )


def _computes_in_integers(bits: int) -> bool:
    """Whether a small input beside a large one, in a block, is rounded to nothing."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    outputs = 32
    codes = np.full((outputs, BLOCK), 2 ** (bits - 1), np.uint8)
    codes[:, 1] -= 1
    w = NBitsCodes(codes, np.ones(outputs), np.full(outputs, 2 ** (bits - 1), np.uint8), bits, np.zeros(outputs))
    constants = [numpy_helper.from_array(value, name) for name, value in w.constants().items()]
    node = helper.make_node(OPERATOR, ["x", *(c.name for c in constants)], ["y"], domain=DOMAIN, **w.attributes())
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n]) for name, n in (("x", BLOCK), ("y", outputs))]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    x = np.zeros((1, BLOCK), np.float32)
    x[0, :2] = 1, 1e-3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return not session.run(None, {"x": x})[0].any()
    except Exception:  # of kinds of its own: it does not take these bits
        return False
