"""YAML with positions: types of the core schema, duplicates, damage and bombs."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import yamlfile
from trainer.errors import ConfigError, UserError


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("6e-4", 6e-4),
        ("1_000", "1_000"),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("-3", -3),
        (".5", 0.5),
        ("1.", 1.0),
        ("true", True),
        ("False", False),
        ("on", "on"),
        ("no", "no"),
        ("yes", "yes"),
        ("null", None),
        ("~", None),
        ("'true'", "true"),
        ("12:30:45", "12:30:45"),
        ("2020-01-01", "2020-01-01"),
        ("[1, a, 2.5]", [1, "a", 2.5]),
        (".inf", float("inf")),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    assert yamlfile.parse_scalar(text) == value
    assert type(yamlfile.parse_scalar(text)) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**15), 10**15) | st.booleans())
def test_python_scalars_survive(value: float | int | bool) -> None:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    assert yamlfile.parse_scalar(text) == value


def test_every_key_knows_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "name: x\nbase:\n  model:\n    rope: true\nlist: [1]\n")
    tree = yamlfile.load(path)
    assert tree.position(("base", "model", "rope")) == f"{path}:4"
    assert tree.position(("base", "model", "unknown")) == f"{path}:3"
    assert tree.position(("nothing",)) == ""


def test_duplicate_keys_are_all_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "a: 1\nb: {c: 1, c: 2}\na: 2\n")
    with pytest.raises(ConfigError) as caught:
        yamlfile.load(path)
    assert len(caught.value.problems) == 2
    assert caught.value.problems[0] == f"{path}:2: b.c: duplicate key (first at {path}:2)"
    assert "a.yaml:3: a: duplicate key" in caught.value.problems[1]


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1", "not valid YAML"),
        (b"a:\n\t- 1", "not valid YAML"),
        (b"a: \xff\xfe\n", "not UTF-8"),
        (b"", "the file is empty"),
        (b"# only a comment\n", "the file is empty"),
        (b"- 1\n- 2\n", "top level"),
        (b"just words\n", "top level"),
        (b"a: 1\0\n", "not valid YAML"),
        (b"? [1, 2]\n: 3\n", "a key must be a word"),
        (b"a: !!python/object:os.system x\n", "not supported"),
        (BOMB.encode(), "unreasonable size"),
        (b"[" * 60 + b"]" * 60, "unreasonable size"),
        (b"{a: " * 5000 + b"}" * 5000, "nested too deeply"),
        (b"x" * (2 << 20), "larger than 1 MiB"),
        (b"a: &x [*x]\n", "unreasonable size"),
    ],
)
def test_damage_is_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    path = write(tmp_path / "a.yaml", content)
    with pytest.raises(UserError) as caught:
        yamlfile.load(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    assert yamlfile.load(write(tmp_path / "a.yaml", b"\xef\xbb\xbfname: x\n")).data == {"name": "x"}


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "ablation.yaml", "name: x\n")
    with pytest.raises(UserError, match=r"no such experiment file; .* has: ablation\.yaml"):
        yamlfile.load(tmp_path / "ablaton.yaml")
    with pytest.raises(UserError, match="is a folder"):
        yamlfile.load(tmp_path)
