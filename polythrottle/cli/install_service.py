"""`polythrottle install-service` and `polythrottle uninstall`: the root helper as a systemd service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from polythrottle.errors import ExitCode
from polythrottle.reporting.console import make_console, print_text

if TYPE_CHECKING:
    from polythrottle_agent.privileged.restoring import Restored

RootOption = typer.Option(
    Path("/"), help="Lay the files out below another directory, as for a package or an image; run nothing."
)


def install_service(
    root: Path = RootOption,
    agent: bool = typer.Option(False, "--agent", help="Start polythrottle-agent too, not only the helper."),
    programs: Path | None = typer.Option(
        None, help="Where polythrottle-helper will be. Default: where this polythrottle is."
    ),
    gpu: str | None = typer.Option(
        None, help="UUID or PCI address of the NVIDIA GPU to serve, where there are several."
    ),
) -> None:
    """Install and start the root helper, so that polythrottle needs no root any more."""
    from polythrottle_agent import service_install

    console = make_console()
    is_here = root == Path("/")
    if is_here:
        service_install.require_root()
        gpu = service_install.gpu_to_serve(gpu)
    directory = programs if programs is not None else service_install.programs_directory()
    for path in service_install.lay_out(root, directory.absolute(), gpu):
        print_text(console, "wrote     ", str(path), indent=10)
    steps = service_install.start_steps(Path("/"), agent)
    if not is_here:
        print_text(console, "On the device itself, run as root:")
        for step in steps:
            print_text(console, "  " + " ".join(step.command))
        return
    service_install.run(steps)
    print_text(console, "started   ", service_install.HELPER_UNIT, indent=10)
    user = os.environ.get("SUDO_USER") or "USER"
    print_text(console, f"Let a user in: sudo usermod -aG polythrottle {user}, then log in again.")
    print_text(console, "Look: polythrottle doctor")


def uninstall(root: Path = RootOption) -> None:
    """Stop the service, put the device back, and remove what install-service laid out."""
    from polythrottle_agent import service_install

    console = make_console()
    is_here = root == Path("/")
    done: tuple[Restored, ...] = ()
    if is_here:
        service_install.require_root()
        if (root / service_install.LAYOUT[service_install.HELPER_UNIT]).exists():
            service_install.run(service_install.stop_steps())
        from polythrottle.cli.restore import put_back_directly, report

        done = put_back_directly()
        report(console, done)
    if any(device.problems for device in done):
        # With something left to put back, the helper that can do it stays installed.
        raise typer.Exit(int(ExitCode.ERROR))
    removed = service_install.remove(root)
    for path in removed:
        print_text(console, "removed   ", str(path), indent=10)
    if not removed:
        print_text(console, "Nothing to remove: the service is not installed here.")
    elif is_here:
        service_install.run((service_install.Step(("systemctl", "daemon-reload"), "forget the units"),))
    log = service_install.audit_log()
    if is_here and log.exists():
        print_text(console, "kept      ", f"{log}: the audit log", indent=10)
