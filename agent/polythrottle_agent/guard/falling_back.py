"""Puts another configuration in force, now: through the root helper, in this process, or as root without one.

Where a configuration is kept, the helper grants nobody a lease. So what is kept is ended first, which puts
the device back as it was found; that alone is a fall back to the device as found. Anything else is then
applied under a lease, and kept in its turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from polythrottle.configuration import Configuration, Level
from polythrottle.errors import InvalidInputError, PolythrottleError
from polythrottle_agent.holding import HeldDevice, Holdable
from polythrottle_agent.ports import ControlError
from polythrottle_agent.privileged.client import HelperClient, HelperError, HelperRefusal
from polythrottle_agent.privileged.restoring import Restoring

Settings = Mapping[str, Level] | None
"""Levels by knob; None: the device as it was found."""

OWNER = "polythrottle guard"


class NotSwitched(Exception):
    """Another configuration could not be put in force; the text says why."""


class Switch(Protocol):
    """Puts one of a ladder of configurations in force."""

    def put(self, settings: Settings, reason: str) -> None:
        """
        Raises:
            NotSwitched: it is not in force, or not all of it.
        """

    def close(self) -> None: ...


class HelperSwitch:
    """What the helper keeps is ended, and another configuration kept in its place."""

    def __init__(self, path: Path | None = None) -> None:
        """
        Raises:
            HelperError: nobody listens there, or this user may not connect.
        """
        self._path = path
        self._client: HelperClient | None = HelperClient(path)

    def put(self, settings: Settings, reason: str) -> None:
        try:
            try:
                self._put(self._connected(), settings, reason)
            except HelperRefusal:
                raise
            except HelperError:
                # The helper was started again since the last time it was asked: once more, on a new line.
                self.close()
                self._put(self._connected(), settings, reason)
        except HelperError as error:
            raise NotSwitched(str(error).rstrip(".")) from error

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self) -> HelperClient:
        if self._client is None:
            self._client = HelperClient(self._path)
        return self._client

    def _put(self, client: HelperClient, settings: Settings, reason: str) -> None:
        problems = client.request("put_back", force=False)["not_restored"]
        if problems:
            raise NotSwitched("; ".join(str(p).rstrip(".") for p in problems))
        if settings is None:
            return
        client.request("lease", owner=f"{OWNER}[{os.getpid()}]")
        try:
            client.request("apply", settings=dict(settings), reason=reason[:400])
            client.request("keep", for_s=None, reason=reason[:400])
        except HelperRefusal:
            client.request("release")
            raise


class HeldSwitch:
    """In the process that holds the device: it stays held, whatever is in force."""

    def __init__(self, held: HeldDevice, bring_back: Callable[[], Switch] | None = None) -> None:
        """
        Args:
            bring_back: asked where whoever holds the device cannot put it back, as when a lease was lost.
        """
        self._held = held
        self._bring_back = bring_back

    def put(self, settings: Settings, reason: str) -> None:
        problems = self._held.restore()
        if problems and self._bring_back is not None and settings is None:
            self._without_a_lease(self._bring_back, reason)
            return
        if problems:
            raise NotSwitched("; ".join(str(p).rstrip(".") for p in problems))
        if settings is None:
            return
        try:
            self._held.apply(Configuration.of(settings), reason)
        except (ControlError, InvalidInputError) as error:
            raise NotSwitched(str(error).rstrip(".")) from error

    def _without_a_lease(self, bring_back: Callable[[], Switch], reason: str) -> None:
        try:
            switch = bring_back()
        except PolythrottleError as error:
            raise NotSwitched(str(error).rstrip(".")) from error
        try:
            switch.put(None, reason)
        finally:
            switch.close()

    def close(self) -> None: ...


class JournalSwitch:
    """As root without a helper: what `apply --keep` left in the journal is put back from it."""

    def __init__(self, restoring: Restoring, device_id: str, open_device: Callable[[], Holdable]) -> None:
        self._restoring = restoring
        self._device_id = device_id
        self._open_device = open_device

    def put(self, settings: Settings, reason: str) -> None:
        try:
            done = self._restoring.put_back(reason, only=self._device_id)
            problems = [problem for device in done for problem in device.problems]
            if problems:
                raise NotSwitched("; ".join(p.rstrip(".") for p in problems))
            if settings is None:
                return
            held = HeldDevice(self._open_device())
            with held:
                held.apply(settings, reason)
                held.keep(None, reason)
        except (ControlError, PolythrottleError) as error:
            raise NotSwitched(str(error).rstrip(".")) from error

    def close(self) -> None: ...
