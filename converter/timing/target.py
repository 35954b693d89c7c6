"""``flatconv measure``, for a machine that has onnxruntime and numpy and nothing else of ours."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from converter.errors import ConverterError
from converter.graph import onnx_proto as light
from converter.options import parse_input_shape, shapes_by_name
from converter.runtime.ort import check_provider
from converter.timing.latency import LatencyTable
from converter.timing.profile import measure


def measure_file(
    path: str | Path,
    output: str | Path,
    *,
    input_shape: Sequence[str] = (),
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    batch_size: int | None = None,
    int8: bool = False,
    progress: Callable[[str, float], None] = lambda stage, done: None,
) -> LatencyTable:
    """Time the layers of an ONNX file, as they are and in other forms, and write the table.

    Args:
        path: The file; its weights do not matter.
        output: Where to write the table, for ``--latency``.
        input_shape: As ``Options.input_shape``.
        threads: Of onnxruntime.
        provider: Its execution provider.
        batch_size: Examples a call, where the network takes any.
        int8: Time the layers in int8, which needs all packages of flatconv.
        progress: Called with a stage and the share of it that is done.

    Raises:
        ConverterError: When the file cannot be read or run, or the table not be written.
    """
    check_provider(provider)
    target = Path(output)
    if target.is_dir() or not target.resolve().parent.is_dir():
        raise ConverterError(f"{target} cannot be written; name a file in an existing folder.")
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConverterError(f"{path} cannot be read: {error}.") from None
    folder = Path(path).resolve().parent
    quantized = partial(_quantizer(), weights=folder) if int8 else None
    spec = light.inputs(light.parse(content, str(path), folder))
    shapes, *_ = shapes_by_name([parse_input_shape(text) for text in input_shape], list(spec))
    if batch_size is not None:
        for name, (known, _) in spec.items():
            sizes = tuple(size for size in shapes.get(name, known)[1:] if size is not None)
            if known[0] is None and len(sizes) == len(known) - 1:
                shapes[name] = (batch_size, *sizes)
    table = measure(
        content,
        str(path),
        shapes,
        threads=threads,
        provider=provider,
        weights=folder,
        quantized=quantized,
        progress=lambda done: progress("measuring", done),
    )
    scratch = target.with_name(f".{target.name}.partial")
    scratch.write_text(table.to_json())
    scratch.replace(target)
    return table


def _quantizer() -> Callable[..., bytes]:
    """Import what makes int8 of a network."""
    try:
        from converter.quantization.quantize import quantized_for_timing
    except ImportError:
        raise ConverterError("--int8 needs more packages here; pip install flatconv.") from None
    return quantized_for_timing


def main(arguments: Sequence[str] | None = None) -> int:
    """Take the command line of ``flatconv measure`` where the libraries of the others are not."""
    parser = argparse.ArgumentParser(prog="flatconv", description=__doc__)
    command = parser.add_subparsers(required=True).add_parser("measure")
    command.add_argument("model", type=Path, help="the .onnx file")
    command.add_argument("-o", "--output", type=Path, required=True, help="latency.json")
    command.add_argument("--input-shape", action="append", default=[], help="[NAME:]1,3,224,224")
    command.add_argument("--threads", type=int, default=1)
    command.add_argument("--provider", default="CPUExecutionProvider")
    command.add_argument("--batch-size", type=int)
    command.add_argument("--int8", action="store_true", help="times in int8; needs all of flatconv")
    options = vars(parser.parse_args(arguments))

    def shown(stage: str, done: float) -> None:
        print(f"\r{stage} {done:4.0%}", end="", file=sys.stderr, flush=True)

    try:
        table = measure_file(options.pop("model"), options.pop("output"), **options, progress=shown)
    except (ConverterError, OSError) as error:
        print(f"flatconv: {error}", file=sys.stderr)
        return 2
    print(f"\n{len(table.layers)} layers, {table.ms:.3f} ms in all")
    return 0
