"""A graph in normal form: every convolution written the one way that the rest understands.

Exporters say the same thing in many ways. Here a copy of the graph is made in which a layer's
weights are plain constants, and what only scales, shifts or pads a layer is part of it. What is
not understood stays as it is; the survey says why such a layer is kept.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import PassError, common

from converter.errors import ConverterError
from converter.graph.network import constant, open_session, standard
from converter.graph.nodes import CONVOLUTIONS, PRODUCTS
from converter.runtime.ort import run

OLDEST_OPSET = 7  # what onnxruntime knows; what we write means the same from then on
INITIALIZERS_APART = 4  # ir_version from which weights need not be listed as inputs
# Draw random numbers, whatever they take.
DRAWING = ("Bernoulli", "Dropout", "Multinomial", "RandomNormalLike", "RandomUniformLike")
ARRANGING = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
READ = (*CONVOLUTIONS, *PRODUCTS, "BatchNormalization", "Pad")  # constants beside the first input


def canonicalize(model: ir.Model) -> ir.Model:
    """Return a copy of ``model`` in normal form, which computes the same.

    Names of inputs and outputs, free axes, metadata and the operator sets stay.

    Args:
        model: Left as it is.

    Raises:
        ConverterError: When its operator set is older than onnxruntime's oldest.
    """
    opset = model.opset_imports.get("", OLDEST_OPSET)
    if opset < OLDEST_OPSET:
        raise ConverterError(
            f"The network is written in opset {opset}; convert it to {OLDEST_OPSET} or newer "
            "(onnx.version_converter)."
        )
    copy = _inlined(model)
    _list_weights_apart(copy)
    _compute_weights(copy)
    for node in list(copy.graph):
        if not standard(node):
            continue
        if node.op_type == "Gemm":
            _fold_factors(copy.graph, node)
        elif node.op_type == "Pad":
            _fold_padding(copy.graph, node)
        elif node.op_type == "BatchNormalization":
            _fold_normalization(copy.graph, node)
    common.RemoveUnusedNodesPass()(copy)
    return copy


def _inlined(model: ir.Model) -> ir.Model:
    """``f(x)`` with ``f`` a function of the model -> the nodes of ``f``."""
    copy = model.clone()
    if not copy.functions:
        return copy
    try:
        common.InlinePass()(copy)
    except (ValueError, PassError):  # functions of another operator set, say
        return model.clone()
    return copy


def _list_weights_apart(model: ir.Model) -> None:
    """Weights listed as inputs, as files of ir_version 3 must -> weights that are no inputs."""
    common.RemoveInitializersFromInputsPass()(model)
    if model.ir_version is None or model.ir_version < INITIALIZERS_APART:
        model.ir_version = INITIALIZERS_APART


def _compute_weights(model: ir.Model) -> None:
    """``Conv(x, Cast(w))`` -> ``Conv(x, w')``: what is made of constants alone is computed.

    Through any operators, but not where a layer runs on quantized numbers: the runtime needs the
    DequantizeLinear of its weight to see that.
    """
    fixed = _made_of_constants(model)
    wanted = {
        str(value.name): value
        for node in model.graph
        if standard(node) and node.op_type in READ and node.inputs[0] not in fixed
        for value in node.inputs[1:]
        if value is not None
        and constant(value) is None
        and value in fixed
        and not (_dequantized(value) and _dequantized(node.inputs[0]))
    }
    if not wanted:
        return
    part = model.clone()
    values = {str(v.name): v for node in part.graph for v in node.outputs}
    part.graph.inputs.clear()
    part.graph.outputs.clear()
    part.graph.outputs.extend(values[name] for name in wanted)
    common.RemoveUnusedNodesPass()(part)
    for name, array in run(open_session(part), {}).items():
        old = wanted[name]
        new = _weight(name, array)
        old.name = f"{name}.computed"
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        model.graph.register_initializer(new)


def _fold_factors(graph: ir.Graph, node: ir.Node) -> None:
    """``Gemm<alpha, beta>(x, w, b)`` -> ``Gemm(x, alpha w, beta b)``."""
    factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    weights = [constant(value) for value in node.inputs[1:]]
    if factors == [1.0, 1.0] or any(array is None for array in weights):
        return
    for place, (factor, array) in enumerate(zip(factors, weights), start=1):
        assert array is not None
        _set_weight(graph, node, place, (factor * array).astype(array.dtype))
    node.attributes.pop("alpha", None)
    node.attributes.pop("beta", None)


def _fold_padding(graph: ir.Graph, pad: ir.Node) -> None:
    """``Conv(Pad(x))``, zeros on the sides of the image -> ``Conv<pads>(x)``."""
    source, value = pad.inputs[0], pad.outputs[0]
    pads = _padding(pad)
    if pads is None or source is None or value.is_graph_output() or not value.uses():
        return
    if any(
        use.idx != 0
        or not standard(use.node)
        or use.node.op_type != "Conv"
        or use.node.graph is not graph
        or use.node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        for use in value.uses()
    ):
        return
    axes = len(pads) // 2 - 2
    sides = np.array(pads).reshape(2, -1)[:, 2:].ravel()
    for user in [use.node for use in value.uses()]:
        own = user.attributes.get_ints("pads", [0] * 2 * axes)
        user.attributes.pop("auto_pad", None)
        user.attributes["pads"] = ir.AttrInt64s("pads", [int(n) for n in sides + np.array(own)])
        user.replace_input_with(0, source)
    graph.remove(pad, safe=True)


def _padding(pad: ir.Node) -> list[int] | None:
    """Give the (begin..., end...) of a Pad over all axes; None if it is not zeros around images."""
    inputs = [*pad.inputs, None, None, None]
    mode = pad.attributes.get_string("mode", "constant")
    if "pads" in pad.attributes:  # before opset 11
        given, where = list(pad.attributes.get_ints("pads", [])), None
        fill = pad.attributes.get_float("value", 0.0)
    else:
        arrays = [constant(value) for value in inputs[1:4]]
        if any(v is not None and a is None for v, a in zip(inputs[1:4], arrays)):
            return None
        found, number, where = arrays
        given = [] if found is None else found.ravel().tolist()
        fill = 0.0 if number is None or not number.size else number.item()
    if mode != "constant" or fill != 0 or not given or min(given) < 0:
        return None
    pads = list(given)
    if where is not None:
        shape = None if pad.inputs[0] is None else pad.inputs[0].shape
        if shape is None:
            return None
        pads = [0] * 2 * len(shape)
        for n, axis in enumerate(where.ravel().tolist()):
            pads[axis % len(shape)] = given[n]
            pads[len(shape) + axis % len(shape)] = given[len(given) // 2 + n]
    rank = len(pads) // 2
    aside = [pads[0], pads[1], pads[rank], pads[rank + 1]] if rank > 2 else pads
    return None if any(aside) or rank < 3 else pads


def _fold_normalization(graph: ir.Graph, norm: ir.Node) -> None:
    """``BatchNormalization(Conv(x, w, b))`` -> ``Conv(x, s w, s (b - mean) + shift)``.

    The same for ConvTranspose and Gemm; not where others use what the layer gives.
    """
    value = norm.inputs[0]
    layer = None if value is None else value.producer()
    numbers = [constant(v) for v in norm.inputs[1:]]
    if (
        value is None
        or layer is None
        or not standard(layer)
        or layer.op_type not in (*CONVOLUTIONS, "Gemm")
        or layer.graph is not graph
        or len(value.uses()) != 1
        or value.is_graph_output()
        or norm.attributes.get_int("training_mode", 0) == 1
        or norm.attributes.get_int("spatial", 1) != 1
        or any(output.uses() or output.is_graph_output() for output in norm.outputs[1:])
        or any(array is None or array.shape != (array.size,) for array in numbers)
        or len({array.size for array in numbers if array is not None}) > 1
    ):
        return
    gain, shift, mean, variance = (np.asarray(array, np.float64) for array in numbers)
    scale = gain / np.sqrt(variance + norm.attributes.get_float("epsilon", 1e-5))
    kernel = constant(layer.inputs[1])
    biased = len(layer.inputs) > 2 and layer.inputs[2] is not None
    bias = constant(layer.inputs[2]) if biased else np.zeros(1)
    if kernel is None or bias is None or bias.size not in (1, len(scale)):
        return
    groups = layer.attributes.get_int("group", 1) or 0
    if kernel.ndim < 2 or groups < 1 or len(kernel) % groups:
        return
    if _outputs(layer, kernel, groups) != len(scale):
        return
    if bias.size != (bias.shape or (1,))[-1]:  # one number per row, not per output
        return
    scaled = kernel.astype(np.float64) * _along_outputs(layer, scale, kernel)
    moved = (bias.astype(np.float64).ravel() - mean) * scale + shift
    with np.errstate(over="ignore"):
        folded = [array.astype(kernel.dtype) for array in (scaled, moved)]
    if any(_overflows(*pair) for pair in zip((scaled, moved), folded)):  # of half precision, say
        return
    _set_weight(graph, layer, 1, folded[0])
    if not biased:
        layer.resize_inputs(3)
    _set_weight(graph, layer, 2, folded[1], _bias_name(layer))
    given, kept = norm.outputs[0], layer.outputs[0]
    kept.shape, kept.type = given.shape, given.type
    name = given.name
    ir.convenience.replace_nodes_and_values(graph, norm, [norm], [], [given], [kept])
    kept.name = name


def _overflows(wanted: np.ndarray, held: np.ndarray) -> bool:
    return bool(np.isfinite(wanted).all() and not np.isfinite(held.astype(np.float64)).all())


def _outputs(layer: ir.Node, kernel: np.ndarray, groups: int) -> int:
    """Count the output channels of a stored kernel."""
    if layer.op_type == "ConvTranspose":
        return int(kernel.shape[1]) * groups
    swap_in_out = layer.op_type == "Gemm" and not layer.attributes.get_int("transB", 0)
    return int(kernel.shape[1 if swap_in_out else 0])


def _along_outputs(layer: ir.Node, scale: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Shape a number per output channel (O,) so that it multiplies the stored kernel."""
    if layer.op_type == "Gemm":
        return scale[:, None] if layer.attributes.get_int("transB", 0) else scale
    if layer.op_type == "Conv":
        return scale.reshape(-1, *[1] * (kernel.ndim - 1))
    groups = int(layer.attributes.get_int("group", 1))  # stored (I, O/groups, *k)
    by_input = np.repeat(scale.reshape(groups, -1), len(kernel) // groups, axis=0)
    return by_input.reshape(*by_input.shape, *[1] * (kernel.ndim - 2))


def _bias_name(layer: ir.Node) -> str:
    assert layer.inputs[1] is not None
    return f"{str(layer.inputs[1].name).removesuffix('.weight')}.bias"


def _set_weight(
    graph: ir.Graph, node: ir.Node, place: int, array: np.ndarray, name: str = ""
) -> None:
    """Give a node a weight of its own, under the old name unless others use the old one."""
    old = node.inputs[place]
    if old is not None:
        name = str(old.name)
        alone = len(old.uses()) == 1 and not old.is_graph_output() and not old.is_graph_input()
        node.replace_input_with(place, None)
        if alone and old.is_initializer():
            graph.initializers.pop(name)
        elif alone and (maker := old.producer()) is not None:
            graph.remove(maker, safe=True)
    new = _weight(next(_free_names(graph, name)), array)
    graph.register_initializer(new)
    node.replace_input_with(place, new)


def _free_names(graph: ir.Graph, name: str) -> Iterator[str]:
    """Give ``name``, then ``name_2`` and so on, without those that are taken."""
    taken = {str(value.name) for node in graph for value in node.outputs}
    taken |= {str(value.name) for value in graph.inputs} | set(graph.initializers)
    number = 1
    while True:
        candidate = name if number == 1 else f"{name}_{number}"
        if candidate not in taken:
            yield candidate
        number += 1


def _weight(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    return ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )


def _dequantized(value: ir.Value | None) -> bool:
    """Tell what a DequantizeLinear gives, also where it is only arranged anew after that."""
    maker = None if value is None else value.producer()
    while maker is not None and maker.op_type in ARRANGING:
        value = maker.inputs[0]
        maker = None if value is None else value.producer()
    return maker is not None and maker.op_type == "DequantizeLinear"


def _made_of_constants(model: ir.Model) -> set[ir.Value]:
    """List the values of the main graph that are the same in every run."""
    found = set(model.graph.initializers.values())
    for node in model.graph:
        plain = standard(node) and node.op_type not in DRAWING
        whole = not any(
            attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
            for attribute in node.attributes.values()
        )
        known = bool(node.inputs) and all(value is None or value in found for value in node.inputs)
        if plain and whole and (known or node.op_type == "Constant"):
            found |= set(node.outputs)
    return found
