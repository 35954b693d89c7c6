"""What comes with the project: the sample network and its data, the ResNets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sample_models import paper_cifar10, resnet_cifar
from scripts import fetch_cifar10

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "sample_models"


def test_the_sample_network_knows_the_embedded_images():
    model = paper_cifar10.build().eval()
    model.load_state_dict(load_file(SAMPLES / "paper_cifar10.safetensors"))
    with np.load(SAMPLES / "cifar10_eval.npz") as data:
        x, y = data["x"], data["y"]
    assert x.shape == (2000, 32, 32, 3)
    assert x.dtype == np.uint8
    images = torch.from_numpy(x[:500]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        hits = model(images).argmax(1).numpy() == y[:500]
    assert hits.mean() > 0.85


def test_the_calibration_images_are_there():
    with np.load(SAMPLES / "cifar10_calib.npz") as data:
        assert data["x"].shape == (512, 32, 32, 3)


@pytest.mark.parametrize(
    ("name", "layers", "params"),
    [("resnet20", 20, 269_722), ("resnet32", 32, 464_154), ("resnet56", 56, 853_018)],
)
def test_the_resnets_have_the_published_size(name, layers, params):
    model = getattr(resnet_cifar, name)()
    weighted = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(weighted) == layers
    assert sum(p.numel() for p in model.parameters()) == params
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_both_layouts_of_cifar10_are_read(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    labels = np.array([3, 1, 4], np.uint8)
    (tmp_path / "bin").mkdir()
    (tmp_path / "png").mkdir()
    for name in [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]:
        records = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(3, -1)], 1)
        records.tofile(tmp_path / "bin" / f"{name}.bin")
        Image.fromarray(images.reshape(3, 1024, 3)).save(tmp_path / "png" / f"{name}.png")
    (tmp_path / "png" / "train_lables.json").write_text(str([3, 1, 4] * 5))
    (tmp_path / "png" / "test_lables.json").write_text("[3, 1, 4]")
    for folder in ("bin", "png"):
        splits = fetch_cifar10.read_folder(tmp_path / folder)
        assert np.array_equal(splits["test"][0], images)
        assert np.array_equal(splits["test"][1], labels)
        assert len(splits["train"][0]) == 15


def test_a_folder_without_cifar10_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither"):
        fetch_cifar10.read_folder(tmp_path)
