"""Arrays of .npz files: read, prepared, refused."""

import zipfile

import numpy as np
import pytest
from data_cases import everything, npz, pixels, read
from networks import noise

from converter.data.data import conform
from converter.data.images import Preprocessing
from converter.errors import ConverterError
from converter.options import Options


def test_an_array_x_is_the_first_input(tmp_path):
    x, mask, labels = noise(5, 3, 4, 4), noise(5, 7, seed=1), np.arange(5) % 2
    data = read(npz(tmp_path, x=x, mask=mask, y=labels), ["image", "mask"])
    assert data.count == 5
    assert list(everything(data)) == ["image", "mask"]
    np.testing.assert_array_equal(everything(data)["image"], x)
    np.testing.assert_array_equal(data.read(np.array([3, 1]))["mask"], mask[[3, 1]])
    np.testing.assert_array_equal(data.labels, labels)


def test_an_array_of_the_input_s_name_goes_before_x(tmp_path):
    data = read(npz(tmp_path, x=noise(2, 3), image=noise(2, 3, seed=1)), ["image"])
    np.testing.assert_array_equal(everything(data)["image"], noise(2, 3, seed=1))


def test_there_are_no_labels_without_y(tmp_path):
    assert read(npz(tmp_path, x=noise(2, 3))).labels is None


def test_an_input_named_y_is_not_the_labels(tmp_path):
    data = read(npz(tmp_path, x=noise(2, 3), y=noise(2, 3, seed=1)), ["x", "y"])
    assert data.labels is None
    np.testing.assert_array_equal(everything(data)["y"], noise(2, 3, seed=1))


def test_uint8_images_are_scaled_and_normalised(tmp_path):
    x = pixels(4, 5, 6, 3)
    images = Preprocessing.of(Options.of(mean="0.5,0.25,0.125", std="0.5,1,2"))
    found = everything(read(npz(tmp_path, x=x), images=images))["x"]
    wanted = (x / 255 - [0.5, 0.25, 0.125]) / [0.5, 1, 2]
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_allclose(found, wanted.transpose(0, 3, 1, 2), atol=1e-6)


def test_one_mean_serves_all_channels(tmp_path):
    x = pixels(2, 4, 4, 3)
    found = everything(read(npz(tmp_path, x=x), images=Preprocessing(mean=(0.5,), std=(0.25,))))[
        "x"
    ]
    np.testing.assert_allclose(found, (x / 255 - 0.5).transpose(0, 3, 1, 2) / 0.25, atol=1e-6)


def test_blue_comes_first_after_normalising(tmp_path):
    x = pixels(2, 4, 4, 3)
    images = Preprocessing.of(Options.of(channels="bgr", mean="0.1,0.2,0.3"))
    found = everything(read(npz(tmp_path, x=x), images=images))["x"]
    wanted = (x / 255 - [0.1, 0.2, 0.3])[..., ::-1].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_channels_stay_last_for_nhwc(tmp_path):
    x = pixels(2, 4, 5, 3)
    images = Preprocessing.of(Options.of(layout="nhwc"))
    found = everything(read(npz(tmp_path, x=x), images=images))["x"]
    np.testing.assert_allclose(found, x / 255, atol=1e-6)


def test_float_arrays_are_left_as_they_are(tmp_path):
    images = Preprocessing(mean=(0.5,), std=(0.25,), bgr=True, nhwc=True)
    found = everything(read(npz(tmp_path, x=noise(2, 3, 4, 4)), images=images))["x"]
    np.testing.assert_array_equal(found, noise(2, 3, 4, 4))


def test_what_is_no_npz_is_refused(tmp_path):
    (tmp_path / "data.npz").write_text("x,y\n1,2\n")
    with pytest.raises(ConverterError, match=r"data\.npz is not a sound \.npz file"):
        read(tmp_path / "data.npz")


@pytest.mark.parametrize("kept", [0, 100, 3000])
def test_a_truncated_npz_is_refused(tmp_path, kept):
    path = npz(tmp_path, x=noise(20, 3, 8, 8))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ConverterError, match="not a sound"):
        read(path)


def test_a_damaged_npz_is_refused(tmp_path):
    path = npz(tmp_path, x=noise(20, 3, 8, 8))
    content = bytearray(path.read_bytes())
    content[3000] ^= 255
    path.write_bytes(content)
    with pytest.raises(ConverterError, match="not a sound"):
        read(path)


def test_pickled_arrays_are_refused(tmp_path):
    path = npz(tmp_path, x=np.array([{"run": "code"}, None], object))
    with pytest.raises(ConverterError, match="not a sound"):
        read(path)


def test_what_is_no_array_in_an_archive_is_passed_by(tmp_path):
    path = npz(tmp_path, z=noise(20, 3, 8, 8))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x", b"no array")
    with pytest.raises(ConverterError, match="it lacks the network's input"):
        read(path)


def test_a_missing_input_is_named(tmp_path):
    path = npz(tmp_path, x=noise(2, 3), depth=noise(2, 3))
    with pytest.raises(ConverterError, match=r"depth, x; it lacks the network's input 'mask'"):
        read(path, ["image", "mask"])


@pytest.mark.parametrize("count", [0, 2, 4])
def test_inputs_must_have_equally_many_examples(tmp_path, count):
    path = npz(tmp_path, x=noise(3, 2), mask=noise(count, 2))
    with pytest.raises(ConverterError, match="same number of examples"):
        read(path, ["x", "mask"])


def test_no_examples_are_refused(tmp_path):
    with pytest.raises(ConverterError, match="above 0"):
        read(npz(tmp_path, x=noise(0, 3, 4, 4)))


@pytest.mark.parametrize(
    "labels",
    [np.zeros(2, int), np.array(1), np.zeros((4, 3)), np.array(["a", "b", "c"])],
    ids=["too few", "one for all", "too many", "words"],
)
def test_labels_must_be_numbers_for_each_example(tmp_path, labels):
    with pytest.raises(ConverterError, match=r"labels y of .* must be numbers for each of 3"):
        read(npz(tmp_path, x=noise(3, 2), y=labels))


@pytest.mark.parametrize(
    "labels", [np.arange(3.0), np.arange(3)[:, None], pixels(3, 4, 4)], ids=["f", "axes", "masks"]
)
def test_labels_that_are_no_classes_come_with_their_examples(tmp_path, labels):
    x = pixels(3, 4, 4, 3)
    data = conform(
        read(npz(tmp_path, x=x, y=labels)), {"x": (None, 3, 4, 4)}, {"x": np.dtype(np.float16)}
    )
    if labels.ndim == 3:
        assert data.labels is None
    else:
        assert data.labels.tolist() == [0, 1, 2]
    feeds, told = data.take(np.array([2, 0])).batch(np.arange(2), np.random.default_rng(0))
    np.testing.assert_array_equal(told, labels[[2, 0]])
    # Shifted images would no longer show what such labels say.
    np.testing.assert_array_equal(feeds["x"], data.read(np.array([2, 0]))["x"])
    feeds, told = data.unlabelled().batch(np.arange(3), np.random.default_rng(0))
    assert told is None and not np.array_equal(feeds["x"], everything(data)["x"])


def test_classes_come_with_examples_that_are_changed(tmp_path):
    data = read(npz(tmp_path, x=pixels(3, 4, 4, 3), y=np.array([2, 0, 1])))
    feeds, told = data.take(np.array([2, 0])).batch(np.arange(2), np.random.default_rng(0))
    np.testing.assert_array_equal(told, [1, 2])
    assert not np.array_equal(feeds["x"], data.read(np.array([2, 0]))["x"])
    feeds, told = data.without_augmentation().batch(np.arange(3), np.random.default_rng(0))
    np.testing.assert_array_equal(feeds["x"], everything(data)["x"])
    np.testing.assert_array_equal(told, [2, 0, 1])


@pytest.mark.parametrize("option", ["mean", "std"])
def test_as_many_means_as_channels(tmp_path, option):
    data = read(npz(tmp_path, x=pixels(2, 4, 4, 3)), images=Preprocessing(**{option: (0.5, 0.5)}))
    with pytest.raises(ConverterError, match=f"--{option} has 2 values; the images have 3"):
        everything(data)


def test_means_must_be_numbers():
    with pytest.raises(ConverterError, match=r"Invalid value '0\.5,half' for --mean"):
        Preprocessing.of(Options.of(mean="0.5,half"))
