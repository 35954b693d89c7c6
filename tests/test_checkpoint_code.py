"""Code in checkpoints: it runs only when trusted, and is refused in one sentence otherwise."""

import importlib
import pickle
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from checkpoint_cases import (
    MODEL,
    STATE,
    assert_same,
    filled,
    load_state,
    make_model,
    refused,
    save_legacy,
)


class Marker:
    """Unpickled, it makes the file ``path``."""

    def __init__(self, path):
        """Remember ``path``."""
        self.path = str(path)

    def __reduce__(self):
        """Have the reader open the file for writing."""
        return open, (self.path, "w")


def test_the_weights_of_a_torchscript_program_are_taken_when_trusted(tmp_path):
    path = tmp_path / "traced.pt"
    torch.jit.trace(MODEL.eval(), torch.zeros(1, 3, 8, 8)).save(str(path))
    assert "is a TorchScript program; pass --trust-pickle to take its weights" in refused(path)
    assert_same(filled(path, trust=True)[0])


def test_a_module_of_code_that_is_not_there_is_refused(tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\nclass Net(nn.Sequential):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own_net = importlib.import_module("own_net")
    torch.save(own_net.Net(*make_model()), tmp_path / "net.pt")
    assert_same(filled(tmp_path / "net.pt", trust=True)[0])
    monkeypatch.undo()
    monkeypatch.delitem(sys.modules, "own_net")
    message = refused(tmp_path / "net.pt", trust=True)
    assert "needs code that cannot be imported: No module named 'own_net'; run in" in message
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    assert_same(filled(tmp_path / "net.pt", trust=True)[0])
    del sys.modules["own_net"]


def test_options_of_lightning_are_no_code(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": STATE, "hyper_parameters": Namespace(lr=0.1, width=4)}, path)
    assert_same(filled(path)[0])


@pytest.mark.parametrize("content", [MODEL, {"model": MODEL}, {**STATE, "best": np.float64(0.76)}])
def test_pickled_objects_are_refused_without_trust(content, tmp_path):
    torch.save(content, tmp_path / "net.pt")
    message = refused(tmp_path / "net.pt")
    assert "holds pickled code, not only weights; save model.state_dict() instead" in message
    assert "--trust-pickle" in message


@pytest.mark.parametrize("where", ["alone", "among weights", "nested"])
@pytest.mark.parametrize("save", [torch.save, save_legacy])
@pytest.mark.parametrize("name", ["net.pt", "net.tar"])
def test_code_in_a_checkpoint_does_not_run(name, save, where, tmp_path):
    marker = tmp_path / "marker"
    content = {
        "alone": Marker(marker),
        "among weights": {**STATE, "extra": Marker(marker)},
        "nested": {"state_dict": {**STATE, "extra": Marker(marker)}},
    }[where]
    save(content, tmp_path / name)
    assert "holds pickled code" in refused(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_bare_pickle_does_not_run(protocol, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "net.pt"
    path.write_bytes(pickle.dumps({"weight": Marker(marker)}, protocol))
    refused(path)
    assert not marker.exists()


@pytest.mark.parametrize("trust", [False, True])
def test_a_pickle_named_safetensors_is_never_unpickled(trust, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "net.safetensors"
    torch.save({**STATE, "extra": Marker(marker)}, path)
    assert "is not a sound safetensors file" in refused(path, trust)
    assert not marker.exists()


def test_code_in_a_trusted_checkpoint_runs(tmp_path):
    marker = tmp_path / "marker"
    torch.save({**STATE, "extra": Marker(marker)}, tmp_path / "net.pt")
    assert_same(load_state(tmp_path / "net.pt", trust=True))
    assert marker.exists()
