"""Boots the kernel tests and prints their verdicts. Exit code 0: all passed; 1: not; 77: skipped.

    python tests/kernel/run.py [--cache DIR] [--verbose]

The guest is a small virtual machine with Debian's own kernel. Of this machine only the cache is touched.
"""

from __future__ import annotations

import argparse
import os
import re
import selectors
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
SKIPPED = 77

CPU = "max,vendor=GenuineIntel,family=6,model=85,-arch-capabilities"
"""acpi-cpufreq is the driver of Intel's CPUs; on AMD's a driver of their own would be wanted."""

SILENCE_S = {"kvm": 5, "tcg": 60}
"""So long the guest may say nothing. KVM that takes longer does not work here, as under some hypervisors:
then QEMU emulates."""

BOOT = "panic=-1 mitigations=off random.trust_cpu=on systemd.show_status=0 loglevel=4"

DEADLINE_S = 1200
VERDICTS = 32
"""So many checks there are: one that was not reached has not passed."""

REBOOT, CUT_THE_POWER, DONE = "REBOOT", "CUT THE POWER", "CHECKS DONE"
"""What the guest says at the end of a boot: it reboots by itself, waits for a power failure, or is done."""

STARTED = b"INIT runs"
VERDICT = re.compile(r"^VERDICT (pass|fail) (.*)$")


def main() -> int:
    options = _parser().parse_args()
    built = subprocess.run([str(HERE / "build.sh"), str(options.cache)], text=True, stdout=subprocess.PIPE)
    if built.returncode == SKIPPED:
        print("THE KERNEL TESTS WERE SKIPPED: see the reason above.", file=sys.stderr)
        return SKIPPED
    if built.returncode != 0:
        return 1
    accelerators = ["kvm", "tcg"] if os.access("/dev/kvm", os.R_OK | os.W_OK) else ["tcg"]
    if options.accel:
        accelerators = [options.accel]
    disk = options.cache / "disk-of-this-run.ext4"
    for accelerator in accelerators:
        subprocess.run(["cp", "--sparse=always", str(options.cache / "disk.ext4"), str(disk)], check=True)
        began = time.monotonic()
        lines = boot(options.cache, disk, accelerator, options.verbose)
        if lines is not None:
            for ending in (REBOOT, CUT_THE_POWER):
                if ending in lines:
                    lines += boot(options.cache, disk, accelerator, options.verbose) or []
            disk.unlink()
            return judge(lines, accelerator, time.monotonic() - began)
        print(f"No virtual machine runs here under {accelerator}.", file=sys.stderr)
    disk.unlink(missing_ok=True)
    print("FAILED: no virtual machine got as far as its first process.", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    default = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polythrottle" / "kernel-tests"
    )
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=default, help="default: %(default)s")
    parser.add_argument("--accel", choices=("kvm", "tcg"), help="default: KVM where it works, else emulation")
    parser.add_argument("--verbose", action="store_true", help="show everything the guest says")
    return parser


def boot(cache: Path, disk: Path, accelerator: str, verbose: bool) -> list[str] | None:
    """What the guest said until it went down or asked for a power failure; None: it never started."""
    command = [
        "qemu-system-x86_64", "-machine", f"q35,accel={accelerator}", "-cpu", CPU, "-smp", "2", "-m", "768",
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio",
        "-device", "pc-testdev", "-acpitable", f"file={cache}/pstates.aml",
        "-kernel", f"{cache}/vmlinux", "-initrd", f"{cache}/initramfs.zst",
        "-drive", f"file={disk},format=raw,if=virtio",
        "-append", f"console=ttyS0 {BOOT}",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
    )
    try:
        return _listen(process, SILENCE_S[accelerator], verbose)
    finally:
        process.kill()
        process.wait()


def _listen(process: subprocess.Popen[bytes], silence_s: float, verbose: bool) -> list[str] | None:
    assert process.stdout is not None
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    began, content, shown = time.monotonic(), b"", 0
    while time.monotonic() - began < DEADLINE_S:
        if STARTED not in content and time.monotonic() - began > silence_s:
            return None
        if not selector.select(timeout=1):
            continue
        more = os.read(process.stdout.fileno(), 65536)
        content += more
        lines = content[: content.rfind(b"\n") + 1].decode("utf-8", "replace").splitlines()
        for line in lines[shown:]:
            if verbose or VERDICT.match(line.strip()):
                print(f"{time.monotonic() - began:6.1f} s  {line.strip()}", flush=True)
        shown = len(lines)
        if CUT_THE_POWER in lines:
            return lines
        if not more:
            if STARTED not in content:
                print("\n".join(lines[-3:]), file=sys.stderr)  # why QEMU did not start it
                return None
            return lines
    print(f"The guest did not end within {DEADLINE_S} s.", file=sys.stderr)
    return content.decode("utf-8", "replace").splitlines()


def judge(lines: list[str], accelerator: str, seconds: float) -> int:
    verdicts = [match.groups() for line in lines if (match := VERDICT.match(line.strip()))]
    failed = [text for kind, text in verdicts if kind == "fail"]
    passed = [text for kind, text in verdicts if kind == "pass"]
    finished = DONE in lines
    print(f"{len(passed)} passed, {len(failed)} failed in {seconds:.0f} s under {accelerator}.")
    for text in failed:
        print(f"FAILED {text}")
    if not finished or len(passed) + len(failed) < VERDICTS:
        print("FAILED: the guest ended before its checks did; its last words were:")
        print("\n".join(lines[-15:]))
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
