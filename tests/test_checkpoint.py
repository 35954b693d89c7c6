"""Checkpoints: every usual format is read, as data only; the rest is refused in one sentence."""

import collections
import hashlib
import importlib
import pickle
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from converter.errors import ConverterError
from converter.models.checkpoint import load_states, read_file, sha256
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


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.model.0."],
)
def test_the_prefixes_of_wrappers_are_removed(prefix, nested, tmp_path):
    wrapped = {prefix + name: tensor for name, tensor in STATE.items()}
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": wrapped} if nested else wrapped, path)
    state, notes = filled(path)
    assert_same(state)
    assert notes == ()


class Parts(nn.Module):
    """A backbone and a head."""

    def __init__(self, **more):
        super().__init__()
        self.backbone, self.head = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(4, 2)
        for name, module in more.items():
            setattr(self, name, module)


WHOLE = Parts().state_dict()


@pytest.mark.parametrize(
    "change",
    [
        lambda s: {n.replace("backbone.", "backbone._orig_mod."): t for n, t in s.items()},
        lambda s: {f"model._orig_mod.{n}": t for n, t in s.items()},
        lambda s: {f"module.{n}": t for n, t in s.items()} | {"n_averaged": torch.tensor(5)},
        lambda s: s | {"total_ops": torch.zeros(1), "backbone.total_params": torch.zeros(1)},
        lambda s: [s],
        lambda s: (s, 3),
        lambda s: {"g": s, "d": {"weight": torch.ones(3)}},
    ],
    ids=["compiled part", "Lightning", "averaged", "profiled", "list", "tuple", "two networks"],
)
def test_a_state_dict_of_other_tools_is_taken_without_a_word(change, tmp_path):
    model = Parts()
    torch.save(change(WHOLE), tmp_path / "weights.pt")
    notes = load_into(model, load_states(tmp_path / "weights.pt"), tmp_path / "weights.pt")
    assert_same(model.state_dict(), WHOLE)
    assert notes == ()


@pytest.mark.parametrize(
    ("prefix", "more", "named"),
    [
        ("", {"aux_head.weight": 1, "aux_head.bias": 1}, "2 keys of it, left out: aux_head.weight"),
        ("net.", {"criterion.weight": 1}, "1 key of it, left out: criterion.weight"),
        ("model.", {"model.ema_decay": 1}, "1 key of it, left out: model.ema_decay"),
        ("model.", {"train_acc.correct": 1}, "1 key of it, left out: train_acc.correct"),
    ],
)
def test_parts_that_the_model_lacks_are_left_out_and_named(prefix, more, named, tmp_path):
    path, model = tmp_path / "weights.pt", Parts()
    state = {prefix + name: tensor for name, tensor in WHOLE.items()}
    torch.save(state | {name: torch.ones(2) for name in more}, path)
    (note,) = load_into(model, load_states(path), path)
    assert_same(model.state_dict(), WHOLE)
    assert note.startswith(f"Checkpoint {path}: the model lacks {named}")


def zeros(state):
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("raw", "average"),
    [
        ("state_dict", "state_dict_ema"),
        ("params", "params_ema"),
        ("model", "model_ema"),
        ("model", "ema.module"),
        ("swa_model", "model"),
    ],
)
def test_averaged_weights_are_preferred_and_a_key_names_others(raw, average, tmp_path):
    path = tmp_path / "weights.pt"
    if raw == "swa_model":
        raw, average = average, raw
    outer, _, inner = average.partition(".")
    torch.save({raw: zeros(STATE), outer: {inner: STATE} if inner else STATE}, path)
    state, (note,) = filled(path)
    assert_same(state)
    assert f"{average!r} was taken, not {raw!r}; --state-key names another." in note
    state, notes = filled(path, key=raw)
    assert not state["0.weight"].any()
    assert notes == ()


def test_a_key_that_the_checkpoint_lacks_is_refused_with_those_it_has(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save({"params": STATE, "other": {"weight": torch.ones(2)}}, path)
    with pytest.raises(ConverterError, match=r"no state dict 'ema'\. It has 'params' \(9 keys\), "):
        filled(path, key="ema")
    with pytest.raises(ConverterError, match=r"does not fit the model: 8 keys are missing"):
        filled(path, key="other")


def test_several_state_dicts_of_which_none_fits_are_listed(tmp_path):
    path, wider = tmp_path / "weights.pt", make_model(width=6)
    torch.save({"params": STATE, "params_ema": STATE}, path)
    with pytest.raises(ConverterError, match=r"another shape: .* It has 'params' \(9 keys\), 'par"):
        load_into(wider, load_states(path), path)


def test_weights_with_masks_of_pruning_are_multiplied(tmp_path):
    path, pruned, model = tmp_path / "weights.pt", make_model(), make_model(seed=1)
    prune.l1_unstructured(pruned[0], "weight", 0.5)
    torch.save(pruned.state_dict(), path)
    assert "0.weight_orig" in load_state(path)
    assert load_into(model, load_states(path), path) == ()
    assert torch.equal(model[0].weight, pruned[0].weight_orig * pruned[0].weight_mask)
    assert (model[0].weight == 0).float().mean() == 0.5
    assert load_into(pruned, load_states(path), path) == ()


def test_lazy_layers_take_the_shapes_of_the_checkpoint(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(STATE, path)
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConv2d(2, 1))
    assert load_into(lazy, load_states(path), path) == ()
    assert_same(lazy.state_dict())


def test_a_deeper_network_is_not_taken_for_a_shallower_one(tmp_path):
    path = tmp_path / "weights.pt"
    deeper = nn.Sequential(*make_model(), nn.ReLU(), nn.Conv2d(2, 2, 1))
    torch.save(deeper.state_dict(), path)
    assert "2 keys are unexpected: 5.weight, 5.bias" in refused(path)


def test_a_mask_may_be_infinite(tmp_path):
    path, model = tmp_path / "weights.pt", Parts()
    model.register_buffer("mask", torch.zeros(2))
    torch.save(WHOLE | {"mask": torch.full((2,), -torch.inf)}, path)
    assert load_into(model, load_states(path), path) == ()
    torch.save(WHOLE | {"mask": torch.full((2,), torch.nan)}, path)
    with pytest.raises(ConverterError, match="NaN or infinite values in mask"):
        load_into(model, load_states(path), path)


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


def test_what_is_no_tensor_is_left_out(tmp_path):
    torch.save({**STATE, "epoch": 3, "name": "net"}, tmp_path / "weights.pt")
    assert_same(load_state(tmp_path / "weights.pt"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_the_type_of_a_tensor_is_kept(dtype, tmp_path):
    torch.save({"weight": torch.ones(3, dtype=dtype)}, tmp_path / "weights.pt")
    assert load_state(tmp_path / "weights.pt")["weight"].dtype == dtype


def test_a_model_is_filled(tmp_path):
    model = make_model(seed=1)
    load_into(model, {"": STATE}, tmp_path / "weights.pt")
    assert_same(model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_of_another_precision_are_taken(dtype, tmp_path):
    state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in STATE.items()}
    model = make_model(seed=1)
    load_into(model, {"": state}, tmp_path / "weights.pt")
    assert model[0].weight.dtype == torch.float32
    assert torch.allclose(model[0].weight, MODEL[0].weight, rtol=1e-3)


def test_a_missing_counter_is_tolerated(tmp_path):
    model = make_model(seed=1)
    state = {n: t for n, t in STATE.items() if n != COUNTER}
    load_into(model, {"": state}, tmp_path / "weights.pt")
    assert torch.equal(model[3].weight, MODEL[3].weight)


def test_a_counter_too_many_is_tolerated(tmp_path):
    model = make_model(seed=1)
    state = {**STATE, "9.num_batches_tracked": torch.tensor(3)}
    load_into(model, {"": state}, tmp_path / "weights.pt")
    assert_same(model.state_dict())


def test_a_whole_module_is_read_when_trusted(tmp_path):
    torch.save(MODEL, tmp_path / "net.pt")
    assert_same(load_state(tmp_path / "net.pt", trust=True))
    torch.save({"model": MODEL, "epoch": 3}, tmp_path / "net.pt")
    assert_same(load_state(tmp_path / "net.pt", trust=True))


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


def unfit(model, state, path):
    """What is said of a state that does not fit; the model must stay as it is."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConverterError) as caught:
        load_into(model, {"": state}, path)
    assert_same(model.state_dict(), before)
    return str(caught.value).removeprefix(f"Checkpoint {path} does not fit the model: ")


def test_missing_keys_are_counted_and_the_first_named(tmp_path):
    few = {name: tensor for name, tensor in STATE.items() if name.startswith("0.")}
    message = unfit(make_model(1), few, tmp_path / "weights.pt")
    assert message == "6 keys are missing: 1.weight, 1.bias, 1.running_mean and 3 more."


def test_unexpected_keys_are_counted_and_the_first_named(tmp_path):
    more = {f"3.head.{n}": torch.ones(1) for n in range(5)}
    message = unfit(make_model(1), {**STATE, **more}, tmp_path / "weights.pt")
    assert message == "5 keys are unexpected: 3.head.0, 3.head.1, 3.head.2 and 2 more."


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
    torch.save({f"backbone.{name.upper()}": tensor for name, tensor in STATE.items()}, path)
    message = unfit(make_model(1), load_state(path), path)
    assert message == "8 keys are missing: 0.weight, 0.bias, 1.weight and 5 more."


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
