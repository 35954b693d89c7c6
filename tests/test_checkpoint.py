"""Checkpoints: every usual format is read, and weights are found among other things."""

import collections
import hashlib

import pytest
import torch
from checkpoint_cases import MODEL, STATE, WRITERS, assert_same, filled, load_state, save_legacy

from converter.models.checkpoint import load_states, read_file, sha256


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_read(name, trust, tmp_path):
    WRITERS[name](STATE, tmp_path / name)
    assert_same(load_state(tmp_path / name, trust))


@pytest.mark.parametrize("save", [torch.save, save_legacy])
@pytest.mark.parametrize(
    "key", ["state_dict", "model", "net", "params", "classifier", "ema_state_dict", "a.b.c"]
)
def test_weights_are_found_among_other_things(key, save, tmp_path):
    path = tmp_path / "checkpoint.pt"
    optimizer = torch.optim.SGD(MODEL.parameters(), 0.1, momentum=0.9).state_dict()
    inner = STATE
    for name in reversed(key.split(".")):
        inner = {name: inner}
    save({"epoch": 90, "best": 0.76, **inner, "optimizer": optimizer, "name": "net"}, path)
    assert list(load_states(path)) == [key]
    state, notes = filled(path)
    assert_same(state)
    assert notes == ()


def test_what_is_no_tensor_is_left_out(tmp_path):
    torch.save({**STATE, "epoch": 3, "name": "net"}, tmp_path / "weights.pt")
    assert_same(load_state(tmp_path / "weights.pt"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_the_type_of_a_tensor_is_kept(dtype, tmp_path):
    torch.save({"weight": torch.ones(3, dtype=dtype)}, tmp_path / "weights.pt")
    assert load_state(tmp_path / "weights.pt")["weight"].dtype == dtype


def test_a_whole_module_is_read_when_trusted(tmp_path):
    torch.save(MODEL, tmp_path / "net.pt")
    assert_same(load_state(tmp_path / "net.pt", trust=True))
    torch.save({"model": MODEL, "epoch": 3}, tmp_path / "net.pt")
    assert_same(load_state(tmp_path / "net.pt", trust=True))


@pytest.mark.parametrize("trust", [False, True])
def test_a_file_is_read_as_it_lies(trust, tmp_path):
    path = tmp_path / "checkpoint.pt"
    content = collections.OrderedDict(epoch=3, weight=torch.arange(3))
    torch.save(content, path)
    found = read_file(path, trust)
    assert found["epoch"] == 3
    assert torch.equal(found["weight"], content["weight"])


def test_a_file_is_known_by_its_hash(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"weights")
    assert sha256(path) == hashlib.sha256(b"weights").hexdigest()
