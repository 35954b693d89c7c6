"""Networks side by side: taking turns where they are too large, by a timer that counts calls."""

import weakref

import pytest
from networks import make_net, noise

from converter.data.data import from_arrays
from converter.evaluation.compare import Conditions, compare_models
from converter.graph.network import load, open_session
from converter.processes import Resources
from converter.runtime import stopwatch
from converter.runtime.ort import OnnxRuntime, cpu_model
from converter.timing.race import MIN_EXCLUSIVE_ROUNDS


def one_second(session, feeds, calls):
    """A stopwatch that always shows a second; the network runs once."""
    session.run(None, feeds)
    return 1.0


def compare(models, data):
    return compare_models(models, Conditions(OnnxRuntime()), Resources(), data)


def test_networks_too_large_to_be_open_together_take_turns(tmp_path, monkeypatch):
    paths = [make_net(tmp_path / f"{n}.onnx", seed=n) for n in range(2)]
    data = from_arrays({"x": noise(20, 3, 8, 8)}, "noise")
    models = {path.name: load(path) for path in paths}
    settings = stopwatch.TimingSettings(pause_s=0.0, race_s=0.0, stopwatch=one_second)
    monkeypatch.setattr(stopwatch, "DEFAULT_SETTINGS", settings)
    together = compare(models, data)
    alive, most = set(), []

    def opened(model, **how):
        session = open_session(model, **how)
        alive.add(id(session))
        weakref.finalize(session, alive.discard, id(session))
        most.append(len(alive))
        return session

    monkeypatch.setattr("converter.evaluation.compare.open_session", opened)
    monkeypatch.setattr("converter.evaluation.compare.MAX_OPEN_BYTES", 1)
    apart = compare(models, data)
    assert max(most) == 1 and len(most) > 10
    assert (together.rounds, apart.rounds) == (settings.min_rounds, MIN_EXCLUSIVE_ROUNDS)
    assert 0 < together["1.onnx"].rel_output_error < float("inf")
    for name in models:
        one, other = together[name], apart[name]
        assert one.rel_output_error == pytest.approx(other.rel_output_error)
        assert one.agreement == other.agreement


@pytest.mark.parametrize(
    "info, wanted",
    [
        (
            "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fma avx2 avx512f avx512_vnni\n\n"
            "processor\t: 1\nmodel name\t: Another\n",
            "A CPU (AVX2, AVX-512, VNNI)",
        ),
        ("model name : A CPU\nflags : fma sse\n", "A CPU"),
        ("Features\t: fp asimd asimddp\n", "(dot product)"),
        (None, ""),
    ],
)
def test_a_processor_is_known_by_its_name_and_its_vectors(info, wanted, tmp_path):
    path = tmp_path / "cpuinfo"
    if info is not None:
        path.write_text(info)
    found = cpu_model(path)
    assert found.endswith(wanted) and found.strip()
    assert "Another" not in found
