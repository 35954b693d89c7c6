"""Scaling, shifting and padding folded into the layer beside them.

onnxscript 0.7 has rewrite rules for BatchNormalization and Pad, which are not used here. The first
also folds BatchNormalization in training mode, overflows in float16 and refuses shared weights. The
second fails on Pad of opset 10 and refuses inputs without shape information.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from converter.graph.network import constant, in_onnx_domain, weight_value
from converter.graph.nodes import CONVOLUTIONS


def fold_gemm_factors(graph: ir.Graph, node: ir.Node) -> None:
    """``Gemm<alpha, beta>(x, w, b)`` -> ``Gemm(x, alpha w, beta b)``."""
    factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    weights = [constant(value) for value in node.inputs[1:]]
    if factors == [1.0, 1.0] or any(array is None for array in weights):
        return
    for index, (factor, array) in enumerate(zip(factors, weights), start=1):
        assert array is not None
        _set_weight(graph, node, index, (factor * array).astype(array.dtype))
    node.attributes.pop("alpha", None)
    node.attributes.pop("beta", None)


def fold_pad(graph: ir.Graph, pad: ir.Node) -> None:
    """``Conv(Pad(x))``, zeros on the sides of the image -> ``Conv<pads>(x)``."""
    source, output = pad.inputs[0], pad.outputs[0]
    pads = _zero_pads(pad)
    if pads is None or source is None or output.is_graph_output() or not output.uses():
        return
    if any(
        use.idx != 0
        or not in_onnx_domain(use.node)
        or use.node.op_type != "Conv"
        or use.node.graph is not graph
        or use.node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        for use in output.uses()
    ):
        return
    axes = len(pads) // 2 - 2
    spatial = np.array(pads).reshape(2, -1)[:, 2:].ravel()
    for conv in [use.node for use in output.uses()]:
        own = conv.attributes.get_ints("pads", [0] * 2 * axes)
        conv.attributes.pop("auto_pad", None)
        conv.attributes["pads"] = ir.AttrInt64s("pads", [int(n) for n in spatial + np.array(own)])
        conv.replace_input_with(0, source)
    graph.remove(pad, safe=True)


def _zero_pads(pad: ir.Node) -> list[int] | None:
    """Return (begin..., end...) over all axes; None if a Pad is not of zeros around images."""
    axes = None
    if "pads" in pad.attributes:  # before opset 11
        pads = list(pad.attributes.get_ints("pads", []))
        fill = pad.attributes.get_float("value", 0.0)
    else:
        inputs = (*pad.inputs[1:], None, None, None)[:3]
        arrays = [constant(value) for value in inputs]
        computed = [v is not None and a is None for v, a in zip(inputs, arrays)]
        if arrays[0] is None or any(computed):
            return None
        pads = arrays[0].ravel().tolist()
        fill = 0.0 if arrays[1] is None or not arrays[1].size else arrays[1].item()
        axes = None if arrays[2] is None else arrays[2].ravel().tolist()
    zeros = pad.attributes.get_string("mode", "constant") == "constant" and fill == 0
    if not zeros or not pads or min(pads) < 0:
        return None
    if axes is not None:
        shape = None if pad.inputs[0] is None else pad.inputs[0].shape
        if shape is None:
            return None
        sides = np.zeros((2, len(shape)), int)
        sides[:, axes] = np.reshape(pads, (2, -1))
        pads = sides.ravel().tolist()
    rank = len(pads) // 2
    return None if rank < 3 or any(pads[:2] + pads[rank : rank + 2]) else pads


def fold_batch_norm(graph: ir.Graph, norm: ir.Node) -> None:
    """``BatchNormalization(Conv(x, w, b))`` -> ``Conv(x, s w, s (b - mean) + shift)``.

    The same for ConvTranspose and Gemm. Nothing is folded if other nodes use the layer's output.
    """
    layer = _normalized_layer(graph, norm)
    parameters = [constant(value) for value in norm.inputs[1:]]
    if layer is None or any(array is None or array.ndim != 1 for array in parameters):
        return
    if len({array.size for array in parameters if array is not None}) > 1:
        return
    gain, shift, mean, variance = (np.asarray(array, np.float64) for array in parameters)
    scale = gain / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    kernel = constant(layer.inputs[1])
    biased = len(layer.inputs) > 2 and layer.inputs[2] is not None
    bias = constant(layer.inputs[2]) if biased else np.zeros(1)
    if kernel is None or bias is None or bias.size not in (1, len(scale)):
        return
    if bias.size != (bias.shape or (1,))[-1]:  # a column: one number for each row of a product
        return
    factors = along_outputs(layer, scale, kernel)
    if factors is None:
        return
    exact = [
        kernel.astype(np.float64) * factors,
        (bias.astype(np.float64).ravel() - mean) * scale + shift,
    ]
    with np.errstate(over="ignore"):
        folded = [array.astype(kernel.dtype) for array in exact]
    if any(_overflows(*pair) for pair in zip(exact, folded)):  # for example in float16
        return
    _set_weight(graph, layer, 1, folded[0])
    if not biased:
        layer.resize_inputs(3)
    assert layer.inputs[1] is not None
    bias_name = f"{str(layer.inputs[1].name).removesuffix('.weight')}.bias"
    _set_weight(graph, layer, 2, folded[1], bias_name)
    old, new = norm.outputs[0], layer.outputs[0]
    new.shape, new.type = old.shape, old.type
    name = old.name
    ir.convenience.replace_nodes_and_values(graph, norm, [norm], [], [old], [new])
    new.name = name


def _normalized_layer(graph: ir.Graph, norm: ir.Node) -> ir.Node | None:
    """Return the layer whose output BatchNormalization alone uses, or None."""
    value = norm.inputs[0]
    layer = None if value is None else value.producer()
    if (
        value is None
        or layer is None
        or not in_onnx_domain(layer)
        or layer.op_type not in (*CONVOLUTIONS, "Gemm")
        or layer.graph is not graph
        or len(value.uses()) != 1
        or value.is_graph_output()
        or norm.attributes.get_int("training_mode", 0) == 1
        or norm.attributes.get_int("spatial", 1) != 1
        or any(output.uses() or output.is_graph_output() for output in norm.outputs[1:])
    ):
        return None
    return layer


def _overflows(exact: np.ndarray, stored: np.ndarray) -> bool:
    return bool(np.isfinite(exact).all() and not np.isfinite(stored.astype(np.float64)).all())


def along_outputs(layer: ir.Node, scale: np.ndarray, kernel: np.ndarray) -> np.ndarray | None:
    """Shape a scale per output channel, (O,), so that it multiplies the stored kernel.

    Returns:
        The scale, or None if the kernel has another number of output channels.
    """
    groups = layer.attributes.get_int("group", 1) or 0
    if kernel.ndim < 2 or groups < 1 or len(kernel) % groups:
        return None
    if layer.op_type == "ConvTranspose":  # (I, O/groups, *k)
        return by_group(scale, kernel) if kernel.shape[1] * groups == len(scale) else None
    axis = 0 if layer.op_type == "Conv" or layer.attributes.get_int("transB", False) else 1
    return along_axis(scale, axis, kernel.ndim) if kernel.shape[axis] == len(scale) else None


def by_group(scale: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Shape a scale (n,) along the second axis of a kernel with groups along the first.

    Args:
        scale: (groups * m,).
        kernel: (groups * l, m, *k).

    Returns:
        (groups * l, m, 1, ...).
    """
    groups = len(scale) // kernel.shape[1]
    rows = np.repeat(scale.reshape(groups, -1), len(kernel) // groups, axis=0)
    return rows.reshape(*rows.shape, *[1] * (kernel.ndim - 2))


def along_axis(scale: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """Shape a vector along one axis of ``ndim``."""
    return scale.reshape([-1 if n == axis else 1 for n in range(ndim)])


def _set_weight(
    graph: ir.Graph, node: ir.Node, index: int, array: np.ndarray, name: str = ""
) -> None:
    """Give a node a weight of its own, under the old name unless other nodes use the old one."""
    old = node.inputs[index]
    if old is not None:
        name = str(old.name)
        own = len(old.uses()) == 1 and not old.is_graph_output() and not old.is_graph_input()
        node.replace_input_with(index, None)
        if own and old.is_initializer():
            graph.initializers.pop(name)
        elif own and (producer := old.producer()) is not None:
            graph.remove(producer, safe=True)
    new = weight_value(_free_name(graph, name), array)
    graph.register_initializer(new)
    node.replace_input_with(index, new)


def _free_name(graph: ir.Graph, name: str) -> str:
    """Return ``name``, or ``name_2`` and so on if the graph has a value of that name."""
    names = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    candidate, number = name, 1
    while candidate in names:
        number += 1
        candidate = f"{name}_{number}"
    return candidate
