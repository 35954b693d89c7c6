"""Folders of images: classes, sizes, what is refused."""

import numpy as np
import pytest
from data_cases import everything, pixels, read
from PIL import ExifTags, Image

from converter.data.folders import from_folder
from converter.data.images import Preprocessing
from converter.data.inputs import Input
from converter.errors import ConverterError


def test_folders_are_classes(by_class):
    folder, shown = by_class
    data = read(folder)
    assert data.labels.tolist() == [0, 0, 1]  # cat/b, cat/c, dog/a
    found = everything(data)["x"]
    np.testing.assert_allclose(found, shown[[2, 1, 0]].transpose(0, 3, 1, 2) / 255, atol=1e-6)


def test_a_flat_folder_has_no_labels(tmp_path):
    shown = pixels(3, 4, 4, 3)
    for n, image in enumerate(shown):
        Image.fromarray(image).save(tmp_path / f"{n}.PNG")
    (tmp_path / "readme.txt").write_text("not an image")
    data = read(tmp_path)
    assert data.labels is None and data.count == 3
    np.testing.assert_allclose(everything(data)["x"], shown.transpose(0, 3, 1, 2) / 255, atol=1e-6)


def test_grey_images_become_rgb(tmp_path):
    grey = pixels(4, 4)
    Image.fromarray(grey).save(tmp_path / "a.png")
    found = everything(read(tmp_path))["x"]
    np.testing.assert_allclose(found[0], np.stack([grey] * 3) / 255, atol=1e-6)


def test_the_middle_is_cut_out(by_class):
    folder, shown = by_class
    found = everything(read(folder, images=Preprocessing(crop=2)))["x"]
    np.testing.assert_allclose(found[2], shown[0, 1:3, 2:4].transpose(2, 0, 1) / 255, atol=1e-6)


@pytest.mark.parametrize(("crop", "size"), [(None, (8, 12)), (8, (8, 8))])
def test_the_short_side_is_resized(by_class, crop, size):
    folder, _ = by_class
    found = everything(read(folder, images=Preprocessing(resize=8, crop=crop)))["x"]
    assert found.shape == (3, 3, *size)


def test_resizing_keeps_a_flat_colour(tmp_path):
    Image.new("RGB", (9, 5), (255, 102, 0)).save(tmp_path / "a.png")
    found = everything(read(tmp_path, images=Preprocessing(resize=4, crop=4)))["x"]
    wanted = np.broadcast_to(np.array([1, 0.4, 0]).reshape(3, 1, 1), (3, 4, 4))
    np.testing.assert_allclose(found[0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((None, 3, 24, 24), "give --resize 24 --crop 24"),
        ((None, 3, None, 24), "give --resize 24 --crop 24"),
        ((None, 3, None, None), "give --resize 32 --crop 32"),
        ((None, 3, 24, 48), "save them with a height of 24 and a width of 48 pixels"),
    ],
)
def test_images_of_several_sizes_are_refused_with_advice(tmp_path, shape, advice):
    for n, size in enumerate([(70, 45), (45, 90), (60, 60)]):
        Image.new("RGB", size).save(tmp_path / f"{n}.png")
    inputs = [Input("x", shape, np.dtype(np.float32))]
    with pytest.raises(ConverterError, match=f"differ in size; {advice}\\.$"):
        everything(from_folder(tmp_path, inputs, Preprocessing()))


def test_the_advice_for_images_of_several_sizes_helps(tmp_path):
    for n, size in enumerate([(70, 45), (45, 90), (60, 60)]):
        Image.new("RGB", size).save(tmp_path / f"{n}.png")
    data = read(tmp_path, images=Preprocessing(resize=32, crop=32))
    assert everything(data)["x"].shape == (3, 3, 32, 32)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_read_upright(tmp_path, orientation):
    upright = pixels(4, 6, 3)
    transposes = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = np.ascontiguousarray(transposes[orientation](upright))
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    found = everything(read(tmp_path))["x"]
    np.testing.assert_allclose(found[0], upright.transpose(2, 0, 1) / 255, atol=1e-6)


def test_an_unreadable_image_is_named(by_class):
    folder, _ = by_class
    (folder / "cat" / "z.png").write_text("no image")
    with pytest.raises(ConverterError, match=r"z\.png cannot be read"):
        everything(read(folder))


def test_a_truncated_image_is_named(by_class):
    folder, _ = by_class
    Image.fromarray(pixels(40, 40, 3)).save(folder / "cat" / "z.png")
    content = (folder / "cat" / "z.png").read_bytes()
    (folder / "cat" / "z.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConverterError, match=r"z\.png cannot be read"):
        everything(read(folder))


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ConverterError, match="holds no images"):
        read(tmp_path)
