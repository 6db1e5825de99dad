"""Latencies as an HDR histogram: constant relative resolution, small, mergeable, and readable elsewhere.

The layout and the text form are those of HdrHistogram (hdrhistogram.org), three significant digits of
microseconds up to one hour, so that its tools read what is written here. The library itself is not used: it
has no wheel for 64-bit ARM, and a Jetson should not need a compiler.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
import zlib
from collections.abc import Iterator

from polythrottle.errors import InvalidInputError

LONGEST_S = 3600.0
"""Latencies from here on, and lost queries, are recorded as this."""

_DIGITS = 3
_HALF_BITS = 10  # 2 × 10^3 steps need 11 bits, the upper half of which each further octave has
_HALF = 1 << _HALF_BITS
_MASK = 2 * _HALF - 1
_LONGEST_US = 3_600_000_000
_UNITS_PER_S = 1e6

_PLAIN, _COMPRESSED = 0x1C849313, 0x1C849314
_HEADER = struct.Struct(">iiiiqqd")
_ENVELOPE = struct.Struct(">ii")


class LatencyHistogram:
    """Counts latencies. Each is known to within 0.1 %, or 1 µs where that is more."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LatencyHistogram) and self._counts == other._counts

    __hash__ = None  # type: ignore[assignment]

    def record(self, latency_s: float, count: int = 1) -> None:
        """Count a latency; `math.inf` for a lost query."""
        units = _LONGEST_US
        if latency_s < LONGEST_S:
            units = max(int(latency_s * _UNITS_PER_S + 0.5), 0)
        index = _index_of(units)
        self._counts[index] = self._counts.get(index, 0) + count
        self._n += count

    def merge(self, other: LatencyHistogram) -> None:
        """Count all that another one has counted."""
        for index, count in other._counts.items():
            self._counts[index] = self._counts.get(index, 0) + count
        self._n += other._n

    def quantile(self, quantile: float) -> float:
        """The latency in seconds that a share of all do not exceed.

        Raises:
            ValueError: the histogram is empty.
        """
        if not self._n:
            raise ValueError("an empty histogram has no quantiles")
        # Less a hair: 0.99 × 1,000 is a little more than 990 in binary.
        wanted = max(math.ceil(quantile * self._n * (1.0 - 1e-12)), 1)
        seen = 0
        for index in sorted(self._counts):
            seen += self._counts[index]
            if seen >= wanted:
                return _middle_s(index)
        return self.largest_s

    def mean(self) -> float:
        """In seconds.

        Raises:
            ValueError: the histogram is empty.
        """
        if not self._n:
            raise ValueError("an empty histogram has no mean")
        return math.fsum(_middle_s(index) * count for index, count in self._counts.items()) / self._n

    def share_above(self, limit_s: float) -> float:
        """Share of the latencies above a limit; 0 for an empty histogram."""
        if not self._n:
            return 0.0
        return sum(count for index, count in self._counts.items() if _middle_s(index) > limit_s) / self._n

    @property
    def largest_s(self) -> float:
        """The largest latency in seconds; 0 before there is one."""
        return _middle_s(max(self._counts)) if self._counts else 0.0

    def encode(self) -> str:
        """As HdrHistogram's compressed V2 text."""
        payload = b"".join(_varint(value) for value in self._runs())
        plain = _HEADER.pack(_PLAIN, len(payload), 0, _DIGITS, 1, _LONGEST_US, 1.0) + payload
        packed = zlib.compress(plain)
        return base64.b64encode(_ENVELOPE.pack(_COMPRESSED, len(packed)) + packed).decode("ascii")

    @classmethod
    def decode(cls, text: str) -> LatencyHistogram:
        """Read what `encode`, or a histogram of the same layout elsewhere, wrote.

        Raises:
            InvalidInputError: it is not such a histogram.
        """
        try:
            data = base64.b64decode(text, validate=True)
            cookie, length = _ENVELOPE.unpack_from(data)
            plain = zlib.decompress(data[_ENVELOPE.size : _ENVELOPE.size + length])
            inner, size, offset, digits, lowest, _, ratio = _HEADER.unpack_from(plain)
            found = cls()
            found._read(plain[_HEADER.size : _HEADER.size + size])
        except (binascii.Error, struct.error, zlib.error, ValueError, IndexError) as error:
            raise InvalidInputError(f"The latency histogram cannot be read: {error}.") from error
        if (cookie, inner) != (_COMPRESSED, _PLAIN):
            raise InvalidInputError("The latency histogram is not in HdrHistogram's compressed V2 form.")
        if (offset, digits, lowest, ratio) != (0, _DIGITS, 1, 1.0):
            raise InvalidInputError(
                f"The latency histogram must hold microseconds with {_DIGITS} significant digits."
            )
        return found

    def _runs(self) -> Iterator[int]:
        """Counts in order; a run of zeros is its length, negative."""
        expected = 0
        for index in sorted(self._counts):
            if index > expected:
                yield expected - index
            yield self._counts[index]
            expected = index + 1

    def _read(self, payload: bytes) -> None:
        index = position = 0
        while position < len(payload):
            value, position = _read_varint(payload, position)
            if value < 0:
                index -= value
                continue
            if value:
                if index > _index_of(_LONGEST_US):
                    raise ValueError("it holds more than an hour")
                self._counts[index] = value
                self._n += value
            index += 1


def _index_of(units: int) -> int:
    octave = (units | _MASK).bit_length() - _HALF_BITS - 1
    return (octave << _HALF_BITS) + (units >> octave)


def _middle_s(index: int) -> float:
    """The middle of what an index stands for, in seconds."""
    octave = max((index >> _HALF_BITS) - 1, 0)
    first = (index - (octave << _HALF_BITS)) << octave
    return (first + ((1 << octave) - 1) / 2.0) / _UNITS_PER_S


def _varint(value: int) -> bytes:
    """ZigZag and LEB128, at most nine bytes."""
    rest = (value << 1) ^ (value >> 63)
    rest &= (1 << 64) - 1
    out = bytearray()
    while rest > 0x7F and len(out) < 8:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    for count in range(9):
        byte = data[position]
        position += 1
        if count == 8:
            value |= byte << shift
            break
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return (value >> 1) ^ -(value & 1), position
