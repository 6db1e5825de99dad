"""The originals on disk: written before the first write to a device, gone when all of them are back."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pwd
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from polythrottle.errors import DeviceBusyError, StateError
from polythrottle_agent.ports import Originals
from polythrottle_agent.privileged.files import Files

SCHEMA = "polythrottle-originals/1"
BOOT_ID = "proc/sys/kernel/random/boot_id"
DEFAULT_DIRECTORY = Path("/var/lib/polythrottle")

MACHINE_KNOBS = ("cpu_cores", "cpu_freq_mhz")
"""Knobs of the machine, not of one GPU in it: the same files, whichever GPU somebody holds."""


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
    """What a journal holds.

    `kept` says why its settings outlive their owner; None: they do not. `power_mode` is nvpmodel's when the
    first of the originals were saved; None where there was none, or it could not be told.
    """

    boot_id: str
    device_id: str
    owner: Owner
    written_at: str
    originals: Originals
    kept: str | None = None
    power_mode: str | None = None


class Journal:
    """One entry, of one device and this boot, in `originals-BOOT-DEVICE.json`.

    Clocks do not survive a reboot, so an entry of an earlier boot must never be put back: the boot is in
    the file's name, and files of other boots are removed unread, damaged or not. Each device has a file of
    its own, so that what one holds can neither be written to another nor pushed out by it.
    """

    def __init__(self, directory: Path, this_boot: str, device_id: str, files: Files | None = None) -> None:
        self.directory = directory
        self.device_id = device_id
        self._boot_id = this_boot
        self._files = files if files is not None else Files()
        self.path = directory / f"{_of_boot(this_boot)}{_short(device_id)}.json"

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
            entry = _decoded(content, self._boot_id)
            if entry.device_id != self.device_id:
                raise ValueError(f"it is of {entry.device_id}, not of {self.device_id} as its name says")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(self.path, error) from error
        return entry

    def add(self, owner: Owner, originals: Originals, power_mode: str | None = None) -> Entry:
        """Make originals safe. Ones that the journal already holds are never overwritten.

        Returns:
            What the journal holds now.

        Raises:
            DeviceBusyError: another device's entry holds an original that both share.
            StateError: it cannot be written.
        """
        with self._alone():
            before = self.read()
            merged = dict(originals)
            if before is not None:
                merged.update(before.originals)
                power_mode = before.power_mode
                if merged == dict(before.originals) and before.owner == owner and before.kept is None:
                    return before
            self._refuse_shared(merged)
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            entry = Entry(self._boot_id, self.device_id, owner, now, merged, None, power_mode)
            self._write(entry)
            self._discard_earlier_boots()
            return entry

    def mark_kept(self, reason: str) -> None:
        """From now on the settings outlive their owner, until somebody restores."""
        entry = self.read()
        if entry is not None:
            self._write(replace(entry, kept=reason))

    def forget(self, knobs: Iterable[str]) -> None:
        """These originals are back on the device. What is left was asked back too, so it is kept no more.

        Raises:
            StateError: the journal cannot be read or written; it still holds them.
        """
        entry = self.read()
        if entry is None:
            return
        done = set(knobs)
        left = {knob: state for knob, state in entry.originals.items() if knob not in done}
        if not left:
            self.drop()
            return
        try:
            self._files.replace(self.path, _encoded(replace(entry, originals=left, kept=None)), 0o644)
        except OSError as error:
            raise self._still_there(error) from error

    def drop(self) -> None:
        """All originals are back, by somebody who knew them: nothing in here is needed, damaged or not.

        Raises:
            StateError: it cannot be removed.
        """
        try:
            self._files.remove(self.path)
        except FileNotFoundError:
            return  # its directory is gone, and it with it
        except OSError as error:
            raise self._still_there(error) from error

    def _refuse_shared(self, originals: Originals) -> None:
        """Two entries with originals of one knob would each undo the other's restore."""
        ours = {knob for knob in MACHINE_KNOBS if knob in originals}
        if not ours:
            return
        for entry in kept_entries(self.directory, self._boot_id)[0]:
            shared = sorted(ours & set(entry.originals))
            if shared and entry.device_id != self.device_id:
                raise DeviceBusyError(
                    f"{entry.owner} holds {', '.join(shared)}, which {entry.device_id} and {self.device_id} "
                    f"share, since {entry.written_at}; wait for it to end, or run polythrottle restore."
                )

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Between a look at the other devices' entries and our own write, nobody adds another."""
        path = self.directory / "locks" / "journals.lock"
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _discard_earlier_boots(self) -> None:
        for path in self.directory.glob("originals-*.json*"):
            if not path.name.startswith(_of_boot(self._boot_id)):
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

    def _still_there(self, error: OSError) -> StateError:
        return StateError(
            f"The journal {self.path} cannot be written ({error.strerror or error}), so it still holds "
            "originals that are back already; make its directory writable or free some space."
        )


def kept_entries(directory: Path, this_boot: str) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """What every device's journal of this boot holds, and a sentence for each that cannot be used.

    Raises:
        StateError: the directory cannot be listed.
    """
    entries, problems = [], []
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        names = []
    except OSError as error:
        raise StateError(f"The journals in {directory} cannot be read ({error.strerror}).") from error
    for name in names:
        if not name.startswith(_of_boot(this_boot)) or not name.endswith(".json"):
            continue
        path = directory / name
        try:
            entry = _decoded(path.read_bytes(), this_boot)
            if name != f"{_of_boot(this_boot)}{_short(entry.device_id)}.json":
                raise ValueError(f"it is of {entry.device_id}, which is not what its name says")
        except FileNotFoundError:
            continue  # put back while we looked
        except OSError as error:
            problems.append(f"The journal {path} cannot be read ({error.strerror}).")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problems.append(str(_damaged(path, error)))
        else:
            entries.append(entry)
    return tuple(entries), tuple(problems)


def _of_boot(boot: str) -> str:
    return f"originals-{boot}-"


def _short(device_id: str) -> str:
    return hashlib.sha256(device_id.encode()).hexdigest()[:16]


def _damaged(path: Path, error: Exception) -> StateError:
    return StateError(
        f"The journal {path} is damaged ({error}), so the originals are not known; reboot, "
        "which puts every clock back, or delete the file to take the present settings for original."
    )


def _encoded(entry: Entry) -> bytes:
    body = {
        "schema": SCHEMA,
        "boot_id": entry.boot_id,
        "device": entry.device_id,
        "owner": {"name": entry.owner.name, "uid": entry.owner.uid, "pid": entry.owner.pid},
        "written_at": entry.written_at,
        "kept": entry.kept,
        "power_mode": entry.power_mode,
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
        body["power_mode"],
    )


def _digest(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
