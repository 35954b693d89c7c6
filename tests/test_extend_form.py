"""A form of one's own: once registered it is timed, searched, built and reported as any other."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from conv_cases import compute, difference, input_for, make_conv
from networks import from_text, make_net, noise, table_by_macs

from converter.decomposition import api
from converter.decomposition.approximation import error_curve, relative_error
from converter.decomposition.decompose import decompose
from converter.decomposition.form import Form
from converter.decomposition.forms import FORMS, find_form, register
from converter.decomposition.ranks import rank_grid
from converter.errors import ConverterError
from converter.graph.network import load, open_session
from converter.graph.rewrite import rewrite
from converter.graph.survey import survey
from converter.processes import Resources
from converter.reconstruction.solve import MAX_SERIAL_LAYERS, solve_layers
from converter.search.candidates import list_candidates
from converter.timing.latency import TimedCandidate


def solve(problem, rank, settings):
    """Reduce the input channels to their R principal directions, and convolve those."""
    _, I, *k = problem.target.shape
    unfolded = np.moveaxis(problem.target, 1, 0).reshape(I, -1)
    basis = np.linalg.svd(unfolded, full_matrices=False)[0][:, : rank[0]]  # (I, R)
    core = np.tensordot(problem.target, basis, (1, 0))  # (O, *k, R)
    return [(basis.T.reshape(-1, I, *[1] * len(k)), 1), (np.moveaxis(core, -1, 1), 1)]


NARROW_INPUT = Form(
    name="narrow_input",
    solve=solve,
    shapes=lambda s, r: [((r[0], s[1], *[1] * len(s[2:])), 1), ((s[0], r[0], *s[2:]), 1)],
    max_rank=lambda s: (min(s[1], s[0] * int(np.prod(s[2:]))),),
)


@pytest.fixture(autouse=True)
def registered():
    register(NARROW_INPUT)
    yield
    del FORMS["narrow_input"]


def test_it_is_timed_in_blocks():
    ranks = [
        rank
        for name, rank in rank_grid(make_conv((64, 64, 3, 3)), (16, 16), 16)
        if name == "narrow_input"
    ]
    assert ranks == [(16,), (32,)]


@pytest.mark.parametrize("groups", [1, 2])
def test_it_is_exact_at_full_rank_and_its_error_falls(groups):
    conv = make_conv((8, 6, 3, 3), groups=groups, stride=(2, 1), padding=((1, 0), (1, 2)))
    ranks = [(groups * r,) for r in (2, 4, 6)]
    errors = [relative_error(conv, decompose(conv, NARROW_INPUT, rank)) for rank in ranks]
    assert 1 > errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-9
    x = input_for(conv)
    exact = decompose(conv, NARROW_INPUT, ranks[2])
    assert difference(compute(exact.steps, x), compute([conv], x)) < 1e-5


def test_its_errors_are_estimated_by_solving_a_few_ranks():
    conv = make_conv((24, 24, 3, 3))
    ranks = [(4,), (8,), (12,), (16,)]
    curve = error_curve(conv, NARROW_INPUT, ranks)
    solved = [relative_error(conv, decompose(conv, NARROW_INPUT, rank)) for rank in ranks]
    assert np.allclose(curve, solved, rtol=0.15)


def test_the_public_function_and_refitting_take_it():
    conv = make_conv((8, 6, 3, 3))
    found = api.decompose(conv.kernel, "narrow_input", 4, metric=np.eye(54))
    assert [step.k for step in found.chain.steps] == [(1, 1), (3, 3)]
    assert 0 < found.rel_error < 1


def test_a_network_is_rewritten_with_it():
    graph = "g (float[2, 8, 9, 9] x) => (float[2, 6, 7, 7] y) { y = Conv (x, w) }"
    model = ir.from_proto(from_text(graph, w=noise(6, 8, 3, 3)))
    (layer,) = survey(model, {"x": noise(2, 8, 9, 9)})
    chain = decompose(layer.conv, find_form("narrow_input"), (8,))
    rewritten = rewrite(model, {"y": (layer.name, chain)})
    assert sum(node.op_type == "Conv" for node in rewritten.graph) == 2
    x = noise(2, 8, 9, 9)
    before, after = (open_session(m).run(None, {"x": x})[0] for m in (model, rewritten))
    assert difference(after, before) < 1e-5


def test_other_processes_solve_it_where_it_is_not_registered(tmp_path):
    make_net(tmp_path / "net.onnx", channels=(3, *[16] * 6))
    model = load(tmp_path / "net.onnx")
    layers = survey(model, {"x": noise(1, 3, 8, 8)})[1:6]
    table = table_by_macs(tmp_path / "net.onnx", (1, 3, 8, 8), ["narrow_input"])
    table = replace(
        table,
        layers=tuple(
            replace(times, options=(TimedCandidate("narrow_input", (4,), 1e-3),))
            for times in table.layers[1:6]
        ),
    )
    candidates = list_candidates(layers, table, {}, Resources())
    chosen = {layer.name: (NARROW_INPUT, (4,)) for layer in layers}
    assert len(chosen) > MAX_SERIAL_LAYERS
    chains = solve_layers(layers, chosen, {})
    for layer in layers:
        kept, narrow = candidates[layer.name]
        assert (kept.form, narrow.form, narrow.rank) == (None, "narrow_input", (4,))
        error = relative_error(layer.conv, chains[layer.name])
        assert narrow.rel_error == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("solver", ["tensorly", "tensorly+refine"])
def test_a_form_that_tensorly_cannot_solve_is_refused(solver):
    with pytest.raises(ConverterError, match=r"tensorly cannot .* narrow_input; use solver flat"):
        api.decompose(np.ones((8, 6, 3, 3)), "narrow_input", 2, solver=solver)
