"""Training in a conversion: its phases and schedule, losses of the user, interruptions."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from conversions import X, converted, files_of_at_most, outputs
from networks import fixed_race, make_net, noise, table_by_macs
from torch import nn

import converter
from converter import ConverterError, Options
from converter.evaluation import compare
from converter.evaluation.check import difference
from converter.evaluation.tasks.classify import Classify
from converter.models import match as torch_network
from converter.report.tables import layer_cells
from converter.training.checkpoint import Checkpoint
from converter.training.losses import distillation_loss
from converter.training.phases import budget_test, list_phases
from converter.training.schedule import increment, split_schedule

pytestmark = pytest.mark.usefixtures("place")


def loss_of(model, x, wanted):
    return distillation_loss(torch.from_numpy(outputs(model, x)), torch.from_numpy(wanted)).item()


def test_a_tuned_conversion_ships_the_tuned_weights(from_factory, tmp_path):
    train = noise(512, 3, 8, 8, seed=3)
    np.savez(tmp_path / "train.npz", x=train)
    options = {"input_shape": ("1,3,8,8",), "rank": ("conv2=6",), "lr": 1e-2}
    options |= {"finetune": 12, "train": str(tmp_path / "train.npz")}
    made = converted(tmp_path / "out", "toy:build", **options)
    assert made.report["met"] is True
    assert made.result.plan == from_factory.result.plan
    assert [layer["rel_error"] for layer in made.report["layers"]] == [None] * 3
    assert [layer_cells(row)[7] for row in made.result.report.layers] == ["", "-", ""]
    test = noise(128, 3, 8, 8, seed=4)
    wanted = outputs(from_factory.folder / "original.onnx", test)
    before, after = (loss_of(f.folder / "model.onnx", test, wanted) for f in (from_factory, made))
    assert after < 0.5 * before
    loaded = outputs(converter.load(made.folder), X)
    assert difference(outputs(made.folder / "model.onnx", X), loaded) < 1e-4


def test_reconstruction_alone_brings_the_outputs_closer(from_factory, training, place):
    made = converter.convert("toy:build", rank=("conv2=6",), reconstruct=10, **training)
    test = noise(128, 3, 8, 8, seed=4)
    wanted = outputs(from_factory.folder / "original.onnx", test)
    before, after = (loss_of(m, test, wanted) for m in (from_factory.result.model, made.model))
    assert after < 0.8 * before
    assert made.plan == from_factory.result.plan


def test_a_network_is_converted_and_trained_in_steps(place, monkeypatch):
    monkeypatch.setattr(compare, "race", fixed_race)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 4),
    ).eval()
    np.savez("wide.npz", x=noise(80, 3, 8, 8, seed=3))
    same_layers = make_net("wide.onnx", (3, 32, 32))
    Path("wide.json").write_text(table_by_macs(same_layers, (1, 3, 8, 8)).to_json())
    progress = []
    options = {"max_macs": 0.4, "schedule": 2, "finetune": 2, "calib": "wide.npz"}
    made = converter.convert(
        model,
        input_shape=("1,3,8,8",),
        latency="wide.json",
        progress=lambda stage, done: progress.append(stage),
        **options,
    )
    before, after = made.comparison.original, made.comparison.converted
    assert after.macs <= 0.4 * before.macs and made.report.met
    assert before.params == sum(p.numel() for p in model.parameters()) - 32 * 2
    stages = [a for a, b in zip(progress, [*progress[1:], ""]) if a != b]
    assert stages.count("fine-tuning") == 2
    assert difference(outputs(made.model), outputs(model)) < 0.5


def test_dense_twins_of_trained_chains_compute_what_they_do(from_factory, build):
    model, chains = build().eval(), from_factory.result.model
    twin = torch_network.dense(model, chains, from_factory.result.plan.chosen())
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    assert difference(outputs(twin, X), outputs(chains, X)) < 1e-5


def test_the_steps_of_a_schedule_divide_the_budget():
    config = Options.of(max_macs=0.25, max_drop=0.02, schedule=2, finetune=5, calib="c.npz")
    first, last = split_schedule(config)
    assert (first.limits, first.training.epochs) == ({"max_macs": 0.5, "max_drop": 0.01}, 2)
    assert (last.limits, last.training.epochs) == ({"max_macs": 0.25, "max_drop": 0.02}, 3)
    assert [increment(step, config).limits["max_drop"] for step in (first, last)] == [0.01, 0.01]
    assert increment(last, config).limits["max_macs"] == 0.25
    assert split_schedule(config.changed(schedule=1)) == [config.changed(schedule=1)]


def test_a_schedule_is_for_torch_models(place):
    options = {"max_macs": 0.5, "schedule": 2, "finetune": 2, "calib": "calib.npz"}
    with pytest.raises(ConverterError, match=r"^schedule needs a torch model"):
        converter.convert(place / "net.onnx", **options)


def test_an_interrupted_training_resumes(from_factory, monkeypatch, tmp_path):
    monkeypatch.setenv("FLATCONV_CACHE", str(tmp_path / "cache"))
    options = {"epochs": 4, "train": "train.npz", "lr": 1e-2}

    def interrupt(stage, done):
        if stage == "fine-tuning" and done > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        converter.finetune(from_factory.folder, progress=interrupt, **options)
    done = []
    resumed = converter.finetune(
        from_factory.folder,
        resume=True,
        progress=lambda stage, share: done.append(share) if stage == "fine-tuning" else None,
        **options,
    ).model.state_dict()
    whole = converter.finetune(from_factory.folder, cache=False, **options).model.state_dict()
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())
    assert min(done) > 0.4


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_skipped(tmp_path):
    checkpoint = Checkpoint(3, {"w": torch.zeros(1000)}, {}, {}, {}, 1.0, 1.0)
    with files_of_at_most(1000):
        checkpoint.save(tmp_path / "state.safetensors")
    assert list(tmp_path.iterdir()) == []


LOSSES = """
import functools

import torch


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, outputs, targets, labels):
        return self.scale * (outputs[0] - targets[0]).square().mean()


def plain(scale, outputs, targets, labels):
    return scale * (outputs[0] - targets[0]).square().mean()


def fails(outputs, targets, labels):
    return outputs[0] @ targets[0]


def squeezed(outputs, targets, labels):
    return torch.nn.functional.cross_entropy(outputs[0], labels.squeeze())


LOSS = Scaled(2.0)
PARTIAL = functools.partial(plain, 2.0)
"""


@pytest.mark.parametrize("name", ["LOSS", "PARTIAL", "squeezed"])
def test_a_loss_may_be_any_callable(from_factory, place, name):
    (place / "losses.py").write_text(LOSSES)
    with np.load("train.npz") as train:
        np.savez("columns.npz", x=train["x"], y=np.arange(400)[:, None] % 4)
    options = {"train": "columns.npz", "loss": f"losses:{name}"}
    made = converter.finetune(from_factory.folder, epochs=1, **options)
    before, after = from_factory.result.model.conv2[0].weight, made.model.conv2[0].weight
    assert made.report.met and not torch.equal(before, after)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train": "far.npz"}, "labels of .*far.npz do not fit"),
        ({"train": "floats.npz"}, "labels of .*floats.npz do not fit"),
        ({"loss": "losses:fails"}, "loss losses:fails failed"),
        ({"train": "two.npz"}, "2 examples; too few to train on"),
        ({"eval": "floats.npz"}, "labels y of .*floats.npz fit no output"),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(training, place, options, words):
    (place / "losses.py").write_text(LOSSES)
    x = noise(100, 3, 8, 8, seed=3)
    np.savez("far.npz", x=x, y=np.where(np.arange(100) == 99, 4, 0))
    np.savez("floats.npz", x=x, y=np.full(100, 0.5))
    np.savez("two.npz", x=x[:2])
    stages = []
    with pytest.raises(ConverterError, match=words):
        converter.convert(
            "toy:build",
            max_macs=0.9,
            finetune=1,
            progress=lambda stage, done: stages.append(stage),
            **(training | options),
        )
    assert set(stages) == {"loading"}


@pytest.mark.parametrize(
    ("options", "budget", "wanted"),
    [
        ({"finetune": 2}, {"max_drop": 0.01}, ["fine-tuning!"]),
        ({"finetune": 2}, {"max_macs": 0.5}, ["fine-tuning"]),
        ({"finetune": 2, "int8": True}, {"max_drop": 0.01}, ["fine-tuning", "evaluating!"]),
        ({"reconstruct": 2}, {"max_drop": 0.01}, ["reconstructing", "evaluating!"]),
        ({"reconstruct": 2}, {}, ["reconstructing"]),
        ({"reconstruct": 2, "finetune": 1}, {"max_error": 0.1}, ["reconstructing", "fine-tuning!"]),
    ],
)
def test_the_last_phase_tests_the_budget(options, budget, wanted):
    phases = list_phases(Options.of(**options), budget, (), ())
    assert [phase.name + "!" * (phase.stop_when is not None) for phase in phases] == wanted
    to_the_end = [phase.name for phase in list_phases(Options.of(**options), budget, (), (), True)]
    judged = "evaluating" in to_the_end
    assert judged == bool({"max_drop", "max_error"} & set(budget))


@pytest.mark.parametrize(
    ("budget", "off", "kept"),
    [
        ({"max_error": 0.1}, 0.05, True),
        ({"max_error": 0.1}, 0.2, False),
        ({"max_drop": 0.05}, 0.01, True),
        ({"max_drop": 0.05}, 2.0, False),
        ({"max_drop": 0.05, "max_error": 0.01}, 0.05, False),
    ],
)
def test_held_out_outputs_say_whether_a_budget_is_kept(budget, off, kept):
    before = 5 * noise(300, 10)
    after = before + off * 5 * noise(300, 10, seed=1)
    tasks, names = [Classify.of("y", before)], ["features", "y"]
    within_budget = budget_test(budget, tasks, names, Options())
    assert within_budget([before, before], [before, after]) == kept
    assert budget_test({"max_macs": 0.5}, tasks, names, Options()) is None
    unnamed = budget_test(budget, tasks, ["features"], Options())
    assert not unnamed([before], [before])


def test_a_training_may_use_the_sample_inputs(build):
    model = build().eval()
    made = converter.convert(model, form=("conv1=channel",), calib=noise(64, 3, 8, 8), finetune=1)
    assert list(made.plan.chosen()) == ["conv1"]
    assert not torch.equal(made.model.fc.weight, model.fc.weight)  # which only training changes


def test_a_trained_network_takes_several_input_shapes(training):
    shapes = {"input_shape": ("1,3,8,8", "1,3,16,16")}
    made = converter.convert("toy:build", form=("channel",), finetune=1, **(training | shapes))
    (further,) = made.comparison.further
    assert further.input_shapes == {"x": (1, 3, 16, 16)}
    large = noise(2, 3, 16, 16)
    shipped = ir.to_proto(made.report.verified.converted.network)
    assert difference(outputs(shipped, large), outputs(made.model, large)) < 1e-4
