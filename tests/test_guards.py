"""Guards warn where the original is fed wrongly, and only there."""

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from guard_cases import CLASSES, COUNT, HEAD, MEAN, RIGHT, STD, network, patterns, pictures
from networks import noise

from converter.data.data import Data, from_arrays
from converter.data.images import Preprocessing
from converter.evaluation.feeding import BYTE, CIFAR10, IMAGENET, options_text
from converter.evaluation.guards import guards
from converter.evaluation.tasks.classify import Classify
from converter.evaluation.tasks.regress import Regress
from converter.options import ImageOptions, Options


def matching(output="logits", before="", head="", options=RIGHT, scale=0.05):
    """A network whose scores match images, prepared by ``options``, with the patterns."""
    pixels = np.clip(patterns(), 0, 255).round().astype(np.uint8)
    rows = Preprocessing.of(Options(images=options)).prepare(pixels).reshape(CLASSES, -1)
    centre = rows.mean(0)
    rows = (rows - centre) * scale
    graph = f"""net ({HEAD}) => ({head}float[N,{CLASSES}] {output}) {{
        {before}
        flat = Flatten({"y" if before else "x"})
        {output} = Gemm<transB=1>(flat, w, b)
    }}"""
    constants = {"m": MEAN, "s": STD} if "Sub" in before else {}
    return network(graph, w=rows, b=-rows @ centre, **constants)


def normalising(**options):
    return matching(before="z = Sub(x, m) y = Div(z, s)", **options)


def fed(options, labelled=True, images=None):
    """Data as --eval reads images of bytes."""
    x, y = images or pictures()
    prepare = Preprocessing.of(Options(images=options)).prepare
    return Data(len(x), lambda i: {"x": prepare(x[i])}, y if labelled else None, "images/val")


def classify(output="logits"):
    return Classify(outputs=(output,), classes=CLASSES, power=1.0)


def unknown(output="logits"):
    return Regress.of(output, noise(4, CLASSES), assumed=True)


def found(net, options, labelled=True, tasks=None, **more):
    return guards(net, fed(options, labelled, **more), tasks or [classify()], options)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("task", [classify(), unknown()])
def test_forgotten_mean_and_std_are_named(task, labelled):
    (warning,) = found(matching(), ImageOptions(), labelled, [task]).warnings
    named = [options_text(ImageOptions(mean=m, std=s), ImageOptions()) for m, s in USUAL_COLOURS]
    assert any(text in warning for text in named)
    assert "images/val" in warning


USUAL_COLOURS = (IMAGENET, CIFAR10)  # nearly the same


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("task", [classify(), unknown()])
def test_right_preprocessing_is_left_alone(task, labelled):
    nothing = found(matching(), RIGHT, labelled, [task])
    assert nothing.warnings == nothing.notes == ()
    nothing = found(normalising(), ImageOptions(), labelled, [task])
    assert nothing.warnings == nothing.notes == ()


@pytest.mark.parametrize("labelled", [True, False])
def test_images_that_are_normalised_twice(labelled):
    (note,) = found(normalising(), RIGHT, labelled).notes
    assert "begins with a normalisation" in note
    assert "leave them out" in note


def test_wrong_order_of_channels_is_named():
    bgr = ImageOptions(mean=RIGHT.mean, std=RIGHT.std, channels="bgr")
    (warning,) = found(matching(), bgr).warnings
    assert "--channels rgb" in warning
    assert "--mean" not in warning


def test_a_network_for_bytes():
    as_bytes = ImageOptions(std=(BYTE,))
    net = matching(options=as_bytes, scale=1e-4)
    (warning,) = found(net, ImageOptions()).warnings
    assert f"--mean 0 --std {BYTE}" in warning
    assert found(net, as_bytes).warnings == ()


def test_classes_in_one_of_several_outputs():
    both = "boxes = Identity(x) y = Identity(x)"
    net = matching("classes", before=both, head="float[N,3,8,8] boxes, ")
    tasks = [Regress.of("boxes", noise(4, 3, 8, 8), assumed=True), classify("classes")]
    for labelled in (True, False):
        assert "--std 0.2" in found(net, ImageOptions(), labelled, tasks).warnings[0]
        assert found(net, RIGHT, labelled, tasks).warnings == ()


def test_floats_that_were_not_normalised():
    x, y = pictures()
    floats = from_arrays({"x": np.float32(x.transpose(0, 3, 1, 2)) / 255, "y": y}, "a loader")
    for options in (ImageOptions(), RIGHT):  # they do not act on floats
        (warning,) = guards(matching(), floats, [classify()], options).warnings
        assert "--mean 0.4" in warning
    normalised = from_arrays({"x": fed(RIGHT).read(np.arange(COUNT))["x"], "y": y}, "a loader")
    assert guards(matching(), normalised, [classify()], ImageOptions()).warnings == ()


@pytest.mark.parametrize(
    "labels", [lambda y: (y + 1) % 10, lambda y: np.argsort([*"3141592650"])[y]]
)
def test_labels_with_other_numbers(labels):
    x, y = pictures()
    (warning,) = found(matching(), RIGHT, images=(x, labels(y))).warnings
    assert "no better than guessing" in warning
    assert "numbered in another way it gets 100.0% right" in warning


def test_labels_at_random():
    x, y = pictures()
    shuffled = np.random.default_rng(0).permutation(y)
    (warning,) = found(matching(), RIGHT, images=(x, shuffled)).warnings
    assert "no better than guessing" in warning
    assert "Check --mean, --std, --channels, --layout and --resize" in warning


def test_confidence_without_accuracy():
    x, y = pictures()
    half = np.where(np.arange(COUNT) % 3 == 0, np.random.default_rng(0).permutation(y), y)
    wrong = np.where(np.arange(COUNT) % 5 < 2, (y + 3) % CLASSES, half)
    (warning,) = found(matching(scale=1.0), RIGHT, images=(x, wrong)).warnings
    assert "but its own confidence is 100.0%" in warning
    assert found(matching(scale=1.0), RIGHT, images=(x, half)).warnings == ()


def test_one_answer_for_all_inputs():
    net = matching(scale=1e-3)
    net.graph.initializers["b"].const_value = ir.tensor(np.eye(CLASSES, dtype=np.float32)[3] * 9)
    data = from_arrays({"x": noise(64, 3, 8, 8)}, "loader")
    (warning,) = guards(net, data, [classify()], ImageOptions()).warnings
    assert "gives class 3 for 100% of 64 inputs of loader" in warning
    few = data.take(np.arange(8))
    assert guards(net, few, [classify()], ImageOptions()).warnings == ()


@pytest.mark.parametrize("slope, warned", [(0.0, True), (0.01, True), (0.5, False)])
def test_other_outputs_that_hardly_vary(slope, warned):
    graph = """net (float[N,3,8,8] x) => (float[N,3,8,8] image) {
        y = Mul(x, slope)
        image = Add(y, level)
    }"""
    net = network(graph, slope=np.array(slope, np.float32), level=np.array(1, np.float32))
    data = from_arrays({"x": noise(32, 3, 8, 8)}, "loader")
    task = Regress.of("image", noise(4, 3, 8, 8))
    warnings = guards(net, data, [task], ImageOptions()).warnings
    assert ["nearly the same for 32 inputs of loader" in w for w in warnings] == [True] * warned
    alike = from_arrays({"x": np.ones((32, 3, 8, 8), np.float32)}, "loader")
    assert guards(net, alike, [task], ImageOptions()).warnings == ()


def test_what_answers_cannot_tell_is_a_note():
    graph = f"net ({HEAD}) => (float[N,3,8,8] image) {{ image = Relu(x) }}"
    task = Regress.of("image", noise(4, 3, 8, 8))
    result = found(network(graph), ImageOptions(), False, [task])
    assert result.warnings == ()
    assert "only scaled to 0..1" in result.notes[0]
    assert found(network(graph), RIGHT, False, [task]).notes == ()


def test_random_weights_are_not_told_how_to_be_fed():
    kernel = noise(16, 48)
    layers = [SimpleNamespace(macs=1, conv=SimpleNamespace(kernel=kernel))]
    net = matching()
    assert found(net, ImageOptions(), False).warnings
    assert (
        guards(net, fed(ImageOptions(), False), [classify()], ImageOptions(), layers).warnings == ()
    )
    x, y = pictures()
    shuffled = fed(RIGHT, images=(x, np.random.default_rng(0).permutation(y)))
    (warning,) = guards(net, shuffled, [classify()], RIGHT, layers).warnings
    assert "give its --checkpoint" in warning
