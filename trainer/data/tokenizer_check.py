"""Check that a tokenizer works without a network: `python -m ablatrix.trainer.data.tokenizer_check FOLDER`.

Loads a GPT-2 style tokenizer with GPT2TokenizerFast in this process, where opening a connection is an error, and
compares its ids with those of the bulk encoders on difficult texts. Prints one JSON object; an error is one line on
stderr and exit code 1.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from ablatrix.trainer.data.encoder import Encoder, exact_tokenizer, fast_table, is_gpt2_pipeline
from ablatrix.trainer.data.tokenizer import TOKENIZER_JSON, TokenizerInfo, count_tokens, go_offline

# Spaces and line ends, contractions, numerals, scripts without spaces, joined emoji, combining marks, byte order marks,
# special tokens inside a text, parts of words in the vocabulary.
DIFFICULT_TEXTS = (
    "Hello world",
    " Hello  world \n\n\t x\r\n  ",
    "I'll we've you're 'tis IT'S don’t",
    "3.14159 and 10,000,000 or 1e-4; ½ ² ٣ Ⅷ",
    "naïve café e\u0301 Ünïcödé ß ſ",
    "日本語のテキスト、中文，한국어 ไทย हिन्दी العربية עברית",
    "👩‍👩‍👧‍👦 🏳️‍🌈 \U0001f9d1🏽‍🚀 \ufeff\u200b\u2028\u3000\xa0.",
    "a<|endoftext|>b <|endoftext|>\n<|endoftext|><|endoftext|> <|endoftext <|endoftext|",
    "def f(x):\n    return x ** 2  # \\n \\t {}[]()<>\n",
    "\x00\x01\x1f\x7f\x85\x80",
    "https://example.org/a_b?c=d&e=%20#f — “quoted” … ok",
    " " * 50 + "x" + "\n" * 30 + "=" * 80,
)


class NoNetworkError(OSError):
    """A connection was attempted."""


def refuse_connections() -> None:
    """Make every socket connection raise NoNetworkError from now on."""

    def refuse(self: socket.socket, address: Any) -> NoReturn:
        raise NoNetworkError(f"a connection to {address!r} was attempted")

    def resolve(host: object, *_: object, **__: object) -> NoReturn:
        raise NoNetworkError(f"the address of {host!r} was looked up")

    for name in ("connect", "connect_ex", "sendto"):
        setattr(socket.socket, name, refuse)
    socket.getaddrinfo = socket.gethostbyname = resolve


def check(folder: Path) -> dict[str, Any]:
    """Return a dict with `vocab_size`, and `bulk`, the fastest encoder that gives the same ids.

    Raises ValueError if GPT2TokenizerFast and tokenizer.json disagree.
    """
    tree = json.loads((folder / TOKENIZER_JSON).read_text(encoding="utf-8"))
    if not is_gpt2_pipeline(tree):
        return {"vocab_size": _check_general(folder, tree), "bulk": "tokenizers"}
    go_offline()
    from transformers import GPT2TokenizerFast  # type: ignore[attr-defined]

    reference = GPT2TokenizerFast.from_pretrained(str(folder), local_files_only=True)
    wanted = [reference(text, add_special_tokens=False)["input_ids"] for text in DIFFICULT_TEXTS]
    exact = exact_tokenizer(folder / "tokenizer.json")
    if [exact.encode(text, add_special_tokens=False).ids for text in DIFFICULT_TEXTS] != wanted:
        raise ValueError("tokenizer.json does not give the ids of GPT2TokenizerFast")
    top = max(max(ids) for ids in wanted)
    if top >= len(reference):
        raise ValueError(f"token {top} is beyond the {len(reference)} tokens of the vocabulary")
    bulk = "tiktoken" if fast_table(folder / "tokenizer.json") is not None else "tokenizers"
    info = TokenizerInfo(folder.name, folder, len(reference), "", bulk)
    encoder = Encoder(info)
    if [encoder.encode(text).tolist() for text in DIFFICULT_TEXTS] != wanted:
        bulk = "tokenizers"
    return {"vocab_size": len(reference), "bulk": bulk}


def _check_general(folder: Path, tree: Any) -> int:
    """Return the vocabulary size of any other tokenizer.json. Raises ValueError if it gives larger ids, or none."""
    size, exact = count_tokens(tree), exact_tokenizer(folder / TOKENIZER_JSON)
    ids = [id for text in DIFFICULT_TEXTS for id in exact.encode(text, add_special_tokens=False).ids]
    if not ids or max(ids) >= size:
        raise ValueError(
            f"encodes {len(DIFFICULT_TEXTS)} texts as {len(ids)} tokens, the largest {max(ids, default=0)}"
        )
    return size


def main() -> int:
    """Check one folder and print the result."""
    refuse_connections()
    try:
        print(json.dumps(check(Path(sys.argv[1]))))
    except Exception as error:  # noqa: BLE001  (whatever the libraries raise is the result)
        print((str(error) or repr(error)).splitlines()[0], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
