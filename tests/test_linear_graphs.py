"""Linear layers of graphs: read, rewritten, planned, or kept with the reason."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conv_cases import difference
from networks import from_text, noise

from converter.decomposition.decompose import decompose
from converter.decomposition.forms import FORMS
from converter.errors import ConverterError
from converter.graph.network import open_session
from converter.graph.rewrite import replace_weights, rewrite
from converter.graph.survey import count_macs, survey
from converter.options import Options
from converter.runtime.ort import run
from converter.search.manual import make_plan

CHANNEL = FORMS["channel"]
GEMM = "g (float[N, 8] x) => (float[N, M] y) {{ y = Gemm <{}> (x, w{}) }}"
MATMUL = "g (float[N, T, 8] x) => (float[N, T, M] y) { y = MatMul (x, w) }"


def surveyed(text, x, **weights):
    model = ir.from_proto(from_text(text, **weights))
    (layer,) = survey(model, {"x": x})
    return model, layer


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [(), (6,), (1, 6), (1,)])
def test_a_gemm_is_read_and_rewritten(transposed, bias):
    x = noise(3, 8)
    weights = {"w": noise(6, 8) if transposed else noise(8, 6)}
    if bias:
        weights["b"] = noise(*bias)
    text = GEMM.format(f"transB = {transposed}", ", b" if bias else "")
    model, layer = surveyed(text, x, **weights)
    assert (layer.reason, layer.name, layer.size, layer.macs) == (None, "w", (1,), 48)
    wanted = run(open_session(model), {"x": x})["y"]
    offset = 0 if layer.conv.bias is None else layer.conv.bias
    assert difference(x @ layer.conv.kernel.T + offset, wanted) < 1e-5
    rewritten = rewrite(model, {"y": ("w", decompose(layer.conv, CHANNEL, (6,)))})
    onnx.checker.check_model(ir.to_proto(rewritten), full_check=True)
    assert [n.op_type for n in rewritten.graph] == ["MatMul", "Gemm" if bias else "MatMul"]
    assert not {"w", "b"} & set(rewritten.graph.initializers)
    assert difference(run(open_session(rewritten), {"x": x})["y"], wanted) < 1e-4


@pytest.mark.parametrize("shape", [(3, 8), (3, 5, 8), (2, 3, 4, 8)])
def test_a_product_is_read_and_rewritten_over_any_axes(shape):
    text = MATMUL.replace("T, ", "T, " * (len(shape) - 2)).replace("T, T", "T, U")
    x = noise(*shape)
    model, layer = surveyed(text, x, w=noise(8, 6))
    positions = int(np.prod(shape[1:-1]))
    assert (layer.size, layer.macs) == ((positions,), positions * 48)
    assert layer.macs == layer.conv.macs(layer.size) == count_macs(model, {"x": x})
    chain = decompose(layer.conv, CHANNEL, (3,))
    rewritten = rewrite(model, {"y": ("w", chain)})
    onnx.checker.check_model(ir.to_proto(rewritten), full_check=True)
    found = run(open_session(rewritten), {"x": x})["y"]
    dense = chain.dense().kernel.astype(np.float32)
    assert difference(found, x @ dense.T) < 1e-5
    twin = replace_weights(model, {"y": replace(layer.conv, kernel=dense)})
    assert difference(run(open_session(twin), {"x": x})["y"], found) < 1e-5


@pytest.mark.parametrize("shape", [(3, 8), (3, 5, 8)])
def test_a_product_without_a_bias_can_be_given_one(shape):
    text = MATMUL if len(shape) == 3 else MATMUL.replace("T, ", "")
    x = noise(*shape)
    model, layer = surveyed(text, x, w=noise(8, 6))
    bias = noise(6, seed=3)
    chain = decompose(layer.conv, CHANNEL, (6,)).with_bias(bias)
    wanted = run(open_session(model), {"x": x})["y"] + bias
    for given_one in (
        rewrite(model, {"y": ("w", chain)}),
        replace_weights(model, {"y": replace(layer.conv, bias=bias)}),
    ):
        onnx.checker.check_model(ir.to_proto(given_one), full_check=True)
        assert difference(run(open_session(given_one), {"x": x})["y"], wanted) < 1e-5
    assert difference(run(open_session(model), {"x": x})["y"] + bias, wanted) == 0


@pytest.mark.parametrize(
    ("attributes", "bias", "reason"),
    [
        ("alpha = 2.0", (6,), "its product or bias is scaled (alpha, beta)"),
        ("beta = 0.5", (6,), "its product or bias is scaled (alpha, beta)"),
        ("transA = 1", (6,), "its input is transposed (transA)"),
        ("alpha = 1.0", (8, 6), "its bias is not one number per output"),
        ("alpha = 1.0", (8, 1), "its bias is not one number per output"),
    ],
)
def test_a_gemm_that_does_more_is_kept(attributes, bias, reason):
    _, layer = surveyed(GEMM.format(attributes, ", b"), noise(8, 8), w=noise(8, 6), b=noise(*bias))
    assert (layer.conv, layer.reason) == (None, reason)
    assert layer.macs == 48


def test_a_computed_bias_is_kept():
    text = "g (float[N, 8] x) => (float[N, 6] y) { c = Relu (b) y = Gemm (x, w, c) }"
    _, layer = surveyed(text, noise(3, 8), w=noise(8, 6), b=noise(6))
    assert layer.reason == "its bias is not a constant of the graph"


def test_a_stack_of_matrices_is_kept_and_counted():
    _, layer = surveyed(MATMUL, noise(2, 5, 8), w=noise(2, 8, 6))
    assert (layer.reason, layer.macs) == ("its weight is not a constant matrix", 5 * 48)


def test_a_shared_weight_is_read_for_each_layer():
    text = "g (float[N, 8] x) => (float[N, 8] y) { a = MatMul (x, w) y = MatMul (a, w) }"
    layers = survey(ir.from_proto(from_text(text, w=noise(8, 8))), {"x": noise(3, 8)})
    assert [(layer.name, layer.reason) for layer in layers] == [("a", None), ("y", None)]


def test_products_of_two_things_that_are_computed_are_no_layers():
    text = "g (float[N, 8] x) => (float[M, M] y) { t = Transpose (x) y = MatMul (t, x) }"
    model = ir.from_proto(from_text(text))
    assert survey(model, {"x": noise(3, 8)}) == ()


def test_a_weight_that_is_not_finite_is_refused():
    with pytest.raises(ConverterError, match="The weight of layer w holds NaN or infinite values"):
        surveyed(MATMUL, noise(2, 5, 8), w=np.full((8, 6), np.inf, np.float32))


def plan_for(weight, **options):
    _, layer = surveyed(MATMUL, noise(2, 5, weight.shape[0]), w=weight)
    (choice,) = make_plan((layer,), Options.of(**options).layers, {}).choices
    return choice


@pytest.mark.parametrize("options", [{"form": ("channel",)}, {"rank": ("0.5",)}])
def test_a_form_for_all_layers_leaves_it_alone(options):
    choice = plan_for(noise(8, 6), **options)
    assert choice.form is None
    assert choice.reason == "it is a linear layer; name it to convert it (--form w=channel)"


@pytest.mark.parametrize("options", [{"form": ("*=channel",)}, {"rank": ("*=4",)}])
def test_a_pattern_leaves_it_alone(options):
    assert plan_for(noise(8, 6), **options).reason == "no form was chosen for it"


def test_named_with_a_rank_alone_its_form_is_channel():
    for forms in ((), ("tucker",)):
        choice = plan_for(noise(8, 6), form=forms, rank=("w=4",))
        assert (choice.form, choice.rank) == ("channel", (4,))


def test_a_product_of_constants_is_no_layer():
    text = """g (float[N, 6] x) => (float[N, 6] y) {
        a = MatMul (v, w)
        y = Add (x, a)
    }"""
    model = ir.from_proto(from_text(text, v=noise(1, 8), w=noise(8, 6)))
    assert survey(model, {"x": noise(3, 6)}) == ()


def test_named_it_is_converted():
    choice = plan_for(noise(8, 6), form=("w=channel",), rank=("4",))
    assert (choice.form, choice.rank) == ("channel", (4,))


def test_named_with_another_form_it_is_refused():
    with pytest.raises(ConverterError, match="Layer w: tucker: a linear layer has nothing"):
        plan_for(noise(8, 6), form=("w=tucker",))


def test_by_default_it_is_converted_only_if_that_saves_enough():
    low = noise(48, 2) @ noise(2, 64, seed=1)
    text = MATMUL.replace("8]", "48]")
    for weight, form in ((low, "channel"), (noise(48, 64), None)):
        _, layer = surveyed(text, noise(2, 5, 48), w=weight)
        (choice,) = make_plan((layer,), Options().layers, {}).choices
        assert choice.form == form
    assert "no form saves 25% of its MACs" in choice.reason
