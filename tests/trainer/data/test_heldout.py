"""The held-out text, document by document: what a run keeps of it, against every document scored on its own."""

from __future__ import annotations

import gzip
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ablatrix.models.gpt import GPT
from ablatrix.trainer.config import RunConfig, load
from ablatrix.trainer.data.heldout_records import Records, find_domain, read_once
from ablatrix.trainer.data.tokens import open_tokens
from ablatrix.trainer.rundir import run_files

BLOCK = 8
WORDS = ["naïve café", "a model of language", "the same text again", "def f(x): return x", "日本語"]


def text(k: int) -> str:
    return f"{WORDS[k % 5]} {k} " * (1 + k % 4) + "and an end"


def record(k: int) -> dict[str, Any]:
    source = ["web", "code", "books"][k % 3]
    return {"text": text(k), "meta": {"set": source} if k % 7 else {}}


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    path = tmp_path / "labeled.jsonl"
    path.write_text("\n".join(json.dumps(record(k), ensure_ascii=False) for k in range(40)) + "\n\n")
    return path


def read(run: Path) -> tuple[RunConfig, dict[str, Any], dict[str, Any]]:
    names = (run_files.SUMMARY, run_files.VAL_DOCUMENTS)
    summary, documents = (json.loads((run / name).read_text()) for name in names)
    return load(run / run_files.CONFIG), summary, documents


def log_p(run: Path, config: RunConfig, tokens: np.ndarray) -> float:
    """NLL of all but the first token, each window of BLOCK on its own, in float64 from the model's plain logits."""
    model = GPT.from_state(config.model, torch.load(run / run_files.MODEL, weights_only=True)).eval()
    total = 0.0
    for start in range(0, len(tokens) - 1, BLOCK):
        piece = torch.from_numpy(tokens[start : start + BLOCK + 1].astype(np.int64))
        with torch.no_grad():
            logits = model(piece[None, :-1])[0][0].double()
        total -= float(logits.log_softmax(-1).gather(1, piece[1:, None]).sum())
    return total


def test_every_document(train: Callable[..., Path], labeled: Path) -> None:
    settings = {"data__file_path": labeled, "data__test_size": 14, "data__domain_key": "meta.set"}
    run = train("run", trainer__eval_tokens=10**6, **settings)
    config, summary, found = read(run)
    store = open_tokens(config.data, Path(config.system.cache_dir))
    documents = [store.document(k) for k in range(26, 40)]
    assert found["line"] == list(range(27, 41))
    assert found["tokens"] == [len(tokens) - 1 for tokens in documents]
    expected = [log_p(run, config, tokens) for tokens in documents]
    np.testing.assert_allclose(found["nll"], expected, rtol=0, atol=1e-4)
    assert sum(found["nll"]) / sum(found["tokens"]) == pytest.approx(summary["val_nll"], rel=1e-12)
    sizes = [len(text(k).encode()) * (len(t) - 1) / len(t) for k, t in zip(range(26, 40), documents, strict=True)]
    np.testing.assert_allclose(found["bytes"], sizes, atol=0.001)
    assert summary["val_documents"] == 14 and summary["val_tokens"] == sum(found["tokens"])
    bits = summary["val_nll"] * summary["val_tokens"] / (math.log(2) * sum(sizes))
    assert summary["val_bits_per_byte"] == pytest.approx(bits, rel=1e-4)

    domains = [record(k)["meta"].get("set", "(none)") for k in range(26, 40)]
    assert found["domain"] == domains and "(none)" in domains
    assert summary["val_nll_by_domain"].keys() == set(domains)
    for name, entry in summary["val_nll_by_domain"].items():
        rows = [k for k in range(14) if domains[k] == name]
        tokens = sum(found["tokens"][k] for k in rows)
        assert (entry["tokens"], entry["documents"]) == (tokens, len(rows))
        assert entry["nll"] == pytest.approx(sum(found["nll"][k] for k in rows) / tokens, rel=1e-12)


def test_only_scored_tokens_count(train: Callable[..., Path], labeled: Path) -> None:
    run = train("run", trainer__eval_tokens=80, data__file_path=labeled, data__test_size=14)
    _, summary, found = read(run)
    assert sum(found["tokens"]) == summary["val_tokens"] <= 80
    assert "domain" not in found and "val_nll_by_domain" not in summary
    assert sum(found["nll"]) / sum(found["tokens"]) == pytest.approx(summary["val_nll"], rel=1e-12)
    whole = train("whole", trainer__eval_tokens=10**6, data__file_path=labeled, data__test_size=14)
    assert set(found["line"]) <= set(read(whole)[2]["line"])
    assert read(whole)[1]["val_fingerprint"] != summary["val_fingerprint"]


def test_a_compressed_corpus_has_the_same_records(train: Callable[..., Path], labeled: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(labeled.read_bytes()))
    settings = {"data__domain_key": "meta.set", "data__test_size": 9}
    plain, again = (train(path.stem, data__file_path=path, **settings) for path in (labeled, packed))
    assert read(plain)[2] == read(again)[2]
    assert read(plain)[1]["val_fingerprint"] == read(again)[1]["val_fingerprint"]


def test_one_of_several_runs_reads_a_compressed_corpus(tmp_path: Path) -> None:
    calls = []

    def read() -> Records:
        calls.append(1)
        time.sleep(0.3)
        return Records(bytes=[3], domains=["code"])

    path = tmp_path / "heldout.json"
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: read_once(path, read), range(3)))
    assert found == [read()] * 3 and len(calls) == 2
    path.write_text("damaged")
    assert read_once(path, read) == found[0] and len(calls) == 3
    assert read_once(path, read) == found[0] and len(calls) == 3
    assert [file.name for file in tmp_path.iterdir()] == ["heldout.json"]


def test_a_cache_that_lost_its_index(train: Callable[..., Path], labeled: Path, cache_dir: Path) -> None:
    settings = {"data__file_path": labeled, "data__domain_key": "meta.set", "system__cache_dir": cache_dir}
    _, _, found = read(train("run", **settings))
    for index in cache_dir.glob("tokens/*/index.json"):
        index.unlink()
    _, _, again = read(train("again", **settings))
    assert again == {name: column for name, column in found.items() if name != "domain"}


def test_a_file_of_ids_as_held_out_text(train: Callable[..., Path], corpus: Path, tmp_path: Path) -> None:
    np.tile(np.arange(1000, dtype="<u2"), 2).tofile(tmp_path / "val.bin")
    _, summary, found = read(train("run", data__test_file=tmp_path / "val.bin", trainer__eval_tokens=20 * BLOCK))
    assert summary["val_tokens"] == 20 * BLOCK and found["tokens"] == [BLOCK] * 20
    assert summary["val_documents"] == 20 and all(size > 0 for size in found["bytes"])


def test_nothing_held_out(train: Callable[..., Path], labeled: Path) -> None:
    run = train("run", data__file_path=labeled, data__test_size=0)
    assert not (run / run_files.VAL_DOCUMENTS).exists()


def test_domains() -> None:
    tree = {"meta": {"set": "web", "year": 2020, "tags": ["a"]}, "kind": None}
    assert find_domain(tree, "meta.set") == "web" and find_domain(tree, "meta.year") == "2020"
    for key in ("meta", "meta.tags", "kind", "other", "meta.set.more"):
        assert find_domain(tree, key) == ""
