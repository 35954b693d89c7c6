"""The latency table of a network, read from a file, from the cache, or measured; trial races."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from converter.cache import atomic_write, digest, load_text, store_text
from converter.decomposition.form import Rank, skeleton
from converter.decomposition.forms import find_form
from converter.errors import ConverterError
from converter.graph.external import weights_folder
from converter.graph.network import MAX_FILE_BYTES, nbytes, open_session
from converter.graph.rewrite import rewrite
from converter.graph.survey import Layer, survey
from converter.models.problem import Problem, make_problem
from converter.models.source import examples, open_source
from converter.options import Options
from converter.processes import Progress, Resources
from converter.quantization.quantize import quantized_for_timing
from converter.runtime import stopwatch
from converter.runtime.ort import OnnxRuntime
from converter.timing.bundle import BLOCK, write_bundle
from converter.timing.conditions import conditions, timed_feeds, timed_shapes
from converter.timing.latency import LatencyTable
from converter.timing.profile import measure
from converter.timing.race import race
from converter.timing.variants import Variants

TRIAL_RACE_S = 1.5  # seconds that a race spends on each network


def latency_table(
    problem: Problem,
    options: Options,
    resources: Resources,
    all_forms: bool = True,
) -> LatencyTable:
    """Read the times of the layers from ``--latency``, or from the cache, or measure them.

    Doubtful times, which have ``warnings``, are measured anew by each conversion. Only with
    ``--resume`` those of the interrupted conversion are used, since others could lead to another
    plan.

    Args:
        problem: The network and its layers.
        options: Options of the conversion.
        resources: Cache and progress.
        all_forms: Time other forms, too, if their times are not in the cache.

    Raises:
        ConverterError: When the file is not a table of this network.
    """
    if options.search.latency is not None:
        return _read_table(options.search.latency, problem.layers, options.search.int8)
    cache, key = resources.cache, digest("table", *conditions(problem, options))
    table = _cached_table(cache, key, options)
    if table is not None:
        return table
    variants = Variants.of(problem.network, problem.layers)
    if all_forms:
        variants = variants.with_grid(OnnxRuntime.of(options.timing).block())
    table = _measure(problem, variants, options, resources.progress)
    if all_forms and cache is not None:
        store_text(cache, _doubtful(key) if table.warnings else key, table.to_json())
    return table


def chosen_times(
    problem: Problem,
    chosen: Mapping[str, tuple[str, Rank]],
    options: Options,
    resources: Resources,
) -> LatencyTable | None:
    """Time the layers as they are, and the layers converted by hand in their forms.

    Args:
        problem: The network and its layers.
        chosen: Form and rank by layer name.
        options: Options of the conversion.
        resources: Progress.

    Returns:
        The times; None if they cannot be measured, since only the report shows them.
    """
    if weights_folder(problem.network) is None and nbytes(problem.network) >= MAX_FILE_BYTES:
        return None  # a protobuf message cannot be that large
    variants = Variants.of(problem.network, problem.layers).with_chosen(chosen)
    try:
        return _measure(problem, variants, options, resources.progress)
    except ConverterError:
        return None


def measure_file(path: Path, output: Path, options: Options, progress: Progress) -> LatencyTable:
    """Time the layers of an ONNX file, as they are and in other forms, and write the table.

    Args:
        path: The file; its weights do not matter.
        output: The table to write, for ``--latency``.
        options: Input shapes, timing, int8.
        progress: Called with a stage and the share of it that is done.

    Raises:
        ConverterError: When the file cannot be read or run.
        OSError: When the table cannot be written.
    """
    problem, variants = _read_file(path, options, OnnxRuntime.of(options.timing).block())
    table = _measure(problem, variants, options, progress)
    with atomic_write(output) as scratch:
        scratch.write_text(table.to_json())
    return table


def prepare_file(path: Path, bundle: Path, options: Options, progress: Progress) -> int:
    """Write a bundle that times the layers of an ONNX file on a machine without flatconv.

    Args:
        path: The file; its weights do not matter.
        bundle: A file that ends in .zip, or a new folder.
        options: Input shapes, timing, int8.
        progress: Called with a stage and the share of it that is done.

    Returns:
        The number of networks in the bundle.

    Raises:
        ConverterError: When the file cannot be read, or the bundle cannot be written.
    """
    problem, variants = _read_file(path, options, BLOCK)
    write_bundle(
        variants,
        timed_shapes(problem, options),
        bundle,
        options.timing,
        int8=options.search.int8,
        progress=partial(progress, "preparing"),
    )
    return len(variants)


def measured_speedup(
    problem: Problem,
    chosen: Mapping[str, tuple[str, Rank]],
    table: LatencyTable,
    options: Options,
    resources: Resources,
) -> float:
    """Race the network with some layers in other forms against the original.

    The chains get zeros for weights, so nothing is solved. With ``--int8`` the changed network is
    quantized and the original is not. With ``--resume`` the cached result of an earlier race is
    used: another result could lead to another plan, whose training would start anew.

    Args:
        problem: The network and its layers.
        chosen: Form and rank by layer name.
        table: Times of the layers, part of the key in the cache.
        options: Options of the conversion.
        resources: Cache.

    Returns:
        Median speedup.
    """
    if not chosen and not options.search.int8:
        return 1.0
    cache = resources.cache
    key = digest("race", table.to_json(), sorted(chosen.items()), *conditions(problem, options))
    cached = load_text(cache, key) if cache is not None and options.training.resume else None
    if cached is not None:
        return float.fromhex(cached)
    speedup = _race_without_weights(problem, chosen, options)
    if cache is not None:
        store_text(cache, key, speedup.hex())
    return speedup


def _doubtful(key: str) -> str:
    """Return the key of a doubtful table in the cache."""
    return digest("doubtful", key)


def _cached_table(cache: Path | None, key: str, options: Options) -> LatencyTable | None:
    """Read a table from the cache; a doubtful one only with ``--resume``."""
    if cache is None:
        return None
    text = load_text(cache, key)
    if text is None and options.training.resume:
        text = load_text(cache, _doubtful(key))
    return None if text is None else LatencyTable.from_json(text)


def _read_table(path: Path, layers: Sequence[Layer], int8: bool) -> LatencyTable:
    """Read the file of ``--latency``."""
    try:
        table = LatencyTable.from_json(path.read_text()).matched(layers)
        if int8 != (table.float_ms is not None):
            raise ConverterError(f"Measure {'with' if int8 else 'without'} --int8.")
        return table
    except (OSError, UnicodeDecodeError) as error:
        raise ConverterError(f"{path} cannot be read: {error}.") from None
    except ConverterError as error:
        raise ConverterError(f"{path} cannot be used. {error}") from None


def _read_file(path: Path, options: Options, block: int) -> tuple[Problem, Variants]:
    """Read and survey an ONNX file, to time its layers in all forms."""
    source, seed = open_source(path, None, options), options.resources.seed
    layers = survey(source.network, examples(source, seed, 1))
    problem = make_problem(source, layers, seed)
    return problem, Variants.of(problem.network, layers).with_grid(block)


def _measure(
    problem: Problem, variants: Variants, options: Options, progress: Progress
) -> LatencyTable:
    return measure(
        variants,
        timed_feeds(problem, options),
        OnnxRuntime.of(options.timing),
        int8=options.search.int8,
        progress=partial(progress, "measuring"),
    )


def _race_without_weights(
    problem: Problem, chosen: Mapping[str, tuple[str, Rank]], options: Options
) -> float:
    chains = {}
    for layer in problem.layers:
        if layer.name in chosen and layer.conv is not None:
            form, rank = chosen[layer.name]
            chain = skeleton(layer.conv, find_form(form), rank)
            chains[layer.output] = (layer.name, chain)
    changed, runtime = rewrite(problem.network, chains), OnnxRuntime.of(options.timing)
    sessions = [open_session(problem.network, runtime=runtime)]
    if options.search.int8:
        sessions.append(runtime.open(quantized_for_timing(changed, runtime)))
    else:
        sessions.append(open_session(changed, runtime=runtime))
    feeds = timed_feeds(problem, options)
    settings = stopwatch.DEFAULT_SETTINGS
    short = replace(settings, race_s=min(settings.race_s, TRIAL_RACE_S))
    return race(sessions, [feeds, feeds], settings=short).speedup[1].median
