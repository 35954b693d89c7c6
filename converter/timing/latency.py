"""``LatencyTable``: how long each layer takes in onnxruntime, as it is and in other forms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from converter.decomposition.form import Rank
from converter.errors import ConverterError

FORMAT, VERSION = "flatconv-latency", 1


@dataclass(frozen=True)
class Timed:
    """One form of a layer at one rank, and its time."""

    form: str
    rank: Rank
    ms: float


@dataclass(frozen=True)
class LayerTimes:
    """The times of one layer in its surroundings.

    Attributes:
        output: Name of the tensor that it gives.
        kernel: Shape (O, I/groups, *k) of its kernel.
        geometry: Stride, dilation and groups, in a row.
        ms: Its time as it is.
        options: Other forms, by form and rank.
    """

    output: str
    kernel: tuple[int, ...]
    geometry: tuple[int, ...]
    ms: float
    options: tuple[Timed, ...]

    def ms_of(self, form: str, rank: Rank) -> float | None:
        """Time at a rank, between those measured interpolated; None outside of them."""
        knots = [option for option in self.options if option.form == form]
        exact = next((option.ms for option in knots if option.rank == rank), None)
        if exact is not None or len(rank) > 1 or len(knots) < 2:
            return exact
        ranks = [option.rank[0] for option in knots]
        if not ranks[0] <= rank[0] <= ranks[-1]:
            return None
        return float(np.interp(rank[0], ranks, [option.ms for option in knots]))


@dataclass(frozen=True)
class LatencyTable:
    """Times of a network's layers on one machine.

    Attributes:
        cpu: Name of the processor.
        onnxruntime: Version of the runtime.
        provider: Execution provider.
        threads: Of onnxruntime.
        input_shapes: By input name.
        block: Channels that the runtime computes together.
        ms: Time of the whole network as it is.
        layers: In graph order.
        float_ms: Where all these times are of int8, that of the network in floating point.
    """

    cpu: str
    onnxruntime: str
    provider: str
    threads: int
    input_shapes: Mapping[str, tuple[int, ...]]
    block: int
    ms: float
    layers: tuple[LayerTimes, ...] = field(repr=False)
    float_ms: float | None = None

    @property
    def original_ms(self) -> float:
        """Time of the original network, which a speedup is measured against."""
        return self.float_ms or self.ms

    def predicted_ms(self, chosen: Mapping[str, tuple[str, Rank]]) -> float:
        """Predict the time of the network with some layers in other forms.

        Args:
            chosen: Form and rank by the name of the layer's output.
        """
        total = self.ms
        for layer in self.layers:
            if layer.output in chosen:
                total += (layer.ms_of(*chosen[layer.output]) or layer.ms) - layer.ms
        return total

    def to_json(self) -> str:
        """Write the table as JSON; ``from_json`` is the inverse."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> LatencyTable:
        """Read what ``to_json`` wrote.

        Raises:
            ConverterError: When ``text`` is no such table.
        """
        try:
            document = json.loads(text)
            if document.pop("format") != FORMAT or document.pop("version") != VERSION:
                raise ConverterError(f"It is not a {FORMAT} of version {VERSION}.")
            layers = tuple(_read_layer(layer) for layer in document.pop("layers"))
            shapes = {n: tuple(map(int, s)) for n, s in document.pop("input_shapes").items()}
            return cls(**document, input_shapes=shapes, layers=layers)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ConverterError(f"It is not a {FORMAT}: {error}.") from None

    def matched(
        self, places: Sequence[tuple[str, tuple[int, ...], tuple[int, ...]]]
    ) -> LatencyTable:
        """Return the table with the names of another copy of the network.

        Args:
            places: Output, kernel shape and geometry of the layers that can be read, in order.

        Raises:
            ConverterError: When the table is that of another network.
        """
        rest = iter(self.layers)
        layers = []
        for output, kernel, geometry in places:
            found = next((o for o in rest if (o.kernel, o.geometry) == (kernel, geometry)), None)
            if found is None:
                raise ConverterError(
                    "It was measured on another network: the layers differ. Measure the file that "
                    "`flatconv inspect MODEL --normal FILE` writes."
                )
            layers.append(replace(found, output=output))
        return replace(self, layers=tuple(layers))


def _read_layer(document: dict[str, Any]) -> LayerTimes:
    options = tuple(
        Timed(str(o["form"]), tuple(map(int, o["rank"])), float(o["ms"]))
        for o in document["options"]
    )
    return LayerTimes(
        str(document["output"]),
        tuple(map(int, document["kernel"])),
        tuple(map(int, document["geometry"])),
        float(document["ms"]),
        options,
    )
