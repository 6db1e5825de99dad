"""Signals while something runs: flags, unless what runs says that it may be cut short."""

from __future__ import annotations

import os
import signal

import pytest

from polythrottle.cli.interrupts import Interrupts


def hit(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def test_a_second_ctrl_c_cuts_a_window_short_and_the_first_does_not() -> None:
    with Interrupts("", "") as interrupts:
        with interrupts.at_once():
            hit(signal.SIGINT)
        assert interrupts.after_trial
        assert not interrupts.now
        with pytest.raises(KeyboardInterrupt), interrupts.at_once():
            hit(signal.SIGINT)
        assert interrupts.now


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_write_is_never_cut_in_two(number: int) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored, and stays so
    try:
        write_under(number)
    finally:
        signal.signal(number, before)


def write_under(number: int) -> None:
    with Interrupts("", "") as interrupts:
        hit(number)
        assert interrupts.now
        entered = False
        with pytest.raises(KeyboardInterrupt), interrupts.at_once():
            entered = True
        assert not entered
        hit(number)


def test_what_cleans_up_after_it_is_not_cut_short_by_the_next_one() -> None:
    with Interrupts("", "") as interrupts:
        cleaned = []

        def measure() -> None:
            with interrupts.at_once():
                try:
                    hit(signal.SIGTERM)
                finally:
                    hit(signal.SIGTERM)
                    cleaned.append(True)

        with pytest.raises(KeyboardInterrupt):
            measure()
        assert cleaned
