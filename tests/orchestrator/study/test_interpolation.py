"""Variables and arithmetic in experiment files."""

import pytest

from ablatrix.orchestrator.study.interpolation import Variables
from ablatrix.orchestrator.study.literals import keep_spelling
from ablatrix.trainer.rundir.errors import UserError


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
    assert isinstance(variables.fill(text), type(value))


@pytest.mark.parametrize(
    "value", ["1.10", "007", "1e3", "0x10", "true", "null", "a #b", "1_000", " 5", "[a", "", "9" * 40]
)
def test_values_are_put_into_texts_as_they_are(value: str) -> None:
    variables = Variables({"v": "${env:V}"}, {"V": value})
    assert variables.fill("data/${env:V}/x") == f"data/{value}/x"
    assert variables.fill("data/${v}/x") == f"data/{value}/x"


def test_variables_are_put_into_texts_as_the_file_writes_them() -> None:
    variables = Variables({"v": keep_spelling(1.1, "1.10"), "b": True, "n": 7}, {})
    assert variables.fill("${v} ${b} ${n} ${v * 2} ${vars.n}") == "1.10 true 7 2.2 7"
    assert variables.fill("${v}") == 1.1


def test_an_empty_variable_takes_the_default() -> None:
    variables = Variables({}, {"V": ""})
    assert variables.fill("${env:V,7}") == 7
    assert variables.fill("x${env:V,7}") == "x7"
    assert variables.fill("${env:V,}") is None
    assert variables.fill("${env:V}") == ""


def test_a_text_of_the_environment_is_no_yaml() -> None:
    variables = Variables({}, {"V": "/data/a #b", "L": "[1, 2]", "B": "[x"})
    assert variables.fill("${env:V}") == "/data/a #b"
    assert variables.fill("${env:L}") == [1, 2]
    assert variables.fill("${env:B}") == "[x"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("${oc.env:HOME}", "write ${env:HOME}"),
        ("a/${oc.env:X,default}", "write ${env:X,default}"),
        ("${X:-d}", "write ${env:X,d}"),
        ("${HOME}", "for the environment write ${env:HOME}"),
        ("${base.trainer.max_iters}", "put `max_iters: ...` under vars"),
        ("${.x}", "put `x: ...` under vars"),
        ("${now:%Y}", "there is no ${now:...}"),
        ("${iter}", "did you mean iters?"),
        ("a${list}", "a list within a string"),
    ],
)
def test_other_programs_references_are_translated(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        Variables({"iters": 1, "list": [1]}, {"HOME": "/h"}).fill(text)
    assert words in str(caught.value)


def test_a_name_with_a_dash_is_a_variable() -> None:
    assert Variables({"max-iters": 5}).fill("${max-iters}") == 5


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
        ("a ${iters b", "without a closing"),
        ("${sqrt(-1)}", "sqrt"),
    ],
)
def test_faults_name_the_expression(text: str, words: str) -> None:
    values = {"a": 1, "loop_a": "${loop_b}", "loop_b": "${loop_a}", "word": "x", "flag": True}
    with pytest.raises(UserError) as caught:
        Variables(values, {}).fill(text)
    assert words in str(caught.value) or "math domain" in str(caught.value) or "nonnegative" in str(caught.value)
