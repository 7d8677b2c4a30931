"""One of the two processes of test_distributed.py: trains a small model in every way; the lead writes the rows.

`python -m tests.trainer.distributed_worker OUT STRATEGY...`, with the variables of torchrun; `torch.save` writes OUT.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from ablatrix.trainer.config import RunConfig
from ablatrix.trainer.distributed import strategies as parallel
from ablatrix.trainer.distributed.process_group import ProcessGroup
from ablatrix.trainer.distributed.rank_info import RankInfo
from ablatrix.trainer.loop import Trainer
from tests.support.callbacks import at
from tests.support.tiny_training import config, heldout, rows, source

STEPS, HALF = 10, 5
NO_DROPOUT = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)


PIPELINE = {"strategy": "pipeline", "pipeline_microbatches": 4}
# What each variant sets in `trainer` and in `model`
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ddp": ({"strategy": "ddp"}, {}),
    "fsdp": ({"strategy": "fsdp"}, {}),
    "fsdp-tied": ({"strategy": "fsdp", "grad_accum": 2}, {**NO_DROPOUT, "tie_embeddings": True, "rope": True}),
    "gpipe": ({**PIPELINE, "pipeline_schedule": "gpipe", "pipeline_split": (2, 1)}, {**NO_DROPOUT, "n_layer": 3}),
    "1f1b": ({**PIPELINE, "pipeline_schedule": "1f1b"}, NO_DROPOUT),
    "interleaved": ({**PIPELINE, "pipeline_stages_per_rank": 2}, {**NO_DROPOUT, "n_layer": 4}),
    "interleaved-split": (
        {**PIPELINE, "pipeline_stages_per_rank": 2, "pipeline_split": (2, 1, 1, 1)},
        {**NO_DROPOUT, "n_layer": 5},
    ),
    "1f1b-dropout": ({**PIPELINE, "optimizer": "muon"}, {"n_layer": 3}),
}
RECOMPUTED = {f"{name}-recomputed": name for name in ("ddp", "fsdp", "1f1b-dropout")}
for variant, name in RECOMPUTED.items():
    VARIANTS[variant] = ({**VARIANTS[name][0], "activation_checkpointing": True}, VARIANTS[name][1])


def settings(variant: str = "", alone: bool = False, **more: Any) -> RunConfig:
    """alone: the same run in one process."""
    trainer, model = VARIANTS.get(variant, ({}, {}))
    given = {**trainer, "max_iters": STEPS, "log_interval": 1, "device": "cpu"}
    given |= {"eval_interval": HALF, "ckpt_interval": HALF, **({"strategy": "single"} if alone else {})}
    return config(**{**given, "model": model, **more})


def train(config: RunConfig, group: ProcessGroup | None, start: dict[str, Any] | None = None) -> dict[str, Any]:
    """Rows and final state of a run; and the state half-way."""
    run = Trainer(config, source, heldout(), "cpu", parallel.make(config, torch.device("cpu"), group))
    if start is not None:
        run.load_state(start)
    got, half = rows(run), []
    run.add_callback(at("on_checkpoint", lambda t: half.append(copied(t.state()))))
    run.run()
    state, nll = copied(run.state()), run.result()[0]
    assert run.window_nll is not None
    by_window = torch.from_numpy(run.window_nll)
    return {"rows": got, "half": half[0] if half else None, "state": state, "nll": nll, "windows": by_window}


def copied(tree: Any) -> Any:
    """A state whose tensors the next step does not change."""
    if isinstance(tree, dict):
        return {key: copied(value) for key, value in tree.items()}
    return tree.clone() if isinstance(tree, torch.Tensor) else tree


def main() -> None:
    out, *strategies = sys.argv[1:]
    ranks = RankInfo.from_environment(settings("ddp"))
    group = ProcessGroup.join(ranks, settings("ddp"))
    found = {}
    for strategy in strategies:
        whole = train(settings(strategy), group)
        # a state is complete in the lead only; a run reads it from a file
        if ranks.rank == 0:
            torch.save(whole["half"], f"{out}.half")
        group.any(False)
        half = torch.load(f"{out}.half", weights_only=True)
        found[strategy] = {**whole, "resumed": train(settings(strategy), group, half)}
    if ranks.rank == 0:
        torch.save(found, out)
    group.leave()


if __name__ == "__main__":
    main()
