"""Constrained Bayesian optimisation by ask and tell: a pure function of what was observed.

Importing this package loads neither torch nor numpy; the strategies that need them load on first use.
"""
