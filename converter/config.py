"""The options of a conversion: one frozen dataclass, whose fields make the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from converter.errors import ConverterError


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Options of ``flatconv convert`` and ``converter.convert``.

    Attributes:
        checkpoint: Weights for a factory: .pt, .pth, .th, .tar or .safetensors.
        factory_args: Keyword arguments of the factory, as JSON.
        trust_pickle: Unpickle whole modules; this runs code from the file.
        input_shape: Shape of an input, [NAME:]1,3,32,32; repeatable, once per input.
        calib: Unlabelled sample inputs: .npz, folder of images, or module:function.
        samples: How many of the calibration inputs are used (a seeded choice).
        eval: Labelled inputs for accuracy: .npz with x and y, or a folder of images by class.
        form: Form of all layers, or LAYER=FORM; repeatable.
        rank: Rank of all layers (16, 0.5, or 0.5,0.5 for tucker), or LAYER=RANK; repeatable.
        only: Convert only these layers (names or patterns such as layer3.*); repeatable.
        keep: Leave these layers alone (names or patterns); repeatable.
        plan: Replay this plan.json.
        finetune: Epochs of distillation after the conversion; 0 for none.
        train: Training inputs for --finetune, labelled or not.
        lr: Highest learning rate of the fine-tuning.
        threads: Threads of onnxruntime when timing.
        provider: Execution provider of onnxruntime when timing.
        batch_size: Batch size when timing.
        mean: Means for uint8 images scaled to 0..1, as 0.485,0.456,0.406.
        std: Standard deviations for uint8 images, as 0.229,0.224,0.225.
        resize: Resize the short side of each image file to this many pixels.
        crop: Cut this square out of the middle of each image file.
        channels: Order of the colour channels that the network expects.
        layout: Axis order that the network expects of images.
        device: Where fine-tuning runs: cpu, cuda, cuda:1.
        seed: Seed of every random choice.

    Raises:
        ConverterError: When a value is out of range.
    """

    checkpoint: Path | None = None
    factory_args: str = "{}"
    trust_pickle: bool = False
    input_shape: tuple[str, ...] = ()
    calib: str | None = None
    samples: int = 1024
    eval: str | None = None
    form: tuple[str, ...] = ()
    rank: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    plan: Path | None = None
    finetune: int = 0
    train: str | None = None
    lr: float = 1e-3
    threads: int = 1
    provider: str = "CPUExecutionProvider"
    batch_size: int = 1
    mean: str | None = None
    std: str | None = None
    resize: int | None = None
    crop: int | None = None
    channels: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (("samples", 1), ("threads", 1), ("batch_size", 1), ("finetune", 0)):
            if getattr(self, name) < least:
                option = name.replace("_", "-")
                raise ConverterError(f"--{option} must be at least {least}.")
        if not self.lr > 0:
            raise ConverterError("--lr must be above 0.")
        if self.finetune and not (self.train or self.calib):
            raise ConverterError("--finetune needs inputs to train on; give --train.")

    @property
    def manual(self) -> bool:
        """Whether the user chose forms, ranks or a plan by hand."""
        return bool(self.form or self.rank or self.plan)
