"""The order of the modules: each imports only from those before it."""

import ast
from pathlib import Path

import pytest

import converter

ROOT = Path(converter.__file__).parent
ORDER = """
errors place config images data readers
kernels.taps kernels.conv kernels.metric
kernels.solve.svd kernels.solve.varpro kernels.solve.cp kernels.solve.tucker kernels.solve.twice
kernels.form kernels.factor kernels.forms
networks.nodes networks.runtime networks.light networks.onnx_network networks.quantize
networks.even
networks.normal_form networks.outputs networks.onnx_rewrite networks.segments networks.survey
networks.surroundings networks.checkpoint
networks.torch_modules networks.torch_export networks.torch_network networks.torch_import
networks.source
planning.ladder planning.latency planning.sites planning.profile planning.calibrate planning.measure
planning.candidates planning.plan planning.cache planning.spread planning.solve planning.timing
planning.options planning.judge planning.sensitivity planning.knapsack
tuning.lesson tuning.rounding tuning.batches tuning.state tuning.descent tuning.tune
delivery.check delivery.seen delivery.correct delivery.compare delivery.build delivery.report
delivery.tables delivery.page delivery.result delivery.search delivery.menus delivery.budget
delivery.states delivery.teach delivery.int8 delivery.prove delivery.schedule
pipeline commands target cli __main__
""".split()


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("converter"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            for name in names:
                parts = name.removeprefix("converter.").split(".")
                found = [m for m in ORDER if parts[: len(m.split("."))] == m.split(".")]
                assert found, f"{path.name} imports {name}, which ORDER does not list"
                yield max(found, key=len)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_those_before_it(module):
    path = ROOT / (module.replace(".", "/") + ".py")
    before = ORDER[: ORDER.index(module)]
    assert set(imported(path)) <= set(before)


def test_every_module_has_its_place():
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in ROOT.rglob("*.py")
        if path.name != "__init__.py"
    }
    assert modules == set(ORDER)


def test_every_public_name_is_there():
    assert all(hasattr(converter, name) for name in converter.__all__)
