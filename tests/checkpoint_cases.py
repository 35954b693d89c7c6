"""A small model, its state dict saved in every format, and what is read of it or refused."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from converter.errors import ConverterError
from converter.models.checkpoint import load_states
from converter.models.state_dict import load_into


def make_model(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 2, 1)
    )


MODEL = make_model()
STATE = MODEL.state_dict()
COUNTER = "1.num_batches_tracked"


def save_legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


WRITERS = {
    "weights.pt": torch.save,
    "weights.pth": torch.save,
    "weights.th": torch.save,
    "weights.tar": torch.save,
    "weights.ckpt": torch.save,
    "weights": torch.save,
    "legacy.pt": save_legacy,
    "legacy.pth.tar": save_legacy,
    "weights.safetensors": save_file,
}


def assert_same(found, wanted=STATE):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def load_state(path, trust=False):
    """The only state dict of a file."""
    (state,) = load_states(path, trust).values()
    return dict(state)


def filled(path, trust=False, key=""):
    """What a model holds that is filled from a file, and the notes."""
    model = make_model(seed=1)
    notes = load_into(model, load_states(path, trust), path, key)
    return model.state_dict(), notes


def refused(path, trust=False):
    """What the refusal of ``path`` says; it must be one line that names the file."""
    with pytest.raises(ConverterError) as caught:
        filled(path, trust)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)
