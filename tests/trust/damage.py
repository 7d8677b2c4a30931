"""Damage as disks, crashes, editors and other people do it: bytes in, other bytes out, by a random generator."""

from __future__ import annotations

import random
from collections.abc import Callable

WORDS = (b"", b"\0", b"\xff\xfe", b"nan", b"NaN", b"inf", b"-Infinity", b"1e999", b"9" * 400, b"9" * 5000, b"-1")
WORDS += (b"null", b"[]", b"{}", b"true", b'""', b'"x"', b"[" * 3000, b'"\\ud800"', b"\xe2\x80\xa8", b"\x85", b"\r\n")
WORDS += (b"\n", b",", b"|", b"1_0", "٣".encode(), b"1.5", b"0", b"../../x", b"%s%n", b"<script>", b"=1+1", b"\x1b[2J")


def cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def inserted(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(WORDS) + data[at:]


def replaced(rng: random.Random, data: bytes) -> bytes:
    """A value, most of the time: what stands between two marks of JSON, CSV or Slurm's answers."""
    marks = [i for i, byte in enumerate(data) if byte in b',:|=\n"[]{} ']
    if len(marks) < 2:
        return rng.choice(WORDS)
    first = rng.randrange(len(marks) - 1)
    return data[: marks[first] + 1] + rng.choice(WORDS) + data[marks[first + 1] :]


def swapped(rng: random.Random, data: bytes) -> bytes:
    """Lines in another order, one of them twice."""
    lines = data.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join([*lines, *lines[:1]])


def zeroed(rng: random.Random, data: bytes) -> bytes:
    """A block that never reached the disk."""
    at, size = rng.randrange(len(data)), rng.randint(1, 4096)
    return data[:at] + bytes(len(data[at : at + size])) + data[at + size :]


KINDS: tuple[Callable[[random.Random, bytes], bytes], ...] = (cut, flipped, inserted, replaced, swapped, zeroed)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """One to three damages, one after the other; now and then something else altogether."""
    if rng.random() < 0.03:
        return rng.choice((b"", bytes(rng.randrange(256) for _ in range(200)), rng.choice(WORDS)))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(KINDS)(rng, data) if data else b"x"
    return data
