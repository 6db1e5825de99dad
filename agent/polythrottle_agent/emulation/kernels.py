"""The kernels whose sysfs is emulated: what a release accepts, and how it reads a number."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

from polythrottle.errors import InvalidInputError, did_you_mean

UNSIGNED_LONG = 2**64


@dataclass(frozen=True)
class Kernel:
    """One kernel release, as Jetsons run it.

    qos: limits are PM-QoS requests: always accepted, the maximum wins, reading gives the effective value, and
    cpufreq applies them later. Without it (JetPack 4) they hold at once, and a minimum above the maximum is
    EINVAL.
    newer_cpufreq: cpufreq reads numbers with `kstrtoul` instead of `sscanf`, and a policy whose CPUs are all
    offline is EBUSY to read and to write, where older ones only refuse to write it (EINVAL). From 6.x on.
    clk_cap: nvpmodel's memory cap is `nvpmodel_clk_cap/emc` instead of `nvpmodel_emc_cap/emc_iso_cap`.
    halts_bwmgr: a memory lock holds only while `bwmgr_halt` is 1.
    iio: power sensors are under the old iio driver instead of hwmon.
    """

    release: str
    jetpack: str
    qos: bool
    newer_cpufreq: bool
    clk_cap: bool
    halts_bwmgr: bool
    iio: bool


KERNELS: dict[str, Kernel] = {
    kernel.release: kernel
    for kernel in (
        Kernel("4.9", "4", False, False, clk_cap=False, halts_bwmgr=False, iio=True),
        Kernel("5.10", "5", True, False, clk_cap=False, halts_bwmgr=False, iio=False),
        Kernel("5.15", "6", True, False, clk_cap=True, halts_bwmgr=True, iio=False),
        Kernel("6.8", "7", True, True, clk_cap=True, halts_bwmgr=True, iio=False),
    )
}


def kernel_named(release: str) -> Kernel:
    """
    Raises:
        InvalidInputError: no such kernel is emulated.
    """
    if release not in KERNELS:
        raise InvalidInputError(f"No kernel {release!r} is emulated; {did_you_mean(release, KERNELS)}")
    return KERNELS[release]


def refused(code: int, why: str = "") -> OSError:
    """The error a system call returns."""
    return OSError(code, why or errno.errorcode[code])


def sscanf_unsigned(text: bytes) -> int:
    """`sscanf(buf, "%lu")`: leading blanks and anything after the digits are passed over.

    Raises:
        OSError: EINVAL, no digits come first.
    """
    match = re.match(rb"[\s]*\+?(\d+)", text)
    if match is None:
        raise refused(errno.EINVAL)
    return int(match[1]) % UNSIGNED_LONG


def kstrtoul(text: bytes, base: int = 0) -> int:
    """`kstrtoul(buf, 0)`: one number and at most one newline; 0x is hexadecimal, a leading 0 octal.

    Raises:
        OSError: EINVAL for anything else; ERANGE above 64 bits.
    """
    body = text[:-1] if text.endswith(b"\n") else text
    body = body[1:] if body.startswith(b"+") else body
    if base == 0:
        base = 16 if body[:2].lower() == b"0x" else 8 if body[:1] == b"0" and len(body) > 1 else 10
    if base == 16 and body[:2].lower() == b"0x":
        body = body[2:]
    if not re.fullmatch(rb"[0-9a-fA-F]+", body):
        raise refused(errno.EINVAL)
    try:
        value = int(body, base)
    except ValueError:
        raise refused(errno.EINVAL) from None
    if value >= UNSIGNED_LONG:
        raise refused(errno.ERANGE)
    return value


def word(text: bytes) -> str:
    """What `sscanf("%s")` takes: the first word.

    Raises:
        OSError: EINVAL, there is none.
    """
    words = text.split()
    if not words:
        raise refused(errno.EINVAL)
    return words[0].decode("utf-8", "replace")
