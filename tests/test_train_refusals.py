"""What cannot be trained is refused in one sentence: networks, data, labels, devices."""

from dataclasses import replace

import numpy as np
import pytest
from networks import noise
from torch import nn
from train_cases import QUICK, Net, data, pair, trained

from converter.data.data import from_arrays
from converter.errors import ConverterError
from converter.training.batches import Batches


def test_networks_with_different_outputs_are_refused():
    student, teacher = pair()
    teacher.head = nn.Linear(8, 5)
    with pytest.raises(ConverterError, match="gives other outputs than the original"):
        trained(student, teacher, data(), QUICK)


def test_outputs_without_a_gradient_are_refused():
    class Choosing(Net):
        def forward(self, x):
            return super().forward(x).argmax(1).float()

    student, teacher = pair()
    student.__class__ = teacher.__class__ = Choosing
    with pytest.raises(ConverterError, match="has no gradient"):
        trained(student, teacher, data(), QUICK)


def test_inputs_that_a_model_cannot_take_are_refused():
    with pytest.raises(ConverterError, match="cannot be trained on noise"):
        trained(*pair(), from_arrays({"x": noise(50, 2, 8, 8)}, "noise"), QUICK)


def test_more_processes_than_examples_are_refused():
    with pytest.raises(ConverterError, match="an example for each of 32"):
        Batches(data(20), QUICK, 0, 32)


@pytest.mark.parametrize("count", [1, 2])
def test_training_needs_data(count):
    with pytest.raises(ConverterError, match="too few to train on"):
        trained(*pair(), data(count), QUICK)


def test_training_needs_the_device():
    with pytest.raises(ConverterError, match="Device 'nowhere' cannot be used"):
        trained(*pair(), data(), QUICK, device="nowhere")


@pytest.mark.parametrize(
    "labels", [np.full(200, 4), np.full(200, -1), np.full(200, 0.5), np.zeros((200, 4, 4), int)]
)
def test_labels_must_be_classes_of_the_network(labels):
    with pytest.raises(ConverterError, match="do not fit the network's outputs of shape"):
        trained(*pair(), data(y=labels), QUICK)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_while_reading_a_step_stays_one_sentence(workers):
    whole = data()

    def read(indices):
        if 150 in indices:
            raise ConverterError("Data noise failed: its disk is gone.")
        return whole.read(indices)

    recipe = replace(QUICK, workers=workers, seed=1)
    with pytest.raises(ConverterError) as raised:
        trained(*pair(), replace(whole, read=read), recipe)
    assert str(raised.value) == "Data noise failed: its disk is gone."
