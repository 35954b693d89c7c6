"""The networks that suites convert, each with the options that describe it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from scripts.benchmarks.results import ROOT
from scripts.benchmarks.suite import Settings

SAMPLES = ROOT / "sample_models"
SAMPLE_CHECKPOINT = SAMPLES / "paper_cifar10.safetensors"
CALIB, EVAL = SAMPLES / "cifar10_calib.npz", SAMPLES / "cifar10_eval.npz"
CALIB_COUNT = 2048
RESNET_IMAGES = {"mean": "0.485,0.456,0.406", "std": "0.229,0.224,0.225"}


@dataclass(frozen=True)
class Network:
    """A network by its factory, and the options that go with it.

    Attributes:
        model: ``module:factory``.
        options: By flat name, without data.
    """

    model: str
    options: dict[str, Any]

    def on(self, settings: Settings) -> dict[str, Any]:
        """Give the options, with CIFAR-10: 2,048 training images, and the whole test set."""
        return self.options | {
            "calib": str(settings.data / "train.npz"),
            "samples": CALIB_COUNT,
            "eval": str(settings.data / "test.npz"),
        }


SAMPLE = Network("sample_models.paper_cifar10:build", {"checkpoint": SAMPLE_CHECKPOINT})


def cifar_resnet(depth: int, settings: Settings) -> Network:
    """Give a CIFAR-10 ResNet with public weights (github.com/akamaster/pytorch_resnet_cifar10).

    Raises:
        SystemExit: When its checkpoint is not there.
    """
    checkpoint = next(settings.checkpoints.glob(f"resnet{depth}-*.th"), None)
    if checkpoint is None:
        raise SystemExit(
            f"{settings.checkpoints} holds no resnet{depth}-*.th; name the folder by --checkpoints."
        )
    options = {"checkpoint": checkpoint, "input_shape": ("1,3,32,32",), **RESNET_IMAGES}
    return Network(f"sample_models.resnet_cifar:resnet{depth}", options)


def images(path: Path) -> np.ndarray:
    """Read images (N, H, W, C) of bytes as (N, C, H, W) in 0..1."""
    with np.load(path) as data:
        return np.ascontiguousarray(data["x"].transpose(0, 3, 1, 2), np.float32) / 255


def noise(*shape: int) -> np.ndarray:
    """Make inputs of normally distributed numbers, the same each time."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@dataclass(frozen=True)
class Architecture:
    """A public architecture with random weights.

    Attributes:
        make: Builds the module.
        shape: Shape of one input.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def build(self) -> nn.Module:
        """Build the module, with the same weights each time."""
        torch.manual_seed(0)
        return self.make().eval()


def _pytorchcv(name: str, shape: tuple[int, ...], **options: Any) -> Architecture:
    def make() -> nn.Module:
        from pytorchcv.model_provider import get_model

        module: nn.Module = get_model(name, pretrained=False, **options)
        return module

    return Architecture(make, shape)


def _monai(name: str, shape: tuple[int, ...], **options: Any) -> Architecture:
    def make() -> nn.Module:
        from monai.networks import nets

        module: nn.Module = getattr(nets, name)(**options)
        return module

    return Architecture(make, shape)


IMAGE = (1, 3, 224, 224)
_VIDEO = {"spatial_dims": 3, "n_input_channels": 3, "num_classes": 400}
_ECG = {"spatial_dims": 1, "n_input_channels": 12, "num_classes": 9}
ZOO: dict[str, Architecture] = {
    "AlexNet": _pytorchcv("alexnet", IMAGE),
    "VGG-16": _pytorchcv("vgg16", IMAGE),
    "ResNet-18": _pytorchcv("resnet18", IMAGE),
    "ResNet-50": _pytorchcv("resnet50", IMAGE),
    "DenseNet-121": _pytorchcv("densenet121", IMAGE),
    "Inception-v3": _pytorchcv("inceptionv3", (1, 3, 299, 299)),
    "SqueezeNet 1.1": _pytorchcv("squeezenet_v1_1", IMAGE),
    "MobileNet": _pytorchcv("mobilenet_w1", IMAGE),
    "WRN-16-10": _pytorchcv("wrn16_10_cifar10", (1, 3, 32, 32)),
    "FCN-8s (ResNet-D-50b)": _pytorchcv("fcn8sd_resnetd50b_voc", (1, 3, 320, 320), aux=False),
    "U-Net": _monai("BasicUNet", (1, 3, 256, 256), spatial_dims=2, in_channels=3, out_channels=2),
    "3-D U-Net": _monai(
        "BasicUNet", (1, 1, 48, 48, 48), spatial_dims=3, in_channels=1, out_channels=2
    ),
    "video ResNet-18": _monai("resnet18", (1, 3, 16, 112, 112), **_VIDEO),
    "1-D ResNet-18": _monai("resnet18", (1, 12, 4096), **_ECG),
}


def resnet18() -> nn.Module:
    """Build ResNet-18 with random weights; a factory for the command line."""
    return ZOO["ResNet-18"].build()
