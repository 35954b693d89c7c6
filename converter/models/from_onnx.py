"""An ONNX network as a torch model that can be trained, and its weights put back.

By the package onnx2fx, which is optional. The network itself stays as it is: names, free axes and
metadata need no second export.
"""

from __future__ import annotations

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import nn

from converter.errors import ConverterError, root_line
from converter.graph.network import MAX_FILE_BYTES, in_onnx_domain, nbytes
from converter.graph.nodes import CONVOLUTIONS, PRODUCTS

# Which inputs of which operators are trained, if they are constants: kernels, biases, scales.
TRAINED = {kind: (1, 2) for kind in (*CONVOLUTIONS, *PRODUCTS, "BatchNormalization")}
TRAINED |= {"Add": (0, 1), "Mul": (0, 1)}


def to_torch(network: ir.Model) -> nn.Module:
    """Build a torch model that computes what ``network`` does, its weights as parameters.

    Args:
        network: Left as it is.

    Raises:
        ConverterError: When onnx2fx is not there or does not know an operator.
    """
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
    trained = _trained(copy)
    for name, value in trained.items():
        value.name = name
    try:
        module = onnx2fx.convert(ir.to_proto(copy))
    except onnx2fx.UnsupportedOpError as error:
        raise ConverterError(
            f"onnx2fx does not know the operator {error.op_type} of this network; it cannot be "
            "fine-tuned as ONNX."
        ) from None
    except Exception as error:  # its handlers raise what they like
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
    """Return a copy of ``network`` with the weights of what ``to_torch`` made of it."""
    copy = network.clone()
    for name, value in _trained(copy).items():
        array = module.get_parameter(name).detach().to(torch.device("cpu")).numpy()
        value.const_value = ir.tensor(array, name=value.name)
    return copy


def _trained(network: ir.Model) -> dict[str, ir.Value]:
    """Number the weights that are trained, in graph order."""
    values = {
        node.inputs[place]: None
        for node in network.graph
        if in_onnx_domain(node) and node.op_type in TRAINED
        for place in TRAINED[node.op_type]
        if place < len(node.inputs)
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
