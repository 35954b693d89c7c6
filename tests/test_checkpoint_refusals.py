"""Files that are no checkpoint, or a damaged one: refused in one sentence that says why."""

import numpy as np
import pytest
import torch
from checkpoint_cases import COUNTER, STATE, WRITERS, refused
from safetensors.torch import save_file


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_missing_file_is_refused(name, tmp_path):
    assert refused(tmp_path / name).endswith("does not exist.")


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_folder_is_refused(name, tmp_path):
    (tmp_path / name).mkdir()
    assert refused(tmp_path / name).endswith("is a folder; name a file of weights.")


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_an_empty_file_is_refused(name, tmp_path):
    (tmp_path / name).touch()
    assert refused(tmp_path / name).endswith("is empty.")


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.6, 0.95])
def test_a_truncated_archive_is_refused(fraction, trust, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(STATE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    assert "is truncated or damaged" in refused(path, trust)


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.6, 0.95])
def test_a_truncated_safetensors_file_is_refused(fraction, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(STATE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    assert "is not a sound safetensors file" in refused(path)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("text", ["no checkpoint\n", "hello", '{"weight": [1]}', "404: Not Found"])
def test_a_text_is_no_torch_checkpoint(text, trust, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_text(text)
    assert refused(path, trust).endswith("is not a torch checkpoint.")


@pytest.mark.parametrize("text", ["", "x", "no checkpoint at all\n", "404: Not Found\n" * 20])
def test_a_text_is_no_safetensors_file(text, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_text(text)
    refused(path)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(value, name, tmp_path):
    broken = {key: tensor.clone() for key, tensor in STATE.items()}
    broken["3.weight"][0, 0] = value
    WRITERS[name](broken, tmp_path / name)
    message = refused(tmp_path / name)
    assert message.endswith("holds NaN or infinite values in 3.weight; use a sound checkpoint.")


def test_the_first_few_weights_that_are_not_finite_are_named(tmp_path):
    path = tmp_path / "weights.pt"
    broken = {name: torch.full(t.shape, torch.nan) for name, t in STATE.items() if name != COUNTER}
    torch.save({**STATE, **broken}, path)
    assert "in 0.weight, 0.bias, 1.weight and 5 more;" in refused(path)


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, {"state_dict": {}}, {"model": {"a": 1}}, [3], []]
)
def test_a_dictionary_without_tensors_is_refused(content, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    assert refused(path).endswith("holds no tensors; give a state dict saved with torch.save.")


@pytest.mark.parametrize(
    ("content", "kind"), [(torch.ones(3), "Tensor"), ("net", "str"), (3, "int")]
)
def test_what_is_no_dictionary_is_refused(content, kind, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    assert refused(path).endswith(f"holds a {kind}, not a state dict of tensors.")
