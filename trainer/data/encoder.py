"""Bulk encoder from text to token ids, identical to those of tokenizer.json (and of GPT2TokenizerFast, if of its kind).

tiktoken, built from the cached vocabulary and merges, encodes several times faster than the tokenizers library. It
merges any two neighbors whose concatenation is a token, by rank; byte-level BPE merges only listed pairs. The two agree
on every text if the ranks follow the order of the merges and every token encodes to itself when encoded alone
(`fast_table` checks this): if two neighbors were an unlisted pair whose concatenation is a token, then encoding that
token alone would produce the same two neighbors and stop there, since merges inside a span do not depend on the text
outside as long as none crosses its ends.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ablatrix.trainer.data.tokenizer import TokenizerInfo, verify
from ablatrix.trainer.rundir.errors import OfflineCacheError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The splitting rule of Radford et al. 2019, as in tokenizers' ByteLevel. Everything without look-ahead is in one group:
# tiktoken's engine runs that part as a finite automaton and backtracks only for the rest, which is 1.7 times faster.
PATTERN = r"(?:'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+)|\s+(?!\S)|\s"
LONE_SURROGATES = re.compile("[\ud800-\udfff]")  # JSON can contain them, UTF-8 cannot
BYTES = 256


class Encoder:
    """Encode one document at a time, without adding special tokens. Thread-safe.

    The text of an added token in a document, such as "<|endoftext|>", becomes that token, as in GPT2TokenizerFast.
    """

    def __init__(self, info: TokenizerInfo) -> None:
        """Load the tokenizer. Raises OfflineCacheError if its files do not match the manifest."""
        verify(info)
        self.dtype = token_dtype(info.vocab_size)
        self._file = info.folder / "tokenizer.json"
        self._exact: Tokenizer | None = None
        self._fast, self._table = None, None
        if info.bulk == "tiktoken":
            self._fast, table = _tiktoken(info.folder)
            identity = np.array_equal(table, np.arange(len(table)))
            self._table = None if identity else table.astype(self.dtype)

    def encode(self, text: str) -> np.ndarray:
        """Return the ids (n_tokens,) of one document."""
        if not text.isascii():
            text = LONE_SURROGATES.sub("\ufffd", text)
        ranks = self._fast_ranks(text)
        if ranks is None:
            return np.array(self._tokenizer().encode(text, add_special_tokens=False).ids, dtype=self.dtype)
        return ranks.astype(self.dtype) if self._table is None else self._table[ranks]

    def _fast_ranks(self, text: str) -> np.ndarray | None:
        if self._fast is None:
            return None
        try:
            ranks: np.ndarray = self._fast.encode_to_numpy(text, allowed_special="all", disallowed_special=())
        except ValueError:  # its regular expression engine gives up on a million consecutive blanks
            return None
        return ranks

    def _tokenizer(self) -> Tokenizer:
        if self._exact is None:
            self._exact = exact_tokenizer(self._file)
        return self._exact


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest dtype that fits every id: uint16 up to 65,536 tokens, else uint32."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def exact_tokenizer(file: Path) -> Tokenizer:
    """Load a tokenizer.json with the tokenizers library. Raises OfflineCacheError if it is not valid."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001  (tokenizers raises plain Exception)
        raise OfflineCacheError(f"{file}: not a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def byte_characters() -> dict[str, int]:
    """Map each printable stand-in character of byte-level BPE to its byte (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(BYTES) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(BYTES + k): b for k, b in enumerate(others)}


def fast_table(tokenizer_json: Path) -> np.ndarray | None:
    """Return the token id of each tiktoken rank (256 bytes, merges in order, then the special token).

    None if tiktoken may give different ids: other pre-tokenizers or normalizers, a vocabulary that its merges do not
    produce, several added tokens, or added tokens that strip whitespace.
    """
    tree = _read_tree(tokenizer_json)
    added = tree["added_tokens"]
    swallowing = any(token.get(key) for token in added for key in ("single_word", "lstrip", "rstrip"))
    if not is_gpt2_pipeline(tree) or len(added) > 1 or swallowing:
        return None
    vocab, tokens, specials = tree["model"]["vocab"], _rank_tokens(tree), _special_tokens(tree)
    if len(set(tokens)) != len(tokens) or set(tokens) | set(specials) != set(vocab) | set(specials):
        return None
    if any(token not in vocab or token in specials for token in tokens):
        return None
    exact = exact_tokenizer(tokenizer_json)
    if any([t.value for t in exact.model.tokenize(token)] != [token] for token in tokens):
        return None
    return _rank_ids(tree)


def _read_tree(tokenizer_json: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(tokenizer_json.read_text(encoding="utf-8"))
    return tree


def _rank_tokens(tree: dict[str, Any]) -> list[str]:
    """Return the tokens in the order of tiktoken's ranks: single bytes by id, then the result of each merge."""
    vocab = tree["model"]["vocab"]
    merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in tree["model"]["merges"])
    return [*sorted(byte_characters(), key=lambda c: vocab.get(c, -1)), *(left + right for left, right in merges)]


def _special_tokens(tree: dict[str, Any]) -> dict[str, int]:
    return {token["content"]: token["id"] for token in tree["added_tokens"]}


def _rank_ids(tree: dict[str, Any]) -> np.ndarray:
    vocab = tree["model"]["vocab"]
    ids = [*(vocab[token] for token in _rank_tokens(tree)), *_special_tokens(tree).values()]
    return np.array(ids, dtype=np.int64)


def is_gpt2_pipeline(tree: dict[str, Any]) -> bool:
    """True if a tokenizer.json is a byte-level BPE that splits and merges like GPT-2's."""
    splitter, model = tree.get("pre_tokenizer") or {}, tree["model"]
    return (
        tree.get("normalizer") is None
        and splitter.get("type") == "ByteLevel"
        and splitter.get("add_prefix_space") is False
        and splitter.get("use_regex", True) is True
        and model.get("type", "BPE") == "BPE"
        and not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        and not model.get("ignore_merges")
    )


def _tiktoken(folder: Path) -> tuple[Any, np.ndarray]:
    """Return tiktoken's engine for a tokenizer that `fast_table` accepts, and the token id of each rank."""
    import tiktoken

    tree, alphabet = _read_tree(folder / "tokenizer.json"), byte_characters()
    ranks = {bytes(map(alphabet.__getitem__, token)): rank for rank, token in enumerate(_rank_tokens(tree))}
    specials = {content: len(ranks) + k for k, content in enumerate(_special_tokens(tree))}
    engine = tiktoken.Encoding(folder.name, pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials)
    return engine, _rank_ids(tree)
