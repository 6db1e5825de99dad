"""`polythrottle-helper`: the small root process that alone writes clocks and limits, and puts them back."""

from __future__ import annotations

import argparse
import contextlib
import grp
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from polythrottle import __version__
from polythrottle.clock import Clock, RealClock
from polythrottle.errors import PolythrottleError
from polythrottle_agent.audit import AuditLog
from polythrottle_agent.discovery import Discovered, discover
from polythrottle_agent.marks import marks_of, persistence_of, power_mode_of
from polythrottle_agent.meters.rapl import rapl_counters
from polythrottle_agent.nvidia_gpu import SeveralGpus
from polythrottle_agent.ports import ControlError
from polythrottle_agent.privileged.admission import Access
from polythrottle_agent.privileged.custody import Custody
from polythrottle_agent.privileged.energy import CounterShelf
from polythrottle_agent.privileged.files import Files
from polythrottle_agent.privileged.journal import DEFAULT_DIRECTORY, Journal, Owner, boot_id
from polythrottle_agent.privileged.keeper import Keeper
from polythrottle_agent.privileged.lease import DEFAULT_TTL_S
from polythrottle_agent.privileged.notify import Notifier
from polythrottle_agent.privileged.on_disk import OnDisk, writer_lock
from polythrottle_agent.privileged.patient import PatientControl
from polythrottle_agent.privileged.protocol import DEFAULT_SOCKET
from polythrottle_agent.privileged.restoring import Discover, Restoring
from polythrottle_agent.privileged.server import Server, listen
from polythrottle_agent.privileged.service import Service
from polythrottle_agent.reconcile import Marks, Reconciler

log = logging.getLogger("polythrottle-helper")

GROUP = "polythrottle"
GPU_WAIT_S = 10.0
"""A Jetson's GPU node can come late in boot."""


def main(
    arguments: Sequence[str] | None = None, discovering: Discover = discover, files: Files | None = None
) -> int:
    """Run the helper until it is told to stop. 0: stopped and everything is back; 1: not.

    Args:
        discovering, files: what finds the device and what writes to disk; other than the defaults for tests.
    """
    files = files if files is not None else Files()
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(name)s: %(message)s")
    try:
        run = _restore if options.restore else _serve
        return run(options, discovering, files)
    except SeveralGpus as error:
        how = "--gpu {}" if options.restore else "--gpu {} (polythrottle install-service takes --gpu too)"
        _say(f"polythrottle-helper: {error.named_by(how)}", sys.stderr)
        return 1
    except (PolythrottleError, ControlError) as error:
        _say(f"polythrottle-helper: {error}", sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="polythrottle-helper",
        description="Writes clocks and limits for unprivileged clients, and puts them back.",
    )
    parser.add_argument("--version", action="version", version=f"polythrottle-helper {__version__}")
    parser.add_argument("--socket", type=Path, default=DEFAULT_SOCKET, help="default: %(default)s")
    parser.add_argument(
        "--state-dir", type=Path, default=DEFAULT_DIRECTORY, help="of journal and audit log: %(default)s"
    )
    parser.add_argument("--root", type=Path, default=Path("/"), help="where /sys and /proc are; for tests")
    parser.add_argument("--gpu", help="UUID or PCI address of the NVIDIA GPU, where there are several")
    parser.add_argument("--group", default=GROUP, help="whose members may connect; default: %(default)s")
    parser.add_argument(
        "--allow-uid", type=int, action="append", default=[], help="a user who may connect, by number"
    )
    parser.add_argument(
        "--lease-s", type=float, default=DEFAULT_TTL_S, help="silence that ends a lease; default: %(default)s"
    )
    parser.add_argument(
        "--no-probe", action="store_true", help="do not try which memory rates can be locked at the start"
    )
    parser.add_argument("--restore", action="store_true", help="put back what the journal holds, and end")
    return parser


def _discover(options: argparse.Namespace, discovering: Discover, clock: Clock, wait_s: float) -> Discovered:
    return discovering(options.root, clock=clock, gpu=options.gpu, state_dir=options.state_dir, wait_s=wait_s)


def _restore(options: argparse.Namespace, discovering: Discover, files: Files) -> int:
    """Every device that has a journal; with --gpu that one alone, so that others' runs are left in peace."""
    _Stopping()  # what is half done is finished: each driver is given up in time, so this ends by itself
    done = _restoring(options, discovering, files).put_back("polythrottle-helper --restore", options.gpu)
    problems = [problem for device in done for problem in device.problems]
    for problem in problems:
        _say(problem, sys.stderr)
    knobs = [knob for device in done for knob in device.knobs]
    _say(f"Put back: {', '.join(knobs) or 'nothing'}." if done else "Nothing to put back.", sys.stdout)
    return 1 if problems else 0


def _restoring(options: argparse.Namespace, discovering: Discover, files: Files) -> Restoring:
    return Restoring(options.root, options.state_dir, discovering, RealClock(), files)


def _say(text: str, stream: TextIO) -> None:
    """Whoever reads it may be gone, and that must not end a restore."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=stream, flush=True)


def _serve(options: argparse.Namespace, discovering: Discover, files: Files) -> int:
    clock = RealClock()
    notifier = Notifier()
    stopping = _Stopping()
    found = _discover(options, discovering, clock, GPU_WAIT_S)
    if Journal(options.state_dir, boot_id(options.root), found.identity.id, files).read() is not None:
        # What a killed helper left on the device is no cap and no table: look again once it is gone.
        _put_back_first(options, discovering, files, found.identity.id)
        found = _discover(options, discovering, clock, GPU_WAIT_S)
    if not found.controls:
        raise ControlError(f"nothing on {found.identity.label} can be set. {' '.join(found.notes)}")
    with writer_lock(options.state_dir, found.identity.id):
        service = build_service(found, options, clock, files, notifier)
        service.start()
        if found.memory is not None and not found.memory.is_probed and not options.no_probe:
            _probe_memory(found, service)
        gid = _gid(options.group)
        access = Access(frozenset(options.allow_uid), frozenset() if gid is None else frozenset({gid}))
        with listen(options.socket, gid) as listener:
            server = Server(service, listener, access, clock, notifier)
            notifier.ready(f"{found.identity.label}: {', '.join(found.controls)}")
            log.info("listening on %s for %s", options.socket, found.identity.label)
            try:
                server.serve(lambda: stopping.asked)
            finally:
                notifier.stopping()
                problems = service.stop()
            options.socket.unlink(missing_ok=True)
    return 1 if problems else 0


def _put_back_first(options: argparse.Namespace, discovering: Discover, files: Files, device_id: str) -> None:
    """What cannot be put back stays owed: the service tries it again."""
    for device in _restoring(options, discovering, files).put_back("the helper started", only=device_id):
        for problem in device.problems:
            log.error("%s", problem)


def build_service(
    found: Discovered,
    options: argparse.Namespace,
    clock: Clock,
    files: Files,
    notifier: Notifier,
) -> Service:
    """The service over what was discovered, with journal and audit log in the state directory."""
    controls = {
        name: PatientControl(control, alive=notifier.alive) for name, control in found.controls.items()
    }

    def marks() -> Marks:
        return marks_of(found.sysfs, None if found.gpu is None else persistence_of(controls))

    state_dir, identity = options.state_dir, found.identity
    on_disk = OnDisk(
        Journal(state_dir, boot_id(options.root), identity.id, files),
        AuditLog(state_dir, files, group=options.group),
        Owner.this_process("polythrottle-helper"),
        exclusive=False,
        power_mode=lambda: power_mode_of(found.sysfs),
    )
    try:
        counters = rapl_counters(found.sysfs)
    except ControlError as error:
        log.warning("the CPU's energy cannot be read: %s", error)
        counters = []
    return Service(
        identity=identity,
        custody=Custody(Keeper(controls, clock, on_disk), on_disk, clock, Reconciler(controls, clock, marks)),
        clock=clock,
        notes=found.notes,
        ttl_s=options.lease_s,
        counters=CounterShelf(counters, clock),
        refresh_limits=found.caps.limits.reread,
    )


def _probe_memory(found: Discovered, service: Service) -> None:
    """Which memory rates can be locked is only known by locking them: once a boot, originals safe."""
    if found.memory is None:
        return
    keeper = service.custody.keeper
    try:
        keeper.take()
    except ControlError as error:
        log.warning("memory rates were not tried, an original cannot be read: %s", error)
        return
    try:
        rates = found.memory.probe()
        log.info("memory rates: %s MHz", ", ".join(f"{rate:g}" for rate in rates))
    except ControlError as error:
        log.warning("memory rates could not be tried: %s", error)
    finally:
        service.custody.put_back("memory rates were tried")


def _gid(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        log.warning(
            "there is no group %s: only root may connect; polythrottle install-service makes it", group
        )
        return None


class _Stopping:
    """SIGTERM, SIGINT and a lost terminal ask for an orderly end, after the request that is under way."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # Under nohup the terminal's end is to be ignored.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True


if __name__ == "__main__":
    sys.exit(main())
