#!/usr/bin/python3 -SE
"""What a user serves, for `--workload command:…`: batches that take longer the slower the CPU is.

Nothing slows down in a virtual machine when a P-state does, so the time is computed from the P-state that the
hardware is in.
"""

import json
import random
import time

from hardware import LEVELS_KHZ, clock_khz

BATCH = 25
"""Queries served at once: sleeping is slow in a virtual machine."""

AT_TOP_S, FIXED_S = 0.004, 0.002

dice = random.Random(3)
while True:
    seconds = (FIXED_S + AT_TOP_S * LEVELS_KHZ[0] / clock_khz()) * dice.gauss(1.0, 0.01)
    time.sleep(seconds)
    print(json.dumps({"latency_s": seconds, "queries": BATCH}), flush=True)
