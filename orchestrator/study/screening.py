"""Two-level screening designs: regular fractions 2^(K-p) and Plackett-Burman designs, with their aliases.

A cell is a bit mask of the features that are on. Every design contains the cell with none on: the published tables with
+ read as off (Box, Hunter & Hunter 2005, Statistics for Experimenters, chapters 6 and 7).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

RESOLUTIONS = {3: "III", 4: "IV", 5: "V"}
MOST = {3: 15, 4: 16, 5: 11}  # resolution -> most features of a fraction: 16, 32 and 128 cells
# First rows; the rest are their cyclic shifts and a row of minus signs (Plackett & Burman 1946, Biometrika 33, 305)
PLACKETT_BURMAN = {12: "++-+++---+-", 20: "++--++++-+-+----++-", 24: "+++++-+-++--++--+-+----"}
LETTERS = "ABCDEFGHJKLMNOPQRSTUVWXYZ"  # for the features; I is the identity


@dataclass(frozen=True)
class Screen:
    """A screening design of `count` features.

    cells: masks of the features that are on. words: the generators of the defining relation, as masks, none for a full
    factorial; a cell has an even number of each word's features on. regular: False for a Plackett-Burman design, in
    which every main effect is partially aliased with most pairs.
    """

    count: int
    cells: tuple[int, ...]
    words: tuple[int, ...] = ()
    regular: bool = True

    @cached_property
    def relation(self) -> frozenset[int]:
        """Return all words of the defining relation: the products of the generators."""
        return frozenset(_products(self.words))

    @property
    def resolution(self) -> int | None:
        """Length of the shortest word, 3 for a Plackett-Burman design; None for a full factorial."""
        if not self.regular:
            return 3
        return min((word.bit_count() for word in self.relation), default=None)

    @property
    def pairs_free(self) -> bool:
        """True if no main effect or pair is aliased with another main effect or pair: resolution V or a factorial."""
        return self.resolution is None or self.resolution >= 5

    @cached_property
    def chains(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Return the groups of feature pairs in which only the sum of the pairs can be estimated.

        Pairs aliased with a main effect are left out; () for a Plackett-Burman design.
        """
        found: dict[int, list[tuple[int, int]]] = {}
        for pair in itertools.combinations(range(self.count), 2) if self.regular else ():
            coset = {_mask(pair) ^ word for word in self.relation}
            if not any(other.bit_count() == 1 for other in coset):
                found.setdefault(min(coset | {_mask(pair)}), []).append(pair)
        return tuple(map(tuple, found.values()))

    def aliased_pairs(self, feature: int) -> list[tuple[int, int]]:
        """Return the pairs aliased with a feature's main effect."""
        pairs = itertools.combinations(range(self.count), 2)
        return [pair for pair in pairs if _mask(pair) ^ (1 << feature) in self.relation]


def _mask(features: Sequence[int]) -> int:
    return sum(1 << feature for feature in features)


def _products(words: Sequence[int]) -> list[int]:
    """Return the products of all non-empty sets of words."""
    found: list[int] = []
    for word in words:
        found += [word, *(word ^ other for other in found)]
    return found


@lru_cache(maxsize=32)
def fractional(count: int, resolution: int = 5) -> Screen:
    """Return the smallest regular fraction of at least this resolution (3, 4 or 5), with minimum aberration.

    Returns a full factorial if there is none. Raises ValueError for more features than MOST.
    """
    if count > MOST[resolution]:
        raise ValueError(f"{count} features; at most {MOST[resolution]}")
    for base in range(1, count + 1):
        words = _generators(base, count - base, resolution)
        if words is not None:
            break
    cells = [cell for cell in range(2**count) if all((cell & word).bit_count() % 2 == 0 for word in words or ())]
    return Screen(count, _ordered(cells), words or ())


def _generators(base: int, more: int, resolution: int) -> tuple[int, ...] | None:
    """Return the words of `more` generated features over `base` free ones, None if this resolution is impossible.

    Searches all sets of generators, pruned at a word that is too short. The best set has the fewest words of the
    shortest length, then of the next length (minimum aberration; Fries & Hunter 1980, Technometrics 22, 601).
    """
    candidates = [c for c in range(2**base) if c.bit_count() >= resolution - 1]
    candidates.sort(key=lambda c: (-c.bit_count(), [-(c >> i & 1) for i in range(base)]))
    best: tuple[list[int], tuple[int, ...]] | None = None

    def extend(words: tuple[int, ...], products: list[int], start: int) -> None:
        nonlocal best
        if len(words) == more:
            lengths = [word.bit_count() for word in products]
            pattern = [lengths.count(length) for length in range(3, base + more + 1)]
            best = (pattern, words) if best is None or pattern < best[0] else best
            return
        for i in range(start, len(candidates)):
            word = candidates[i] | 1 << (base + len(words))
            new = [word, *(word ^ other for other in products)]
            if all(product.bit_count() >= resolution for product in new):
                extend((*words, word), products + new, i + 1)

    extend((), [], 0)
    return best and best[1]


def plackett_burman(count: int, runs: int | None = None) -> Screen:
    """Return the Plackett-Burman design of `count` features in `runs` cells, by default the smallest.

    Raises ValueError for too many features, or for so few that two cells are the same.
    """
    sizes = [size for size in PLACKETT_BURMAN if size > count and (runs is None or size == runs)]
    if not sizes:
        raise ValueError(f"{count} features; at most {(runs or max(PLACKETT_BURMAN)) - 1}")
    row = PLACKETT_BURMAN[sizes[0]]
    rows = [row[-i:] + row[:-i] for i in range(len(row))] + ["-" * len(row)]
    cells = {_mask([i for i in range(count) if row[i] == "+"]) for row in rows}
    if len(cells) < sizes[0]:
        raise ValueError(f"{count} features are too few")
    return Screen(count, _ordered(cells), regular=False)


def _ordered(cells: Sequence[int] | set[int]) -> tuple[int, ...]:
    """Return cells with few features first, and first features before later ones."""
    return tuple(sorted(cells, key=lambda c: (c.bit_count(), [i for i in range(c.bit_length()) if c >> i & 1])))


# ---- descriptions ----------------------------------------------------------------------------------------------------


def describe(screen: Screen, features: Sequence[str]) -> Iterator[str]:
    """Yield lines about the design: its size and resolution, its generators, and its aliases up to pairs."""
    cells = f"{screen.count} features in {len(screen.cells)} cells"
    if not screen.regular:
        yield (
            f"Plackett-Burman design: {cells}. It is blind to interactions: each main effect is partially aliased with "
            "every pair of other features"
        )
        return
    if screen.resolution is None:
        yield f"full factorial: {cells}; no fraction of this resolution exists"
        return
    free = screen.count - len(screen.words)
    name = f"2^({screen.count}-{len(screen.words)})"
    yield f"fractional factorial {name}: {cells}, resolution {roman(screen.resolution)}"
    key = ", ".join(f"{LETTERS[i]} {feature}" for i, feature in enumerate(features))
    made = ", ".join(f"{LETTERS[free + i]} = {_letters(word, free)}" for i, word in enumerate(screen.words))
    yield f"generators: {made} ({key}; + is off)"
    yield _aliases(screen)


def alias_warning(screen: Screen) -> str:
    """Return a sentence on what limits the estimates of a design, '' at resolution V or higher."""
    if not screen.regular:
        return (
            "This Plackett-Burman design is blind to interactions: a pair that interacts changes the main effects of "
            "all other features."
        )
    if screen.resolution == 3:
        return (
            "At resolution III main effects are aliased with pairs of other features: an interaction shows as a main "
            "effect."
        )
    return "At resolution IV only the sums of aliased interactions are estimated." if screen.resolution == 4 else ""


def roman(resolution: int) -> str:
    """Return a resolution as a Roman numeral, `V`."""
    return RESOLUTIONS.get(resolution) or ("VI", "VII", "VIII", "IX", "X", "XI")[resolution - 6]


def _letters(word: int, count: int) -> str:
    return "".join(LETTERS[i] for i in range(count) if word >> i & 1)


def _aliases(screen: Screen) -> str:
    """Return what is aliased, in letters."""
    if screen.pairs_free:
        return "aliases: none between main effects and pairs"
    parts = [
        " - ".join([LETTERS[feature], *(_letters(_mask(pair), screen.count) for pair in pairs)])
        for feature in range(screen.count)
        if (pairs := screen.aliased_pairs(feature))
    ]
    remark = "" if parts else "; main effects are aliased with no pair, of these pairs only the sum is estimated"
    parts += [
        " + ".join(_letters(_mask(pair), screen.count) for pair in chain) for chain in screen.chains if len(chain) > 1
    ]
    return f"aliases: {', '.join(parts)}{remark}"
