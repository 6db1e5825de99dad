"""`polythrottle-agent`, the unprivileged service: holds a configuration under a lease and watches over it."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from polythrottle import __version__
from polythrottle.clock import Clock, RealClock
from polythrottle.configuration import Knob, Level, format_level
from polythrottle.errors import InvalidInputError, PolythrottleError
from polythrottle_agent.marks import marks_of
from polythrottle_agent.ports import ControlError
from polythrottle_agent.privileged.client import HelperClient, HelperError, Leased, helper_device, socket_path
from polythrottle_agent.privileged.keeper import Keeper
from polythrottle_agent.privileged.notify import Notifier
from polythrottle_agent.reconcile import INTERVAL_S, Reconciler
from polythrottle_agent.sysfs import Sysfs

log = logging.getLogger("polythrottle-agent")

HOLD_FILE = Path("/etc/polythrottle/hold.yaml")
"""A mapping from knobs to levels. Without it the agent only waits."""

STEP_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to stop. 0: stopped; 1: the helper went away or the configuration cannot be held."""
    parser = argparse.ArgumentParser(prog="polythrottle-agent", description="Holds a configuration.")
    parser.add_argument("--version", action="version", version=f"polythrottle-agent {__version__}")
    parser.add_argument("--hold", type=Path, default=HOLD_FILE, help="default: %(default)s")
    parser.add_argument("--socket", type=Path, default=None, help="of the helper")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where /sys and /proc are; for tests")
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    agent = Agent(options.socket or socket_path(), options.root, RealClock(), Notifier())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, agent.ask_to_stop)
    try:
        agent.run(read_hold_file(options.hold))
    except (PolythrottleError, ControlError) as error:
        print(f"polythrottle-agent: {error}", file=sys.stderr)
        return 1
    return 0


def read_hold_file(path: Path) -> Mapping[str, Level]:
    """The settings to hold; none where the file is not there.

    Raises:
        InvalidInputError: it is there and cannot be used.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidInputError(f"{path} cannot be read ({reason}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" at line {mark.line + 1}"
        raise InvalidInputError(f"{path} is not YAML{where}; write `gpu_freq_mhz: 612`.") from error
    if not isinstance(content, dict) or not all(
        isinstance(level, (int, float, str)) and not isinstance(level, bool) for level in content.values()
    ):
        raise InvalidInputError(f"{path} must map knobs to levels, as in `gpu_freq_mhz: 612`.")
    return {str(k): v if isinstance(v, str) else float(v) for k, v in content.items()}


class Agent:
    """One helper, one lease, one configuration."""

    def __init__(self, socket: Path, root: Path, clock: Clock, notifier: Notifier) -> None:
        self._socket = socket
        self._root = root
        self._clock = clock
        self._notifier = notifier
        self._is_stopping = False

    def ask_to_stop(self, *_: object) -> None:
        """A signal's handler: ends the loop; the lease is given back."""
        self._is_stopping = True

    def run(self, settings: Mapping[str, Level]) -> None:
        """Hold the settings until asked to stop.

        Raises:
            PolythrottleError: the helper went away, refuses, or knows no such knob or level.
            ControlError: the device refused.
        """
        if not settings:
            self._notifier.ready("nothing to hold")
            while not self._is_stopping:
                self._pause()
            return
        client = self._connected()
        if client is None:
            return
        with client:
            _, controls, _ = helper_device(client)
            for knob in settings:
                if knob not in controls:
                    raise InvalidInputError(f"The device has no knob {knob!r}; it has {', '.join(controls)}.")
            wanted = {k: Knob(k, controls[k].levels).match(format_level(v)) for k, v in settings.items()}
            keeper = Keeper(controls, self._clock, Leased(client, "polythrottle-agent"))
            keeper.take()
            try:
                keeper.apply(wanted, "hold")
                self._notifier.ready(
                    f"holding {', '.join(f'{k} {format_level(v)}' for k, v in wanted.items())}"
                )
                self._watch(keeper, wanted)
            finally:
                self._notifier.stopping()
                keeper.release()

    def _connected(self) -> HelperClient | None:
        """The helper may still be starting. None: asked to stop meanwhile."""
        while not self._is_stopping:
            try:
                return HelperClient(self._socket)
            except HelperError as error:
                log.info("waiting for the helper: %s", error)
                self._notifier.status("waiting for the helper")
                self._pause()
        return None

    def _watch(self, keeper: Keeper, wanted: Mapping[str, Level]) -> None:
        sysfs = Sysfs(self._root)
        reconciler = Reconciler(keeper.controls, self._clock, lambda: marks_of(sysfs))
        reconciler.want(wanted)
        next_look_s = self._clock.now() + INTERVAL_S
        while not self._is_stopping:
            self._pause()
            if self._clock.now() < next_look_s:
                continue
            next_look_s = self._clock.now() + INTERVAL_S
            finding = reconciler.check()
            for drift in finding.drifts:
                log.warning("drift: %s", drift)
            for drift in finding.yielded:
                log.warning("%s is left to %s", drift.knob, drift.who.value)
            if finding.reapply:
                keeper.apply(finding.reapply, "written again after drift")
            elif finding.drifts:
                self._notifier.status(str(finding.drifts[0]))

    def _pause(self) -> None:
        self._notifier.alive()
        self._clock.sleep(STEP_S)


if __name__ == "__main__":
    sys.exit(main())
