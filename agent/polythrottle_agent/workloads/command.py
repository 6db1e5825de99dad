"""`command:PROGRAM ARGUMENTS`: a program that serves queries itself and prints one line of JSON for each.

    {"latency_ms": 12.3}
    {"latency_s": 0.0123, "queries": 8}
    {"error": "out of memory"}

Other lines are left alone. What the program is started with may hold levels of knobs: `{batch_size}`,
`{gpu_freq_mhz}`, and `{rate}`.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from polythrottle.clock import Clock
from polythrottle.configuration import format_level
from polythrottle.errors import InvalidInputError, did_you_mean
from polythrottle.latency.statistic import quantile_of
from polythrottle.latency.window import LatencyWindow
from polythrottle.measurement import Provenance, Unavailable
from polythrottle.objective import format_latency
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.load.batching import BATCH_KNOB, BatchControl, BatchSize
from polythrottle_agent.ports import Control, ControlError, Lost, MayEnd, Served
from polythrottle_agent.workloads.child_program import ChildProgram
from polythrottle_agent.workloads.opening import Asked, Opened

FIRST_LINE_S = 120.0
"""A program may load its model for so long before its first query."""

POLL_S = 0.01
RATE = "rate"
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")


@dataclass(frozen=True)
class Line:
    """One line about `n_queries` queries that share a latency in seconds, or that failed."""

    latency_s: float
    n_queries: int
    error: str | None = None


class CommandWorkload:
    """Runs the program for the length of a window, from its warm-up on."""

    def __init__(
        self,
        words: tuple[str, ...],
        placeholders: Mapping[str, Control | float],
        clock: Clock,
        *,
        batch: BatchSize,
        time_out_s: float,
        provenance: Provenance,
    ) -> None:
        """
        Args:
            words: program and arguments, placeholders and all.
            placeholders: what each one stands for: a control's accepted level, or a number.
            time_out_s: a program that tells nothing for so long hangs.
        """
        self._words = words
        self._placeholders = placeholders
        self._clock = clock
        self._batch = batch
        self._time_out_s = time_out_s
        self._provenance = provenance
        self._program: ChildProgram | None = None
        self._has_told = False

    @property
    def name(self) -> str:
        """The program, and the script where an interpreter runs one."""
        words = [word for i, word in enumerate(self._words[:2]) if i == 0 or Path(word).is_file()]
        return " ".join(["command", *(Path(word).name for word in words)])

    @property
    def model_version(self) -> str:
        return f"command-{hashlib.sha256(shlex.join(self._words).encode()).hexdigest()[:12]}"

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return self._batch.sizes

    @property
    def default_batch_size(self) -> int:
        return self._batch.default

    def check_statistic(self, statistic: str) -> None:
        quantile_of(statistic, f"Workload {self.name}")

    def warm_up(self, n_queries: int) -> None:
        """Start the program and let its first queries pass.

        Raises:
            ControlError: it cannot be started, ends, or tells nothing.
        """
        if n_queries < 1:
            return
        self._stop()
        passed, has_answered, error = 0, False, ""
        try:
            self._start()
            while passed < n_queries:
                for line in self._told():
                    passed += line.n_queries
                    has_answered = has_answered or line.error is None
                    error = line.error or error
            if not has_answered:
                raise ControlError(f"{self.name} answers no query well: {error}")
        except BaseException:
            self._stop()
            raise

    def serve(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None = None) -> Served:
        window = LatencyWindow(plan, statistic)
        failures: Counter[str] = Counter()
        problem = None
        errors = 0
        began_s = self._clock.now()
        try:
            if self._program is None:
                self._start()
            else:
                self._program.lines()  # what was served before the window
            while not window.is_over(self._clock.now() - began_s, may_end):
                for line in self._told():
                    if line.error is None:
                        window.add(line.latency_s, line.n_queries)
                    else:
                        window.lose(line.n_queries)
                        failures[line.error] += 1
                        errors += line.n_queries
                if window.n_good == 0 and errors >= 20:
                    break
        except ControlError as error:
            problem = str(error)
        finally:
            duration_s = self._clock.now() - began_s
            self._stop()
        latency = window.reading(self._provenance)
        if problem is not None:
            latency = Unavailable(problem)
        elif window.n_good == 0 and failures:
            latency = Unavailable(f"no query was answered well: {failures.most_common(1)[0][0]}")
        return Served(
            n_queries=window.n_good,
            duration_s=duration_s,
            latency=latency,
            aborted_reason=None if isinstance(latency, Unavailable) else window.aborted_reason,
            lost=Lost(errors=errors),
            notes=tuple(f"failures: {reason} ({count:,} times)" for reason, count in failures.most_common(1)),
        )

    def _start(self) -> None:
        def level(match: re.Match[str]) -> str:
            found = self._placeholders[match[1]]
            return format_level(found if isinstance(found, float) else found.accepted())

        words = [_PLACEHOLDER.sub(level, word) for word in self._words]
        self._program = ChildProgram(words, self._clock)
        self._has_told = False

    def _stop(self) -> None:
        if self._program is not None:
            program, self._program = self._program, None
            program.stop()

    def _told(self) -> list[Line]:
        """The next lines about queries, at least one.

        Raises:
            ControlError: the program ended or hangs.
        """
        program = self._program
        assert program is not None
        patience_s = self._time_out_s if self._has_told else max(FIRST_LINE_S, self._time_out_s)
        give_up_s = self._clock.now() + patience_s
        odd: bytes | None = None
        while True:
            read = program.lines()
            lines = [line for line in (parse(raw, self._batch.value) for raw in read) if line is not None]
            if lines:
                self._has_told = True
                return lines
            odd = next((raw for raw in reversed(read) if raw.strip()), odd)
            hint = "" if odd is None else f"; its last line was {odd.decode('utf-8', 'replace')[:80]!r}"
            if program.ended is not None:
                raise ControlError(f"{self.name} {program.ended}, while more queries were wanted{hint}")
            if self._clock.now() >= give_up_s:
                raise ControlError(f"{self.name} told of no query for {format_latency(patience_s)}{hint}")
            self._clock.sleep(POLL_S)


def parse(raw: bytes, batch: int) -> Line | None:
    """What a line of output tells; None where it is about no query.

    Args:
        batch: queries of a line that does not say how many.
    """
    if not raw.lstrip().startswith(b"{"):
        return None
    try:
        told = json.loads(raw)
    except ValueError:
        return None
    n_queries = told.get("queries", batch)
    if not isinstance(n_queries, int) or n_queries < 1:
        return None
    if told.get("error"):
        return Line(math.inf, n_queries, str(told["error"])[:80])
    for key, unit_s in (("latency_ms", 1e-3), ("latency_s", 1.0)):
        value = told.get(key)
        if isinstance(value, (int, float)) and math.isfinite(value) and value > 0:
            return Line(value * unit_s, n_queries)
    return None


def open_command(asked: Asked) -> Opened:
    """
    Raises:
        InvalidInputError: the program is not installed, or a placeholder stands for nothing here.
    """
    options = asked.options
    try:
        words = tuple(shlex.split(asked.target))
    except ValueError as error:
        raise InvalidInputError(f"Workload {asked.text!r} cannot be read: {error}.") from error
    if not words or shutil.which(words[0]) is None:
        raise InvalidInputError(f"Workload {asked.text!r} names no program that is installed.")
    used = set(_PLACEHOLDER.findall(" ".join(words[1:])))
    taken = ["time_out_s"]
    taken += ["rate_per_s"] if RATE in used else []
    taken += ["batch_sizes"] if BATCH_KNOB in used else []
    asked.refuse_other_options(*taken)
    batch = options.batch() if BATCH_KNOB in used else BatchSize()
    control = BatchControl(batch)
    placeholders: dict[str, Control | float] = {**asked.controls, BATCH_KNOB: control}
    if RATE in used:
        if options.rate_per_s is None:
            raise InvalidInputError(
                f"Workload {asked.text!r} holds {{rate}}; add --rate with queries per second."
            )
        placeholders[RATE] = float(options.rate_per_s)
    for name in sorted(used):
        if name not in placeholders:
            raise InvalidInputError(
                f"Workload {asked.text!r}: {{{name}}} is no knob of this device; "
                f"{did_you_mean(name, [*placeholders, RATE])}"
            )
    workload = CommandWorkload(
        words,
        placeholders,
        asked.clock,
        batch=batch,
        time_out_s=options.time_out_s,
        provenance=asked.provenance,
    )
    load = f"{options.rate_per_s:g}/s, as the program does it" if RATE in used else "as the program does it"
    return Opened(workload, {control.knob: control} if batch.sizes else {}, load=load)
