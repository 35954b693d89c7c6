"""``LatencyTable``: the time of each layer of a network, unchanged and in other forms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from converter.decomposition.conv import Conv
from converter.decomposition.form import Rank
from converter.errors import ConverterError
from converter.graph.survey import Layer
from converter.runtime.layer_times import FORMAT, VERSION


@dataclass(frozen=True)
class TimedCandidate:
    """One form of a layer at one rank, and its time in milliseconds."""

    form: str
    rank: Rank
    ms: float


@dataclass(frozen=True)
class LayerTimes:
    """The times of one layer inside its network.

    Attributes:
        output: Name of the output tensor.
        kernel: Shape (O, I/groups, *k) of the kernel.
        geometry: Stride, dilation and groups in one tuple.
        ms: Time of the unchanged layer.
        options: Times in other forms.
        name: Name of the layer, as ``flatconv inspect`` shows it; empty in older tables.
        fused_with: Names of the layers that the runtime computes in the same node; they share its
            time by their multiply-accumulates.
    """

    output: str
    kernel: tuple[int, ...]
    geometry: tuple[int, ...]
    ms: float
    options: tuple[TimedCandidate, ...]
    name: str = ""
    fused_with: tuple[str, ...] = ()

    def ms_of(self, form: str, rank: Rank) -> float | None:
        """Interpolate the milliseconds in a form between timed ranks; None outside of them."""
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
    """The times of the layers of a network on one machine.

    Attributes:
        cpu: Name of the processor.
        onnxruntime: Version of onnxruntime.
        provider: Execution provider.
        threads: Threads of onnxruntime.
        input_shapes: Shapes by input name, batch included.
        block: Channels that onnxruntime computes together.
        ms: Milliseconds of the whole unchanged network.
        layers: Times of the layers, in graph order.
        float_ms: Milliseconds in floating point if all other times are in int8, else None.
        warnings: Sentences that say why the times are doubtful.
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
    warnings: tuple[str, ...] = ()

    @property
    def original_ms(self) -> float:
        """Milliseconds of the original in floating point, the reference of a speedup."""
        return self.float_ms or self.ms

    def to_json(self) -> str:
        """Write the table as JSON; ``from_json`` is the inverse."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> LatencyTable:
        """Read the JSON that ``to_json`` or the timer on a target machine wrote.

        Raises:
            ConverterError: When ``text`` is no latency table.
        """
        try:
            return cls.from_document(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ConverterError(f"It is not a {FORMAT}: {error}.") from None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> LatencyTable:
        """Read a table from JSON values.

        Raises:
            ConverterError: When they are of another format or version.
        """
        values = dict(document)
        if (values.pop("format"), values.pop("version")) != (FORMAT, VERSION):
            raise ConverterError(f"It is not a {FORMAT} of version {VERSION}.")
        layers = tuple(_read_layer(layer) for layer in values.pop("layers"))
        shapes = {n: tuple(map(int, s)) for n, s in values.pop("input_shapes").items()}
        warnings = tuple(map(str, values.pop("warnings", ())))
        return cls(**values, input_shapes=shapes, layers=layers, warnings=warnings)

    def matched(self, layers: Sequence[Layer]) -> LatencyTable:
        """Return the table with the layer names of another export of the same network.

        Args:
            layers: The survey of that network; layers whose weights cannot be read get no times.

        Raises:
            ConverterError: When the table is that of another network.
        """
        remaining = iter(self.layers)
        matched: list[tuple[LayerTimes, Layer]] = []
        for layer in layers:
            if layer.conv is None:
                continue
            key = (layer.conv.kernel.shape, geometry(layer.conv))
            times = next((t for t in remaining if (t.kernel, t.geometry) == key), None)
            if times is None:
                raise ConverterError(
                    "It was measured on another network: the layers differ. Measure the file that "
                    "`flatconv inspect MODEL --normal FILE` writes."
                )
            matched.append((times, layer))
        names = {times.name: layer.name for times, layer in matched}
        return replace(
            self,
            layers=tuple(
                replace(
                    times,
                    output=layer.output,
                    name=layer.name,
                    fused_with=tuple(names.get(name, name) for name in times.fused_with),
                )
                for times, layer in matched
            ),
        )


def geometry(conv: Conv) -> tuple[int, ...]:
    """Return stride, dilation and groups of a convolution in one tuple."""
    return (*conv.stride, *conv.dilation, conv.groups)


def _read_layer(document: dict[str, Any]) -> LayerTimes:
    options = tuple(
        TimedCandidate(str(o["form"]), tuple(map(int, o["rank"])), float(o["ms"]))
        for o in document["options"]
    )
    return LayerTimes(
        str(document["output"]),
        tuple(map(int, document["kernel"])),
        tuple(map(int, document["geometry"])),
        float(document["ms"]),
        options,
        str(document.get("name", "")),
        tuple(map(str, document.get("fused_with", ()))),
    )
