"""``OnnxRuntime``: networks in onnxruntime."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from converter.errors import ConverterError, first_line
from converter.options import TimingOptions
from converter.runtime.ort_session import DEFAULT_PROVIDER, NodeTime, open_session, profile_nodes
from converter.runtime.ort_session import cpu_model as cpu_model
from converter.runtime.runtime import Limits, Session

BLOCKS = (16, 8)  # channels that a convolution computes together, with AVX-512 and without


@dataclass(frozen=True)
class OnnxRuntime:
    """onnxruntime, on some threads and one execution provider.

    Attributes:
        threads: Threads of a session.
        provider: Execution provider.

    Raises:
        ConverterError: When onnxruntime has no such provider here.
    """

    threads: int = 1
    provider: str = DEFAULT_PROVIDER

    def __post_init__(self) -> None:
        """Check that the provider is available; onnxruntime would quietly take another."""
        available = onnxruntime.get_available_providers()
        if self.provider not in available:
            raise ConverterError(
                f"Provider {self.provider!r} is not available here; use one of "
                f"{', '.join(available)}."
            )

    @classmethod
    def of(cls, timing: TimingOptions) -> OnnxRuntime:
        """Return the runtime for ``--threads`` and ``--provider``."""
        return cls(timing.threads, timing.provider or DEFAULT_PROVIDER)

    def with_threads(self, threads: int) -> OnnxRuntime:
        """Return the same runtime with other threads, to run networks for their outputs."""
        return replace(self, threads=threads)

    @property
    def version(self) -> str:
        """Version of onnxruntime."""
        return str(onnxruntime.__version__)

    def open(self, model: bytes | Path, weights: Path | None = None, **files: str) -> Session:
        """Open a network; ``files`` are further arguments of ``ort_session.open_session``."""
        content = str(model) if isinstance(model, Path) else model
        folder = None if weights is None else str(weights)
        with _as_errors("onnxruntime cannot open the network"):
            session: Session = open_session(
                content, self.threads, self.provider, weights=folder, **files
            )
        return session

    def profile(
        self,
        model: bytes | Path,
        feeds: Mapping[str, np.ndarray],
        seconds: float,
        weights: Path | None = None,
    ) -> tuple[NodeTime, ...]:
        """Time the nodes of a network, in the order in which they run."""
        with _as_errors("onnxruntime cannot run the network"):
            return profile_nodes(
                lambda file: self.open(model, weights, profile=file), feeds, seconds
            )

    def block(self) -> int:
        """Return how many channels are computed together, read from the size of a padded kernel."""
        sizes = [1, BLOCKS[0], 8, 8]
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)],
            "block",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, sizes)],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [onnx.numpy_helper.from_array(np.zeros((2, BLOCKS[0], 3, 3), np.float32), "w")],
        )
        opsets = [onnx.helper.make_opsetid("", 13)]
        model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            self.open(model.SerializeToString(), optimized=str(path))
            kernels = onnx.load(path).graph.initializer
        padded = max((kernel.dims[0] for kernel in kernels if len(kernel.dims) == 4), default=0)
        return padded if padded in BLOCKS else BLOCKS[1]

    def quantize(
        self, model: onnx.ModelProto, limits: Limits, in_float: Collection[str] = ()
    ) -> onnx.ModelProto:
        """Quantize statically to QDQ: weights per channel, activations per tensor."""
        from converter.runtime.ort_quantizer import quantize  # slow to import

        return quantize(model, limits, in_float)


def run(session: Session, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a session and return its outputs by name.

    Raises:
        ConverterError: When onnxruntime refuses the inputs or fails.
    """
    names = [output.name for output in session.get_outputs()]
    shapes = {name: array.shape for name, array in feeds.items()}
    with _as_errors(f"onnxruntime cannot run the network on inputs of shape {shapes}"):
        return dict(zip(names, session.run(names, dict(feeds))))


@contextlib.contextmanager
def _as_errors(message: str) -> Iterator[None]:
    """Turn an exception of onnxruntime into one sentence after ``message``."""
    try:
        yield
    except ConverterError:
        raise
    except Exception as error:  # onnxruntime raises its own unexported classes
        raise ConverterError(f"{message}: {first_line(error)}") from None
