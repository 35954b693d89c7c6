"""State dicts fitted into a model: prefixes, averages, parts, and all that does not fit."""

import pytest
import torch
from checkpoint_cases import (
    COUNTER,
    MODEL,
    STATE,
    assert_same,
    filled,
    load_state,
    make_model,
    refused,
)
from torch import nn
from torch.nn.utils import prune

from converter.errors import ConverterError
from converter.models.checkpoint import load_states
from converter.models.state_dict import load_into


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
