"""Kernels without full rank, and contradictory convolutions, ranks and chains."""

import numpy as np
import pytest
from conv_cases import make_conv

from converter.decomposition.approximation import relative_error
from converter.decomposition.conv import Chain, Conv
from converter.decomposition.decompose import decompose
from converter.decomposition.forms import FORMS
from converter.decomposition.ranks import parse_rank
from converter.errors import ConverterError


def solved(kernel, name):
    """A convolution without bias, in as many groups as the kernel has, and its chain of rank 8."""
    groups = 8 // kernel.shape[1]
    conv = Conv(kernel, None, (1, 1), ((1, 1),) * 2, (1, 1), groups=groups)
    return conv, decompose(conv, FORMS[name], (8,))


@pytest.mark.parametrize("name", ["flattened", "separable"])
@pytest.mark.parametrize("ones", [0, 1, 8])
def test_kernels_of_low_rank_are_reproduced(name, ones):
    kernel = np.zeros((8, 8, 3, 3))
    kernel[range(ones), range(ones), 1, 1] = 1
    assert relative_error(*solved(kernel, name)) < 1e-4


@pytest.mark.parametrize("name", ["flattened", "separable"])
def test_a_dead_group_stays_dead_beside_another(name):
    kernel = np.random.default_rng(0).standard_normal((8, 4, 3, 3))
    kernel[4:] = 0
    conv, chain = solved(kernel, name)
    found = chain.dense().kernel
    assert found.shape == kernel.shape
    assert np.abs(found[4:]).max() < 1e-6
    assert relative_error(conv, chain) < 0.75


@pytest.mark.parametrize("text", ["9" * 400, "1e308", "inf", "nan"])
def test_a_huge_rank_is_refused(text):
    with pytest.raises(ConverterError, match="must be above 0 and below 1000000"):
        parse_rank(text, FORMS["flattened"], make_conv((12, 8, 3, 5)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"transposed": True, "output_padding": (1,)}, "Output padding .* must have 2 entries"),
        ({"padding": ((1,), (1,))}, "must be \\(begin, end\\) per axis"),
        ({"padding": ((-1, 0), (0, 0))}, "per axis, not below 0"),
    ],
)
def test_contradictory_geometry_is_refused(fields, words):
    with pytest.raises(ConverterError, match=words):
        make_conv((4, 4, 3, 3), **fields)


def test_an_empty_chain_is_refused():
    with pytest.raises(ConverterError, match="at least one step"):
        Chain(())


def test_steps_over_other_axes_are_refused():
    with pytest.raises(ConverterError, match="the same number of spatial axes"):
        Chain((make_conv((4, 3, 3), bias=False), make_conv((4, 4, 3, 3))))
