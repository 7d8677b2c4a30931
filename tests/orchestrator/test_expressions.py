"""Variables and arithmetic in experiment files."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.expressions import Variables
from trainer.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${iters}", 2000),
        ("${int(iters * 0.1)}", 200),
        ("${iters // 3 % 7}", 1),
        ("${2 ** 10}", 1024),
        ("${-iters + 1}", -1999),
        ("${max(1, min(iters, 5))}", 5),
        ("${ceil(iters / 7)}", 286),
        ("${half}", 1000),
        ("run-${iters}-x", "run-2000-x"),
        ("${flag}", True),
        ("${env:SET}", 7),
        ("${env:UNSET,default}", "default"),
        ("${env:UNSET,0.5}", 0.5),
        ("plain", "plain"),
    ],
)
def test_values_and_types(text: str, value: object) -> None:
    variables = Variables({"iters": 2000, "half": "${iters // 2}", "flag": True}, {"SET": "7"})
    assert variables.fill(text) == value
    assert type(variables.fill(text)) is type(value)


def test_containers_are_filled_within() -> None:
    assert Variables({"a": 1}).fill({"x": ["${a}", "${a + 1}"], "y": None}) == {"x": [1, 2], "y": None}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("${iter}", "no such variable"),
        ("${loop_a}", "refers to itself: loop_a -> loop_b -> loop_a"),
        ("${1 / 0}", "division by zero"),
        ("${9 ** 9 ** 9}", "exponent over 64"),
        ("${10 ** 60}", "not a reasonable number"),
        ("${__import__('os').system('true')}", "only numbers"),
        ("${a.__class__}", "only numbers"),
        ("${[1, 2]}", "only numbers"),
        ("${word + 1}", "is not a number"),
        ("${flag + 1}", "is not a number"),
        ("${1 +}", "not an expression"),
        ("${env:UNSET}", "UNSET is not set"),
        ("${int(1, base=2)}", "named arguments"),
        ("a ${iters b", "without its"),
        ("${sqrt(-1)}", "sqrt"),
    ],
)
def test_faults_name_the_expression(text: str, words: str) -> None:
    values = {"a": 1, "loop_a": "${loop_b}", "loop_b": "${loop_a}", "word": "x", "flag": True}
    with pytest.raises(UserError) as caught:
        Variables(values, {}).fill(text)
    assert words in str(caught.value) or "math domain" in str(caught.value) or "nonnegative" in str(caught.value)


@given(st.integers(-999, 999), st.integers(1, 999))
def test_arithmetic_is_pythons(a: int, b: int) -> None:
    variables = Variables({"a": a, "b": b})
    assert variables.fill("${a + b * 2}") == a + b * 2
    assert variables.fill("${a // b}") == a // b
    assert variables.fill("${a / b}") == a / b


@given(st.text(max_size=40))
def test_any_text_is_filled_or_refused_in_words(text: str) -> None:
    with contextlib.suppress(UserError):  # anything else would be a traceback in a user's face
        Variables({"a": 1}, {}).fill("${" + text + "}")
