"""Quantization to int8 by onnxruntime's own quantizer."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from converter.errors import ConverterError, first_line
from converter.runtime.ort_session import open_session
from converter.runtime.runtime import Limits

OPERATORS = sorted({*QLinearOpsRegistry, *QDQRegistry})


def quantize(
    model: onnx.ModelProto, limits: Limits, in_float: Collection[str] = ()
) -> onnx.ModelProto:
    """Quantize a network; see ``OnnxRuntime.quantize``.

    Raises:
        ConverterError: When onnxruntime cannot quantize the network.
    """
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    excluded = [
        node.name
        for node in model.graph.node
        if set(node.output) & set(in_float)
        or _has_no_limits(node, limits, weights)
        or _has_bias_of_groups(node, weights)
    ]
    with quantizer_errors():
        quantizer = QDQQuantizer(
            model,
            True,  # weights per channel
            saturates(),  # weights of 7 bits
            QuantType.QInt8,
            QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, dict(limits)),
            [],
            excluded,
            OPERATORS,
            {},
        )
        quantizer.quantize_model()
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


@functools.cache
def saturates() -> bool:
    """Tell whether sums of two products of 8 bits saturate at 16 bits on this machine.

    They do on CPUs without VNNI, which use VPMADDUBSW, and the results are then wrong. Weights of
    7 bits cannot reach the limit: 2 * 255 * 64 < 2**15.
    """
    I, expected, largest = 64, 200, 255 * 127
    weights = {
        "w": np.full((16, I, 1, 1), 127, np.int8),
        "zero": np.uint8(0),
        "none": np.int8(0),
        "one": np.float32(1),
        "scale": np.float32(I * largest / expected),
    }
    names = ["x", "one", "zero", "w", "one", "none", "scale", "zero"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("QLinearConv", names, ["y"])],
        "probe",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [1, I, 4, 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, [1, 16, 4, 4])],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 13)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = open_session(model.SerializeToString())
    (outputs,) = session.run(None, {"x": np.full((1, I, 4, 4), 255, np.uint8)})
    return bool(outputs.max() < 0.9 * expected)  # half of it where sums saturate


@contextlib.contextmanager
def quantizer_errors() -> Iterator[None]:
    """Report an exception of the quantizer in one sentence, and silence its advice."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    except ConverterError:
        raise
    except Exception as error:  # the quantizer raises many classes
        raise ConverterError(
            f"onnxruntime cannot quantize the network: {first_line(error)}; leave out --int8."
        ) from None
    finally:
        logging.disable(level)


def _has_no_limits(
    node: onnx.NodeProto, limits: Mapping[str, object], weights: Collection[str]
) -> bool:
    """Tell whether an input or output of a node has no known range."""
    inputs = [name for name in node.input if name and name not in weights]
    return not all(name in limits for name in [*inputs, *node.output])


def _has_bias_of_groups(node: onnx.NodeProto, weights: Mapping[str, tuple[int, ...]]) -> bool:
    """Find grouped transposed convolutions with a bias, which the quantizer gets wrong.

    It takes the bias (O,) for one of O / groups entries.
    """
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    biased = node.op_type == "ConvTranspose" and len(node.input) > 2
    return biased and groups > 1 and weights.get(node.input[1], (0, 1))[1] > 1
