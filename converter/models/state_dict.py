"""State dicts in the content of a checkpoint, and the one whose keys fit a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from converter.errors import ConverterError

State: TypeAlias = Mapping[str, torch.Tensor]

MAX_DEPTH = 4  # levels of a checkpoint below which nobody keeps weights
COMPILED = "_orig_mod."  # torch.compile puts this before the keys of what it wraps
# Counters that inference does not read: of BatchNorm (old checkpoints lack them), of averages, and
# of the profiler thop.
COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
AVERAGES = ("ema", "swa", "average", "averaged")  # parts of the names of averaged weights
ORIGINAL, MASK = "_orig", "_mask"  # ends of the keys that torch.nn.utils.prune writes


def list_states(content: Any) -> dict[str, State]:
    """List the state dicts in the content of a checkpoint.

    Args:
        content: Mappings and lists, nested up to ``MAX_DEPTH`` levels; modules are read, too.

    Returns:
        State dicts by the keys that lead to them, separated by dots; ``""`` for the outermost.
    """
    return dict(_walk(content, ()))


def _walk(content: Any, path: tuple[str, ...]) -> Iterator[tuple[str, State]]:
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if isinstance(content, list | tuple):
        content = {str(number): part for number, part in enumerate(content)}
        tensors = {}
    elif isinstance(content, Mapping):
        tensors = {str(n): value for n, value in content.items() if torch.is_tensor(value)}
    else:
        return
    if tensors:
        yield ".".join(path), tensors
    if len(path) < MAX_DEPTH:
        for name, part in content.items():
            if isinstance(name, str):  # numbers are the keys of optimizers
                yield from _walk(part, (*path, name))


def load_into(
    model: nn.Module, states: Mapping[str, State], path: Path, key: str = ""
) -> tuple[str, ...]:
    """Load the state dict that fits a model into it.

    Keys may have any prefix in front, and ``_orig_mod.`` anywhere. Counters, and parts that the
    model lacks completely, are left out. Of several state dicts that fit, averaged weights (EMA,
    SWA) are taken.

    Args:
        model: Changed only if the weights fit.
        states: What ``list_states`` gives.
        path: The file, for messages.
        key: Which state dict to take; the one that fits if empty.

    Returns:
        Sentences that the user should read.

    Raises:
        ConverterError: When no state dict fits, or its weights are not finite.
    """
    own = model.state_dict()
    if key and key not in states:
        raise ConverterError(f"Checkpoint {path} has no state dict {key!r}. {_listed(states)}")
    chosen = {key: states[key]} if key else states
    matches = [_match(own, name, state) for name, state in chosen.items()]
    fitting = [match for match in matches if not match.misfit]
    if not fitting:
        best = max(matches, key=lambda match: len(match.used))
        more = f" {_listed(states)}" if len(states) > 1 else ""
        raise ConverterError(f"Checkpoint {path} does not fit the model: {best.misfit}.{more}")
    match = max(fitting, key=lambda match: is_average(match.key))  # the first of equal ones
    _check_values(model, match.used, path)
    model.load_state_dict(match.used, strict=False)
    notes = []
    others = [other.key for other in fitting if other is not match]
    if others:
        notes.append(
            f"Checkpoint {path} holds several state dicts that fit: {match.key!r} was taken, not "
            f"{first_few(list(map(repr, others)))}; --state-key names another."
        )
    if match.ignored:
        notes.append(
            f"Checkpoint {path}: the model lacks {_keys(len(match.ignored))} of it, left out: "
            f"{first_few(match.ignored)}."
        )
    return tuple(notes)


@dataclass(frozen=True)
class _Match:
    """How a state dict fits a model.

    Attributes:
        key: Where the state dict is in the checkpoint.
        used: Tensors by the keys of the model.
        ignored: Keys of parts that the model lacks.
        misfit: What does not fit, in words; empty if all does.
    """

    key: str
    used: dict[str, torch.Tensor]
    ignored: list[str]
    misfit: str


def _match(own: State, key: str, state: State) -> _Match:
    """Find the prefix under which the keys of a model are in a state dict."""
    wanted = {name.replace(COMPILED, ""): name for name in own}
    given = {name.replace(COMPILED, ""): tensor for name, tensor in state.items()}
    if not any(name.endswith(ORIGINAL) for name in wanted):
        given = _without_masks(given)
    prefix = _common_prefix(wanted, given)
    used = {
        name: given[prefix + short] for short, name in wanted.items() if prefix + short in given
    }
    missing = [name for name in own if name not in used and not _is_counter(name)]
    rest = [name for name in given if name.removeprefix(prefix) not in wanted]
    rest = [name for name in rest if not _is_counter(name)]
    tops = {name.partition(".")[0] for name in wanted}
    ignored = [name for name in rest if _is_other_part(name, prefix, tops)]
    unexpected = [name for name in rest if name not in ignored]
    misshapen = [
        f"{name} ({_shape(tensor)} in the file, {_shape(own[name])} in the model)"
        for name, tensor in used.items()
        if not is_lazy(own[name]) and own[name].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    parts = [
        f"{_keys(len(names))} {'is' if len(names) == 1 else 'are'} {kind}: {first_few(names)}"
        for kind, names in kinds
        if names
    ]
    return _Match(key, used, ignored, "; ".join(parts))


def _common_prefix(wanted: Iterable[str], given: Iterable[str]) -> str:
    """Return the prefix with which most keys of the model are given; the shortest of equal ones."""
    names, counts = set(wanted), Counter({"": 0})
    for name in given:
        starts = [0, *(n + 1 for n, letter in enumerate(name) if letter == ".")]
        counts.update(name[:start] for start in starts if name[start:] in names)
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)))


def _is_other_part(name: str, prefix: str, tops: set[str]) -> bool:
    """Whether a key belongs to a part that the model lacks, such as another head or a teacher.

    A layer more in a numbered sequence is none: the model may be another one.
    """
    if not name.startswith(prefix):
        return True
    top = name.removeprefix(prefix).partition(".")[0]
    return top not in tops and not top.isdecimal()


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def is_average(key: str) -> bool:
    """Tell by its name whether an entry of a checkpoint holds averaged weights."""
    return any(word in AVERAGES for word in key.lower().replace(".", "_").split("_"))


def _without_masks(state: State) -> dict[str, torch.Tensor]:
    """Multiply weights by the masks of torch.nn.utils.prune."""
    pruned = {
        name.removesuffix(ORIGINAL)
        for name in state
        if name.endswith(ORIGINAL) and name.removesuffix(ORIGINAL) + MASK in state
    }
    ends = {name + end for name in pruned for end in (ORIGINAL, MASK)}
    kept = {name: tensor for name, tensor in state.items() if name not in ends}
    return kept | {name: state[name + ORIGINAL] * state[name + MASK] for name in pruned}


def _check_values(model: nn.Module, used: State, path: Path) -> None:
    """Check that tensors have values, and finite ones; buffers such as masks may be infinite."""
    odd = [n for n, v in used.items() if v.is_meta or v.layout != torch.strided]
    if odd:
        raise ConverterError(f"{path} holds tensors without plain values: {first_few(odd)}.")
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    broken = [
        name
        for name, tensor in used.items()
        if tensor.is_floating_point()
        and not _sound(tensor.float(), infinite=name not in parameters)
    ]
    if broken:
        raise ConverterError(
            f"{path} holds NaN or infinite values in {first_few(broken)}; use a sound checkpoint."
        )


def _sound(tensor: torch.Tensor, *, infinite: bool) -> bool:
    return not tensor.isnan().any() if infinite else bool(tensor.isfinite().all())


def _listed(states: Mapping[str, State]) -> str:
    """Say which state dicts a checkpoint has."""
    names = [f"{key!r} ({_keys(len(state))})" if key else "" for key, state in states.items()]
    named = first_few([name for name in names if name], 8)
    return f"It has {named}; name one with --state-key." if named else "It has only one."


def first_few(names: Sequence[str], count: int = 3) -> str:
    """Join the first few of some names, and say how many more there are."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")


def _keys(count: int) -> str:
    return "1 key" if count == 1 else f"{count} keys"


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
