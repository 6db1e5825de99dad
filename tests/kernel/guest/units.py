"""The two services as systemd sees them."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from verdicts import wait_for

PATIENCE_S = 180.0
"""Many times what anything here takes, for a machine without KVM and with other work."""


def systemctl(*arguments: str) -> str:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


@dataclass(frozen=True)
class Unit:
    """One service, by its unit's name."""

    name: str

    @property
    def state(self) -> str:
        return self.property("ActiveState")

    @property
    def main_pid(self) -> int:
        """0 where no process of it runs."""
        return int(self.property("MainPID") or 0)

    @property
    def status(self) -> str:
        """What the service last told systemd of itself."""
        return self.property("StatusText")

    def property(self, name: str) -> str:
        return systemctl("show", "-P", name, self.name)

    def wait_until_ready(self, old_pid: int = 0) -> None:
        """Wait until it has told systemd that it is, in another process than `old_pid`.

        Raises:
            Failed: it did not.
        """
        wait_for(
            lambda: self.state == "active" and self.main_pid not in (0, old_pid),
            PATIENCE_S,
            f"{self.name} to be ready ({self.state}, {self.status})",
            every_s=0.3,
        )

    def hurry_watchdog(self, seconds: int) -> None:
        """Shorten the watchdog's interval until the next boot: the unit's own minute is long in a test."""
        directory = Path(f"/run/systemd/system/{self.name}.d")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "watchdog.conf").write_text(f"[Service]\nWatchdogSec={seconds}\n")


HELPER = Unit("polythrottle-helper.service")
AGENT = Unit("polythrottle-agent.service")
