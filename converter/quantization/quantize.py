"""int8: observe the values of a network, and quantize it for them."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common
from onnxruntime.quantization.calibrate import MinMaxCalibrater

from converter.data.data import Arrays, Data
from converter.errors import ConverterError
from converter.graph.network import MAX_FILE_BYTES, in_onnx_domain, nbytes
from converter.runtime.ort import OnnxRuntime
from converter.runtime.ort_quantizer import quantizer_errors
from converter.runtime.runtime import Runtime

OLDEST_OPSET = 13  # that has scales per channel
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Smallest and largest value of each channel, by tensor.
Ranges = Mapping[str, tuple[np.ndarray, np.ndarray]]


def observed_ranges(network: ir.Model, data: Data, batch_size: int) -> Ranges:
    """Observe the ranges of the tensors of a network, channel by channel.

    Args:
        network: The network.
        data: Its inputs.
        batch_size: Examples in a batch; only one batch is in memory at a time.

    Raises:
        ConverterError: When the network is too large, or onnxruntime cannot observe it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        onnx.save(_proto(network), path)
        with quantizer_errors():
            calibrater = _Calibrater(
                path, augmented_model_path=str(path.with_name("observed.onnx")), per_channel=True
            )
            calibrater.augment_graph()
            calibrater.create_inference_session()
            calibrater.collect_data(_Reader(feeds for _, feeds in data.batches(batch_size)))
            observed = calibrater.compute_data()
    ends = {name: tensor.range_value for name, tensor in observed.items()}
    return {name: (np.ravel(low), np.ravel(high)) for name, (low, high) in ends.items()}


def quantized(
    network: ir.Model,
    ranges: Ranges,
    in_float: Collection[str] = (),
    runtime: Runtime = OnnxRuntime(),
) -> ir.Model:
    """Quantize weights (per channel) and activations (per tensor) statically.

    Args:
        network: The network.
        ranges: The values that its tensors take.
        in_float: Tensors whose nodes stay in floating point.
        runtime: Whose quantizer is used.

    Raises:
        ConverterError: When the network is too large, or the runtime cannot quantize it.
    """
    limits = {name: (low.min(), high.max()) for name, (low, high) in ranges.items()}
    small = ir.from_proto(runtime.quantize(_proto(network), limits, in_float))
    small.graph.sort()
    return small


def quantized_for_timing(network: ir.Model, runtime: Runtime = OnnxRuntime()) -> bytes:
    """Quantize a network for any ranges, on which its time does not depend.

    Returns:
        The content of an ONNX file.

    Raises:
        ConverterError: When the network is too large, or the runtime cannot quantize it.
    """
    model = _proto(network)
    graph = model.graph
    names = [*(v.name for v in graph.input), *(name for n in graph.node for name in n.output)]
    one = np.float32(1)
    small = runtime.quantize(model, {name: (-one, one) for name in names})
    return bytes(small.SerializeToString())


def linear_steps(network: ir.Model) -> list[str]:
    """Name the outputs of the convolutions and products of a network."""
    return [
        str(node.outputs[0].name)
        for node in network.graph
        if in_onnx_domain(node) and node.op_type in LINEAR
    ]


class _Calibrater(MinMaxCalibrater):  # type: ignore[misc]  # onnxruntime has no types
    """Observes tensors that have axes: it cannot reduce single numbers by channel."""

    def select_tensors_to_calibrate(self, model: onnx.ModelProto) -> tuple[set[str], Any]:
        """Name the tensors to observe."""
        names, infos = super().select_tensors_to_calibrate(model)
        single = {n for n in names if n in infos and not infos[n].type.tensor_type.shape.dim}
        return names - single, infos


class _Reader:
    """Gives one batch after another, as a ``CalibrationDataReader`` does."""

    def __init__(self, batches: Iterator[Arrays]) -> None:
        self._batches = batches

    def get_next(self) -> Arrays | None:
        """Give a batch; None after the last."""
        return next(self._batches, None)


def _proto(network: ir.Model) -> onnx.ModelProto:
    """Write a network for the quantizer.

    All nodes are named, constants are initializers, shapes known, the opset new enough.
    """
    if nbytes(network) >= MAX_FILE_BYTES:
        raise ConverterError("A network of 2 GB or more cannot be quantized; leave out --int8.")
    copy = ir.external_data.load_to_model(network.clone())
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    model = ir.to_proto(copy)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    with quantizer_errors():
        if (network.opset_imports.get("") or OLDEST_OPSET) < OLDEST_OPSET:
            model = onnx.version_converter.convert_version(model, OLDEST_OPSET)
        return onnx.shape_inference.infer_shapes(model)
