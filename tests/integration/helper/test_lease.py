"""The lease: whatever ends it, the board is put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polythrottle.clock import RealClock
from polythrottle.errors import DeviceBusyError, InvalidInputError
from polythrottle_agent.audit import Record, read_audit
from polythrottle_agent.ports import ControlError
from polythrottle_agent.privileged.client import (
    HelperClient,
    HelperError,
    HelperRefusal,
    Leased,
    helper_device,
)
from polythrottle_agent.privileged.keeper import Keeper
from polythrottle_agent.privileged.protocol import Code
from tests.integration.helper.conftest import REPOSITORY, Helper

CLIENT = """
import sys, time
from polythrottle.clock import RealClock
from polythrottle_agent.privileged.client import HelperClient, Leased, helper_device
from polythrottle_agent.privileged.keeper import Keeper
client = HelperClient()
_, controls, _ = helper_device(client)
keeper = Keeper(controls, RealClock(), Leased(client, "a run"))
keeper.take()
keeper.apply({"gpu_freq_mhz": 408.0, "mem_freq_mhz": 204.0, "gpu_min_freq_mhz": 408.0})
print("applied", flush=True)
time.sleep(600)
"""


def taken(client: HelperClient) -> Keeper:
    _, controls, _ = helper_device(client)
    keeper = Keeper(controls, RealClock(), Leased(client, "a test"))
    keeper.take()
    return keeper


def run_elsewhere(helper: Helper) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        cwd=REPOSITORY,
        env={**os.environ, "POLYTHROTTLE_HELPER_SOCKET": str(helper.socket)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "applied\n"
    assert not helper.board.is_as_found
    return process


def test_a_run_through_the_helper_leaves_the_board_as_it_was(helper: Helper) -> None:
    helper.start()
    with helper.client() as client:
        keeper = taken(client)
        keeper.apply({"gpu_freq_mhz": 408.0, "mem_freq_mhz": 204.0})
        assert helper.board.state()["gpu_freq_mhz"] == "408"
        assert keeper.controls["mem_freq_mhz"].accepted() == 204.0
        assert keeper.restore() == ()
        assert helper.board.is_as_found
        keeper.apply({"power_limit_w": 10.0})
        assert keeper.release() == ()
    assert helper.board.is_as_found
    assert list(helper.state.glob("originals-*")) == []


def test_a_client_that_is_killed_gives_the_board_back(helper: Helper) -> None:
    helper.start()
    process = run_elsewhere(helper)
    process.kill()
    process.wait()
    helper.until(lambda: helper.board.is_as_found)


def test_a_client_that_falls_silent_gives_the_board_back(helper: Helper) -> None:
    helper.start()
    process = run_elsewhere(helper)
    process.send_signal(signal.SIGSTOP)
    try:
        started = time.monotonic()
        helper.until(lambda: helper.board.is_as_found)
        assert time.monotonic() - started > 1.0
    finally:
        process.kill()
        process.wait()


def test_heartbeats_keep_a_lease_for_longer_than_its_silence(helper: Helper) -> None:
    helper.start()
    process = run_elsewhere(helper)
    try:
        time.sleep(4.5)  # the lease of this helper is 3 s
        assert not helper.board.is_as_found
    finally:
        process.kill()
        process.wait()


def test_a_helper_that_is_killed_puts_the_board_back_when_it_starts_again(helper: Helper) -> None:
    helper.start()
    process = run_elsewhere(helper)
    helper.kill()
    assert not helper.board.is_as_found
    helper.start()
    assert helper.board.is_as_found
    process.kill()
    process.wait()


def test_what_runs_after_the_helper_puts_the_board_back(helper: Helper) -> None:
    helper.start()
    process = run_elsewhere(helper)
    helper.kill()
    done = helper.restore()
    assert done.returncode == 0, done.stderr
    assert "gpu_freq_mhz" in done.stdout
    assert helper.board.is_as_found
    assert helper.restore().stdout == "Nothing to put back.\n"
    process.kill()
    process.wait()


def test_a_helper_that_is_stopped_puts_the_board_back(helper: Helper) -> None:
    helper.start()
    process = run_elsewhere(helper)
    assert helper.kill(signal.SIGTERM) == 0
    assert helper.board.is_as_found
    assert not helper.socket.exists()
    process.kill()
    process.wait()


def test_restore_beside_a_running_helper_is_refused(helper: Helper) -> None:
    helper.start()
    process = run_elsewhere(helper)
    done = helper.restore()
    assert done.returncode == 1
    assert "in use by process" in done.stderr
    assert not helper.board.is_as_found
    process.kill()
    process.wait()


def test_only_one_holds_the_device(helper: Helper) -> None:
    helper.start()
    with helper.client() as first, helper.client() as second:
        taken(first)
        with pytest.raises(DeviceBusyError, match="held by a test"):
            taken(second)


def test_nothing_is_written_without_a_lease(helper: Helper) -> None:
    helper.start()
    with helper.client() as client:
        _, controls, _ = helper_device(client)
        with pytest.raises(ControlError, match="no lease"):
            controls["gpu_freq_mhz"].apply(408.0)
        with pytest.raises(ControlError, match="no lease"):
            controls["gpu_freq_mhz"].restore({"level": "408"})
    assert helper.board.is_as_found


def test_a_level_that_is_not_in_the_table_is_refused_by_the_helper_itself(helper: Helper) -> None:
    helper.start()
    with helper.client() as client:
        taken(client)
        for level in (407.9, 1e308, -1, True, None, "408", "unlocked", [408.0], {"a": 1}):
            with pytest.raises(HelperRefusal, match="has no level") as refusal:
                client.request("apply", settings={"gpu_freq_mhz": level}, reason="")
            assert refusal.value.code is Code.INVALID
        with pytest.raises(HelperRefusal, match="did you mean gpu_freq_mhz"):
            client.request("apply", settings={"gpu_freq": 408.0}, reason="")
        assert helper.board.is_as_found


def test_a_state_can_only_be_one_that_was_saved(helper: Helper) -> None:
    helper.start()
    with helper.client() as client:
        keeper = taken(client)
        control = keeper.controls["gpu_freq_mhz"]
        control.apply(408.0)
        saved = control.save()
        control.apply(510.0)
        control.restore(saved)
        assert control.accepted() == 408.0
        with pytest.raises(ControlError, match="never saved"):
            control.restore({"level": "510", "path": "/etc/passwd"})
        assert control.accepted() == 408.0


def test_an_unknown_level_is_refused_before_it_is_sent(helper: Helper) -> None:
    helper.start()
    with helper.client() as client:
        keeper = taken(client)
        with pytest.raises(InvalidInputError, match="no level 1"):
            keeper.controls["gpu_freq_mhz"].apply(1.0)


def test_what_the_driver_refuses_is_told_and_the_rest_is_put_back(helper: Helper) -> None:
    helper.start()
    with helper.client() as client:
        keeper = taken(client)
        helper.board.fail_writes("gpu_freq_mhz", 1)
        with pytest.raises(ControlError, match="Input/output error"):
            keeper.apply({"mem_freq_mhz": 204.0, "gpu_freq_mhz": 408.0})
        keeper.apply({"gpu_freq_mhz": 408.0})
        helper.board.fail_writes("gpu_freq_mhz", 10**6)
        keeper.release()
        assert helper.board.state()["mem_freq_mhz"] == "unlocked"
        status = client.request("status")
        assert "gpu_freq_mhz was not restored" in status["not_restored"][0]
        assert status["journal"]["knobs"] == ["gpu_freq_mhz"]
        helper.board.clear_faults()
        helper.until(lambda: helper.board.is_as_found)
        helper.until(lambda: not client.request("status")["not_restored"])
    assert list(helper.state.glob("originals-*")) == []


def test_every_write_is_in_the_audit_log_with_who_and_why(helper: Helper) -> None:
    helper.start()
    with helper.client() as client:
        keeper = taken(client)
        keeper.apply({"gpu_freq_mhz": 408.0})
        keeper.release()
    records = [record for record in read_audit(helper.state) if isinstance(record, Record)]
    applied = [record for record in records if record.event == "apply"]
    assert [(r.knob, r.old, r.new, r.owner, r.pid, r.reason) for r in applied] == [
        ("gpu_freq_mhz", 612.0, 408.0, "a test", os.getpid(), "trial")
    ]
    restored = {record.knob for record in records if record.event == "restore"}
    assert restored == set(helper.board.state())


def test_the_socket_is_closed_to_others(helper: Helper) -> None:
    helper.start()
    assert helper.socket.stat().st_mode & 0o777 == 0o660


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(helper: Helper) -> None:
    helper.start()
    helper.kill()
    assert helper.socket.exists()
    helper.start()
    second = subprocess.run(
        helper.arguments("--state-dir", str(helper.root / "other")),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert "listens on" in second.stderr


@pytest.mark.parametrize("gone", [True, False])
def test_no_helper_is_one_sentence(tmp_path: Path, gone: bool) -> None:
    path = tmp_path / "helper.sock"
    if not gone:
        path.write_text("")
    with pytest.raises(HelperError, match="install-service"):
        HelperClient(path)
