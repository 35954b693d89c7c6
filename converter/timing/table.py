"""How long a network's layers take here: the table from a file, the cache or the stopwatch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from converter.cache import cached_text, digest, load_text, store_text
from converter.data.data import random_data
from converter.decomposition.form import Rank, skeleton
from converter.decomposition.forms import find_form
from converter.errors import ConverterError
from converter.graph import onnx_proto as light
from converter.graph.external import weights_folder
from converter.graph.network import MAX_FILE_BYTES, nbytes, open_session
from converter.graph.rewrite import rewrite
from converter.graph.survey import Layer
from converter.models.source import Source
from converter.options import Options
from converter.quantization.quantize import quantized_for_timing
from converter.runtime.ort import cpu_model, open_file
from converter.timing.latency import LatencyTable
from converter.timing.profile import measure
from converter.timing.race import race
from converter.timing.sites import geometry

RACE_S = 1.5


def latency_table(
    source: Source,
    layers: Sequence[Layer],
    options: Options,
    progress: Callable[[str, float], None],
    others: bool = True,
) -> LatencyTable:
    """Read the times of the layers from ``--latency``, or from the cache, or measure them.

    Args:
        source: The network.
        layers: Of the network.
        options: Options.
        progress: Called with a stage and the share of it that is done.
        others: Whether other forms are timed too if they are not known yet.

    Raises:
        ConverterError: When the file is no table of this network.
    """
    places = [
        (layer.output, layer.conv.kernel.shape, geometry(layer.conv))
        for layer in layers
        if layer.conv is not None
    ]
    if options.search.latency is not None:
        try:
            table = LatencyTable.from_json(options.search.latency.read_text()).matched(places)
            if options.search.int8 != (table.float_ms is not None):
                way = "with" if options.search.int8 else "without"
                raise ConverterError(f"Measure {way} --int8.")
            return table
        except (OSError, UnicodeDecodeError) as error:
            raise ConverterError(f"{options.search.latency} cannot be read: {error}.") from None
        except ConverterError as error:
            raise ConverterError(f"{options.search.latency} cannot be used. {error}") from None
    network = ir.to_proto(source.network).SerializeToString()
    folder = weights_folder(source.network)
    shapes = timed_shapes(source, options)
    key = digest(
        light.skeleton(light.parse(network, "The network", folder)),
        sorted(shapes.items()),
        cpu_model(),
        onnxruntime.__version__,
        options.timing.threads,
        options.timing.provider,
        *(["int8"] if options.search.int8 else []),
    )

    def taken(others: bool = True) -> str:
        return _measured(source, options, progress, others=others).to_json()

    cache = options.resources.cache_folder()
    if not others:
        known = None if cache is None else load_text(cache, key)
        return LatencyTable.from_json(known or taken(others=False))
    return LatencyTable.from_json(cached_text(cache, key, taken))


def chosen_times(
    source: Source,
    layers: Sequence[Layer],
    chosen: Mapping[str, tuple[str, Rank]],
    options: Options,
    progress: Callable[[str, float], None],
) -> LatencyTable | None:
    """Time the layers as they are, and those that are converted by hand in their forms.

    Args:
        source: The network.
        layers: Of the network.
        chosen: Form and rank by layer name.
        options: Options.
        progress: Called with a stage and the share of it that is done.

    Returns:
        The times; None where they cannot be measured, for which nobody asked here.
    """
    only = {layer.output: chosen[layer.name] for layer in layers if layer.name in chosen}
    if weights_folder(source.network) is None and nbytes(source.network) >= MAX_FILE_BYTES:
        return None  # no message is that large
    try:
        return _measured(source, options, progress, only=only)
    except ConverterError:
        return None


def _measured(
    source: Source, options: Options, progress: Callable[[str, float], None], **how: Any
) -> LatencyTable:
    folder = weights_folder(source.network)
    return measure(
        ir.to_proto(source.network).SerializeToString(),
        "The network",
        timed_shapes(source, options),
        threads=options.timing.threads,
        provider=options.timing.provider,
        weights=folder,
        quantized=partial(quantized_for_timing, weights=folder) if options.search.int8 else None,
        progress=lambda done: progress("measuring", done),
        **how,
    )


def timed_shapes(source: Source, options: Options) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs that are timed, with the batch size of ``--batch-size``."""
    batch = source.inputs[0].shape[0] or options.timing.batch_size
    return {name: (batch or shape[0], *shape[1:]) for name, shape in source.shapes.items()}


def measured_speedup(
    source: Source,
    layers: Sequence[Layer],
    chosen: Mapping[str, tuple[str, Rank]],
    table: LatencyTable,
    options: Options,
) -> float:
    """Race the network with some layers in other forms, zeros for weights, against the original.

    With ``int8`` it is quantized, the original is not. A race is as noisy as the machine, and
    another plan would have to be trained anew: with ``resume`` an earlier race counts.

    Args:
        source: The network.
        layers: Of the network.
        chosen: Form and rank by layer name.
        table: Times of the layers, by which the race is known again.
        options: Options.
    """
    if not chosen and not options.search.int8:
        return 1.0
    cache, shapes = options.resources.cache_folder(), timed_shapes(source, options)
    key = digest(
        "race",
        table.to_json(),
        sorted(chosen.items()),
        sorted(shapes.items()),
        cpu_model(),
        onnxruntime.__version__,
        options.timing.threads,
        options.timing.provider,
        options.search.int8,
    )
    known = load_text(cache, key) if cache is not None and options.training.resume else None
    if known is not None:
        return float.fromhex(known)
    speedup = _raced(source, layers, chosen, options)
    if cache is not None:
        store_text(cache, key, speedup.hex())
    return speedup


def _raced(
    source: Source,
    layers: Sequence[Layer],
    chosen: Mapping[str, tuple[str, Rank]],
    options: Options,
) -> float:
    chains = {}
    for layer in layers:
        if layer.name in chosen and layer.conv is not None:
            form, rank = chosen[layer.name]
            chain = skeleton(layer.conv, find_form(form), rank)
            chains[layer.output] = (layer.name, chain)
    other = rewrite(source.network, chains)
    sessions = [
        open_session(m, options.timing.threads, options.timing.provider)
        for m in (source.network, other)
    ]
    if options.search.int8:
        network = ir.to_proto(other).SerializeToString()
        network = quantized_for_timing(network, weights_folder(other))
        sessions[1] = open_file(network, options.timing.threads, options.timing.provider)
    dtypes = {item.name: item.dtype for item in source.inputs}
    shapes = timed_shapes(source, options)
    batch = next(iter(shapes.values()))[0]
    feeds = random_data(shapes, dtypes, batch, options.resources.seed).read(np.arange(batch))
    return race(sessions, [feeds, feeds], budget_s=RACE_S).speedup[1].median
