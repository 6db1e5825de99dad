"""The emulated workload, served from another process than the board's: over the files of a mounted board.

The board says how long each batch takes at the clocks that hold, and is busy meanwhile; this process lets
the time pass on its own clock. If it dies, the board is at rest as soon as its last batch is over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from polythrottle.clock import Clock
from polythrottle.configuration import Level, format_level
from polythrottle.errors import InvalidInputError
from polythrottle.latency.statistic import quantile_of
from polythrottle.measurement import Unavailable
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.controls.emulated import BATCH_KNOB
from polythrottle_agent.emulation.boards import BATCH_SIZES, DEFAULT_BATCH_SIZE
from polythrottle_agent.emulation.control_files import CONTROL_DIRECTORY
from polythrottle_agent.ports import ControlError, MayEnd, Served
from polythrottle_agent.workloads.emulated import closed_loop


class RemoteBoard:
    """The files of `.emulator/` under the root of a mounted board."""

    def __init__(self, root: Path) -> None:
        """
        Raises:
            InvalidInputError: no emulated board is mounted there.
        """
        self._files = root / CONTROL_DIRECTORY.lstrip("/")
        if not (self._files / "batch").is_file():
            raise InvalidInputError(
                f"No emulated board is mounted at {root}; "
                f"run `polythrottle emulate board BOARD --mount {root}`."
            )

    @staticmethod
    def is_at(root: Path) -> bool:
        """Whether an emulated board is mounted there."""
        return (root / CONTROL_DIRECTORY.lstrip("/") / "batch").is_file()

    def state(self) -> Mapping[str, Any]:
        """What holds on the board; see `control_files.state_of`.

        Raises:
            ControlError: the board does not answer.
        """
        return self._json("state")

    def service_url(self) -> str | None:
        """Where an HTTP service that runs on the board answers queries; None where there is none.

        Raises:
            ControlError: the board does not answer.
        """
        url = self.state()["service_url"]
        return None if url is None else str(url)

    def begin_window(self) -> None:
        """
        Raises:
            ControlError: the board does not answer.
        """
        self.write("window", "1")

    def begin_batch(self) -> float:
        """Latency in seconds of the batch that has just begun.

        Raises:
            ControlError: the board does not answer.
        """
        return float(self._json("batch")["latency_s"])

    def command(self, line: str) -> None:
        """Run one command of the control file.

        Raises:
            ControlError: it was refused.
        """
        self.write("control", line)

    def read(self, name: str) -> str:
        """
        Raises:
            ControlError: the board does not answer.
        """
        try:
            return (self._files / name).read_text(encoding="utf-8")
        except OSError as error:
            raise ControlError(f"the emulated board does not answer: {error.strerror}") from error

    def write(self, name: str, text: str) -> None:
        """
        Raises:
            ControlError: the board refused, or does not answer.
        """
        try:
            with (self._files / name).open("wb", buffering=0) as file:
                file.write(f"{text}\n".encode())
        except OSError as error:
            raise ControlError(f"the emulated board refused {text!r}: {error.strerror}") from error

    def _json(self, name: str) -> Mapping[str, Any]:
        answer: Mapping[str, Any] = json.loads(self.read(name))
        return answer


class RemoteEmulatedWorkload:
    """Closed loop, one batch in flight, on a board in another process."""

    def __init__(self, root: Path, clock: Clock) -> None:
        """
        Raises:
            InvalidInputError: no emulated board is mounted at `root`, or an HTTP service runs on it.
        """
        self._board = RemoteBoard(root)
        url = self._board.service_url()
        if url is not None:
            raise InvalidInputError(
                f"An HTTP service runs on the emulated board; name it: --workload http:{url} --rate 20."
            )
        self._clock = clock
        self._name = str(self._board.state()["workload"])

    @property
    def name(self) -> str:
        return self._name

    @property
    def model_version(self) -> str:
        return f"{self._name}-fp16-emulated"

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return BATCH_SIZES

    @property
    def default_batch_size(self) -> int:
        return DEFAULT_BATCH_SIZE

    def check_statistic(self, statistic: str) -> None:
        quantile_of(statistic, "An emulated workload")

    def warm_up(self, n_queries: int) -> None:
        if n_queries > 0:
            for _ in range(math.ceil(n_queries / int(self._board.state()["batch_size"]))):
                self._serve_batch()

    def serve(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None = None) -> Served:
        quantile_of(statistic, "An emulated workload")
        try:
            state = self._board.state()
            self._board.begin_window()
            return closed_loop(
                plan,
                statistic,
                int(state["batch_size"]),
                self._serve_batch,
                float(state["energy_scatter"]),
                may_end,
            )
        except ControlError as error:
            return Served(0, 0.0, Unavailable(str(error)))

    def tell_queries(self, on_query: Callable[[float, int], None], should_stop: Callable[[], bool]) -> None:
        """Serve batch after batch; see `guard.sources.TellsQueries`."""
        self._board.begin_window()
        batch = int(self._board.state()["batch_size"])
        while not should_stop():
            on_query(self._serve_batch(), batch)

    def _serve_batch(self) -> float:
        latency_s = self._board.begin_batch()
        self._clock.sleep(latency_s)
        return latency_s


class RemoteBatchControl:
    """The batch size of the workload on a mounted board."""

    def __init__(self, root: Path) -> None:
        """
        Raises:
            InvalidInputError: no emulated board is mounted at `root`.
        """
        self._board = RemoteBoard(root)

    @property
    def knob(self) -> str:
        return BATCH_KNOB

    @property
    def levels(self) -> tuple[Level, ...]:
        return tuple(float(batch) for batch in BATCH_SIZES)

    def save(self) -> Mapping[str, str]:
        return {"batch": self._board.read("batch_size").strip()}

    def apply(self, level: Level) -> None:
        if level not in self.levels:
            raise InvalidInputError(f"{BATCH_KNOB} has no level {format_level(level)}.")
        self._board.write("batch_size", f"{level:g}")

    def accepted(self) -> Level:
        return float(self._board.read("batch_size"))

    def observed(self) -> Level:
        return self.accepted()

    def restore(self, saved: Mapping[str, str]) -> None:
        if "batch" not in saved:
            raise ControlError(f"the saved state of {BATCH_KNOB} lacks batch")
        self._board.write("batch_size", saved["batch"])
