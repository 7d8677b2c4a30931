"""YAML with positions: types of the core schema, duplicates, damage and bombs."""

from pathlib import Path

import pytest

from ablatrix.orchestrator.study import yaml_tree
from ablatrix.orchestrator.study.literals import BoolLiteral, text_of
from ablatrix.trainer.rundir.errors import ConfigError, UserError


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
    assert yaml_tree.parse_scalar(text) == value
    found = yaml_tree.parse_scalar(text)
    assert isinstance(found, BoolLiteral if text == "False" else type(value))


def test_every_key_knows_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "name: x\nbase:\n  model:\n    rope: true\nlist: [1]\n")
    tree = yaml_tree.load(path)
    assert tree.position(("base", "model", "rope")) == f"{path}:4"
    assert tree.position(("base", "model", "unknown")) == f"{path}:3"
    assert tree.position(("nothing",)) == ""


def test_duplicate_keys_are_all_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "a: 1\nb: {c: 1, c: 2}\na: 2\n")
    with pytest.raises(ConfigError) as caught:
        yaml_tree.load(path)
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
        ("a: 1\n".encode("utf-16"), "UTF-16 text, as PowerShell and Notepad write it; save the file as UTF-8"),
        (b"a: \x93x\x94\n", "not UTF-8 text; save the file as UTF-8"),
        (b"", "the file is empty"),
        (b"# only a comment\n", "the file is empty"),
        (b"- 1\n- 2\n", "top level"),
        (b"just words\n", "top level"),
        (b"a: 1\0\n", "not valid YAML"),
        (b"? [1, 2]\n: 3\n", "keys must be strings"),
        (b"a: !!python/object:os.system x\n", "not supported"),
        (BOMB.encode(), "unreasonable size"),
        (b"[" * 60 + b"]" * 60, "unreasonable size"),
        (b"x" * (2 << 20), "larger than 1 MiB"),
        (b"a: &x [*x]\n", "unreasonable size"),
    ],
)
def test_damage_is_one_sentence(tmp_path: Path, content: bytes, words: str) -> None:
    path = write(tmp_path / "a.yaml", content)
    with pytest.raises(UserError) as caught:
        yaml_tree.load(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_names_its_neighbors(tmp_path: Path) -> None:
    write(tmp_path / "ablation.yaml", "name: x\n")
    with pytest.raises(UserError, match=r"no such experiment file; .* has: ablation\.yaml"):
        yaml_tree.load(tmp_path / "ablaton.yaml")
    with pytest.raises(UserError, match="is a folder"):
        yaml_tree.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("a: 1\nb: {c: ${lr}}", 2, '"${lr}"'),
        ("a: [${x}, 2]", 1, '"${x}"'),
        ("a: {b: x-${c}, d: 1}", 1, '"x-${c}"'),
        ("a: {\n  b: ${env:C,1},\n  d: 2}", 2, "in quotes within { } and [ ]"),
        ("a:\n\tb: 1", 2, "a tab"),
        ("about: foo: bar", 1, 'put a value with a colon in quotes: "foo: bar"'),
        ("a:\n  b: 1\n   c: 2", 3, "below line 2, which already has a value"),
        ("a:\n    b: 1\n  c: 2", 3, "this indentation matches no line above"),
        ("a: 1\nb:2\nc: 3", 2, "no space after the colon; write `b: 2`"),
        ("a:1\nb: 2", 1, "no space after the colon; write `a: 1`"),
        ("a:1\nb:2", 1, "no space after the colon; write `a: 1"),
        ("a: 1\nb\nc: 2", 2, "write `key: value`"),
        ("a: @x", 1, "cannot begin with @; put it in quotes"),
        ("a: 1\nb: %x", 2, "cannot begin with %"),
        ("a: `x`", 1, "cannot begin with `"),
        ("a: *x", 1, "there is no anchor &x above"),
        ("a: *.txt", 1, "quote a value that begins with * or &"),
        ("a: !env X", 1, "the tag !env is not supported"),
        ('a: 1\nb: "C:\\data"', 2, "use single quotes"),
        ('a: 1\nb: "x\nc: 1', 2, "the quote that is opened here is not closed"),
        ("a: [1, 2\nb: 3\n", 2, "the `[` of line 1 is not closed"),
        ("a: 1\n---\nb: 2", 2, "a second document begins here"),
        ("a: 1\n- b: 2", 2, "begins an entry of a list"),
        ("a: - b", 1, "begins an entry of a list"),
        ("a: | b", 1, "starts on the next line"),
        ("a: 'it's'", 1, "put the whole value in quotes"),
        ("a: {python} t.py", 1, "put the whole value in quotes"),
        ("a: {{ x }}", 1, "keys must be strings, not lists or mappings; quote values with {{ }}"),
        ('name = "x"\n[base]\na = 1\n', 1, "`key = value` is not YAML"),
        ("[base]\na=1\n", 2, "`key = value` is not YAML"),
        ("name: \u201cx\u201d", 1, 'typographic quotes and belong to the text; write plain ones: "x"'),
        ("name:\u00a0x\n", 1, "U+00A0"),
        ("a:\n\u00a0\u00a0b: 1\n", 2, "U+00A0"),
        ("name\uff1ax\n", 1, "full-width"),
        ("a: &x {b: 1}\nc: {<<: 3}", 2, "`<<` merges mappings"),
        ("a: \x07", 1, "a control character (U+0007)"),
    ],
)
def test_a_slip_is_reported_with_line_and_correction(tmp_path: Path, content: str, line: int, words: str) -> None:
    path = write(tmp_path / "a.yaml", content)
    with pytest.raises(UserError) as caught:
        yaml_tree.load(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path}:{line}: ")


def test_merge_keys(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.yaml",
        "x-a: &a {lr: 1, wd: 2}\nx-b: &b\n  lr: 3\n  bs: 4\none: {wd: 9, <<: *a}\nlist:\n  <<: [*b, *a]\n  n: 5\n"
        "nested: &n {<<: *a, k: 1}\nagain: {<<: *n}\nnone: {<<: , k: 1}\nquoted: {'<<': 1}\n",
    )
    tree = yaml_tree.load(path)
    assert tree.data["one"] == {"lr": 1, "wd": 9}
    assert tree.data["list"] == {"lr": 3, "bs": 4, "wd": 2, "n": 5}
    assert tree.data["again"] == {"lr": 1, "wd": 2, "k": 1}
    assert tree.data["none"] == {"k": 1}
    assert tree.data["quoted"] == {"<<": 1}
    assert tree.position(("one", "wd")) == f"{path}:5"
    assert tree.position(("one", "lr")) == f"{path}:1"
    assert tree.position(("list", "bs")) == f"{path}:4"


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbfname: x\r\nseeds: [1]\r\n",
        b'{\n\t"name": "x",\n\t"seeds": [1]\n}\n',
        b"%YAML 1.2\n---\nname: x\nseeds:\n- 1\n...\n",
    ],
)
def test_what_editors_and_programs_write_is_read(tmp_path: Path, raw: bytes) -> None:
    assert yaml_tree.load(write(tmp_path / "a.yaml", raw)).data == {"name": "x", "seeds": [1]}


def test_numbers_keep_their_spelling(tmp_path: Path) -> None:
    data = yaml_tree.load(write(tmp_path / "a.yaml", "a: 007\nb: {c: 1e-4}\nd: [1.10, x, 3]\n")).data
    assert (data["a"], data["b"]["c"], data["d"]) == (7, 1e-4, [1.1, "x", 3])
    assert [text_of(value) for value in (data["a"], data["b"]["c"], *data["d"])] == ["007", "1e-4", "1.10", "x", "3"]
