"""Fewer passes over memory in a traced int8 network: batch-norm goes into the convolution before it, what follows a product
(ReLU, GELU, the next layer's rounding) into its kernel, and equal roundings of one tensor are made once.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import Node

from ... import int8

aten = torch.ops.aten
_NORMS = (aten.batch_norm.default, aten._native_batch_norm_legit_no_training.default)
_CLAMPS = {  # of a convolution: what its kernel can do
    aten.relu.default: "relu",
    aten.relu_.default: "relu",
    aten.relu6.default: "relu6",
    aten.relu6_.default: "relu6",
}


@torch.no_grad()
def fold_norms(module: nn.Module, program: torch.export.ExportedProgram) -> list[str]:
    """Fold batch-norms of `module` into the convolutions whose output they alone read, as `program`, its trace, shows; returns
    their names. Of a norm of timm, which computes an activation too, that stays.
    """
    signature, folded = program.graph_signature, []
    names = signature.inputs_to_parameters | signature.inputs_to_buffers
    for node in program.graph.nodes:
        if node.target not in _NORMS or not isinstance(node.args[3], Node):
            continue
        source = node.args[0]
        if source.target is not torch.ops.ldp_int8.convolution.default or _readers(source) != [node]:
            continue
        if len(node.args[3].users) > 1 or len(source.args[3].users) > 1:  # a module that runs more than once
            continue
        norm_name = names[node.args[3].name].removeprefix("model.").rpartition(".")[0]
        conv_name = names[source.args[3].name].removeprefix("model.").rpartition(".")[0]
        norm, conv = module.get_submodule(norm_name), module.get_submodule(conv_name)
        if _fold(conv, norm):
            parent, _, attribute = norm_name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, _rest(norm))
            folded.append(norm_name)
    return folded


def _fold(conv: int8.Int8Conv, norm: nn.Module) -> bool:
    """Put the norm's gain and offset into the convolution; False where the norm's class may compute something else."""
    if not hasattr(norm, "running_var") or norm.running_var is None or type(norm).forward not in _plain_forwards():
        return False
    gain = norm.running_var.double().add(norm.eps).rsqrt()
    gain = gain if norm.weight is None else gain * norm.weight.double()
    offset = (0 if norm.bias is None else norm.bias.double()) - norm.running_mean.double() * gain
    signs = torch.where(gain < 0, -1, 1).to(torch.int8).view(-1, *[1] * (conv.weight.dim() - 1))
    conv.weight.copy_(conv.weight * signs)
    conv.w_scale.copy_(conv.w_scale.double() * gain.abs())
    conv.bias_0.copy_(conv.bias_0.double() * gain + offset)
    return True


def _plain_forwards() -> tuple:
    """The forwards of norms that are known: torch's own, and timm's with an activation."""
    own = [nn.BatchNorm1d.forward, nn.BatchNorm2d.forward, nn.BatchNorm3d.forward]
    try:
        from timm.layers import BatchNormAct2d
    except ImportError:
        return tuple(own)
    return (*own, BatchNormAct2d.forward)


def _rest(norm: nn.Module) -> nn.Module:
    """What is left of a folded norm."""
    return nn.Sequential(*[part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module)])


def fuse(program: torch.export.ExportedProgram) -> None:
    """The passes on a program, in place."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
    _share_roundings(graph)
    for node in list(graph.nodes):
        if node.target in (torch.ops.ldp_int8.linear.default, torch.ops.ldp_int8.convolution.default):
            end = _take_post(graph, node)
            _take_rounding(graph, node, end)
    graph.eliminate_dead_code()
    graph.lint()
    program.graph_module.recompile()


def _readers(node: Node) -> list[Node]:
    return [user for user in node.users if user.target is not aten._assert_tensor_metadata.default]


def _rounding(to: Node) -> tuple[list[Node], tuple] | None:
    """(nodes, (shift, scale's inverse, zero point, low, high)) of a rounding, `int8.quantize`, that ends in `to`."""
    if to.target is not aten.to.dtype or to.args[1] is not torch.uint8:
        return None
    chain = [to]
    for targets in ((aten.clamp_.default,), (aten.add_.Tensor,), (aten.round_.default,), (aten.mul.Tensor, aten.mul_.Tensor)):
        node = chain[0].args[0]
        if not isinstance(node, Node) or node.target not in targets or list(node.users) != [chain[0]]:
            return None
        chain.insert(0, node)
    mul, _, add, clamp, _ = chain
    shift = 0.0
    if mul.target is aten.mul_.Tensor:
        sub = mul.args[0]
        if sub.target is not aten.sub.Tensor or list(sub.users) != [mul] or not isinstance(sub.args[1], float):
            return None
        shift, chain = sub.args[1], [sub, *chain]
    return chain, (shift, mul.args[1], add.args[1], clamp.args[1], clamp.args[2])


def _share_roundings(graph: torch.fx.Graph) -> None:
    """Layers that read one tensor on equal grids (query, key and value) read one tensor of codes."""
    roundings = {node: found for node in graph.nodes if (found := _rounding(node)) is not None}
    ours = {node for chain, _ in roundings.values() for node in chain}
    seen: dict[tuple, Node] = {}
    for node in list(graph.nodes):
        if node.op == "call_function" and node not in ours and _writes(node):
            seen.clear()  # it may have changed what was rounded
        if node in roundings:
            chain, grid = roundings[node]
            first = seen.setdefault((chain[0].args[0], *grid), node)
            if first is not node:
                node.replace_all_uses_with(first)
                for old in reversed(chain):
                    graph.erase_node(old)


def _writes(node: Node) -> bool:
    """Whether an operation changes one of its arguments."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _take_post(graph: torch.fx.Graph, node: Node) -> Node:
    """Let the kernel compute the activation that alone reads its result; returns the node whose value the kernel then gives."""
    readers = list(node.users)
    if len(readers) != 1 or any(user.op == "output" for user in readers[0].users):
        return node
    user = readers[0]
    post = _post_of(user, node.target is torch.ops.ldp_int8.linear.default)
    if post is None:
        return node
    node.kwargs = {**node.kwargs, "post": post}
    user.replace_all_uses_with(node)
    graph.erase_node(user)
    return node


def _post_of(user: Node, linear: bool) -> str | None:
    """The name in `int8.POSTS` of what a node computes; None: the kernel has none."""
    if linear and user.target is aten.gelu.default:
        return "gelu_tanh" if user.kwargs.get("approximate", "none") == "tanh" else "gelu"
    if user.target in (aten.hardtanh.default, aten.hardtanh_.default) and tuple(user.args[1:]) == (0.0, 6.0) and not linear:
        return "relu6"
    post = _CLAMPS.get(user.target)
    return None if linear and post == "relu6" else post


def _take_rounding(graph: torch.fx.Graph, node: Node, end: Node) -> None:
    """Let the kernel give the codes that the one reader of its result rounds it to."""
    readers = list(end.users)
    if len(readers) != 1:
        return
    last = readers[0]
    for _ in range(4):  # mul, round_, add_, clamp_, to
        if len(last.users) != 1:
            return
        last = next(iter(last.users))
    found = _rounding(last)
    if found is None or found[0][0].args[0] is not end:
        return
    chain, (shift, inverse, zero, low, high) = found
    if shift:
        return
    node.kwargs = {**node.kwargs, "y_scale": 1 / inverse, "y_zero": zero}
    node.meta["val"] = node.meta["val"].to(torch.uint8)
    new = node
    if (low, high) != (0, 255):
        with graph.inserting_after(node):
            new = graph.call_function(aten.clamp.default, (node, low, high))
        new.meta["val"] = node.meta["val"]
    last.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    for old in reversed(chain):
        graph.erase_node(old)
