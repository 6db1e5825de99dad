"""Falling back through a real helper: what is kept ends, and something else may be kept in its place."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from polythrottle.clock import RealClock
from polythrottle_agent.applying import Bare
from polythrottle_agent.guard.falling_back import HeldSwitch, HelperSwitch, NotSwitched
from polythrottle_agent.holding import HeldDevice
from polythrottle_agent.privileged.client import HelperError, Leased, helper_device
from tests.integration.helper.conftest import Helper

KEPT = {"gpu_freq_mhz": 408.0, "mem_freq_mhz": "unlocked"}


def keep(helper: Helper) -> None:
    with helper.client() as client:
        client.request("lease", owner="apply")
        client.request("apply", settings=KEPT, reason="test")
        client.request("keep", for_s=None, reason="test")


def kept(helper: Helper) -> dict | None:
    with helper.client() as client:
        found = client.request("status")["kept"]
    return None if found is None else found["settings"]


def test_what_is_kept_is_put_back_within_a_second(helper: Helper) -> None:
    helper.start()
    keep(helper)
    assert not helper.board.is_as_found
    switch = HelperSwitch(helper.socket)
    began_s = time.monotonic()
    switch.put(None, "the SLO is missed")
    took_s = time.monotonic() - began_s
    assert helper.board.is_as_found
    assert kept(helper) is None
    assert took_s < 1.0
    switch.put(None, "again")  # nothing is kept any more, which is what was wanted
    switch.close()


def test_another_configuration_is_kept_in_its_place_and_the_first_one_again(helper: Helper) -> None:
    helper.start()
    keep(helper)
    switch = HelperSwitch(helper.socket)
    switch.put({"gpu_freq_mhz": 510.0}, "safer")
    assert kept(helper) == {"gpu_freq_mhz": 510.0}
    assert helper.board.state()["gpu_freq_mhz"] == "510"
    switch.put(KEPT, "the cause has passed")
    assert kept(helper) == KEPT
    switch.close()
    assert kept(helper) == KEPT  # it outlives the guard
    with helper.client() as client:
        client.request("put_back", force=False)
    assert helper.board.is_as_found


def test_a_level_that_is_refused_leaves_the_device_as_found(helper: Helper) -> None:
    helper.start()
    keep(helper)
    switch = HelperSwitch(helper.socket)
    with pytest.raises(NotSwitched, match="no level 409"):
        switch.put({"gpu_freq_mhz": 409.0}, "wrong")
    assert helper.board.is_as_found
    switch.put(None, "again")


def test_a_helper_that_was_started_again_is_found_again(helper: Helper) -> None:
    helper.start()
    keep(helper)
    switch = HelperSwitch(helper.socket)
    helper.kill(signal.SIGTERM)
    assert helper.board.is_as_found  # no helper, no promise
    with pytest.raises(NotSwitched, match="No polythrottle-helper listens"):
        switch.put(None, "nobody is there")
    helper.start()
    keep(helper)
    switch.put(None, "the SLO is missed")
    assert helper.board.is_as_found


def test_somebody_else_s_lease_is_not_taken_away(helper: Helper) -> None:
    helper.start()
    switch = HelperSwitch(helper.socket)
    with helper.client() as client:
        client.request("lease", owner="tune")
        client.request("apply", settings={"gpu_freq_mhz": 510.0}, reason="trial")
        with pytest.raises(NotSwitched, match="held by tune"):
            switch.put(None, "the SLO is missed")
        assert helper.board.state()["gpu_freq_mhz"] == "510"


def test_without_a_helper_no_guard_begins(helper: Helper) -> None:
    with pytest.raises(HelperError, match="No polythrottle-helper"):
        HelperSwitch(helper.socket)


@pytest.fixture
def held(helper: Helper):
    helper.start()
    client = helper.client()
    identity, controls, _ = helper_device(client)
    device = HeldDevice(Bare(identity, controls, RealClock(), Leased(client, "guard")))
    with device:
        device.apply({"gpu_freq_mhz": 408.0}, "guarded")
        yield device
    client.close()


def test_whoever_holds_the_device_switches_and_goes_on_holding(helper: Helper, held: HeldDevice) -> None:
    switch = HeldSwitch(held)
    switch.put({"gpu_freq_mhz": 510.0}, "safer")
    assert helper.board.state()["gpu_freq_mhz"] == "510"
    switch.put(None, "the SLO is missed")
    assert helper.board.is_as_found
    switch.put({"gpu_freq_mhz": 408.0}, "back")
    assert helper.board.state()["gpu_freq_mhz"] == "408"


def test_a_lease_that_was_lost_does_not_keep_the_device_from_being_put_back(
    helper: Helper, held: HeldDevice
) -> None:
    with helper.client() as client:
        client.request("put_back", force=True)
    assert helper.board.is_as_found
    with pytest.raises(NotSwitched, match="no lease"):
        HeldSwitch(held).put(None, "the SLO is missed")
    HeldSwitch(held, lambda: HelperSwitch(helper.socket)).put(None, "the SLO is missed")
    assert helper.board.is_as_found


def test_a_client_that_asks_meanwhile_does_not_delay_it(helper: Helper) -> None:
    helper.start()
    keep(helper)
    stopped = threading.Event()

    def ask() -> None:
        with helper.client() as client:
            while not stopped.is_set():
                client.request("status")

    thread = threading.Thread(target=ask)
    thread.start()
    switch = HelperSwitch(helper.socket)
    began_s = time.monotonic()
    switch.put(None, "the SLO is missed")
    took_s = time.monotonic() - began_s
    stopped.set()
    thread.join()
    assert helper.board.is_as_found
    assert took_s < 1.0
