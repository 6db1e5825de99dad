"""What surrounds an emulated board: heat, throttling, over-current and a slow drift of its power.

Not part of the calibrated boards: they run without it unless it is attached. Every constant here is an
assumption of the emulation; the trip temperatures are defaults published from real boards.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from polythrottle_agent.emulation.behaviour import Shares
from polythrottle_agent.emulation.board import EmulatedBoard

POLL_S = 1.0
"""How often the thermal framework looks at a zone and moves its cooling device by one step."""

OVERCURRENT_EVENT_S = 0.01
"""One over-current event for each such stretch above the limit."""

OVERCURRENT_SLOWDOWN = 0.75
"""What the pulse skipper leaves of the GPU's clock while the limit is exceeded."""

OVERCURRENT_HOLD_S = 0.1
"""How long it goes on skipping after that."""


@dataclass(frozen=True)
class Environment:
    """Temperatures in °C, power in W, times in s.

    rise_c: what the board's power at max clocks heats it by, in the end. time_constant_s: of the heat sink.
    trip_c: above it the clocks are stepped down; `hysteresis_c` below it they step up again.
    overcurrent_w: input power above which the GPU's pulses are skipped; None: never.
    drift: amplitude of the slow drift of power, relative; drift_period_s: its period.
    """

    ambient_c: float = 25.0
    rise_c: float = 40.0
    time_constant_s: float = 60.0
    trip_c: float = 99.0
    hysteresis_c: float = 2.0
    overcurrent_w: float | None = None
    drift: float = 0.005
    drift_period_s: float = 1200.0


DEFAULT_ENVIRONMENT = Environment()


class Surroundings:
    """Heats an emulated board by what it draws, and throttles it. Attach with `Surroundings.attach`."""

    def __init__(self, board: EmulatedBoard, environment: Environment) -> None:
        self.board = board
        self.environment = environment
        self.temperature_c = environment.ambient_c
        self.cooling_state = 0
        """Levels taken off the GPU's and the CPU's highest clock; 0: not throttling."""
        self.overcurrent_events = 0
        self.on_throttle: Callable[[], None] = lambda: None
        tables = board.behaviour.board
        self._gpu_mhz, self._cpu_mhz = tables.gpu_mhz, tables.cpu_mhz
        point = board.behaviour.point(
            cpu_mhz=tables.cpu_mhz[-1],
            gpu_mhz=tables.gpu_mhz[-1],
            mem_mhz=tables.mem_mhz[-1],
            batch=board.nodes.batch,
        )
        self._c_per_w = environment.rise_c / board.behaviour.latency_and_power(point)[1]
        self._polled_s = board.clock.now()
        self._over_s = 0.0
        self._skips_until_s = -math.inf
        self._skipping = False
        # From a copy: attaching surroundings leaves the board's own noise as it was.
        copy = random.Random()
        copy.setstate(board.random.getstate())
        self._phase = copy.uniform(0.0, 2.0 * math.pi)

    @classmethod
    def attach(cls, board: EmulatedBoard, environment: Environment) -> Surroundings:
        """Put a board into an environment."""
        surroundings = cls(board, environment)
        board.observers.append(surroundings)
        return surroundings

    def use_tables(self, gpu_mhz: tuple[float, ...], cpu_mhz: tuple[float, ...]) -> None:
        """Step through other tables than the calibrated board's: those of another BSP."""
        self._gpu_mhz, self._cpu_mhz = gpu_mhz, cpu_mhz

    @property
    def max_cooling_state(self) -> int:
        return len(self._gpu_mhz) - 1

    @property
    def thermal_limit_mhz(self) -> float:
        """The GPU clock that the thermal framework allows."""
        return math.inf if self.cooling_state == 0 else self._gpu_mhz[-1 - self.cooling_state]

    @property
    def is_skipping(self) -> bool:
        """Whether over-current slows the GPU now."""
        return self._skipping

    def passed(self, began_s: float, lasted_s: float, power_w: float, _shares: Shares, /) -> None:
        environment = self.environment
        ends_s = began_s + lasted_s
        settled_c = environment.ambient_c + self._c_per_w * power_w
        decay = math.exp(-lasted_s / environment.time_constant_s)
        self.temperature_c = settled_c + (self.temperature_c - settled_c) * decay
        self._drift(ends_s)
        self._watch_current(ends_s, lasted_s, power_w)
        if ends_s - self._polled_s >= POLL_S:
            self._polled_s = ends_s
            self._poll_zone()

    def soak(self, temperature_c: float, ambient_c: float | None = None) -> None:
        """Put the board, and its surroundings if given, at a temperature at once: a test has no minutes."""
        self.temperature_c = temperature_c
        if ambient_c is not None:
            self.environment = replace(self.environment, ambient_c=ambient_c)
        self._poll_zone()

    def _drift(self, now_s: float) -> None:
        turns = now_s / self.environment.drift_period_s
        self.board.power_drift = 1.0 + self.environment.drift * math.sin(2.0 * math.pi * turns + self._phase)

    def _watch_current(self, now_s: float, lasted_s: float, power_w: float) -> None:
        limit_w = self.environment.overcurrent_w
        if limit_w is not None and power_w > limit_w:
            self._over_s += lasted_s
            events = int(self._over_s / OVERCURRENT_EVENT_S)
            self._over_s -= events * OVERCURRENT_EVENT_S
            self.overcurrent_events += max(events, 0 if self._skipping else 1)
            self._skips_until_s = now_s + OVERCURRENT_HOLD_S
        skipping = now_s < self._skips_until_s
        if skipping != self._skipping:
            self._skipping = skipping
            self._throttle()

    def _poll_zone(self) -> None:
        environment, before = self.environment, self.cooling_state
        if self.temperature_c >= environment.trip_c:
            self.cooling_state = min(before + 1, self.max_cooling_state)
        elif self.temperature_c < environment.trip_c - environment.hysteresis_c:
            self.cooling_state = max(before - 1, 0)
        if self.cooling_state != before:
            self._throttle()

    def _throttle(self) -> None:
        nodes, state = self.board.nodes, self.cooling_state
        gpu = self.thermal_limit_mhz
        if self._skipping:
            gpu = min(gpu, nodes.gpu_max_mhz) * OVERCURRENT_SLOWDOWN
        nodes.gpu_limit_mhz = gpu
        nodes.cpu_limit_mhz = math.inf if state == 0 else self._cpu_mhz[max(-1 - state, -len(self._cpu_mhz))]
        self.board.clocks_changed()
        self.on_throttle()
