"""The protocols of what runs a network, and sessions that cannot be open together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from converter.runtime.ort_session import NodeTime

if TYPE_CHECKING:
    import onnx

# Smallest and largest value of each tensor, by name.
Limits = Mapping[str, tuple[np.floating, np.floating]]


@dataclass(frozen=True)
class Argument:
    """An input or output of an open network; the object of a session would keep that alive.

    Attributes:
        name: Its name.
        shape: Its sizes; a text or None where a size is free.
        type: Its type in ONNX, as ``tensor(float)``.
    """

    name: str
    shape: tuple[int | str | None, ...]
    type: str

    @classmethod
    def of(cls, argument: Any) -> Argument:
        """Copy name, shape and type."""
        return cls(argument.name, tuple(argument.shape), argument.type)


class Session(Protocol):
    """An open network."""

    def get_inputs(self) -> Sequence[Argument]:
        """List the inputs."""
        ...

    def get_outputs(self) -> Sequence[Argument]:
        """List the outputs."""
        ...

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        """Compute the outputs ``names``, or all if None, from inputs by name."""
        ...


class Runtime(Protocol):
    """What opens, times and quantizes networks, under fixed conditions."""

    @property
    def version(self) -> str:
        """Version of the runtime."""
        ...

    @property
    def provider(self) -> str:
        """What it computes on, in its own words."""
        ...

    @property
    def threads(self) -> int:
        """Threads that it computes on."""
        ...

    def open(self, model: bytes | Path, weights: Path | None = None) -> Session:
        """Open a network.

        Args:
            model: The content of an ONNX file, or its path.
            weights: Folder of the files that hold weights, for a ``model`` that is content.

        Raises:
            ConverterError: When the runtime cannot run the network.
        """
        ...

    def profile(
        self,
        model: bytes | Path,
        feeds: Mapping[str, np.ndarray],
        seconds: float,
        weights: Path | None = None,
    ) -> Sequence[NodeTime]:
        """Time the nodes of a network, in the order in which they run.

        Raises:
            ConverterError: When the runtime cannot run the network.
        """
        ...

    def block(self) -> int:
        """Return how many channels it computes together: it pads kernels to that."""
        ...

    def quantize(
        self, model: onnx.ModelProto, limits: Limits, in_float: Collection[str] = ()
    ) -> onnx.ModelProto:
        """Quantize weights and activations of a network to int8.

        Args:
            model: Nodes named, constants as initializers, shapes known. It may be changed.
            limits: The values that its tensors take; what has none stays in floating point.
            in_float: Tensors whose nodes stay in floating point.

        Raises:
            ConverterError: When the network cannot be quantized.
        """
        ...


class ExclusiveSession:
    """A session that is one of several too large to be open together: using it closes the other.

    Attributes:
        open_now: The session that is open, by the identity of its owner; shared by all of them.
    """

    def __init__(self, opener: Callable[[], Session], open_now: dict[int, Session]) -> None:
        """Take what opens the session, and where the open one is stored."""
        self._opener, self.open_now = opener, open_now
        session = self._session()
        self._inputs = [Argument.of(value) for value in session.get_inputs()]
        self._outputs = [Argument.of(value) for value in session.get_outputs()]

    def _session(self) -> Session:
        if id(self) not in self.open_now:
            self.open_now.clear()
            self.open_now[id(self)] = self._opener()
        return self.open_now[id(self)]

    def get_inputs(self) -> Sequence[Argument]:
        """List the inputs."""
        return self._inputs

    def get_outputs(self) -> Sequence[Argument]:
        """List the outputs."""
        return self._outputs

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        """Run the network, which is opened first if another one is open."""
        return self._session().run(names, feeds)
