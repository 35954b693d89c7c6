"""An ONNX network as a torch model for training, and the trained weights put back.

The conversion is done by the package onnx2fx, which is optional. Only the weights go back to the
ONNX network: names, free axes and metadata stay without a second export.
"""

from __future__ import annotations

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import nn

from converter.errors import ConverterError, root_line
from converter.graph.network import MAX_FILE_BYTES, in_onnx_domain, nbytes
from converter.graph.nodes import LINEAR

# Operators and the indices of their inputs that are trained if they are initializers.
TRAINED = {kind: (1, 2) for kind in (*LINEAR, "BatchNormalization")}
TRAINED |= {"Add": (0, 1), "Mul": (0, 1)}


def to_torch(network: ir.Model) -> nn.Module:
    """Build a torch model that computes the same as ``network``, with its weights as parameters.

    Args:
        network: Left as it is.

    Raises:
        ConverterError: When onnx2fx is not installed, does not know an operator or fails.
    """
    # Of the packages that do this (compared on 129 graphs of the tests, converted to the same
    # outputs): onnx2fx 0.0.1 116, onnx2pytorch 0.6.0 96, onnx2torch 1.5.15 and its fork 1.6.0 55.
    try:
        import onnx2fx
    except ImportError:
        raise ConverterError(
            "Fine-tuning an ONNX network needs onnx2fx; pip install 'flatconv[onnx]'."
        ) from None
    if nbytes(network) >= MAX_FILE_BYTES:
        raise ConverterError("A network of 2 GB or more cannot be fine-tuned as ONNX.")
    copy = network.clone()
    common.RemoveInitializersFromInputsPass()(copy)
    trained = _trained_weights(copy)
    for name, value in trained.items():
        value.name = name
    _rename_constants(copy)
    try:
        module = onnx2fx.convert(ir.to_proto(copy))
    except onnx2fx.UnsupportedOpError as error:
        raise ConverterError(
            f"onnx2fx does not know the operator {error.op_type} of this network; it cannot be "
            "fine-tuned as ONNX."
        ) from None
    except Exception as error:  # onnx2fx passes on the exceptions of its operators
        raise ConverterError(
            f"onnx2fx cannot read this network, which cannot be fine-tuned as ONNX: "
            f"{root_line(error)}"
        ) from None
    for name in trained:
        weight = getattr(module, name)
        delattr(module, name)
        module.register_parameter(name, nn.Parameter(weight.clone()))
    return module.eval()


def with_weights(network: ir.Model, module: nn.Module) -> ir.Model:
    """Return a copy of ``network`` with the weights of the model that ``to_torch`` made of it."""
    copy = network.clone()
    for name, value in _trained_weights(copy).items():
        array = module.get_parameter(name).detach().to(torch.device("cpu")).numpy()
        value.const_value = ir.tensor(array, name=value.name)
    return copy


def _rename_constants(network: ir.Model) -> None:
    """Rename the outputs of Constant nodes, in place.

    onnx2fx makes them attributes of the module; a name like ``to`` is that of a method.
    """
    constants = [node.outputs[0] for node in network.graph if node.op_type == "Constant"]
    for number, value in enumerate(constants):
        if not value.is_graph_output():
            value.name = f"flatconv_constant_{number}"


def _trained_weights(network: ir.Model) -> dict[str, ir.Value]:
    """Number the weights that are trained, in graph order."""
    values = {
        node.inputs[index]: None
        for node in network.graph
        if in_onnx_domain(node) and node.op_type in TRAINED
        for index in TRAINED[node.op_type]
        if index < len(node.inputs)
    }
    weights = [
        value
        for value in values
        if value is not None
        and value.is_initializer()
        and not value.is_graph_output()
        and value.const_value is not None
        and value.const_value.dtype.is_floating_point()
        and value.const_value.size > 1
    ]
    return {f"flatconv_weight_{number}": value for number, value in enumerate(weights)}
