"""What a network loses: nothing where it is the same, the drop where labels tell."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conv_cases import difference
from networks import from_text, make_net, noise

from converter.data.data import from_arrays
from converter.decomposition.approximation import relative_error
from converter.decomposition.conv import Chain
from converter.errors import ConverterError
from converter.evaluation.loss import LossEstimator, loss_between, run_original
from converter.evaluation.tasks.classify import Classify
from converter.evaluation.tasks.regress import Regress
from converter.graph.network import load, open_session
from converter.graph.rewrite import new_weights, replace_weights, with_weight_inputs
from converter.graph.survey import survey
from converter.processes import Resources
from converter.runtime.ort import run
from converter.search import sensitivity
from converter.search.sensitivity import PROBE_ERROR, sensitivities


def model(tmp_path, name="net", **options):
    return load(make_net(tmp_path / f"{name}.onnx", channels=(3, 16), **options))


def data(count=200):
    return from_arrays({"x": noise(count, 3, 8, 8)}, "made up")


def estimator_of(network, data, kind=Classify):
    """The loss by the only output."""
    _, outputs = run_original(network, data, 1)
    (name,) = outputs[0]
    task = kind.of(name, np.concatenate([arrays[name] for arrays in outputs]))
    return LossEstimator.of(network, data, 1, [task])


def test_the_original_loses_nothing(tmp_path):
    network = model(tmp_path)
    estimator = estimator_of(network, data())
    loss = estimator.loss(network)
    assert (loss.estimate.lost, loss.output_error, loss.surrogate) == (0.0, 0.0, 0.0)
    assert loss.estimate.examples == 200
    assert len(estimator.outputs) == 13


def test_the_expected_drop_is_between_none_and_the_accuracy(tmp_path):
    estimator = estimator_of(model(tmp_path), data())
    loss = estimator.loss(model(tmp_path, "other", seed=3))
    assert 0 < loss.estimate.lost <= estimator.accuracy <= 1
    assert loss.output_error > 0.1


def linear(off=0.0):
    """Ten classes of eight numbers, sure of each; weights moved by noise."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 10)) + off * rng.standard_normal((8, 10))
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 8] x) => (float[N, 10] y) '
        "{ y = MatMul (x, w) }"
    )
    proto.graph.initializer.append(
        onnx.numpy_helper.from_array((1e4 * weight).astype(np.float32), "w")
    )
    return ir.from_proto(proto)


def disagreement(network, other, count):
    """Examples, and on which of them two networks disagree."""
    x = {"x": noise(count, 8)}
    mine, its = (run(open_session(n), x)["y"].argmax(1) for n in (network, other))
    return from_arrays(x, "made up"), mine != its


def test_a_sure_network_loses_what_it_disagrees_on():
    network, other = linear(), linear(0.1)
    data, wrong = disagreement(network, other, 4000)
    estimator = estimator_of(network, data)
    assert estimator.accuracy == pytest.approx(1.0, abs=1e-3)
    assert 0.02 < wrong.mean() < 0.2
    assert estimator.loss(other).estimate.lost == pytest.approx(wrong.mean(), rel=0.1)


def test_few_examples_say_what_many_would():
    network, other = linear(), linear(0.03)
    data, wrong = disagreement(network, other, 8000)
    parts = np.arange(8000).reshape(-1, 160)
    losses = [estimator_of(network, data.take(part)).loss(other) for part in parts]
    counted = wrong[parts].mean(1)
    assert np.std([loss.estimate.lost for loss in losses]) < 0.75 * counted.std()
    assert np.mean([loss.estimate.high >= wrong.mean() for loss in losses]) >= 0.9


def test_a_number_loses_the_variance_that_is_not_explained(tmp_path):
    network, other = (model(tmp_path, str(seed), classes=1, seed=seed) for seed in (0, 3))
    x = data()
    a, b = (
        run(open_session(n), x.read(np.arange(x.count)))["logits"].astype(float)
        for n in (network, other)
    )
    loss = estimator_of(network, x, Regress).loss(other)
    assert loss.estimate.lost == pytest.approx(np.square(a - b).mean() / a.var(), rel=1e-4)
    assert loss.output_error == pytest.approx(np.sqrt(loss.estimate.lost), rel=1e-4)


def test_a_fixed_batch_is_kept_to(tmp_path):
    estimator = estimator_of(model(tmp_path, batch=8), data(20))
    assert [len(feeds["x"]) for feeds in estimator.batches] == [8, 8]


def test_a_network_that_gives_no_numbers_loses_all():
    rows = noise(50, 4)
    loss = loss_between([Classify.of("y", rows)], [{"y": rows}], [{"y": np.full((50, 4), np.nan)}])
    assert (loss.estimate.lost, loss.estimate.high, loss.output_error) == (1.0, 1.0, np.inf)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_err_without_limit(value):
    rows = noise(50, 4)
    wrong = rows.copy()
    wrong[3, 1] = value
    task = Regress.of("y", rows)
    loss = loss_between([task], [{"y": rows}, {"y": rows}], [{"y": rows}, {"y": wrong}])
    assert (loss.estimate.lost, loss.output_error) == (1.0, np.inf)


def test_a_network_that_overflows_cannot_be_judged_beside(tmp_path):
    network = linear()
    far = from_arrays({"x": np.full((20, 8), 3e38, np.float32)}, "made up")
    with pytest.raises(ConverterError, match=r"NaN or infinite values for made up \(output y\)"):
        LossEstimator.of(network, far, 1, ())


def test_a_probe_that_overflows_counts_as_losing_all():
    text = "g (float[N, 4, 3, 3] x) => (float[N, 4, 3, 3] y) { y = Conv (x, w) }"
    weight = 1.7e38 * np.eye(4, dtype=np.float32)[..., None, None]
    network = ir.from_proto(from_text(text, w=weight))
    layers = survey(network, {"x": noise(1, 4, 3, 3)})
    data = from_arrays({"x": np.full((4, 4, 3, 3), 2, np.float32)}, "twos")
    task = Regress.of("y", np.ones((4, 4, 3, 3)))
    found = sensitivities(network, layers, {}, data, Resources(), [task])
    assert found.weights["w"] == pytest.approx(1 / PROBE_ERROR**2, rel=1e-3)


CHAIN = """g (float[N, 4, 5, 5] x) => (float[N, 4, 3, 3] early, float[N, 4, 5, 5] late) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    early = Conv (a, v)
    b = Relu (a)
    late = Conv <pads = [1, 1, 1, 1]> (b, u)
}"""


def chain_of_layers():
    weights = {name: noise(4, 4, 3, 3, seed=n) for n, name in enumerate("wvu")}
    network = ir.from_proto(from_text(CHAIN, **weights))
    x = noise(40, 4, 5, 5)
    outputs = run(open_session(network), {"x": x})
    tasks = [Regress.of(name, outputs[name]) for name in ("early", "late")]
    return network, survey(network, {"x": x}), from_arrays({"x": x}, "noise"), tasks


@pytest.mark.parametrize("sessions", [1, 3])
def test_probes_run_from_the_probed_layer_on(sessions, monkeypatch):
    """Outputs that end before a layer do not depend on it."""
    network, layers, data, tasks = chain_of_layers()
    monkeypatch.setattr(sensitivity, "SESSIONS", sessions)
    found = sensitivities(network, layers, {}, data, Resources(), tasks)
    expected = []
    for number, layer in enumerate(layers):
        conv = sensitivity._with_bias(layer.conv)
        probe = sensitivity._project(conv, None, np.random.default_rng((0, number)))
        estimator = LossEstimator.of(network, data, 1, tasks)
        loss = estimator.loss(replace_weights(network, {layer.output: probe}))
        expected.append(loss.surrogate / relative_error(conv, Chain((probe,)), None) ** 2)
    assert list(found.weights.values()) == pytest.approx(expected, rel=1e-4)


def test_probes_of_the_same_network_and_inputs_are_kept(tmp_path, monkeypatch):
    network, layers, data, tasks = chain_of_layers()
    resources = Resources(cache=tmp_path)
    found = sensitivities(network, layers, {}, data, resources, tasks)
    with monkeypatch.context() as patch:
        patch.setattr(sensitivity, "_probe", lambda *arguments: pytest.fail("It probes again."))
        assert sensitivities(network, layers, {}, data, resources, tasks) == found
    fewer = sensitivities(network, layers, {}, data.take(np.arange(8)), resources, tasks)
    assert fewer.weights != found.weights


KINDS = {
    "Conv": ("x[N, 4, 5, 5]", "y = Conv (x, w, b)", (6, 4, 3, 3)),
    "Conv, no bias": ("x[N, 4, 5, 5]", "y = Conv <group = 2> (x, w)", (6, 2, 3, 3)),
    "ConvTranspose": ("x[N, 4, 5, 5]", "y = ConvTranspose <group = 2> (x, w)", (4, 3, 3, 3)),
    "Gemm": ("x[N, 4]", "y = Gemm <transB = 1> (x, w, b)", (6, 4)),
    "MatMul": ("x[N, 4]", "y = MatMul (x, w)", (4, 6)),
}


@pytest.mark.parametrize(("given", "body", "shape"), KINDS.values(), ids=KINDS)
def test_weights_that_are_fed_do_what_weights_inside_do(given, body, shape):
    name, _, sizes = given.partition("[")
    text = f"g (float[{sizes} {name}) => (float[N, A, B, C] y) {{ {body} }}"
    if len(shape) == 2:
        text = text.replace("N, A, B, C", "N, A")
    network = ir.from_proto(from_text(text, w=noise(*shape), b=noise(6, seed=1)))
    x = noise(3, *map(int, sizes.rstrip("]").split(",")[1:]), seed=2)
    (layer,) = survey(network, {"x": x})
    kernel = noise(*layer.conv.kernel.shape, seed=3)
    other = replace(layer.conv, kernel=kernel, bias=noise(6, seed=4))
    inside = run(open_session(replace_weights(network, {"y": other})), {"x": x})
    session = open_session(with_weight_inputs(network, {"y": other}))
    fed = run(session, {"x": x} | new_weights(network.graph[0], other))
    assert difference(inside["y"], fed["y"]) < 1e-6
