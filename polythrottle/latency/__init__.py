"""Latencies of one window: percentiles with honest bounds, when a window may end, when it is hopeless."""
