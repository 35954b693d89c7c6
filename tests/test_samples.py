"""What comes with the project: the sample network and its data, the ResNets."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from converter.runtime.ort import cpu_model
from sample_models import paper_cifar10, resnet_cifar

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "sample_models"
sys.path.insert(0, str(ROOT / "scripts"))

import bench_resnets  # noqa: E402
import bench_results  # noqa: E402
import fetch_cifar10  # noqa: E402


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


def test_the_rows_of_an_interrupted_benchmark_are_taken_up_at_the_same_commit(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(bench_results, "RESULTS", tmp_path)
    assert bench_results.earlier_rows("toy") == []
    rows = [{"name": "a", "original_latency_ms": 2.0}, {"name": "b", "met": True}]
    conditions = {"cpu": cpu_model(), "threads": 1, "versions": {}}
    for count in (1, 2):
        bench_results.write("toy", conditions, rows[:count])
        assert bench_results.earlier_rows("toy") == rows[:count]
    assert [path.name for path in tmp_path.iterdir()] == ["toy.json"]
    monkeypatch.setattr(bench_results, "commit", lambda: "another")
    assert bench_results.earlier_rows("toy") == []
    measured = {"commit": json.loads((tmp_path / "toy.json").read_text())["conditions"]["commit"]}
    older = [measured | row for row in rows]
    assert bench_results.earlier_rows("toy", older=True) == older
    bench_results.write("toy", conditions, [*older, {"name": "c"}])
    assert bench_results.earlier_rows("toy") == [{"name": "c"}]


def test_a_row_measured_again_takes_the_place_of_the_earlier_one(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_results, "RESULTS", tmp_path)
    conditions = {"cpu": cpu_model(), "threads": 1, "versions": {}}
    bench_results.write("toy", conditions, [{"name": "a", "reason": "no"}, {"name": "b"}])
    seen = list[set[str]]()

    def rows(options, done):
        seen.append(done)
        yield {"name": "a", "speedup": 2.0}

    options = argparse.Namespace(resume=True, older=False)
    wanted = [{"name": "b"}, {"name": "a", "speedup": 2.0}]
    assert bench_results.gather("toy", rows, options) == wanted
    assert seen == [{"a", "b"}]
    assert bench_results.earlier_rows("toy") == wanted


def test_rows_that_were_measured_on_another_cpu_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_results, "RESULTS", tmp_path)
    older = {"name": "a", "commit": "another"}
    other, here = ({"cpu": cpu, "threads": 1, "versions": {}} for cpu in ("other", cpu_model()))
    bench_results.write("toy", other, [older, {"name": "b"}])
    found = [older | {"cpu": "other"}, {"name": "b", "cpu": "other"}]
    assert bench_results.earlier_rows("toy", older=True) == found
    bench_results.write("toy", here, [*found, {"name": "c"}])
    assert bench_results.earlier_rows("toy", older=True) == [*found, {"name": "c"}]


@pytest.mark.parametrize(("drop", "met"), [(0.6, True), (0.61, False)])
def test_a_row_without_labels_is_judged_by_the_row_with_them(drop, met):
    with_labels = {"name": "a", "drop_points": 0.3, "target": "0.2 points", "met": False}
    without = {"name": "a, no labels", "drop_points": drop, "target": "0.2 points", "met": False}
    alone = {"name": "b, no labels", "drop_points": 0.1, "target": "0.2 points", "met": True}
    target = "0.3 points more than with labels"
    assert bench_resnets.beside_labels([with_labels, without, alone]) == [
        with_labels,
        without | {"target": target, "met": met},
        alone,
    ]
