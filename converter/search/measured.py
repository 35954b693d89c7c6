"""What a search measures of the original, and of each network it builds."""

from __future__ import annotations

from dataclasses import dataclass

from converter.evaluation.loss import Loss


@dataclass(frozen=True)
class Original:
    """The original network, which budgets are shares of.

    Attributes:
        ms: Milliseconds by the latency table.
        macs: Multiply-accumulates of all layers, for one example.
        bytes: Size of the ONNX file.
        accuracy: Expected accuracy, or the user's measure; None without classes or a measure.
        drop_per_loss: Loss of the tasks per surrogate, from the probes.
        squared_error_per_loss: Squared relative error of the worst channel per surrogate.
        least_doubt: Upper bound of the loss of the unchanged network, a fraction.
    """

    ms: float
    macs: int
    bytes: int
    accuracy: float | None = None
    drop_per_loss: float = 0.0
    squared_error_per_loss: float = 1.0
    least_doubt: float = 0.0


@dataclass(frozen=True)
class Measured:
    """The measurements of a network in the search; None if a quantity was not measured.

    Attributes:
        loss: Loss on the holdout inputs.
        drop: Drop of the user's own measure.
        speedup: Speedup over the original.
        macs: Multiply-accumulates for one example.
        bytes: Size of the ONNX file.
    """

    loss: Loss | None = None
    drop: float | None = None
    speedup: float | None = None
    macs: int | None = None
    bytes: int | None = None
