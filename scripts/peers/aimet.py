"""AIMET's spatial SVD."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any

import numpy as np
import torch
from torch import nn

from converter.data.data import Data
from scripts.peers.macs import first_conv, first_is_small, first_macs, macs_of

SCORED, BATCH = 512, 64


class AnyModule(types.ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> Any:
        """Give a module of that name, if there is one, else a class that does nothing."""
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), {})


def replace_torchvision() -> None:
    """Stand in for torchvision, which AIMET imports and spatial SVD does not use.

    The published one has no operators for a CPU build of torch.
    """
    for name in ("", ".ops", ".transforms", ".models", ".datasets"):
        module = AnyModule(f"torchvision{name}")
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        module.__path__ = []
        sys.modules[module.__name__] = module


def aimet_spatial(model: nn.Module, example: torch.Tensor, share: float, data: Data) -> nn.Module:
    """Choose ranks greedily by a score on some of the images, and decompose.

    The score is the mean probability of the right class: of accuracies too many are equal, and the
    search then ends far below its target.

    Raises:
        RuntimeError: When the images have no labels.
    """
    replace_torchvision()
    from decimal import Decimal

    from aimet_torch.common.defs import CompressionScheme, CostMetric, GreedySelectionParameters
    from aimet_torch.compress import ModelCompressor
    from aimet_torch.defs import SpatialSvdParameters

    if data.labels is None:
        raise RuntimeError("AIMET chooses ranks by accuracy, and random weights have none.")
    images = data.read(np.arange(min(SCORED, data.count)))
    x = torch.from_numpy(next(iter(images.values())))
    y = torch.from_numpy(np.asarray(data.labels)[: len(x)]).long()

    @torch.no_grad()
    def score(candidate: nn.Module, iterations: int | None = None, use_cuda: bool = False) -> float:
        candidate.eval()
        logits = torch.cat([candidate(part) for part in x.split(BATCH)])
        return float(logits.softmax(1).gather(1, y[:, None]).mean())

    small = first_is_small(model, example, share)
    kept_macs = first_macs(model, example) if small else 0
    # It tries a tenth of each layer at least, but at the very lowest score it keeps a layer whole,
    # so that its search stops well before the lowest share.
    lowest = 0.2 + 0.8 * kept_macs / macs_of(model, example)
    target = Decimal(f"{max(share, lowest):.4f}")
    greedy = GreedySelectionParameters(target_comp_ratio=target, num_comp_ratio_candidates=10)
    ignored = [first_conv(model)] if small else []
    auto = SpatialSvdParameters.AutoModeParams(greedy, modules_to_ignore=ignored)
    compressed: nn.Module
    compressed, _ = ModelCompressor.compress_model(
        model,
        eval_callback=score,
        eval_iterations=None,
        input_shape=tuple(example.shape),
        compress_scheme=CompressionScheme.spatial_svd,
        cost_metric=CostMetric.mac,
        parameters=SpatialSvdParameters(SpatialSvdParameters.Mode.auto, auto),
    )
    return compressed
