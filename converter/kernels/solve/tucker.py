"""Tucker-2: the channel modes of a kernel compressed, its spatial modes left as they are."""

from __future__ import annotations

import warnings

import numpy as np
import tensorly as tl
from tensorly.decomposition import partial_tucker


def tucker2(
    tensor: np.ndarray, ranks: tuple[int, int], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decompose a kernel over its first two modes (Kim et al., arXiv 1511.06530).

    Args:
        tensor: (O, I, K), float64.
        ranks: (R2, R1) of the O and the I mode.
        seed: Of tensorly's random numbers.

    Returns:
        out (O, R2), core (R2, R1, K), in (I, R1); the columns of out and in are orthonormal.
    """
    with tl.backend_context("numpy"), warnings.catch_warnings(), np.errstate(all="ignore"):
        # tensorly warns where a rank exceeds an unfolding, which it handles.
        warnings.simplefilter("ignore")
        (core, (out, inner)), _ = partial_tucker(
            tensor, rank=list(ranks), modes=[0, 1], init="svd", n_iter_max=50, random_state=seed
        )
    return out, core, inner
