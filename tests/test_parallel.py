"""A cluster solves what this machine solves; one that is not there is refused."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import dask
import numpy as np
import pytest
from distributed import LocalCluster, Scheduler, SpecCluster, Worker
from networks import flatconv, macs_stopwatch, make_net, noise, table_by_macs

import converter
from converter import reconstruction
from converter.decomposition.forms import FORMS
from converter.errors import ConverterError
from converter.graph import network as onnx_network
from converter.graph.survey import survey
from converter.processes import Resources
from converter.reconstruction.parallel import parallel_map
from converter.reconstruction.solve import solve_layer, solve_layers
from converter.runtime import stopwatch

CHANNELS = (3, 8, 8, 8, 8, 8)


@pytest.fixture(scope="module")
def address():
    """A scheduler with two workers, processes of one thread."""
    with LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def layers(tmp_path):
    """Those of a network, by name."""
    network = onnx_network.load(make_net(tmp_path / "net.onnx", CHANNELS))
    return survey(network, {"x": noise(1, 3, 8, 8)})


@pytest.mark.parametrize(("form", "rank"), [("separable", (4,)), ("flattened", (6,))])
@pytest.mark.parametrize("where", ["a cluster", "processes"])
def test_others_solve_what_one_process_solves(where, form, rank, address, layers, monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")
    chosen = {layer.name: (FORMS[form], rank) for layer in layers if layer.conv.k}
    cluster = address if where == "a cluster" else None
    chains = solve_layers(layers, chosen, {}, Resources(cluster=cluster))
    assert list(chains) == list(chosen)
    for layer in layers:
        if layer.name in chosen:
            here = solve_layer(layer.conv, FORMS[form], rank)
            for one, other in zip(here.steps, chains[layer.name].steps):
                assert np.array_equal(one.kernel, other.kernel)


def weights(result):
    return [tensor.raw_data for tensor in result.model.graph.initializer]


def test_a_search_on_a_cluster_ends_as_one_here(address, tmp_path, monkeypatch):
    by_macs = stopwatch.TimingSettings(
        pause_s=0, race_s=0, min_rounds=8, max_rounds=8, stopwatch=macs_stopwatch
    )
    monkeypatch.setattr(stopwatch, "DEFAULT_SETTINGS", by_macs)
    net = make_net(tmp_path / "net.onnx", (3, 32, 32), loss=0.02)
    table = tmp_path / "table.json"
    table.write_text(table_by_macs(net, (1, 3, 8, 8), ("channel",)).to_json())
    there, here = (
        converter.convert(net, max_macs=0.6, latency=table, cluster=cluster, cache=False)
        for cluster in (address, None)
    )
    assert there.report.met and there.plan.chosen()
    assert there.comparison.converted.macs <= 0.6 * there.comparison.original.macs
    assert there.plan == here.plan
    assert weights(there) == weights(here)


def test_a_layer_that_a_cluster_refuses_is_named(address, tmp_path):
    net = make_net(tmp_path / "net.onnx", CHANNELS)
    config = converter.Options.of(cluster=address, cache=False, form=("fc=flattened",))
    with pytest.raises(ConverterError, match="fc"):
        converter.convert(net, options=config)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense", "ftp://localhost:1"])
def test_a_scheduler_that_is_not_there_is_refused_at_once(address, tmp_path, monkeypatch):
    net = make_net(tmp_path / "net.onnx", CHANNELS)
    monkeypatch.setattr(reconstruction.parallel, "CONNECT_S", 1)
    status, _, err = flatconv("convert", net, "--cluster", address, "-o", tmp_path / "out")
    assert status == 2
    assert "cannot be reached" in err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_a_process_that_is_killed_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "2")
    with pytest.raises(ConverterError, match="lack of memory"):
        list(parallel_map(2 * [partial(os._exit, 1)]))


def test_a_worker_of_a_cluster_that_is_killed_is_told_too():
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(1, threads_per_worker=1, dashboard_address=None) as cluster,
        pytest.raises(ConverterError, match="lack of memory"),
    ):
        list(parallel_map(2 * [partial(os._exit, 1)], cluster.scheduler_address))


@pytest.mark.parametrize("workers", [{}, {0: {"cls": Worker, "options": {"nthreads": 2}}}])
def test_workers_have_one_thread_each(workers):
    scheduler = {"cls": Scheduler, "options": {"dashboard": False}}
    with (
        SpecCluster(workers, scheduler) as cluster,
        pytest.raises(ConverterError, match="workers of one thread each"),
    ):
        list(parallel_map([], cluster.scheduler_address))


def test_a_folder_is_trained_when_its_cluster_is_gone(workplace):
    config = converter.Options.of(
        input_shape=("1,3,8,8",), form=("conv2=channel",), only=("conv2",)
    )
    converted = converter.convert("toy:build", options=config)
    converted.save("out")
    record = json.loads(Path("out/conversion.json").read_text())
    record["options"]["cluster"] = "tcp://127.0.0.1:9"
    Path("out/conversion.json").write_text(json.dumps(record))
    x = {"x": noise(64, 3, 8, 8)}
    np.savez("train.npz", **x)
    tuned = converter.finetune("out", train="train.npz", epochs=1)
    assert tuned.plan == converted.plan
    assert tuned.options.resources.cluster is None


def test_without_dask_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConverterError, match="flatconv\\[cluster\\]"):
        list(parallel_map([], "tcp://a:1"))
