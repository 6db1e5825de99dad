"""Which memory rates can be locked: tried on this device since it booted, else what is said about it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from polythrottle_agent.ports import ControlError

SCHEMA = "polythrottle-memory-rates/1"


class LockableRates:
    """Rates in Hz, ascending.

    `said` is what the firmware or a board's profile lists, within what the clock reaches; it stands until a
    probe has tried them. `cache` is a file that holds a probe's result (None: kept in memory only) for one
    `key`: the boot and the power mode's cap, because the firmware can change with a reboot, and no rate
    above a cap can be tried.
    """

    def __init__(self, said: Iterable[int], cache: Path | None, key: str) -> None:
        self._said = tuple(sorted(set(said)))
        self._cache = cache
        self._key = key
        self._probed: tuple[int, ...] | None = self._read()

    @property
    def is_probed(self) -> bool:
        return self._probed is not None

    @property
    def said_hz(self) -> tuple[int, ...]:
        """What is said about the device, tried or not."""
        return self._said

    def rates_hz(self) -> tuple[int, ...]:
        return self._said if self._probed is None else self._probed

    def remember(self, rates_hz: Iterable[int]) -> None:
        """Keep what a probe found.

        Raises:
            ControlError: the file cannot be written.
        """
        self._probed = tuple(sorted(set(rates_hz)))
        if self._cache is None:
            return
        content = {"schema": SCHEMA, "key": self._key, "rates_hz": list(self._probed)}
        temporary = self._cache.with_name(f".{self._cache.name}.{os.getpid()}")
        try:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
            os.replace(temporary, self._cache)
        except OSError as error:
            raise ControlError(f"{self._cache} cannot be written ({error.strerror})") from error

    def _read(self) -> tuple[int, ...] | None:
        """None where nobody probed under this key. A damaged file is as good as none: probing is cheap."""
        if self._cache is None:
            return None
        try:
            content = json.loads(self._cache.read_text(encoding="utf-8"))
            is_ours = content["schema"] == SCHEMA and content["key"] == self._key
            rates = tuple(sorted({int(rate) for rate in content["rates_hz"]})) if is_ours else ()
        except (OSError, ValueError, TypeError, KeyError):
            return None
        return rates or None
