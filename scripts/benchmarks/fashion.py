"""Fashion-MNIST, and the sample network trained on it."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from scripts.benchmarks.results import ROOT
from scripts.benchmarks.suite import Settings
from scripts.train_sample import Recipe, load_split, save, train

EPOCHS = 8


def prepare(settings: Settings) -> tuple[Path, Path]:
    """Write Fashion-MNIST as RGB images of 32x32, and train the sample network on it.

    Returns:
        The folder of the data, and the checkpoint; both are made once.
    """
    assert settings.fashion is not None
    data, checkpoint = ROOT / "data" / "fashion", ROOT / "runs" / "fashion" / "net.safetensors"
    data.mkdir(parents=True, exist_ok=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(settings.fashion / f"{prefix}-images-idx3-ubyte.gz")
        images = np.pad(images, ((0, 0), (2, 2), (2, 2)))[..., None].repeat(3, 3)
        labels = read_idx(settings.fashion / f"{prefix}-labels-idx1-ubyte.gz")
        np.savez_compressed(data / f"{split}.npz", x=images, y=labels.astype(np.int64))
    if not checkpoint.exists():
        images_and_labels, test = (load_split(data, split) for split in ("train", "test"))
        state = checkpoint.with_name("state.pt")
        save(train(*images_and_labels, test, state, Recipe(EPOCHS)), checkpoint)
    return data, checkpoint


def read_idx(path: Path) -> np.ndarray:
    """Read an array of bytes in the IDX format of MNIST's files."""
    raw = gzip.decompress(path.read_bytes())
    axes = raw[3]
    shape = np.frombuffer(raw, ">i4", axes, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)
