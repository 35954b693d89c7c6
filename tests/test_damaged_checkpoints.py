"""Checkpoints that are damaged or unusual: refused with the reason, or read as they are."""

import pytest
import torch
from torch import nn

from converter.errors import ConverterError
from converter.models.checkpoint import load_states
from converter.models.state_dict import load_into


class Wrapper(nn.Module):
    """The name of its child is a prefix that wrappers add."""

    def __init__(self):
        super().__init__()
        self.module = nn.Conv2d(2, 2, 1)


@pytest.mark.parametrize("make", [lambda: nn.DataParallel(nn.Conv2d(2, 2, 1)), Wrapper])
def test_a_prefix_that_the_model_has_too_stays(make, tmp_path):
    path = tmp_path / "weights.pt"
    saved, model = make(), make()
    torch.save(saved.state_dict(), path)
    load_into(model, load_states(path), path)
    assert torch.equal(model.module.weight, saved.module.weight)


# A cut may leave a pickle that asks for another class than it did.
DAMAGE = "is truncated or damaged|holds pickled code, not only weights"


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_truncated_legacy_file_is_refused(fraction, tmp_path):
    path = tmp_path / "weights.pt"
    state = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    for end in range(int(fraction * len(content)), int(fraction * len(content)) + 60):
        path.write_bytes(content[:end])
        with pytest.raises(ConverterError, match=f"weights.pt ({DAMAGE})"):
            load_states(path)


@pytest.mark.parametrize("content", [b"\x80", b"\x80\x02.", b"\x80\x02}q\x00."])
def test_a_broken_pickle_is_refused(content, tmp_path):
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(ConverterError, match=r"weights\.pt is truncated or damaged"):
        load_states(tmp_path / "weights.pt")


def test_a_text_that_begins_like_a_pickle_is_no_torch_checkpoint(tmp_path):
    (tmp_path / "weights.pt").write_text("hello")
    with pytest.raises(ConverterError, match="is not a torch checkpoint"):
        load_states(tmp_path / "weights.pt")


@pytest.mark.parametrize("make", [torch.Tensor.to_sparse, lambda t: t.to("meta")])
def test_tensors_without_plain_values_are_refused(make, tmp_path):
    path, model = tmp_path / "weights.pt", nn.Linear(2, 2)
    torch.save({"weight": make(torch.ones(2, 2)), "bias": torch.ones(2)}, path)
    with pytest.raises(ConverterError, match="holds tensors without plain values: weight"):
        load_into(model, load_states(path), path)


def test_tensors_of_eight_bits_are_read(tmp_path):
    torch.save({"a": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "weights.pt")
    read = load_states(tmp_path / "weights.pt")[""]["a"]
    assert read.dtype == torch.float8_e4m3fn and read.float().tolist() == [1, 1]
