"""Folders of images as they are found: hidden files, classes, grey, 16 bits, bytes."""

import numpy as np
import pytest
from PIL import Image

from converter.data.folders import from_folder
from converter.data.images import Preprocessing
from converter.data.inputs import Input
from converter.errors import ConverterError

FLOAT, BYTES = np.dtype(np.float32), np.dtype(np.uint8)
RGB = Input("image", (None, 3, 4, 6), FLOAT)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def write(folder, *names):
    """Write different images, 6 wide and 4 high, and give what they show."""
    shown = pixels(len(names), 4, 6, 3)
    for name, image in zip(names, shown):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    return shown


def opened(folder, item=RGB, **preprocessing):
    return from_folder(folder, [item], Preprocessing(**preprocessing))


def everything(data):
    return data.read(np.arange(data.count))["image"]


def test_hidden_files_and_folders_are_passed_by(tmp_path):
    write(tmp_path, "a/0.png", "b/0.png", ".ipynb_checkpoints/0.png", "__MACOSX/a/1.png")
    (tmp_path / "a" / "._0.png").write_bytes(b"Mac OS X")
    data = opened(tmp_path)
    assert data.labels.tolist() == [0, 1]
    assert (data.count, data.named_classes, data.notes) == (2, 2, ())


def test_a_folder_without_files_is_a_class(tmp_path):
    write(tmp_path, "a/0.png", "c/0.png")
    (tmp_path / "b").mkdir()
    data = opened(tmp_path)
    assert data.labels.tolist() == [0, 2] and data.named_classes == 3
    (note,) = data.notes
    assert "2 images in 3 classes; there are none of b" in note


def test_a_folder_of_other_files_is_no_class(tmp_path):
    write(tmp_path, "a/0.png", "c/0.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "readme.txt").write_text("no image")
    assert opened(tmp_path).labels.tolist() == [0, 1]


def test_images_deeper_in_a_folder_are_of_its_class(tmp_path):
    write(tmp_path, "a/images/0.png", "b/images/0.png", "b/1.png")
    assert opened(tmp_path).labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("a/0.png", "b/0.png", "1.png"), "so the subfolders are not taken for classes"),
        (("train/a/0.png", "val/a/0.png"), "The subfolders train, val of"),
    ],
)
def test_labels_that_are_not_taken_are_told(names, words, tmp_path):
    write(tmp_path, *names)
    data = opened(tmp_path)
    assert data.labels is None and data.named_classes is None
    assert words in data.notes[0]


def test_images_of_a_single_folder_have_no_classes(tmp_path):
    write(tmp_path, "images/0.png", "images/1.png")
    data = opened(tmp_path)
    assert data.labels is None and data.notes == ()


@pytest.mark.parametrize(("names", "told"), [(("2", "10"), True), (("02", "10"), False)])
def test_numbers_that_sort_otherwise_as_text_are_told(names, told, tmp_path):
    write(tmp_path, *(f"{name}/0.png" for name in names))
    data = opened(tmp_path)
    assert data.labels.tolist() == [0, 1]
    assert any("sorted as text" in note for note in data.notes) is told


@pytest.mark.parametrize("suffix", ["ppm", "pgm"])
def test_netpbm_files_are_images(suffix, tmp_path):
    grey = pixels(4, 6)
    Image.fromarray(grey).convert("RGB" if suffix == "ppm" else "L").save(tmp_path / f"0.{suffix}")
    np.testing.assert_allclose(
        everything(opened(tmp_path))[0], np.stack([grey] * 3) / 255, atol=1e-6
    )


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    values = np.linspace(0, 65535, 24).reshape(4, 6).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "0.png")
    found = everything(opened(tmp_path))
    assert np.abs(found[0, 0] - values / 65535).max() <= 0.5 / 255 + 1e-6


def test_values_of_unknown_range_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 6), np.float32)).save(tmp_path / "0.tiff")
    with pytest.raises(ConverterError, match=r"0\.tiff has values of 32 bits"):
        everything(opened(tmp_path))


@pytest.mark.parametrize(
    ("shape", "nhwc", "axis"), [((None, 1, 4, 6), False, 1), ((None, 4, 6, 1), True, 3)]
)
def test_a_network_of_one_channel_takes_grey_images(shape, nhwc, axis, tmp_path):
    grey = pixels(4, 6)
    Image.fromarray(grey).save(tmp_path / "0.png")
    data = opened(tmp_path, Input("image", shape, FLOAT), nhwc=nhwc)
    np.testing.assert_allclose(everything(data)[0], np.expand_dims(grey, axis - 1) / 255, atol=1e-6)
    assert data.preprocessing.startswith("grey")


@pytest.mark.parametrize("nhwc", [False, True])
def test_images_of_a_network_that_takes_bytes_stay_bytes(nhwc, tmp_path):
    shown = write(tmp_path, "0.png", "1.png")
    shape = (None, 4, 6, 3) if nhwc else (None, 3, 4, 6)
    data = opened(tmp_path, Input("image", shape, BYTES), nhwc=nhwc)
    found = everything(data)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, shown if nhwc else shown.transpose(0, 3, 1, 2))
    assert data.preprocessing.endswith("bytes as they are")


def test_bytes_are_not_normalised(tmp_path):
    write(tmp_path, "0.png")
    with pytest.raises(ConverterError, match="leave out --mean and --std"):
        opened(tmp_path, Input("image", (None, 3, 4, 6), BYTES), mean=(0.5,))


def test_a_network_of_two_inputs_needs_arrays(tmp_path):
    write(tmp_path, "0.png")
    inputs = [RGB, Input("speaker", (None, 2), FLOAT)]
    with pytest.raises(ConverterError, match=r"the network has image, speaker; give an \.npz"):
        from_folder(tmp_path, inputs, Preprocessing())


def test_hidden_images_alone_are_no_images(tmp_path):
    write(tmp_path, ".cache/0.png")
    with pytest.raises(ConverterError, match="holds no images"):
        opened(tmp_path)


def test_the_preprocessing_is_described(tmp_path):
    write(tmp_path, "0.png")
    plain = opened(tmp_path).preprocessing
    assert plain == "RGB, channels first, scaled to 0..1, not normalised"
    data = opened(tmp_path, mean=(0.5,), std=(0.25,), resize=8, crop=4, bgr=True)
    assert data.preprocessing == (
        "BGR, channels first, short side of files resized to 8, files cropped to 4x4, "
        "scaled to 0..1, mean 0.5, std 0.25"
    )
