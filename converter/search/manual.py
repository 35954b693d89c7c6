"""Plans without a search: forms and ranks by hand, a plan file, or weight errors alone."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from converter.decomposition.conv import Conv
from converter.decomposition.form import fit_rank, refusal, show_rank, skeleton
from converter.decomposition.forms import find_form
from converter.decomposition.ranks import parse_rank
from converter.errors import ConverterError
from converter.graph.survey import Layer
from converter.options import LayerForm, LayerOptions
from converter.search.candidates import cheapest
from converter.search.plan import Choice, Plan, kernel_digest, read_plan

DEFAULT_FORM, LINEAR_FORM = "flattened", "channel"
# Without any choice: the cheapest chain whose weights err by no more than this, if it saves at
# least a quarter of the layer's MACs.
MAX_WEIGHT_ERROR, MAX_MACS = 0.25, 0.75
# A depthwise layer must save half: in onnxruntime 3x3 in two steps is 1.1 times as fast as in one
# (a third of the MACs saved), 5x5 1.8 times (60 %), 7x7 2.4 times (71 %).
MAX_DEPTHWISE_MACS = 0.5


def make_plan(
    layers: Sequence[Layer],
    options: LayerOptions,
    input_shapes: Mapping[str, tuple[int, ...]],
    seed: int = 0,
) -> Plan:
    """Choose for every layer, as ``options`` say.

    Args:
        layers: Of the network.
        options: Choices by hand.
        input_shapes: By input name.
        seed: Of the solvers.

    Raises:
        ConverterError: When a form, rank, layer name or plan file does not fit the network.
    """
    if options.plan is not None:
        return replay(options.plan, layers, input_shapes)
    wishes = _Wishes.of(layers, options)
    choices = (
        replace(_choose(layer, wishes), kernel_sha256=kernel_digest(layer.conv)) for layer in layers
    )
    return Plan(tuple(choices), dict(input_shapes), seed)


def open_layers(layers: Sequence[Layer], options: LayerOptions) -> list[Layer]:
    """List the layers that can be converted and that the user does not keep.

    Raises:
        ConverterError: When ``options`` name a layer that is not there.
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
    known = {layer.name: layer for layer in layers}
    entries = {choice.layer: choice for choice in plan.choices}
    for choice in plan.choices:
        if choice.layer not in known:
            raise ConverterError(f"Plan {path}: {_unknown(choice.layer, list(known))}")
        layer = known[choice.layer]
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
class _Wishes:
    """The choices by hand, by layer name and for all layers."""

    forms: Mapping[str, str]
    form: str | None
    ranks: Mapping[str, str]
    rank: str | None
    kept: Collection[str]
    linear: Collection[str]
    manual: bool

    @classmethod
    def of(cls, layers: Sequence[Layer], options: LayerOptions) -> _Wishes:
        """Sort the options by layer.

        Raises:
            ConverterError: When they name a layer that is not there.
        """
        names = [layer.name for layer in layers]
        linear = {layer.name for layer in layers if layer.conv is not None and not layer.conv.k}
        forms, form = _by_layer(options.forms, names, "--form", linear)
        ranks, rank = _by_layer(options.rank, names, "--rank", linear)
        only = _matching(options.only, names, "--only")
        kept = _matching(options.keep, names, "--keep")
        kept |= {name for name in names if options.only and name not in only}
        for pattern, wish in options.layers.items():
            for name in _matching([pattern], names, "layers"):
                if wish is None:
                    kept.add(name)
                elif name == pattern or name not in linear:
                    forms[name] = wish.form
                    ranks |= {name: _rank_text(wish)} if wish.rank is not None else {}
        return cls(forms, form, ranks, rank, kept, linear, options.manual)


def _choose(layer: Layer, wishes: _Wishes) -> Choice:
    """Take the wish for a layer, or the cheapest chain by weight error without any."""
    name, is_linear = layer.name, layer.name in wishes.linear
    named = name in wishes.forms or name in wishes.ranks
    if layer.reason or layer.conv is None:
        if named:
            raise ConverterError(f"Layer {name} cannot be converted: {layer.reason}.")
        return Choice(name, reason=layer.reason)
    if name in wishes.kept:
        return Choice(name, reason="the user keeps it")
    if (wishes.form or wishes.rank) and is_linear and not named:
        reason = f"it is a linear layer; name it to convert it (--form {name}=channel)"
        return Choice(name, reason=reason)
    if wishes.form or wishes.rank or named:
        for_all = LINEAR_FORM if is_linear else wishes.form or DEFAULT_FORM
        form, rank = wishes.forms.get(name, for_all), wishes.ranks.get(name, wishes.rank)
        choice = _by_hand(layer.conv, form, rank, name)
        if choice.form is None and name in wishes.forms:
            raise ConverterError(f"Layer {name}: {choice.reason}.")
        if choice.reason and name in wishes.ranks:
            raise ConverterError(f"Layer {name}: {choice.reason}; choose another rank.")
        return choice
    if wishes.manual:
        return Choice(name, reason="no form was chosen for it")
    return _by_weight_error(layer)


def _by_hand(conv: Conv, form_name: str, rank_text: str | None, layer: str) -> Choice:
    """Take the user's form and rank; a rank that does not fit becomes the nearest that does."""
    form = find_form(form_name)
    refused = refusal(form, conv)
    if refused:
        return Choice(layer, reason=f"{form.name}: {refused}")
    wanted = parse_rank(rank_text or form.default, form, conv)
    rank = fit_rank(wanted, form, conv)
    note = None
    if rank != wanted:
        note = f"rank {show_rank(wanted)} does not fit, {show_rank(rank)} taken"
    return Choice(layer, form.name, rank, note)


def _by_weight_error(layer: Layer) -> Choice:
    """Take the cheapest chain within the default weight error, if it saves enough."""
    depthwise = layer.conv is not None and layer.conv.depthwise
    share = MAX_DEPTHWISE_MACS if depthwise else MAX_MACS
    chosen = cheapest(layer, MAX_WEIGHT_ERROR)
    if chosen is None or chosen[2] > share * layer.macs:
        saves = f"saves {1 - share:.0%} of its MACs at a weight error of {MAX_WEIGHT_ERROR}"
        what = "it is depthwise, and no split into 1-D filters" if depthwise else "no form"
        return Choice(layer.name, reason=f"{what} {saves}")
    return Choice(layer.name, chosen[0], chosen[1])


def _rank_text(wish: LayerForm) -> str:
    parts = wish.rank if isinstance(wish.rank, tuple) else (wish.rank,)
    return ",".join(map(str, parts))


def _by_layer(
    values: Sequence[str], names: Sequence[str], option: str, by_name: Collection[str]
) -> tuple[dict[str, str], str | None]:
    """Split ``VALUE`` and ``LAYER=VALUE`` into values by layer and the one for all.

    A pattern does not match the layers ``by_name``, which must be named.
    """
    named: dict[str, str] = {}
    everywhere = None
    for value in values:
        layer, equals, text = value.rpartition("=")
        if not equals:
            everywhere = value
            continue
        for name in _matching([layer], names, option):
            if name == layer or name not in by_name:
                named[name] = text
    return named, everywhere


def _matching(patterns: Sequence[str], names: Sequence[str], option: str) -> set[str]:
    matching: set[str] = set()
    for pattern in patterns:
        matches = {n for n in names if n == pattern} or set(fnmatch.filter(names, pattern))
        if not matches:
            raise ConverterError(f"{option}: {_unknown(pattern, names)}")
        matching |= matches
    return matching


def _unknown(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, 3) or list(names[:3])
    return f"the network has no layer {name!r}; it has, for example, {', '.join(close)}."
