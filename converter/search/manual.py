"""Plans without a search: forms and ranks by hand, a plan file, or weight errors."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from converter.decomposition.conv import Conv
from converter.decomposition.form import fit_rank, refusal, show_rank, skeleton
from converter.decomposition.forms import find_form
from converter.decomposition.ranks import parse_rank
from converter.errors import ConverterError
from converter.graph.survey import Layer
from converter.options import LayerOptions
from converter.search.candidates import cheapest
from converter.search.plan import Choice, Plan, kernel_digest, read_plan

DEFAULT_FORM, LINEAR_FORM = "flattened", "channel"
# If nothing is chosen: a layer gets the cheapest chain within this relative weight error, if that
# leaves at most this share of the layer's MACs.
MAX_WEIGHT_ERROR, MAX_MACS = 0.25, 0.75
# The same share for a depthwise layer, where saved MACs save less time: in onnxruntime, 3x3 in two
# steps is 1.1 times as fast as in one (a third of the MACs saved), 5x5 1.8 times (60 %), 7x7 2.4
# times (71 %).
MAX_DEPTHWISE_MACS = 0.5


def make_plan(
    layers: Sequence[Layer],
    options: LayerOptions,
    input_shapes: Mapping[str, tuple[int, ...]],
    seed: int = 0,
) -> Plan:
    """Make the plan that ``options`` ask for.

    Args:
        layers: All layers of the network.
        options: Choices by hand.
        input_shapes: Input shapes by name.
        seed: Seed of the solvers.

    Raises:
        ConverterError: When a form, rank, layer name or plan file does not fit the network.
    """
    if options.plan is not None:
        return replay(options.plan, layers, input_shapes)
    manual = _ManualChoices.of(layers, options)
    choices = (
        replace(_choose(layer, manual), kernel_sha256=kernel_digest(layer.conv)) for layer in layers
    )
    return Plan(tuple(choices), dict(input_shapes), seed)


def open_layers(layers: Sequence[Layer], options: LayerOptions) -> list[Layer]:
    """List the layers that can be converted and that the user does not keep.

    Raises:
        ConverterError: When ``options`` name an unknown layer.
    """
    names = [layer.name for layer in layers]
    only = _matching(options.only, names, "--only") if options.only else set(names)
    keep = _matching(options.keep, names, "--keep")
    return [
        layer
        for layer in layers
        if layer.conv is not None
        and not layer.reason
        and layer.name in only
        and layer.name not in keep
    ]


def replay(
    path: Path, layers: Sequence[Layer], input_shapes: Mapping[str, tuple[int, ...]]
) -> Plan:
    """Read a plan file and check it against the network.

    Raises:
        ConverterError: When it cannot be read, names an unknown layer, was made for other
            weights, or asks for a rank that does not fit.
    """
    plan = read_plan(path)
    by_name = {layer.name: layer for layer in layers}
    entries = {choice.layer: choice for choice in plan.choices}
    for choice in plan.choices:
        if choice.layer not in by_name:
            raise ConverterError(f"Plan {path}: {_unknown_layer(choice.layer, list(by_name))}")
        layer = by_name[choice.layer]
        if choice.kernel_sha256 not in (None, kernel_digest(layer.conv)):
            raise ConverterError(
                f"Plan {path} was made for other weights: layer {choice.layer} differs."
            )
        if choice.form and choice.rank:
            if layer.conv is None or layer.reason:
                raise ConverterError(f"Plan {path}: layer {choice.layer}: {layer.reason}.")
            try:
                skeleton(layer.conv, find_form(choice.form), choice.rank)
            except ConverterError as error:
                raise ConverterError(f"Plan {path}: layer {choice.layer}: {error}") from None
    choices = tuple(
        replace(
            entries.get(layer.name, Choice(layer.name, reason="the plan does not name it")),
            kernel_sha256=kernel_digest(layer.conv),
        )
        for layer in layers
    )
    return Plan(choices, dict(input_shapes), plan.seed)


@dataclass(frozen=True)
class _ManualChoices:
    """The choices by hand.

    Attributes:
        forms: Form by layer name.
        form: Form of all other layers, or None.
        ranks: Rank by layer name, as text.
        rank: Rank of all other layers, as text, or None.
        kept: Layers to keep.
        linear: Linear layers, which are converted only if they are named.
        manual: Whether any form, rank or plan is given.
    """

    forms: Mapping[str, str]
    form: str | None
    ranks: Mapping[str, str]
    rank: str | None
    kept: Collection[str]
    linear: Collection[str]
    manual: bool

    @classmethod
    def of(cls, layers: Sequence[Layer], options: LayerOptions) -> _ManualChoices:
        """Sort the options by layer.

        Raises:
            ConverterError: When they name an unknown layer.
        """
        names = [layer.name for layer in layers]
        linear = {layer.name for layer in layers if layer.conv is not None and not layer.conv.k}
        forms, form = _by_layer(options.forms, names, "--form", linear)
        ranks, rank = _by_layer(options.rank, names, "--rank", linear)
        only = _matching(options.only, names, "--only")
        kept = _matching(options.keep, names, "--keep")
        kept |= {name for name in names if options.only and name not in only}
        for pattern, choice in options.layers.items():
            for name in _matching([pattern], names, "layers"):
                if choice is None:
                    kept.add(name)
                elif name == pattern or name not in linear:
                    forms[name] = choice.form
                    if choice.rank is not None:
                        parts = choice.rank if isinstance(choice.rank, tuple) else (choice.rank,)
                        ranks[name] = ",".join(map(str, parts))
        return cls(forms, form, ranks, rank, kept, linear, options.manual)


def _choose(layer: Layer, manual: _ManualChoices) -> Choice:
    """Return the manual choice for a layer; without any, the cheapest chain by weight error."""
    name, is_linear = layer.name, layer.name in manual.linear
    named = name in manual.forms or name in manual.ranks
    if layer.reason or layer.conv is None:
        if named:
            raise ConverterError(f"Layer {name} cannot be converted: {layer.reason}.")
        return Choice(name, reason=layer.reason)
    if name in manual.kept:
        return Choice(name, reason="the user keeps it")
    if (manual.form or manual.rank) and is_linear and not named:
        reason = f"it is a linear layer; name it to convert it (--form {name}=channel)"
        return Choice(name, reason=reason)
    if manual.form or manual.rank or named:
        default = LINEAR_FORM if is_linear else manual.form or DEFAULT_FORM
        form, rank = manual.forms.get(name, default), manual.ranks.get(name, manual.rank)
        choice = _by_hand(layer.conv, form, rank, name)
        if choice.form is None and name in manual.forms:
            raise ConverterError(f"Layer {name}: {choice.reason}.")
        if choice.reason and name in manual.ranks:
            raise ConverterError(f"Layer {name}: {choice.reason}; choose another rank.")
        return choice
    if manual.manual:
        return Choice(name, reason="no form was chosen for it")
    return _by_weight_error(layer)


def _by_hand(conv: Conv, form_name: str, rank_text: str | None, layer: str) -> Choice:
    """Return the user's form and rank; a rank that does not fit becomes the nearest that does."""
    form = find_form(form_name)
    refused = refusal(form, conv)
    if refused:
        return Choice(layer, reason=f"{form.name}: {refused}")
    requested = parse_rank(rank_text or form.default, form, conv)
    rank = fit_rank(requested, form, conv)
    note = None
    if rank != requested:
        note = f"rank {show_rank(requested)} does not fit, {show_rank(rank)} taken"
    return Choice(layer, form.name, rank, note)


def _by_weight_error(layer: Layer) -> Choice:
    """Choose the cheapest chain within the default weight error, if it saves enough MACs."""
    depthwise = layer.conv is not None and layer.conv.depthwise
    share = MAX_DEPTHWISE_MACS if depthwise else MAX_MACS
    form, rank, macs = cheapest(layer, MAX_WEIGHT_ERROR) or (None, None, math.inf)
    if macs > share * layer.macs:
        saves = f"saves {1 - share:.0%} of its MACs at a weight error of {MAX_WEIGHT_ERROR}"
        none = "it is depthwise, and no split into 1-D filters" if depthwise else "no form"
        return Choice(layer.name, reason=f"{none} {saves}")
    return Choice(layer.name, form, rank)


def _by_layer(
    values: Sequence[str], names: Sequence[str], option: str, by_name: Collection[str]
) -> tuple[dict[str, str], str | None]:
    """Split ``VALUE`` and ``LAYER=VALUE`` into values by layer, and the value for all others.

    Patterns do not match the layers ``by_name``: these must be named exactly.
    """
    named: dict[str, str] = {}
    default = None
    for value in values:
        layer, equals, text = value.rpartition("=")
        if not equals:
            default = value
            continue
        for name in _matching([layer], names, option):
            if name == layer or name not in by_name:
                named[name] = text
    return named, default


def _matching(patterns: Sequence[str], names: Sequence[str], option: str) -> set[str]:
    matching: set[str] = set()
    for pattern in patterns:
        matches = {n for n in names if n == pattern} or set(fnmatch.filter(names, pattern))
        if not matches:
            raise ConverterError(f"{option}: {_unknown_layer(pattern, names)}")
        matching |= matches
    return matching


def _unknown_layer(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, 3) or list(names[:3])
    return f"the network has no layer {name!r}; it has, for example, {', '.join(close)}."
