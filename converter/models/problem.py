"""``Problem``: a network, its layers, and inputs to solve for and to evaluate on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from converter.data.data import Data
from converter.data.inputs import Input
from converter.errors import ConverterError
from converter.graph.survey import Layer
from converter.models.random_inputs import random_inputs
from converter.models.source import Source
from converter.options import Options

HOLDOUT_SHARE = 0.4  # of the sample inputs
HOLDOUT_MACS, MIN_HOLDOUT, MAX_HOLDOUT = 1e12, 64, 8192  # 1e12 MACs take about 20 s
RANDOM_EXAMPLES = 16


@dataclass(frozen=True)
class Problem:
    """A network to convert, with its sample inputs split for a search.

    Attributes:
        network: The canonical network.
        layers: Its convolutions and linear layers, in graph order.
        inputs: Its inputs.
        shapes: The shapes that it is run with, by input name.
        calib: All sample inputs, or None.
        fit: Sample inputs to solve layers for during a search, or None.
        holdout: Inputs that networks are only evaluated on; random without sample inputs.
    """

    network: ir.Model
    layers: tuple[Layer, ...]
    inputs: tuple[Input, ...]
    shapes: dict[str, tuple[int, ...]]
    calib: Data | None
    fit: Data | None
    holdout: Data

    @property
    def batch_size(self) -> int | None:
        """The batch size that the network has fixed, or None."""
        return self.inputs[0].shape[0]


def make_problem(source: Source, layers: Sequence[Layer], seed: int) -> Problem:
    """Split the sample inputs of a network.

    Args:
        source: The network and its sample inputs.
        layers: All layers of the network.
        seed: Seed of the split and of random inputs.
    """
    fit, holdout = _split(source, layers, seed)
    return Problem(
        source.network, tuple(layers), source.inputs, source.shapes, source.calib, fit, holdout
    )


def _split(source: Source, layers: Sequence[Layer], seed: int) -> tuple[Data | None, Data]:
    """Return inputs to solve for and to evaluate on: beyond ``--samples`` if there are enough."""
    if source.calib is None:
        random = source.random or random_inputs(
            source.network, source.inputs, source.shapes, RANDOM_EXAMPLES, seed
        )
        return None, random.take(np.arange(RANDOM_EXAMPLES))
    macs = sum(layer.macs for layer in layers)
    limit = int(np.clip(HOLDOUT_MACS / max(macs, 1), MIN_HOLDOUT, MAX_HOLDOUT))
    count = source.calib.count
    holdout = min(max(int(count * HOLDOUT_SHARE), 1), limit)
    unused = source.unused_calib
    if unused is not None and unused.count >= holdout:
        return source.calib, unused.take(np.arange(min(unused.count, limit)))
    order = np.random.default_rng(seed).permutation(count)
    fit = source.calib.take(np.sort(order[holdout:])) if holdout < count else source.calib
    return fit, source.calib.take(np.sort(order[:holdout]))


def check_held_out(source: Source, options: Options, measured: bool) -> None:
    """Check that a loss can be judged on another example than layers are fitted to.

    Args:
        source: The network and its sample inputs.
        options: They name the budgets.
        measured: Whether the user's own function measures the loss.

    Raises:
        ConverterError: When there is a budget for the loss, or no budget but a search, and only
            one example.
    """
    one = source.calib is not None and source.calib.count == 1 and source.unused_calib is None
    given = [n for n in ("max_error", "max_drop") if getattr(options.budget, n) is not None]
    if measured and "max_drop" in given:
        given.remove("max_drop")
    assumed = not options.limits and not options.layers.manual
    if one and (given or assumed):
        budget = f"--{given[0].replace('_', '-')}" if given else "A search without a budget"
        raise ConverterError(
            f"{budget} bounds the loss on examples that no layer is fitted to, but --calib holds "
            "one; give 64 or more, or choose with --form and --rank."
        )
