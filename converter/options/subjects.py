"""The options by subject: small frozen dataclasses whose fields are the command-line options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from cyclopts import Parameter

from converter.options.parsing import (
    InputShape,
    LayerForm,
    OutputTask,
    above_one,
    bounded,
    each_value,
    fraction,
    one_value,
    parse_floats,
    parse_input_shape,
    parse_json_object,
    parse_task,
    positive,
    without_zero,
)

# Text on the command line; in Python also arrays, tensors and loaders.
DataSource: TypeAlias = Any
MAX_THREADS = max(64, os.cpu_count() or 1)
Count = Annotated[int, Parameter(validator=bounded(gte=1))]
MaybeCount = Annotated[int | None, Parameter(validator=bounded(gte=1))]
Natural = Annotated[int, Parameter(validator=bounded(gte=0))]
Names = Annotated[tuple[str, ...], each_value(str)]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How the network is read.

    Attributes:
        checkpoint: Weights for a factory: .pt, .pth, .ckpt, .th, .tar or .safetensors.
        factory_args: Keyword arguments of the factory, as JSON.
        state_key: Which state dict of the checkpoint to take, such as ema.state_dict; the one that
            fits the model if left out.
        trust_pickle: Unpickle whole modules; this runs code from the file.
        input_shape: Shape of an input, [NAME:]1,3,32,32. Repeat it for every input. Repeat it for
            several shapes of one input; all of them are timed.
    """

    checkpoint: Path | None = None
    factory_args: Annotated[Mapping[str, Any], one_value(parse_json_object)] = field(
        default_factory=dict
    )
    state_key: str = ""
    trust_pickle: bool = False
    input_shape: Annotated[tuple[InputShape, ...], each_value(parse_input_shape)] = ()


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Inputs for solving layers and for scoring networks.

    Attributes:
        calib: Unlabelled sample inputs: .npz, .npy, .pt, a folder of images, or module:function.
        samples: How many of the sample inputs are used (a seeded choice).
        eval: Labelled inputs for accuracy: .npz with x and y, or a folder of images by class.
        task: What an output means, [OUTPUT=]classify, label, detect, embed or regress. Found from
            the network and the labels if left out. Repeat it for several outputs.
    """

    calib: DataSource = None
    samples: Count = 1024
    eval: DataSource = None
    task: Annotated[tuple[OutputTask, ...], each_value(parse_task)] = ()


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Preprocessing of uint8 images.

    Attributes:
        mean: Means for uint8 images scaled to 0..1, as 0.485,0.456,0.406.
        std: Standard deviations for uint8 images, as 0.229,0.224,0.225.
        resize: Resize the short side of each image file to this many pixels.
        crop: Cut this square out of the middle of each image file.
        channels: Order of the colour channels that the network expects.
        layout: Axis order that the network expects of images.
    """

    mean: Annotated[tuple[float, ...], one_value(parse_floats)] = ()
    std: Annotated[tuple[float, ...], one_value(parse_floats, validator=without_zero)] = ()
    resize: MaybeCount = None
    crop: MaybeCount = None
    channels: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """Limits on loss, time, MACs and size; several limits hold together.

    Attributes:
        max_drop: What may be lost, a fraction (0.005): of the accuracy, or of what --task counts.
            Estimated on inputs that no layer is fitted to; needs --calib, but no labels.
        drop_type: Whether --max-drop is absolute, or relative to the original's accuracy.
        max_error: RMS error over standard deviation that the worst channel of the outputs may have.
        target_speedup: How much faster the network must become.
        max_macs: Share of the original's multiply-accumulates that may be left (0.43).
        max_bytes: Size of the ONNX file that may be left: a share of the original's (0.5), or a
            number of bytes (500000).
    """

    max_drop: Annotated[float | None, Parameter(validator=fraction)] = None
    drop_type: Literal["absolute", "relative"] = "absolute"
    max_error: Annotated[float | None, Parameter(validator=positive)] = None
    target_speedup: Annotated[float | None, Parameter(validator=above_one)] = None
    max_macs: Annotated[float | None, Parameter(validator=fraction)] = None
    max_bytes: Annotated[float | None, Parameter(validator=positive)] = None


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """Choices by hand.

    Attributes:
        form: Form of all layers, or LAYER=FORM; repeatable.
        stages: How often lvh filters in a row; 2 as in the networks of its paper.
        rank: Rank of all layers (16, 0.5, or 0.5,0.5 for tucker), or LAYER=RANK; repeatable.
        only: Convert only these layers (names or patterns such as layer3.*); repeatable.
        keep: Leave these layers alone (names or patterns); repeatable.
        plan: Replay this plan.json.
        layers: In Python, form and rank by layer name or pattern; None keeps a layer.
    """

    form: Names = ()
    stages: Literal[1, 2] = 1
    rank: Names = ()
    only: Names = ()
    keep: Names = ()
    plan: Path | None = None
    layers: Annotated[Mapping[str, LayerForm | None], Parameter(parse=False)] = field(
        default_factory=dict
    )

    @property
    def forms(self) -> tuple[str, ...]:
        """The texts of ``form``, with lvh in ``stages`` stages."""
        parts = (text.rpartition("=") for text in self.form)
        twice = self.stages > 1
        return tuple(a + b + ("lvh2" if twice and c == "lvh" else c) for a, b, c in parts)

    @property
    def manual(self) -> bool:
        """Whether forms, ranks or a plan are chosen by hand."""
        return bool(self.form or self.rank or self.plan or self.layers)


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How layers are solved and forms are chosen.

    Attributes:
        solver: What decomposes a kernel: flatconv's own solvers, tensorly alone, or flatconv's
            started from tensorly's result.
        correct: Solve each layer again for the inputs that the converted layers before it give
            (needs --calib).
        int8: Also quantize with onnxruntime (needs --calib). Forms are chosen by their times in
            int8, and budgets hold for the converted int8 network.
        latency: Times of the layers that flatconv measure took on the target machine.
        frontier: Also build networks for other budgets, and draw speedup over loss.
    """

    solver: Literal["flatconv", "tensorly", "tensorly+refine"] = "flatconv"
    correct: Annotated[bool, Parameter(negative="--no-correct")] = True
    int8: bool = False
    latency: Path | None = None
    frontier: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Fine-tuning by distillation.

    Attributes:
        train: Training inputs, labelled or not: .npz, a folder of images, or module:function,
            which may return a torch DataLoader.
        epochs: Epochs of distillation; 0 for none.
        reconstruct: Epochs before distillation in which each layer learns the outputs of the
            original layer.
        schedule: Convert and fine-tune in this many steps, each with its part of the budget.
        labels: Use the labels of the training inputs, if they have any.
        loss: module:function, called as loss(outputs, originals, labels), instead of distillation.
        lr: Highest learning rate; it is lowered after an epoch that makes the network worse.
        train_batch: Examples in a step.
        accumulate: Compute each batch in this many parts, to save memory.
        precision: Precision of the activations in training. bfloat16 is used only if the device
            has it and training in it lowers the loss.
        augment: Shift training images at random and flip them, only shift them, or neither.
        workers: Processes that read the training inputs.
        resume: Continue a fine-tuning that was interrupted.
    """

    train: DataSource = None
    epochs: Annotated[int, Parameter(name=["--finetune", "--epochs"], validator=bounded(gte=0))] = 0
    reconstruct: Natural = 0
    schedule: Count = 1
    labels: Annotated[bool, Parameter(negative="--no-labels")] = True
    loss: str | None = None
    lr: Annotated[float, Parameter(validator=positive)] = 1e-3
    train_batch: Count = 128
    accumulate: Count = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    augment: Literal["flip", "shift", "none"] = "flip"
    workers: Natural = 0
    resume: bool = False

    @property
    def trains(self) -> bool:
        """Whether the converted network is trained."""
        return bool(self.epochs or self.reconstruct)


@dataclass(frozen=True, kw_only=True)
class TimingOptions:
    """How networks are timed.

    Attributes:
        threads: Threads of the runtime.
        provider: Execution provider of onnxruntime; CPUExecutionProvider if left out.
        batch_size: Batch size when timing; that of the input shape if left out.
    """

    threads: Annotated[int, Parameter(validator=bounded(gte=1, lte=MAX_THREADS))] = 1
    provider: str | None = None
    batch_size: MaybeCount = None


@dataclass(frozen=True, kw_only=True)
class ResourceOptions:
    """Resources of the conversion.

    Attributes:
        memory: GiB for calibration and solving, approximately. With less, fewer images are used,
            and wide layers are solved for coarser statistics.
        cache: Keep solved layers and use them again ($FLATCONV_CACHE, else the user's cache).
        cluster: Address of a Dask scheduler whose workers, of one thread each, solve layers
            (tcp://host:8786); the cores of this machine if left out.
        device: Where fine-tuning runs: cpu, cuda, cuda:1.
        seed: Seed of every random choice; a replayed plan brings its own.
    """

    memory: Annotated[float, Parameter(validator=positive)] = 2.0
    cache: Annotated[bool, Parameter(negative="--no-cache")] = True
    cluster: str | None = None
    device: str = "cpu"
    seed: Natural = 0

    def cache_folder(self) -> Path | None:
        """Return the folder of results on disk, or None without one."""
        if not self.cache:
            return None
        import platformdirs

        named = os.environ.get("FLATCONV_CACHE")
        return Path(named) if named else platformdirs.user_cache_path("flatconv")
