"""A configuration meets a share of the traffic first, where somebody can split it, and all of it only then.

Whoever routes queries decides how many reach this device: a proxy, a load balancer. So what splits traffic
is a program of the user's own, called with the share; a workload that can do it by itself is one more member.
"""

from __future__ import annotations

import logging
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

from polythrottle.errors import InvalidInputError
from polythrottle.measurement import Unavailable
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.ports import ControlError, MayEnd, Served, Workload, stages_of

log = logging.getLogger(__name__)

PLACEHOLDER = "{share}"
COMMAND_S = 30.0
"""How long the user's program may take."""
CANARY_QUERIES = 200
CANARY_WINDOW_S = 10.0
LONGEST_CANARY = 4.0
"""A canary window takes so many times its usual length at most: a share of the traffic may be little."""


class SplitsTraffic(Protocol):
    """Sends a share of the traffic to this device, and the rest elsewhere."""

    def set_share(self, share: float) -> None:
        """
        Args:
            share: above 0, up to 1 for all of it.

        Raises:
            ControlError: the traffic could not be split.
        """


class CommandSplit:
    """Runs the user's program with the share as a number from 0 to 1; no shell is involved."""

    def __init__(self, command: str) -> None:
        """
        Raises:
            InvalidInputError: it cannot be read as a program with arguments, or takes no share.
        """
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise InvalidInputError(f"The canary command {command!r} cannot be read: {error}.") from error
        if not any(PLACEHOLDER in word for word in self._words):
            raise InvalidInputError(
                f"The canary command {command!r} takes no share; write {PLACEHOLDER} where it goes, as in "
                f"'set-weight here {PLACEHOLDER}'."
            )

    def set_share(self, share: float) -> None:
        words = [word.replace(PLACEHOLDER, f"{share:g}") for word in self._words]
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            why = "it took too long" if isinstance(error, subprocess.TimeoutExpired) else error.strerror
            raise ControlError(f"the traffic could not be split by {words[0]}: {why}") from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise ControlError(
                f"the traffic could not be split: {words[0]} ended with {done.returncode}"
                + (f" ({said[-1][:200]})" if said else "")
            )


class CanaryWorkload:
    """A workload whose configurations first prove themselves on a share of the traffic.

    Only windows that may be cut short have a canary: the device as found and max clocks serve all of it.
    Between windows the device gets the share alone, so that the next configuration begins with it.
    """

    def __init__(self, workload: Workload, split: SplitsTraffic, share: float) -> None:
        self._workload = workload
        self._split = split
        self._share = share

    @property
    def name(self) -> str:
        return self._workload.name

    @property
    def model_version(self) -> str:
        return self._workload.model_version

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return self._workload.batch_sizes

    @property
    def default_batch_size(self) -> int:
        return self._workload.default_batch_size

    @property
    def stages(self) -> Mapping[str, Workload]:
        return stages_of(self._workload)

    def check_statistic(self, statistic: str) -> None:
        self._workload.check_statistic(statistic)

    def warm_up(self, n_queries: int) -> None:
        self._workload.warm_up(n_queries)

    def serve(self, plan: MeasurementPlan, statistic: str, may_end: MayEnd | None = None) -> Served:
        try:
            if plan.abort_latency_s is not None:
                served = self._canary(plan, statistic)
                if served is not None:
                    return served
            self._split.set_share(1.0)
            try:
                return self._workload.serve(plan, statistic, may_end)
            finally:
                self._split.set_share(self._share)
        except ControlError as error:
            return Served(0, 0.0, Unavailable(str(error)))

    def _canary(self, plan: MeasurementPlan, statistic: str) -> Served | None:
        """The canary's window where it ends the trial; None where the configuration may have all traffic."""
        self._split.set_share(self._share)
        short = replace(
            plan,
            min_queries=min(plan.min_queries, CANARY_QUERIES),
            min_window_s=min(plan.min_window_s, CANARY_WINDOW_S),
            max_window_s=min(plan.max_window_s, LONGEST_CANARY * CANARY_WINDOW_S),
            precision=None,
        )
        served = self._workload.serve(short, statistic)
        if served.aborted_reason is None and not isinstance(served.latency, Unavailable):
            return None
        note = f"ended on a canary share of {self._share:.0%} of the traffic"
        return replace(served, notes=(*served.notes, note))


@contextmanager
def with_canary(workload: Workload, split: SplitsTraffic, share: float) -> Iterator[CanaryWorkload]:
    """The workload with a canary; at the end all traffic comes to this device again.

    Raises:
        ControlError: the traffic cannot be split.
    """
    split.set_share(1.0)
    try:
        yield CanaryWorkload(workload, split, share)
    finally:
        try:
            split.set_share(1.0)
        except ControlError as error:
            log.error("all traffic should come to this device again, but %s", error)
