"""A training script that writes down what it sees of its environment."""

import hashlib
import json
import os
import sys
from pathlib import Path

out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
(out / "seen.json").write_text(json.dumps(sorted(os.environ)), encoding="utf-8")
hashes = {name: hashlib.sha256(os.fsencode(value)).hexdigest() for name, value in os.environ.items()}
(out / "seen.sha256").write_text(json.dumps(hashes), encoding="utf-8")
for step in range(3):
    print(f"iter {step}: loss {2.0 - step / 10}", flush=True)
if "crash" in sys.argv:
    raise RuntimeError(f"planted in {out}, with {len(os.environ)} variables")
