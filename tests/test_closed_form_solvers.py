"""The solvers for SVD, Tucker and rank one, against tensorly and linear algebra."""

import numpy as np
import pytest
import tensorly as tl
from conv_cases import FEW, SOME, difference
from hypothesis import given
from hypothesis import strategies as st
from kernels import error_under, metric_for, random, smooth
from tensorly.decomposition import parafac, partial_tucker

from converter.decomposition.problem import KernelProblem
from converter.decomposition.solvers.rank_one import rank_one
from converter.decomposition.solvers.svd import tail_errors, truncated_svd
from converter.decomposition.solvers.tucker import tucker2


@SOME
@given(
    count=st.integers(1, 5),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    seed=st.integers(0, 100),
)
def test_rank_one_is_exact_where_the_tensors_have_rank_one(count, shape, seed):
    rng = np.random.default_rng(seed)
    factors = [np.eye(count), *(rng.standard_normal((n, count)) for n in shape)]
    tensors = tl.cp_to_tensor((None, factors))
    terms = rank_one(tensors)
    assert terms.shape == (count, *shape)
    assert difference(tl.cp_to_tensor(terms), tensors) < 1e-5


def test_rank_one_treats_each_tensor_by_itself():
    tensors = random((4, 5, 3, 3), 0)
    together = tl.cp_to_tensor(rank_one(tensors))
    alone = np.concatenate([tl.cp_to_tensor(rank_one(tensor[None])) for tensor in tensors])
    assert difference(together, alone) < 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_rank_one_is_not_worse_than_tensorly(seed):
    tensors = smooth((3, 6, 3, 3), seed)
    ours = tl.cp_to_tensor(rank_one(tensors))
    for tensor, found in zip(tensors, ours):
        with tl.backend_context("numpy"):
            theirs = tl.cp_to_tensor(parafac(tensor, 1, n_iter_max=100, init="svd"))
        assert difference(found, tensor) <= 1.02 * difference(theirs, tensor)


def test_rank_one_of_matrices_is_their_leading_singular_pair():
    matrices = random((3, 6, 4), 0)
    left, right = truncated_svd(matrices, 1)
    assert difference(tl.cp_to_tensor(rank_one(matrices)), left @ right) < 1e-5


def test_a_zero_tensor_in_a_stack_stays_zero_and_disturbs_no_other():
    tensors = random((3, 5, 3, 3), 0)
    tensors[1] = 0
    found = tl.cp_to_tensor(rank_one(tensors))
    assert not found[1].any()
    assert difference(found[[0, 2]], tl.cp_to_tensor(rank_one(tensors[[0, 2]]))) < 1e-5


@pytest.mark.parametrize("make", [random, smooth])
@pytest.mark.parametrize("ranks", [(2, 3), (6, 4), (10, 2)])
def test_tucker_is_not_worse_than_tensorly(make, ranks):
    tensor = make((10, 8, 9), seed=sum(ranks))
    with tl.backend_context("numpy"):
        (core, factors), _ = partial_tucker(
            tensor, rank=list(ranks), modes=[0, 1], init="svd", n_iter_max=100, tol=1e-8
        )
        theirs = difference(tl.tenalg.multi_mode_dot(core, factors, modes=[0, 1]), tensor)
    ours = difference(tl.tucker_to_tensor(tucker2(KernelProblem(tensor), ranks)), tensor)
    assert ours <= theirs + 1e-3


@pytest.mark.parametrize("ranks", [(1, 1), (4, 6), (10, 8)])
def test_the_outer_factors_of_tucker_are_orthonormal(ranks):
    core, (out, inner, _) = tucker2(KernelProblem(random((10, 8, 9), 0)), ranks)
    assert core.shape == (*ranks, 9)
    assert difference(out.T @ out, np.eye(ranks[0])) < 1e-5
    assert difference(inner.T @ inner, np.eye(ranks[1])) < 1e-5


@FEW
@given(m=st.integers(1, 6), n=st.integers(1, 6), seed=st.integers(0, 100), data=st.data())
def test_the_truncated_svd_is_the_best_and_split_evenly(m, n, seed, data):
    matrices = random((3, m, n), seed)
    R = data.draw(st.integers(1, min(m, n)))
    left, right = truncated_svd(matrices, R)
    assert (left.shape, right.shape) == ((3, m, R), (3, R, n))
    for matrix, product in zip(matrices, left @ right):
        discarded = np.linalg.svd(matrix, compute_uv=False)[R:]
        assert abs(np.linalg.norm(matrix - product) - np.linalg.norm(discarded)) < 1e-5
    gram = left.swapaxes(1, 2) @ left
    assert difference(right @ right.swapaxes(1, 2), gram) < 1e-5


@FEW
@given(m=st.integers(1, 8), n=st.integers(1, 8), seed=st.integers(0, 100))
def test_the_tail_errors_are_those_of_the_truncated_svd(m, n, seed):
    matrix = random((m, n), seed)
    tail = tail_errors(matrix)
    assert len(tail) == min(m, n) + 1
    assert abs(tail[0] - 1) < 1e-9
    assert tail[-1] == 0
    assert np.all(np.diff(tail) <= 0)
    for R in range(1, min(m, n) + 1):
        left, right = truncated_svd(matrix, R)
        assert abs(tail[R] - difference(left @ right, matrix)) < 1e-6


def test_the_tail_of_a_matrix_of_low_rank_ends_early():
    matrix = random((8, 2), 0) @ random((2, 9), 1)
    tail = tail_errors(matrix)
    assert tail[1] > 0.05
    assert np.all(tail[2:] < 1e-6)


def test_the_tail_errors_of_zeros_are_zeros():
    assert not tail_errors(np.zeros((3, 4))).any()


def test_rank_one_finds_a_term_of_a_sparse_tensor():
    tensors = np.zeros((1, 4, 4, 4))
    for at in [(0, 0, 0), (1, 0, 1), (2, 1, 2), (3, 2, 2)]:
        tensors[(0, *at)] = 1
    assert difference(tl.cp_to_tensor(rank_one(tensors)), tensors) <= np.sqrt(3 / 4) + 1e-9


@FEW
@given(m=st.integers(1, 6), n=st.integers(1, 6), seed=st.integers(0, 100), data=st.data())
def test_the_truncated_svd_under_a_metric_is_that_of_the_whitened_matrix(m, n, seed, data):
    matrix = random((m, n), seed)
    metric = metric_for((1, n, 1), seed + 1).full
    R = data.draw(st.integers(1, min(m, n)))
    a, b = truncated_svd(matrix, R, metric)
    root = np.linalg.cholesky(metric)

    def error(product):
        return np.linalg.norm((matrix - product) @ root)

    discarded = np.linalg.svd(matrix @ root, compute_uv=False)
    size = np.linalg.norm(discarded)
    assert abs(error(a @ b) - np.linalg.norm(discarded[R:])) < 1e-7 * size
    rng = np.random.default_rng(seed)
    for step in (1e-3, 1e-1):
        moved = [f + step * np.linalg.norm(f) * rng.standard_normal(f.shape) for f in (a, b)]
        assert error(a @ b) <= error(moved[0] @ moved[1]) + 1e-7 * size


@pytest.mark.parametrize("ranks", [(2, 3), (6, 4), (10, 1)])
def test_tucker_under_a_metric_is_closer_there_than_plain_tucker(ranks):
    tensor, metric = smooth((10, 8, 3), 0), metric_for((10, 8, 3), 1)
    plain, ours = (
        tl.tucker_to_tensor(tucker2(KernelProblem(tensor, under), ranks))
        for under in (None, metric)
    )
    assert error_under(metric, ours, tensor) < 0.97 * error_under(metric, plain, tensor)
