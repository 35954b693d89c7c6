"""Input that is damaged, misshapen or contradictory: refused in one sentence that says why."""

import shutil

import numpy as np
import pytest
from networks import flatconv, make_net, noise, work_in
from PIL import Image

import converter
from converter import ConverterError, Options
from converter.data import readers
from converter.data.data import from_arrays
from converter.data.images import Preprocessing
from converter.data.inputs import Input
from converter.models.factory import find_callable
from converter.training.task import Recipe, TrainingTask
from converter.training.train import train

FUNCTIONS = """
import sys

import numpy as np


def sizes():
    yield {"x": np.zeros((2, 3, 8, 8), "f")}
    yield {"x": np.zeros((2, 3, 9, 8), "f")}


def raises():
    yield {}["x"]


def evaluate(predict):
    raise ValueError("bad")


def none(predict):
    return None


def ends():
    sys.exit(3)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with work_in(tmp_path_factory.mktemp("invalid")) as folder:
        make_net("net.onnx")
        make_net("seven.onnx", classes=7)
        make_net("large.onnx", size=9)
        (folder / "functions.py").write_text(FUNCTIONS)
        (folder / "text.pt").write_text("hello\n")
        (folder / "folder").mkdir()
        yield folder


def read(name):
    return readers.read(
        name, [Input("x", (), np.dtype(np.float32))], Preprocessing(), find_callable
    )


# on the command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert", "missing.onnx", "-o", "nowhere"], "missing.onnx does not exist"),
        (["convert", "net.onnx", "-o", "nowhere", "--seed", "-1"], "--seed. Must be >= 0"),
        (["convert", "functions:ends", "-o", "nowhere"], "'functions:ends' failed: SystemExit: 3"),
        (["convert", "a" * 5000, "-o", "nowhere"], "File name too long"),
        (
            "convert toy:build --checkpoint text.pt --input-shape 1,3,8,8 -o nowhere".split(),
            "text.pt is not a torch checkpoint",
        ),
        (
            ["compare", "net.onnx", "seven.onnx", "--json", "folder"],
            "folder cannot be written; name a file",
        ),
    ],
    ids=["missing", "seed", "exit", "long", "checkpoint", "json"],
)
def test_one_sentence_tells_what_is_wrong(place, arguments, words):
    status, out, err = flatconv(*arguments, "-q")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("flatconv: ") and words in err
    assert not (place / "nowhere").exists()
    assert not list((place / "folder").iterdir())


def test_a_sentence_stands_alone_also_beside_progress(place):
    status, _, err = flatconv("convert", "missing.onnx", "-o", "nowhere")
    assert (status, err) == (2, "flatconv: missing.onnx does not exist.\n")


# options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resize": -3}, "--resize. Must be >= 1"),
        ({"crop": 0}, "--crop. Must be >= 1"),
        ({"lr": float("inf")}, "--lr. It must be a number above 0"),
        ({"std": "0"}, "--std. It must not be 0"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(ConverterError, match=words):
        Options.of(**options)


# functions of the user


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sizes", "functions:sizes has batches that differ: .* has size 8 .* has size 9"),
        ("raises", "Data functions:raises failed: KeyError: 'x'"),
    ],
)
def test_generators_that_fail(place, name, words):
    with pytest.raises(ConverterError, match=words):
        read(f"functions:{name}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("evaluate", "Evaluation evaluate failed: ValueError: bad"),
        ("none", "Evaluation none failed: TypeError"),
    ],
)
def test_evaluations_that_fail(place, name, words):
    evaluate = find_callable(f"functions:{name}", "")
    with pytest.raises(ConverterError, match=words):
        converter.convert("net.onnx", form="channel", evaluate=evaluate)


# networks and data


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("seven.onnx", r"Output '\w+', number 1, has another shape in another network"),
        ("large.onnx", "large.onnx takes other inputs than net.onnx"),
    ],
)
def test_networks_that_do_not_compare(place, other, words):
    with pytest.raises(ConverterError, match=words):
        converter.compare("net.onnx", other)


def test_an_example_input_by_a_wrong_name(place):
    with pytest.raises(ConverterError, match="must have the network's inputs x, not zz"):
        converter.convert("net.onnx", {"zz": noise(1, 3, 8, 8)}, form="channel")


@pytest.mark.parametrize(
    ("calib", "words"),
    [
        (np.float32(3), "the same number of examples, above 0"),
        (noise(0, 3, 8, 8), "the same number of examples, above 0"),
        ({"z": noise(2, 3, 8, 8)}, "has arrays z; it lacks the network's input 'x'"),
        (np.full((2, 3, 8, 8), "a"), "holds <U1, not numbers"),
        (np.full((2, 3, 8, 8), np.nan, "f"), "holds NaN or infinite values"),
    ],
    ids=["no axes", "no examples", "another name", "words", "nan"],
)
def test_arrays_are_checked_like_files(place, calib, words):
    with pytest.raises(ConverterError, match=words):
        converter.convert("net.onnx", form="channel", calib=calib)


def test_an_npy_named_npz(place):
    np.save("a.npy", noise(3, 3, 8, 8))
    (place / "a.npy").rename("npy.npz")
    with pytest.raises(ConverterError, match=r"npy\.npz is not a sound \.npz file: it is no zip"):
        read("npy.npz")


def test_a_damaged_compressed_npz(place):
    np.savez_compressed("comp.npz", x=noise(20, 3, 8, 8))
    content = bytearray((place / "comp.npz").read_bytes())
    content[200:260] = bytes(60)
    (place / "comp.npz").write_bytes(content)
    with pytest.raises(ConverterError, match=r"comp\.npz is not a sound \.npz file"):
        read("comp.npz")


def test_an_image_bomb(tmp_path):
    Image.new("1", (20000, 20000)).save(tmp_path / "a.png")
    with pytest.raises(ConverterError, match=r"a\.png cannot be read: .*decompression bomb"):
        Preprocessing().read_file(tmp_path / "a.png")


# training and output folders


def toy_task(labels):
    """Training of one toy toward another, with labels."""
    build = find_callable("toy:build", "")
    data = from_arrays({"x": noise(40, 3, 8, 8), "y": labels}, "data")
    return TrainingTask(build(6).eval(), build(6).eval(), data)


def test_labels_of_any_integer_type_train_alike(place):
    of_bits = [
        train(toy_task(np.arange(40, dtype=kind) % 4), Recipe(epochs=1)).model.state_dict()
        for kind in (np.int32, np.int64)
    ]
    for name, tensor in of_bits[0].items():
        np.testing.assert_array_equal(tensor, of_bits[1][name])


def test_labels_that_are_no_class_of_the_network(place):
    with pytest.raises(ConverterError, match=r"labels of data do not fit .* or pass --no-labels"):
        train(toy_task(np.arange(40) % 4 + 7), Recipe(epochs=1))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", None, "is damaged, or its factory has changed since"),
        ("model.safetensors", b"x" * 50, "is damaged, or its factory has changed since"),
        ("plan.json", b"\xff\xfe", r"plan\.json cannot be read"),
    ],
    ids=["no weights", "no safetensors", "no text"],
)
def test_a_damaged_output_folder(place, from_factory, tmp_path, name, content, words):
    folder = shutil.copytree(from_factory.folder, tmp_path / "out")
    (folder / name).unlink()
    if content:
        (folder / name).write_bytes(content)
    with pytest.raises(ConverterError, match=words):
        converter.load(folder)
