"""Coarse moments in the cache: read back as they were, and found again by all they depend on."""

import numpy as np
import pytest
from refit_networks import setting

from converter.processes import Resources
from converter.reconstruction import coarse
from converter.reconstruction.coarse import coarse_metrics


def arrays(metrics):
    return [
        (name, metric.channels.tobytes(), metric.window.tobytes(), metric.mean.tobytes())
        for name, groups in metrics.items()
        for metric in groups
    ]


@pytest.mark.parametrize("name", ["residual", "grouped", "signals"])
def test_what_comes_from_the_cache_is_what_was_computed(name, tmp_path, monkeypatch):
    network = setting(name)
    computed = coarse_metrics(*network, Resources())
    kept = coarse_metrics(*network, Resources(cache=tmp_path))
    monkeypatch.setattr(coarse, "second_moments", None)  # not called again
    again = coarse_metrics(*network, Resources(cache=tmp_path))
    assert arrays(computed) == arrays(kept) == arrays(again)
    assert all(metric.full is None for groups in again.values() for metric in groups)


def test_other_inputs_seeds_and_layers_make_another_entry(tmp_path):
    model, layers, data = setting("residual")
    other = data.take(np.arange(data.count)[::-1])
    for number, (chosen, inputs, seed) in enumerate(
        [(layers, data, 0), (layers[:1], data, 0), (layers, other, 0), (layers, data, 1)], start=1
    ):
        coarse_metrics(model, chosen, inputs, Resources(cache=tmp_path, seed=seed))
        assert len(list(tmp_path.rglob("*.npz"))) == number


def test_a_damaged_entry_is_computed_again(tmp_path):
    network = setting("residual")
    computed = coarse_metrics(*network, Resources(cache=tmp_path))
    (entry,) = tmp_path.rglob("*.npz")
    entry.write_bytes(entry.read_bytes()[:-40])
    assert arrays(coarse_metrics(*network, Resources(cache=tmp_path))) == arrays(computed)


def test_without_inputs_there_are_no_moments(tmp_path):
    model, layers, _ = setting("residual")
    assert coarse_metrics(model, layers, None, Resources(cache=tmp_path)) == {}
