"""The record of a conversion in its output folder, which later commands read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from converter.errors import ConverterError
from converter.options import Options
from converter.report.layers import LayerRow, read_rows
from converter.report.paths import OLD_RECORD, RECORD
from converter.search.budgets import Budget, limits_of, make_budgets

FORMAT, VERSION = "flatconv-conversion", 1


@dataclass(frozen=True)
class Record:
    """The data of a conversion that later commands need.

    Attributes:
        origin: How to build the torch model: ``factory``, ``factory_args``, ``checkpoint``; empty
            without a factory.
        options: Options of the conversion.
        budgets: Budgets of the search.
        layers: Every layer before and after.
    """

    origin: Mapping[str, Any]
    options: Options
    budgets: tuple[Budget, ...] = ()
    layers: tuple[LayerRow, ...] = field(default=(), repr=False)

    def to_json(self) -> str:
        """Write the record as JSON; ``read_record`` is the inverse."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "origin": dict(self.origin),
            "options": self.options.to_json(),
            "budget": limits_of(self.budgets),
            "layers": [asdict(row) for row in self.layers],
        }
        return json.dumps(document, indent=2) + "\n"


def read_record(folder: Path) -> Record:
    """Read the record in an output folder, also one of version 0.1.

    Raises:
        ConverterError: When ``folder`` is not an output folder, of an unknown version, or damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return _read_old_record(folder)
    with _damage_errors(path):
        document = json.loads(path.read_text())
        if document["format"] != FORMAT:
            raise ValueError(f"it is no {FORMAT}")
        if document["version"] != VERSION:
            raise ConverterError(
                f"{path} is of version {document['version']}, but this flatconv reads version "
                f"{VERSION} and folders of 0.1; convert again, or install the flatconv that wrote "
                "it."
            )
        return Record(
            origin=_mapping(document["origin"]),
            options=Options.from_json(document["options"]),
            budgets=_budgets(document["budget"], document["options"]),
            layers=read_rows(document["layers"]),
        )


def _read_old_record(folder: Path) -> Record:
    """Read a folder of version 0.1, whose record is in source.json and report.json."""
    path = folder / OLD_RECORD
    if not path.exists():
        raise ConverterError(f"{folder} is not an output folder of flatconv.")
    with _damage_errors(path):
        origin = _mapping(json.loads(path.read_text()))
        options = Options.from_json(origin.pop("config", None))
    with _damage_errors(folder / "report.json"):
        report = json.loads((folder / "report.json").read_text())
        budgets = _budgets(report["budget"], options.to_json())
        return Record(origin, options, budgets, read_rows(report["layers"]))


def _budgets(limits: object, options: Mapping[str, Any]) -> tuple[Budget, ...]:
    numbers = {str(name): float(limit) for name, limit in _mapping(limits).items()}
    return make_budgets(numbers, options.get("drop_type") == "relative")


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("it holds no object")
    return value


@contextlib.contextmanager
def _damage_errors(path: Path) -> Iterator[None]:
    """Name the file in errors about its content."""
    try:
        yield
    except ConverterError as error:
        text = str(error)
        raise ConverterError(text if str(path) in text else f"{path} is damaged. {text}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConverterError(f"{path} is damaged: {error}.") from None
