"""A client of the helper that takes a lease, sets the slowest clock and then only sends heartbeats."""

from __future__ import annotations

import time

from polythrottle_agent.privileged.client import HelperClient, Leased, helper_device

client = HelperClient()
_, controls, _ = helper_device(client)
lease = Leased(client, "hold.py")
lease.take({})
control = controls["cpu_freq_mhz"]
control.apply(control.levels[0])
print("held", flush=True)
while True:
    time.sleep(60)
