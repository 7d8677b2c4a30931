"""A training script that writes down what it sees of its environment.."""

import json
import os
import sys

out = sys.argv[1]
os.makedirs(out, exist_ok=True)
with open(os.path.join(out, "seen.json"), "w", encoding="utf-8") as file:
    json.dump(sorted(os.environ), file)
with open(os.path.join(out, "seen.sha256"), "w", encoding="utf-8") as file:
    import hashlib

    json.dump({name: hashlib.sha256(os.fsencode(value)).hexdigest() for name, value in os.environ.items()}, file)
for step in range(3):
    print(f"iter {step}: loss {2.0 - step / 10}", flush=True)
if "crash" in sys.argv:
    raise RuntimeError(f"planted in {out}, with {len(os.environ)} variables")
