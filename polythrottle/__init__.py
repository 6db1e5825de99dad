"""polythrottle finds, applies and keeps the least energy per query that still meets a latency SLO."""

__version__ = "0.1.0"
