"""Networks, checkpoints and kernels that are damaged, degenerate or unusual, and how they end."""

import contextlib

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from helpers import at_full_rank, difference, from_text, make_conv
from torch import nn

from converter.decomposition.approximation import relative_error
from converter.decomposition.conv import Chain, Conv
from converter.decomposition.decompose import decompose
from converter.decomposition.forms import FORMS
from converter.decomposition.ranks import parse_rank
from converter.errors import ConverterError
from converter.graph.network import open_session
from converter.graph.rewrite import rewrite
from converter.graph.survey import survey
from converter.models import export as torch_export
from converter.models import match as torch_network
from converter.models.checkpoint import load_into, load_state
from converter.runtime.ort import run

X = np.random.default_rng(0).standard_normal((2, 4, 9, 8)).astype(np.float32)
W = np.random.default_rng(1).standard_normal((6, 4, 3, 3)).astype(np.float32)


def chains_of(model, form, x):
    return {
        la.output: (la.name, at_full_rank(la.conv, form))
        for la in survey(model, {"x": x})
        if la.conv is not None and not la.reason
    }


def outputs(model, x):
    return run(open_session(model), {"x": x})


def test_an_initializer_that_is_also_listed_as_an_input_is_rewritten():
    text = """g (float[N, 4, 9, 8] x, float[6, 4, 3, 3] w) => (float[N, 6, P, Q] y) {
        y = Conv (x, w)
    }"""
    model = ir.from_proto(from_text(text, w=W))
    rewritten = rewrite(model, chains_of(model, "separable", X))
    assert difference(outputs(rewritten, X)["y"], outputs(model, X)["y"]) < 1e-4


def test_a_weight_that_is_an_output_stays():
    text = """g (float[N, 4, 9, 8] x) => (float[N, 6, P, Q] y, float[6, 4, 3, 3] w) {
        y = Conv (x, w)
    }"""
    model = ir.from_proto(from_text(text, w=W))
    rewritten = rewrite(model, chains_of(model, "channel", X))
    onnx.checker.check_model(ir.to_proto(rewritten), full_check=True)


def test_padding_left_to_the_runtime_holds_for_other_sizes():
    text = """g (float[N, 4, A, B] x) => (float[N, 6, P, Q] y) {
        y = Conv <auto_pad = "SAME_UPPER", strides = [2, 2]> (x, w)
    }"""
    model = ir.from_proto(from_text(text, w=W))
    rewritten = rewrite(model, chains_of(model, "separable", X))
    other = np.ascontiguousarray(X[:, :, :8, :7])
    assert difference(outputs(rewritten, other)["y"], outputs(model, other)["y"]) < 1e-4


@pytest.mark.parametrize("taken", ["w.0", "w.2"])
def test_a_value_name_that_is_taken_is_refused_or_avoided(taken):
    text = "g (float[N, 4, 9, 8] x) => (float[N, 6, P, Q] y) { h = Relu (x)\n y = Conv (h, w) }"
    proto = from_text(text, w=W)
    proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = taken
    model = ir.from_proto(proto)
    try:
        rewritten = rewrite(model, chains_of(model, "separable", X))
    except ConverterError:
        return
    onnx.checker.check_model(ir.to_proto(rewritten), full_check=True)


def test_a_bias_that_is_not_finite_is_refused():
    text = "g (float[N, 4, 9, 8] x) => (float[N, 6, P, Q] y) { y = Conv (x, w, b) }"
    model = ir.from_proto(from_text(text, w=W, b=np.full(6, np.nan, np.float32)))
    with pytest.raises(ConverterError, match="NaN"):
        survey(model, {"x": X})


@pytest.mark.parametrize("name", ["flattened", "separable"])
@pytest.mark.parametrize("kind", ["zeros", "one weight", "identity", "a dead group"])
def test_kernels_without_full_rank_are_solved(name, kind):
    kernel = np.zeros((8, 8, 3, 3))
    if kind == "one weight":
        kernel[0, 0, 1, 1] = 1
    if kind == "identity":
        kernel[range(8), range(8), 1, 1] = 1
    if kind == "a dead group":
        kernel = np.random.default_rng(0).standard_normal((8, 4, 3, 3))
        kernel[4:] = 0
    groups = 8 // kernel.shape[1]
    conv = Conv(kernel, None, (1, 1), ((1, 1),) * 2, (1, 1), groups=groups)
    chain = decompose(conv, FORMS[name], (8,))
    assert relative_error(conv, chain) <= 1


@pytest.mark.parametrize("text", ["9" * 400, "1e308"])
def test_a_huge_rank_is_refused_or_read(text):
    with contextlib.suppress(ConverterError):
        parse_rank(text, FORMS["flattened"], make_conv((12, 8, 3, 5)))


@pytest.mark.parametrize(
    "fields",
    [
        {"transposed": True, "output_padding": (1,)},
        {"padding": ((1,), (1,))},
        {"padding": ((-1, 0), (0, 0))},
    ],
)
def test_more_contradictions_are_refused(fields):
    with pytest.raises(ConverterError):
        make_conv((4, 4, 3, 3), **fields)


def test_an_empty_chain_is_refused():
    with pytest.raises(ConverterError):
        Chain(())


def test_steps_over_other_axes_are_refused():
    with pytest.raises(ConverterError):
        Chain((make_conv((4, 3, 3), bias=False), make_conv((4, 4, 3, 3))))


class Functional(nn.Module):
    """The module holds the weight but is not called."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return F.conv2d(x, self.conv.weight, self.conv.bias, stride=2)


def test_a_module_whose_weight_is_used_without_calling_it_is_kept():
    model = Functional().eval()
    network = torch_export.export(model, {"x": X})
    (layer,) = torch_network.match(model, survey(network, {"x": X}), {"x": X})
    assert layer.reason


@pytest.mark.filterwarnings("ignore")
def test_a_model_with_weight_norm_of_the_old_kind_is_exported_or_refused():
    model = nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(4, 4, 3))).eval()
    with contextlib.suppress(ConverterError):
        torch_export.export(model, {"x": X})


def test_the_reason_why_a_model_cannot_be_exported_is_told():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ConverterError) as caught:
        torch_export.export(Branching(), {"x": X})
    assert "\x1b" not in str(caught.value)
    assert "Next steps" not in str(caught.value)


@pytest.mark.parametrize("wrapper", ["DataParallel", "a child called module"])
def test_a_prefix_that_the_model_has_too_stays(wrapper, tmp_path):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Conv2d(2, 2, 1)

    make = Wrapper if wrapper.startswith("a") else lambda: nn.DataParallel(nn.Conv2d(2, 2, 1))
    path = tmp_path / "weights.pt"
    torch.save(make().state_dict(), path)
    load_into(make(), load_state(path), path)


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_truncated_legacy_file_is_refused(fraction, tmp_path):
    path = tmp_path / "weights.pt"
    state = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for end in range(int(fraction * len(content)), int(fraction * len(content)) + 60):
        path.write_bytes(content[:end])
        with pytest.raises(ConverterError):
            load_state(path)


@pytest.mark.parametrize("content", [b"\x80", b"\x80\x02.", b"\x80\x02}q\x00."])
def test_a_broken_pickle_is_refused(content, tmp_path):
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(ConverterError):
        load_state(tmp_path / "weights.pt")


def test_a_text_that_begins_like_a_pickle_is_no_torch_checkpoint(tmp_path):
    (tmp_path / "weights.pt").write_text("hello")
    with pytest.raises(ConverterError, match="is not a torch checkpoint"):
        load_state(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(2).to(torch.float8_e4m3fn),
        torch.ones(2).to_sparse(),
        torch.ones(2, device="meta"),
    ],
)
def test_unusual_tensors_are_read_or_refused(tensor, tmp_path):
    torch.save({"a": tensor}, tmp_path / "weights.pt")
    with contextlib.suppress(ConverterError):
        load_state(tmp_path / "weights.pt")
