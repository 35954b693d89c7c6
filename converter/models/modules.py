"""Torch convolutions as ``Conv``, and chains as plain torch modules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from converter.decomposition.conv import Chain, Conv
from converter.decomposition.taps import swap_in_out

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
CONVERTED = (nn.Linear, *CONVOLUTIONS.values(), *TRANSPOSED.values())
PADS: dict[str, dict[int, type[nn.Module]]] = {
    "zeros": {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d},
    "reflect": {1: nn.ReflectionPad1d, 2: nn.ReflectionPad2d, 3: nn.ReflectionPad3d},
    "replicate": {1: nn.ReplicationPad1d, 2: nn.ReplicationPad2d, 3: nn.ReplicationPad3d},
    "circular": {1: nn.CircularPad1d, 2: nn.CircularPad2d, 3: nn.CircularPad3d},
}


def read_module(module: nn.Module) -> Conv:
    """Read a torch convolution or linear layer as a ``Conv``."""
    assert isinstance(module, CONVERTED)
    bias = None if module.bias is None else _to_numpy(module.bias)
    if isinstance(module, nn.Linear):
        return Conv(_to_numpy(module.weight), bias, (), (), ())
    transposed, kernel = type(module) in TRANSPOSED.values(), _to_numpy(module.weight)
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size)]
        padding = tuple((total // 2, total - total // 2) for total in totals)
    elif module.padding == "valid":
        padding = ((0, 0),) * len(module.kernel_size)
    else:
        padding = tuple((int(p), int(p)) for p in module.padding)
    return Conv(
        kernel=swap_in_out(kernel, module.groups) if transposed else kernel,
        bias=bias,
        stride=tuple(module.stride),
        padding=padding,
        dilation=tuple(module.dilation),
        padding_mode=module.padding_mode,
        groups=module.groups,
        transposed=transposed,
        output_padding=tuple(module.output_padding) if transposed else (),
    )


def write_module(module: nn.Module, kernel: np.ndarray, bias: np.ndarray | None) -> None:
    """Set the kernel (O, I/groups, *k) and the bias of a torch convolution or linear layer."""
    assert isinstance(module, CONVERTED)
    if type(module) in TRANSPOSED.values():
        kernel = swap_in_out(kernel, module.groups)
    module.weight = nn.Parameter(_to_torch(kernel))
    module.bias = None if bias is None else nn.Parameter(_to_torch(bias))


def to_modules(chain: Chain) -> nn.Sequential:
    """Write a chain as plain torch modules; asymmetric padding becomes a module in front."""
    modules: list[nn.Module] = []
    for step in chain.steps:
        if any(begin != end for begin, end in step.padding):
            assert not step.transposed  # torch pads them symmetrically, and so do chains of them
            flat = [p for pair in reversed(step.padding) for p in pair]  # last axis first
            modules.append(PADS[step.padding_mode][len(step.k)](tuple(flat)))
            step = replace(step, padding=((0, 0),) * len(step.k))
        module = _module(step)
        if step.bias is not None:
            module.bias = nn.Parameter(_to_torch(step.bias))
        modules.append(module)
    return nn.Sequential(*modules)


def _module(step: Conv) -> nn.Module:
    """Make the plain module of one step, whose padding is symmetric; its bias is not set."""
    kernel, bias = step.kernel, step.bias is not None
    if not step.k:
        module: nn.Module = nn.Linear(step.I, step.O, bias)
    else:
        options: dict[str, Any] = {"stride": step.stride, "dilation": step.dilation}
        if step.transposed:
            kinds, kernel = TRANSPOSED, swap_in_out(kernel, step.groups)
            options["output_padding"] = step.output_padding or 0
        else:
            kinds = CONVOLUTIONS
            padded = any(map(sum, step.padding))
            options["padding_mode"] = step.padding_mode if padded else "zeros"
        padding = tuple(begin for begin, _ in step.padding)
        module = kinds[len(step.k)](
            step.I, step.O, step.k, padding=padding, groups=step.groups, bias=bias, **options
        )
    module.weight = nn.Parameter(_to_torch(kernel))
    return module


def replace_module(root: nn.Module, name: str, chain: Chain, old: nn.Module) -> None:
    """Replace the module ``old`` by a chain, with the same device and mode."""
    weight = next(old.parameters())
    root.set_submodule(name, to_modules(chain).to(weight.device).train(old.training))


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Copy a tensor; bfloat16 becomes ml_dtypes' type of that name."""
    tensor = tensor.detach().cpu()
    readable = ir.tensor(tensor) if tensor.dtype == torch.bfloat16 else tensor
    return np.array(readable.numpy())


def _to_torch(array: np.ndarray) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.astype(np.float32)).to(torch.bfloat16)
    # With other strides of a 1x1 kernel, torch would return its output in another memory layout.
    return torch.from_numpy(np.array(array)).clone(memory_format=torch.contiguous_format)
