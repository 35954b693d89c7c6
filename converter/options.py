"""The options of a conversion: one frozen dataclass, whose fields make the command line."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from converter.errors import ConverterError

BUDGETS = ("max_drop", "max_error", "target_speedup", "max_macs")


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Options of ``flatconv convert`` and ``converter.convert``.

    Attributes:
        checkpoint: Weights for a factory: .pt, .pth, .th, .tar or .safetensors.
        factory_args: Keyword arguments of the factory, as JSON.
        trust_pickle: Unpickle whole modules; this runs code from the file.
        input_shape: Shape of an input, [NAME:]1,3,32,32; repeatable: every input, and several
            shapes of one, which are all timed.
        calib: Unlabelled sample inputs: .npz, folder of images, or module:function.
        samples: How many of the calibration inputs are used (a seeded choice).
        eval: Labelled inputs for accuracy: .npz with x and y, or a folder of images by class.
        correct: Solve each layer again on what the converted layers before it give (needs --calib).
        memory: GiB that calibration and solving may take, roughly; with less, fewer images are
            used, and wide layers are solved for coarser statistics.
        cache: Keep what was solved, and use it again ($FLATCONV_CACHE, else the user's cache).
        cluster: Address of a Dask scheduler whose workers, of one thread each, solve layers
            (tcp://host:8786); the cores of this machine if left out.
        form: Form of all layers, or LAYER=FORM; repeatable.
        stages: How often lvh filters in a row; 2 as in the networks of its paper.
        rank: Rank of all layers (16, 0.5, or 0.5,0.5 for tucker), or LAYER=RANK; repeatable.
        only: Convert only these layers (names or patterns such as layer3.*); repeatable.
        keep: Leave these layers alone (names or patterns); repeatable.
        plan: Replay this plan.json.
        max_drop: Accuracy that may be lost, a fraction (0.005); without labels it is estimated
            on sample inputs that nothing is fitted to (needs --calib).
        drop_type: Whether --max-drop is absolute, or relative to the original's accuracy.
        max_error: Relative output error that may be made, of the worst output; needs no labels.
        target_speedup: How much faster the network must become; it loses as little as it can.
        max_macs: Share of the original's multiply-accumulates that may be left (0.43).
        latency: Times of the layers that flatconv measure took on the target machine.
        int8: Also quantize, by onnxruntime (needs --calib): forms are chosen by their times in
            int8, and budgets hold for the flattened int8 network.
        frontier: Also build networks for other budgets, and draw speedup over loss.
        finetune: Epochs of distillation after the conversion; 0 for none.
        reconstruct: Epochs before it that teach each layer to give what it gave in the original.
        schedule: Convert and fine-tune in so many steps, each with its part of the budget.
        train: Training inputs, labelled or not: .npz, folder of images, or module:function, which
            may give a torch DataLoader.
        labels: Use the labels of the training inputs, if they have any.
        loss: module:function, called as loss(outputs, originals, labels), instead of distillation.
        lr: Highest learning rate of the fine-tuning; it is lowered where an epoch does harm.
        train_batch: Examples a step.
        accumulate: Compute each batch in so many parts, to save memory.
        precision: Of the activations in training; bfloat16 only where the device has it, and only
            where the network learns in it.
        augment: Shift training images at random and flip them, only shift them, or neither.
        workers: Processes that read the training inputs.
        resume: Go on with a fine-tuning that was interrupted.
        threads: Threads of onnxruntime when timing.
        provider: Execution provider of onnxruntime when timing.
        batch_size: Batch size when timing; that of the input shape if left out.
        mean: Means for uint8 images scaled to 0..1, as 0.485,0.456,0.406.
        std: Standard deviations for uint8 images, as 0.229,0.224,0.225.
        resize: Resize the short side of each image file to this many pixels.
        crop: Cut this square out of the middle of each image file.
        channels: Order of the colour channels that the network expects.
        layout: Axis order that the network expects of images.
        device: Where fine-tuning runs: cpu, cuda, cuda:1.
        seed: Seed of every random choice; a replayed plan brings its own.

    Raises:
        ConverterError: When a value is out of range, or two options contradict each other.
    """

    checkpoint: Path | None = None
    factory_args: str = "{}"
    trust_pickle: bool = False
    input_shape: tuple[str, ...] = ()
    calib: str | None = None
    samples: int = 1024
    eval: str | None = None
    correct: bool = True
    memory: float = 2.0
    cache: bool = True
    cluster: str | None = None
    form: tuple[str, ...] = ()
    stages: Literal[1, 2] = 1
    rank: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    plan: Path | None = None
    max_drop: float | None = None
    drop_type: Literal["absolute", "relative"] = "absolute"
    max_error: float | None = None
    target_speedup: float | None = None
    max_macs: float | None = None
    latency: Path | None = None
    frontier: bool = False
    int8: bool = False
    finetune: int = 0
    reconstruct: int = 0
    schedule: int = 1
    train: str | None = None
    labels: bool = True
    loss: str | None = None
    lr: float = 1e-3
    train_batch: int = 128
    accumulate: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    augment: Literal["flip", "shift", "none"] = "flip"
    workers: int = 0
    resume: bool = False
    threads: int = 1
    provider: str = "CPUExecutionProvider"
    batch_size: int | None = None
    mean: str | None = None
    std: str | None = None
    resize: int | None = None
    crop: int | None = None
    channels: Literal["rgb", "bgr"] = "rgb"
    layout: Literal["nchw", "nhwc"] = "nchw"
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        """Take paths as text and single values for several, and check the ranges."""
        for name, kind in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _meant(getattr(self, name), kind))
        ranges = {"samples": 1, "threads": 1, "batch_size": 1, "resize": 1, "crop": 1}
        ranges |= {"finetune": 0, "reconstruct": 0, "schedule": 1, "train_batch": 1}
        ranges |= {"accumulate": 1, "workers": 0, "seed": 0}
        for name, least in ranges.items():
            if (value := getattr(self, name)) is not None and value < least:
                option = name.replace("_", "-")
                raise ConverterError(f"--{option} must be at least {least}.")
        if self.threads > (most := max(64, os.cpu_count() or 1)):
            raise ConverterError(f"--threads must be at most {most} here.")
        if self.stages not in (1, 2):
            raise ConverterError("--stages must be 1 or 2.")
        if self.stages > 1 and not any(text.rpartition("=")[2] == "lvh" for text in self.form):
            raise ConverterError("--stages is of --form lvh.")
        if self.plan and (self.form or self.rank or self.only or self.keep):
            raise ConverterError(
                "--plan says what happens to each layer; leave out --form, --rank, --only and "
                "--keep, or edit the plan."
            )
        if self.schedule > 1 and not (self.budget and self.finetune >= self.schedule):
            raise ConverterError(
                "--schedule needs a budget (--max-macs, say) and --finetune, an epoch or more a "
                "step."
            )
        if self.resume and not (self.cache and self.trains):
            raise ConverterError("--resume needs --finetune or --reconstruct, and the cache.")
        if self.budget and self.manual:
            raise ConverterError(
                "A budget chooses forms and ranks; leave out --form, --rank and --plan, or "
                f"{', '.join('--' + name.replace('_', '-') for name in self.budget)}."
            )
        bounds = {"max_drop": 1.0, "max_error": math.inf, "max_macs": 1.0}
        for name in bounds.keys() & self.budget:
            if not 0 < self.budget[name] < bounds[name]:
                upper = "" if bounds[name] == math.inf else f" and below {bounds[name]:g}"
                raise ConverterError(f"--{name.replace('_', '-')} must be above 0{upper}.")
        if self.target_speedup is not None and not 1 < self.target_speedup < math.inf:
            raise ConverterError("--target-speedup must be above 1.")
        if not 0 < self.memory < math.inf:
            raise ConverterError("--memory must be a number of GiB above 0.")
        if not 0 < self.lr < math.inf:
            raise ConverterError("--lr must be a number above 0.")

    def to_json(self) -> dict[str, Any]:
        """Write the options as JSON values, paths absolute; ``from_json`` is the inverse."""
        found = {}
        for name, value in asdict(self).items():
            is_data = name in ("calib", "eval", "train") and value and Path(value).exists()
            if value is not None:
                is_path = is_data or isinstance(value, Path)
                found[name] = str(Path(value).resolve()) if is_path else value
        return found

    @classmethod
    def from_json(cls, values: object) -> ConvertConfig:
        """Read what ``to_json`` wrote.

        Raises:
            ConverterError: When an option is unknown, of another type, or out of range.
        """
        if not isinstance(values, dict):
            raise ConverterError("It records no options.")
        types = get_type_hints(cls)
        for name, value in values.items():
            if name not in types or not _fits(value, types[name]):
                raise ConverterError(f"It records {value!r} for the option {name!r}.")
        return cls(**values)

    def cache_folder(self) -> Path | None:
        """Where solved layers are kept; None where they are not."""
        if not self.cache:
            return None
        import platformdirs  # shapes are read where it is not installed

        named = os.environ.get("FLATCONV_CACHE")
        return Path(named) if named else platformdirs.user_cache_path("flatconv")

    @property
    def budget(self) -> dict[str, float]:
        """What the user asked for, by option."""
        return {name: getattr(self, name) for name in BUDGETS if getattr(self, name) is not None}

    @property
    def trains(self) -> bool:
        """Whether the converted network is trained."""
        return bool(self.finetune or self.reconstruct)

    @property
    def forms(self) -> tuple[str, ...]:
        """What the user chose by ``form`` and ``stages``."""
        found = (text.rpartition("=") for text in self.form)
        twice = self.stages > 1
        return tuple(a + b + ("lvh2" if twice and c == "lvh" else c) for a, b, c in found)

    @property
    def manual(self) -> bool:
        """Whether the user chose forms, ranks or a plan by hand."""
        return bool(self.form or self.rank or self.plan)


def _meant(value: Any, kind: Any) -> Any:
    """Turn a path, a text or a sequence into what a field of type ``kind`` holds."""
    if get_origin(kind) is tuple:
        several = value if isinstance(value, list | tuple) else (value,)
        return tuple(str(item) for item in several if item != "")
    if isinstance(value, str) and Path in get_args(kind):
        return Path(value) if value else None
    return str(value) if isinstance(value, Path) and str in get_args(kind) else value


def _fits(value: object, kind: Any) -> bool:
    """Tell whether a JSON value can be that of a field of type ``kind``."""
    inner = get_args(kind)
    if get_origin(kind) is Literal:
        return value in inner
    if get_origin(kind) is tuple:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if inner:
        return any(_fits(value, part) for part in inner)
    written = {Path: (str,), float: (int, float)}
    return type(value) in written.get(kind, (kind,))


def parse_shapes(texts: Sequence[str], names: Sequence[str]) -> list[dict[str, tuple[int, ...]]]:
    """Read ``[NAME:]1,3,32,32`` for each input; a shape without a name is the first input's.

    Returns:
        The shapes by input name; where inputs are given several shapes, one dictionary for the
        first of each, one for the second, and so on (what is not given again stays).

    Raises:
        ConverterError: When a shape is not a list of positive integers or names no input.
    """
    given: dict[str, list[tuple[int, ...]]] = {}
    for text in texts:
        name, _, numbers = text.rpartition(":")
        name = name or names[0]
        if name not in names:
            raise ConverterError(
                f"--input-shape {text!r}: there is no input {name!r}, only {', '.join(names)}."
            )
        try:
            shape = tuple(int(part) for part in numbers.split(","))
        except ValueError:
            shape = ()
        if not shape or min(shape) < 1:
            raise ConverterError(f"--input-shape {text!r} must be written [NAME:]1,3,32,32.")
        given.setdefault(name, []).append(shape)
    most = max(map(len, given.values()), default=1)
    return [
        {name: shapes[min(number, len(shapes) - 1)] for name, shapes in given.items()}
        for number in range(most)
    ]


def parse_arguments(text: str) -> dict[str, object]:
    """Read ``--factory-args``.

    Raises:
        ConverterError: When ``text`` is not a JSON object.
    """
    try:
        found = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConverterError(f"--factory-args is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise ConverterError('--factory-args must be a JSON object such as {"classes": 10}.')
    return found


def parse_numbers(text: str | None, option: str) -> tuple[float, ...]:
    """Read ``0.485,0.456,0.406``; nothing given is no numbers.

    Raises:
        ConverterError: When ``text`` is not a list of numbers.
    """
    if not text:
        return ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConverterError(
            f"{option} {text!r} must be numbers such as 0.485,0.456,0.406."
        ) from None
