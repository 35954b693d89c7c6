"""Inputs that nobody means to give: damaged, misshapen, or contradicting one another."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import flatconv, make_net, noise, work_in
from PIL import Image
from torch import nn

import converter
from converter import ConverterError, Options, Plan
from converter.data import readers
from converter.data.data import from_arrays
from converter.data.images import Preprocessing
from converter.models.export import find_callable
from converter.models.source import open_source
from converter.training.task import Recipe, TrainingTask
from converter.training.train import train

CHANNEL = Options.of(form=("channel",))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with work_in(tmp_path_factory.mktemp("bugs")) as folder:
        make_net("net.onnx")
        make_net("fixed.onnx", batch=4)
        make_net("seven.onnx", classes=7)
        make_net("large.onnx", size=9)
        np.savez("data.npz", x=noise(40, 3, 8, 8), y=np.arange(40) % 4)
        (folder / "odd.py").write_text(
            "import numpy as np, sys\n"
            "def sizes():\n"
            "    yield {'x': np.zeros((2, 3, 8, 8), 'f')}\n"
            "    yield {'x': np.zeros((2, 3, 9, 8), 'f')}\n"
            "def raises():\n    yield {}['x']\n"
            "def evaluate(predict):\n    raise ValueError('bad')\n"
            "def none(predict):\n    return None\n"
            "def ends():\n    sys.exit(3)\n"
        )
        yield folder


@pytest.fixture(scope="module")
def out(place):
    config = Options.of(form=("channel",), input_shape=("1,3,8,8",))
    converter.convert("toy:build", None, config).save("out")
    return place / "out"


def refused(*arguments):
    status, _, err = flatconv(*arguments)
    assert status == 2 and "Traceback" not in err and len(err.splitlines()) == 1


def test_a_model_in_training_mode_is_converted_for_inference(place):  # pipeline.convert
    model = find_callable("toy:build", "")().train()
    result = converter.convert(model, torch.zeros(1, 3, 8, 8), CHANNEL)
    assert result.report.met, result.report.reason


def test_a_kept_layer_s_hash_survives_json(place):  # plan._read_choice
    plan = converter.convert("net.onnx", None, Options.of(form=("conv1=channel",))).plan
    assert Plan.from_json(plan.to_json()) == plan


def test_stderr_is_one_sentence_without_a_terminal(place):  # cli._progress
    refused("convert", "missing.onnx", "-o", "nowhere")


def test_negative_seed(place):
    refused("convert", "net.onnx", "-o", "nowhere", "--seed", "-1", "-q")


@pytest.mark.parametrize("name", ["sizes", "raises"])
def test_generators_that_fail(place, name):  # readers._from_function
    with pytest.raises(ConverterError):
        readers.read(f"odd:{name}", ["x"], Preprocessing(), find_callable)


@pytest.mark.parametrize("name", ["evaluate", "none"])
def test_evaluations_that_fail(place, name):  # compare.compare_models
    with pytest.raises(ConverterError):
        converter.convert("net.onnx", None, CHANNEL, evaluate=find_callable(f"odd:{name}", ""))


def test_a_factory_that_exits(place):  # torch_export.build, find_callable
    refused("convert", "odd:ends", "-o", "nowhere", "-q")


def test_json_into_a_folder(place):  # cli.compare
    (place / "folder").mkdir()
    make_net("second.onnx", seed=1)
    refused("compare", "net.onnx", "second.onnx", "--json", "folder", "-q")


@pytest.mark.parametrize("other", ["seven.onnx", "large.onnx"])
def test_networks_that_do_not_compare(place, other):  # compare.compare_models
    with pytest.raises(ConverterError):
        converter.compare("net.onnx", other)


def test_fewer_examples_than_the_fixed_batch(place):  # compare.compare_models
    converter.convert("fixed.onnx", None, CHANNEL, calib=noise(3, 3, 8, 8))


def test_an_npy_named_npz(place):  # readers._from_npz
    np.save("a.npy", noise(3, 3, 8, 8))
    (place / "a.npy").rename("npy.npz")
    with pytest.raises(ConverterError):
        readers.read("npy.npz", ["x"], Preprocessing(), find_callable)


def test_a_damaged_compressed_npz(place):  # readers._from_npz
    np.savez_compressed("comp.npz", x=noise(20, 3, 8, 8))
    content = bytearray((place / "comp.npz").read_bytes())
    content[200:260] = bytes(60)
    (place / "comp.npz").write_bytes(content)
    with pytest.raises(ConverterError):
        readers.read("comp.npz", ["x"], Preprocessing(), find_callable)


def test_words_for_numbers(place):  # data.conform
    with pytest.raises(ConverterError):
        converter.convert("net.onnx", None, CHANNEL, calib=np.full((2, 3, 8, 8), "a"))


def test_nan_in_the_data_is_bad_input(place):
    with pytest.raises(ConverterError):
        converter.convert("net.onnx", None, CHANNEL, calib=np.full((2, 3, 8, 8), np.nan, "f"))


@pytest.mark.parametrize(
    "calib", [np.float32(3), noise(0, 3, 8, 8), {"z": noise(2, 3, 8, 8)}], ids=["0-d", "none", "z"]
)
def test_calibration_arrays_are_checked_like_files(place, calib):  # source._settle
    with pytest.raises(ConverterError):
        converter.convert("net.onnx", None, CHANNEL, calib=calib)


@pytest.mark.parametrize("labels", [np.arange(40, dtype=np.int32) % 4, np.arange(40) % 4 + 7])
def test_tuning_with_odd_labels(out, labels):  # tune: int32 crashes, out of range crashes
    data = from_arrays({"x": noise(40, 3, 8, 8), "y": labels}, "labels")
    student = converter.load(out)
    if labels.max() < 4:
        train(TrainingTask(student, student, data), Recipe(epochs=1))
    else:
        with pytest.raises(ConverterError):
            train(TrainingTask(student, student, data), Recipe(epochs=1))


def test_tuning_on_calibration_arrays(place):  # config.__post_init__ refuses
    model = find_callable("toy:build", "")().eval()
    config = Options.of(form=("channel",), finetune=1)
    converter.convert(model, None, config, calib=noise(64, 3, 8, 8))


def test_several_shapes_after_tuning(place):  # pipeline.convert: export without free_axes
    config = Options.of(
        form=("channel",), input_shape=("1,3,8,8", "1,3,16,16"), finetune=1, train="data.npz"
    )
    converter.convert("toy:build", None, config)


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.safetensors", None), ("model.safetensors", b"x" * 50), ("plan.json", b"\xff\xfe")],
)
def test_a_damaged_output_folder(out, tmp_path, name, content):  # result.load, read_plan
    for path in out.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).unlink()
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConverterError):
        converter.load(tmp_path)


def test_weights_outside_the_file(tmp_path):  # onnx_network.open_session, save
    model = onnx.load(make_net(tmp_path / "net.onnx"))
    onnx.save(
        model, tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0
    )
    converter.convert(tmp_path / "e.onnx", None, CHANNEL).save(tmp_path / "out")
    onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))


def test_a_network_without_convolutions(tmp_path):  # onnx_network.compute_shapes
    text = '<ir_version: 9, opset_import: ["":18]> g (float[N,3] x) => (float[N,3] y) {y = Relu(x)}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    report = converter.convert(tmp_path / "net.onnx").report
    assert "there is no convolution" in report.reason


def test_a_network_of_uint8_images(
    tmp_path,
):  # readers._from_npz scales to 0..1, conform truncates to 0
    text = """<ir_version: 9, opset_import: ["":18]> g (uint8[N,8,8,3] x) => (float[N,8,8,3] y)
        {y = Cast<to=1>(x)}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "net.onnx")
    x = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "x.npz", x=x)
    config = Options.of(calib=str(tmp_path / "x.npz"), layout="nhwc")
    found = open_source(tmp_path / "net.onnx", None, config).calib.read(np.arange(4))["x"]
    np.testing.assert_array_equal(found, x)


def test_a_module_with_a_length(place):  # pipeline.prove: `conversion.module or ...`
    class Empty(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def __len__(self):
            return 0

        def forward(self, x):
            return self.conv(x).mean((2, 3))

    result = converter.convert(Empty().eval(), torch.zeros(1, 3, 8, 8), CHANNEL)
    assert isinstance(result.model, nn.Module)


def test_an_image_bomb(tmp_path):  # images.Preprocessing.open
    Image.new("1", (20000, 20000)).save(tmp_path / "a.png")
    with pytest.raises(ConverterError):
        Preprocessing().read_file(tmp_path / "a.png")


@pytest.mark.parametrize("options", [{"resize": -3}, {"crop": 0}, {"lr": float("inf")}])
def test_options_out_of_range(options):  # config.__post_init__
    with pytest.raises(ConverterError):
        Options.of(**options)


def test_a_division_by_zero(tmp_path):  # config / images: --std 0 gives infinite inputs
    with pytest.raises(ConverterError):
        Preprocessing.of(Options.of(std="0"))


def test_a_very_long_name(place):  # OSError from Path.exists
    refused("convert", "a" * 5000, "-o", "nowhere", "-q")


def test_a_text_file_for_a_checkpoint_is_told_apart(place):  # checkpoint.read_file: "damaged: 101"
    (place / "text.pt").write_text("hello\n")
    words = "--checkpoint text.pt --input-shape 1,3,8,8 -q -o nowhere".split()
    assert "is not a torch checkpoint" in flatconv("convert", "toy:build", *words)[2]


def test_an_example_input_by_a_wrong_name(place):  # silently ignored
    with pytest.raises(ConverterError):
        converter.convert("net.onnx", {"zz": noise(1, 3, 8, 8)}, CHANNEL)
