"""The locked clock range of a GPU: one actuator behind two knobs, which the driver never shows again.

NVML can set and reset a range and has no getter for it. So what was asked for is remembered here, and whether
it holds is seen only in the clock under load. A driver reload or reboot drops the lock without a word.
"""

from __future__ import annotations

import threading

from polythrottle_agent.nvml.gpu import Gpu


class ClockLock:
    """What we asked for. Both ends None: not locked by us.

    With only a maximum the GPU is locked to it; a floor, once held, opens the range below the maximum.
    """

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._lock = threading.Lock()
        self.maximum_mhz: float | None = None
        self.floor_mhz: float | None = None

    @property
    def range_mhz(self) -> tuple[float, float] | None:
        """The range that holds, or None: the driver chooses."""
        if self.maximum_mhz is None and self.floor_mhz is None:
            return None
        highest = self._gpu.graphics_clocks_mhz[-1] if self.maximum_mhz is None else self.maximum_mhz
        return (highest if self.floor_mhz is None else min(self.floor_mhz, highest), highest)

    def set(self, maximum_mhz: float | None, floor_mhz: float | None) -> None:
        """Set both ends at once, as NVML does. A floor above the maximum is held at the maximum.

        Raises:
            NvmlError: the driver refused; what was remembered before stays.
        """
        with self._lock:
            before = self.maximum_mhz, self.floor_mhz
            self.maximum_mhz, self.floor_mhz = maximum_mhz, floor_mhz
            try:
                wanted = self.range_mhz
                if wanted is None:
                    # Also where we know of no lock: a process before us may have left one.
                    self._gpu.call("nvmlDeviceResetGpuLockedClocks")
                else:
                    self._gpu.call("nvmlDeviceSetGpuLockedClocks", int(wanted[0]), int(wanted[1]))
            except BaseException:
                self.maximum_mhz, self.floor_mhz = before
                raise
