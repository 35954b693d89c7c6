"""Guards warn where the original is fed wrongly, and only there."""

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from helpers import from_text, make_conv, noise

from converter.data.data import Data, from_arrays
from converter.data.images import Preprocessing
from converter.evaluation.feeding import BYTE, CIFAR10, IMAGENET, Images, normalises, options_text
from converter.evaluation.guards import guards
from converter.evaluation.information import below_commonest, guesses, information, varying_share
from converter.evaluation.notes import notes
from converter.evaluation.tasks.classify import Classify
from converter.evaluation.tasks.regress import Regress
from converter.evaluation.untrained import look_untrained
from converter.options import ImageOptions, Options

CLASSES, COUNT, SIDE = 10, 200, 8
RIGHT = ImageOptions(mean=IMAGENET[0], std=IMAGENET[1])
MEAN, STD = (np.array(v, np.float32).reshape(1, 3, 1, 1) for v in IMAGENET)
HEAD = "float[N,3,8,8] x"


def pictures(seed=0, count=COUNT):
    """Bytes (N, H, W, C) around a pattern for each class, and the classes."""
    rng = np.random.default_rng(seed)
    classes = np.arange(count) % CLASSES
    pixels = patterns()[classes] + rng.normal(0, 25, (count, SIDE, SIDE, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8), classes


def patterns():
    """Patterns of the classes (C, H, W, 3): blue is opposite to red, and green has a level, too."""
    rng = np.random.default_rng(7)
    red, green = rng.normal(0, 35, (2, CLASSES, SIDE, SIDE))
    level = rng.normal(0, 30, (CLASSES, 1, 1))
    return 120 + np.stack([red, green + level, -red], axis=-1)


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


def network(graph, **weights):
    return ir.from_proto(from_text(graph, **weights))


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


def test_few_classes_and_rare_ones():
    rng = np.random.default_rng(0)
    labels = (rng.random(400) < 0.05).astype(np.int64)
    weak = np.where(rng.random(400) < 0.05, 1 - labels, labels)  # right as often as always 0
    assert not guesses(weak, labels) and not below_commonest(weak == labels, labels)
    assert guesses(np.zeros(400, int), labels)
    rare = (np.arange(400) % 20 == 0).astype(np.int64)
    assert guesses(np.arange(400) % 2, rare)
    assert below_commonest(rng.random(400) < 0.5, labels)
    assert not guesses(labels, labels)
    assert not guesses(np.zeros(400, int), np.zeros(400, int))  # nothing can be said


def test_information_of_scores():
    sure = 50 * np.eye(CLASSES)[np.arange(100) % CLASSES]
    assert information(sure).mean() == pytest.approx(information(1e3 * sure).mean())
    assert information(np.tile(sure[0], (100, 1))).mean() == pytest.approx(0, abs=1e-9)
    assert 0.8 * np.log(CLASSES) < information(sure).mean() < np.log(CLASSES)
    assert varying_share(sure) == pytest.approx(1)
    assert varying_share(sure + 300 * np.eye(CLASSES)[0]) < varying_share(sure) / 5
    assert information(np.zeros((5, 3))).mean() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("mean, std", [((), ()), IMAGENET, ((0.5,), (0.5,)), ((), (1 / 255,))])
def test_preprocessing_is_undone_and_done_again(mean, std, channels, layout):
    options = ImageOptions(mean=mean, std=std, channels=channels, layout=layout)
    x, _ = pictures(count=4)
    prepare = Preprocessing.of(Options(images=options)).prepare
    images = Images.of(prepare(x), options)
    np.testing.assert_allclose(images.pixels, x / np.float32(255), atol=1e-5)
    for other in (options, RIGHT, ImageOptions(channels="bgr", layout="nhwc")):
        expected = Preprocessing.of(Options(images=other)).prepare(x)
        np.testing.assert_allclose(images.fed_with(other, slice(None)), expected, atol=2e-3)


@pytest.mark.parametrize(
    "array", [noise(4, 3, 8, 8), np.zeros((4, 3, 8, 8), np.float32), noise(4, 9)]
)
def test_other_inputs_are_no_images(array):
    assert Images.of(array, ImageOptions()) is None


@pytest.mark.parametrize(
    "body, expected",
    [
        ("y = Sub(x, m)", True),
        ("c = Cast<to=1>(x) y = Mul(c, m)", True),
        ("t = Transpose<perm=[0,1,3,2]>(x) y = BatchNormalization(t, v, v, v, v)", True),
        ("r = Relu(x) y = Mul(r, m)", False),
        ("r = Relu(x) y = Add(x, r)", False),
        ("y = Conv(x, w)", False),
    ],
)
def test_networks_that_normalise(body, expected):
    net = network(
        f"net ({HEAD}) => (float[N,3,8,8] y) {{ {body} }}",
        m=MEAN,
        v=np.ones(3, np.float32),
        w=noise(3, 3, 1, 1),
    )
    assert normalises(net) is expected


def test_random_weights_look_untrained():
    rng = np.random.default_rng(0)
    drawn = [rng.uniform(-1, 1, (32, 16, 3, 3)), noise(64, 128), noise(48, 3, 5, 5)]
    folded = [
        kernel * rng.uniform(0.1, 9, (len(kernel), *[1] * (kernel.ndim - 1))) for kernel in drawn
    ]
    assert look_untrained(drawn) and look_untrained(folded)
    smooth = noise(64, 8) @ noise(8, 128, seed=1) + noise(64, 128, seed=2)
    assert not look_untrained([*drawn, smooth])
    assert not look_untrained([]) and not look_untrained([noise(4, 3, 3, 3), noise(9)])


def test_the_sample_network_looks_trained():
    from converter.models.checkpoint import load_states
    from scripts.benchmarks.models import SAMPLE_CHECKPOINT

    state = load_states(SAMPLE_CHECKPOINT)[""]
    assert not look_untrained(array.numpy() for array in state.values())


def test_notes_on_what_was_given():
    layers = [SimpleNamespace(conv=make_conv((16, 8, 3, 3)))]
    data = from_arrays({"x": noise(4, 2)}, "images/val")
    source = SimpleNamespace(eval=data)
    options = Options().changed(calib="images/val", eval="./images/val")
    same, unlabelled, weights = notes("toy:build", options, source, layers)
    assert "--calib and --eval name the same data" in same
    assert "images/val holds no labels" in unlabelled
    assert "--checkpoint" in weights
    (weights,) = notes("net.onnx", Options(), SimpleNamespace(eval=None), layers)
    assert "look random" in weights and "--checkpoint" not in weights


def test_no_notes_where_nothing_is_missing():
    labelled = from_arrays({"x": noise(4, 2), "y": np.arange(4)}, "images/val")
    options = Options().changed(calib="images/train", eval="images/val")
    smooth = SimpleNamespace(conv=SimpleNamespace(kernel=np.ones((16, 8, 3, 3))))
    assert notes("toy:build", options, SimpleNamespace(eval=labelled), [smooth]) == ()
    assert notes("toy:build", options, SimpleNamespace(eval=None), []) == ()
