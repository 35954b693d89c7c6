"""Sound and broken files of every kind, for the tests of the command line."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from networks import make_net, noise
from onnx import helper, numpy_helper
from PIL import Image

import converter
from converter.models.factory import find_callable

ROOT = Path(converter.__file__).parent.parent
EVALUATE = """
import numpy as np


def share(predict):
    return float(np.mean(predict({"x": np.ones((8, 3, 8, 8), np.float32)})["logits"] > 0))
"""
LOADERS = """
import numpy as np
import torch


def empty():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(0, 3, 8, 8)))


def only_a_part_of_a_batch():
    return torch.utils.data.DataLoader([torch.zeros(3, 8, 8)] * 3, batch_size=4, drop_last=True)


def nothing():
    yield from ()
"""


def make_images(folder):
    """Write two images of each of two classes."""
    for number in range(4):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (10, 12, 3), np.uint8)
        Image.fromarray(pixels).save(path)


def make_chaotic(path):
    """Write a network that blows any rounding up."""
    model = onnx.load(make_net(path))
    large = numpy_helper.from_array(np.array(1e9, np.float32), "large")
    model.graph.initializer.append(large)
    model.graph.node[-1].output[0] = "tame"
    model.graph.node.append(helper.make_node("Mul", ["tame", "large"], ["wild"]))
    model.graph.node.append(helper.make_node("Sin", ["wild"], ["logits"]))
    onnx.save(model, path)


def write_files(folder):
    """Fill the current folder with networks, checkpoints, data and plans, sound and broken."""
    build = find_callable("toy:build", "Factory")
    make_net("net.onnx")
    make_net("other.onnx", seed=1)
    make_net("free.onnx", size="S")
    make_chaotic("chaotic.onnx")
    content = (folder / "net.onnx").read_bytes()
    (folder / "truncated.onnx").write_bytes(content[: len(content) // 2])
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "text.onnx").write_text("hello\n")
    (folder / "folder.onnx").mkdir()

    state = build().state_dict()
    state["fc.bias"] += 3
    torch.save(state, "weights.pt")
    torch.save(build(4).state_dict(), "narrow.pt")
    torch.save(state | {"fc.bias": state["fc.bias"] * float("nan")}, "nan.pt")
    torch.save(build(), "module.pt")
    content = (folder / "weights.pt").read_bytes()
    (folder / "truncated.pt").write_bytes(content[: len(content) // 2])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_text("hello\n")
    (folder / "text.safetensors").write_text("hello\n")

    x = noise(40, 3, 8, 8)
    np.savez("data.npz", x=x, y=np.arange(40) % 4)
    np.savez("large.npz", x=noise(4, 3, 9, 9))
    np.savez("z.npz", z=x)
    (folder / "text.npz").write_text("hello\n")
    make_images(folder / "images")
    (folder / "plan.json").write_text("{")
    (folder / "score.py").write_text(EVALUATE)
    (folder / "loaders.py").write_text(LOADERS)
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.tex").write_text("mine")


def run(path, x):
    """Return the first output of an ONNX file for ``x``."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def assert_refused(outcome, *words):
    """Status 2, nothing on standard output, one sentence on standard error."""
    status, text, err = outcome
    assert status == 2
    assert text == ""
    assert "Traceback" not in err
    (sentence,) = err.splitlines()
    assert sentence.startswith("flatconv: ")
    for word in words:
        assert word in sentence
