"""`polythrottle install-service` and `polythrottle uninstall`: the root helper as a systemd service."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import typer

from polythrottle.errors import ExitCode
from polythrottle.reporting.console import make_console, print_text

RootOption = typer.Option(
    Path("/"), help="Lay the files out below another directory, as for a package or an image; run nothing."
)


def install_service(
    root: Path = RootOption,
    agent: bool = typer.Option(False, "--agent", help="Start polythrottle-agent too, not only the helper."),
    programs: Path | None = typer.Option(
        None, help="Where polythrottle-helper will be. Default: where this polythrottle is."
    ),
) -> None:
    """Install and start the root helper, so that polythrottle needs no root any more."""
    from polythrottle_agent import service_install

    console = make_console()
    is_here = root == Path("/")
    if is_here:
        service_install.require_root()
    directory = programs if programs is not None else service_install.programs_directory()
    for path in service_install.lay_out(root, directory.absolute()):
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
    problems: list[str] = []
    if root == Path("/"):
        service_install.require_root()
        if (root / service_install.LAYOUT[service_install.HELPER_UNIT]).exists():
            service_install.run(service_install.stop_steps())
        from polythrottle.cli.restore import put_back_directly

        knobs, problems = put_back_directly(None, None)
        if knobs:
            print_text(console, "put back  ", ", ".join(knobs), indent=10)
    if not problems:
        # With something left to put back, the helper that can do it stays installed.
        for path in service_install.remove(root):
            print_text(console, "removed   ", str(path), indent=10)
        if root == Path("/"):
            service_install.run((service_install.Step(("systemctl", "daemon-reload"), "forget the units"),))
        print_text(console, "kept      ", "/var/lib/polythrottle: audit log", indent=10)
    for problem in problems:
        print_text(make_console(sys.stderr), ("error: ", "bold red"), problem, indent=7)
    if problems:
        raise typer.Exit(int(ExitCode.ERROR))
