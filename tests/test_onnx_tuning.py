"""ONNX networks trained as torch models: nearer to the original, and their weights given back."""

import sys

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from conv_cases import difference
from networks import from_text, make_net, noise, observe
from onnx_conversions import converted, outputs

import converter
from converter import ConverterError, Options
from converter.graph.network import load
from converter.graph.survey import survey
from converter.models import from_onnx as torch_import


@pytest.fixture
def trained(tmp_path):
    make_net(tmp_path / "net.onnx", batch="batch")
    np.savez(tmp_path / "train.npz", x=noise(200, 3, 8, 8, seed=4))
    return tmp_path


def test_tuning_brings_an_onnx_network_nearer_to_its_original(trained):
    options = {"form": ("separable",), "rank": ("4",), "keep": ("fc",), "lr": 3e-3}
    train = str(trained / "train.npz")
    path = trained / "net.onnx"
    plain = converted(trained / "out", path, **options)
    tuned = converter.convert(path, options=Options.of(finetune=6, train=train, **options))
    again = converter.finetune(trained / "out", train=train, epochs=6)
    x = {"x": noise(50, 3, 8, 8, seed=5)}
    wanted = outputs(path, x)["logits"]
    errors = [
        difference(outputs(ir.from_proto(result.model), x)["logits"], wanted)
        for result in (plain, tuned, again)
    ]
    assert max(errors[1:]) < 0.9 * errors[0]
    for result in (tuned, again):
        assert isinstance(result.model, onnx.ModelProto)
        assert result.model.graph.input == plain.model.graph.input
        assert [n.name for n in result.model.graph.node] == [n.name for n in plain.model.graph.node]
    again.save(trained / "out")
    assert (
        difference(
            outputs(trained / "out" / "model.onnx", x)["logits"],
            outputs(ir.from_proto(again.model), x)["logits"],
        )
        < 1e-6
    )


def test_layers_of_an_onnx_network_are_reconstructed(trained):
    options = {"form": ("separable",), "rank": ("4",), "keep": ("fc",), "lr": 3e-3}
    train, path = str(trained / "train.npz"), trained / "net.onnx"
    plain = converter.convert(path, options=Options.of(**options))
    distill = converter.convert(path, options=Options.of(reconstruct=20, train=train, **options))
    network, x = load(path), {"x": noise(50, 3, 8, 8, seed=5)}
    names = [x.output for x in survey(network, {"x": x["x"][:1]}) if x.name in plain.plan.chosen()]
    wanted = observe(network, names, x)
    before, after = (
        [difference(actual[name], wanted[name]) for name in names]
        for actual in (observe(ir.from_proto(r.model), names, x) for r in (plain, distill))
    )
    assert len(names) == 2
    assert sum(after) < 0.95 * sum(before)


@pytest.mark.parametrize("form", ["flattened", "spatial", "tucker", "decoupled"])
def test_a_torch_model_of_a_network_computes_the_same_and_gives_its_weights_back(form, trained):
    result = converter.convert(trained / "net.onnx", options=Options.of(form=(form,)))
    network = ir.from_proto(result.model)
    module = torch_import.to_torch(network)
    x = noise(3, 3, 8, 8)
    wanted = outputs(network, {"x": x})["logits"]
    with torch.no_grad():
        assert difference(module(torch.from_numpy(x)).numpy(), wanted) < 1e-4
        for weight in module.parameters():
            weight *= 1.1
        changed = module(torch.from_numpy(x)).numpy()
    actual = outputs(torch_import.with_weights(network, module), {"x": x})["logits"]
    assert difference(actual, changed) < 1e-4
    assert difference(outputs(network, {"x": x})["logits"], wanted) == 0


def test_a_constant_may_have_the_name_of_a_method_of_torch(tmp_path):
    text = """g (float[N, 4] x) => (float[N, 2, 2] y) {
        to = Constant <value_ints = [-1, 2, 2]> ()
        a = MatMul (x, w)
        y = Reshape (a, to)
    }"""
    network, x = ir.from_proto(from_text(text, w=noise(4, 4))), noise(3, 4)
    with torch.no_grad():
        actual = torch_import.to_torch(network)(torch.from_numpy(x)).numpy()
    assert difference(actual, outputs(network, {"x": x})["y"]) < 1e-6


def test_an_operator_that_cannot_be_tuned_is_named(tmp_path):
    proto = from_text(
        "g (float[N, 4, 9, 8] x) => (float[N, 6, P, Q] y) { y = Conv (x, w) }", w=noise(6, 4, 3, 3)
    )
    proto.graph.node[0].domain = "com.example"
    with pytest.raises(ConverterError, match="does not know the operator Conv of this network"):
        torch_import.to_torch(ir.from_proto(proto))


def test_without_the_package_the_command_to_install_it_is_told(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx2fx", None)
    options = Options.of(form=("channel",), finetune=1, train=str(trained / "train.npz"))
    with pytest.raises(ConverterError, match=r"pip install 'flatconv\[onnx\]'"):
        converter.convert(trained / "net.onnx", options=options)
