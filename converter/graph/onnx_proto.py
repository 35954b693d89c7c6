"""ONNX files where no ONNX library is: the few messages of the format that surgery needs.

The messages are declared for protobuf, which onnxruntime brings along; what is not declared here is
kept as it is (field numbers: onnx.proto3 of github.com/onnx/onnx).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from converter.errors import ConverterError
from converter.graph.nodes import Attributes, GraphFragment, Node

# Message: (field, number, type), repeated where the type begins with *.
FIELDS: dict[str, list[tuple[str, int, str]]] = {
    "ModelProto": [
        ("ir_version", 1, "int64"),
        ("graph", 7, "GraphProto"),
        ("opset_import", 8, "*OperatorSetIdProto"),
        ("functions", 25, "*FunctionProto"),
    ],
    "FunctionProto": [],
    "OperatorSetIdProto": [("domain", 1, "string"), ("version", 2, "int64")],
    "GraphProto": [
        ("node", 1, "*NodeProto"),
        ("name", 2, "string"),
        ("initializer", 5, "*TensorProto"),
        ("input", 11, "*ValueInfoProto"),
        ("output", 12, "*ValueInfoProto"),
        ("value_info", 13, "*ValueInfoProto"),
    ],
    "NodeProto": [
        ("input", 1, "*string"),
        ("output", 2, "*string"),
        ("name", 3, "string"),
        ("op_type", 4, "string"),
        ("attribute", 5, "*AttributeProto"),
        ("doc_string", 6, "string"),
        ("domain", 7, "string"),
        ("metadata_props", 9, "*StringStringEntryProto"),
    ],
    "StringStringEntryProto": [("key", 1, "string"), ("value", 2, "string")],
    "AttributeProto": [
        ("name", 1, "string"),
        ("f", 2, "float"),
        ("i", 3, "int64"),
        ("s", 4, "bytes"),
        ("t", 5, "TensorProto"),
        ("g", 6, "GraphProto"),
        ("ints", 8, "*int64"),
        ("graphs", 11, "*GraphProto"),
        ("type", 20, "int32"),
    ],
    "TensorProto": [
        ("dims", 1, "*int64"),
        ("data_type", 2, "int32"),
        ("float_data", 4, "*float"),
        ("int32_data", 5, "*int32"),
        ("name", 8, "string"),
        ("raw_data", 9, "bytes"),
        ("double_data", 10, "*double"),
        ("data_location", 14, "int32"),
    ],
    "ValueInfoProto": [("name", 1, "string"), ("type", 2, "TypeProto")],
    "TypeProto": [("tensor_type", 1, "TypeProtoTensor")],
    "TypeProtoTensor": [("elem_type", 1, "int32"), ("shape", 2, "TensorShapeProto")],
    "TensorShapeProto": [("dim", 1, "*Dimension")],
    "Dimension": [("dim_value", 1, "int64"), ("dim_param", 2, "string")],
}
TYPES = {
    1: np.float32,
    10: np.float16,
    11: np.float64,
    7: np.int64,
    6: np.int32,
    2: np.uint8,
    3: np.int8,
    9: np.bool_,
}
FLOATS = (1, 10, 11)
NUMBERS = {np.dtype(kind): number for number, kind in TYPES.items()}
FLOAT, INT, STRING, INTS = 1, 2, 3, 7  # AttributeProto.type
EXTERNAL = 1  # TensorProto.data_location

Message = Any


def _messages() -> dict[str, Any]:
    """Declare the messages in a pool of their own, beside those of any ONNX library."""
    field = descriptor_pb2.FieldDescriptorProto
    kinds = {
        name: getattr(field, f"TYPE_{name.upper()}")
        for name in ("int64", "int32", "float", "double", "string", "bytes")
    }
    file = descriptor_pb2.FileDescriptorProto(name="light.proto", package="light", syntax="proto2")
    for message, fields in FIELDS.items():
        declared = file.message_type.add(name=message)
        for name, number, kind in fields:
            label = field.LABEL_REPEATED if kind.startswith("*") else field.LABEL_OPTIONAL
            kind = kind.lstrip("*")
            if kind in kinds:
                declared.field.add(name=name, number=number, label=label, type=kinds[kind])
            else:
                of = f".light.{kind}"
                declared.field.add(
                    name=name, number=number, label=label, type=field.TYPE_MESSAGE, type_name=of
                )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"light.{name}"))
        for name in FIELDS
    }


MESSAGES = _messages()


def parse(content: bytes, name: str, folder: Path | None = None) -> Message:
    """Read a network.

    Args:
        content: An ONNX file.
        name: Of the file.
        folder: Of the files that hold its weights, or None.

    Raises:
        ConverterError: When ``content`` is no ONNX file, or keeps its weights elsewhere.
    """
    model = MESSAGES["ModelProto"]()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise ConverterError(f"{name} is not a valid ONNX file.") from None
    if not model.graph.output:
        raise ConverterError(f"{name} is not a valid ONNX file: its graph has no outputs.")
    if folder is None and any(t.data_location == EXTERNAL for t in model.graph.initializer):
        raise ConverterError(f"{name} keeps its weights in another file; save it as one file.")
    return model


def attributes(node: Message) -> dict[str, Any]:
    """Give a node's numbers, strings and lists of integers."""
    found: dict[str, Any] = {}
    for item in node.attribute:
        if item.type in (FLOAT, INT, STRING, INTS):
            name = {FLOAT: "f", INT: "i", STRING: "s", INTS: "ints"}[item.type]
            value = getattr(item, name)
            found[item.name] = (
                value.decode() if name == "s" else list(value) if name == "ints" else value
            )
    return found


def skeleton(model: Message) -> bytes:
    """Serialize a network without its weights: the same bytes, the same times.

    What exporters note on nodes, such as the paths of the files they came from, is left out, too.
    """
    copy = MESSAGES["ModelProto"]()
    copy.CopyFrom(model)
    for tensor in weights(copy).values():
        for field in ("raw_data", "float_data", "double_data", "int32_data"):
            tensor.ClearField(field)
    for node in copy.graph.node:
        for field in ("doc_string", "metadata_props"):
            node.ClearField(field)
    return bytes(copy.SerializeToString(deterministic=True))


def weights(model: Message) -> dict[str, Message]:
    """Tensors by name: initializers, and what Constant nodes hold."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return found


def inputs(model: Message) -> dict[str, tuple[tuple[int | None, ...], np.dtype]]:
    """Shape (None where a size is free) and type of each input that a caller must feed."""
    given = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        if value.name not in given:
            dims = (d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
            found[value.name] = (tuple(dims), np.dtype(TYPES.get(tensor.elem_type, np.int32)))
    return found


def replaced(
    model: Message, pieces: Mapping[str, GraphFragment], names: Mapping[str, str]
) -> bytes:
    """Serialize a network with nodes replaced.

    Args:
        model: Left as it is.
        pieces: By the name of the replaced node's first output, which the last node of the piece
            gives from now on.
        names: New names of nodes that stay, by the same.
    """
    graph = model.graph
    nodes, added = [], []
    for node in graph.node:
        output = node.output[0] if node.output else ""
        if output not in pieces:
            nodes.append(node)
            continue
        piece = pieces[output]
        nodes += [_node(item, item.name) for item in piece.nodes[:-1]]
        nodes.append(_node(piece.nodes[-1], output))
        added += [_tensor(name, array) for name, array in piece.weights.items()]
    used = {name for node in nodes for name in _taken(node)}
    used |= {value.name for value in graph.output}
    given = {tensor.name for tensor in graph.initializer}
    copy = MESSAGES["ModelProto"](ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    copy.graph.name = graph.name
    copy.graph.node.extend(nodes)
    for node in copy.graph.node:
        if node.output and node.output[0] in names:
            node.name = names[node.output[0]]
    copy.graph.initializer.extend([t for t in graph.initializer if t.name in used])
    copy.graph.initializer.extend(added)
    copy.graph.input.extend(v for v in graph.input if v.name in used or v.name not in given)
    copy.graph.output.extend(graph.output)
    return bytes(copy.SerializeToString())


def _taken(node: Message) -> Iterable[str]:
    yield from node.input
    for item in node.attribute:
        for graph in (item.g, *item.graphs):
            for inner in graph.node:
                yield from _taken(inner)


def _node(item: Node, output: str) -> Message:
    node = MESSAGES["NodeProto"](op_type=item.op, name=item.name)
    node.input.extend(item.inputs)
    node.output.append(output)
    _set(node, item.attributes)
    return node


def _set(node: Message, values: Attributes) -> None:
    for name, value in values.items():
        if isinstance(value, int):
            node.attribute.add(name=name, i=value, type=INT)
        elif isinstance(value, str):
            node.attribute.add(name=name, s=value.encode(), type=STRING)
        else:
            node.attribute.add(name=name, type=INTS).ints.extend(value)


def _tensor(name: str, array: np.ndarray) -> Message:
    tensor = MESSAGES["TensorProto"](name=name, data_type=NUMBERS[array.dtype])
    tensor.dims.extend(array.shape)
    tensor.raw_data = array.tobytes()
    return tensor
