"""A torch model with every geometry and padding mode, for several test files."""

import numpy as np
import torch
from torch import nn

X = np.random.default_rng(0).standard_normal((3, 4, 9, 8)).astype(np.float32)
FEEDS = {"x": X[:1]}


class Branches(nn.Module):
    """Every geometry and padding mode once, each with an output of its own."""

    def __init__(self):
        """Make the branches."""
        super().__init__()
        self.branches = nn.ModuleDict(
            {
                "plain": nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)),
                "valid": nn.Sequential(nn.Conv2d(4, 6, (2, 3), padding="valid", bias=False)),
                "strided": nn.Sequential(nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 2))),
                "dilated": nn.Sequential(nn.Conv2d(4, 6, 3, dilation=(2, 1), padding=2)),
                "grouped": nn.Sequential(nn.Conv2d(4, 6, (3, 2), padding=1, groups=2)),
                "reflect": nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")),
                "replicate": nn.Sequential(
                    nn.Conv2d(4, 6, (3, 5), padding=(1, 2), padding_mode="replicate")
                ),
                "circular": nn.Sequential(
                    nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="circular")
                ),
                "same": nn.Sequential(nn.Conv2d(4, 6, (4, 2), padding="same")),
                "same_circular": nn.Sequential(
                    nn.Conv2d(4, 6, (2, 4), padding="same", padding_mode="circular")
                ),
                "normed": nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)),
                "dead": nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)),
            }
        )

    def forward(self, x):
        """Run every branch on ``x``."""
        return {name: branch(x) for name, branch in self.branches.items()}


def make_branches():
    """``Branches`` in training mode, its norms unlike the identity, one scale zero."""
    torch.manual_seed(0)
    made = Branches()
    with torch.no_grad():
        for name in ("normed", "dead"):
            norm = made.branches[name][1]
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                tensor.copy_(torch.randn(6))
            norm.running_var.copy_(torch.rand(6) + 0.5)
        made.branches["dead"][1].weight[2] = 0
    return made.train()
