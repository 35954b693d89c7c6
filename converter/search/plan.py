"""``Plan``: form and rank of each layer, or the reason why it is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from converter.decomposition.conv import Conv
from converter.decomposition.form import Form, Rank
from converter.decomposition.forms import find_form
from converter.errors import ConverterError
from converter.graph.survey import Layer

FORMAT, VERSION = "flatconv-plan", 1


@dataclass(frozen=True)
class Choice:
    """The form and rank of one layer.

    Attributes:
        layer: Name of the layer.
        form: Name of the form, or None if the layer is kept.
        rank: The rank, or None if the layer is kept.
        reason: Why the layer is kept, or a note on the rank.
        kernel_sha256: Digest of the kernel that the choice was made for.
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
        choices: Choices of all layers, in graph order.
        input_shapes: The shapes that the plan was made for, by input name.
        seed: Seed of the solvers.
    """

    choices: tuple[Choice, ...]
    input_shapes: Mapping[str, tuple[int, ...]]
    seed: int = 0

    def chosen(self) -> dict[str, tuple[Form, Rank]]:
        """Return form and rank of every layer that is converted."""
        return {c.layer: (find_form(c.form), c.rank) for c in self.choices if c.form and c.rank}

    def reverted(self, reason: str, layers: Collection[str]) -> Plan:
        """Return a plan that keeps ``layers``; ``reason`` is noted where they were converted."""
        choices = (
            replace(c, form=None, rank=None, reason=reason) if c.form and c.layer in layers else c
            for c in self.choices
        )
        return replace(self, choices=tuple(choices))

    def to_json(self) -> str:
        """Write the plan as JSON; ``from_json`` is the inverse."""
        layers = {}
        for choice in self.choices:
            entry = {
                "form": choice.form,
                "rank": list(choice.rank) if choice.rank else None,
                "reason": choice.reason,
                "kernel_sha256": choice.kernel_sha256,
            }
            layers[choice.layer] = {key: v for key, v in entry.items() if v is not None}
        document = {
            "format": FORMAT,
            "version": VERSION,
            "seed": self.seed,
            "input_shapes": {name: list(shape) for name, shape in self.input_shapes.items()},
            "layers": layers,
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read the JSON that ``to_json`` wrote, possibly edited by hand.

        Raises:
            ConverterError: When ``text`` is no plan of this version.
        """
        try:
            document = json.loads(text)
            if document.get("format") != FORMAT or document.get("version") != VERSION:
                raise ConverterError(f"It is not a flatconv plan of version {VERSION}.")
            choices = tuple(_read_choice(name, entry) for name, entry in document["layers"].items())
            shapes = {n: tuple(map(int, s)) for n, s in document.get("input_shapes", {}).items()}
            return cls(choices, shapes, int(document.get("seed", 0)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ConverterError(f"It is not a flatconv plan: {error}.") from None


def plan_of(
    layers: Sequence[Layer],
    chosen: Mapping[str, tuple[str, Rank]],
    free: Collection[str],
    input_shapes: Mapping[str, tuple[int, ...]],
    seed: int,
) -> Plan:
    """Make the plan of a search; layers without a chosen form are kept.

    Args:
        layers: All layers of the network.
        chosen: Form and rank by layer name.
        free: Names of the layers that the search could change.
        input_shapes: Input shapes by name.
        seed: Seed of the solvers.
    """
    choices = []
    for layer in layers:
        choice = Choice(layer.name, kernel_sha256=kernel_digest(layer.conv))
        if layer.name in chosen:
            form, rank = chosen[layer.name]
            choice = replace(choice, form=form, rank=rank)
        elif layer.name in free:
            choice = replace(choice, reason="no form gains enough for what it loses")
        else:
            choice = replace(choice, reason=layer.reason or "the user keeps it")
        choices.append(choice)
    return Plan(tuple(choices), dict(input_shapes), seed)


def read_plan(path: Path) -> Plan:
    """Read a plan file.

    Raises:
        ConverterError: When the file is missing or holds no plan.
    """
    try:
        return Plan.from_json(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConverterError(f"Plan {path} cannot be read: {error}.") from None
    except ConverterError as error:
        raise ConverterError(f"Plan {path} cannot be used. {error}") from None


def kernel_digest(conv: Conv | None) -> str | None:
    """Return the SHA-256 of a layer's kernel, by which a plan detects other weights."""
    if conv is None:
        return None
    return hashlib.sha256(str(conv.kernel.shape).encode() + conv.kernel.tobytes()).hexdigest()


def _read_choice(name: str, entry: Mapping[str, object]) -> Choice:
    form, rank, reason = entry.get("form"), entry.get("rank"), entry.get("reason")
    digest = str(entry["kernel_sha256"]) if entry.get("kernel_sha256") else None
    if form is None:
        reason = str(reason) if reason else "the plan keeps it"
        return Choice(name, reason=reason, kernel_sha256=digest)
    if isinstance(rank, int):
        rank = [rank]
    if not (isinstance(rank, list) and rank and all(type(r) is int for r in rank)):
        raise ValueError(f"the rank of layer {name} must be a whole number or a list of them")
    find_form(str(form))
    return Choice(name, str(form), tuple(rank), str(reason) if reason else None, digest)
