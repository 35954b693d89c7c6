"""Make one network smaller with one other tool: ``python -m scripts.peers.methods TOOL ...``.

The suite ``peers`` runs this in the virtual environment of the tool. The original is the same for
all, as are training and exporter. AIMET chooses ranks by the first 512 images, with their labels;
for all, the statistics of BatchNorm are estimated again on the images that flatconv is fitted to.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from converter.data.data import Data
from converter.models.source import examples
from sample_models.resnet_cifar import BasicBlock, Shortcut
from scripts.benchmarks.distillation import open_source
from scripts.peers.aimet import aimet_spatial
from scripts.peers.macs import first_is_small, largest_setting
from scripts.peers.pruned import MODULE, Pruned, without_masks

BATCH = 128
MIN_NORM = 1e-12
FIGURES = "figures.json"
Compress = Callable[[nn.Module, torch.Tensor, float, Data], nn.Module]


def windows(model: nn.Module, example: torch.Tensor, share: float) -> list[tuple[str, nn.Conv2d]]:
    """List the convolutions that extend over both axes, without a first one that is small."""
    convs = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and min(module.kernel_size) > 1
    ]
    return convs[1:] if first_is_small(model, example, share) else convs


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module called ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def cp_chain(conv: nn.Conv2d, R: int) -> nn.Sequential:
    """Make the layers of a CP decomposition of rank R, with random weights."""
    (kh, kw), (sh, sw), padding = conv.kernel_size, conv.stride, conv.padding
    ph, pw = padding if isinstance(padding, tuple) else (kh // 2, kw // 2)
    return nn.Sequential(
        nn.Conv2d(conv.in_channels, R, 1, bias=False),
        nn.Conv2d(R, R, (kh, 1), (sh, 1), (ph, 0), groups=R, bias=False),
        nn.Conv2d(R, R, (1, kw), (1, sw), (0, pw), groups=R, bias=False),
        nn.Conv2d(R, conv.out_channels, 1, bias=conv.bias is not None),
    )


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
        share: Share of the MACs that may be left.
        solve: (convolution, R) -> factors (O, R), (I, R), (Kh, R), (Kw, R).
    """

    def rank_of(conv: nn.Conv2d, ratio: float) -> int:
        return max(int(2 * ratio * max(conv.weight.shape)), 1)

    layers = windows(model, example, share)

    def unsolved(ratio: float) -> nn.Module:
        network = copy.deepcopy(model)
        for name, conv in layers:
            replace(network, name, cp_chain(conv, rank_of(conv, ratio)))
        return network

    ratio = largest_setting(unsolved, model, example, share)
    network = unsolved(ratio)
    for name, conv in layers:
        # As flatconv starts its training: gradients of all steps are of one size.
        out, inside, vertical, horizontal = balanced(solve(conv, rank_of(conv, ratio)))
        chain: Any = network.get_submodule(name)
        chain[0].weight.data = inside.T[:, :, None, None].contiguous()  # (R, I, 1, 1)
        chain[1].weight.data = vertical.T[:, None, :, None].contiguous()  # (R, 1, Kh, 1)
        chain[2].weight.data = horizontal.T[:, None, None, :].contiguous()  # (R, 1, 1, Kw)
        chain[3].weight.data = out[:, :, None, None].contiguous()  # (O, R, 1, 1)
        if conv.bias is not None:
            chain[3].bias.data = conv.bias.data
    return network


def balanced(factors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Give the columns of factors (n, R) of one term the same norm; their product stays."""
    norms = torch.stack([factor.norm(dim=0) for factor in factors]).clamp_min(MIN_NORM)
    mean = norms.log().mean(0).exp()
    return [factor * (mean / norm) for factor, norm in zip(factors, norms)]


def parafac_script(model: nn.Module, example: torch.Tensor, share: float, data: Data) -> nn.Module:
    """Decompose by parafac, as the well-known tutorial (github.com/jacobgil) does."""
    import tensorly
    from tensorly.decomposition import parafac

    def solve(conv: nn.Conv2d, R: int) -> Sequence[torch.Tensor]:
        init = "svd" if max(conv.weight.shape[:2]) >= R else "random"
        factors: Sequence[torch.Tensor] = parafac(conv.weight.data, R, init=init, random_state=0)[1]
        return factors

    with tensorly.backend_context("pytorch"):
        return cp_network(model, example, share, solve)


def tensorly_torch(model: nn.Module, example: torch.Tensor, share: float, data: Data) -> nn.Module:
    """Decompose by ``FactorizedConv.from_conv``, CP; the result runs as plain convolutions."""
    from tltorch import FactorizedConv

    def solve(conv: nn.Conv2d, R: int) -> Sequence[torch.Tensor]:
        weight = FactorizedConv.from_conv(
            conv, rank=R, decompose_weights=True, factorization="cp", implementation="factorized"
        ).weight
        out, *rest = (factor.data for factor in weight.factors)
        return [out * weight.weights.data, *rest]

    return cp_network(model, example, share, solve)


def torch_pruning(model: nn.Module, example: torch.Tensor, share: float, data: Data) -> nn.Module:
    """Remove whole channels by group norm, over all layers, in multiples of 4."""
    import torch_pruning

    traceable = with_projections(model).requires_grad_(True)

    def attempt(kept: float) -> nn.Module:
        network = copy.deepcopy(traceable)
        head = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
        torch_pruning.pruner.MagnitudePruner(
            network,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            global_pruning=True,
            pruning_ratio=1 - kept,
            max_pruning_ratio=0.9,
            round_to=4,
            ignored_layers=[head],
        ).step()
        return network.eval()

    return attempt(largest_setting(attempt, model, example, share))


def with_projections(model: nn.Module) -> nn.Module:
    """Write shortcuts that pad channels as 1x1 convolutions of ones and zeros.

    Torch-Pruning follows channels through a convolution, but not through a padding.
    """
    network = copy.deepcopy(model)
    for name, shortcut in model.named_modules():
        if isinstance(shortcut, Shortcut):
            block = model.get_submodule(name.rpartition(".")[0])
            assert isinstance(block, BasicBlock)
            inputs = block.conv1.in_channels
            conv = nn.Conv2d(inputs, inputs + 2 * shortcut.pad, 1, stride=2, bias=False)
            nn.init.zeros_(conv.weight)
            for channel in range(inputs):
                conv.weight.data[shortcut.pad + channel, channel] = 1.0
            replace(network, name, conv)
    return network


def l1_pruning(model: nn.Module, example: torch.Tensor, share: float, data: Data) -> nn.Module:
    """Keep ``share`` of all parameters: the largest of the convolutions, over all layers."""
    network = copy.deepcopy(model)
    convs = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    sizes = torch.cat([m.weight.data.abs().flatten() for m in convs.values()])
    others = sum(parameter.numel() for parameter in network.parameters()) - len(sizes)
    kept = int(share * (others + len(sizes))) - others
    threshold = sizes.sort(descending=True).values[min(max(kept, 0), len(sizes) - 1)]
    for name, conv in convs.items():
        replace(network, name, Pruned.of(conv, conv.weight.data.abs() > threshold))
    return network


TOOLS: dict[str, Compress] = {
    "parafac": parafac_script,
    "tensorly-torch": tensorly_torch,
    "aimet": aimet_spatial,
    "torch-pruning": torch_pruning,
    "l1": l1_pruning,
}


@torch.no_grad()
def recalibrated(model: nn.Module, data: Data) -> nn.Module:
    """Estimate the statistics of BatchNorm again, over all images.

    The original's do not fit; training leaves them alone, and no tool's network would learn well.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # the mean of all batches
            module.train()
    for _, feeds in data.batches(min(BATCH, data.count)):
        model(torch.from_numpy(next(iter(feeds.values()))))
    return model.eval()


def main() -> int:
    """Write the network and its share of parameters into a folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("tool", choices=tuple(TOOLS))
    parser.add_argument("--model", required=True, help="module:factory")
    parser.add_argument("--options", required=True, help="options of flatconv, as JSON")
    parser.add_argument("--share", type=float, required=True, help="of MACs (l1: of parameters)")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    source = open_source(arguments.model, **json.loads(arguments.options))
    data = source.train or source.calib
    assert source.module is not None and data is not None
    example = torch.from_numpy(next(iter(examples(source, 0, 1).values())))
    torch.manual_seed(0)
    np.random.seed(0)
    compress = TOOLS[arguments.tool]
    network = compress(copy.deepcopy(source.module), example, arguments.share, data)
    if source.calib is not None:
        network = recalibrated(network.eval(), source.calib)
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.save(network, arguments.out / MODULE)
    kept = sum(int(t.count_nonzero()) for t in without_masks(network).parameters())
    count = sum(tensor.numel() for tensor in source.module.parameters())
    (arguments.out / FIGURES).write_text(json.dumps({"params_share": kept / count}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
