"""int8: observe the ranges of a network's tensors, and quantize it for them."""

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
from converter.graph.network import MAX_FILE_BYTES, constant, in_onnx_domain, nbytes
from converter.graph.nodes import CONVOLUTIONS, LINEAR
from converter.runtime.ort import OnnxRuntime
from converter.runtime.ort_quantizer import quantizer_errors
from converter.runtime.runtime import Runtime

MIN_OPSET = 13  # the first with scales per channel
CLIPPING = ("Relu", "Clip")
# Smallest and largest value of each channel, by tensor.
Ranges = Mapping[str, tuple[np.ndarray, np.ndarray]]


def observed_ranges(network: ir.Model, data: Data, batch_size: int) -> Ranges:
    """Observe the ranges of the tensors of a network, channel by channel.

    Args:
        network: The network.
        data: Sample inputs.
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

    What follows the last layers stays in floating point: outputs of several units, such as boxes
    and their scores, do not share one scale.

    Args:
        network: The network.
        ranges: Smallest and largest values of its tensors.
        in_float: Names of outputs of nodes that stay in floating point.
        runtime: The runtime that quantizes.

    Raises:
        ConverterError: When the network is too large, or the runtime cannot quantize it.
    """
    limits = {name: (low.min(), high.max()) for name, (low, high) in ranges.items()}
    in_float = {*in_float, *behind_layers(network)}
    int8 = ir.from_proto(runtime.quantize(_proto(network), limits, in_float))
    int8.graph.sort()
    return int8


def quantized_for_timing(network: ir.Model, runtime: Runtime = OnnxRuntime()) -> bytes:
    """Quantize a network with arbitrary ranges, on which its latency does not depend.

    Returns:
        The content of an ONNX file.

    Raises:
        ConverterError: When the network is too large, or the runtime cannot quantize it.
    """
    model = _proto(network)
    graph = model.graph
    names = [*(v.name for v in graph.input), *(name for n in graph.node for name in n.output)]
    limits = (np.float32(-1), np.float32(1))
    int8 = runtime.quantize(model, dict.fromkeys(names, limits), behind_layers(network))
    return bytes(int8.SerializeToString())


def check_size(network: ir.Model) -> None:
    """Refuse a network that does not fit into one file.

    Raises:
        ConverterError: When its weights take 2 GB or more.
    """
    if nbytes(network) >= MAX_FILE_BYTES:
        raise ConverterError("A network of 2 GB or more cannot be quantized; leave out --int8.")


def linear_steps(network: ir.Model) -> list[str]:
    """Name the outputs of the convolutions and products of a network."""
    return [
        str(node.outputs[0].name)
        for node in network.graph
        if in_onnx_domain(node) and node.op_type in LINEAR
    ]


def behind_layers(network: ir.Model) -> set[str]:
    """Name the outputs of the nodes that no convolution and no product with weights comes after.

    A ReLU or Clip counts as part of the layer in front of it, which then needs no values beyond it.
    """
    layers = [
        node
        for node in network.graph
        if in_onnx_domain(node)
        and node.op_type in LINEAR
        and (node.op_type in CONVOLUTIONS or any(constant(v) is not None for v in node.inputs[:2]))
    ]
    ahead, todo = set(layers), list(layers)
    while todo:
        producers = [value.producer() for value in todo.pop().inputs if value is not None]
        new = {producer for producer in producers if producer is not None} - ahead
        ahead |= new
        todo += new
    return {
        str(value.name)
        for node in network.graph
        if node not in ahead and not _clips_one_of(layers, node)
        for value in node.outputs
    }


def _clips_one_of(layers: Collection[ir.Node], node: ir.Node) -> bool:
    """Tell whether a node is a ReLU or Clip that alone uses the output of one of ``layers``."""
    source = node.inputs[0] if node.op_type in CLIPPING else None
    return source is not None and source.producer() in layers and len(source.uses()) == 1


class _Calibrater(MinMaxCalibrater):  # type: ignore[misc]  # onnxruntime has no types
    """Observes only tensors that have axes: a scalar has no channels to reduce by."""

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
        """Return a batch; None after the last."""
        return next(self._batches, None)


def _proto(network: ir.Model) -> onnx.ModelProto:
    """Write a network for the quantizer, which needs node names, shapes and a new enough opset.

    Raises:
        ConverterError: When the network is too large, or onnx cannot raise its opset.
    """
    check_size(network)
    copy = ir.external_data.load_to_model(network.clone())
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(copy)
    model = ir.to_proto(copy)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    with quantizer_errors():
        if (network.opset_imports.get("") or MIN_OPSET) < MIN_OPSET:
            model = onnx.version_converter.convert_version(model, MIN_OPSET)
        return onnx.shape_inference.infer_shapes(model)
