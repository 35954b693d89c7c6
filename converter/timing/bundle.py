"""A bundle for the target machine: the networks to time, and the program that times them."""

from __future__ import annotations

import contextlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from converter.errors import ConverterError
from converter.graph.network import MAX_FILE_BYTES, nbytes
from converter.options import TimingOptions
from converter.runtime import attribution, layer_times, ort_session, stopwatch, timer
from converter.runtime.ort import OnnxRuntime
from converter.timing.profile import FLOAT, variant_file
from converter.timing.variants import Variants

COPIED = (attribution, layer_times, ort_session, stopwatch, timer)  # what timer.py imports, too
BLOCK = 16  # channels; ranks in blocks of 16 also fit a machine that computes 8 together
LAUNCHER = "from converter.runtime.timer import main\n\nraise SystemExit(main())\n"


def write_bundle(
    variants: Variants,
    shapes: Mapping[str, Sequence[int]],
    path: Path,
    timing: TimingOptions,
    *,
    int8: bool = False,
    progress: Callable[[float], None] = lambda done: None,
) -> None:
    """Write the variants of a network without their weights, and the timer.

    The target machine needs onnxruntime and numpy: ``python bundle.zip`` there, or
    ``python timer.py`` in a folder, writes the latency table.

    Args:
        variants: The networks to time.
        shapes: Input shapes by name, batch included.
        path: A file that ends in .zip, or a new folder.
        timing: Threads and provider on the target machine.
        int8: Time the network in int8.
        progress: Called with the fraction that is done.

    Raises:
        ConverterError: When the network is too large or cannot be quantized, or ``path`` exists as
            a folder.
    """
    if nbytes(variants.network) >= MAX_FILE_BYTES:
        raise ConverterError(
            "A network of 2 GB or more cannot be bundled; measure it on the target."
        )
    stripped = variants.without_weights()
    manifest = {
        "format": timer.BUNDLE_FORMAT,
        "version": layer_times.VERSION,
        "provider": timing.provider or ort_session.DEFAULT_PROVIDER,
        "threads": timing.threads,
        "block": BLOCK,
        "float": FLOAT if int8 else None,
        **stripped.manifest(shapes),
    }
    runtime = OnnxRuntime() if int8 else None
    networks = [*manifest["networks"], *([FLOAT] if int8 else [])]
    with _archive(path) as archive:
        archive.writestr("manifest.json", json.dumps(manifest, indent=1) + "\n")
        for name in ("timer.py", "__main__.py"):
            archive.writestr(name, LAUNCHER)
        for name in ("converter/__init__.py", "converter/runtime/__init__.py"):
            archive.writestr(name, "")
        for module in COPIED:
            file = Path(str(module.__file__))
            archive.write(file, f"converter/runtime/{file.name}")
        for number, name in enumerate(networks):
            archive.writestr(name, variant_file(stripped, name, runtime))
            progress((number + 1) / len(networks))


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a compressed archive, which becomes the file ``path``, or is unpacked into a folder."""
    packed = path.suffix == ".zip"
    if (packed and path.is_dir()) or (not packed and path.exists()):
        raise ConverterError(f"{path} exists; name a new folder, or a file that ends in .zip.")
    if not path.resolve().parent.is_dir():
        raise ConverterError(f"{path} cannot be written; its folder does not exist.")
    with tempfile.TemporaryDirectory(dir=path.resolve().parent) as folder:
        scratch = Path(folder) / "bundle.zip"
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as archive:
            yield archive
        if not packed:
            with zipfile.ZipFile(scratch) as archive:
                archive.extractall(Path(folder) / "bundle")
        (scratch if packed else Path(folder) / "bundle").replace(path)
