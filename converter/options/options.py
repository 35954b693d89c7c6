"""All options of a conversion, and the rules that hold between them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

from cyclopts import Group, Parameter

from converter.errors import ConverterError
from converter.options.parsing import InputShape, native_value, option_text
from converter.options.subjects import (
    BudgetOptions,
    DataOptions,
    ImageOptions,
    LayerOptions,
    ModelOptions,
    ResourceOptions,
    SearchOptions,
    TimingOptions,
    TrainOptions,
)

ALIASES = {"finetune": "epochs"}
NAMED_DATA = ("calib", "eval", "train")


def panel(name: str, order: int) -> Parameter:
    """Turn the fields of a dataclass into command-line options, in a panel of the help text."""
    return Parameter(name="*", group=Group(name, sort_key=order))


@dataclass(frozen=True, kw_only=True)
class Options:
    """All options of ``flatconv convert`` and ``converter.convert``, by subject.

    Attributes:
        model: How the network is read.
        data: Sample inputs and labelled inputs.
        images: Preprocessing of images.
        budget: Limits on loss, time, MACs and size.
        layers: Choices by hand.
        search: How forms are chosen.
        training: Fine-tuning.
        timing: How networks are timed.
        resources: Memory, cache, device, seed.

    Raises:
        ConverterError: When a value is out of range, or two options contradict each other.
    """

    model: Annotated[ModelOptions, panel("Model", 1)] = ModelOptions()
    data: Annotated[DataOptions, panel("Data", 2)] = DataOptions()
    images: Annotated[ImageOptions, panel("Images", 3)] = ImageOptions()
    budget: Annotated[BudgetOptions, panel("Budget", 4)] = BudgetOptions()
    layers: Annotated[LayerOptions, panel("Layers", 5)] = LayerOptions()
    search: Annotated[SearchOptions, panel("Search", 6)] = SearchOptions()
    training: Annotated[TrainOptions, panel("Training", 7)] = TrainOptions()
    timing: Annotated[TimingOptions, panel("Timing", 8)] = TimingOptions()
    resources: Annotated[ResourceOptions, panel("Resources", 9)] = ResourceOptions()

    def __post_init__(self) -> None:
        """Check the ranges of all values, and that options do not contradict each other."""
        for item in fields(self):
            _check_ranges(getattr(self, item.name))
        _check_together(self)

    @property
    def limits(self) -> dict[str, float]:
        """The limits of the budget that are set, by option name."""
        names = (item.name for item in fields(BudgetOptions) if item.name != "drop_type")
        return {n: v for n in names if (v := getattr(self.budget, n)) is not None}

    @classmethod
    def of(cls, **values: Any) -> Options:
        """Build options from values by their flat names, as in ``max_drop=0.005, threads=2``.

        Raises:
            ConverterError: When there is no such option, or a value does not fit.
        """
        return cls().changed(**values)

    def changed(self, **values: Any) -> Options:
        """Return a copy with some values changed, by their flat names.

        Raises:
            ConverterError: When there is no such option, or a value does not fit.
        """
        subjects = {item.name: getattr(self, item.name) for item in fields(self)}
        changes: dict[str, dict[str, Any]] = {subject: {} for subject in subjects}
        for name, value in values.items():
            name = ALIASES.get(name, name)
            if name not in SUBJECTS:
                close = difflib.get_close_matches(name, [*SUBJECTS, *ALIASES], 1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ConverterError(f"There is no option {name!r}.{hint}")
            subject = SUBJECTS[name]
            changes[subject][name] = native_value(type(subjects[subject]), name, value)
        return Options(
            **{name: type(old)(**(vars(old) | changes[name])) for name, old in subjects.items()}
        )

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON values by flat name, with absolute paths.

        Data in memory (arrays, loaders) is left out.
        """
        values = {}
        for name, subject in SUBJECTS.items():
            value = getattr(getattr(self, subject), name)
            if name in NAMED_DATA:
                value = _named_data(value)
            elif isinstance(value, Path):
                value = str(value.resolve())
            elif name == "layers":
                value = {key: form and [form.form, form.rank] for key, form in value.items()}
            if value is not None:
                values[name] = value
        return values

    @classmethod
    def from_json(cls, values: object) -> Options:
        """Read the values that ``to_json`` returned, in this version or in 0.1.

        Raises:
            ConverterError: When an option is unknown, of another type, or out of range.
        """
        if not isinstance(values, dict):
            raise ConverterError("It records no options.")
        for name in NAMED_DATA:
            if not isinstance(values.get(name), str | None):
                raise ConverterError(f"Invalid value {values[name]!r} for {option_text(name)}.")
        return cls.of(**values)


# The subject of every option, by flat name.
SUBJECTS: dict[str, str] = {
    name: subject
    for subject, kind in get_type_hints(Options).items()
    for name in get_type_hints(kind)
}


def _check_ranges(subject: Any) -> None:
    """Check the values of one subject by the validators of its command-line parameters.

    Raises:
        ConverterError: When a value is out of range.
    """
    for name, kind in get_type_hints(type(subject), include_extras=True).items():
        value = getattr(subject, name)
        for parameter in kind.__metadata__ if get_origin(kind) is Annotated else ():
            for check in parameter.validator:
                try:
                    check(kind, value)
                except (ValueError, TypeError) as error:
                    raise ConverterError(
                        f"Invalid value {value!r} for {option_text(name)}. {error}"
                    ) from None


def _check_together(options: Options) -> None:
    """Check that options do not contradict each other.

    Raises:
        ConverterError: When they do.
    """
    layers, training = options.layers, options.training
    if layers.stages > 1 and not any(text.rpartition("=")[2] == "lvh" for text in layers.form):
        raise ConverterError("--stages is an option of --form lvh.")
    if layers.plan and (layers.form or layers.rank or layers.only or layers.keep or layers.layers):
        raise ConverterError(
            "--plan says what happens to each layer; leave out --form, --rank, --only and --keep, "
            "or edit the plan."
        )
    if training.schedule > 1 and not (options.limits and training.epochs >= training.schedule):
        raise ConverterError(
            "--schedule needs a budget (such as --max-macs) and --finetune, with an epoch or more "
            "for each step."
        )
    if training.resume and not (options.resources.cache and training.trains):
        raise ConverterError("--resume needs --finetune or --reconstruct, and the cache.")
    if options.limits and layers.manual:
        raise ConverterError(
            "A budget chooses forms and ranks; leave out --form, --rank and --plan, or "
            f"{', '.join(map(option_text, options.limits))}."
        )


def check_inputs(options: Options, measured: bool) -> None:
    """Check that the options name the inputs that they need, before anything is loaded.

    Args:
        options: Options of a conversion.
        measured: Whether the user's own function measures accuracy.

    Raises:
        ConverterError: When inputs are missing.
    """
    if options.data.calib is not None:
        return
    if options.budget.max_drop is not None and not measured:
        raise ConverterError("--max-drop needs sample inputs; give --calib.")
    if options.search.int8:
        raise ConverterError("--int8 needs sample inputs; give --calib.")
    if options.search.frontier and not options.limits:
        raise ConverterError(
            "--frontier needs a search; give --calib or a budget, and leave out --form, --rank "
            "and --plan."
        )
    if options.training.trains and options.training.train is None:
        raise ConverterError("--finetune needs inputs to train on; give --train.")


def shapes_by_name(
    shapes: Sequence[InputShape], names: Sequence[str]
) -> list[dict[str, tuple[int, ...]]]:
    """Group input shapes by input name.

    Args:
        shapes: Names and shapes; a shape without a name is that of the first input.
        names: Names of the network's inputs.

    Returns:
        One dictionary with the first shape of every input, one with the second, and so on. An input
        with fewer shapes than the others repeats its last.

    Raises:
        ConverterError: When a shape names no input.
    """
    by_name: dict[str, list[tuple[int, ...]]] = {}
    for name, shape in shapes:
        name = name or names[0]
        if name not in names:
            raise ConverterError(
                f"--input-shape {name}:{','.join(map(str, shape))}: there is no input {name!r}, "
                f"only {', '.join(names)}."
            )
        by_name.setdefault(name, []).append(shape)
    count = max(map(len, by_name.values()), default=1)
    return [
        {name: sizes[min(number, len(sizes) - 1)] for name, sizes in by_name.items()}
        for number in range(count)
    ]


def _named_data(source: Any) -> str | None:
    """Return the text of a data source, an existing path made absolute; None for data in memory."""
    if not isinstance(source, str | Path) or not str(source):
        return None
    return str(Path(source).resolve()) if Path(source).exists() else str(source)
