"""tensorly's solvers and types: every form with every solver, and a whole conversion by them."""

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
import tensorly as tl
import torch
from conv_cases import difference
from networks import make_net, work_in
from tensorly.cp_tensor import CPTensor
from tensorly.tt_tensor import TTTensor
from tensorly.tucker_tensor import TuckerTensor

import converter
from converter.commands import export
from converter.decomposition.form import full_rank
from converter.decomposition.forms import FORMS
from converter.decomposition.problem import SOLVERS
from converter.errors import ConverterError
from converter.models.factory import find_callable

TENSORLY = [solver for solver in SOLVERS if solver != "flatconv"]
# The type of each form; the first form is two of tensorly's tensors, the last none.
TYPES = {
    "lvh2": tuple,
    "flattened": CPTensor,
    "separable": CPTensor,
    "lvh": CPTensor,
    "channel": CPTensor,
    "decoupled": CPTensor,
    "spatial": TTTensor,
    "tucker": TuckerTensor,
    "dense": list,
}
SOLVABLE = [form for form in TYPES if form != "lvh2"]
RANDOM = np.random.default_rng(3).standard_normal


def orthogonal(*shape):
    """Factors whose columns, along the last axis, are orthogonal and of different length."""
    q, _ = np.linalg.qr(RANDOM((np.prod(shape[:-1]), shape[-1])))
    return q.reshape(shape) * np.linspace(1, 1.5, shape[-1])


def product(subscripts, *shapes):
    return np.einsum(subscripts, *(orthogonal(*shape) for shape in shapes))


# Kernels (8, 6, 3, 3) that each form writes without an error at this rank.
KNOWN = {
    "flattened": (product("or,ir,hr,wr->oihw", (8, 3), (6, 3), (3, 3), (3, 3)), 3),
    "separable": (product("or,ir,hwr->oihw", (8, 3), (6, 3), (3, 3, 3)), 3),
    "lvh": (product("oi,oh,ow->oihw", (8, 6), (8, 3), (8, 3)), 1),
    "channel": (product("or,ihwr->oihw", (8, 3), (6, 3, 3, 3)), 3),
    "decoupled": (product("oim,ihwm->oihw", (8, 6, 2), (6, 3, 3, 2)), 2),
    "spatial": (product("ihr,wor->oihw", (6, 3, 3), (3, 8, 3)), 3),
    "tucker": (product("oa,ahwb,ib->oihw", (8, 3), (3, 3, 3, 2), (6, 2)), (2, 3)),
    "dense": (RANDOM((8, 6, 3, 3)), 1),
}
PATCHES = RANDOM((200, 54)) * np.linspace(0.3, 2, 54)
MOMENTS = PATCHES.T @ PATCHES / len(PATCHES)


def reconstructed(form, tensor, shape):
    """The kernel (O, I, *k) as tensorly reconstructs it."""
    if form == "dense":
        return tensor[0][0]
    if form == "spatial":
        return np.moveaxis(tl.tt_to_tensor(tensor).reshape(shape[1], *shape[2:], shape[0]), -1, 0)
    whole = tl.tucker_to_tensor(tensor) if form == "tucker" else tl.cp_to_tensor(tensor)
    return whole.reshape(shape)


def test_every_form_is_tested():
    assert set(TYPES) == set(FORMS) == {*KNOWN, "lvh2"}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("form", [name for name in SOLVABLE if name != "lvh"])
@pytest.mark.parametrize("shape", [(5, 4, 3, 3), (4, 3, 2, 5)])
def test_the_full_rank_reproduces_the_kernel(form, solver, shape):
    kernel = RANDOM(shape)
    conv = converter.decompose(kernel, "dense", 1).chain.steps[0]
    rank = full_rank(FORMS[form], conv)
    solved = converter.decompose(kernel, form, rank, solver=solver)
    assert difference(solved.chain.dense().kernel, kernel) < 1e-8
    assert solved.rel_error < 1e-8


@pytest.mark.parametrize("metric", [None, MOMENTS], ids=["Frobenius", "moments"])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("form", SOLVABLE)
def test_a_known_rank_is_found_again(form, solver, metric):
    kernel, rank = KNOWN[form]
    solved = converter.decompose(kernel, form, rank, solver=solver, metric=metric)
    assert solved.rel_error < 1e-5
    assert difference(solved.chain.dense().kernel, kernel) < 1e-4
    assert isinstance(solved.tensor, TYPES[form])
    again = reconstructed(form, solved.tensor, kernel.shape)
    assert difference(again, solved.chain.dense().kernel) < 1e-12


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("form", "rank"), [("tucker", (3, 4)), ("separable", 4), ("spatial", 4)])
def test_moments_weigh_the_error(form, rank, solver):
    """Solved for the moments, a kernel has the smaller error under them."""
    kernel = RANDOM((8, 6, 3, 3))

    def error(decomposition):
        rest = (decomposition.chain.dense().kernel - kernel).reshape(8, -1)
        return np.einsum("on,nm,om->", rest, MOMENTS, rest)

    aware, blind = (
        converter.decompose(kernel, form, rank, solver=solver, metric=metric)
        for metric in (MOMENTS, None)
    )
    assert error(aware) < error(blind)
    norm = np.einsum("on,nm,om->", kernel.reshape(8, -1), MOMENTS, kernel.reshape(8, -1))
    assert aware.rel_error == pytest.approx(np.sqrt(error(aware) / norm), rel=1e-4)


# refusals


KERNEL = RANDOM((8, 6, 3, 3))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"solver": None}, "There is no solver None; use one of flatconv, tensorly, tensorly+ref"),
        ({"solver": "Tensorly"}, "There is no solver 'Tensorly'; use one of"),
        ({"form": None}, "There is no form None; use one of flattened"),
        ({"form": "dense", "rank": 2}, "Rank 2 does not fit; dense takes 1 to 1 here."),
        ({"form": "lvh", "rank": 4}, "Rank 4 does not fit; lvh takes 1 to 1 here."),
        ({"form": "tucker", "rank": (2, 3, 4)}, "Rank '2,3,4' has 3 parts; tucker takes 2."),
        ({"form": "tucker", "rank": (2, 9)}, "Rank 2,9 does not fit; tucker takes 1 to 6,8 here."),
        ({"rank": -1}, "Rank '-1' must be above 0"),
        ({"rank": float("nan")}, "Rank 'nan' must be above 0"),
        ({"rank": True}, "Rank 'True' is not a number"),
        ({"rank": None}, "Rank 'None' is not a number"),
        ({"rank": ()}, "Rank '' is not a number"),
        ({"rank": [2]}, "Rank '[2]' is not a number"),
        ({"kernel": None}, "A kernel of shape () is not a convolution's"),
        ({"kernel": np.ones((0, 3, 3, 3))}, "A kernel of shape (0, 3, 3, 3) is not a convolution"),
        ({"kernel": RANDOM((2,) * 6)}, "A kernel of shape (2, 2, 2, 2, 2, 2) is not"),
        ({"kernel": 1j * KERNEL}, "A kernel of type complex128 must be of a float type."),
        ({"kernel": [[1.0], [1.0, 2.0]]}, "The kernel must be an array of numbers."),
        ({"metric": "moments"}, "Second moments of shape () must be finite and of shape (54, 54)."),
        ({"metric": 3}, "Second moments of shape () must be finite and of shape (54, 54)."),
        ({"metric": 1j * np.eye(54)}, "must be finite and of shape (54, 54)."),
        ({"metric": -np.eye(54)}, "The kernel cannot be solved under this metric: "),
    ],
)
def test_what_cannot_be_decomposed_is_refused_in_one_sentence(arguments, sentence):
    with pytest.raises(ConverterError) as refused:
        converter.decompose(**({"kernel": KERNEL, "form": "channel", "rank": 4} | arguments))
    assert sentence in str(refused.value)
    assert str(refused.value).count(". ") == 0 and "\n" not in str(refused.value)


@pytest.mark.parametrize("solver", TENSORLY)
def test_a_form_that_tensorly_cannot_do_is_refused_in_words_of_python(solver):
    with pytest.raises(ConverterError) as refused:
        converter.decompose(KERNEL, "lvh2", 3, solver=solver)
    assert str(refused.value) == (
        "tensorly cannot decompose a kernel into the form lvh2; use solver flatconv."
    )


def test_a_tensor_of_moments_is_taken():
    array, tensor = (
        converter.decompose(KERNEL, "channel", 3, metric=moments).chain.dense().kernel
        for moments in (MOMENTS, torch.from_numpy(MOMENTS))
    )
    assert np.array_equal(array, tensor)


# the whole route

IMAGES = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with work_in(tmp_path_factory.mktemp("tensorly")) as here:
        yield here


@pytest.mark.parametrize("solver", TENSORLY)
def test_a_network_is_converted_exported_and_raced(place, solver, tmp_path):
    model, form = (
        find_callable("toy:build", "Factory")().eval(),
        ("conv1=flattened", "conv2=tucker"),
    )
    result = converter.convert(
        model, calib=IMAGES, form=form, rank=("conv1=12", "conv2=4"), solver=solver
    )
    assert result.report.met, result.report.reason
    assert [(c.form, c.rank) for c in result.plan.choices] == [
        ("flattened", (12,)),
        ("tucker", (4, 4)),
        (None, None),
    ]
    assert result.options.search.solver == solver
    result.save(tmp_path / "out")
    export(tmp_path / "out", tmp_path / "model.onnx")
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": IMAGES})
    with torch.no_grad():
        converted, original = (m(torch.from_numpy(IMAGES)).numpy() for m in (result.model, model))
    assert difference(found, converted) < 1e-5
    report = result.report.to_dict()
    assert report["rel_output_error"] > 0 and difference(found, original) > 0
    raced = converter.compare(tmp_path / "out" / "original.onnx", tmp_path / "model.onnx")
    assert [network.macs for network in raced.networks.values()] == [
        report["original"]["macs"],
        report["converted"]["macs"],
    ]


def test_a_conversion_takes_the_solver_that_is_named(place):
    make_net("net.onnx", channels=(3, 8))
    networks = [
        converter.convert("net.onnx", form="separable", rank=6, solver=solver).model
        for solver in SOLVERS
    ]
    for one, other in itertools.combinations(networks, 2):
        assert one != other
