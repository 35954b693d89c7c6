"""Graphs as text with what is expected of them, and their conversion at full rank."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from conv_cases import EXACT_FORMS, at_full_rank, difference
from networks import noise

from converter.decomposition.form import refusal
from converter.decomposition.forms import FORMS
from converter.evaluation.check import check_graph
from converter.graph.canonicalize import canonicalize
from converter.graph.network import inputs
from converter.graph.rewrite import rewrite
from converter.graph.survey import survey

IMAGE = "float[N, 4, 9, 8] x"
RESULT = "float[N, C, P, Q] y"
KERNEL = {"w": (6, 4, 3, 3), "b": (6,)}
SQUARE = {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3)}
NORM = {"gain": (6,), "shift": (6,), "mean": (6,), "var": (6,)}
LINEAR = {"w": (8, 6), "b": (6,)}
INT8 = np.random.default_rng(5).integers(-99, 99, (6, 4, 3, 3)).astype(np.int8)
SCALE = {"scale": np.array(0.02, np.float32), "zero": np.array(3, np.int8)}


@dataclass(frozen=True)
class Graph:
    """A graph and what is expected of it.

    Attributes:
        name: Of the case.
        text: Its nodes, or the whole graph where that begins with its name.
        weights: Shapes of its initializers; variances are positive.
        feeds: Shapes of its inputs.
        layers: How many layers can be converted.
        reason: Part of the sentence why another is kept.
        kinds: Operators of its normal form, where that is what the case is about.
        opset: Operator set.
        functions: Model-local functions, as text.
        given: Initializers with these values.
    """

    name: str
    text: str
    weights: dict = field(default_factory=lambda: KERNEL)
    feeds: dict = field(default_factory=lambda: {"x": (2, 4, 9, 8)})
    layers: int = 1
    reason: str = ""
    kinds: str = ""
    opset: int = 19
    functions: str = ""
    given: dict = field(default_factory=dict)

    def model(self):
        text = self.text
        if not text.startswith("g ("):
            text = f"g ({IMAGE}) => ({RESULT}) {{ {text} }}"
        header = f'<ir_version: 8, opset_import: ["" : {self.opset}, "own" : 1]>\n'
        proto = onnx.parser.parse_model(header + text + self.functions)
        arrays = {
            name: noise(*shape, seed=n) for n, (name, shape) in enumerate(self.weights.items())
        }
        arrays |= {"var": np.abs(arrays["var"]) + 0.5} if "var" in arrays else {}
        proto.graph.initializer.extend(
            onnx.numpy_helper.from_array(array, name)
            for name, array in (arrays | self.given).items()
        )
        return ir.from_proto(proto)

    def inputs(self, model):
        kinds = {value.name: value.dtype.numpy() for value in model.graph.inputs}
        return {n: noise(*shape, seed=9).astype(kinds[n]) for n, shape in self.feeds.items()}


def rows(name, nodes, weights=LINEAR, **more):
    """A graph from rows of 8 numbers to rows."""
    text = f"g (float[N, 8] x) => (float[N, M] y) {{ {nodes} }}"
    return Graph(name, text, weights, {"x": (3, 8)}, **more)


def computed(model, feeds):
    content = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds)))


def at_full(layer):
    """The chain that loses nothing, of the first form that takes the layer."""
    name = next(n for n in EXACT_FORMS if refusal(FORMS[n], layer.conv) is None)
    return at_full_rank(layer.conv, name)


def assert_the_same(candidate, model, feeds, wanted):
    """Inputs, outputs and their values are those of the model."""
    actual = computed(candidate, feeds)
    assert list(actual) == list(wanted)
    for name, array in wanted.items():
        assert difference(actual[name], array) < 1e-4
    assert inputs(candidate) == inputs(model)
    shapes = [[str(v.shape) for v in m.graph.outputs if v.name == "y"] for m in (candidate, model)]
    assert shapes[0] == shapes[1]


def converted(graph):
    """Run a graph before and after conversion; give its normal form and the survey of that."""
    model = graph.model()
    feeds = graph.inputs(model)
    wanted = computed(model, feeds)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    read = canonicalize(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    layers = survey(read, feeds)
    free = [layer for layer in layers if layer.reason is None]
    result = rewrite(read, {layer.output: (layer.name, at_full(layer)) for layer in free})
    assert check_graph(result) is None
    for candidate in (read, result):
        assert_the_same(candidate, model, feeds, wanted)
    assert result.opset_imports[""] == graph.opset
    return read, layers


def assert_converted(graph):
    """Every layer is converted, and the normal form has the operators that the case names."""
    read, layers = converted(graph)
    assert [layer.reason for layer in layers] == [None] * graph.layers
    if graph.kinds:
        assert [n.op_type for n in read.graph if n.op_type != "Constant"] == graph.kinds.split()


def assert_kept(graph, words):
    """As many layers are converted as the case says; the reasons of the others have ``words``."""
    _, layers = converted(graph)
    kept = [layer.reason for layer in layers if layer.reason]
    assert len(layers) - len(kept) == graph.layers
    assert kept and all(words in reason for reason in kept)
