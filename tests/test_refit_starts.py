"""Layers refit from an earlier result: what is equal is taken, the rest starts from it."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from refit_networks import bytes_of, choose, error, rewritten, setting

from converter.data.data import from_arrays
from converter.decomposition.form import fit_rank, full_rank
from converter.decomposition.forms import FORMS
from converter.processes import Resources
from converter.reconstruction import refit as module
from converter.reconstruction import sampling
from converter.reconstruction.layer_sample import original_bytes
from converter.reconstruction.refit import refit_layers


@pytest.fixture
def solved(monkeypatch):
    """The names of the layers that are solved, and whether each has a start."""
    calls, solve = [], module.solve_for_sample

    def counting(layer, form, rank, sample, resources, start):
        calls.append((layer.name, start is not None))
        return solve(layer, form, rank, sample, resources, start)

    monkeypatch.setattr(module, "solve_for_sample", counting)
    return calls


def separable(layers, share):
    return choose(layers, share, ("separable", "channel"))


def changed(chosen, layers, number, share):
    """The same choices but for one layer, at another share of its rank."""
    layer = layers[number]
    form = chosen[layer.name][0]
    rank = tuple(round(share * r) for r in full_rank(form, layer.conv))
    return chosen | {layer.name: (form, fit_rank(rank, form, layer.conv))}


def test_an_equal_choice_is_not_solved_again(solved):
    model, layers, data = setting("residual")
    first = refit_layers(model, layers, separable(layers, 0.4), data)
    solved.clear()
    again = refit_layers(model, layers, separable(layers, 0.4), data, before=first)
    assert solved == []
    assert bytes_of(again.chains) == bytes_of(first.chains)
    assert again == first


def test_layers_from_the_first_other_choice_on_start_from_the_chains_before(solved):
    model, layers, data = setting("residual")
    chosen = separable(layers, 0.4)
    first = refit_layers(model, layers, chosen, data)
    solved.clear()
    other = changed(chosen, layers, 1, 0.6)
    second = refit_layers(model, layers, other, data, before=first)
    starts = [(l.name, chosen[l.name][0].warm_start) for l in layers if l.name in chosen]
    assert solved == starts[1:]
    kept = layers[0].name
    assert bytes_of({kept: second.chains[kept]}) == bytes_of({kept: first.chains[kept]})


def test_a_layer_of_another_form_does_not_start_from_it(solved):
    model, layers, data = setting("residual")
    first = refit_layers(model, layers, choose(layers, 0.4), data)
    solved.clear()
    refit_layers(model, layers, separable(layers, 0.4), data, before=first)
    assert {start for name, start in solved} == {False}


def test_nothing_is_taken_from_other_inputs(solved):
    model, layers, data = setting("residual")
    chosen = separable(layers, 0.4)
    first = refit_layers(model, layers, chosen, data)
    solved.clear()
    (name, x), *_ = data.read(np.arange(data.count)).items()
    refit_layers(model, layers, chosen, from_arrays({name: 1.5 * x}, "others"), before=first)
    assert [layer for layer, _ in solved] == list(chosen)


def test_nothing_behind_a_layer_that_is_no_longer_converted_is_taken(solved):
    model, layers, data = setting("residual")
    chosen = separable(layers, 0.4)
    first = refit_layers(model, layers, chosen, data)
    solved.clear()
    fewer = dict(list(chosen.items())[1:])
    refit_layers(model, layers, fewer, data, before=first)
    assert [layer for layer, _ in solved] == list(fewer)


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_start_leads_to_no_worse_a_network(share):
    model, layers, data = setting("residual")
    first = refit_layers(model, layers, separable(layers, 0.4), data)
    cold, warm = (
        refit_layers(model, layers, separable(layers, share), data, before=before)
        for before in (None, first)
    )
    errors = [error(model, rewritten(model, layers, r.chains), data) for r in (cold, warm)]
    assert errors[1] < 1.05 * errors[0] + 1e-4  # both are exact at the larger rank


def test_with_a_start_too_the_cache_changes_nothing(tmp_path, solved):
    model, layers, data = setting("residual")
    first = refit_layers(model, layers, separable(layers, 0.4), data)
    results = []
    for folder in (tmp_path, tmp_path, None):
        solved.clear()
        resources = Resources(cache=folder)
        chosen = separable(layers, 0.6)
        results.append(refit_layers(model, layers, chosen, data, resources, first))
        assert (solved == []) == (len(results) == 2)
    assert len({str(bytes_of(result.chains)) for result in results}) == 1


def test_a_start_is_a_part_of_the_key(tmp_path, solved):
    model, layers, data = setting("residual")
    chosen, resources = separable(layers, 0.6), Resources(cache=tmp_path)
    first = refit_layers(model, layers, separable(layers, 0.4), data)
    refit_layers(model, layers, chosen, data, resources)
    solved.clear()
    refit_layers(model, layers, chosen, data, resources, first)
    assert [layer for layer, _ in solved] == list(chosen)


def test_only_chains_of_forms_that_can_start_are_starts():
    model, layers, data = setting("residual")
    result = refit_layers(model, layers, choose(layers, 0.4), data)
    name = layers[0].name
    assert result.start_of(name, FORMS["channel"]) is None
    assert result.start_of(name, FORMS["separable"]) is None
    assert result.start_of("nothing", FORMS["separable"]) is None


@pytest.fixture
def sampled(monkeypatch):
    """The names of the layers that are sampled in the original network."""
    names, sample = [], sampling.sample_original

    def counting(layer, *arguments):
        names.append(layer.name)
        return sample(layer, *arguments)

    monkeypatch.setattr(sampling, "sample_original", counting)
    return names


def test_samples_of_the_original_are_kept_and_change_nothing(sampled):
    model, layers, data = setting("residual")
    first = refit_layers(model, layers, separable(layers, 0.4), data)
    assert sampled
    results = []
    for before in (first, replace(first, originals={})):
        sampled.clear()
        results.append(refit_layers(model, layers, separable(layers, 0.6), data, before=before))
        assert bool(sampled) == (before is not first)
    assert len({str(bytes_of(result.chains)) for result in results}) == 1


def test_with_little_memory_the_last_samples_are_kept(sampled, monkeypatch):
    model, layers, data = setting("residual")
    chosen = separable(layers, 0.4)
    names = [layer.name for layer in layers if layer.name in chosen]
    last = next(layer for layer in layers if layer.name == names[-1])
    share = 1.5 * original_bytes(last.conv, Resources()) / Resources().memory_bytes
    monkeypatch.setattr(sampling, "KEPT_SHARE", share)
    first = refit_layers(model, layers, chosen, data)
    sampled.clear()
    refit_layers(model, layers, separable(layers, 0.6), data, before=first)
    assert set(sampled) == set(names[:-1])


def test_other_processes_get_no_samples():
    model, layers, data = setting("residual")
    first = refit_layers(model, layers, separable(layers, 0.4), data)
    copy = pickle.loads(pickle.dumps(first))
    assert first.originals and copy.originals == {} and copy.key == first.key


def test_a_draft_is_never_taken_for_the_network_itself(solved):
    model, layers, data = setting("residual")
    chosen = separable(layers, 0.4)
    whole = refit_layers(model, layers, chosen, data)
    draft = refit_layers(model, layers, chosen, data, Resources(effort=0.25), before=whole)
    assert draft.key != whole.key
    assert [layer for layer, _ in solved] == 2 * list(chosen)
