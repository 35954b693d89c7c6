"""How the errors of others are told: one line, without colours or advice."""

import pytest

from converter.errors import first_line, root_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one\ntwo", "one"),
        ("\n \x1b[31mred\x1b[0m\n", "red"),
        ("", "ValueError"),
        ("x" * 999, "x" * 300),
    ],
)
def test_the_first_line_is_told(text, line):
    assert first_line(ValueError(text)) == line


def test_the_cause_is_told_with_its_class():
    error = RuntimeError("Next steps: read on")
    error.__cause__ = KeyError("weight")
    assert root_line(error) == "KeyError: 'weight'"
    assert root_line(AssertionError()) == "AssertionError"
