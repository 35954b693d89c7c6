"""``Conv``: the contradictions that it refuses, and sizes and costs as in torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conv_cases import SOME, compute, convolutions, input_for
from hypothesis import given
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from converter.decomposition.conv import Conv
from converter.decomposition.taps import swap_in_out
from converter.errors import ConverterError

MODULES = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

CONTRADICTIONS = {
    "one axis": ({"kernel": np.ones(4)}, "is not a convolution's"),
    "a matrix with strides": ({"kernel": np.ones((4, 2))}, "must each have 0 entries"),
    "four spatial axes": ({"kernel": np.ones((4, 2, 1, 1, 1, 1))}, "is not a convolution's"),
    "an empty axis": ({"kernel": np.ones((4, 2, 0, 3))}, "is not a convolution's"),
    "no filters": ({"kernel": np.ones((0, 2, 3, 3))}, "is not a convolution's"),
    "stride too short": ({"stride": (1,)}, "must each have 2 entries"),
    "padding too long": ({"padding": ((0, 0),) * 3}, "must each have 2 entries"),
    "dilation missing": ({"dilation": ()}, "must each have 2 entries"),
    "stride 0": ({"stride": (0, 1)}, "must be at least 1"),
    "negative stride": ({"stride": (1, -2)}, "must be at least 1"),
    "dilation 0": ({"dilation": (1, 0)}, "must be at least 1"),
    "groups 0": ({"groups": 0}, "must be at least 1"),
    "unknown padding mode": ({"padding_mode": "mirror"}, "Padding mode 'mirror' is unknown"),
    "groups that do not divide O": ({"groups": 3}, "3 groups do not divide 4 filters"),
    "a transposed one with a padding mode": (
        {"transposed": True, "padding_mode": "reflect"},
        "it has no mode",
    ),
    "a bias too short": ({"bias": np.ones(2)}, r"must have shape \(4,\)"),
    "a bias of two axes": ({"bias": np.ones((4, 1))}, r"must have shape \(4,\)"),
    "a bias per input of a transposed one": (
        {"transposed": True, "bias": np.ones(2)},
        r"must have shape \(4,\)",
    ),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_is_refused(case):
    changes, sentence = CONTRADICTIONS[case]
    fields = {
        "kernel": np.ones((4, 2, 3, 3)),
        "bias": None,
        "stride": (1, 1),
        "padding": ((0, 0), (0, 0)),
        "dilation": (1, 1),
    }
    Conv(**fields)
    with pytest.raises(ConverterError, match=sentence):
        Conv(**(fields | changes))


@SOME
@given(conv=convolutions() | convolutions(axes=1) | convolutions(axes=3))
def test_output_size_and_cost_are_those_of_torch(conv):
    x = input_for(conv, batch=1)
    with FlopCounterMode(display=False) as counter:
        out = compute([conv], x)
    assert conv.output_size(x.shape[2:]) == out.shape[2:]
    assert out.shape[1] == conv.O
    assert 2 * conv.macs(x.shape[2:]) == counter.get_total_flops()
    module = MODULES[len(conv.k)](
        conv.I, conv.O, conv.k, groups=conv.groups, bias=conv.bias is not None
    )
    assert conv.params == sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("output_padding", [(), (1, 0)])
def test_a_transposed_convolution_is_sized_as_in_torch(groups, output_padding):
    conv = Conv(
        kernel=np.ones((3 * groups, 4 // groups, 3, 2)),
        bias=np.ones(3 * groups),
        stride=(2, 3),
        padding=((1, 1), (0, 0)),
        dilation=(1, 2),
        groups=groups,
        transposed=True,
        output_padding=output_padding,
    )
    with FlopCounterMode(display=False) as counter:
        out = F.conv_transpose2d(
            torch.zeros(1, 4, 5, 6, dtype=torch.float64),
            torch.from_numpy(swap_in_out(conv.kernel, groups)),
            torch.from_numpy(conv.bias),
            conv.stride,
            (1, 0),
            output_padding or 0,
            groups,
            conv.dilation,
        )
    assert conv.I == 4
    assert out.shape[1] == conv.O
    assert conv.output_size((5, 6)) == tuple(out.shape[2:])
    assert 2 * conv.macs((5, 6)) == counter.get_total_flops()
    assert conv.params == 4 * 3 * 3 * 2 + 3 * groups
