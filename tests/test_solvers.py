"""The CP solver by itself, against tensorly and against what linear algebra promises."""

import numpy as np
import pytest
import tensorly as tl
import torch
from conv_cases import SOME, difference
from hypothesis import given
from hypothesis import strategies as st
from kernels import error_under, metric_for, random, smooth
from tensorly.decomposition import parafac

from converter.decomposition.metric import Metric
from converter.decomposition.problem import KernelProblem, SolverSettings
from converter.decomposition.solvers.cp import cp
from converter.decomposition.solvers.rank_one import rank_one
from converter.decomposition.solvers.svd import exact_rank
from converter.decomposition.solvers.tucker import tucker2


def cp_of(tensor, R, metric=None, seed=0, start=None):
    return cp(KernelProblem(tensor, metric, start), R, SolverSettings(seed=seed))


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


@pytest.mark.parametrize("metric", [None, "kronecker", "full"])
def test_the_largest_terms_of_a_start_are_taken(metric):
    shape, known = (8, 6, 3, 3), [random((n, 4), n) for n in (8, 6, 3, 4)]
    known[3] = known[3][:3]
    more = [np.hstack([1e-3 * random((n, 3), 9), f]) for n, f in zip(shape, known)]
    under = metric_for(shape, 1, metric == "kronecker") if metric else None
    tensor = tl.cp_to_tensor((None, known))
    found = cp_of(tensor, 4, under, 1, tl.cp_tensor.CPTensor((None, more)))
    assert difference(tl.cp_to_tensor(found), tensor) < 1e-3


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
