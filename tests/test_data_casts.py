"""Arrays in other types and layouts than the network takes: accepted whole, or refused."""

import numpy as np
import pytest

from converter.data.data import conform, from_arrays
from converter.data.images import Preprocessing
from converter.data.inputs import Input
from converter.data.native import from_members
from converter.errors import ConverterError

FLOAT, BYTES = np.dtype(np.float32), np.dtype(np.uint8)


def cast(values, dtype):
    data = from_arrays({"x": np.asarray(values)}, "numbers")
    kinds = {"x": np.dtype(dtype)}
    return conform(data, {"x": (None,)}, kinds).read(np.arange(data.count))["x"]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0.0, 255.0], np.uint8),
        (np.array([-3, 7], np.int64), np.int32),
        (np.array([0, 1]), np.bool_),
        (np.array([True, False]), np.int64),
        ([0.1, 1e-9], np.float32),
    ],
)
def test_a_cast_that_keeps_all_values_is_made(values, dtype):
    found = cast(values, dtype)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(float), np.asarray(values, float), rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "dtype", "word"),
    [
        ([0.0, 0.5], np.uint8, "0.5"),
        ([3.0, 256.0], np.uint8, "256"),
        (np.array([1, -1]), np.uint8, "-1"),
        (np.array([1, 2**40]), np.int32, "1.0"),
        ([0.0, 2.0], np.bool_, "2"),
        ([1.0, 1e6], np.float16, "1e"),
    ],
)
def test_a_cast_that_loses_values_is_refused(values, dtype, word):
    with pytest.raises(ConverterError, match=r"holds .* for input 'x', which takes") as caught:
        cast(values, dtype)
    assert word in str(caught.value)


def pixels(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def members(array, shape, dtype=FLOAT, **preprocessing):
    item = Input("x", shape, dtype)
    return from_members({"x": array}, "arrays", [item], Preprocessing(**preprocessing))


@pytest.mark.parametrize(
    ("array", "shape", "axes"),
    [
        ((2, 4, 6, 3), (None, 3, 4, 6), (0, 3, 1, 2)),  # channels last
        ((2, 3, 4, 6), (None, 3, 4, 6), (0, 1, 2, 3)),  # channels first
        ((2, 16, 4, 6), (None, 16, 4, 6), (0, 1, 2, 3)),  # not of one, three or four channels
    ],
)
def test_images_in_memory_are_laid_out(array, shape, axes):
    x = pixels(*array)
    data = members(x, shape)
    found = data.read(np.arange(2))["x"]
    np.testing.assert_allclose(found, x.transpose(axes) / 255, atol=1e-6)


def test_grey_images_in_memory_get_a_channel():
    x = pixels(2, 4, 6)
    found = members(x, (None, 1, 4, 6)).read(np.arange(2))["x"]
    np.testing.assert_allclose(found, x[:, None] / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("array", "axes"), [((2, 3, 4, 6), (0, 1, 2, 3)), ((2, 4, 6, 3), (0, 3, 1, 2))]
)
def test_bytes_in_memory_stay_bytes(array, axes):
    x = pixels(*array)
    found = members(x, (None, 3, 4, 6), BYTES).read(np.arange(2))["x"]
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, x.transpose(axes))


@pytest.mark.parametrize(
    ("shape", "word"), [((None, 4, 6, 3), "Give --layout nhwc"), ((None, 3, 5, 5), "--resize")]
)
def test_a_refused_shape_comes_with_advice(shape, word):
    data = members(pixels(2, 4, 6, 3), ())
    with pytest.raises(ConverterError, match=word):
        conform(data, {"x": shape}, {"x": FLOAT})


def test_an_input_that_the_data_lack_is_named():
    data = from_arrays({"x": np.zeros((2, 3))}, "numbers")
    with pytest.raises(ConverterError, match="lacks the network's input 'mask'"):
        conform(data, {"x": (None, 3), "mask": (None, 3)}, {"x": FLOAT, "mask": FLOAT})
