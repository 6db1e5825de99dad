"""Tells systemd that the service is ready and alive: one datagram to $NOTIFY_SOCKET, no library."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)

PATIENCE_S = 2.0
"""For a manager whose queue is full: a device in mid-change must not wait for it."""


class Notifier:
    """The sd_notify protocol. Does nothing where no service manager listens.

    `watchdog_s` is the interval in which systemd wants a sign of life; None where it does not.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._address = environ.get("NOTIFY_SOCKET") or None
        microseconds = environ.get("WATCHDOG_USEC", "")
        meant_for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog_s = (
            int(microseconds) / 1e6 if microseconds.isdigit() and int(microseconds) and meant_for_us else None
        )

    def ready(self, status: str) -> None:
        """Start-up is complete."""
        self._send("READY=1", f"STATUS={_line(status)}")

    def alive(self) -> None:
        """Keep the watchdog from firing; to be called more often than `watchdog_s`."""
        if self.watchdog_s is not None:
            self._send("WATCHDOG=1")

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={_line(status)}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def _send(self, *lines: str) -> None:
        if self._address is None:
            return
        # A leading @ stands for the NUL byte of an abstract socket.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
                manager.settimeout(PATIENCE_S)
                manager.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            # systemd then stops us for it; a device in mid-change is no reason to stop by ourselves.
            log.error("systemd could not be told %s: %s", lines[0], error)


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
