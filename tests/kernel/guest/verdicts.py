"""One line a check, on the serial console that the host reads."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def say(kind: str, name: str, detail: str = "") -> None:
    with open("/dev/ttyS0", "w", encoding="utf-8") as console:
        console.write(f"\nVERDICT {kind} {name}{': ' if detail else ''}{' '.join(detail.split())[:300]}\n")


class Failed(AssertionError):
    """A check found something else than it should."""


def expect(condition: bool, detail: str) -> None:
    if not condition:
        raise Failed(detail)


@contextmanager
def check(name: str) -> Iterator[list[str]]:
    """A block that is one check. What it appends to the list is shown with the verdict."""
    details: list[str] = []
    try:
        yield details
    except Failed as failure:
        say("fail", name, str(failure))
    except Exception as error:  # one check that breaks must not keep the others from running
        say(
            "fail",
            name,
            f"{type(error).__name__}: {error} at {traceback.extract_tb(error.__traceback__)[-1]}",
        )
    else:
        say("pass", name, "; ".join(details))


def wait_for(condition: Callable[[], bool], seconds: float, what: str, every_s: float = 0.05) -> float:
    """Wait until a condition holds; returns how long it took.

    Args:
        every_s: how often to look; seldom where a look starts programs, or they are what is waited for.

    Raises:
        Failed: it did not in time.
    """
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise Failed(f"{what} did not happen within {seconds:g} s")
        time.sleep(every_s)
    return time.monotonic() - began
