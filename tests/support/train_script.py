"""A typical training script, without a model: it prints like nanoGPT, saves its state and can resume.

python train_script.py --out_dir=DIR --max_iters=N --learning_rate=X [--dropout=X] [--pause=SECONDS] [--save=STEPS]
                  [--listen=USR2] [--resume] [--crash=STEP]
"""

import json
import signal
import sys
import time
from pathlib import Path

flags = {}
for word in sys.argv[1:]:
    key, _, value = word.lstrip("-").partition("=")
    flags[key] = value
out = Path(flags["out_dir"])
out.mkdir(parents=True, exist_ok=True)
(out / "argv.json").write_text(json.dumps(sys.argv[1:]), encoding="utf-8")
state_path = out / "state.json"
steps, rate, drop = int(flags["max_iters"]), float(flags["learning_rate"]), float(flags.get("dropout", 0.2))
stops: list[int] = []
if "listen" in flags:
    signal.signal(getattr(signal, "SIG" + flags["listen"]), lambda *_: stops.append(1))


def save(step: int) -> None:
    temporary = out / "state.json.tmp"
    temporary.write_text(json.dumps({"step": step}), encoding="utf-8")
    temporary.replace(state_path)


first = 0
if "resume" in flags:
    first = json.loads(state_path.read_text(encoding="utf-8"))["step"]
    print(f"Resuming training from {out}")
for step in range(first, steps + 1):
    if step % 10 == 0:
        print(
            f"step {step}: train loss {4 - rate * step:.4f}, val loss {4.1 - rate * step + drop / 10:.4f}", flush=True
        )
    if step == int(flags.get("crash", -1)):
        sys.exit("RuntimeError: planted")
    if step % 2 == 0:
        print(f"iter {step}: loss {4 - rate * step:.4f}, time 12.50ms, mfu -100.00%", flush=True)
    if "save" in flags and step and step % int(flags["save"]) == 0:
        save(step)
    if stops:
        save(step + 1)
        sys.exit(0)
    time.sleep(float(flags.get("pause", 0)))
