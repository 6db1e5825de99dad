"""Quantiles of the distributions that confidence bounds come from. Standard library only."""

from __future__ import annotations

import math
from statistics import NormalDist

_NORMAL = NormalDist()


def normal_quantile(p: float) -> float:
    return _NORMAL.inv_cdf(p)


def student_quantile(p: float, degrees: float) -> float:
    """For p ≥ 0.5. The expansion of Abramowitz and Stegun 26.7.5: within 1 % from 4 degrees of freedom."""
    z = normal_quantile(p)
    return z + sum(
        term / degrees**i
        for i, term in enumerate(
            (
                (z**3 + z) / 4,
                (5 * z**5 + 16 * z**3 + 3 * z) / 96,
                (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
            ),
            start=1,
        )
    )


def normal_of_student(t: float, degrees: float) -> float:
    """The normal deviate with the same tail as Student's t (Wallace 1959)."""
    size = (8 * degrees + 1) / (8 * degrees + 3) * math.sqrt(degrees * math.log1p(t * t / degrees))
    return math.copysign(size, t)


def beta_upper_tail(p: float, a: float, b: float) -> float:
    """1 - x, where x is the quantile at p ≥ 0.5 of a beta distribution with a > b.

    Abramowitz and Stegun 26.5.22, and the limit of a gamma distribution where b is small.
    """
    if b < _SMALL:
        return -math.expm1(-_gamma_quantile(1.0 - p, b) / (a + 0.5 * (b - 1.0)))
    z = normal_quantile(p)
    ra, rb = 1.0 / (2.0 * a - 1.0), 1.0 / (2.0 * b - 1.0)
    h, lam = 2.0 / (ra + rb), (z * z - 3.0) / 6.0
    w = -z * math.sqrt(h + lam) / h - (rb - ra) * (lam + 5.0 / 6.0 - 2.0 / (3.0 * h))
    odds = b / a * math.exp(2.0 * w)
    return odds / (1.0 + odds)


_SMALL = 5.0


def _gamma_quantile(p: float, shape: float) -> float:
    """For a small p and a small shape, by fixed-point iteration on the series of the distribution."""
    whole = p * math.gamma(shape + 1.0)
    x = math.pow(whole, 1.0 / shape)
    for _ in range(30):
        term = series = 1.0
        for i in range(1, 40):
            term *= x / (shape + i)
            series += term
        x = math.pow(whole * math.exp(x) / series, 1.0 / shape)
    return x
