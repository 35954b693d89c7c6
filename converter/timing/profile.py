"""Time the layers of a network on this machine, unchanged and in other forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from converter.graph.batch_axes import examples_first
from converter.graph.external import weights_folder
from converter.graph.network import inputs, load
from converter.quantization.quantize import quantized_for_timing
from converter.runtime import stopwatch
from converter.runtime.layer_times import time_layers
from converter.runtime.ort import cpu_model, run
from converter.runtime.ort_session import NodeTime
from converter.runtime.runtime import Runtime, Session
from converter.runtime.stopwatch import Feeds, TimingSettings
from converter.runtime.timer import make_feeds
from converter.timing.latency import LatencyTable
from converter.timing.variants import Variants

FLOAT = "float.onnx"  # the network in floating point, beside variants in int8


def measure(
    variants: Variants,
    feeds: Feeds,
    runtime: Runtime,
    *,
    int8: bool = False,
    settings: TimingSettings | None = None,
    progress: Callable[[float], None] = lambda done: None,
) -> LatencyTable:
    """Time the layers of a network in all their options.

    Args:
        variants: The network and the options.
        feeds: Inputs by name; a whole batch.
        runtime: Runs the network.
        int8: Time the network in int8.
        settings: How long and how often networks are timed; the default if left out.
        progress: Called with the fraction that is done.

    Raises:
        ConverterError: When the network cannot be run or quantized.
    """
    folder = weights_folder(variants.network)
    manifest = variants.manifest({name: x.shape for name, x in feeds.items()}) | {
        "cpu": cpu_model(),
        "onnxruntime": runtime.version,
        "provider": runtime.provider,
        "threads": runtime.threads,
        "block": runtime.block(),
        "float": FLOAT if int8 else None,
    }

    def content(name: str) -> bytes:
        return variant_file(variants, name, runtime if int8 else None)

    def open_network(name: str) -> Session:
        session = runtime.open(content(name), folder)
        run(session, feeds)  # raises a ConverterError if it fails
        return session

    def profile_network(name: str, seconds: float) -> Sequence[NodeTime]:
        return runtime.profile(content(name), feeds, seconds, folder)

    document = time_layers(manifest, open_network, profile_network, feeds, settings, progress)
    return LatencyTable.from_document(document)


def variant_file(variants: Variants, name: str, quantizing: Runtime | None) -> bytes:
    """Write one network of a manifest as an ONNX file.

    Args:
        variants: The networks.
        name: Name of the network in the manifest.
        quantizing: Quantizes all networks but ``FLOAT``; None leaves all in floating point.

    Raises:
        ConverterError: When the network cannot be quantized.
    """
    number = 0 if name == FLOAT else int(name.removesuffix(".onnx").rpartition("_")[2])
    model = variants.variant(number)
    if quantizing is not None and name != FLOAT:
        return quantized_for_timing(model, quantizing)
    return bytes(ir.to_proto(model).SerializeToString())


def node_times(
    path: Path, shapes: Sequence[Sequence[int]], runtime: Runtime
) -> tuple[NodeTime, ...]:
    """Time the nodes of an ONNX file, in the order in which they run.

    Args:
        path: The file.
        shapes: Input shapes in order, batch included.
        runtime: Runs the network.

    Raises:
        ConverterError: When the network cannot be read or run.
    """
    items = zip(inputs(examples_first(load(path))), shapes)
    feeds = make_feeds(
        {
            item.name: {"shape": item.shape_given(tuple(shape)), "dtype": item.dtype.name}
            for item, shape in items
        }
    )
    return tuple(runtime.profile(path, feeds, stopwatch.DEFAULT_SETTINGS.profile_s))
