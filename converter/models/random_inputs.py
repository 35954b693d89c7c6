"""Random inputs that a network runs on, in place of sample inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from converter.data.data import Data, random_data
from converter.data.inputs import Input
from converter.errors import ConverterError
from converter.graph.network import open_session
from converter.runtime.ort import run


def random_inputs(
    network: ir.Model,
    inputs: Sequence[Input],
    shapes: Mapping[str, Sequence[int]],
    count: int,
    seed: int,
) -> Data:
    """Make random inputs for which a network gives finite values, if there are any.

    Floats are normal, or uniform in 0..1 for a network that takes a logarithm or a root. Integers
    are 1, else the largest size of an input, which may be a length, else 0.

    Args:
        network: It is run on one example, or on a batch of its fixed size.
        inputs: Its inputs.
        shapes: Their shapes by name; the first axis, the batch, is not used.
        count: Number of examples.
        seed: Seed of the random numbers.

    Raises:
        ConverterError: When the network runs on none of them.
    """
    dtypes = {item.name: item.dtype for item in inputs}
    make = partial(random_data, shapes, dtypes, count, seed)
    integers = any(dtype.kind in "iu" and dtype != np.uint8 for dtype in dtypes.values())
    longest = max((size for shape in shapes.values() for size in shape[1:]), default=1)
    session = open_session(network)
    not_finite, problem = None, None
    for whole in dict.fromkeys([1, longest, 0]) if integers else [1]:
        for positive in (False, True):
            data = make(positive=positive, whole=whole)
            batch = np.arange(inputs[0].shape[0] or 1) if inputs[0].shape else np.arange(1)
            try:
                outputs = run(session, data.read(batch))
            except ConverterError as error:
                problem = problem or error
                continue
            arrays = [a for a in outputs.values() if isinstance(a, np.ndarray)]
            if all(np.isfinite(a).all() for a in arrays if a.dtype.kind == "f"):
                return data
            not_finite = not_finite or data
    if not_finite is None:
        raise ConverterError(
            f"The network does not run on random inputs; give sample inputs with --calib. {problem}"
        )
    return not_finite
