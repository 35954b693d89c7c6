"""Damaged and hostile ONNX files."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import numpy_helper

from scripts.tools.damage import NUMBERS, TEXTS, damaged_bytes

# (random numbers, model, one of its nodes, one of its weights, folder) -> nothing; changes them
Damage: TypeAlias = Callable[
    [random.Random, onnx.ModelProto, onnx.NodeProto, onnx.TensorProto, Path], None
]
EXTERNAL = ("/etc/passwd", "../../../etc/passwd", "link", ".", "net.onnx", "")
OPERATORS = ("Conv", "MatMul", "Loop", "Custom", "Resize", "If", "")
DOMAINS = ("my.ops", "ai.onnx.ml", "com.microsoft", "\0")
DAMAGES: list[Damage] = []


def network() -> onnx.ModelProto:
    """Make a small ONNX network with most of the operators that are read."""
    graph = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w0)
        b = BatchNormalization (a, s, s, s, s)
        c = Relu (b)
        d = Conv <strides = [2, 2], group = 2> (c, w1, s)
        e = GlobalAveragePool (d)
        f = Flatten (e)
        y = Gemm <transB = 1> (f, w2)
    }"""
    model = onnx.parser.parse_model(graph)
    shapes = {"w0": (4, 3, 3, 3), "w1": (4, 2, 3, 3), "w2": (5, 4), "s": (4,)}
    for name, shape in shapes.items():
        array = np.ones(shape, np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def damaged_network(rng: random.Random, folder: Path) -> Path:
    """Write an ONNX file with damaged bytes, or with one to three damages of its contents."""
    model, path = network(), folder / "net.onnx"
    if rng.random() < 0.3:
        path.write_bytes(damaged_bytes(rng, model.SerializeToString()))
        return path
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not model.graph.node:
            break
        node, weight = rng.choice(model.graph.node), rng.choice(model.graph.initializer)
        rng.choice(DAMAGES)(rng, model, node, weight, folder)
    path.write_bytes(model.SerializeToString())
    return path


def damage(function: Damage) -> Damage:
    """Register a kind of damage."""
    DAMAGES.append(function)
    return function


@damage
def _weight(rng: random.Random, model: Any, node: Any, weight: Any, folder: Path) -> None:
    kind = rng.randrange(3)
    if kind == 0 and weight.dims:
        weight.dims[rng.randrange(len(weight.dims))] = rng.choice(NUMBERS)
    elif kind == 1:
        weight.data_type = rng.randrange(-1, 30)
    else:
        weight.raw_data = weight.raw_data[: rng.choice((0, 1, 7, 40))]


@damage
def _external_data(rng: random.Random, model: Any, node: Any, weight: Any, folder: Path) -> None:
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    del weight.external_data[:]
    (folder / "link").unlink(missing_ok=True)
    (folder / "link").symlink_to("/etc/passwd")
    entries = {
        "location": rng.choice(EXTERNAL),
        "offset": str(rng.choice(NUMBERS)),
        "length": str(rng.choice(NUMBERS)),
    }
    for key, value in entries.items():
        if rng.random() < 0.8:
            weight.external_data.add(key=key, value=value)


@damage
def _attribute(rng: random.Random, model: Any, node: Any, weight: Any, folder: Path) -> None:
    if node.attribute:
        attribute = rng.choice(node.attribute)
        attribute.i = rng.choice(NUMBERS)
        for index in range(len(attribute.ints)):
            attribute.ints[index] = rng.choice(NUMBERS)


@damage
def _edge(rng: random.Random, model: Any, node: Any, weight: Any, folder: Path) -> None:
    if rng.random() < 0.5 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(TEXTS)  # sometimes a cycle
    elif node.output:
        node.output[0] = rng.choice(TEXTS)


@damage
def _operator(rng: random.Random, model: Any, node: Any, weight: Any, folder: Path) -> None:
    if rng.random() < 0.5:
        node.op_type = rng.choice(OPERATORS)
    else:
        node.domain = rng.choice(DOMAINS)


@damage
def _nodes(rng: random.Random, model: Any, node: Any, weight: Any, folder: Path) -> None:
    if rng.random() < 0.5:
        del model.graph.node[rng.randrange(len(model.graph.node))]
    else:
        model.graph.node.append(copy.deepcopy(node))


@damage
def _shape(rng: random.Random, model: Any, node: Any, weight: Any, folder: Path) -> None:
    value = rng.choice((model.graph.input[0], model.graph.output[0]))
    if value.type.tensor_type.shape.dim:
        rng.choice(value.type.tensor_type.shape.dim).dim_value = rng.choice(NUMBERS)


@damage
def _opset(rng: random.Random, model: Any, node: Any, weight: Any, folder: Path) -> None:
    model.opset_import[0].version = rng.choice((*NUMBERS, 6, 7, 30))


@damage
def _names(rng: random.Random, model: Any, node: Any, weight: Any, folder: Path) -> None:
    node.name = rng.choice(TEXTS)
    weight.name = rng.choice(TEXTS)


@damage
def _nested(rng: random.Random, model: Any, node: Any, weight: Any, folder: Path) -> None:
    """Add branches within branches."""
    outputs = model.graph.output
    leaf = onnx.helper.make_graph([copy.deepcopy(node)], "leaf", [], outputs)
    inner = leaf
    for _ in range(rng.choice((1, 3, 20))):
        branches = {"then_branch": inner, "else_branch": leaf}
        branch = onnx.helper.make_node("If", ["c"], ["y"], **branches)
        inner = onnx.helper.make_graph([branch], "inner", [], outputs)
    model.graph.node.append(inner.node[0])


@damage
def _recursion(rng: random.Random, model: Any, node: Any, weight: Any, folder: Path) -> None:
    """Add a function that calls itself."""
    call = onnx.helper.make_node("F", ["p"], ["q"], domain="my.ops")
    opsets = [onnx.helper.make_opsetid("my.ops", 1)]
    function = onnx.helper.make_function("my.ops", "F", ["p"], ["q"], [call], opsets)
    model.functions.append(function)
    model.opset_import.append(opsets[0])
    node.op_type, node.domain = "F", "my.ops"
    del node.input[1:], node.attribute[:]
