"""Layers of an exported graph matched with torch modules, and modules replaced by chains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from converter.decomposition.conv import Chain, assemble
from converter.decomposition.form import Form, Rank, skeleton
from converter.decomposition.taps import merge_groups
from converter.graph.survey import Layer
from converter.models.export import forward
from converter.models.modules import (
    CONVERTED,
    read_module,
    replace_module,
    to_modules,
    write_module,
)
from converter.models.wrappers import copied

# The ONNX network has the layer alone, whatever module it comes from.
AS_ONNX = "; give the network as ONNX to convert it"


def match(
    model: nn.Module, layers: Sequence[Layer], feeds: Mapping[str, np.ndarray]
) -> tuple[Layer, ...]:
    """Mark the layers that are not a plain module of ``model`` as kept, with the reason.

    Args:
        model: The torch model, in evaluation mode.
        layers: Layers of its exported graph.
        feeds: Inputs to run it on once, to count the calls of each module.
    """
    calls = _count_calls(model, feeds)
    layers = [_named(model, layer, calls) for layer in layers]
    users = Counter(layer.weight for layer in layers)
    return tuple(
        layer.skip(reason) if (reason := _mismatch(model, layer, calls, users)) else layer
        for layer in layers
    )


def apply(model: nn.Module, layers: Sequence[Layer], chains: Mapping[str, Chain]) -> nn.Module:
    """Return a copy of ``model`` with convolution modules replaced by chains.

    The exporter folds BatchNorm into the convolutions; the copy keeps it. A folded kernel is the
    module's kernel times a scale for each output channel. The chain is divided by this scale, and
    its steps are balanced. The change of the bias is divided, too, and added to the module's bias.

    Args:
        model: Left as it is.
        layers: Layers of its exported graph.
        chains: Chains for the exported kernels, by layer name.
    """
    result = copied(model)
    for layer in layers:
        if layer.name in chains:
            assert layer.conv is not None
            module = result.get_submodule(layer.name)
            own = read_module(module)
            scale = _channel_scale(own.kernel, layer.conv.kernel)
            inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)
            steps = chains[layer.name].scaled(inverse).balanced().steps
            chain = assemble(own, [(step.kernel, step.groups) for step in steps])
            shift = _bias(steps[-1].bias) - _bias(layer.conv.bias)
            if np.any(shift):
                bias = _bias(own.bias) + shift * inverse
                chain = chain.with_bias(np.asarray(bias, own.kernel.dtype))
            replace_module(result, layer.name, chain, module)
    return result


def dense(model: nn.Module, converted: nn.Module, names: Container[str]) -> nn.Module:
    """Return a copy of ``model`` with the weights of ``converted``, chains as dense kernels.

    Args:
        model: The original.
        converted: A copy of it with chains, whose weights may have been trained.
        names: Names of the modules that are chains in ``converted``.
    """
    result = copied(model)
    trained = dict(converted.state_dict())
    result.load_state_dict(
        {name: trained.get(name, tensor) for name, tensor in result.state_dict().items()}
    )
    for name, module in result.named_modules():
        if name in names:
            parts = converted.get_submodule(name).children()
            steps = [read_module(part) for part in parts if type(part) in CONVERTED]
            conv, target = Chain(tuple(steps)).dense(), read_module(module)
            kernel = merge_groups(conv.kernel, conv.groups, target.groups).reshape(
                target.kernel.shape
            )
            write_module(module, kernel.astype(target.kernel.dtype), steps[-1].bias)
    return result


def rebuild(
    model: nn.Module, shapes: Mapping[str, tuple[Form, Rank]], weights: Container[str]
) -> nn.Module:
    """Return a copy of ``model`` with modules replaced by chains of zeros.

    Args:
        model: Left as it is.
        shapes: Form and rank of the chains by module name.
        weights: Names of the tensors of the copy, which show the layers that have a bias.
    """
    result = copied(model)
    for name, (form, rank) in shapes.items():
        module = result.get_submodule(name)
        own = read_module(module)
        chain = skeleton(own, form, rank)
        if f"{name}.{len(to_modules(chain)) - 1}.bias" in weights:
            chain = chain.with_bias(np.zeros(own.O, own.kernel.dtype))
        replace_module(result, name, chain, module)
    for name, module in result.named_modules():
        if type(module) in CONVERTED and module.bias is None and f"{name}.bias" in weights:
            own = read_module(module)
            write_module(module, own.kernel, np.zeros(own.O, own.kernel.dtype))
    return result


def _count_calls(model: nn.Module, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Run ``model`` and count the arguments that each convolution module is called with."""
    calls: dict[str, int] = {}
    copy = copied(model).eval()
    for name, module in copy.named_modules():
        if type(module) in CONVERTED:

            def count(_: object, args: Any, kwargs: Any, __: object, name: str = name) -> None:
                calls[name] = calls.get(name, 0) + len(args) + len(kwargs)

            module.register_forward_hook(count, with_kwargs=True)
    forward(copy, feeds)
    return calls


def _named(model: nn.Module, layer: Layer, calls: Mapping[str, int]) -> Layer:
    """Name a linear layer after its module: the exporter transposes and renames some weights."""
    if layer.conv is None or layer.conv.k or layer.weight.removesuffix(".weight") in calls:
        return layer
    owners = [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear
        and calls.get(name) == 1
        and np.array_equal(read_module(module).kernel, layer.conv.kernel)
    ]
    if len(owners) != 1:
        return layer
    return replace(layer, name=owners[0], weight=f"{owners[0]}.weight")


def _mismatch(
    model: nn.Module, layer: Layer, calls: Mapping[str, int], users: Mapping[str, int]
) -> str | None:
    """Return why a layer of the exported graph is not a plain module; None if it is."""
    if layer.conv is None:
        return layer.reason
    if users[layer.weight] > 1:
        return f"its weight is shared by {users[layer.weight]} layers"
    try:
        module = model.get_submodule(layer.weight.removesuffix(".weight"))
    except AttributeError:
        return f"it is no convolution module of the model, but called as a function{AS_ONNX}"
    if type(module) not in CONVERTED:
        return f"its module is a {type(module).__name__}, not a plain convolution{AS_ONNX}"
    if calls.get(layer.weight.removesuffix(".weight")) != 1:
        return f"its module is not called exactly once, with one input{AS_ONNX}"
    own = read_module(module).kernel
    if own.shape != layer.conv.kernel.shape:
        return "its module's kernel has another shape than the exported one"
    folded = layer.conv.kernel.astype(np.float64)
    scale = _channel_scale(own, folded).reshape(-1, *[1] * (own.ndim - 1))
    rounding = max(1e-4, 2 * float(np.finfo(own.dtype).eps))
    if np.linalg.norm(own * scale - folded) > rounding * np.linalg.norm(folded):
        return "its module's kernel is not the exported one up to a scale per output channel"
    return None


def _bias(bias: np.ndarray | None) -> np.ndarray | float:
    return 0.0 if bias is None else bias.astype(np.float64)


def _channel_scale(own: np.ndarray, folded: np.ndarray) -> np.ndarray:
    """Return the least-squares scale s (O,) with s own = folded."""
    a, b = (kernel.astype(np.float64).reshape(len(kernel), -1) for kernel in (own, folded))
    power = (a * a).sum(1)
    scale = np.divide((a * b).sum(1), power, out=np.zeros_like(power), where=power > 0)
    return np.asarray(scale)
