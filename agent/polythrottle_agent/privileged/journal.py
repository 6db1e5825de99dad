"""The originals on disk: written before the first write to a device, gone when all of them are back."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from polythrottle.errors import StateError
from polythrottle_agent.ports import Originals
from polythrottle_agent.privileged.files import Files

SCHEMA = "polythrottle-originals/1"
BOOT_ID = "proc/sys/kernel/random/boot_id"
DEFAULT_DIRECTORY = Path("/var/lib/polythrottle")


def boot_id(sysroot: Path = Path("/")) -> str:
    """Which boot of the kernel this is; `sysroot`'s own where it has one.

    Raises:
        StateError: the kernel does not say, so nothing that was kept could be trusted.
    """
    for root in dict.fromkeys((sysroot, Path("/"))):
        try:
            return (root / BOOT_ID).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StateError(f"{root / BOOT_ID} cannot be read ({error.strerror}); mount /proc.") from error
    raise StateError(f"/{BOOT_ID} is not there; mount /proc.")


@dataclass(frozen=True)
class Owner:
    """Who a device's settings belong to for now."""

    name: str
    uid: int
    pid: int

    @classmethod
    def this_process(cls, name: str | None = None) -> Owner:
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]).strip()
        return cls(name or command or "python", os.getuid(), os.getpid())

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid} of {user_name(self.uid)})"


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # no name for this uid, as in many containers
        return f"uid {uid}"


@dataclass(frozen=True)
class Entry:
    """What the journal holds. `kept` says why its settings outlive their owner; None: they do not."""

    boot_id: str
    device_id: str
    owner: Owner
    written_at: str
    originals: Originals
    kept: str | None = None


class Journal:
    """One entry, of this boot, in `originals-BOOT.json`.

    Clocks do not survive a reboot, so an entry of an earlier boot must never be put back: the boot is in
    the file's name, and files of other boots are removed unread, damaged or not.
    """

    def __init__(self, directory: Path, this_boot: str, files: Files | None = None) -> None:
        self.directory = directory
        self._boot_id = this_boot
        self._files = files if files is not None else Files()
        self.path = directory / f"originals-{this_boot}.json"

    def read(self) -> Entry | None:
        """
        Raises:
            StateError: there is an entry, and it cannot be read or is damaged.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"The journal {self.path} cannot be read ({error.strerror}).") from error
        try:
            return _decoded(content, self._boot_id)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateError(
                f"The journal {self.path} is damaged ({error}), so the originals are not known; reboot, "
                "which puts every clock back, or delete the file to take the present settings for original."
            ) from error

    def add(self, device_id: str, owner: Owner, originals: Originals) -> Entry:
        """Make originals safe. Ones that the journal already holds are never overwritten.

        Returns:
            What the journal holds now.

        Raises:
            StateError: it cannot be written, or holds the originals of another device.
        """
        before = self.read()
        if before is not None and before.device_id != device_id:
            raise StateError(
                f"The journal {self.path} holds the originals of {before.device_id}, not of {device_id}; "
                "run polythrottle restore with that device present, or reboot."
            )
        merged = dict(originals)
        if before is not None:
            merged.update(before.originals)
            if merged == dict(before.originals) and before.owner == owner and before.kept is None:
                return before
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        entry = Entry(self._boot_id, device_id, owner, now, merged)
        self._write(entry)
        self._discard_earlier_boots()
        return entry

    def mark_kept(self, reason: str) -> None:
        """From now on the settings outlive their owner, until somebody restores."""
        entry = self.read()
        if entry is not None:
            self._write(replace(entry, kept=reason))

    def forget(self, knobs: Iterable[str]) -> None:
        """These originals are back on the device."""
        entry = self.read()
        if entry is None:
            return
        done = set(knobs)
        left = {knob: state for knob, state in entry.originals.items() if knob not in done}
        try:
            if left:
                self._write(replace(entry, originals=left))
            else:
                self._files.remove(self.path)
        except OSError as error:
            raise self._unwritable(error) from error

    def _discard_earlier_boots(self) -> None:
        for path in self.directory.glob("originals-*.json*"):
            if not path.name.startswith(self.path.name):
                self._files.remove(path)

    def _write(self, entry: Entry) -> None:
        try:
            self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            # Readable by everyone: originals are no secret, and `polythrottle doctor` shows them.
            self._files.replace(self.path, _encoded(entry), 0o644)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StateError:
        return StateError(
            f"The journal {self.path} cannot be written ({error.strerror or error}), so nothing is changed "
            "on the device; make its directory writable or free some space."
        )


def _encoded(entry: Entry) -> bytes:
    body = {
        "schema": SCHEMA,
        "boot_id": entry.boot_id,
        "device": entry.device_id,
        "owner": {"name": entry.owner.name, "uid": entry.owner.uid, "pid": entry.owner.pid},
        "written_at": entry.written_at,
        "kept": entry.kept,
        "originals": {knob: dict(state) for knob, state in entry.originals.items()},
    }
    return json.dumps({**body, "sha256": _digest(body)}, indent=1).encode() + b"\n"


def _decoded(content: bytes, this_boot: str) -> Entry:
    body = json.loads(content)
    if not isinstance(body, dict):
        raise ValueError("not an object")
    if body.get("schema") != SCHEMA:
        raise ValueError(f"schema {body.get('schema')!r}")
    if body.pop("sha256") != _digest(body):
        raise ValueError("its checksum is wrong")
    if body["boot_id"] != this_boot:
        raise ValueError("it is of another boot than its name says")
    owner = body["owner"]
    originals = {
        str(knob): {str(name): str(value) for name, value in state.items()}
        for knob, state in body["originals"].items()
    }
    return Entry(
        this_boot,
        body["device"],
        Owner(owner["name"], owner["uid"], owner["pid"]),
        body["written_at"],
        originals,
        body["kept"],
    )


def _digest(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
