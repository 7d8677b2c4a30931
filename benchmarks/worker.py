"""One measured program: `python -m benchmarks.worker SPEC`, where SPEC is a JSON object; see `benchmarks.contest`.

Every program gets the same synthetic tokens, model sizes and dropout, and runs its own training loop. A loop that
cannot be imported because it is a script (nanoGPT's) is copied here line by line.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOKENS = 1 << 20  # size of the synthetic corpus
PEER_LR, BETAS, DECAY, CLIP = 3e-4, (0.9, 0.95), 0.1, 1.0


class Meter:
    """Called by a training loop after every step; blocks until `contest.Worker` asks for the next one."""

    def __init__(self, device: str) -> None:
        import torch

        self.device = torch.device(device)
        self.left = 0
        self.count = 0
        self.since = 0.0

    def __call__(self, *_: object) -> None:
        import torch

        from ablatrix.trainer.device import peak_memory

        self.left -= 1
        if self.left > 0:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - self.since
        if self.count:
            self.say(seconds=elapsed, memory=peak_memory(self.device))
        else:
            self.say(ready=True)
        line = sys.stdin.readline()
        if not line:
            sys.stdout.flush()
            raise SystemExit(0)
        self.count = self.left = int(line)
        self.since = time.perf_counter()

    def say(self, **answer: Any) -> None:
        print(json.dumps(answer), flush=True)


def tokens(spec: dict[str, Any]) -> Any:
    """Return the synthetic corpus (TOKENS,) int64: a few words are frequent and most are rare, as in text."""
    import numpy as np

    return (np.random.default_rng(0).pareto(1.0, TOKENS) * 20).astype(np.int64) % spec["vocab"]


def our_trainer(spec: dict[str, Any]) -> Any:
    """Return this project's Trainer, ready to run."""
    from ablatrix.trainer.device import pick_device, prepare, tune_products

    prepare()
    import numpy as np

    from ablatrix.trainer.config import RunConfig
    from ablatrix.trainer.cuda_graph import GraphedStep
    from ablatrix.trainer.loop import Trainer

    model = {"model_type": spec["model"], **spec.get("toggles", {})}
    dropout = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), spec["dropout"])
    settings = {"batch_size": spec["batch"], "max_iters": 10**9, "log_interval": 10, "ckpt_interval": 0}
    config = RunConfig.model_validate(
        {
            "data": {"file_path": "made-up", "block_size": spec["block"]},
            "model": {**model, **dropout},
            "trainer": {**settings, "eval_interval": 0, **spec.get("trainer", {})},
        }
    ).resolved(spec["vocab"])
    corpus, length = tokens(spec), spec["block"]

    def source(start: int, stop: int) -> Iterator[Any]:
        for i in range(start, stop):
            starts = np.random.Generator(np.random.Philox(key=[0, i])).integers(0, TOKENS - length, spec["batch"])
            windows = np.stack([corpus[s : s + length + 1] for s in starts])
            yield np.ascontiguousarray(windows[:, :-1]), np.ascontiguousarray(windows[:, 1:])

    empty = np.zeros((0, length), dtype=np.int64)
    device = pick_device(spec.get("device", "auto"))
    tune_products(device, Path(config.system.cache_dir))
    trainer = Trainer(config, source, (empty, empty), device)
    if spec.get("only") == "compiled":  # one half of trainer.compile
        trainer.model.compile_parts()
    elif spec.get("only") == "graphs":  # the other half of trainer.compile
        trainer._graph = GraphedStep(trainer._update, trainer.optimizer, device)
    return trainer


def ours(spec: dict[str, Any]) -> None:
    """Run this project's training loop."""
    trainer = our_trainer(spec)
    from ablatrix.trainer.callbacks.base import Callback

    meter = Meter(trainer.device.type)

    class StepTimes(Callback):
        def on_batch_end(self, trainer: Any) -> None:
            meter()

    trainer.add_callback(StepTimes())
    trainer.run()


def mingpt(spec: dict[str, Any]) -> None:
    """Run minGPT's own Trainer, from the checkout at spec["path"]."""
    sys.path.insert(0, spec["path"])
    import torch
    from mingpt.model import GPT
    from mingpt.trainer import Trainer

    model_config = GPT.get_default_config()
    model_config.model_type = spec["model"]
    model_config.vocab_size, model_config.block_size = spec["vocab"], spec["block"]
    model_config.embd_pdrop = model_config.resid_pdrop = model_config.attn_pdrop = spec["dropout"]
    corpus = torch.from_numpy(tokens(spec))
    length: int = spec["block"]

    class Windows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return TOKENS - length

        def __getitem__(self, i: int) -> Any:
            return corpus[i : i + length], corpus[i + 1 : i + length + 1]

    config = Trainer.get_default_config()
    config.num_workers, config.batch_size, config.learning_rate = 0, spec["batch"], PEER_LR
    trainer = Trainer(config, GPT(model_config), Windows())
    trainer.set_callback("on_batch_end", Meter(trainer.device))
    trainer.run()


def nanogpt(spec: dict[str, Any]) -> None:
    """Run nanoGPT's model, from the checkout at spec["path"], like its train.py with default settings."""
    sys.path.insert(0, spec["path"])
    import numpy as np
    import torch
    from model import GPT, GPTConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    sizes = {"gpt-nano": (3, 3, 48), "gpt-micro": (4, 4, 128), "gpt-mini": (6, 6, 192), "gpt2": (12, 12, 768)}
    n_layer, n_head, n_embd = sizes[spec["model"]]
    shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": spec["block"]}
    model = GPT(GPTConfig(**shape, bias=True, vocab_size=spec["vocab"], dropout=spec["dropout"])).to(device)
    optimizer = model.configure_optimizers(DECAY, PEER_LR, BETAS, device)
    half = spec.get("dtype") == "bfloat16"
    context: Any = torch.amp.autocast(device, dtype=torch.bfloat16) if half else contextlib.nullcontext()
    if spec.get("compile"):
        model = torch.compile(model)
    corpus, length = tokens(spec).astype(np.uint16), spec["block"]

    def get_batch() -> Any:
        ix = torch.randint(len(corpus) - length, (spec["batch"],))
        x = torch.stack([torch.from_numpy(corpus[i : i + length].astype(np.int64)) for i in ix])
        y = torch.stack([torch.from_numpy(corpus[i + 1 : i + 1 + length].astype(np.int64)) for i in ix])
        if device == "cuda":
            return x.pin_memory().to(device, non_blocking=True), y.pin_memory().to(device, non_blocking=True)
        return x, y

    meter = Meter(device)
    X, Y = get_batch()  # noqa: N806
    while True:
        with context:
            _, loss = model(X, Y)
        X, Y = get_batch()  # noqa: N806
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        meter()


def peak(spec: dict[str, Any]) -> None:
    """Measure the machine itself: a step is one product of two square matrices of size spec["size"]."""
    from ablatrix.trainer.device import pick_device, prepare, tune_products

    prepare()
    import torch

    device = pick_device("auto")
    tune_products(device)
    a, b = (torch.randn(spec["size"], spec["size"], device=device, dtype=getattr(torch, spec["dtype"])) for _ in "ab")
    out = torch.empty_like(a)
    meter = Meter(device.type)
    while True:
        torch.mm(a, b, out=out)
        meter()


KINDS = {"peak": peak, "ours": ours, "mingpt": mingpt, "nanogpt": nanogpt}


if __name__ == "__main__":
    parsed = json.loads(sys.argv[1])
    KINDS[parsed["kind"]](parsed)
