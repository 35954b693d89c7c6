"""Labels with boxes: read from COCO json and YOLO text files, and placed in the input."""

import json

import numpy as np
import pytest
from PIL import ExifTags, Image

from converter.data.boxes import read_coco, read_yolo
from converter.data.images import Preprocessing
from converter.data.inputs import Input
from converter.data.placement import Transform, fitted, placed
from converter.data.readers import read
from converter.errors import ConverterError

FLOATS = np.dtype(np.float32)
NONE = [-1] * 5


def make_image(path, size=(40, 20), colour=(255, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def coco():
    return {
        "images": [
            {"id": 7, "file_name": "b.png", "width": 40, "height": 20},
            {"id": 3, "file_name": "a.png", "width": 30, "height": 30},
        ],
        "categories": [{"id": 90, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 5]},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [0, 0, 40.4, 20], "iscrowd": 0},
            {"id": 3, "image_id": 3, "category_id": 2, "bbox": [5, 5, 9, 9], "iscrowd": 1},
        ],
    }


@pytest.fixture
def folder(tmp_path):
    make_image(tmp_path / "b.png")
    make_image(tmp_path / "a.png", (30, 30))
    (tmp_path / "annotations.json").write_text(json.dumps(coco()))
    return tmp_path


def test_coco(folder):
    labels = read_coco(folder / "annotations.json", folder)
    assert [path.name for path in labels.paths] == ["b.png", "a.png"]
    assert labels.sizes.tolist() == [[40, 20], [30, 30]]
    assert labels.class_names == ("dog", "cat")
    assert labels.boxes.tolist() == [[[1, 1, 2, 11, 7], [0, 0, 0, 40, 20]], [NONE, NONE]]


def changed(key, number, **values):
    content = coco()
    content[key][number] |= values
    return content


@pytest.mark.parametrize(
    "content,reason",
    [
        ([], "no object at the top"),
        ({"images": []}, "'images' must hold objects"),
        ({**coco(), "categories": 3}, "'categories' must be a list of objects"),
        ({**coco(), "annotations": [[]]}, "'annotations' must be a list of objects"),
        (changed("images", 0, id=3), "each with an integer id of its own"),
        (changed("images", 0, id="x"), "each with an integer id of its own"),
        (changed("images", 0, file_name="c.png"), "c.png, which has labels, is missing"),
        (changed("images", 0, width=80), "b.png has 40x20 pixels, not 80x20"),
        (changed("annotations", 0, image_id=1), "annotation 1 names image 1 and category 90"),
        (changed("annotations", 0, image_id=[7]), "annotation 1 names image"),
        (changed("annotations", 0, category_id=1), "which the file does not list"),
        (changed("annotations", 0, bbox=[1, 2, 3]), "annotation 1 must have 4 finite numbers"),
        (changed("annotations", 0, bbox="1234"), "annotation 1 must have 4 finite numbers"),
        (changed("annotations", 0, bbox=[1, 2, 3, float("nan")]), "4 finite numbers"),
        (changed("annotations", 0, bbox=[1, 2, 3, None]), "4 finite numbers"),
        (changed("annotations", 0, bbox=[10**400, 2, 3, 4]), "4 finite numbers"),
        (changed("annotations", 0, bbox=[1, 2, 0, 4]), "has a box without an area"),
        (changed("annotations", 0, bbox=[1, 2, -3, 4]), "has a box without an area"),
        (changed("annotations", 0, bbox=[35, 2, 10, 4]), "outside of its image of 40x20 pixels"),
        (changed("annotations", 0, bbox=[-5, 2, 10, 4]), "outside of its image"),
    ],
)
def test_wrong_coco_files_are_refused(folder, content, reason):
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ConverterError, match=reason):
        read_coco(path, folder)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_is_refused(folder, content):
    path = folder / "annotations.json"
    path.write_bytes(content)
    with pytest.raises(
        ConverterError, match=r"annotations.json (are no sound json|cannot be read)"
    ):
        read_coco(path, folder)


def test_a_damaged_image_is_named(folder):
    (folder / "a.png").write_bytes(b"no image")
    with pytest.raises(ConverterError, match=r"a.png cannot be read"):
        read_coco(folder / "annotations.json", folder)


def make_yolo(folder, beside, lines=b"1 0.5 0.5 0.25 0.5\n\n0 0.05 0.1 0.1 0.2\n"):
    images, labels = (folder, folder) if beside else (folder / "images", folder / "labels")
    for name in ("a", "part/b", "part/c"):
        make_image(images / f"{name}.png")
    (labels / "part").mkdir(parents=True, exist_ok=True)
    (labels / "a.txt").write_bytes(lines)
    (labels / "part" / "c.txt").write_bytes(b"")
    return folder


@pytest.mark.parametrize("beside", [True, False])
def test_yolo(tmp_path, beside):
    labels = read_yolo(make_yolo(tmp_path, beside))
    assert [path.stem for path in labels.paths] == ["a", "b", "c"]
    assert labels.class_names == ("0", "1")
    boxes = [[[1, 15, 5, 25, 15], [0, 0, 0, 4, 4]], [NONE, NONE], [NONE, NONE]]
    np.testing.assert_allclose(labels.boxes, boxes)


def test_boxes_of_yolo_are_those_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (32, 16)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "a.txt").write_text("0 0.5 0.25 0.5 0.5\n")
    labels = read_yolo(tmp_path)
    assert labels.sizes.tolist() == [[16, 32]]
    assert labels.boxes[0].tolist() == [[0, 4, 0, 12, 16]]


def test_names_of_yolo_classes(tmp_path):
    make_yolo(tmp_path, False)
    (tmp_path / "labels" / "classes.txt").write_text("cat\ndog\nhen\n")
    assert read_yolo(tmp_path).class_names == ("cat", "dog", "hen")
    (tmp_path / "classes.txt").write_text("cat\n")
    with pytest.raises(ConverterError, match="labels of class 1 and names of 1 classes"):
        read_yolo(tmp_path)


@pytest.mark.parametrize(
    "line,reason",
    [
        (b"0 0.5 0.5 0.2", "Line 1 of .*a.txt must have 5 finite numbers"),
        (b"0 0.5 0.5 0.2 0.2 0.9 0.9", "must have 5 finite numbers"),
        (b"0 0.5 nan 0.2 0.2", "must have 5 finite numbers"),
        (b"cat 0.5 0.5 0.2 0.2", "must have 5 finite numbers"),
        (b"0 0.5 0.5 0.2 0.2\n0.5 0.5 0.5 0.2 0.2", "Line 2 of .* has the class 0.5"),
        (b"-1 0.5 0.5 0.2 0.2", "has the class -1"),
        (b"0 0.95 0.5 0.2 0.2", "outside of its image of 40x20"),
        (b"0 20 10 5 5", "outside of its image"),
        (b"0 0.5 0.5 0 0.2", "without an area"),
        (b"\xff\xfe 0 0 1 1", "cannot be read"),
    ],
)
def test_wrong_yolo_lines_are_refused(tmp_path, line, reason):
    with pytest.raises(ConverterError, match=reason):
        read_yolo(make_yolo(tmp_path, False, line))


def test_a_folder_without_text_files_is_refused(tmp_path):
    make_image(tmp_path / "a.png")
    with pytest.raises(ConverterError, match="holds no images with text files of boxes"):
        read_yolo(tmp_path)


TRANSFORMS = [
    Transform(),
    Transform(resize=50),
    Transform(crop=16),
    Transform(crop=61),
    Transform(resize=33, crop=24),
    Transform(letterbox=(64, 64)),
    Transform(letterbox=(30, 51)),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("size", [(60, 40), (37, 52)])
def test_boxes_follow_the_pixels(tmp_path, transform, size):
    left, top, right, bottom = 12, 14, 28, 30
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[top:bottom, left:right] = 255
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    image = Preprocessing(resize=transform.resize, crop=transform.crop).read_file(path)
    if transform.letterbox:
        image = fitted(image, transform)
    rows = placed(np.array([[4.0, left, top, right, bottom]]), size, transform)
    row, column = np.nonzero(image[..., 0] > 127)
    found = [column.min(), row.min(), column.max() + 1, row.max() + 1]
    assert rows[0, 0] == 4
    np.testing.assert_allclose(rows[0, 1:], found, atol=0.75)
    height, width = image.shape[:2]
    assert (width, height) == transform.placement(size).canvas


def test_boxes_that_are_cut_away_are_none():
    boxes = np.array([[0.0, 0, 0, 10, 10], [1, 0, 0, 42, 42], [2, 40, 40, 60, 60], NONE])
    result = placed(boxes, (100, 100), Transform(crop=20))
    assert result.tolist() == [NONE, NONE, [2, 0, 0, 20, 20], NONE]
    assert boxes[3].tolist() == NONE


def test_images_are_fitted_with_grey_around():
    image = fitted(np.zeros((10, 20, 1), np.uint8), Transform(letterbox=(40, 40)))
    assert image.shape == (40, 40, 1)
    assert (image[:10] == 114).all() and (image[10:30] == 0).all() and (image[30:] == 114).all()


def loaded(folder, shape=(1, 3, 32, 32), **preprocessing):
    inputs = [Input("images", shape, FLOATS)]
    return read(str(folder), inputs, Preprocessing(**preprocessing), None)


@pytest.mark.parametrize("name", ["annotations.json", "_annotations.coco.json", "instances_x.json"])
def test_a_folder_with_coco_labels(folder, name):
    (folder / "annotations.json").rename(folder / name)
    data = loaded(folder)
    feeds, labels = data.batch(np.arange(2))
    assert feeds["images"].shape == (2, 3, 32, 32)
    np.testing.assert_allclose(labels[0, 0], [1, 0.8, 9.6, 8.8, 13.6])
    assert labels[1].tolist() == [NONE, NONE]
    assert data.labels is None
    assert data.augment is None
    assert "fitted into 32x32" in data.preprocessing


@pytest.mark.parametrize("images", ["val2017", "images", "images/val2017"])
def test_images_of_coco_may_be_in_a_folder(folder, images):
    (folder / images).mkdir(parents=True)
    (folder / "annotations").mkdir()
    (folder / "annotations.json").rename(folder / "annotations" / "instances_val2017.json")
    for name in "ab":
        (folder / f"{name}.png").rename(folder / images / f"{name}.png")
    assert loaded(folder).count == 2


@pytest.mark.parametrize("beside", [True, False])
def test_a_folder_with_yolo_labels(tmp_path, beside):
    feeds, labels = loaded(make_yolo(tmp_path, beside), (1, 32, 32, 3), nhwc=True).batch([0])
    assert feeds["images"].shape == (1, 32, 32, 3)
    np.testing.assert_allclose(labels[0, 0], [1, 12, 12, 20, 20])


def test_resizing_and_cropping_go_before_fitting(folder):
    data = loaded(folder, resize=20, crop=20)
    feeds, labels = data.batch(np.arange(2))
    assert feeds["images"].shape == (2, 3, 20, 20)
    assert labels[0].tolist() == [[1, 0, 2, 1, 7], [0, 0, 0, 20, 20]]


def test_images_of_several_sizes_are_refused_for_an_input_of_free_size(folder):
    with pytest.raises(ConverterError, match=r"differ in size; give --resize \d+ --crop \d+\.$"):
        loaded(folder, (1, 3, None, None)).batch(np.arange(2))


def test_two_files_of_labels_are_refused(folder):
    (folder / "instances_train.json").write_text("{}")
    with pytest.raises(ConverterError, match=r"in annotations\.json and instances_train\.json"):
        loaded(folder)


def test_captions_are_no_boxes(tmp_path):
    make_image(tmp_path / "a.png", (32, 32))
    (tmp_path / "a.txt").write_text("a red square, plain and simple\n")
    feeds, labels = loaded(tmp_path).batch(np.arange(1))
    assert labels is None
    assert feeds["images"].shape == (1, 3, 32, 32)
