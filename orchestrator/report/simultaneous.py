"""Simultaneous inference for contrasts that share one noise estimate (Dunnett 1955, J. Am. Stat. Assoc. 50, 1096).

For t statistics T_i = Z_i / s with correlated normal Z_i and a common s, the distribution of max |T_i| gives critical
values and adjusted p values. If the correlations are products b_i b_j, it is a double integral, evaluated by
quadrature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from scipy.special import gammainccinv, gammaincinv, gammaln, ndtr, stdtr, stdtrit

NODES = 96  # of each Gauss-Legendre rule
FAR = 8.5  # beyond it the standard normal density is below 1e-16
TAIL = 1e-16  # of the distribution of s
MANY = 200  # statistics
MANY_DF = 20  # with fewer degrees of freedom the tail is too long for the polynomial
DEGREE = 120
CLOSE = 0.9995  # largest loading
MOST_LOADINGS = 24  # distinct loadings; more are rounded, which changes p values by less than 1% (relative)
DIGITS = (12, 2)


@dataclass(frozen=True)
class Joint:
    """The joint distribution of m t statistics.

    loadings: pairs (b, number of statistics that have it); df: degrees of freedom of the common noise estimate.
    """

    loadings: tuple[tuple[float, int], ...]
    df: int

    @cached_property
    def size(self) -> int:
        """Number of statistics."""
        return sum(number for _, number in self.loadings)

    def p_value(self, t: float) -> float:
        """Return P(max |T_i| >= |t|): the adjusted two-sided p value of a statistic t."""
        if self.size == 1:
            return 2 * float(stdtr(self.df, -abs(t)))
        s, weight = _noise(self.df)
        z, density = _normal()
        inside = np.ones((len(s), len(z)))
        for b, number in self.loadings:
            rest = np.sqrt(1 - b * b)
            upper, shift = abs(t) * s[:, None] / rest, b * z[None, :] / rest
            inside *= (ndtr(upper - shift) - ndtr(-upper - shift)) ** number
        return float(np.clip(weight @ (1 - inside) @ density, 0.0, 1.0))

    def p_values(self, t: np.ndarray) -> np.ndarray:
        """Return the p value of each statistic, (m,). For many statistics, an interpolating polynomial is used."""
        if len(t) <= MANY or self.df < MANY_DF:
            return np.array([self.p_value(value) for value in t])
        found = np.polynomial.chebyshev.chebval(2 * _squeeze(np.abs(t)) - 1, _polynomial(self))
        return np.asarray(np.clip(found, 0.0, 1.0))

    def critical(self, alpha: float) -> float:
        """Return the t that max |T_i| exceeds with probability alpha."""
        return _critical(self, alpha)


@lru_cache(maxsize=256)
def _critical(joint: Joint, alpha: float) -> float:
    low, high = (float(stdtrit(joint.df, 1 - alpha / (2 * m))) for m in (1, joint.size))
    while high - low > 1e-11 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if joint.p_value(middle) > alpha else (low, middle)
    return (low + high) / 2


def _squeeze(t: np.ndarray) -> np.ndarray:
    """Map [0, inf) to [0, 1), on which p is smooth down to 0."""
    return np.asarray(t / np.hypot(t, 4.0))


@lru_cache(maxsize=16)
def _polynomial(joint: Joint) -> np.ndarray:
    """Return Chebyshev coefficients of the p value as a function of the squeezed t, exact to 1e-10."""

    def p_at(x: np.ndarray) -> np.ndarray:
        u = np.minimum((x + 1) / 2, 1 - 1e-12)
        return np.array([joint.p_value(4 * v / np.sqrt(1 - v * v)) for v in u])

    return np.polynomial.chebyshev.chebinterpolate(p_at, DEGREE)


@lru_cache(maxsize=64)
def _noise(df: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of s, the square root of chi-squared over its degrees of freedom."""
    low, high = (float(np.sqrt(2 * q / df)) for q in (gammaincinv(df / 2, TAIL), gammainccinv(df / 2, TAIL)))
    root, width = _rule(low**0.5, high**0.5)  # denser nodes where s is small
    s, width = root**2, 2 * root * width
    log = np.log(2) + df / 2 * np.log(df / 2) - gammaln(df / 2) + (df - 1) * np.log(s) - df * s**2 / 2
    return s, width * np.exp(log)


@lru_cache(maxsize=1)
def _normal() -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of |z|, z standard normal: the integrand is even in z."""
    z, width = _rule(0.0, FAR)
    return z, width * np.exp(-(z**2) / 2) * np.sqrt(2 / np.pi)


def _rule(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    x, weight = np.polynomial.legendre.leggauss(NODES)
    return low + (high - low) * (x + 1) / 2, weight * (high - low) / 2


def product_loadings(correlation: np.ndarray, numbers: Sequence[int]) -> tuple[tuple[float, int], ...]:
    """Return loadings b whose products b_i b_j best fit the correlations (least squares).

    correlation: (G, G), between statistics of G groups of equal ones; on the diagonal, between two of the same group.
    numbers: (G,), statistics in each group. Exact if every contrast is a cell against one baseline and no run is
    missing; otherwise the factor-analytic approximation of Hsu (1992, J. Comput. Graph. Stat. 1, 151).
    """
    number = np.asarray(numbers, dtype=float)
    own = np.where(number > 1, np.diag(correlation), 0.0)
    off = correlation - np.diag(np.diag(correlation) - own)
    values, vectors = np.linalg.eigh(off * np.sqrt(np.outer(number, number)))
    b = np.clip(vectors[:, -1] * np.sqrt(np.maximum(values[-1], 0.0) / number), -CLOSE, CLOSE)
    for _ in range(500):
        weighted = off @ (number * b) - own * b
        rest = np.sum(number * b**2) - b**2
        step = np.clip(np.divide(weighted, rest, out=np.zeros_like(b), where=rest > 1e-12), -CLOSE, CLOSE)
        if np.max(np.abs(step - b)) < 1e-13:
            break
        b = (step + b) / 2
    for digits in DIGITS:
        merged: dict[float, int] = {}
        for size, count in zip(np.round(np.abs(b), digits).tolist(), numbers, strict=True):
            merged[size] = merged.get(size, 0) + count
        if len(merged) <= MOST_LOADINGS:
            break
    return tuple(sorted(merged.items()))
