"""A plain PyTorch script that trains a small network to classify noisy digits. Five lines use ablatrix_run.

Alone: python torch_script.py. In a study: torch_script.yaml.
"""

import torch
from torch import nn

from ablatrix_run import run


def digits(number: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noisy 8 x 8 images of ten fixed shapes, (number, 64), and their classes, (number,)."""
    shapes = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    classes = torch.randint(10, (number,), generator=generator)
    return shapes[classes] + 2.5 * torch.randn(number, 64, generator=generator), classes


torch.manual_seed(run.seed)
model = nn.Sequential(nn.Linear(64, run.get("model.width", 32)), nn.ReLU(), nn.Linear(run.get("model.width", 32), 10))
optimizer = torch.optim.SGD(model.parameters(), lr=run.get("learning_rate", 0.1), momentum=run.get("momentum", 0.0))
held_out = digits(2000, torch.Generator().manual_seed(1))
first = 1
if run.saved("state.pt"):
    state = torch.load(run.saved("state.pt"), weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    first = state["step"] + 1
for step in range(first, run.get("steps", 300) + 1):
    x, y = digits(64, torch.Generator().manual_seed(1_000_000 * run.seed + step))  # the same batches in every cell
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0:
        with torch.no_grad():
            run.log(step, loss=loss, val_loss=nn.functional.cross_entropy(model(held_out[0]), held_out[1]))
    if run.should_stop():
        with run.checkpoint("state.pt") as path:
            torch.save({"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
        run.stop()
