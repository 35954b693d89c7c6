"""Torch programs in .pt2 files: exported to ONNX, and written for converted models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

from converter.errors import ConverterError, root_line
from converter.graph.network import name_batch_axis
from converter.models.export import flat_outputs, float_type, quiet


def export_program(path: Path, trust_pickle: bool) -> ir.Model:
    """Read a .pt2 program of ``torch.export.save`` and export it.

    Args:
        path: The file.
        trust_pickle: Whether the user trusts its author: ``torch.export.load`` unpickles content.

    Raises:
        ConverterError: Without ``trust_pickle``, when the file is missing or damaged, or when
            torch cannot export the program.
    """
    if not path.is_file():
        raise ConverterError(f"{path} does not exist, or is no file.")
    if not trust_pickle:
        raise ConverterError(
            f"Reading {path} can run code from it; pass --trust-pickle if you trust its author."
        )
    try:
        with quiet():
            loaded = torch.export.load(path)
    except Exception as error:  # torch raises many classes on damaged files
        raise ConverterError(f"{path} is not a sound .pt2 program: {root_line(error)}") from None
    try:
        with quiet():
            program = torch.onnx.export(loaded, dynamo=True, verbose=False)
    except Exception as error:  # torch.export raises many classes
        raise ConverterError(f"torch cannot export {path} to ONNX: {root_line(error)}") from None
    assert program is not None
    # The metadata holds stack traces, with the paths of this machine.
    ClearMetadataAndDocStringPass()(program.model)
    return name_batch_axis(program.model)


def save_program(module: nn.Module, shapes: Mapping[str, Sequence[int]], path: Path) -> None:
    """Write ``module`` as a .pt2 program that runs without its Python class.

    The batch axis stays free if the program then computes what the module does at ``shapes``.

    Args:
        module: In evaluation mode.
        shapes: By input name.
        path: The file to write.

    Raises:
        ConverterError: When torch cannot trace or save it.
    """
    dtype = float_type(module)
    given = tuple(torch.ones(*shape, dtype=dtype) for shape in shapes.values())
    double = tuple(torch.cat([tensor, tensor]) if len(tensor) == 1 else tensor for tensor in given)
    free = tuple({0: torch.export.Dim.AUTO} for _ in given)
    try:
        with quiet():
            try:
                program = torch.export.export(module, double, dynamic_shapes=free)
                expected = module(*given)
                repeats = _same(module(*given), expected)
                fits = _same(program.module()(*given), expected) or not repeats
            except Exception:  # the module may only take one batch size
                fits = False
            torch.export.save(program if fits else torch.export.export(module, given), path)
    except Exception as error:  # torch.export raises many classes
        raise ConverterError(
            f"torch cannot save the converted model as {path.name}: {root_line(error)}"
        ) from None


def _same(first: object, second: object) -> bool:
    """Whether two outputs of a model are the same, but for rounding and for NaN."""
    pairs = list(zip(flat_outputs(first), flat_outputs(second), strict=True))
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)
        for a, b in pairs
    )


def load_program(path: Path) -> nn.Module:
    """Read a program that ``save_program`` wrote."""
    with quiet():
        return torch.export.load(path).module()
