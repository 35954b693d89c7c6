"""What guards and notes go by: scores, images as they are fed, and weights that look random."""

from types import SimpleNamespace

import numpy as np
import pytest
from conv_cases import make_conv
from guard_cases import CLASSES, HEAD, MEAN, RIGHT, network, pictures
from networks import noise

from converter.data.data import from_arrays
from converter.data.images import Preprocessing
from converter.evaluation.feeding import IMAGENET, Images, normalises
from converter.evaluation.information import below_commonest, guesses, information, varying_share
from converter.evaluation.notes import notes
from converter.evaluation.untrained import look_untrained
from converter.options import ImageOptions, Options


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
