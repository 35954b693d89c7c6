"""The solvers by themselves, against tensorly and against what linear algebra promises."""

import numpy as np
import pytest
import tensorly as tl
import torch
from helpers import FEW, SOME, difference
from hypothesis import given
from hypothesis import strategies as st
from tensorly.decomposition import parafac, partial_tucker

from converter.decomposition.metric import Metric
from converter.decomposition.problem import KernelProblem, SolverSettings
from converter.decomposition.solvers.cp import cp
from converter.decomposition.solvers.rank_one import rank_one
from converter.decomposition.solvers.svd import exact_rank, tail_errors, truncated_svd
from converter.decomposition.solvers.tucker import tucker2


def random(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape)


def smooth(shape, seed):
    """A tensor with a few strong directions, as trained kernels have."""
    rng = np.random.default_rng(seed)
    factors = [rng.standard_normal((n, 12)) for n in shape]
    weights = 0.7 ** np.arange(12)
    letters = "abcde"[: len(shape)]
    spec = ",".join(["r", *(f"{letter}r" for letter in letters)])
    signal = np.einsum(f"{spec}->{letters}", weights, *factors)
    return signal + 0.1 * rng.standard_normal(shape)


def cp_of(tensor, R, metric=None, seed=0, start=None):
    return cp(KernelProblem(tensor, metric, start), R, SolverSettings(seed=seed))


def metric_for(shape, seed, kronecker=False):
    """What correlated patches make of the modes 1, 2, ... of a tensor of ``shape``."""
    I, n = shape[1], int(np.prod(shape[1:]))
    rng = np.random.default_rng(seed)
    S = rng.standard_normal((3 * n, n)) @ (rng.standard_normal((n, n)) * 0.9 ** np.arange(n))
    metric = Metric.of(S.T @ S / len(S), I)
    return Metric.kronecker(metric.channels, metric.window) if kronecker else metric


def error_under(metric, found, wanted):
    return np.sqrt(metric.square(found - wanted) / metric.square(wanted))


@pytest.mark.filterwarnings("ignore:Trying to compute SVD")
@pytest.mark.parametrize("make", [random, smooth])
@pytest.mark.parametrize(
    ("shape", "R"),
    [
        ((10, 8, 9), 4),
        ((10, 8, 9), 12),
        ((8, 6, 3, 3), 6),
        ((6, 10, 5, 3), 12),
        ((5, 4, 3, 2, 3), 5),
    ],
)
def test_cp_is_not_worse_than_tensorly(make, shape, R):
    tensor = make(shape, seed=R)
    with tl.backend_context("pytorch"):
        _, factors = parafac(
            torch.from_numpy(tensor), R, n_iter_max=100, tol=1e-7, init="svd", random_state=0
        )
    theirs = difference(tl.cp_to_tensor((None, [f.numpy() for f in factors])), tensor)
    assert difference(tl.cp_to_tensor(cp_of(tensor, R)), tensor) <= 1.02 * theirs


@SOME
@given(
    shape=st.lists(st.integers(1, 5), min_size=3, max_size=5),
    more=st.integers(0, 3),
    seed=st.integers(0, 100),
)
def test_cp_is_exact_from_the_exact_rank_on(shape, more, seed):
    tensor = random(shape, seed)
    R = exact_rank(tuple(shape)) + more
    terms = cp_of(tensor, R)
    assert [factor.shape for factor in terms.factors] == [(n, R) for n in shape]
    assert difference(tl.cp_to_tensor(terms), tensor) < 1e-5


@pytest.mark.parametrize(
    ("shape", "rank"), [((8, 4, 9), 32), ((8, 4, 3), 12), ((2, 64, 9), 18), ((5, 1, 1), 1)]
)
def test_the_exact_rank_leaves_out_the_largest_mode(shape, rank):
    assert exact_rank(shape) == rank


def test_cp_spreads_the_norm_of_each_term_evenly():
    factors = cp_of(random((8, 6, 9), 0), 5).factors
    norms = np.stack([np.linalg.norm(factor, axis=0) for factor in factors])
    assert np.ptp(norms, axis=0).max() < 1e-5 * norms.max()


@pytest.mark.filterwarnings("ignore:Trying to compute SVD")
def test_solving_leaves_the_input_and_tensorlys_backend_alone():
    tensor = random((6, 5, 4), 0)
    before, backend = tensor.copy(), tl.get_backend()
    cp_of(tensor, 7)
    tucker2(KernelProblem(tensor), (3, 3))
    rank_one(tensor)
    assert tensor.tobytes() == before.tobytes()
    assert tl.get_backend() == backend


@pytest.mark.filterwarnings("ignore:Trying to compute SVD")
def test_one_seed_gives_one_decomposition():
    tensor = random((6, 5, 4), 0)
    once, again = (cp_of(tensor, 8, seed=5).factors for _ in range(2))
    assert [f.tobytes() for f in once] == [f.tobytes() for f in again]


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


@pytest.mark.parametrize("kronecker", [False, True])
@pytest.mark.parametrize(("shape", "R"), [((10, 8, 9), 6), ((8, 6, 3, 3), 10)])
def test_cp_under_a_metric_is_closer_there_than_plain_cp(shape, R, kronecker):
    tensor, metric = smooth(shape, 0), metric_for(shape, 1, kronecker)
    ours = error_under(metric, tl.cp_to_tensor(cp_of(tensor, R, metric)), tensor)
    assert ours < 0.9 * error_under(metric, tl.cp_to_tensor(cp_of(tensor, R)), tensor)


@pytest.mark.parametrize("metric", [None, "kronecker", "full"])
@pytest.mark.parametrize("R", [4, 7])
def test_a_warm_start_is_never_worse_than_it_was(metric, R):
    shape = (8, 6, 3, 3)
    tensor = smooth(shape, 0)
    under = metric_for(shape, 1, metric == "kronecker") if metric else None
    judge = under or Metric.of(np.eye(54), 6)
    start = cp_of(tensor, 4, under)
    found = cp_of(tensor, R, under, 1, start)
    before = error_under(judge, tl.cp_to_tensor(start), tensor)
    assert error_under(judge, tl.cp_to_tensor(found), tensor) <= 1.001 * before  # the ridge


@pytest.mark.parametrize("metric", [False, True])
def test_cp_recovers_a_known_rank(metric):
    tensor = tl.cp_to_tensor((None, [random((n, 4), n) for n in (9, 7, 5)]))
    under = metric_for(tensor.shape, 1) if metric else None
    assert difference(tl.cp_to_tensor(cp_of(tensor, 4, under)), tensor) < 1e-4


@pytest.mark.parametrize("metric", [False, True])
@pytest.mark.parametrize("R", [2, 3, 5])
def test_terms_stay_bounded_where_no_best_approximation_exists(metric, R):
    a, b = np.eye(5)[:2]
    tensor = sum(np.einsum("i,j,k->ijk", *t) for t in [(a, a, b), (a, b, a), (b, a, a)])
    under = metric_for(tensor.shape, 1) if metric else None
    found = cp_of(tensor, R, under)
    terms = np.prod([np.linalg.norm(factor, axis=0) for factor in found.factors], axis=0)
    assert terms.max() < 1e3 * np.linalg.norm(tensor)
    assert difference(tl.cp_to_tensor(found), tensor) < 0.05


def test_another_seed_ends_at_a_similar_error():
    tensor = smooth((10, 8, 9), 0)
    errors = [difference(tl.cp_to_tensor(cp_of(tensor, 6, seed=seed)), tensor) for seed in range(5)]
    assert max(errors) < 1.1 * min(errors)


@pytest.mark.parametrize("R", [1, 5, 40])
def test_a_tensor_of_zeros_gives_zeros(R):
    zeros = cp_of(np.zeros((6, 5, 4)), R, metric_for((6, 5, 4), 0))
    assert (zeros.shape, zeros.rank) == ((6, 5, 4), R)
    assert not tl.cp_to_tensor(zeros).any()


@pytest.mark.parametrize("metric", [False, True])
def test_channels_without_weights_cost_no_terms(metric):
    tensor = random((8, 8, 9), 0)
    tensor[:, 2:] = 0
    under = metric_for(tensor.shape, 1) if metric else Metric.of(np.eye(72), 8)
    found = tl.cp_to_tensor(cp_of(tensor, 8, under if metric else None))
    assert error_under(under, found, tensor) < 0.25


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_a_tensor_does_not_matter(scale):
    tensor = smooth((8, 6, 3, 3), 0)
    found = tl.cp_to_tensor(cp_of(scale * tensor, 6))
    assert difference(found / scale, tl.cp_to_tensor(cp_of(tensor, 6))) < 1e-3


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
