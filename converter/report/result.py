"""What a conversion gives: kept together, written whole or not at all, and read back."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from converter.errors import ConverterError, first_line
from converter.evaluation.compare import Comparison
from converter.graph import network as onnx_network
from converter.graph.network import EXTERNAL_SUFFIX
from converter.models import export as torch_export
from converter.models import match as torch_network
from converter.options import SUBJECTS, Options
from converter.report.page import report_html
from converter.report.report import LayerRow, Report
from converter.search.plan import Plan, read_plan

INT8_OUTPUTS = ("original.int8.onnx", "model.int8.onnx")
OUTPUTS = (
    "original.onnx",
    "model.onnx",
    *INT8_OUTPUTS,
    "plan.json",
    "report.json",
    "report.html",
    "source.json",
    "model.safetensors",
    "model.pt2",
    f"original.onnx{EXTERNAL_SUFFIX}",
    f"model.onnx{EXTERNAL_SUFFIX}",
)


@dataclass(frozen=True)
class Result:
    """A converted network and what was measured of it.

    Attributes:
        model: The converted torch model, or for an ONNX input the converted ONNX model.
        plan: What was done to each layer.
        comparison: Original and converted, side by side.
        report: All of it, as told to the user.
        int8: The original and the converted network, quantized, if that was asked for.
    """

    model: nn.Module | onnx.ModelProto
    plan: Plan
    comparison: Comparison
    report: Report
    original: ir.Model = dataclasses.field(repr=False)
    converted: ir.Model = dataclasses.field(repr=False)
    origin: dict[str, Any] = dataclasses.field(repr=False)
    int8: tuple[ir.Model, ...] = dataclasses.field(default=(), repr=False)

    def save(self, directory: str | Path) -> None:
        """Write the output folder, whole or not at all.

        Raises:
            ConverterError: When the folder cannot be written or is not flatconv's to replace.
        """
        target = writable_folder(Path(directory))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as tmp:
                built, old = Path(tmp) / "new", Path(tmp) / "old"
                built.mkdir()
                self._write(built)
                try:
                    if target.exists():
                        target.rename(old)
                    built.rename(target)
                except BaseException:  # an interrupt, too, must not lose the earlier output
                    if old.exists() and not target.exists():
                        old.rename(target)
                    raise
        except (OSError, SafetensorError) as error:
            raise ConverterError(f"{target} cannot be written: {error}.") from None

    def _write(self, folder: Path) -> None:
        """Write every file of the output into an empty folder."""
        onnx_network.save(self.original, folder / "original.onnx")
        onnx_network.save(self.converted, folder / "model.onnx")
        for name, network in zip(INT8_OUTPUTS, self.int8):
            onnx_network.save(network, folder / name)
        (folder / "plan.json").write_text(self.plan.to_json())
        (folder / "report.json").write_text(json.dumps(self.report.to_dict(), indent=2) + "\n")
        (folder / "report.html").write_text(report_html(self.report))
        (folder / "source.json").write_text(json.dumps(self.origin, indent=2) + "\n")
        if isinstance(self.model, nn.Module):
            save_model(self.model, str(folder / "model.safetensors"))
            (folder / "model.safetensors").chmod(0o644)
            torch_export.save_program(self.model, self.plan.input_shapes, folder / "model.pt2")


def load(directory: str | Path) -> nn.Module | onnx.ModelProto:
    """Give back the converted network of an output folder.

    Returns:
        The torch model in evaluation mode, built by its factory (without one, what
        ``torch.export`` saved of it); for an ONNX input the ONNX model.

    Raises:
        ConverterError: When the folder is not one that ``Result.save`` wrote.
    """
    folder = Path(directory)
    origin, plan = read_origin(folder), read_plan(folder / "plan.json")
    if "factory" not in origin and not (folder / "model.pt2").exists():
        return ir.to_proto(onnx_network.load(folder / "model.onnx"))
    try:
        if "factory" not in origin:
            return torch_export.load_program(folder / "model.pt2")
        arguments = origin["factory_args"]
        original = torch_export.build(origin["factory"], arguments, None, False)
        with safe_open(folder / "model.safetensors", "pt") as weights:
            module = torch_network.rebuild(original, plan.chosen(), set(weights.keys()))
        load_model(module, folder / "model.safetensors")
        return module.eval()
    except ConverterError:
        raise
    except Exception as error:  # torch and safetensors raise many classes on damaged files
        raise ConverterError(
            f"{folder} is damaged, or its factory has changed since: {first_line(error)}"
        ) from None


def writable_folder(folder: Path) -> Path:
    """Check that ``folder`` can be written, and holds nothing but an earlier output.

    Raises:
        ConverterError: When it cannot.
    """
    folder = folder.resolve()
    if folder.exists():
        if not folder.is_dir():
            raise ConverterError(f"{folder} is a file; name a folder for the output.")
        foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in OUTPUTS)
        if foreign:
            raise ConverterError(
                f"{folder} holds other files ({', '.join(foreign[:3])}); name an empty folder or "
                "an earlier output."
            )
    parent = folder.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ConverterError(f"{folder} cannot be written: {parent} is not a writable folder.")
    return folder


def read_origin(folder: Path) -> dict[str, Any]:
    """Read how the torch model of an output folder is built.

    Raises:
        ConverterError: When ``folder`` is not an output of flatconv.
    """
    try:
        found = json.loads((folder / "source.json").read_text())
    except (OSError, ValueError, RecursionError):
        raise ConverterError(f"{folder} is not an output folder of flatconv.") from None
    if not isinstance(found, dict):
        raise ConverterError(f"{folder / 'source.json'} is damaged.")
    return found


def read_config(folder: Path) -> Options:
    """Read the options that an output folder was made with.

    Raises:
        ConverterError: When ``source.json`` is missing or damaged.
    """
    recorded = read_origin(folder).get("options")
    try:
        return Options.from_json(recorded)
    except ConverterError as error:
        raise ConverterError(f"{folder / 'source.json'} is damaged. {error}") from None


def read_rows(folder: Path) -> tuple[LayerRow, ...]:
    """Read what became of each layer from the report of an output folder.

    Raises:
        ConverterError: When it is missing or damaged.
    """
    with _report(folder) as report:
        return tuple(LayerRow(**row) for row in report["layers"])


def read_budget(folder: Path) -> dict[str, float]:
    """Read the budget of an output folder, by option.

    Raises:
        ConverterError: When the report is missing or damaged.
    """
    with _report(folder) as report:
        budget = {str(name): float(limit) for name, limit in report["budget"].items()}
        if not all(SUBJECTS.get(name) == "budget" for name in budget):
            raise ValueError(f"there is no such budget as {', '.join(sorted(budget))}")
        return budget


@contextlib.contextmanager
def _report(folder: Path) -> Iterator[dict[str, Any]]:
    """Read the report of an output folder; what is wrong with it is told in one sentence."""
    try:
        yield json.loads((folder / "report.json").read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConverterError(f"{folder / 'report.json'} is damaged: {error}.") from None
