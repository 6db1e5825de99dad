import errno

import pytest

from polythrottle.errors import InvalidInputError
from polythrottle_agent.emulation.kernels import kernel_named, kstrtoul, sscanf_unsigned, word


def code(call: object, text: bytes) -> int | None:
    try:
        call(text)  # type: ignore[operator]
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"5", 5),
        (b"5\n", 5),
        (b"+5", 5),
        (b"0x1F\n", 31),
        (b"017", 15),
        (b"0", 0),
        (b"18446744073709551615", 2**64 - 1),
    ],
)
def test_kstrtoul_reads(text: bytes, value: int) -> None:
    assert kstrtoul(text) == value


@pytest.mark.parametrize(
    "text", [b"", b"\n", b" 5", b"5 ", b"5 foo", b"-5", b"5\n\n", b"0x", b"08", b"abc", b"5.0"]
)
def test_kstrtoul_refuses(text: bytes) -> None:
    assert code(kstrtoul, text) == errno.EINVAL


def test_kstrtoul_knows_its_range() -> None:
    assert code(kstrtoul, b"18446744073709551616") == errno.ERANGE


def test_sscanf_takes_the_first_number_and_ignores_the_rest() -> None:
    assert [sscanf_unsigned(text) for text in (b"5", b" \t5\n", b"5 foo", b"5foo", b"0x1f")] == [
        5,
        5,
        5,
        5,
        0,
    ]
    for text in (b"", b"\n", b"foo", b"-5", b"x5"):
        assert code(sscanf_unsigned, text) == errno.EINVAL


def test_a_word_is_the_first_one() -> None:
    assert word(b" performance \n") == "performance"
    assert code(word, b" \n") == errno.EINVAL


def test_unknown_kernels_are_named() -> None:
    assert kernel_named("4.9").iio
    with pytest.raises(InvalidInputError, match=r"5\.15"):
        kernel_named("5.16")
