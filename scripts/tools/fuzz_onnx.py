"""Damaged and hostile ONNX files."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from scripts.tools.damage import NUMBERS, TEXTS, damaged_bytes

EXTERNAL = ("/etc/passwd", "../../../etc/passwd", "link", ".", "net.onnx", "")
OPERATORS = ("Conv", "MatMul", "Loop", "Custom", "Resize", "If", "")
DOMAINS = ("my.ops", "ai.onnx.ml", "com.microsoft", "\0")


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
        node = rng.choice(model.graph.node)
        kind = rng.randrange(16)
        if kind < 4:
            damage_weight(rng, rng.choice(model.graph.initializer), folder)
        elif kind < 10:
            damage_node(rng, node)
        else:
            damage_graph(rng, model, node)
    path.write_bytes(model.SerializeToString())
    return path


def damage_weight(rng: random.Random, weight: onnx.TensorProto, folder: Path) -> None:
    """Damage the shape, type or values of a weight, or store it in another file."""
    kind = rng.randrange(4)
    if kind == 0 and weight.dims:
        weight.dims[rng.randrange(len(weight.dims))] = rng.choice(NUMBERS)
    elif kind == 1:
        weight.data_type = rng.randrange(-1, 30)
    elif kind == 2:
        weight.raw_data = weight.raw_data[: rng.choice((0, 1, 7, 40))]
    else:
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        del weight.external_data[:]
        (folder / "link").unlink(missing_ok=True)
        (folder / "link").symlink_to("/etc/passwd")
        offset, length = (str(rng.choice(NUMBERS)) for _ in range(2))
        entries = {"location": rng.choice(EXTERNAL), "offset": offset, "length": length}
        for key, value in entries.items():
            if rng.random() < 0.8:
                weight.external_data.add(key=key, value=value)


def damage_node(rng: random.Random, node: onnx.NodeProto) -> None:
    """Damage an attribute, an input, an output, the operator, the domain or the name of a node."""
    kind = rng.randrange(6)
    if kind == 0 and node.attribute:
        attribute = rng.choice(node.attribute)
        attribute.i = rng.choice(NUMBERS)
        for index in range(len(attribute.ints)):
            attribute.ints[index] = rng.choice(NUMBERS)
    elif kind == 1 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(TEXTS)  # sometimes a cycle
    elif kind == 2 and node.output:
        node.output[0] = rng.choice(TEXTS)
    elif kind == 3:
        node.op_type = rng.choice(OPERATORS)
    elif kind == 4:
        node.domain = rng.choice(DOMAINS)
    else:
        node.name = rng.choice(TEXTS)


def damage_graph(rng: random.Random, model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Remove or repeat a node, damage a shape or a version, or add nested or endless functions."""
    kind, graph = rng.randrange(6), model.graph
    if kind == 0:
        graph.node.remove(node)
    elif kind == 1:
        graph.node.append(copy.deepcopy(node))
    elif kind == 2:
        shape = rng.choice((graph.input[0], graph.output[0])).type.tensor_type.shape
        if shape.dim:
            rng.choice(shape.dim).dim_value = rng.choice(NUMBERS)
    elif kind == 3:
        model.opset_import[0].version = rng.choice((*NUMBERS, 6, 7, 30))
    elif kind == 4:  # branches within branches
        inner = leaf = onnx.helper.make_graph([copy.deepcopy(node)], "leaf", [], graph.output)
        for _ in range(rng.choice((1, 3, 20))):
            branches = {"then_branch": inner, "else_branch": leaf}
            branch = onnx.helper.make_node("If", ["c"], ["y"], **branches)
            inner = onnx.helper.make_graph([branch], "inner", [], graph.output)
        graph.node.append(inner.node[0])
    else:  # a function that calls itself
        call = onnx.helper.make_node("F", ["p"], ["q"], domain="my.ops")
        opsets = [onnx.helper.make_opsetid("my.ops", 1)]
        function = onnx.helper.make_function("my.ops", "F", ["p"], ["q"], [call], opsets)
        model.functions.append(function)
        model.opset_import.append(opsets[0])
        node.op_type, node.domain = "F", "my.ops"
        del node.input[1:], node.attribute[:]
