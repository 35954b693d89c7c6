"""``Status``: how a conversion ended, as a code and a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Code = Literal["met", "missed", "unproven", "unsound"]


@dataclass(frozen=True)
class Status:
    """How a conversion, or a part of it, ended.

    Attributes:
        code: ``met``: every check and budget was met. ``missed``: a budget was not. ``unproven``:
            no measurement says whether a budget is kept. ``unsound``: a check of the network
            failed.
        sentence: Why, or what the user should know; None where there is nothing to say.
    """

    code: Code = "met"
    sentence: str | None = None

    @property
    def met(self) -> bool:
        """Whether every check and budget was met."""
        return self.code == "met"

    def then(self, other: Status) -> Status:
        """Return this status if it is not met or the other says nothing, else the other."""
        return self if not self.met or (other.met and other.sentence is None) else other


def unless(code: Code, sentence: str | None) -> Status:
    """Return a status that is met where there is no sentence."""
    return Status() if sentence is None else Status(code, sentence)
