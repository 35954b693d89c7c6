"""Damaged and hostile inputs, random but seeded: checkpoints, ONNX files, plans and data."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scripts.tools.damage import NUMBERS, TEXTS, damaged_archive, damaged_bytes
from scripts.tools.fuzz_onnx import damaged_network


class WritesFile:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Give a shell command."""
        return (os.system, ("touch hostile_ran",))


def checkpoint(rng: random.Random, folder: Path) -> Path:
    """Make a checkpoint."""
    import torch
    from safetensors.torch import save

    state = {f"{n}.weight": torch.full((4, 3, 3, 3), float(n)) for n in range(3)}
    kind = rng.randrange(5)
    if kind == 0:
        path, content = folder / "w.safetensors", save(state)
    elif kind == 1:
        nested: Any = {
            rng.choice(("state_dict", "model", "x")): rng.choice((state, WritesFile(), 3))
        }
        path, content = folder / "w.pt", pickle.dumps(nested)
    else:
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=kind != 2)
        path, content = folder / rng.choice(("w.pt", "w.th", "w.tar")), buffer.getvalue()
        if kind == 3:
            path.write_bytes(damaged_archive(rng, content))
            return path
    path.write_bytes(damaged_bytes(rng, content) if rng.random() < 0.95 else content)
    return path


def random_json(rng: random.Random, depth: int = 0) -> Any:
    """Make a JSON value."""
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind < 2:
        return rng.choice((*NUMBERS, 0.5, 1e308, -0.0))
    if kind < 4:
        return rng.choice((*TEXTS, "flattened", "channel", "16"))
    if kind == 4:
        return rng.choice((None, True, False))
    inner = [random_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    return inner if kind < 7 else {str(rng.choice(TEXTS)): value for value in inner}


def plan(rng: random.Random, folder: Path) -> Path:
    """Make a plan."""
    path = folder / "plan.json"
    document: Any = {
        "format": "flatconv-plan",
        "version": 1,
        "seed": 0,
        "input_shapes": {"x": [1, 3, 8, 8]},
        "layers": {
            "w0": {"form": "flattened", "rank": [4]},
            "w1": {"form": "channel", "rank": [2]},
            "w2": {"reason": "kept"},
        },
    }
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder = rng.choice((document, document["layers"], *document["layers"].values()))
        if isinstance(holder, dict) and holder:
            key = rng.choice((*holder, rng.choice(TEXTS)))
            if rng.random() < 0.2:
                holder.pop(key, None)
            else:
                holder[key] = random_json(rng)
        if not isinstance(document.get("layers"), dict):
            break
    text = json.dumps(document)
    if rng.random() < 0.1:
        text = "[" * rng.choice((10, 10**5)) + text
    content = text.encode()
    path.write_bytes(damaged_bytes(rng, content) if rng.random() < 0.3 else content)
    return path


def dataset(rng: random.Random, folder: Path) -> Path:
    """Make an .npz file or a folder of images."""
    from PIL import Image

    if rng.random() < 0.4:
        pictures = folder / "images"
        pictures.mkdir(exist_ok=True)
        kind = rng.choice(("png", "jpeg", "bmp", "gif", "webp", "tiff"))
        path, buffer = pictures / f"a.{kind}", io.BytesIO()
        side = rng.choice((8, 8, 9, 1))
        if kind == "png" and rng.random() < 0.02:
            side = 20_000  # a bomb: small, until it is read
        Image.new("RGB" if side < 100 else "1", (side, side)).save(buffer, kind)
        path.write_bytes(damaged_bytes(rng, buffer.getvalue()) if side < 100 else buffer.getvalue())
        return pictures
    buffer, path = io.BytesIO(), folder / "data.npz"
    x: Any = np.zeros((2, 8, 8, 3), np.uint8)
    x = rng.choice(
        (x, x.transpose(0, 3, 1, 2).astype(np.float32), np.array([WritesFile(), {}]), x[0, 0, 0, 0])
    )
    save = rng.choice((np.savez, np.savez_compressed))
    save(buffer, x=x, y=rng.choice((np.arange(2), np.ones(2), np.array(["a", "b"]))))
    content = buffer.getvalue()
    path.write_bytes(
        damaged_archive(rng, content) if rng.random() < 0.5 else damaged_bytes(rng, content)
    )
    return path


MAKE: dict[str, Callable[[random.Random, Path], Path]] = {
    "checkpoint": checkpoint,
    "onnx": damaged_network,
    "plan": plan,
    "data": dataset,
}
