"""The protocols ``Runtime`` and ``Session``, and sessions too large to be open together."""

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
    """An input or output of an open network; onnxruntime's own object keeps its session alive.

    Attributes:
        name: Tensor name.
        shape: Sizes; a text or None where a size is free.
        type: ONNX type, such as ``tensor(float)``.
    """

    name: str
    shape: tuple[int | str | None, ...]
    type: str

    @classmethod
    def of(cls, argument: Any) -> Argument:
        """Copy name, shape and type of onnxruntime's object."""
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
    """Opens, times and quantizes networks with fixed threads and a fixed device."""

    @property
    def version(self) -> str:
        """Version of the runtime."""
        ...

    @property
    def provider(self) -> str:
        """The runtime's name of the device or backend."""
        ...

    @property
    def threads(self) -> int:
        """Threads of a session."""
        ...

    def with_threads(self, threads: int) -> Runtime:
        """Return the same runtime with other threads, to run networks for their outputs."""
        ...

    def open(self, model: bytes | Path, weights: Path | None = None) -> Session:
        """Open a network.

        Args:
            model: The content of an ONNX file, or its path.
            weights: Folder of the external weights if ``model`` is content.

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
        """Return how many channels are computed together; kernels are padded to a multiple."""
        ...

    def quantize(
        self, model: onnx.ModelProto, limits: Limits, in_float: Collection[str] = ()
    ) -> onnx.ModelProto:
        """Quantize weights and activations of a network to int8.

        Args:
            model: Network with named nodes, constants as initializers, and known shapes. It may be
                changed.
            limits: Ranges of the tensors; nodes of tensors without one stay in floating point.
            in_float: Output tensors of the nodes that stay in floating point.

        Raises:
            ConverterError: When the network cannot be quantized.
        """
        ...


class ExclusiveSession:
    """One of several sessions too large to be open together: using one closes the others."""

    def __init__(self, opener: Callable[[], Session], open_now: dict[int, Session]) -> None:
        """Open the session once, to read its inputs and outputs.

        Args:
            opener: Opens the session.
            open_now: The session that is open, by ``id`` of its owner; shared by all owners.
        """
        self._opener, self._open_now = opener, open_now
        session = self._session()
        self._inputs = [Argument.of(value) for value in session.get_inputs()]
        self._outputs = [Argument.of(value) for value in session.get_outputs()]

    def _session(self) -> Session:
        if id(self) not in self._open_now:
            self._open_now.clear()
            self._open_now[id(self)] = self._opener()
        return self._open_now[id(self)]

    def get_inputs(self) -> Sequence[Argument]:
        """List the inputs."""
        return self._inputs

    def get_outputs(self) -> Sequence[Argument]:
        """List the outputs."""
        return self._outputs

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[Any]:
        """Run the network; open it first if another one is open."""
        return self._session().run(names, feeds)
