"""int8: onnxruntime's own quantizer, and what it needs to know of a network."""

from __future__ import annotations

import contextlib
import functools
import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import MinMaxCalibrater, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from converter.data.data import Arrays, Data
from converter.errors import ConverterError, first_line
from converter.graph.network import MAX_FILE_BYTES, in_onnx_domain, nbytes
from converter.runtime.ort import open_file

OLDEST_OPSET = 13  # that has scales per channel
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
KINDS = sorted({*QLinearOpsRegistry, *QDQRegistry})
# Smallest and largest value of each channel, by tensor.
Ranges = Mapping[str, tuple[np.ndarray, np.ndarray]]


def observed_ranges(network: ir.Model, data: Data, batch_size: int) -> Ranges:
    """See what values the tensors of a network take, channel by channel.

    Args:
        network: Left as it is.
        data: Its inputs.
        batch_size: Examples in a batch; only one batch is held.

    Raises:
        ConverterError: When the network is too large, or onnxruntime cannot observe it.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        onnx.save(_proto(network), path)
        with _as_errors():
            calibrater = _Calibrater(
                path, augmented_model_path=str(path.with_name("observed.onnx")), per_channel=True
            )
            calibrater.augment_graph()
            calibrater.create_inference_session()
            calibrater.collect_data(_Reader(feeds for _, feeds in data.batches(batch_size)))
            found = calibrater.compute_data()
    ends = {name: tensor.range_value for name, tensor in found.items()}
    return {name: (np.ravel(low), np.ravel(high)) for name, (low, high) in ends.items()}


def quantized(network: ir.Model, ranges: Ranges, floats: Collection[str] = ()) -> ir.Model:
    """Quantize weights (per channel) and activations (per tensor) statically.

    Args:
        network: Left as it is.
        ranges: What values its tensors take.
        floats: Tensors whose nodes stay in floating point.

    Returns:
        A network with QuantizeLinear and DequantizeLinear nodes, which onnxruntime fuses.

    Raises:
        ConverterError: When the network is too large, or onnxruntime cannot quantize it.
    """
    limits = {name: (low.min(), high.max()) for name, (low, high) in ranges.items()}
    found = ir.from_proto(_quantized(_proto(network), limits, floats))
    found.graph.sort()
    return found


@functools.cache
def saturates() -> bool:
    """Tell whether sums of two products of 8 bits are cut at 16 bits on this machine.

    CPUs without VNNI add them so (VPMADDUBSW), and what is summed is then plainly wrong. Weights
    of 7 bits cannot get there: 2 * 255 * 64 < 2**15.
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
    opsets = [onnx.helper.make_opsetid("", OLDEST_OPSET)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = open_file(model.SerializeToString())
    (found,) = session.run(None, {"x": np.full((1, I, 4, 4), 255, np.uint8)})
    return bool(found.max() < 0.9 * expected)  # half of it where sums are cut


def linear_steps(network: ir.Model) -> list[str]:
    """Name what the convolutions and products of a network give."""
    return [
        str(node.outputs[0].name)
        for node in network.graph
        if in_onnx_domain(node) and node.op_type in LINEAR
    ]


def quantized_for_timing(content: bytes, weights: Path | None = None) -> bytes:
    """Quantize an ONNX file for any ranges, on which its time does not depend.

    Args:
        content: Of the file.
        weights: Folder of the files that hold its weights, or None where it has them all.

    Raises:
        ConverterError: When it is too large, or onnxruntime cannot quantize it.
    """
    read = onnx.load_from_string(content)
    if weights is not None:
        onnx.load_external_data_for_model(read, str(weights))
    model = _proto(ir.from_proto(read))
    graph = model.graph
    names = [*(v.name for v in graph.input), *(name for n in graph.node for name in n.output)]
    one = np.float32(1)
    found: bytes = _quantized(model, {name: (-one, one) for name in names}, ()).SerializeToString()
    return found


def _quantized(
    model: onnx.ModelProto,
    limits: Mapping[str, tuple[np.floating, np.floating]],
    floats: Collection[str],
) -> onnx.ModelProto:
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    kept = [
        node.name
        for node in model.graph.node
        if set(node.output) & set(floats)
        or _unknown(node, limits, weights)
        or _has_bias_of_groups(node, weights)
    ]
    with _as_errors():
        quantizer = QDQQuantizer(
            model,
            True,
            saturates(),
            QuantType.QInt8,
            QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, dict(limits)),
            [],
            kept,
            KINDS,
            {},
        )
        quantizer.quantize_model()
    found: onnx.ModelProto = quantizer.model.model
    return found


def _unknown(node: onnx.NodeProto, limits: Mapping[str, object], weights: Collection[str]) -> bool:
    """Tell whether a node takes or gives what was not observed."""
    taken = [name for name in node.input if name and name not in weights]
    return not all(name in limits for name in [*taken, *node.output])


def _has_bias_of_groups(node: onnx.NodeProto, weights: Mapping[str, tuple[int, ...]]) -> bool:
    """Find transposed convolutions whose bias the quantizer takes for that of one group."""
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    biased = node.op_type == "ConvTranspose" and len(node.input) > 2
    return biased and groups > 1 and weights.get(node.input[1], (0, 1))[1] > 1


class _Calibrater(MinMaxCalibrater):  # type: ignore[misc]  # onnxruntime has no types
    """Observes what has axes: of single numbers it knows no extremes by channel."""

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
    with _as_errors():
        if (network.opset_imports.get("") or OLDEST_OPSET) < OLDEST_OPSET:
            model = onnx.version_converter.convert_version(model, OLDEST_OPSET)
        return onnx.shape_inference.infer_shapes(model)


@contextlib.contextmanager
def _as_errors() -> Iterator[None]:
    """Tell what goes wrong in the quantizer in one sentence, and none of its advice."""
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
