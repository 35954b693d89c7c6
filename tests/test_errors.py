"""How the errors of others are told: one line, without colours or advice."""

import numpy as np
import onnxruntime
import pytest
import torch
from networks import from_text

from converter.errors import MAX_LENGTH, first_line, lacks_memory, root_line


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


MUCH = 2**50
VAST = "g (int64[2] s) => (float[N, M] y) { y = ConstantOfShape (s) }"


@pytest.mark.parametrize(
    "ask",
    [
        lambda: np.zeros(MUCH),
        lambda: torch.zeros(MUCH),
        lambda: onnxruntime.InferenceSession(from_text(VAST).SerializeToString()).run(
            None, {"s": np.array([2**25, 2**25])}
        ),
    ],
    ids=["numpy", "torch", "onnxruntime"],
)
def test_lack_of_memory_is_known_whoever_tells_of_it(ask):
    with pytest.raises(Exception) as told:
        ask()
    assert lacks_memory(told.value)


@pytest.mark.parametrize("text", ["", "no such layer", "shape (3,) is not (4,)"])
def test_other_errors_are_not_taken_for_it(text):
    assert not lacks_memory(RuntimeError(text))


def test_only_the_beginning_of_a_long_message_is_looked_at():
    error = RuntimeError("damaged " + "\0" * MAX_LENGTH + " not enough memory")
    assert not lacks_memory(error)
    assert len(first_line(error)) == 300
    assert lacks_memory(RuntimeError("not enough memory " + "\0" * MAX_LENGTH))
