"""Models without what is around them, or hooked into them, only for training."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.optim.swa_utils import AveragedModel

from converter.errors import ConverterError, root_line

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside of DataParallel, torch.compile, AveragedModel and the like."""
    while True:
        if isinstance(model, WRAPPERS):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner  # of torch.compile
        else:
            return model


def copied(model: nn.Module) -> nn.Module:
    """Copy a model deeply.

    Raises:
        ConverterError: When torch cannot copy it.
    """
    # Tensors that hooks compute, such as pruned weights, cannot be copied as they are.
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    try:
        return copy.deepcopy(model, dict[int, object](computed))
    except Exception as error:  # modules may raise anything
        raise ConverterError(f"The model cannot be copied: {root_line(error)}") from None


def fold_hooks(model: nn.Module) -> nn.Module:
    """Make pruned, normalised and parametrized weights of a model plain, in place.

    Masks, weight normalisation and spectral normalisation compute a weight in every call. The
    model computes the same in evaluation mode without them.

    Returns:
        The model.
    """
    model.eval()
    for module in model.modules():
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
            elif isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
        if parametrize.is_parametrized(module):
            assert isinstance(module.parametrizations, nn.ModuleDict)
            _take_own_class(module)
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return model


def _take_own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own: copies share one, of which torch deletes."""
    shared = type(module)
    own = {n: v for n, v in vars(shared).items() if n not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, own)


def has_lazy_weights(model: nn.Module) -> bool:
    """Tell whether a model has weights whose shapes its first inputs decide."""
    return any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers()))
