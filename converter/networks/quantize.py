"""int8: onnxruntime's own quantizer, on chains whose components were scaled alike before.

Between two linear steps of a chain the scale of each component is free: what one step gives more
of the next takes less of. A tensor has one scale in int8, so that all its components are brought to
the same range (as Nagel et al., arXiv 1906.04721, section 4.1, do through ReLU).
"""

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

from converter.data import Arrays, Data
from converter.errors import ConverterError, first_line
from converter.networks.onnx_network import LARGEST_FILE, constant, size, standard
from converter.networks.runtime import open_file

OLDEST_OPSET = 13  # that has scales per channel
LARGEST_SCALE = 1e3  # by which a component may become larger
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


def evened(network: ir.Model, ranges: Ranges) -> tuple[ir.Model, Ranges]:
    """Bring the components between two linear steps to the same range; outputs stay as they are.

    Returns:
        A copy, and what values its tensors take.
    """
    copy, seen = network.clone(), dict(ranges)
    for node in list(copy.graph):
        follower = _follower(node)
        if follower is None:
            continue
        name = str(node.outputs[0].name)
        first, second = (constant(n.inputs[1]) for n in (node, follower))
        if first is None or second is None or name not in seen:
            continue
        low, high = seen[name]
        largest = np.maximum(-low, high)
        if not largest.max() > 0:
            continue
        scale = largest.max() / np.maximum(largest, largest.max() / LARGEST_SCALE)
        laid = _given(node, scale, first)
        if laid is None:
            continue
        seen[name] = low * scale, high * scale
        _set(node.inputs[1], first * laid)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            _set(node.inputs[2], np.asarray(constant(node.inputs[2])) * scale)
        _set(follower.inputs[1], second / _taken(follower, scale, second))
    return copy, seen


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
        "w": np.full((16, I, 1, 1), 127, np.int8), "zero": np.uint8(0), "none": np.int8(0),
        "one": np.float32(1), "scale": np.float32(I * largest / expected),
    }  # fmt: skip
    names = ["x", "one", "zero", "w", "one", "none", "scale", "zero"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("QLinearConv", names, ["y"])], "probe",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [1, I, 4, 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, [1, 16, 4, 4])],
        [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in weights.items()],
    )  # fmt: skip
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
        if standard(node) and node.op_type in LINEAR
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
            model, True, saturates(), QuantType.QInt8, QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, dict(limits)), [], kept, KINDS, {},
        )  # fmt: skip
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
    if size(network) >= LARGEST_FILE:
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


def _follower(node: ir.Node) -> ir.Node | None:
    """Find the linear step that alone takes what a linear step gives; both own their weights."""
    output = node.outputs[0]
    uses = list(output.uses())
    if not _linear(node) or len(uses) != 1 or output.is_graph_output():
        return None
    follower, position = uses[0]
    if position != 0 or not _linear(follower):
        return None
    # Between other pairs the components lie along one axis and are summed along another.
    pair = {"Conv" if n.op_type == "ConvTranspose" else n.op_type for n in (node, follower)}
    return follower if pair in ({"Conv"}, {"Gemm"}, {"Gemm", "MatMul"}) else None


def _linear(node: ir.Node) -> bool:
    """Tell whether a node is a linear step whose weights are its own."""
    if not standard(node) or node.op_type not in LINEAR:
        return False
    usual = all(
        attribute.value == 1.0
        for name, attribute in node.attributes.items()
        if name in ("alpha", "beta")
    )
    own = [value for value in node.inputs[1:] if value is not None]
    if not usual or not all(v.is_initializer() and len(v.uses()) == 1 for v in own):
        return False
    weight = constant(node.inputs[1])
    flat = weight is not None and weight.ndim == 2 and not node.attributes.get_int("transA", False)
    return node.op_type in ("Conv", "ConvTranspose") or flat


def _given(node: ir.Node, scale: np.ndarray, weight: np.ndarray) -> np.ndarray | None:
    """Lay the scales of a step's outputs along its weights; None where there are not as many."""
    if node.op_type == "ConvTranspose":  # (I, O / groups, ...)
        groups = node.attributes.get_int("group", 1)
        if len(scale) != groups * weight.shape[1]:
            return None
        each = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
        return each.reshape(*each.shape, *(1,) * (weight.ndim - 2))
    axis = 0 if node.op_type == "Conv" or node.attributes.get_int("transB", False) else 1
    return _along(scale, axis, weight.ndim) if len(scale) == weight.shape[axis] else None


def _along(scale: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """Lay a vector along an axis."""
    return scale.reshape([-1 if n == axis else 1 for n in range(ndim)])


def _taken(node: ir.Node, scale: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Lay the scales of a step's inputs along its weights, which may have groups."""
    if node.op_type == "ConvTranspose":
        return _along(scale, 0, weight.ndim)
    if node.op_type != "Conv":
        transposed = node.attributes.get_int("transB", False)
        return _along(scale, 1 if transposed else 0, weight.ndim)
    groups = node.attributes.get_int("group", 1)
    each = np.repeat(scale.reshape(groups, -1), weight.shape[0] // groups, axis=0)
    return each.reshape(*each.shape, *(1,) * (weight.ndim - 2))  # (O, I / groups, 1, ...)


def _set(value: ir.Value | None, array: np.ndarray) -> None:
    """Put other numbers into an initializer."""
    assert value is not None and value.const_value is not None
    dtype = value.const_value.dtype.numpy()
    value.const_value = ir.tensor(array.astype(dtype), name=value.name)
