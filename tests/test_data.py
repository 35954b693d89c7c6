"""Data: samples, batches, casts and augmentation."""

import numpy as np
import pytest
from data_cases import everything, read
from networks import noise
from PIL import Image

from converter.data.data import conform, from_arrays, random_data
from converter.data.images import Preprocessing
from converter.errors import ConverterError


def test_sampling_is_seeded():
    data = from_arrays({"x": np.arange(100), "y": np.arange(100)}, "numbers")
    first, again, other = (data.sample(20, seed) for seed in (0, 0, 1))
    chosen = everything(first)["x"]
    assert first.count == 20 and len(set(chosen)) == 20
    np.testing.assert_array_equal(chosen, everything(again)["x"])
    assert not np.array_equal(chosen, everything(other)["x"])
    np.testing.assert_array_equal(first.labels, chosen)


def test_sampling_takes_what_there_is():
    data = from_arrays({"x": np.arange(5)}, "numbers")
    np.testing.assert_array_equal(everything(data.sample(9, 0))["x"], np.arange(5))


def test_taking_twice_takes_from_what_was_taken():
    data = from_arrays({"x": np.arange(9) * 10, "y": np.arange(9)}, "numbers")
    part = data.take(np.array([8, 2, 4])).take(np.array([2, 0]))
    np.testing.assert_array_equal(everything(part)["x"], [40, 80])
    np.testing.assert_array_equal(part.labels, [4, 8])


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_batches_cover_everything_in_order(size):
    data = from_arrays({"x": np.arange(7)}, "numbers")
    indices, arrays = zip(*data.batches(size))
    assert max(map(len, indices)) <= size
    np.testing.assert_array_equal(np.concatenate(indices), np.arange(7))
    np.testing.assert_array_equal(np.concatenate([a["x"] for a in arrays]), np.arange(7))


def test_random_data_is_seeded_and_of_the_right_kind():
    shapes, dtypes = {"x": (1, 3, 4), "n": (1, 2)}, {"x": np.dtype("f4"), "n": np.dtype("i8")}
    data = random_data(shapes, dtypes, 200, seed=0)
    found = everything(data)
    assert found["x"].shape == (200, 3, 4) and found["x"].dtype == np.float32
    assert abs(found["x"].mean()) < 0.1 and abs(found["x"].std() - 1) < 0.1
    np.testing.assert_array_equal(found["n"], np.ones((200, 2)))
    np.testing.assert_array_equal(data.read(np.array([7]))["x"][0], found["x"][7])
    other = everything(random_data(shapes, dtypes, 200, seed=1))["x"]
    assert not np.allclose(found["x"], other)


def test_conforming_casts_and_leaves_free_sizes_free():
    data = from_arrays({"x": noise(4, 3, 9).astype(np.float64)}, "numbers")
    found = everything(conform(data, {"x": (1, 3, None)}, {"x": np.dtype(np.float32)}))
    assert found["x"].dtype == np.float32
    np.testing.assert_array_equal(found["x"], noise(4, 3, 9))


@pytest.mark.parametrize("shape", [(4, 3, 8), (4, 2, 9), (4, 3, 9, 1), (4, 27)])
def test_data_of_another_shape_is_refused(shape):
    data = from_arrays({"x": noise(*shape)}, "numbers")
    with pytest.raises(ConverterError, match=r"for input 'x'; the network takes 3,9"):
        conform(data, {"x": (None, 3, 9)}, {"x": np.dtype(np.float32)})


# augmentation


def pictures(tmp_path, count=6):
    """Preprocessing whose columns tell where they were: brighter to the right."""
    x = np.broadcast_to((np.arange(16) * 10).astype(np.uint8), (count, 16, 16))[..., None]
    np.savez(tmp_path / "pictures.npz", x=np.repeat(x, 3, axis=3))
    return str(tmp_path / "pictures.npz")


@pytest.mark.parametrize("augment", ["flip", "shift"])
def test_images_are_shifted_and_flipped(augment, tmp_path):
    data = read(pictures(tmp_path, 200), images=Preprocessing(flip=augment == "flip"))
    plain = data.read(np.arange(200))["x"]
    moved = data.batch(np.arange(200), np.random.default_rng(0))[0]["x"]
    assert moved.shape == plain.shape and moved.dtype == plain.dtype
    slopes = moved[:, 0, 0, 12] - moved[:, 0, 0, 4]
    assert (np.any(slopes < 0)) == (augment == "flip")
    assert len(np.unique(moved[:, 0, 0, 8])) > 3
    assert np.isin(moved, plain).all()


def test_augmentation_is_seeded(tmp_path):
    data = read(pictures(tmp_path)).take(np.array([4, 1]))
    one, again, other = (
        data.batch(np.arange(2), np.random.default_rng(seed))[0]["x"] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)


def test_numbers_are_not_augmented():
    data = from_arrays({"x": noise(3, 3, 8, 8)}, "numbers")
    same = data.batch(np.arange(3), np.random.default_rng(0))[0]["x"]
    np.testing.assert_array_equal(same, data.read(np.arange(3))["x"])


def test_parts_of_image_files_are_of_the_size_that_is_wanted(tmp_path):
    for n in range(3):
        array = np.random.default_rng(n).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(array).save(tmp_path / f"{n}.png")
    data = read(tmp_path, images=Preprocessing(resize=32, crop=24))
    rng = np.random.default_rng(0)
    parts = [data.batch(np.arange(3), rng)[0]["x"] for _ in range(2)]
    assert parts[0].shape == data.read(np.arange(3))["x"].shape == (3, 3, 24, 24)
    assert not np.array_equal(*parts)


@pytest.mark.parametrize("flip", [True, False])
def test_image_files_that_are_not_cut_are_shifted(by_class, flip):
    folder, _ = by_class
    shown = np.arange(1, 16 * 16 + 1).reshape(16, 16)
    for path in folder.rglob("*.png"):
        Image.fromarray(np.repeat(shown[..., None], 3, 2).astype(np.uint8)).save(path)
    data = read(folder, images=Preprocessing(flip=flip))
    plain = data.read(np.arange(1))["x"][0]
    seen = [data.batch(np.arange(1), np.random.default_rng(n))[0]["x"][0] for n in range(30)]
    assert all(x.shape == plain.shape for x in seen)
    middles = {float(x[0, 8, 8]) for x in seen}
    assert len(middles) > 8  # five rows and columns to be shifted to
    flipped = [x[0, 8, 9] < x[0, 8, 8] for x in seen]
    assert any(flipped) == flip
