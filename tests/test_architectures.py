"""Whole networks of each kind, from a torch model through calibration to ONNX and back."""

import pytest
import torch
from conv_cases import difference
from networks import noise
from torch import nn

import converter
from converter.errors import ConverterError
from converter.graph.network import open_session
from converter.runtime.ort import run


class Net1d(nn.Module):
    """A classifier of signals."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv1d(2, 16, 9, stride=2, padding=4, padding_mode="replicate")
        self.norm = nn.BatchNorm1d(16)
        self.second = nn.Conv1d(16, 16, 5, padding=2)
        self.head = nn.Linear(16, 32)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.second(x)).mean(2))


class UNet(nn.Module):
    """Down and up again, with a shortcut; over two or three axes."""

    def __init__(self, axes):
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[axes]
        up = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[axes]
        norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[axes]
        self.into = conv(1, 8, 3, padding=1)
        self.down = conv(8, 16, 3, stride=2, padding=1)
        self.norm = norm(16, affine=True)
        self.up = up(16, 8, 4, stride=2, padding=1)
        self.out = conv(16, 2, 3, padding=1)

    def forward(self, x):
        wide = torch.relu(self.into(x))
        deep = torch.relu(self.norm(self.down(wide)))
        return self.out(torch.cat([wide, torch.relu(self.up(deep))], 1))


def unet2d():
    return UNet(2)


def unet3d():
    return UNet(3)


class Mobile(nn.Module):
    """Depthwise filters between pointwise ones."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depth = nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.point = nn.Conv2d(16, 16, 1)

    def forward(self, x):
        return self.point(torch.relu(self.depth(torch.relu(self.stem(x)))))


NETWORKS = {
    "signals": (Net1d, (2, 64), {"first", "second", "head"}, ("channel", "head=channel")),
    "images": (unet2d, (1, 16, 16), {"into", "down", "up", "out"}, ("spatial",)),
    "volumes": (unet3d, (1, 8, 8, 8), {"into", "down", "up", "out"}, ("spatial",)),
    "depthwise": (Mobile, (3, 16, 16), {"stem", "depth"}, ("spatial",)),
}


def convert(name, rank, calib=False):
    build, shape, layers, form = NETWORKS[name]
    torch.manual_seed(0)
    model = build().eval()
    x = noise(64, *shape).cumsum(-1)
    options = {"form": form, "rank": (rank,)}
    result = converter.convert(model, x[:1], calib=x if calib else None, **options)
    assert set(result.plan.chosen()) == layers
    assert result.report.met
    return model, result, x[:4]


@pytest.mark.parametrize("name", NETWORKS)
def test_at_full_rank_nothing_changes(name):
    model, result, x = convert(name, "99999", calib=True)
    with torch.no_grad():
        wanted, copied = (m(torch.from_numpy(x)).numpy() for m in (model, result.model))
    session = open_session(result.report.verified.converted.network)
    (found,) = run(session, {session.get_inputs()[0].name: x}).values()
    assert difference(copied, wanted) < 1e-4
    assert difference(found, wanted) < 1e-4


@pytest.mark.parametrize("name", ["signals", "volumes"])
def test_layers_are_solved_for_what_they_see(name, tmp_path):
    model, result, x = convert(name, "0.4", calib=True)
    _, blind, _ = convert(name, "0.4")
    with torch.no_grad():
        wanted, seen, unseen = (
            m(torch.from_numpy(x)).numpy() for m in (model, result.model, blind.model)
        )
    assert difference(seen, wanted) < difference(unseen, wanted)
    assert result.comparison.converted.macs < result.comparison.original.macs
    result.save(tmp_path / "out")
    with torch.no_grad():
        loaded = converter.load(tmp_path / "out")(torch.from_numpy(x)).numpy()
    assert difference(loaded, seen) < 1e-5


def test_a_rank_that_a_volume_cannot_take_is_refused():
    with pytest.raises(ConverterError, match="has 3 parts; spatial takes 2"):
        convert("volumes", "2,2,2")
