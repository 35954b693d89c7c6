"""``Metric``: every product agrees with that of the dense second moments."""

import numpy as np
import pytest
from conv_cases import SOME, difference
from hypothesis import given
from hypothesis import strategies as st

from converter.decomposition.metric import Metric

SIZES = st.sampled_from([(1, (1,)), (4, (3,)), (3, (2, 3)), (1, (3, 2)), (2, (2, 1, 3))])


def moments(n, seed, count=None):
    """Second moments of ``count`` correlated patches."""
    rng = np.random.default_rng(seed)
    patches = rng.standard_normal((count or 4 * n, n)) @ rng.standard_normal((n, n))
    return patches.T @ patches / len(patches)


def metrics(I, k, seed):
    K = int(np.prod(k))
    full = Metric.of(moments(I * K, seed), I)
    return full, Metric.kronecker(moments(I, seed), moments(K, seed + 1))


@SOME
@given(size=SIZES, seed=st.integers(0, 100))
def test_products_are_those_of_the_dense_moments(size, seed):
    I, k = size
    kernel = np.random.default_rng(seed).standard_normal((5, I, *k))
    rows = kernel.reshape(5, -1)
    for metric in metrics(I, k, seed):
        S = metric.dense()
        assert difference(metric.times(rows), rows @ S) < 1e-10
        assert metric.square(kernel) == pytest.approx(np.trace(rows @ S @ rows.T), rel=1e-10)
        blocks = S.reshape(I, len(S) // I, I, -1)
        own = np.stack([blocks[i, :, i] for i in range(I)])
        assert difference(metric.windows(), own) < 1e-10


@SOME
@given(size=SIZES, seed=st.integers(0, 100))
def test_full_moments_are_kept_and_their_kronecker_form_is_exact_for_a_product(size, seed):
    I, k = size
    K = int(np.prod(k))
    S = moments(I * K, seed)
    assert difference(Metric.of(S, I).dense(), S) < 1e-5
    product = np.kron(moments(I, seed), moments(K, seed + 1))
    metric = Metric.of(product, I)
    assert np.trace(metric.window) == pytest.approx(K)
    assert difference(np.kron(metric.channels, metric.window), product) < 1e-4


@SOME
@given(size=SIZES, seed=st.integers(0, 100))
def test_the_roots_of_a_product_of_axes_whiten_it(size, seed):
    I, k = size
    axes = [moments(n, seed + n) for n in k]
    window = np.eye(1)
    for axis in axes:
        window = np.kron(window, axis)
    metric = Metric.kronecker(moments(I, seed), window)
    for sizes in (k, (len(window),)):
        root = np.eye(1)
        for part in metric.roots(sizes):
            root = np.kron(root, part)
        assert difference(root @ root.T, metric.dense()) < 1e-4


@pytest.mark.parametrize("count", [0, 1, 3])
def test_moments_of_few_patches_or_none_give_a_definite_metric(count):
    S = moments(12, 0, count) if count else np.zeros((12, 12))
    for metric in (Metric.of(S, 4), Metric.kronecker(S[:4, :4], S[:3, :3])):
        roots = metric.roots((3,))
        assert np.linalg.eigvalsh(metric.dense()).min() > 0
        for array in (metric.dense(), metric.windows(), *roots, *map(np.linalg.inv, roots)):
            assert np.isfinite(array).all()


def test_where_nothing_was_seen_the_metric_is_the_frobenius_norm():
    kernel = np.random.default_rng(0).standard_normal((5, 4, 3))
    nothing = np.zeros((12, 12))
    for metric in (Metric.of(nothing, 4), Metric.kronecker(nothing[:4, :4], nothing[:3, :3])):
        assert metric.square(kernel) == pytest.approx(np.sum(kernel**2))
