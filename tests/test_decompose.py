"""The public ``decompose``, tensorly's solvers, and the ranks that forms bring."""

import itertools
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import tensorly as tl
import torch
from conv_cases import EXACT_FORMS, SPLITTING_FORMS, difference, make_conv
from test_form_metrics import metrics_for

from converter.decomposition.api import decompose
from converter.decomposition.approximation import error_curve
from converter.decomposition.conv import Conv
from converter.decomposition.decompose import decompose as decompose_conv
from converter.decomposition.form import fit_rank, full_rank
from converter.decomposition.forms import FORMS
from converter.decomposition.problem import SOLVERS, SolverSettings
from converter.decomposition.ranks import rank_grid
from converter.errors import ConverterError

TENSORLY_FORMS = [name for name in SPLITTING_FORMS if name != "lvh2"]
KERNEL = np.random.default_rng(0).standard_normal((10, 8, 3, 3))


def to_kernel(form, tensor, shape):
    """The kernel (O, I, *k) that a decomposition's tensor stands for."""
    O, I, *k = shape
    if form == "spatial":
        return np.moveaxis(tl.tt_to_tensor(tensor).reshape(I, *k, O), -1, 0)
    dense = tl.tucker_to_tensor(tensor) if form == "tucker" else tl.cp_to_tensor(tensor)
    return dense.reshape(shape)


def some_rank(form, conv):
    return fit_rank((4,) * len(full_rank(FORMS[form], conv)), FORMS[form], conv)


@pytest.mark.parametrize("metric", [None, "full"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("form", TENSORLY_FORMS)
def test_the_tensor_is_the_kernel_of_the_chain(form, solver, metric):
    conv = make_conv((10, 8, 3, 3))
    metric = metrics_for(conv)[0] if metric else None
    found = decompose(KERNEL, form, some_rank(form, conv), solver=solver, metric=metric)
    dense = found.chain.dense().kernel
    assert difference(to_kernel(form, found.tensor, KERNEL.shape), dense) < 1e-9
    if metric is None:
        assert found.rel_error == pytest.approx(difference(dense, KERNEL), rel=1e-9)


@pytest.mark.parametrize(("shape", "rank"), [((8, 6, 2, 3, 3), (4, 5)), ((8, 1, 3, 3), (2,))])
def test_the_tensor_of_other_shapes_is_the_kernel_of_the_chain(shape, rank):
    kernel = np.random.default_rng(1).standard_normal(shape)
    found = decompose(kernel, "spatial", rank)
    dense = found.chain.dense().kernel
    assert difference(to_kernel("spatial", found.tensor, shape), dense) < 1e-9
    one = decompose(kernel, "lvh", 1)
    assert difference(to_kernel("lvh", one.tensor, shape), one.chain.dense().kernel) < 1e-9


def test_the_two_stages_are_tensors_of_their_own():
    found = decompose(KERNEL, "lvh2", 6)
    first, second = (tl.cp_to_tensor(stage) for stage in found.tensor)
    assert (first.shape, second.shape) == ((6, 8, 2, 2), (10, 6, 2, 2))
    dense = np.zeros(KERNEL.shape)
    for h, w in itertools.product(range(2), range(2)):
        dense[:, :, h : h + 2, w : w + 2] += np.einsum("or,rihw->oihw", second[:, :, h, w], first)
    assert difference(dense, found.chain.dense().kernel) < 1e-9


@pytest.mark.parametrize("form", EXACT_FORMS)
def test_a_convolution_in_groups_has_a_tensor_for_each(form):
    conv = make_conv((8, 4, 3, 3), groups=2)
    found = decompose(conv, form, some_rank(form, conv))
    parts = [to_kernel(form, tensor, (4, 4, 3, 3)) for tensor in found.tensor]
    assert difference(np.concatenate(parts), found.chain.dense().kernel) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_torch_tensors_and_arrays_are_taken_alike(dtype):
    tensor = torch.from_numpy(KERNEL).to(dtype).requires_grad_()
    array = tensor.detach().float().numpy().astype(np.float64)
    ours, theirs = (decompose(kernel, "channel", 4) for kernel in (tensor, array))
    dense = [found.chain.dense().kernel for found in (ours, theirs)]
    assert difference(*dense) < (1e-6 if dtype in (torch.float64, torch.float32) else 1e-2)


def test_a_bfloat16_array_is_taken():
    assert decompose(KERNEL.astype(ml_dtypes.bfloat16), "channel", 10).rel_error < 0.05


@pytest.mark.parametrize(
    ("form", "rank", "channels"),
    [("channel", 0.5, [5]), ("channel", 0.01, [1]), ("tucker", (0.5, 0.3), [4, 3])],
)
def test_a_fraction_is_a_share_of_the_channels(form, rank, channels):
    steps = decompose(KERNEL, form, rank).chain.steps
    assert [step.O for step in steps[:-1]] == channels


def test_moments_may_be_given_as_an_array_or_a_metric():
    metric = metrics_for(make_conv((10, 8, 3, 3)))[0]
    aware, blind = (decompose(KERNEL, "tucker", (3, 4), metric=m) for m in (metric, None))
    again = decompose(KERNEL, "tucker", (3, 4), metric=metric.full)
    assert difference(again.chain.dense().kernel, aware.chain.dense().kernel) < 1e-3
    rest = blind.chain.dense().kernel - KERNEL
    assert aware.rel_error**2 < 0.95 * metric.square(rest) / metric.square(KERNEL)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"form": "winograd"}, "There is no form 'winograd'"),
        ({"rank": 99}, "Rank 99 does not fit; channel takes 1 to 10 here"),
        ({"rank": (2, 2)}, "has 2 parts; channel takes 1"),
        ({"rank": 0}, "must be above 0"),
        ({"solver": "scipy"}, "no solver 'scipy'; use one of flatconv, tensorly, tensorly.refine"),
        ({"solver": "tensorly", "form": "lvh2"}, "tensorly cannot .* lvh2; use solver flatconv"),
        ({"metric": np.eye(8)}, r"shape \(8, 8\) must be finite and of shape \(72, 72\)"),
        ({"metric": np.full((72, 72), np.nan)}, "must be finite"),
        ({"metric": [np.eye(72)] * 2}, "2 metrics do not fit 1 groups"),
        ({"metric": metrics_for(make_conv((8, 6, 3, 3)))[0]}, "6 channels and 9 positions"),
        ({"kernel": KERNEL.astype(int)}, "type int64 must be of a float type"),
        ({"kernel": np.full(KERNEL.shape, np.inf)}, "not finite"),
        ({"kernel": np.ones(3)}, "is not a convolution's"),
        ({"kernel": np.ones((8, 4, 1, 1)), "form": "spatial"}, "spatial cannot stand in"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, sentence):
    with pytest.raises(ConverterError, match=sentence):
        decompose(**({"kernel": KERNEL, "form": "channel", "rank": 4} | arguments))


@pytest.mark.parametrize("under", [None, "kronecker"])
@pytest.mark.parametrize("form", TENSORLY_FORMS)
def test_our_solver_is_at_least_as_close_as_tensorly_and_refining_not_worse(form, under):
    conv = make_conv((10, 8, 3, 3))
    metric = metrics_for(conv, kronecker=True)[0] if under else None
    rank = some_rank(form, conv)
    ours, alone, refined = (
        decompose(KERNEL, form, rank, solver=solver, metric=metric).rel_error for solver in SOLVERS
    )
    assert ours <= 1.02 * alone
    assert refined <= alone + 1e-6


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("form", TENSORLY_FORMS)
def test_one_seed_gives_the_same_bytes_with_every_solver(form, solver):
    conv = make_conv((12, 6, 3, 3), groups=2, dtype=np.float32)
    settings = SolverSettings(solver, seed=3)
    once, again = (
        decompose_conv(
            conv, FORMS[form], some_rank(form, conv), settings, metrics=metrics_for(conv)
        )
        for _ in range(2)
    )
    for first, second in zip(once.steps, again.steps, strict=True):
        assert first.kernel.tobytes() == second.kernel.tobytes()


@pytest.mark.parametrize("form", [*TENSORLY_FORMS, "dense"])
def test_tensorly_takes_a_kernel_of_zeros(form):
    found = decompose(
        np.zeros((6, 4, 3, 3)), form, some_rank(form, make_conv((6, 4, 3, 3))), solver="tensorly"
    )
    assert found.rel_error == 0
    assert all(np.isfinite(step.kernel).all() for step in found.chain.steps)


def test_solving_works_whatever_the_backend_of_tensorly_and_leaves_it_alone():
    expected = decompose(KERNEL, "tucker", (3, 4)).chain.dense().kernel
    with tl.backend_context("pytorch"):
        for solver, form in itertools.product(SOLVERS, TENSORLY_FORMS):
            rank = some_rank(form, make_conv((10, 8, 3, 3)))
            decompose(KERNEL, form, rank, solver=solver, metric=np.eye(72))
        found = decompose(KERNEL, "tucker", (3, 4)).chain.dense().kernel
        assert tl.get_backend() == "pytorch"
    assert np.array_equal(found, expected)


# As timed before forms brought their own ranks.
GRIDS = {
    "3x3": (
        ((64, 64, 3, 3), {}, (32, 32), 16),
        "separable 16 32 48 64 96 128 176; spatial 16 32 48; tucker 16,16 32,32; channel 16 32",
    ),
    "3x3, block 8": (
        ((48, 32, 3, 3), {}, (14, 14), 8),
        "separable 8 16 24 32 48 72 96; spatial 8 16 24 32; tucker 8,8 8,16 16,16 16,24 16,32; "
        "channel 8 16 24",
    ),
    "strided": (
        ((128, 64, 3, 3), {"stride": (2, 2)}, (16, 16), 16),
        "separable 16 32 48 80 112; spatial 16 32 48; tucker 16,16 16,32 32,48 32,64 32,80; "
        "channel 16 32 48 64; decoupled 1 2 3",
    ),
    "5x5": (
        ((64, 32, 5, 5), {}, (28, 28), 16),
        "flattened 16 48 112 224; separable 16 48 96 192; spatial 16 32 48 64; "
        "tucker 16,16 16,32; channel 16 32",
    ),
    "7x7 strided": (
        ((64, 3, 7, 7), {"stride": (2, 2)}, (112, 112), 16),
        "flattened 16 48; separable 16 32; tucker 3,16 3,32; channel 16 32; decoupled 1 2 3",
    ),
    "grouped": (
        ((64, 16, 3, 3), {"groups": 4}, (16, 16), 16),
        "separable 16 32 48 64 96 144; spatial 16 32 48; tucker 16,16 32,32; channel 16 32",
    ),
    "depthwise": (((32, 1, 5, 5), {"groups": 32}, (20, 20), 16), "spatial 32"),
    "pointwise": (((256, 128, 1, 1), {}, (16, 16), 16), "channel 16 32 48"),
    "linear": (((100, 512), {}, (), 16), "channel 16 32 48"),
    "one axis": (
        ((64, 64, 9), {}, (100,), 8),
        "separable 8 16 32 40 64 88 128 184; tucker 8,8 16,16 24,24 32,32 40,40; "
        "channel 8 16 24 32",
    ),
    "three axes": (
        ((32, 32, 3, 3, 3), {}, (8, 8, 8), 8),
        "separable 8 16 24 32 48 72 104 144; spatial 8,8 16,16; tucker 8,8 16,16; channel 8 16",
    ),
    "transposed": (
        ((32, 64, 4, 4), {"stride": (2, 2), "transposed": True}, (8, 8), 8),
        "separable 8 16 24 32 48 64 96; spatial 8 16 24 40; tucker 8,8 16,8 24,16 32,16 40,16; "
        "channel 8 16; decoupled 1 2",
    ),
    "smaller than a block": (((8, 4, 3, 3), {}, (8, 8), 16), ""),
}


@pytest.mark.parametrize("layer", GRIDS)
def test_the_forms_and_ranks_worth_timing(layer):
    (shape, geometry, size, block), text = GRIDS[layer]
    expected = [
        (part.split()[0], tuple(map(int, rank.split(","))))
        for part in filter(None, text.split("; "))
        for rank in part.split()[1:]
    ]
    assert rank_grid(make_conv(shape, **geometry), size, block) == expected


def test_estimated_errors_of_forms_that_must_be_solved_fall_with_the_rank():
    conv, ranks = make_conv((16, 12, 3, 3)), [(4,), (8,), (16,), (24,), (40,)]
    curve = error_curve(conv, FORMS["separable"], ranks)
    assert all(later < earlier for earlier, later in itertools.pairwise(curve))
    exact = decompose(conv, "separable", 4).rel_error
    assert curve[0] == pytest.approx(exact, rel=0.02)


def test_errors_of_pairs_of_ranks_are_estimated_without_a_closed_form():
    conv, form = make_conv((16, 12, 3, 3)), replace(FORMS["tucker"], errors=None)
    ranks = [(2, 2), (2, 4), (4, 4), (6, 8), (8, 12), (10, 14)]
    curve = error_curve(conv, form, ranks)
    assert all(later <= earlier for earlier, later in itertools.pairwise(curve))
    assert curve[0] == pytest.approx(decompose(conv, "tucker", ranks[0]).rel_error, rel=1e-6)
    assert error_curve(conv, form, ranks[:1]) == curve[:1]


def test_a_conv_keeps_its_geometry():
    conv = Conv(KERNEL, np.ones(10), (2, 1), ((1, 0), (1, 1)), (1, 2))
    dense = decompose(conv, "spatial", 4).chain.dense()
    assert (dense.stride, dense.padding, dense.dilation) == ((2, 1), ((1, 0), (1, 1)), (1, 2))
    assert np.array_equal(dense.bias, conv.bias)
