"""Fixtures that several tests share: an own cache, short races, working folders, conversions."""

import numpy as np
import pytest
import torch
from conversions import converted
from data_cases import pixels
from hypothesis import settings
from networks import make_net, noise, work_in
from PIL import Image
from plan_cases import layer
from quick import read_torchlib_once, take_few_steps, time_little

from converter.models.factory import find_callable

# The same examples in every run; pytest --hypothesis-profile=default looks for others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """No test sees what the user, or an earlier run, has solved."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLATCONV_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny layers: several threads only wait for one another, processes cost their start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOKY_MAX_CPU_COUNT", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def short_timing():
    """Time little, everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        time_little(patch)
        yield


@pytest.fixture(autouse=True, scope="session")
def quick_export():
    """Export without reading torch's ONNX functions again."""
    with pytest.MonkeyPatch.context() as patch:
        read_torchlib_once(patch)
        yield


@pytest.fixture
def workplace(tmp_path):
    """An empty current folder with the factories of ``toy.py``."""
    with work_in(tmp_path):
        yield tmp_path


# Three conversions, made once for all tests that look at them.


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory):
    """A folder with a factory, a network, sample inputs and labelled inputs."""
    with work_in(tmp_path_factory.mktemp("toys")) as folder:
        make_net("net.onnx", seed=1)
        x = noise(60, 3, 8, 8, seed=2)
        np.savez("calib.npz", x=x)
        np.savez("eval.npz", x=x, y=np.random.default_rng(0).integers(0, 4, len(x)))
        np.savez("train.npz", x=noise(400, 3, 8, 8, seed=3))
    return folder


@pytest.fixture(scope="module")
def place(toy_folder):
    """The current folder of a module's tests."""
    with work_in(toy_folder):
        yield toy_folder


@pytest.fixture(scope="module")
def build(place):
    return find_callable("toy:build", "Factory")


@pytest.fixture(scope="session")
def from_factory(toy_folder):
    with work_in(toy_folder):
        shape = ("1,3,8,8",)
        return converted(toy_folder / "out_f", "toy:build", input_shape=shape, rank=("conv2=6",))


@pytest.fixture(scope="session")
def from_module(toy_folder):
    with work_in(toy_folder):
        model = find_callable("toy:build", "Factory")(6).eval()
        options = {"form": ("conv1=channel", "conv2=separable"), "rank": ("2",)}
        return converted(toy_folder / "out_m", model, torch.zeros(1, 3, 8, 8), **options)


@pytest.fixture(scope="session")
def from_onnx(toy_folder):
    with work_in(toy_folder):
        options = {"calib": "calib.npz", "eval": "eval.npz", "seed": 5}
        return converted(toy_folder / "out_o", "net.onnx", form=("flattened",), **options)


@pytest.fixture(params=["from_factory", "from_module", "from_onnx"])
def conversion(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def training(place):
    """Options of a training."""
    return {"input_shape": ("1,3,8,8",), "train": "train.npz", "lr": 1e-2}


@pytest.fixture(scope="module")
def layers():
    """Layers to plan for, the last of which cannot be converted."""
    return (
        layer("stem", 16, 3, 3, 3),
        layer("block1.conv1", 16, 16, 3, 3),
        layer("block1.conv2", 16, 16, 3, 3),
        layer("block2.conv1", 32, 16, 3, 3),
        layer("head", 16, 32, 1, 1),
        layer("up", 16, 16, 3, 3, reason="its weight is shared by 2 layers"),
    )


@pytest.fixture
def by_class(tmp_path):
    """Two images of cats and one of a dog, 6 wide and 4 high, and what they show."""
    folder = tmp_path / "images"
    shown = pixels(3, 4, 6, 3)
    for name, image in zip(("dog/a.png", "cat/c.png", "cat/b.png"), shown):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    return folder, shown


# Tests of solvers, of forms and of what they solve; the others need no close solution.
CLOSE = ("axes", "decompose", "degenerate", "depthwise", "form", "linear", "lvh", "refit", "solver")
CLOSE += ("parallel", "search_budgets", "tensorly", "transposed", "varpro")


@pytest.fixture(autouse=True, scope="module")
def few_steps(request):
    """Take few steps where kernels are decomposed, in tests that are not about solving."""
    with pytest.MonkeyPatch.context() as patch:
        if not any(word in request.module.__name__ for word in CLOSE):
            take_few_steps(patch)
        yield
