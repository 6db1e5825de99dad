"""Latencies of queues whose truth is known, through the estimators that judge an SLO."""
