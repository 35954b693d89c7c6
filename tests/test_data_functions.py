"""Data that functions of the user give."""

import numpy as np
import pytest
from data_cases import everything, read

from converter.errors import ConverterError

GENERATORS = """
import numpy as np

def batches():
    for n in range(3):
        yield {"x": np.full((2, 4), n, np.float32), "y": np.array([n, n])}

def unlabelled():
    yield {"x": [[1.0, 2.0]]}

def nothing():
    yield from ()

def a_list():
    return [{"x": np.zeros((2, 4))}]

def tuples():
    yield np.zeros((2, 4)), 1

def numbers():
    yield 3

def sizes():
    yield np.zeros((2, 4))
    yield np.zeros((2, 5))

def raises():
    raise RuntimeError("no disk")

def other():
    yield {"image": np.zeros((2, 4))}
"""


@pytest.fixture
def generators(workplace):
    (workplace / "generators.py").write_text(GENERATORS)


def test_a_generator_s_batches_are_joined(generators):
    data = read("generators:batches")
    assert data.count == 6
    np.testing.assert_array_equal(everything(data)["x"][:, 0], [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(data.labels, [0, 0, 1, 1, 2, 2])


def test_a_function_may_return_a_list_of_batches(generators):
    data = read("generators:a_list")
    assert data.count == 2 and data.labels is None


def test_a_generator_need_not_give_labels(generators):
    data = read("generators:unlabelled")
    assert data.labels is None
    np.testing.assert_array_equal(everything(data)["x"], [[1, 2]])


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("nothing", "yields nothing"),
        ("tuples", "batches that differ"),
        ("other", "has arrays image; it lacks the network's input 'x'"),
        ("numbers", "must be a list of batches .* not of int"),
        ("sizes", "batches that differ"),
        ("raises", "failed: RuntimeError: no disk"),
        ("missing", "no callable named 'missing'"),
    ],
)
def test_other_functions_are_refused(generators, name, match):
    with pytest.raises(ConverterError, match=match):
        read(f"generators:{name}")


def test_an_unknown_module_is_refused(workplace):
    with pytest.raises(ConverterError, match="module 'nowhere' cannot be imported"):
        read("nowhere:batches")


@pytest.mark.parametrize("name", ["data.npz", "folder", "data.csv"])
def test_missing_data_is_refused(tmp_path, name):
    with pytest.raises(ConverterError, match=f"{name} does not exist"):
        read(tmp_path / name)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "data.csv").write_text("1,2\n")
    with pytest.raises(ConverterError, match=r"neither \.npz, \.npy, \.pt, a folder"):
        read(tmp_path / "data.csv")
