"""The canonical form of a graph: every convolution written in the same way.

Exporters write the same layer in many ways. Here a copy of the graph is made in which the weights
of a layer are constants, and scaling, shifting and padding beside a layer are part of it. Nodes
that are not recognised stay as they are; ``survey`` then says why such a layer is not converted.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import PassError, common

from converter.errors import ConverterError
from converter.graph.fold import fold_batch_norm, fold_gemm_factors, fold_pad
from converter.graph.network import (
    constant,
    in_onnx_domain,
    open_session,
    subgraph_nodes,
    weight_value,
)
from converter.graph.nodes import LINEAR
from converter.graph.outputs import RANDOM
from converter.runtime.ort import run

MIN_OPSET = 7  # the oldest opset that onnxruntime runs
MIN_IR_VERSION = 4  # the first version in which initializers need not be listed as inputs
LAYOUT = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
# Operators whose inputs after the first are weights that must be constants.
WEIGHTED = (*LINEAR, "BatchNormalization", "Pad")
FOLDS = {"Gemm": fold_gemm_factors, "Pad": fold_pad, "BatchNormalization": fold_batch_norm}


def canonicalize(model: ir.Model) -> ir.Model:
    """Return a copy of ``model`` in canonical form, which computes the same.

    Names of inputs and outputs, free axes, metadata and the operator sets stay.

    Args:
        model: Left as it is.

    Raises:
        ConverterError: When its operator set is older than ``MIN_OPSET``.
    """
    opset = model.opset_imports.get("", MIN_OPSET)
    if opset < MIN_OPSET:
        raise ConverterError(
            f"The network is written in opset {opset}; convert it to {MIN_OPSET} or newer "
            "(onnx.version_converter)."
        )
    copy = _inline_functions(model)
    common.RemoveInitializersFromInputsPass()(copy)
    copy.ir_version = max(copy.ir_version or MIN_IR_VERSION, MIN_IR_VERSION)
    _compute_weights(copy)
    for node in list(copy.graph):
        if in_onnx_domain(node) and node.op_type in FOLDS:
            FOLDS[node.op_type](copy.graph, node)
    common.RemoveUnusedNodesPass()(copy)
    return copy


def _inline_functions(model: ir.Model) -> ir.Model:
    """Return a copy in which calls of model-local functions are replaced by their nodes."""
    copy = model.clone()
    if not copy.functions:
        return copy
    try:
        common.InlinePass()(copy)
    except (ValueError, PassError):  # for example, a function of another operator set
        return model.clone()
    return copy


def _compute_weights(model: ir.Model) -> None:
    """``Conv(x, Cast(w))`` -> ``Conv(x, w')``: weights computed from constants become constants.

    The weights of quantized layers stay: onnxruntime recognises such a layer by the
    DequantizeLinear of its weight.
    """
    constants = _constant_values(model)
    weights = {
        str(value.name): value
        for node in model.graph
        if in_onnx_domain(node) and node.op_type in WEIGHTED and node.inputs[0] not in constants
        for value in node.inputs[1:]
        if value is not None
        and constant(value) is None
        and value in constants
        and not (_is_dequantized(value) and _is_dequantized(node.inputs[0]))
    }
    if not weights:
        return
    part = ir.convenience.extract(model.graph, [], list(weights.values()))
    network = ir.Model(part, ir_version=model.ir_version)
    for name, array in run(open_session(network), {}).items():
        old = weights[name]
        old.name = f"{name}.computed"
        new = weight_value(name, array)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        model.graph.register_initializer(new)


def _constant_values(model: ir.Model) -> set[ir.Value]:
    """List the values of the main graph that are the same in every run."""
    constants = set(model.graph.initializers.values())
    for node in model.graph:
        if not in_onnx_domain(node) or node.op_type in {*RANDOM, "Dropout"} or subgraph_nodes(node):
            continue
        is_constant = bool(node.inputs) and all(v is None or v in constants for v in node.inputs)
        if is_constant or node.op_type == "Constant":
            constants |= set(node.outputs)
    return constants


def _is_dequantized(value: ir.Value | None) -> bool:
    """Whether DequantizeLinear computes a value, perhaps with a change of layout after it."""
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type in LAYOUT:
        value = producer.inputs[0]
        producer = None if value is None else value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"
