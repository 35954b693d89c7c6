"""Where the state of a training is kept, so that it goes on where it was stopped."""

from __future__ import annotations

import contextlib
import inspect
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from converter.cache import digest, entry_path
from converter.data.data import Data
from converter.models.export import find_callable
from converter.options import Options
from converter.runtime.ort_quantizer import saturates

FOLDER, KEPT_S = "tuning", 7 * 24 * 3600.0


def checkpoint_path(
    student: nn.Module, teacher: nn.Module, data: Data, options: Options, *about: object
) -> Path | None:
    """Name the file for the state of a training by all that it depends on; forget old ones.

    Args:
        student: What is trained.
        teacher: And toward what.
        data: And on what.
        options: Options, of which some count.
        about: What else it depends on; nested tuples and lists of plain values.

    Returns:
        Its path, whether it is there or not; None where there is no cache.
    """
    folder = options.resources.cache_folder()
    if folder is None:
        return None
    with contextlib.suppress(OSError):
        for path in (folder / FOLDER).rglob("*.safetensors"):
            if time.time() - path.stat().st_mtime > KEPT_S:
                path.unlink()
    weights = [_array(t) for model in (student, teacher) for t in model.state_dict().values()]
    few, labels = data.batch(np.arange(min(data.count, 4)))
    key = digest(
        weights,
        list(few.values()),
        labels is None or [labels],
        data.source,
        data.count,
        [] if data.labels is None else [data.labels],
        data.augment is None,
        *about,
        options.budget.drop_type,
        options.training.augment,
        options.training.loss and _code(options.training.loss),
        torch.__version__,
        options.search.int8 and saturates(),
    )
    return entry_path(folder / FOLDER, key, "safetensors")


def _code(text: str) -> str:
    """Give the source of ``module:function``; where it is another object, of the module."""
    found = find_callable(text, "--loss")
    with contextlib.suppress(TypeError, OSError):
        return inspect.getsource(found)
    return inspect.getsource(sys.modules[text.partition(":")[0]])


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
