"""Weights in files of their own: read, mapped, written, and refused outside of the folder."""

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conv_cases import at_full_rank, difference
from networks import from_text, make_net, noise

from converter import ConverterError
from converter.data.data import from_arrays
from converter.decomposition.forms import FORMS
from converter.evaluation.check import check_graph
from converter.graph import external
from converter.graph import network as onnx_network
from converter.graph.canonicalize import canonicalize
from converter.graph.network import open_session
from converter.graph.rewrite import rewrite
from converter.graph.survey import survey
from converter.processes import Resources
from converter.reconstruction.moments import second_moments
from converter.reconstruction.refit import refit_layers
from converter.runtime.ort import run


def full(model, feeds):
    """A network with every layer in the form `channel` that loses nothing, in normal form."""
    read = canonicalize(model)
    layers = [layer for layer in survey(read, feeds) if layer.reason is None]
    chains = {la.output: (la.name, at_full_rank(la.conv, "channel")) for la in layers}
    return rewrite(read, chains)


def outputs(model, feeds):
    return run(open_session(model), feeds)


def unlike(path, other, feeds):
    """Relative difference of the first outputs of two files."""
    first, second = (next(iter(outputs(file, feeds).values())) for file in (path, other))
    return difference(second, first)


@pytest.fixture
def apart(tmp_path):
    """A file whose weights are in another, and the same as one file."""
    make_net(tmp_path / "whole.onnx")
    onnx.save(
        onnx.load(tmp_path / "whole.onnx"),
        tmp_path / "net.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    return tmp_path


@pytest.mark.parametrize("place", ["../weights.bin", "/etc/hostname", "a/../../weights.bin"])
def test_weights_outside_of_the_folder_are_refused(place, apart):
    proto = onnx.load(apart / "net.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = place
    (apart / "inner").mkdir()
    (apart / "inner" / "net.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ConverterError, match="names weights outside of its folder"):
        onnx_network.load(apart / "inner" / "net.onnx")


def test_weights_beside_a_small_network_are_inside_of_what_is_written(apart):
    model = onnx_network.load(apart / "net.onnx")
    assert external.external_nbytes(model) == 0
    onnx_network.save(model, apart / "again.onnx")
    (apart / "weights.bin").unlink()
    x = {"x": noise(2, 3, 8, 8)}
    assert unlike(apart / "whole.onnx", apart / "again.onnx", x) < 1e-6


def test_a_network_that_is_too_large_for_one_file_stays_mapped(apart):
    x = {"x": noise(3, 3, 8, 8)}
    model = onnx_network.load(apart / "net.onnx", max_nbytes=1)
    held = external.external_nbytes(model)
    assert held > 0.8 * (apart / "weights.bin").stat().st_size
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert len(before) < 5000
    result = full(model, x)
    assert check_graph(result) is None
    assert (
        difference(outputs(result, x)["logits"], outputs(apart / "whole.onnx", x)["logits"]) < 1e-4
    )
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert onnx_network.nbytes(model) == pytest.approx(
        (apart / "whole.onnx").stat().st_size, rel=0.2
    )


def test_a_network_that_is_too_large_for_one_file_is_written_as_two(apart):
    x = {"x": noise(3, 3, 8, 8)}
    model = onnx_network.load(apart / "net.onnx", max_nbytes=1)
    result = full(model, x)
    onnx_network.save(result, apart / "out.onnx", max_nbytes=1)
    assert {path.name for path in apart.glob("out*")} == {"out.onnx", "out.onnx.data"}
    assert unlike(apart / "whole.onnx", apart / "out.onnx", x) < 1e-4
    onnx_network.save(model, apart / "same.onnx", max_nbytes=1)
    assert unlike(apart / "whole.onnx", apart / "same.onnx", x) < 1e-6
    assert external.weights_folder(model) == apart


def test_mapped_weights_give_the_same_moments_and_corrections(apart):
    data = from_arrays({"x": noise(40, 3, 8, 8)}, "noise", ["x"])
    actual = []
    for model in (
        canonicalize(onnx_network.load(apart / "net.onnx", max_nbytes=1)),
        canonicalize(onnx_network.load(apart / "whole.onnx")),
    ):
        layers = survey(model, data.read(np.arange(1)))
        chosen = {layer.name: (FORMS["channel"], (4,)) for layer in layers}
        chains = refit_layers(model, layers, chosen, data).chains
        moments = second_moments(model, layers, data)
        actual.append(
            ([c.dense().kernel for c in chains.values()], [m.full for (m,) in moments.values()])
        )
    for one, other in zip(*actual):
        for a, b in zip(one, other):
            assert difference(a, b) < 1e-5


def test_moments_are_taken_in_several_passes_where_memory_is_short(tmp_path):
    make_net(tmp_path / "net.onnx", channels=(3, 16, 16, 16))
    model = onnx_network.load(tmp_path / "net.onnx")
    data = from_arrays({"x": noise(30, 3, 8, 8)}, "noise", ["x"])
    layers = survey(model, data.read(np.arange(1)))
    read = []

    def note(indices):
        read.extend(indices.tolist())
        return data.read(indices)

    noted = replace(data, read=note)
    whole = second_moments(model, layers, noted, coarse=True)
    assert len(read) == 1 + 30
    read.clear()
    little = Resources(memory_bytes=4 * 4.0 * 16 * 64)
    parts = second_moments(model, layers, noted, little, coarse=True)
    assert len(read) == 1 + 4 * 30  # a layer at a time
    for name, (metric,) in whole.items():
        assert difference(parts[name][0].channels, metric.channels) < 0.3


def test_constants_in_a_file_of_their_own_are_read_and_outside_of_the_folder_refused(tmp_path):
    text = "g (float[N,3,8,8] x) => (float[N,4,6,6] y) { y = Conv (x, w) }"
    model = from_text(text, w=noise(4, 3, 3, 3))
    weight = model.graph.initializer.pop()
    node = onnx.helper.make_node("Constant", [], ["w"], value=weight)
    model.graph.node.insert(0, node)
    feeds = {"x": noise(2, 3, 8, 8)}
    before = run(open_session(ir.from_proto(model)), feeds)["y"]
    options = {"save_as_external_data": True, "convert_attribute": True, "size_threshold": 0}
    onnx.save_model(model, tmp_path / "net.onnx", location="w.bin", **options)
    loaded = onnx_network.load(tmp_path / "net.onnx")
    assert [layer.reason for layer in survey(canonicalize(loaded), feeds)] == [None]
    assert difference(before, run(open_session(loaded), feeds)["y"]) <= 1e-6
    stolen = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    (place,) = (e for e in stolen.graph.node[0].attribute[0].t.external_data if e.key == "location")
    place.value = "../w.bin"
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "net.onnx").write_bytes(stolen.SerializeToString())
    with pytest.raises(ConverterError, match=r"outside of its folder \(\.\./w\.bin\)"):
        onnx_network.load(tmp_path / "inner" / "net.onnx")
