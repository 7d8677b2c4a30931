"""Settings as flags: what the command's own parser reads back is the value of the experiment file."""

import argparse
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from ablatrix.orchestrator.study import command_flags, command_template
from ablatrix.orchestrator.study.command_flags import Flags

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
HOSTILE = st.text(st.sampled_from("'\"\\=,:[]{}()$ \t\n@%+-~é0ae"))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS | HOSTILE
KEYS = st.sampled_from(["a", "b-c", "_d"])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=8)


@given(VALUES)
@example("a=b")
@example("1,2")
@example("[1]")
@example("10")
@example("1e-3")
@example("true")
@example("NULL")
@example("nan")
@example("")
@example(" a b ")
@example("${x}")
@example("C:\\dir\\")
@example("it's \\'quoted\\'")
@example("żółw 学习")
@example("choice(1, 2)")
def test_hydra_reads_back_what_was_meant(value: Any) -> None:
    (word,) = command_flags.flag_words({"a.b": value}, Flags(style="a.b=c"))
    read = OverridesParser.create().parse_override(word).value()
    assert read == value and _types(read) == _types(value)


def _types(value: Any) -> Any:
    if isinstance(value, list):
        return [_types(item) for item in value]
    if isinstance(value, dict):
        return {key: _types(inner) for key, inner in value.items()}
    return type(value)


@pytest.mark.parametrize(
    ("key", "works"),
    [("a.b", True), ("+new.key", True), ("++a", True), ("db", True), ("db/mysql", True), ("db@pkg.x", True),
     ("a-b.c_d", True), ("a.0.b", True), ("~gone", True), ("é", False), ("1a", False), ("a/b@c/d", False)],
)  # fmt: skip
def test_keys_that_hydra_takes(key: str, works: bool) -> None:
    flags = Flags(style="a.b=c")
    assert (command_flags.flag_problem(key, 1, flags) == "") is works
    if not works:
        return
    parsed = OverridesParser.create().parse_override(command_flags.flag_words({key: None}, flags)[0])
    assert parsed.value() is None and parsed.is_delete() is key.startswith("~")


@pytest.mark.parametrize(
    ("word", "value"),
    [("a.text={text}", "10, [x]"), ("+a={number}", 1e-05), ("out={run_dir}/x", "/tmp/a b,c/x"),
     ("out={run_dir}", "/tmp/a b,c"),
     ("name='{number}'", "1e-05")],
)  # fmt: skip
def test_placeholders_in_hydra_overrides(word: str, value: Any) -> None:
    settings = {"text": "10, [x]", "number": 1e-5}
    values = {"run_dir": "/tmp/a b,c", "text": "10, [x]", "number": "1e-05"}
    (filled,) = command_template.render([word], values, settings, Flags(style="a.b=c"))
    assert OverridesParser.create().parse_override(filled).value() == value
    assert command_template.render(["{text}"], values, settings, Flags(style="a.b=c")) == ["10, [x]"], "no override"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(allow_abbrev=False)
    made.add_argument("--number", type=float)
    made.add_argument("--text")
    made.add_argument("--list", type=float, nargs="*")
    made.add_argument("--item", action="append")
    made.add_argument("--on", action="store_true")
    made.add_argument("--off", action="store_true")
    made.add_argument("--both", action=argparse.BooleanOptionalAction)
    made.add_argument("--unset", type=int, default=3)
    return made


@pytest.mark.parametrize("style", ["--a.b=c", "--a_b=c", "--b c", "--key=value"])
@pytest.mark.parametrize("number", [1e-3, -1e-3, -1e-05, -2.0, 1e22])
@pytest.mark.parametrize("text", ["", "-1e-3", "--text", "a=b", " a b ", "-", "é"])
def test_values_survive_argparse(style: Any, number: float, text: str) -> None:
    words = command_flags.flag_words({"number": number, "text": text}, Flags(style=style))
    read = parser().parse_args(words)
    assert (read.number, read.text) == (number, text)


def test_switches_and_lists() -> None:
    settings = {"list": [0.9, -1e-05, -2.5], "on": True, "off": False, "unset": None}
    read = parser().parse_args(command_flags.flag_words(settings, Flags(booleans="switch", lists="words")))
    assert (read.list, read.on, read.off, read.unset) == ([0.9, -1e-05, -2.5], True, False, 3)
    for both in (True, False, None):
        flags = Flags(style="--key=value", booleans="no-prefix", lists="repeat")
        read = parser().parse_args(command_flags.flag_words({"both": both, "item": ["-x", ""]}, flags))
        assert (read.both, read.item) == (both, ["-x", ""])
    assert "would be taken for a flag" in command_flags.flag_problem("item", ["-x"], Flags(lists="words"))
    assert "only accepts mappings" in command_flags.flag_problem("a", [{"b c": 1}], Flags(style="a.b=c"))
    assert "mapping" in command_flags.flag_problem("item", [{"a": 1}], Flags())


@pytest.mark.parametrize("style", ["a.b=c", "config-file", "in-process"])
def test_switches_belong_to_flags(style: Any) -> None:
    with pytest.raises(ValidationError, match="has no effect with"):
        Flags(style=style, booleans="switch")
