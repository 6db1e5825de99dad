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

SILENCE_S = 20
"""KVM that says nothing for so long does not work here, as under some hypervisors: then QEMU emulates."""

BOOT = "panic=-1 mitigations=off random.trust_cpu=on systemd.show_status=0 loglevel=4"

DEADLINE_S = 600
VERDICTS = 22
"""So many checks there are: one that was not reached has not passed."""

CUT_THE_POWER = "CUT THE POWER"
VERDICT = re.compile(r"^VERDICT (pass|fail|note) (.*)$")


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
        # Two boots of one disk, with a power failure in between.
        subprocess.run(["cp", "--sparse=always", str(options.cache / "disk.ext4"), str(disk)], check=True)
        began = time.monotonic()
        lines = boot(options.cache, disk, accelerator, options.verbose)
        if lines is not None:
            if CUT_THE_POWER in lines:
                lines += boot(options.cache, disk, accelerator, options.verbose) or []
            disk.unlink()
            return judge(lines, accelerator, time.monotonic() - began)
        print(f"The guest said nothing for {SILENCE_S} s under {accelerator}.", file=sys.stderr)
    disk.unlink(missing_ok=True)
    print("THE KERNEL TESTS WERE SKIPPED: no virtual machine runs here.", file=sys.stderr)
    return SKIPPED


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
    """What the guest said until it powered off or asked for a power failure; None: it never said anything."""
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
        return _listen(process, verbose)
    finally:
        process.kill()
        process.wait()


def _listen(process: subprocess.Popen[bytes], verbose: bool) -> list[str] | None:
    assert process.stdout is not None
    selector = selectors.DefaultSelector()
    selector.register(process.stdout, selectors.EVENT_READ)
    began, content, shown = time.monotonic(), b"", 0
    while time.monotonic() - began < DEADLINE_S:
        if not selector.select(timeout=1):
            if b"\n" not in content and time.monotonic() - began > SILENCE_S:
                return None
            continue
        more = os.read(process.stdout.fileno(), 65536)
        if not more:
            return content.decode("utf-8", "replace").splitlines() if b"VERDICT" in content else None
        content += more
        lines = content[: content.rfind(b"\n") + 1].decode("utf-8", "replace").splitlines()
        for line in lines[shown:]:
            if verbose or VERDICT.match(line.strip()):
                print(f"{time.monotonic() - began:6.1f} s  {line.strip()}", flush=True)
        shown = len(lines)
        if CUT_THE_POWER in lines:
            return lines
    print(f"The guest did not end within {DEADLINE_S} s.", file=sys.stderr)
    return content.decode("utf-8", "replace").splitlines()


def judge(lines: list[str], accelerator: str, seconds: float) -> int:
    verdicts = [match.groups() for line in lines if (match := VERDICT.match(line.strip()))]
    failed = [text for kind, text in verdicts if kind == "fail"]
    passed = [text for kind, text in verdicts if kind == "pass"]
    finished = any("CHECKS DONE" in line for line in lines)
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
