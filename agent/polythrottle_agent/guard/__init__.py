"""The guard: watches live traffic under a configuration, and goes back to the last known good one.

`states` and `machine` decide, purely; `sliding` and `changes` judge latencies; `sources` and `health` look;
`falling_back` acts; `runner` ties them together; `events` tells.
"""
