"""Gauss-Newton on variable projection: its derivatives, its errors and where it ends."""

import itertools

import numpy as np
import pytest
import torch
from conv_cases import SOME
from hypothesis import assume, given
from hypothesis import strategies as st

from converter.decomposition.solvers.khatri_rao import contract, equalize_norms, khatri_rao
from converter.decomposition.solvers.levenberg_marquardt import minimise
from converter.decomposition.solvers.varpro import FrobeniusLoss, MetricLoss

SIZES = st.lists(st.integers(1, 4), min_size=2, max_size=4)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def problems(sizes, O=6, seed=0):
    """A random target under the Frobenius norm, under the identity, and under full moments."""
    n = int(np.prod(sizes))
    target, patches = normal(O, n, seed=seed), normal(3 * n, n, seed=seed + 1)
    S = patches.T @ patches / len(patches)
    return (
        FrobeniusLoss(target),
        MetricLoss.of(target, torch.eye(n).double()),
        MetricLoss.of(target, S),
    )


def factors_for(sizes, R, seed=2):
    return [normal(n, R, seed=seed + j) for j, n in enumerate(sizes)]


def squared_error(problem, outer, factors):
    rest = problem.target - outer @ khatri_rao(factors).T
    S = problem.metric if isinstance(problem, MetricLoss) else torch.eye(rest.shape[1]).double()
    return float(torch.trace(rest @ S @ rest.T))


def dot(a, b):
    return sum(float((x * y).sum()) for x, y in zip(a, b, strict=True))


@SOME
@given(sizes=SIZES, R=st.integers(1, 4), mode=st.integers(0, 3), seed=st.integers(0, 100))
def test_contracting_is_the_adjoint_of_the_khatri_rao_product(sizes, R, mode, seed):
    mode %= len(sizes)
    factors = factors_for(sizes, R, seed)
    matrix = normal(int(np.prod(sizes)), R, seed=seed)
    left = float((matrix * khatri_rao(factors)).sum())
    assert left == pytest.approx(float((contract(matrix, factors, mode) * factors[mode]).sum()))


@SOME
@given(sizes=SIZES, R=st.integers(1, 4), seed=st.integers(0, 100))
def test_the_gradient_is_that_of_finite_differences(sizes, R, seed):
    f, v = factors_for(sizes, R, seed), factors_for(sizes, R, seed + 50)
    for problem in problems(sizes, seed=seed):
        step = 1e-6
        ahead, behind = (
            problem.evaluate([x + sign * step * y for x, y in zip(f, v)]).loss for sign in (1, -1)
        )
        at = problem.evaluate(f)
        slope = 2 * dot(problem.gradient(at), v)
        # The gradient leaves out the ridge, which matters only where terms are nearly dependent.
        assume(np.linalg.cond(khatri_rao(f)) < 30)
        size = 2 * np.sqrt(dot(problem.gradient(at), problem.gradient(at)) * dot(v, v))
        assert abs((ahead - behind) / (2 * step) - slope) < 1e-3 * (size + problem.power)


@SOME
@given(sizes=SIZES, R=st.integers(1, 3), seed=st.integers(0, 100))
def test_the_curvature_is_that_of_the_projected_jacobian(sizes, R, seed):
    f, v = factors_for(sizes, R, seed), factors_for(sizes, R, seed + 50)
    for problem in problems(sizes, seed=seed):
        at = problem.evaluate(f)
        moved = sum(khatri_rao([*f[:j], v[j], *f[j + 1 :]]) for j in range(len(f)))
        Z = khatri_rao(f)
        S = problem.metric if isinstance(problem, MetricLoss) else torch.eye(len(Z)).double()
        left = moved - Z @ at.inverse @ Z.T @ S @ moved  # what A cannot make up for
        bend = float(torch.trace(at.inner @ (moved.T @ S @ left)))
        size = float(torch.trace(at.inner @ (moved.T @ S @ moved)))
        assert abs(dot(problem.curvature(at)(v), v) - bend) < 1e-8 * size


@SOME
@given(sizes=SIZES, R=st.integers(1, 4), seed=st.integers(0, 100))
def test_the_identity_as_a_metric_is_the_frobenius_norm(sizes, R, seed):
    f, v = factors_for(sizes, R, seed), factors_for(sizes, R, seed + 50)
    plain, same, _ = problems(sizes, seed=seed)
    at, also = plain.evaluate(f), same.evaluate(f)
    assert at.loss == pytest.approx(also.loss, rel=1e-8, abs=1e-8 * plain.power)
    for one, other in [
        (plain.gradient(at), same.gradient(also)),
        (plain.curvature(at)(v), same.curvature(also)(v)),
    ]:
        gap = [x - y for x, y in zip(one, other, strict=True)]
        assert dot(gap, gap) < 1e-12 * (dot(other, other) + plain.power**2)


@SOME
@given(sizes=SIZES, R=st.integers(1, 6), seed=st.integers(0, 100))
def test_the_error_reported_is_the_error_and_never_rises(sizes, R, seed):
    f = factors_for(sizes, R, seed)
    for problem in problems(sizes, seed=seed):
        errors = []
        for steps in (0, 1, 2, 20):
            fit = minimise(problem, f, steps, 10)
            true = squared_error(problem, fit.outer, fit.factors) / problem.power
            assert abs(fit.error - true) < 1e-8
            errors.append(fit.error)
        assert all(b <= a + 1e-5 for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("cg_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("metric", [False, True])
def test_equal_terms_and_terms_of_zero_are_survived(cg_dtype, metric):
    f = factors_for((4, 3, 3), 6)
    f = [torch.hstack([x, x, 1e-30 * x, 0 * x]) for x in f]
    target, S = normal(6, 36), torch.eye(36).double()
    problem = MetricLoss.of(target, S, cg_dtype) if metric else FrobeniusLoss(target, cg_dtype)
    fit = minimise(problem, f, 20, 10)
    assert all(torch.isfinite(x).all() for x in (fit.outer, *fit.factors))
    assert fit.error < minimise(problem, f, 0, 10).error


def test_a_perfect_start_stays_where_it_is():
    f = factors_for((4, 3), 2)
    target = normal(6, 2) @ khatri_rao(f).T
    assert minimise(FrobeniusLoss(target), f, 20, 10).error < 1e-10


def test_a_start_of_zeros_and_a_target_of_zeros_end_at_once():
    zeros = [torch.zeros(n, 2).double() for n in (4, 3)]
    assert minimise(FrobeniusLoss(normal(6, 12)), zeros, 20, 10).error == pytest.approx(1)
    assert (
        minimise(FrobeniusLoss(torch.zeros(6, 12).double()), factors_for((4, 3), 2), 20, 10).error
        == 0
    )


@SOME
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    exponent=st.integers(-6, 6),
    seed=st.integers(0, 100),
)
def test_balancing_keeps_the_product_and_evens_the_norms(shape, exponent, seed):
    factors = factors_for(shape, 3, seed)
    factors[0] = factors[0] * 10.0**exponent
    even = equalize_norms(factors)
    assert torch.allclose(khatri_rao(even), khatri_rao(factors), rtol=1e-9, atol=0)
    norms = torch.stack([factor.norm(dim=0) for factor in even])
    assert torch.all(norms.amax(0) - norms.amin(0) <= 1e-9 * norms.amax(0))


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_balancing_a_zero_term_zeroes_all_its_factors(mode):
    factors = factors_for((4, 5, 6), 3)
    factors[mode][:, 1] = 0
    even = equalize_norms(factors)
    assert not any(factor[:, 1].any() for factor in even)
    assert torch.allclose(khatri_rao(even), khatri_rao(factors))


@pytest.mark.parametrize("metric", [False, True])
def test_steps_in_single_precision_come_as_far_as_in_double(metric):
    sizes, R = (24, 5, 5), 40
    n, f = 600, factors_for(sizes, R)
    target = normal(80, n) * torch.logspace(0, -3, n).double()
    S = normal(n, n, seed=9) * torch.logspace(0, -3, n).double()
    found = [
        minimise(
            MetricLoss.of(target, S.T @ S, cg_dtype) if metric else FrobeniusLoss(target, cg_dtype),
            f,
            30,
            10,
        ).error
        for cg_dtype in (torch.float32, torch.float64)
    ]
    assert found[0] < 1.02 * found[1]
