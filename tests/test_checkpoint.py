"""Checkpoints: every usual format is read, as data only; the rest is refused in one sentence."""

import collections
import hashlib
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from converter.errors import ConverterError
from converter.models.checkpoint import load_into, load_state, read_file, sha256


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


def refused(path, trust=False):
    """What the refusal of ``path`` says; it must be one line that names the file."""
    with pytest.raises(ConverterError) as caught:
        load_state(path, trust)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Marker:
    """Unpickled, it makes the file ``path``."""

    def __init__(self, path):
        """Remember ``path``."""
        self.path = str(path)

    def __reduce__(self):
        """Have the reader open the file for writing."""
        return open, (self.path, "w")


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_is_read(name, trust, tmp_path):
    WRITERS[name](STATE, tmp_path / name)
    assert_same(load_state(tmp_path / name, trust))


@pytest.mark.parametrize("save", [torch.save, save_legacy])
@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net"])
def test_weights_are_found_among_other_things(key, save, tmp_path):
    path = tmp_path / "checkpoint.pt"
    optimizer = torch.optim.SGD(MODEL.parameters(), 0.1, momentum=0.9).state_dict()
    save({"epoch": 90, "best": 0.76, key: STATE, "optimizer": optimizer, "name": "net"}, path)
    assert_same(load_state(path))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_the_prefixes_of_wrappers_are_removed(prefix, nested, tmp_path):
    wrapped = {prefix + name: tensor for name, tensor in STATE.items()}
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": wrapped} if nested else wrapped, path)
    assert_same(load_state(path))


def test_a_prefix_that_not_every_key_has_stays(tmp_path):
    state = {"module.weight": torch.ones(2), "head.weight": torch.ones(3)}
    torch.save(state, tmp_path / "weights.pt")
    assert_same(load_state(tmp_path / "weights.pt"), state)


def test_what_is_no_tensor_is_left_out(tmp_path):
    torch.save({**STATE, "epoch": 3, "name": "net"}, tmp_path / "weights.pt")
    assert_same(load_state(tmp_path / "weights.pt"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_the_type_of_a_tensor_is_kept(dtype, tmp_path):
    torch.save({"weight": torch.ones(3, dtype=dtype)}, tmp_path / "weights.pt")
    assert load_state(tmp_path / "weights.pt")["weight"].dtype == dtype


def test_a_model_is_filled(tmp_path):
    model = make_model(seed=1)
    load_into(model, STATE, tmp_path / "weights.pt")
    assert_same(model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_of_another_precision_are_taken(dtype, tmp_path):
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in STATE.items()}
    model = make_model(seed=1)
    load_into(model, state, tmp_path / "weights.pt")
    assert model[0].weight.dtype == torch.float32
    assert torch.allclose(model[0].weight, MODEL[0].weight, rtol=1e-3)


def test_a_missing_counter_is_tolerated(tmp_path):
    model = make_model(seed=1)
    load_into(model, {n: t for n, t in STATE.items() if n != COUNTER}, tmp_path / "weights.pt")
    assert torch.equal(model[3].weight, MODEL[3].weight)


def test_a_counter_too_many_is_tolerated(tmp_path):
    model = make_model(seed=1)
    load_into(model, {**STATE, "9.num_batches_tracked": torch.tensor(3)}, tmp_path / "weights.pt")
    assert_same(model.state_dict())


def test_a_whole_module_is_read_when_trusted(tmp_path):
    torch.save(MODEL, tmp_path / "net.pt")
    assert_same(load_state(tmp_path / "net.pt", trust_pickle=True))
    torch.save({"model": MODEL, "epoch": 3}, tmp_path / "net.pt")
    assert_same(load_state(tmp_path / "net.pt", trust_pickle=True))


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
    assert_same(load_state(tmp_path / "net.pt", trust_pickle=True))
    assert marker.exists()


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
    torch.save({f"layer{n}": torch.full((2,), torch.nan) for n in range(5)}, path)
    assert "in layer0, layer1, layer2 and 2 more;" in refused(path)


@pytest.mark.parametrize(
    "content", [{}, {"epoch": 3}, {"state_dict": {}}, {"model": {"a": 1}, "b": torch.ones(1)}]
)
def test_a_dictionary_without_tensors_is_refused(content, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    assert refused(path).endswith("holds no tensors; give a state dict saved with torch.save.")


@pytest.mark.parametrize(
    ("content", "kind"), [(torch.ones(3), "Tensor"), ([torch.ones(3)], "list"), (3, "int")]
)
def test_what_is_no_dictionary_is_refused(content, kind, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    assert refused(path).endswith(f"holds a {kind}, not a state dict of tensors.")


def unfit(model, state, path):
    """What is said of a state that does not fit; the model must stay as it is."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConverterError) as caught:
        load_into(model, state, path)
    assert_same(model.state_dict(), before)
    return str(caught.value).removeprefix(f"Checkpoint {path} does not fit the model: ")


def test_missing_keys_are_counted_and_the_first_named(tmp_path):
    few = {name: tensor for name, tensor in STATE.items() if name.startswith("0.")}
    message = unfit(make_model(1), few, tmp_path / "weights.pt")
    assert message == "6 keys are missing: 1.weight, 1.bias, 1.running_mean and 3 more."


def test_unexpected_keys_are_counted_and_the_first_named(tmp_path):
    more = {f"head.{n}": torch.ones(1) for n in range(5)}
    message = unfit(make_model(1), {**STATE, **more}, tmp_path / "weights.pt")
    assert message == "5 keys are unexpected: head.0, head.1, head.2 and 2 more."


def test_misshapen_keys_are_counted_and_the_first_named(tmp_path):
    wider = make_model(1, width=6)
    message = unfit(wider, STATE, tmp_path / "weights.pt")
    assert message.startswith(
        "7 keys are of another shape: 0.weight (4x3x3x3 in the file, 6x3x3x3 in the model), "
        "0.bias (4 in the file, 6 in the model), "
    )
    assert message.endswith(" and 4 more.")


def test_all_that_does_not_fit_is_said_at_once(tmp_path):
    state = {name: tensor for name, tensor in STATE.items() if name != "0.bias"}
    state |= {"3.bias": torch.tensor(1.0), "4.bias": torch.ones(2)}
    message = unfit(make_model(1), state, tmp_path / "weights.pt")
    assert message == (
        "1 key is missing: 0.bias; 1 key is unexpected: 4.bias; 1 key is of another shape: "
        "3.bias (scalar in the file, 2 in the model)."
    )


def test_keys_of_another_model_do_not_fit(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({f"backbone.{name}": tensor for name, tensor in STATE.items()}, path)
    message = unfit(make_model(1), load_state(path), path)
    assert "8 keys are missing: 0.weight, 0.bias, 1.weight and 5 more" in message
    assert "8 keys are unexpected: backbone.0.weight" in message


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
