"""Convert a text to nanoGPT's character-level data: python characters.py TEXT_FILE DATA_FOLDER. Needs no network.

The last tenth of the text is held out. For a first try, any long text file will do.
"""

import pickle
import sys
from pathlib import Path

import numpy as np

text = Path(sys.argv[1]).read_text(encoding="utf-8", errors="replace")
folder = Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
characters = sorted(set(text))
number = {character: i for i, character in enumerate(characters)}
ids = np.array([number[character] for character in text], dtype=np.uint16)
cut = len(ids) * 9 // 10
ids[:cut].tofile(folder / "train.bin")
ids[cut:].tofile(folder / "val.bin")
meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": number}
(folder / "meta.pkl").write_bytes(pickle.dumps(meta))
print(f"{folder}: {len(ids):,} characters, {len(characters)} distinct")
