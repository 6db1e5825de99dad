"""`polythrottle snapshot`: the state of clocks, meters and drivers as one file."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path

import typer

from polythrottle.errors import InvalidInputError
from polythrottle.reporting.console import make_console, print_text


def snapshot(
    output: Path | None = typer.Option(
        None, "--output", "-o", help="Default: polythrottle-snapshot-TIME.tar.gz, here."
    ),
) -> None:
    """Put clocks, tables, sensors and driver answers into one tar file, for a bug report.

    Only reads. Serial numbers are left out. Run it as root to include what only root may read.
    """
    from polythrottle_agent.devices import sysroot
    from polythrottle_agent.snapshot import nvml_state, take_snapshot
    from polythrottle_agent.sysfs import Sysfs

    root = sysroot()
    time = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    path = output if output is not None else Path(f"polythrottle-snapshot-{time}.tar.gz")
    try:
        taken = take_snapshot(path, root, nvml_state(Sysfs(root)))
    except OSError as error:
        raise InvalidInputError(
            f"{path} cannot be written ({error.strerror or error}); name another file with --output."
        ) from error
    console = make_console()
    print_text(console, f"snapshot: {path} ({taken.files} files)")
    if taken.unread:
        print_text(console, f"not read: {len(taken.unread)} files, with reasons in snapshot.json")
        if os.geteuid() != 0:
            print_text(console, "Run it as root to read more: sudo polythrottle snapshot")
