"""Plan: which form and rank each layer gets, or why it is kept; decided once, then obeyed."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from converter.decomposition.conv import Conv
from converter.decomposition.form import Form, Rank, fit_rank, refusal, show_rank, skeleton
from converter.decomposition.forms import find_form
from converter.decomposition.ranks import parse_rank
from converter.errors import ConverterError
from converter.graph.survey import Layer
from converter.options import Options
from converter.search.weight_candidates import candidates

VERSION = 1
DEFAULT_FORM, LINEAR_FORM = "flattened", "channel"
# Without a choice by hand: the cheapest candidate whose weights err by no more than this, if it
# saves at least a quarter of the layer's MACs.
MAX_WEIGHT_ERROR, MOST_MACS = 0.25, 0.75
# A depthwise layer must save half: in onnxruntime 3x3 in two steps is 1.1 times as fast as in one
# (a third of the MACs saved), 5x5 1.8 times (60%), 7x7 2.4 times (71%).
MOST_DEPTHWISE_MACS = 0.5


@dataclass(frozen=True)
class Choice:
    """What happens to one layer.

    Attributes:
        layer: Its name.
        form: Name of the form, or None if the layer is kept.
        rank: The rank, or None if the layer is kept.
        reason: Why the layer is kept, or a note on the rank.
        kernel_sha256: Of the kernel the choice was made for.
    """

    layer: str
    form: str | None = None
    rank: Rank | None = None
    reason: str | None = None
    kernel_sha256: str | None = None


@dataclass(frozen=True)
class Plan:
    """A choice for every layer; replaying it on the same sample inputs gives the same network.

    Attributes:
        choices: In graph order.
        input_shapes: The shapes it was made for, by input name.
        seed: Of the solvers.
    """

    choices: tuple[Choice, ...]
    input_shapes: Mapping[str, tuple[int, ...]]
    seed: int = 0

    def chosen(self) -> dict[str, tuple[Form, Rank]]:
        """Form and rank of every layer that is converted."""
        return {c.layer: (find_form(c.form), c.rank) for c in self.choices if c.form and c.rank}

    def reverted(self, reason: str, layers: Collection[str]) -> Plan:
        """Return the plan that keeps ``layers``; those that were converted, for ``reason``."""
        choices = (
            replace(c, form=None, rank=None, reason=reason) if c.form and c.layer in layers else c
            for c in self.choices
        )
        return replace(self, choices=tuple(choices))

    def to_json(self) -> str:
        """Write the plan as JSON; ``from_json`` is the inverse."""
        layers = {
            c.layer: {
                key: value
                for key, value in (
                    ("form", c.form),
                    ("rank", list(c.rank) if c.rank else None),
                    ("reason", c.reason),
                    ("kernel_sha256", c.kernel_sha256),
                )
                if value is not None
            }
            for c in self.choices
        }
        document = {
            "format": "flatconv-plan",
            "version": VERSION,
            "seed": self.seed,
            "input_shapes": {name: list(shape) for name, shape in self.input_shapes.items()},
            "layers": layers,
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what ``to_json`` wrote, or what a hand made of it.

        Raises:
            ConverterError: When ``text`` is no plan of this version.
        """
        try:
            document = json.loads(text)
            if document.get("format") != "flatconv-plan" or document.get("version") != VERSION:
                raise ConverterError(f"It is not a flatconv plan of version {VERSION}.")
            choices = tuple(_read_choice(name, entry) for name, entry in document["layers"].items())
            shapes = {n: tuple(map(int, s)) for n, s in document.get("input_shapes", {}).items()}
            return cls(choices, shapes, int(document.get("seed", 0)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ConverterError(f"It is not a flatconv plan: {error}.") from None


def make_plan(
    layers: Sequence[Layer], options: Options, input_shapes: Mapping[str, tuple[int, ...]]
) -> Plan:
    """Choose for every layer, as ``options`` says.

    Raises:
        ConverterError: When a form, rank, layer name or plan file does not fit the network.
    """
    if options.layers.plan is not None:
        return replay(options.layers.plan, layers, input_shapes)
    names = [layer.name for layer in layers]
    only = _matching(options.layers.only, names, "--only")
    keep = _matching(options.layers.keep, names, "--keep")
    linear = {layer.name for layer in layers if layer.conv is not None and not layer.conv.k}
    forms, form = _by_layer(options.layers.forms, names, "--form", linear)
    ranks, rank = _by_layer(options.layers.rank, names, "--rank", linear)
    choices = []
    for layer in layers:
        choice = Choice(layer.name, kernel_sha256=_digest(layer.conv))
        named = layer.name in forms or layer.name in ranks
        for_all = LINEAR_FORM if layer.name in linear else form or DEFAULT_FORM
        wanted_form, wanted_rank = forms.get(layer.name, for_all), ranks.get(layer.name, rank)
        if layer.reason or layer.conv is None:
            if named:
                raise ConverterError(f"Layer {layer.name} cannot be converted: {layer.reason}.")
            choice = replace(choice, reason=layer.reason)
        elif layer.name in keep or (options.layers.only and layer.name not in only):
            choice = replace(choice, reason="the user keeps it")
        elif (form or rank) and layer.name in linear and not named:
            reason = f"it is a linear layer; name it to convert it (--form {layer.name}=channel)"
            choice = replace(choice, reason=reason)
        elif form or rank or named:
            by_hand = _by_hand(layer.conv, wanted_form, wanted_rank, layer.name)
            if by_hand.form is None and layer.name in forms:
                raise ConverterError(f"Layer {layer.name}: {by_hand.reason}.")
            if by_hand.reason and layer.name in ranks:
                raise ConverterError(f"Layer {layer.name}: {by_hand.reason}; choose another rank.")
            choice = replace(by_hand, kernel_sha256=choice.kernel_sha256)
        elif options.layers.manual:
            choice = replace(choice, reason="no form was chosen for it")
        else:
            choice = replace(_by_error(layer), kernel_sha256=choice.kernel_sha256)
        choices.append(choice)
    return Plan(tuple(choices), dict(input_shapes), options.resources.seed)


def open_layers(layers: Sequence[Layer], options: Options) -> list[Layer]:
    """List the layers that can be converted and that the user does not keep.

    Raises:
        ConverterError: When ``options`` names a layer that is not there.
    """
    names = [layer.name for layer in layers]
    only = _matching(options.layers.only, names, "--only") if options.layers.only else set(names)
    keep = _matching(options.layers.keep, names, "--keep")
    return [
        layer
        for layer in layers
        if layer.conv is not None
        and not layer.reason
        and layer.name in only
        and layer.name not in keep
    ]


def plan_of(
    layers: Sequence[Layer],
    chosen: Mapping[str, tuple[str, Rank]],
    options: Options,
    input_shapes: Mapping[str, tuple[int, ...]],
) -> Plan:
    """Write down what was chosen for some layers; the others are kept."""
    free = {layer.name for layer in open_layers(layers, options)}
    choices = []
    for layer in layers:
        choice = Choice(layer.name, kernel_sha256=_digest(layer.conv))
        found = chosen.get(layer.name)
        if found is not None:
            choice = replace(choice, form=found[0], rank=found[1])
        elif layer.name in free:
            choice = replace(choice, reason="no form gains enough for what it loses")
        else:
            choice = replace(choice, reason=layer.reason or "the user keeps it")
        choices.append(choice)
    return Plan(tuple(choices), dict(input_shapes), options.resources.seed)


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        ConverterError: When it is missing or no plan; the sentence names it.
    """
    try:
        return Plan.from_json(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConverterError(f"Plan {path} cannot be read: {error}.") from None
    except ConverterError as error:
        raise ConverterError(f"Plan {path} cannot be used. {error}") from None


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
        digest = _digest(layer.conv)
        if choice.kernel_sha256 not in (None, digest):
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
            kernel_sha256=_digest(layer.conv),
        )
        for layer in layers
    )
    return Plan(choices, dict(input_shapes), plan.seed)


def _by_hand(conv: Conv, form_name: str, rank_text: str | None, layer: str) -> Choice:
    """Take the user's form and rank; a rank that does not fit is brought to the nearest."""
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


def _by_error(layer: Layer) -> Choice:
    """Take the cheapest candidate within the default error, if it saves enough."""
    found = candidates(layer, MAX_WEIGHT_ERROR)
    depthwise = layer.conv is not None and layer.conv.depthwise
    most = MOST_DEPTHWISE_MACS if depthwise else MOST_MACS
    if not found or found[0].macs > most * layer.macs:
        saves = f"saves {1 - most:.0%} of its MACs at a weight error of {MAX_WEIGHT_ERROR}"
        what = "it is depthwise, and no split into 1-D filters" if depthwise else "no form"
        return Choice(layer.name, reason=f"{what} {saves}")
    return Choice(layer.name, found[0].form, found[0].rank)


def _read_choice(name: str, entry: Mapping[str, object]) -> Choice:
    form, rank, reason = entry.get("form"), entry.get("rank"), entry.get("reason")
    digest = str(entry["kernel_sha256"]) if entry.get("kernel_sha256") else None
    if form is None:
        why = str(reason) if reason else "the plan keeps it"
        return Choice(name, reason=why, kernel_sha256=digest)
    if isinstance(rank, int):
        rank = [rank]
    if not (isinstance(rank, list) and rank and all(type(r) is int for r in rank)):
        raise ValueError(f"the rank of layer {name} must be a whole number or a list of them")
    find_form(str(form))
    return Choice(name, str(form), tuple(rank), str(reason) if reason else None, digest)


def _by_layer(
    values: Sequence[str], names: Sequence[str], option: str, by_name: Collection[str]
) -> tuple[dict[str, str], str | None]:
    """Split ``VALUE`` and ``LAYER=VALUE`` into values by layer and the one for all.

    A pattern passes by the layers ``by_name``, which must be named.
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
    found: set[str] = set()
    for pattern in patterns:
        matches = {n for n in names if n == pattern} or set(fnmatch.filter(names, pattern))
        if not matches:
            raise ConverterError(f"{option}: {_unknown(pattern, names)}")
        found |= matches
    return found


def _unknown(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, 3) or list(names[:3])
    return f"the network has no layer {name!r}; it has, for example, {', '.join(close)}."


def _digest(conv: Conv | None) -> str | None:
    if conv is None:
        return None
    return hashlib.sha256(str(conv.kernel.shape).encode() + conv.kernel.tobytes()).hexdigest()
