"""Make one network smaller with one other tool.

``scripts/bench_peers.py`` runs this in the virtual environment of the tool. The original is the
same for all, as are training and exporter (``scripts/train_peer.py``). Of the images AIMET chooses
ranks by the first 512, with their labels; all take the statistics of BatchNorm anew on those that
flatconv fits to.
"""

from __future__ import annotations

import argparse
import copy
import importlib.machinery
import json
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench_results import ROOT

sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from torch import nn
from train_peer import STUDENT, Pruned, plain

import converter
from converter.data.data import Data
from converter.models.source import examples
from converter.pipeline import open_source
from sample_models.resnet_cifar import Shortcut

BISECTIONS, SCORED, PART = 12, 512, 64
BATCH = 128
TINY = 1e-12
SMALL = 0.25  # of the MACs that may be left: a first layer of less is left alone, as is usual
Compress = Callable[[nn.Module, torch.Tensor, float, Data], nn.Module]


def macs_of(model: nn.Module, example: torch.Tensor) -> int:
    """Count the multiply-accumulates of all convolutions and linear layers."""
    total = 0

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        weight = module.weight
        total += weight.numel() * (output[0, 0].numel() if output.ndim > 2 else 1)

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()
    return total


def first_macs(model: nn.Module, example: torch.Tensor) -> int:
    """Count the multiply-accumulates of the first convolution."""
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    return macs_of(first, torch.zeros(1, first.in_channels, *example.shape[2:]))


def first_is_small(model: nn.Module, example: torch.Tensor, share: float) -> bool:
    """Tell whether making the first convolution smaller would bring little."""
    return first_macs(model, example) < SMALL * share * macs_of(model, example)


def windows(model: nn.Module, example: torch.Tensor, share: float) -> list[tuple[str, nn.Conv2d]]:
    """List the convolutions that extend over both axes, but for a first one that is small."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and min(module.kernel_size) > 1
    ]
    return found[1:] if first_is_small(model, example, share) else found


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put another module in the place of one."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def to_share(
    attempt: Callable[[float], nn.Module], model: nn.Module, example: torch.Tensor, share: float
) -> float:
    """Find the largest setting in 0..1 whose network has at most ``share`` of the MACs."""
    whole, low, high = macs_of(model, example), 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if macs_of(attempt(middle), example) > share * whole:
            high = middle
        else:
            low = middle
    return low


def cp_network(
    model: nn.Module,
    example: torch.Tensor,
    share: float,
    solve: Callable[[nn.Conv2d, int], Sequence[torch.Tensor]],
) -> nn.Module:
    """Write every convolution as a CP decomposition, its rank one share of its largest mode.

    Args:
        model: Left as it is.
        example: An input.
        share: Of the MACs that may be left.
        solve: (convolution, R) -> factors (O, R), (I, R), (Kh, R), (Kw, R).
    """

    def rank_of(conv: nn.Conv2d, ratio: float) -> int:
        return max(int(2 * ratio * max(conv.weight.shape)), 1)

    layers = windows(model, example, share)

    def bones(ratio: float) -> nn.Module:
        found = copy.deepcopy(model)
        for name, conv in layers:
            R, O, I = rank_of(conv, ratio), conv.out_channels, conv.in_channels
            (kh, kw), (sh, sw), (ph, pw) = conv.kernel_size, conv.stride, conv.padding
            chain = nn.Sequential(
                nn.Conv2d(I, R, 1, bias=False),
                nn.Conv2d(R, R, (kh, 1), (sh, 1), (ph, 0), groups=R, bias=False),
                nn.Conv2d(R, R, (1, kw), (1, sw), (0, pw), groups=R, bias=False),
                nn.Conv2d(R, O, 1, bias=conv.bias is not None),
            )
            replace(found, name, chain)
        return found

    ratio = to_share(bones, model, example, share)
    found = bones(ratio)
    for name, conv in layers:
        # As flatconv has them before training: gradients of all steps are of one size.
        out, inside, vertical, horizontal = balanced(solve(conv, rank_of(conv, ratio)))
        chain = found.get_submodule(name)
        chain[0].weight.data = inside.T[:, :, None, None].contiguous()
        chain[1].weight.data = vertical.T[:, None, :, None].contiguous()
        chain[2].weight.data = horizontal.T[:, None, None, :].contiguous()
        chain[3].weight.data = out[:, :, None, None].contiguous()
        if conv.bias is not None:
            chain[3].bias.data = conv.bias.data
    return found


def balanced(factors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Give the columns of factors (n, R) that are multiplied the same norm; their product stays."""
    norms = torch.stack([factor.norm(dim=0) for factor in factors]).clamp_min(TINY)
    mean = norms.log().mean(0).exp()
    return [factor * (mean / norm) for factor, norm in zip(factors, norms)]


def parafac_script(model: nn.Module, example: torch.Tensor, share: float, data: Data) -> nn.Module:
    """Decompose as the well-known tutorial (github.com/jacobgil) does, by parafac."""
    import tensorly
    from tensorly.decomposition import parafac

    tensorly.set_backend("pytorch")

    def solve(conv: nn.Conv2d, R: int) -> Sequence[torch.Tensor]:
        init = "svd" if max(conv.weight.shape[:2]) >= R else "random"
        return parafac(conv.weight.data, R, init=init, random_state=0)[1]

    return cp_network(model, example, share, solve)


def tensorly_torch(model: nn.Module, example: torch.Tensor, share: float, data: Data) -> nn.Module:
    """``FactorizedConv.from_conv``, CP; what it finds runs as plain convolutions."""
    from tltorch import FactorizedConv

    def solve(conv: nn.Conv2d, R: int) -> Sequence[torch.Tensor]:
        weight = FactorizedConv.from_conv(
            conv, rank=R, decompose_weights=True, factorization="cp", implementation="factorized"
        ).weight
        out, *rest = (factor.data for factor in weight.factors)
        return [out * weight.weights.data, *rest]

    return cp_network(model, example, share, solve)


class Anything(types.ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> Any:
        """Give a module of that name, if there is one, else a class that does nothing."""
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}") or type(name, (), {})


def without_torchvision() -> None:
    """Stand in for torchvision, which AIMET imports and spatial SVD does not use.

    The published one has no operators for a CPU build of torch.
    """
    for name in ("", ".ops", ".transforms", ".models", ".datasets"):
        module = Anything(f"torchvision{name}")
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        module.__path__ = []
        sys.modules[module.__name__] = module


def aimet_spatial(model: nn.Module, example: torch.Tensor, share: float, data: Data) -> nn.Module:
    """AIMET's spatial SVD: ranks chosen greedily by a score on some of the images.

    The score is the mean probability of the right class: of accuracies too many are equal, and its
    search then ends far below what it was asked for.
    """
    without_torchvision()
    from decimal import Decimal

    from aimet_torch.common.defs import CompressionScheme, CostMetric, GreedySelectionParameters
    from aimet_torch.compress import ModelCompressor
    from aimet_torch.defs import SpatialSvdParameters

    if data.labels is None:
        raise SystemExit("AIMET chooses ranks by accuracy, and random weights have none.")
    images = data.read(np.arange(min(SCORED, data.count)))
    x = torch.from_numpy(next(iter(images.values())))
    y = torch.from_numpy(data.labels[: len(x)]).long()

    @torch.no_grad()
    def score(candidate: nn.Module, iterations: int | None = None, use_cuda: bool = False) -> float:
        candidate.eval()
        logits = torch.cat([candidate(part) for part in x.split(PART)])
        return float(logits.softmax(1).gather(1, y[:, None]).mean())

    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    small = first_is_small(model, example, share)
    untouched = first_macs(model, example) if small else 0
    # It tries a tenth of each layer at the least, but at the very least score it keeps a layer
    # whole: what it cannot reach that way it does not go near.
    least = 0.2 + 0.8 * untouched / macs_of(model, example)
    target = Decimal(f"{max(share, least):.4f}")
    greedy = GreedySelectionParameters(target_comp_ratio=target, num_comp_ratio_candidates=10)
    ignored = [first] if small else []
    auto = SpatialSvdParameters.AutoModeParams(greedy, modules_to_ignore=ignored)
    parameters = SpatialSvdParameters(SpatialSvdParameters.Mode.auto, auto)
    found, _ = ModelCompressor.compress_model(
        model,
        eval_callback=score,
        eval_iterations=None,
        input_shape=tuple(example.shape),
        compress_scheme=CompressionScheme.spatial_svd,
        cost_metric=CostMetric.mac,
        parameters=parameters,
    )
    return found


def torch_pruning(model: nn.Module, example: torch.Tensor, share: float, data: Data) -> nn.Module:
    """Torch-Pruning: whole channels by group norm, over all layers, in multiples of 4."""
    import torch_pruning

    followed = projected(model)

    def attempt(kept: float) -> nn.Module:
        found = copy.deepcopy(followed)
        for parameter in found.parameters():
            parameter.requires_grad_(True)
        head = [m for m in found.modules() if isinstance(m, nn.Linear)][-1]
        torch_pruning.pruner.MagnitudePruner(
            found,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=1 - kept,
            max_pruning_ratio=0.9,
            round_to=4,
            ignored_layers=[head],
        ).step()
        return found.eval()

    return attempt(to_share(attempt, model, example, share))


def projected(model: nn.Module) -> nn.Module:
    """Write shortcuts that pad channels as 1x1 convolutions of ones and zeros.

    Which channel becomes which Torch-Pruning sees in a convolution, but not in a padding.
    """
    found = copy.deepcopy(model)
    for name, shortcut in model.named_modules():
        if isinstance(shortcut, Shortcut):
            inputs = model.get_submodule(name.rpartition(".")[0]).conv1.in_channels
            conv = nn.Conv2d(inputs, inputs + 2 * shortcut.pad, 1, stride=2, bias=False)
            nn.init.zeros_(conv.weight)
            for channel in range(inputs):
                conv.weight.data[shortcut.pad + channel, channel] = 1.0
            replace(found, name, conv)
    return found


def l1_pruning(model: nn.Module, example: torch.Tensor, share: float, data: Data) -> nn.Module:
    """Keep ``share`` of all parameters: the largest of the convolutions, over all layers."""
    found = copy.deepcopy(model)
    convs = {name: m for name, m in found.named_modules() if isinstance(m, nn.Conv2d)}
    sizes = torch.cat([m.weight.data.abs().flatten() for m in convs.values()])
    every = sum(parameter.numel() for parameter in found.parameters())
    kept = int(share * every) - (every - len(sizes))
    least = sizes.sort(descending=True).values[min(max(kept, 0), len(sizes) - 1)]
    for name, conv in convs.items():
        replace(found, name, Pruned.of(conv, conv.weight.data.abs() > least))
    return found


TOOLS: dict[str, Compress] = {
    "parafac": parafac_script,
    "tensorly-torch": tensorly_torch,
    "aimet": aimet_spatial,
    "torch-pruning": torch_pruning,
    "l1": l1_pruning,
}


@torch.no_grad()
def recalibrated(model: nn.Module, data: Data) -> nn.Module:
    """Take the statistics of BatchNorm anew, over all images: those of the original do not fit.

    Without that, no tool's network learns well in a few epochs, since training leaves them alone.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
        norm.train()
    for _, feeds in data.batches(min(BATCH, data.count)):
        model(torch.from_numpy(next(iter(feeds.values()))))
    return model.eval()


def main() -> int:
    """Write the network and ``figures.json`` into a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=tuple(TOOLS))
    parser.add_argument("--model", required=True, help="module:factory")
    parser.add_argument("--config", required=True, help="options of flatconv, as JSON")
    parser.add_argument(
        "--share", type=float, required=True, help="of the MACs (l1: of the parameters)"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--made-of", default="", help="digest of what the network follows from")
    options = parser.parse_args()
    config = converter.Options.from_json(json.loads(options.config))
    source = open_source(options.model, None, config, None)
    assert source.module is not None
    example = torch.from_numpy(next(iter(examples(source, 0, 1).values())))
    torch.manual_seed(0)
    np.random.seed(0)
    data = source.train or source.calib
    student = TOOLS[options.tool](copy.deepcopy(source.module), example, options.share, data)
    if source.calib is not None:
        student = recalibrated(student.eval(), source.calib)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.save(student, options.out / STUDENT)
    kept = sum(int(t.count_nonzero()) for t in plain(student).parameters())
    every = sum(tensor.numel() for tensor in source.module.parameters())
    figures = {"params_share": kept / every, "made_of": options.made_of}
    (options.out / "figures.json").write_text(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
