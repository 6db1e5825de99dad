"""Builds the pretended NVML and steers its hardware from Python."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

SOURCES = tuple(sorted(Path(__file__).parent.glob("*.c")))
HEADER = Path(__file__).parent / "fakenvml.h"
SONAME = "libnvidia-ml.so.1"
FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden")

ROOT_ONLY, EVERYBODY, NOBODY = 0, 1, 2
"""Values of `permission`: who may set clocks and limits."""

COOL, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0, 1, 2, 3
"""Values of `heat`."""


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


def build(cache: Path, *, old_driver: bool = False) -> Path:
    """Compile the library into a folder of `cache` named after its sources; returns that folder.

    Raises:
        subprocess.CalledProcessError: it does not compile.
    """
    cc = compiler()
    if cc is None:
        raise FileNotFoundError("no C compiler: install gcc or clang")
    flags = (*FLAGS, *(("-DOLD_DRIVER",) if old_driver else ()))
    digest = hashlib.sha256(" ".join(flags).encode())
    for source in (*SOURCES, HEADER):
        digest.update(source.read_bytes())
    folder = cache / f"fakenvml-{digest.hexdigest()[:16]}"
    library = folder / SONAME
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"partial-{os.getpid()}.so"
        command = [cc, *flags, f"-Wl,-soname,{SONAME}", "-o", str(partial), *map(str, SOURCES)]
        subprocess.run([*command, "-lm", "-lpthread"], check=True, capture_output=True, text=True)
        partial.rename(library)
    return folder


def environment(folder: Path, state: Path, gpus: str, *, manual_clock: bool = False) -> dict[str, str]:
    """What a process needs in its environment to find these GPUs."""
    found = {"FAKE_NVML_STATE": str(state), "FAKE_NVML_GPUS": gpus, "LD_LIBRARY_PATH": str(folder)}
    return {**found, "FAKE_NVML_CLOCK": "manual"} if manual_clock else found


class FakeNvml:
    """The pretended hardware behind one state file.

    Loads the library into this process too, so that nvidia-ml-py finds it under its usual name. The
    library looks at the environment at every call: `FAKE_NVML_STATE` must name this state.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        library = ctypes.CDLL(str(folder / SONAME), mode=ctypes.RTLD_GLOBAL)
        library.fakenvml_set.argtypes = [ctypes.c_uint, ctypes.c_char_p, ctypes.c_double]
        library.fakenvml_get.argtypes = [ctypes.c_uint, ctypes.c_char_p]
        library.fakenvml_get.restype = ctypes.c_double
        library.fakenvml_inject.argtypes = [
            ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_uint,
        ]  # fmt: skip
        library.fakenvml_advance.argtypes = [ctypes.c_double]
        self._library = library
        if library.fakenvml_open() != 0:
            raise RuntimeError("FAKE_NVML_STATE and FAKE_NVML_GPUS do not name a usable state")

    def set(self, gpu: int = 0, **values: float) -> None:
        for name, value in values.items():
            if self._library.fakenvml_set(gpu, name.encode(), float(value)) != 0:
                raise KeyError(name)

    def get(self, name: str, gpu: int = 0) -> float:
        value = float(self._library.fakenvml_get(gpu, name.encode()))
        if value < 0:
            raise KeyError(name)
        return value

    def inject(self, function: str, code: int, *, skip: int = 0, times: int = -1, delay_ms: int = 0) -> None:
        """From its (skip+1)th call on, `function` fails `times` times (for ever if negative)."""
        if self._library.fakenvml_inject(function.encode(), code, skip, times, delay_ms) != 0:
            raise RuntimeError("too many faults")

    def clear_faults(self) -> None:
        self._library.fakenvml_clear_faults()

    def reload_driver(self) -> None:
        self._library.fakenvml_reload_driver()

    def advance(self, seconds: float) -> None:
        self._library.fakenvml_advance(seconds)

    def settings(self, gpu: int = 0) -> Mapping[str, float]:
        """Everything that a tool can leave changed."""
        names = ("lock_min", "lock_max", "memory_min", "memory_max", "limit_mw", "persistence")
        return {name: self.get(name, gpu) for name in names}


class HardwareClock:
    """The pretended hardware's manual clock as a polythrottle Clock.

    Whoever made it moves time by sleeping, in small steps; other threads wait until the time has come.
    """

    STEP_S = 0.02

    def __init__(self, fake: FakeNvml) -> None:
        self._fake = fake
        self._owner = threading.get_ident()
        self._stopped = threading.Event()
        self._without_a_break_s = 0.0

    def stop(self) -> None:
        """Nobody sleeps on this clock any more: the machine is about to go."""
        self._stopped.set()

    def now(self) -> float:
        return self._fake.get("now_s")

    def sleep(self, duration_s: float) -> None:
        until_s = self.now() + max(duration_s, 0.0)
        while (now_s := self.now()) < until_s - 1e-9:
            if threading.get_ident() == self._owner:
                step_s = min(self.STEP_S, until_s - now_s)
                self._fake.advance(step_s)
                self._without_a_break_s += step_s
                if self._without_a_break_s >= self.STEP_S:
                    self._without_a_break_s = 0.0
                    time.sleep(0.0005)  # lets the threads that waited for this moment run
            elif self._stopped.wait(0.0002):
                return


def run_python(code: str, env: Mapping[str, str], *arguments: str, user: int | None = None) -> str:
    """Run Python code in a process of its own, as its user would; returns what it printed."""
    import sys

    full = {**os.environ, **env}
    command: Sequence[str] = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=full, capture_output=True, text=True, timeout=60, user=user)
    if done.returncode != 0:
        raise AssertionError(f"exit {done.returncode}: {done.stderr}")
    return done.stdout
