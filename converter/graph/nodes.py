"""Convolutions written as ONNX nodes, and read from them, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from converter.decomposition.conv import PADDING_MODES, Chain, Conv
from converter.decomposition.taps import swap_in_out
from converter.errors import ConverterError

CONVOLUTIONS, PRODUCTS = ("Conv", "ConvTranspose"), ("Gemm", "MatMul")
LINEAR = (*CONVOLUTIONS, *PRODUCTS)
ONNX_PAD_MODES = dict(zip(PADDING_MODES, ("constant", "reflect", "edge", "wrap")))

Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Node:
    """One node with one output, which has the name of the node."""

    op: str
    name: str
    inputs: tuple[str, ...]
    attributes: Attributes


@dataclass(frozen=True)
class GraphFragment:
    """Nodes in order, the last of which computes the result, and their weights by name."""

    nodes: list[Node]
    weights: dict[str, np.ndarray]

    def add(
        self,
        op: str,
        name: str,
        source: str,
        weights: Mapping[str, np.ndarray | None],
        attributes: Attributes | None = None,
    ) -> str:
        """Append a node with the inputs ``source`` and ``weights``; return its output's name."""
        named = {f"{name}.{key}": w for key, w in weights.items() if w is not None}
        self.weights.update(named)
        self.nodes.append(Node(op, name, (source, *named), attributes or {}))
        return name


def chain_nodes(chain: Chain, source: str, prefix: str, matrix: bool = False) -> GraphFragment:
    """Write a chain as nodes.

    A chain over one axis runs on images of height 1, because the fast layout of onnxruntime is 2-D
    only. A depthwise step with several outputs per input becomes several nodes and a Concat.

    Args:
        chain: The chain.
        source: Name of its input.
        prefix: Prefix of all names.
        matrix: Whether ``source`` is known to have two axes. A linear step with a bias is then a
            Gemm, else a MatMul and an Add.
    """
    fragment = GraphFragment([], {})
    axes = len(chain.steps[0].k)
    if axes == 0:
        for number, step in enumerate(chain.steps):
            source = _add_product(fragment, source, step, f"{prefix}.{number}", matrix)
    elif axes == 1:
        shape = np.array([0, 0, 1, -1], np.int64)
        source = fragment.add("Reshape", f"{prefix}.unsqueezed", source, {"shape": shape})
        source = _add_chain(fragment, _unsqueeze(chain), source, prefix)
        shape = np.array([0, 0, -1], np.int64)
        fragment.add("Reshape", f"{prefix}.squeezed", source, {"shape": shape})
    else:
        _add_chain(fragment, chain, source, prefix)
    return fragment


def product_nodes(step: Conv, source: str, name: str) -> GraphFragment:
    """Write a linear layer as a MatMul, and an Add if it has a bias."""
    fragment = GraphFragment([], {})
    _add_product(fragment, source, step, name, matrix=False)
    return fragment


def read_conv(
    op: str,
    attributes: Attributes,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    size: Sequence[int],
) -> Conv:
    """Read a Conv or ConvTranspose node.

    Args:
        op: ``Conv`` or ``ConvTranspose``.
        attributes: Attributes of the node.
        kernel: Kernel as the node stores it.
        bias: (O,) or None.
        size: Spatial size of its input, for ``auto_pad``.

    Raises:
        ConverterError: When the attributes contradict each other.
    """
    axes = kernel.ndim - 2

    def ints(name: str, default: Sequence[int]) -> tuple[int, ...]:
        value = attributes.get(name)
        return tuple(map(int, value)) if isinstance(value, Sequence) else tuple(default)

    stride = ints("strides", [1] * axes)
    dilation = ints("dilations", [1] * axes)
    pads = ints("pads", [0] * 2 * axes)
    padding = tuple(zip(pads[:axes], pads[axes:]))
    auto_pad = attributes.get("auto_pad", "NOTSET")
    if auto_pad == "VALID":
        padding = ((0, 0),) * axes
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        padding = tuple(
            _halves((math.ceil(n / s) - 1) * s + d * (k - 1) + 1 - n, auto_pad == "SAME_UPPER")
            for n, k, s, d in zip(size, kernel.shape[2:], stride, dilation)
        )
    group = attributes.get("group")
    groups = group if isinstance(group, int) and group else 1
    transposed = op == "ConvTranspose"
    output_padding = ints("output_padding", [0] * axes)
    if transposed and (auto_pad.startswith("SAME") or "output_shape" in attributes):
        out_size = ints("output_shape", [n * s for n, s in zip(size, stride)])
        padding = tuple(
            _halves((n - 1) * s + d * (k - 1) + 1 + e - o, upper=auto_pad == "SAME_UPPER")
            for o, n, k, s, d, e in zip(
                out_size[-axes:], size, kernel.shape[2:], stride, dilation, output_padding
            )
        )
    return Conv(
        kernel=swap_in_out(kernel, groups) if transposed else kernel,
        bias=bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        transposed=transposed,
        output_padding=ints("output_padding", ()) if transposed else (),
    )


def read_linear(attributes: Attributes, weight: np.ndarray, bias: np.ndarray | None) -> Conv:
    """Read a Gemm or MatMul node as a convolution over no axes.

    Args:
        attributes: Attributes of the node.
        weight: Weight as the node stores it.
        bias: Bias, or None.

    Raises:
        ConverterError: When the node computes more than a product and a bias per output.
    """
    if weight.ndim != 2:
        raise ConverterError("its weight is not a constant matrix")
    if attributes.get("transA", 0):
        raise ConverterError("its input is transposed (transA)")
    if any(attributes.get(name, 1.0) != 1 for name in ("alpha", "beta")):
        raise ConverterError("its product or bias is scaled (alpha, beta)")
    kernel = weight if attributes.get("transB", 0) else weight.T
    if bias is not None:
        if bias.size not in (1, len(kernel)) or bias.size != (bias.shape or (1,))[-1]:
            raise ConverterError("its bias is not one number per output")
        bias = np.broadcast_to(bias.reshape(-1), len(kernel))
    return Conv(kernel, bias, (), (), ())


def _halves(total: int, upper: bool) -> tuple[int, int]:
    """Split padding into (begin, end); an odd pixel is at the end for SAME_UPPER, else first."""
    small, large = max(total, 0) // 2, max(total, 0) - max(total, 0) // 2
    return (small, large) if upper else (large, small)


def _add_product(fragment: GraphFragment, source: str, step: Conv, name: str, matrix: bool) -> str:
    if matrix and step.bias is not None:
        return fragment.add("Gemm", name, source, {"weight": step.kernel.T, "bias": step.bias})
    product = name if step.bias is None else f"{name}.product"
    fragment.add("MatMul", product, source, {"weight": step.kernel.T})
    if step.bias is None:
        return product
    return fragment.add("Add", name, product, {"bias": step.bias})


def _unsqueeze(chain: Chain) -> Chain:
    """Return a chain over one axis as a chain over two, the first of size 1."""
    return Chain(
        tuple(
            replace(
                step,
                kernel=step.kernel[:, :, None],
                stride=(1, *step.stride),
                padding=((0, 0), *step.padding),
                dilation=(1, *step.dilation),
                output_padding=(0, *step.output_padding) if step.output_padding else (),
            )
            for step in chain.steps
        )
    )


def _add_chain(fragment: GraphFragment, chain: Chain, source: str, prefix: str) -> str:
    interleaved = 1  # outputs per input channel of the depthwise step that a Concat has joined
    for number, step in enumerate(chain.steps):
        name = f"{prefix}.{number}"
        if step.padding_mode != "zeros" and any(map(sum, step.padding)):
            source = _add_pad(fragment, source, step, name)
        kernel = step.kernel
        if interleaved > 1:
            kernel = _by_copy(kernel.swapaxes(0, 1), interleaved).swapaxes(0, 1)
        multiplier = step.O // step.I if step.depthwise else 1
        next_groups = chain.steps[number + 1].groups if number + 1 < len(chain.steps) else 0
        if multiplier > 1 and next_groups == 1:
            parts = np.split(_by_copy(kernel, multiplier), multiplier)
            copies = [
                _add_conv(fragment, source, step, part, f"{name}.{n}")
                for n, part in enumerate(parts)
            ]
            fragment.nodes.append(Node("Concat", f"{name}.concat", tuple(copies), {"axis": 1}))
            source, interleaved = f"{name}.concat", multiplier
        else:
            source, interleaved = _add_conv(fragment, source, step, kernel, name), 1
    return source


def _by_copy(kernel: np.ndarray, copies: int) -> np.ndarray:
    """Reorder channels on axis 0 from (channel, copy) to (copy, channel)."""
    split = kernel.reshape(-1, copies, *kernel.shape[1:])
    return np.ascontiguousarray(split.swapaxes(0, 1)).reshape(kernel.shape)


def _add_conv(
    fragment: GraphFragment, source: str, step: Conv, kernel: np.ndarray, name: str
) -> str:
    if step.transposed:
        kernel = swap_in_out(kernel, step.groups)
    padding = step.padding if step.padding_mode == "zeros" else ((0, 0),) * len(step.k)
    attributes: dict[str, Any] = {
        "kernel_shape": list(step.k),
        "strides": list(step.stride),
        "pads": [p[0] for p in padding] + [p[1] for p in padding],
        "dilations": list(step.dilation),
        "group": step.groups,
    }
    if any(step.output_padding):
        attributes["output_padding"] = list(step.output_padding)
    kind = "ConvTranspose" if step.transposed else "Conv"
    return fragment.add(kind, name, source, {"weight": kernel, "bias": step.bias}, attributes)


def _add_pad(fragment: GraphFragment, source: str, step: Conv, name: str) -> str:
    pads = np.array(
        [0, 0, *(p[0] for p in step.padding), 0, 0, *(p[1] for p in step.padding)], np.int64
    )
    mode = {"mode": ONNX_PAD_MODES[step.padding_mode]}
    return fragment.add("Pad", f"{name}.pad", source, {"pads": pads}, mode)
