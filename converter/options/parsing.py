"""Option values: parsed from text on the command line, or converted from Python values."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from cyclopts import Parameter, Token
from cyclopts.validators import Number

from converter.errors import ConverterError

OutputTask: TypeAlias = tuple[str, str]  # output (empty: the only one that fits), task
TASKS = ("classify", "label", "detect", "embed", "regress")
InputShape: TypeAlias = tuple["str | None", tuple[int, ...]]  # name (None: the first input), shape


@dataclass(frozen=True)
class LayerForm:
    """A form and rank for one layer, or for all layers of a pattern.

    Attributes:
        form: Name of a form, as in ``converter.FORMS``.
        rank: An integer, a fraction, a pair of either for forms with two ranks, or None for the
            form's default.
    """

    form: str
    rank: int | float | tuple[int | float, ...] | None = None


def parse_floats(text: str) -> tuple[float, ...]:
    """Parse ``0.485,0.456,0.406``.

    Raises:
        ValueError: When ``text`` is not a list of numbers.
    """
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError("Write numbers such as 0.485,0.456,0.406.") from None


def parse_json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object such as ``{"classes": 10}``.

    Raises:
        ValueError: When ``text`` is not a JSON object.
    """
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"It is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError('It must be a JSON object such as {"classes": 10}.')
    return value


def parse_input_shape(text: str) -> InputShape:
    """Parse ``[NAME:]1,3,32,32``.

    Raises:
        ValueError: When the shape is not a list of positive integers.
    """
    name, _, numbers = text.rpartition(":")
    try:
        return (name or None, _shape([int(part) for part in numbers.split(",")]))
    except ValueError:
        raise ValueError("Write a shape as [NAME:]1,3,32,32.") from None


def parse_task(text: str) -> OutputTask:
    """Parse ``[OUTPUT=]classify``.

    Raises:
        ValueError: When there is no such task.
    """
    output, _, task = text.rpartition("=")
    if task not in TASKS:
        raise ValueError(f"Write [OUTPUT=]TASK with one of the tasks {', '.join(TASKS)}.")
    return output, task


def one_value(parse: Callable[[str], Any], **parameter: Any) -> Parameter:
    """Make a command-line parameter that takes one text."""

    def convert(_: Any, tokens: Sequence[Token]) -> Any:
        return parse(tokens[-1].value)

    return Parameter(converter=convert, n_tokens=1, **parameter)


def each_value(parse: Callable[[str], Any]) -> Parameter:
    """Make a command-line parameter that can be repeated and takes one text each time."""

    def convert(_: Any, tokens: Sequence[Token]) -> tuple[Any, ...]:
        return tuple(parse(token.value) for token in tokens if token.value)

    return Parameter(converter=convert, n_tokens=1)


def bounded(gte: int, lte: int | None = None) -> Callable[[Any, Any], None]:
    """Return a validator for numbers between two bounds; None passes."""
    check = Number(gte=gte, lte=lte)

    def validate(kind: Any, value: float | None) -> None:
        if value is not None:
            check(kind, value)

    return validate


def fraction(_: Any, value: float | None) -> None:
    """Check that a value is between 0 and 1; None passes.

    Raises:
        ValueError: When it is not.
    """
    if value is not None and not 0 < value < 1:
        raise ValueError("It must be above 0 and below 1; write 1 % as 0.01.")


def positive(_: Any, value: float | None) -> None:
    """Check that a value is finite and above 0; None passes.

    Raises:
        ValueError: When it is not.
    """
    if value is not None and not 0 < value < float("inf"):
        raise ValueError("It must be a number above 0.")


def above_one(_: Any, value: float | None) -> None:
    """Check that a value is finite and above 1; None passes.

    Raises:
        ValueError: When it is not.
    """
    if value is not None and not 1 < value < float("inf"):
        raise ValueError("It must be above 1.")


def without_zero(_: Any, value: Sequence[float] | None) -> None:
    """Check that no value is 0; None passes.

    Raises:
        ValueError: When one is.
    """
    if value is not None and 0 in value:
        raise ValueError("It must not be 0.")


def option_text(name: str) -> str:
    """Write an option as on the command line."""
    return "--" + name.replace("_", "-")


def native_value(subject: type, name: str, value: Any) -> Any:
    """Convert text, a path, a list or a single value to the type of a field.

    Args:
        subject: The dataclass of the field.
        name: Name of the field.
        value: Value from a caller or a JSON file.

    Raises:
        ConverterError: When the value does not fit the type of the field.
    """
    kind = get_type_hints(subject)[name]
    try:
        if name in _CONVERTERS:
            return _CONVERTERS[name](value)
        if kind == tuple[str, ...]:
            items = value if isinstance(value, list | tuple) else (value,)
            value = tuple(str(item) for item in items if item not in ("", None))
        elif kind is Any:
            value = str(value) if isinstance(value, Path) else value
        elif Path in get_args(kind) and isinstance(value, str):
            value = Path(value) if value else None
        elif type(value) is int and (kind is float or float in get_args(kind)):
            value = float(value)
    except (ValueError, TypeError, AttributeError) as error:
        raise ConverterError(f"Invalid value {value!r} for {option_text(name)}. {error}") from None
    if not _fits(value, kind):
        raise ConverterError(f"Invalid value {value!r} for {option_text(name)}.")
    return value


def _fits(value: object, kind: Any) -> bool:
    """Tell whether a value is of type ``kind``: plain, Literal, optional, or tuple[str, ...]."""
    inner, origin = get_args(kind), get_origin(kind)
    if kind is Any:
        return True
    if origin is Annotated:
        return _fits(value, inner[0])
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, inner[0]) for item in value)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in inner)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _shape(value: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(int(size) for size in value)
    if not shape or min(shape) < 1:
        raise ValueError("A shape is a list of positive integers.")
    return shape


def _floats(value: Any) -> tuple[float, ...]:
    if value is None or isinstance(value, str):
        return parse_floats(value or "")
    return tuple(map(float, value)) if hasattr(value, "__iter__") else (float(value),)


def _shapes(value: Any) -> tuple[InputShape, ...]:
    """Convert a shape, items shapes, texts, (name, shape) pairs, or a dictionary by name."""
    if isinstance(value, str):
        return (parse_input_shape(value),)
    if isinstance(value, Mapping):
        return tuple(
            (str(name), _shape(shape))
            for name, items in value.items()
            for shape in (items if isinstance(items[0], list | tuple) else [items])
        )
    if all(isinstance(item, int) for item in value):
        return ((None, _shape(value)),) if value else ()
    shapes: list[InputShape] = []
    for item in value:
        if isinstance(item, str):
            shapes.append(parse_input_shape(item))
        elif len(item) == 2 and isinstance(item[1], list | tuple):
            shapes.append((item[0], _shape(item[1])))
        else:
            shapes.append((None, _shape(item)))
    return tuple(shapes)


def _layers(value: Mapping[str, Any]) -> dict[str, LayerForm | None]:
    """Convert ``LayerForm``, a form's name, a (form, rank) pair, or None, by layer name."""

    def form(item: Any) -> LayerForm | None:
        if item is None or isinstance(item, LayerForm):
            return item
        name, rank = (item, None) if isinstance(item, str) else item
        return LayerForm(str(name), tuple(rank) if isinstance(rank, list) else rank)

    return {str(name): form(item) for name, item in value.items()}


def _ranks(value: Any) -> tuple[str, ...]:
    """Convert numbers, pairs and texts to the texts that the command line takes."""
    if isinstance(value, tuple) and value and all(isinstance(v, int | float) for v in value):
        return (",".join(map(str, value)),)
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(str(item) for item in items if item not in ("", None))


def _tasks(value: Any) -> tuple[OutputTask, ...]:
    """Convert a text, several, or tasks by output name."""
    if isinstance(value, Mapping):
        value = [f"{output}={task}" for output, task in value.items()]
    items = [value] if isinstance(value, str) else value
    return tuple(
        parse_task(item if isinstance(item, str) else "=".join(item)) for item in items if item
    )


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "mean": _floats,
    "std": _floats,
    "factory_args": lambda v: parse_json_object(v if isinstance(v, str) else json.dumps(v)),
    "input_shape": _shapes,
    "layers": _layers,
    "rank": _ranks,
    "task": _tasks,
}
