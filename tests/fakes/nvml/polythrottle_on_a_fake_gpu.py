"""The `polythrottle` command on a pretended GPU, whose own time it runs on and whose queries it serves.

Only the workload and the clock are stood in for: there is no workload for real hardware yet, and an hour of
trials should not take one. Everything else is what a user runs.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from gpu_workload import GpuWorkload
from nvml_fake import FakeNvml, HardwareClock

from polythrottle.cli.main import main
from polythrottle_agent import hardware
from polythrottle_agent.workloads.opening import Opened


def run(library: Path, arguments: list[str]) -> None:
    fake = FakeNvml(library)
    clock = HardwareClock(fake)
    hardware.RealClock = lambda: clock  # type: ignore[assignment,misc]
    hardware.find_workload = lambda *_: Opened(GpuWorkload(fake, clock))  # type: ignore[assignment]
    main(arguments)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2:])
