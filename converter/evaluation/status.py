"""``Status``: how a conversion ended, as a code and a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Code = Literal["met", "missed", "unproven", "unsound"]


@dataclass(frozen=True)
class Status:
    """How a conversion, or a part of it, ended.

    Attributes:
        code: ``met``: every check and budget was met. ``missed``: a budget was not kept.
            ``unproven``: no measurement shows whether a budget is kept. ``unsound``: a check of the
            network failed.
        sentence: The reason, or a note to the user; None without either.
    """

    code: Code = "met"
    sentence: str | None = None

    @property
    def met(self) -> bool:
        """Whether every check and budget was met."""
        return self.code == "met"

    def then(self, other: Status) -> Status:
        """Return this status if it is not met or the other adds nothing; else the other."""
        return self if not self.met or (other.met and other.sentence is None) else other


def status_of(code: Code, problem: str | None) -> Status:
    """Return the status ``code`` if there is a problem, else ``met``."""
    return Status() if problem is None else Status(code, problem)
