"""The verb `warm-cache` (also cache_warm.py): fill the offline cache where there is internet, for jobs without it."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ablatrix.trainer.config import DataConfig, SystemConfig, tokenizer_names
from ablatrix.trainer.config.paths import expand_path
from ablatrix.trainer.data import cache_builder, embedded_sample, hub, tokenizer
from ablatrix.trainer.data.characters import character_tokenizer
from ablatrix.trainer.data.corpus import describe_skipped
from ablatrix.trainer.data.corpus_files import describe_files, find_files, is_flat
from ablatrix.trainer.data.data_sets import now, warm_data, warm_data_set
from ablatrix.trainer.data.encoder import byte_characters, is_gpt2_pipeline
from ablatrix.trainer.data.manifest import (
    TOKENIZER_FILES,
    FileFacts,
    TokenizerEntry,
    add_entry,
    read_manifest,
)
from ablatrix.trainer.data.token_cache import Cache
from ablatrix.trainer.data.tokenizer import folder_name
from ablatrix.trainer.data.warm_weights import warm_weights
from ablatrix.trainer.rundir.console import say
from ablatrix.trainer.rundir.cpus import allotted_cores
from ablatrix.trainer.rundir.errors import AblatrixError, RunError, UserError
from ablatrix.trainer.rundir.files import atomic_write, make_folder, remove
from ablatrix.trainer.rundir.owners import personal
from ablatrix.trainer.rundir.program import program, run_module


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Exit codes: 0: everything works offline; 2: a user's mistake; 1: a failure."""
    try:
        _run(parser().parse_args(argv))
    except AblatrixError as error:
        print(f"cache_warm: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"cache_warm: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cache_warm: interrupted; run it again to continue", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the command-line parser."""
    p = argparse.ArgumentParser(
        f"{program()} warm-cache",
        description="Put a tokenizer and data where jobs without internet find them.",
        allow_abbrev=False,
    )
    p.add_argument(
        "--tokenizer",
        default="gpt2",
        help="gpt2, a repository of the hub with a tokenizer.json, sample or bytes (default: gpt2)",
    )
    p.add_argument("--revision", default="main", help="branch, tag or commit of the tokenizer's repository")
    p.add_argument("--from", dest="source", type=_path, metavar="DIR", help="take the tokenizer's files from a folder")
    p.add_argument(
        "--characters-of",
        type=_path,
        nargs="+",
        metavar="FILE",
        help="make the tokenizer from the characters of a corpus, under a name of your own with --tokenizer",
    )
    p.add_argument(
        "--sample-corpus",
        type=_path,
        metavar="PATH",
        help="write the sample corpus (default with --tokenizer sample: DATA_DIR/sample.jsonl)",
    )
    p.add_argument(
        "--data", metavar="REPO[:FILE]", help="download a file of a hub data set, or the files of a pattern or folder"
    )
    p.add_argument("--data-dir", type=_path, default=Path("data"), help="where data files go (default: data)")
    p.add_argument(
        "--tokens",
        type=_path,
        nargs="+",
        metavar="FILE",
        help="tokenize a corpus now, so that jobs start at once: a file, folder or pattern, or several files",
    )
    p.add_argument(
        "--text-key",
        default="text",
        help="key of the text in each line of --tokens and --characters-of (default: text)",
    )
    p.add_argument("--workers", type=int, metavar="N", help="processes for --tokens (default: the cores of this job)")
    p.add_argument(
        "--weights", metavar="NAME", help="download the weights of a GPT-2 from the hub, for model.init_from: gpt2, ..."
    )
    p.add_argument("--cache-dir", type=_path, default=_default_cache(), help="default: %(default)s")
    p.add_argument("--force", action="store_true", help="fetch again what is already there")
    return p


def _path(text: str) -> Path:
    try:
        return Path(expand_path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _default_cache() -> Path:
    try:
        return Path(SystemConfig().cache_dir)
    except ValidationError as error:
        raise UserError(f"ABLATRIX_CACHE: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _run(options: argparse.Namespace) -> None:
    name = tokenizer_names.canonical(options.tokenizer)
    data = _parse_data(options.data) if options.data is not None else None
    folder_name(name, "--tokenizer")  # reject a bad name before anything is done
    characters = options.characters_of and _corpus(options.characters_of, options.text_key, name)
    if characters and name in (*tokenizer_names.REPOSITORIES, *tokenizer.EMBEDDED):
        raise UserError(f"--characters-of: {name} is the name of another tokenizer; choose one with --tokenizer NAME")
    warm_tokenizer(name, options.cache_dir, characters or options.source, options.revision, options.force)
    corpus = options.sample_corpus or (options.data_dir / "sample.jsonl" if name == "sample" else None)
    if corpus is not None:
        count = embedded_sample.write_corpus(corpus)
        say(f"sample corpus: {count} documents, {corpus.stat().st_size / 1e6:.1f} MB, in {corpus}")
    if options.weights is not None:
        warm_weights(options.weights, options.cache_dir, force=options.force)
    if data is not None:
        repo, file = data
        warm = warm_data if Path(file).suffix and not glob.has_magic(file) else warm_data_set
        warm(repo, file, options.data_dir, options.cache_dir, force=options.force)
    if options.tokens is not None:
        warm_tokens(options.tokens, options.text_key, name, options.cache_dir, options.workers)


def _parse_data(text: str) -> tuple[str, str]:
    """Return (repository, file) of a data set to download; the file may be a pattern, a folder, or '' for all files."""
    repo, colon, file = text.partition(":")
    if not repo or (colon and not file):
        raise UserError(f"--data {text!r}: write REPO:FILE, for instance owner/corpus:train.jsonl")
    return repo, file


def warm_tokenizer(
    name: str, cache_dir: Path, source: Path | DataConfig | None, revision: str = "main", force: bool = False
) -> None:
    """Add a tokenizer to the cache unless it is complete there; it enters the manifest only once it works offline.

    source: a folder with its files, or a corpus whose characters are the tokens; None: download it, or create it here
    if it is embedded. Raises UserError, RunError, and OSError if the cache cannot be written.
    """
    home = cache_dir / "tokenizers"
    folder = home / folder_name(name)
    if not force and _is_whole(name, cache_dir):
        say(f"tokenizer {name}: already in {cache_dir}, files verified")
        return
    make_folder(home, parents=True)
    if name == "sample":
        say("tokenizer sample: training on the standard library's sources")
        texts = (document["text"] for document in embedded_sample.documents())
        files, origin = embedded_sample.train_tokenizer(texts), {"source": "embedded"}
    elif name == "bytes":
        files, origin = embedded_sample.tokenizer_files(byte_characters(), []), {"source": "embedded"}
    elif isinstance(source, DataConfig):
        files, origin = character_tokenizer(source), {"source": f"characters of {source.file_path}"}
    elif source is not None:
        files, origin = _read_folder(source)
    else:
        files, origin = _download(name, revision, home)
    staging = home / f".{folder.name}.{uuid.uuid4().hex}"
    try:
        staging.mkdir()
        for file, content in complete_files(files, name).items():
            atomic_write(staging / file, content)
        facts = verify_offline(staging, name)
        entry = TokenizerEntry(
            **origin, **facts, files=_hash_files(staging), date=now(), versions=tokenizer.library_versions()
        )
        _replace_folder(staging, folder)
    finally:
        remove(staging)
    add_entry(cache_dir, name, entry)
    say(f"tokenizer {name}: {entry.vocab_size} tokens, loads offline, in {folder}")


def _is_whole(name: str, cache_dir: Path) -> bool:
    """True if the manifest lists a tokenizer and all of its files match their hashes."""
    entry = read_manifest(cache_dir).tokenizers.get(name)
    try:
        return entry is not None and _hash_files(cache_dir / "tokenizers" / folder_name(name)) == entry.files
    except OSError:
        return False


def _hash_files(folder: Path) -> dict[str, FileFacts]:
    return {
        name: FileFacts(size=(folder / name).stat().st_size, sha256=hub.hashes(folder / name)[0])
        for name in TOKENIZER_FILES
        if (folder / name).exists()
    }


def _read_folder(source: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    if not source.is_dir():
        raise UserError(f"--from {source}: no such folder")
    files = {name: (source / name).read_bytes() for name in TOKENIZER_FILES if (source / name).is_file()}
    if not _is_sufficient(files):
        raise UserError(f"--from {source}: no vocab.json with merges.txt, and no tokenizer.json")
    return files, {"source": os.path.abspath(source)}


def _download(name: str, revision: str, home: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Download a tokenizer's files from the hub, all at the commit of the first one."""
    repo, commit, files = tokenizer_names.repository(name), revision, {}
    staging = personal(home / f".{folder_name(name)}.download")
    for file in TOKENIZER_FILES:
        say(f"tokenizer {name}: {file} from {repo}")
        try:
            got = hub.fetch(repo, file, staging, revision=commit)
        except hub.MissingFileError:
            continue
        files[file], commit = got.path.read_bytes(), got.commit or commit
    remove(staging)
    if not _is_sufficient(files):
        raise UserError(f"{repo}: no fast-tokenizer files found (needs tokenizer.json, or vocab.json and merges.txt)")
    return files, {"source": f"hub:{repo}", "revision": revision, "commit": commit}


def _is_sufficient(files: dict[str, bytes]) -> bool:
    return "tokenizer.json" in files or {"vocab.json", "merges.txt"} <= files.keys()


def complete_files(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    """Return all four files of a GPT-2 style tokenizer, creating missing files from the others.

    For any other tokenizer, tokenizer.json is enough. Raises UserError if files are corrupt or contradict each other.
    """
    try:
        tree: Any = json.loads(files["tokenizer.json"]) if "tokenizer.json" in files else None
        if tree is not None and not is_gpt2_pipeline(tree):
            return {"tokenizer_config.json": b"{}"} | {k: v for k, v in files.items() if k in TOKENIZER_FILES[2:]}
        model: Any = tree["model"] if tree else None
        vocab = json.loads(files["vocab.json"]) if "vocab.json" in files else model["vocab"]
        merges = (
            _normalize_merges(files["merges.txt"].decode().split("\n"))
            if "merges.txt" in files
            else _normalize_merges(model["merges"])
        )
        agree = model is None or (model["vocab"] == vocab and _normalize_merges(model["merges"]) == merges)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"tokenizer {name}: its files are not a tokenizer's ({error!r})") from None
    if not agree:
        raise UserError(f"tokenizer {name}: tokenizer.json does not agree with vocab.json and merges.txt")
    return embedded_sample.tokenizer_files(vocab, merges) | files


def _normalize_merges(merges: Sequence[str | list[str]]) -> list[str]:
    """Return merges as `left right` lines, without a version comment and blank lines."""
    lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    start = 1 if lines and lines[0].startswith("#version") else 0
    return [line for line in (line.rstrip("\r") for line in lines[start:]) if line]


def verify_offline(folder: Path, name: str) -> dict[str, Any]:
    """Load a tokenizer in a fresh process without network access; return its vocab_size and bulk encoder.

    Raises UserError if that fails.
    """
    try:
        facts: dict[str, Any] = json.loads(run_module("ablatrix.trainer.data.tokenizer_check", str(folder)))
    except RunError as error:
        raise UserError(f"tokenizer {name} does not load offline: {error}") from None
    return facts


def _replace_folder(staging: Path, target: Path) -> None:
    """Replace a folder with a finished one."""
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    if os.path.lexists(target):
        target.rename(old)
    staging.rename(target)
    remove(old)


def _corpus(paths: Sequence[Path], text_key: str, name: str) -> DataConfig:
    entries = tuple(map(str, paths))
    return DataConfig(file_path=entries[0] if len(entries) == 1 else entries, text_key=text_key, tokenizer=name)


def warm_tokens(paths: Sequence[Path], text_key: str, name: str, cache_dir: Path, workers: int | None) -> None:
    """Build the token cache of a corpus with all cores; a build that was killed continues where it stopped."""
    config = _corpus(paths, text_key, name)
    files = find_files(config)
    path = describe_files(config, files)
    if is_flat(files[0]):
        raise UserError(f"--tokens {path}: already tokenized; set data.file_path to it")
    cache = Cache.of(config, cache_dir)
    there = cache.meta() is not None
    begin = time.monotonic()
    meta = cache_builder.build(config, cache_dir, workers or allotted_cores())
    speed = cache.size / 1e6 / max(time.monotonic() - begin, 1e-3)
    how = "already there" if there else f"{speed:.0f} MB/s"
    say(f"tokens of {path}: {meta.documents} documents, {meta.tokens} tokens ({how})")
    skipped = describe_skipped(path, meta.lines, meta.skipped, meta.first_skipped)
    if skipped:
        say(skipped)
