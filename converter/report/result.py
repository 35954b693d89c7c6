"""``Result``: a converted network with its measurements, saved to a folder and loaded again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from converter.errors import ConverterError, first_line
from converter.evaluation.comparison import Comparison
from converter.graph import network as onnx_network
from converter.graph.batch_axes import as_given
from converter.models import match as torch_network
from converter.models.export import materialize
from converter.models.factory import build, find_callable
from converter.models.program import load_program, save_program
from converter.options import Options
from converter.report.folder import Record, read_record
from converter.report.page import report_html
from converter.report.paths import INT8_OUTPUTS, RECORD, to_json, writable_folder, written_whole
from converter.report.report import Report
from converter.report.tables import summary
from converter.search.plan import Plan, read_plan


@dataclass(frozen=True)
class Result:
    """A converted network and its measurements.

    Attributes:
        report: The converted network, the plan and the measurements.
        original: The original network.
        origin: How to build the torch model, as JSON values.
        options: Options of the conversion.
        teacher: The original torch model, or None for an ONNX input.
    """

    report: Report = field(repr=False)
    original: ir.Model = field(repr=False)
    origin: Mapping[str, Any] = field(repr=False)
    options: Options = field(repr=False)
    teacher: nn.Module | None = field(default=None, repr=False)

    @property
    def model(self) -> nn.Module | onnx.ModelProto:
        """The converted torch model, or for an ONNX input the converted ONNX model."""
        converted = self.report.verified.converted
        network = as_given(converted.network)
        return ir.to_proto(network) if converted.module is None else converted.module

    @property
    def plan(self) -> Plan:
        """Form and rank of each layer."""
        return self.report.plan

    @property
    def comparison(self) -> Comparison:
        """Original and converted network, side by side."""
        return self.report.comparison

    def summary(self) -> str:
        """Describe the conversion in a few lines: speedup, loss, size, budget and status."""
        return summary(self.report)

    def __repr__(self) -> str:
        """Return the summary, since the networks themselves are too long to print."""
        return f"<{type(self).__name__}: {self.summary()}>"

    def save(self, directory: str | Path) -> None:
        """Write the output folder, whole or not at all.

        Raises:
            ConverterError: When the folder cannot be written or is not flatconv's to replace.
        """
        target = writable_folder(Path(directory))
        try:
            with written_whole(target) as folder:
                self._write(folder)
        except (OSError, SafetensorError) as error:
            raise ConverterError(f"{target} cannot be written: {error}.") from None

    def _write(self, folder: Path) -> None:
        """Write every file of the output into an empty folder."""
        verified = self.report.verified
        onnx_network.save(as_given(self.original), folder / "original.onnx")
        onnx_network.save(as_given(verified.converted.network), folder / "model.onnx")
        for name, network in zip(INT8_OUTPUTS, verified.int8):
            onnx_network.save(as_given(network), folder / name)
        record = Record(
            self.origin, self.options, verified.converted.search.budgets, self.report.layers
        )
        (folder / RECORD).write_text(record.to_json())
        (folder / "plan.json").write_text(self.plan.to_json())
        (folder / "report.json").write_text(to_json(self.report.to_dict()) + "\n")
        (folder / "report.html").write_text(report_html(self.report))
        module = verified.converted.module
        if module is not None:
            save_model(module, str(folder / "model.safetensors"))
            (folder / "model.safetensors").chmod(0o644)
            save_program(module, self.plan.input_shapes, folder / "model.pt2")


def load(directory: str | Path) -> nn.Module | onnx.ModelProto:
    """Load the converted network of an output folder; see ``converter.load``."""
    folder = Path(directory)
    origin = read_record(folder).origin
    if "factory" in origin:
        find_callable(origin["factory"], "Factory")  # its module may register forms
    plan = read_plan(folder / "plan.json")
    if "factory" not in origin and not (folder / "model.pt2").exists():
        return ir.to_proto(onnx_network.load(folder / "model.onnx"))
    try:
        if "factory" not in origin:
            return load_program(folder / "model.pt2")
        original, _ = build(origin["factory"], origin["factory_args"])
        zeros = {name: np.zeros(shape, np.float32) for name, shape in plan.input_shapes.items()}
        materialize(original, zeros)
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
