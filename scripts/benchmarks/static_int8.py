"""onnxruntime's own static int8: per channel, uint8 activations, scales from sample inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import version_converter
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

MIN_OPSET = 13
Feeds = Mapping[str, np.ndarray]


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Gives feeds, one after another."""

    def __init__(self, feeds: Iterator[Feeds]) -> None:
        """Read from an iterator."""
        self._feeds = feeds

    def get_next(self) -> Feeds | None:
        """Give the next feeds, or None at the end."""
        return next(self._feeds, None)


def recent(model: onnx.ModelProto) -> onnx.ModelProto:
    """Raise the opset to the first with scales per channel."""
    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    return model if opset >= MIN_OPSET else version_converter.convert_version(model, MIN_OPSET)


def write_int8(
    source: Path, target: Path, feeds: Iterator[Feeds], operators: tuple[str, ...] = ()
) -> Path:
    """Quantize a network as onnxruntime's documentation shows, unless the file is there.

    Args:
        source: The network.
        target: Where the int8 network goes.
        feeds: Sample inputs, by input name.
        operators: Types of the operators that are quantized; all that it can if left out.

    Raises:
        Exception: Whatever onnxruntime raises.
    """
    if target.exists():
        return target
    with tempfile.TemporaryDirectory() as folder:
        prepared, scratch = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        onnx.save(recent(onnx.load(source)), prepared)
        quant_pre_process(prepared, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            scratch,
            Reader(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(operators) or None,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        onnxruntime.InferenceSession(scratch)  # it writes files that it does not open
        target.parent.mkdir(parents=True, exist_ok=True)
        network = ir.load(scratch)
        network.graph.sort()  # it adds nodes at the end
        ir.save(network, target)
    return target
