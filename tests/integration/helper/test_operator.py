"""What an operator does beside a running helper: edits the limits, breaks them, changes the power mode."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from polythrottle.clock import RealClock
from polythrottle_agent.audit import Record, read_audit
from polythrottle_agent.privileged.client import (
    HelperClient,
    HelperError,
    HelperRefusal,
    Leased,
    helper_device,
)
from polythrottle_agent.privileged.keeper import Keeper

CPU = "sys/devices/system/cpu/cpufreq/policy0"
STOCK_KHZ = 3_200_000


@dataclass
class Host:
    """A machine of plain files with one CPU clock, under the real discovery and controls."""

    root: Path
    socket: Path
    helper: subprocess.Popen[str] | None = None

    def put(self, path: str, text: object) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def command(self, *more: str) -> list[str]:
        return [
            sys.executable, "-m", "polythrottle_agent.privileged.main", "--root", str(self.root),
            "--state-dir", str(self.root / "state"), "--socket", str(self.socket), *more,
        ]  # fmt: skip

    def start(self) -> None:
        self.helper = subprocess.Popen(self.command(), stderr=subprocess.PIPE, text=True)
        ends_s = time.monotonic() + 20
        while True:
            try:
                return self.client().close()
            except HelperError:
                assert self.helper.poll() is None
                assert time.monotonic() < ends_s
                time.sleep(0.02)

    def client(self) -> HelperClient:
        return HelperClient(self.socket, answer_s=20)

    def limit(self, text: str) -> None:
        self.put("etc/polythrottle/limits.yaml", text)

    @property
    def maximum_khz(self) -> int:
        return int((self.root / CPU / "scaling_max_freq").read_text())


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path, Path(f"/tmp/pt-operator-{time.monotonic_ns()}"))
    for name, value in {
        "related_cpus": 0,
        "affected_cpus": 0,
        "cpuinfo_min_freq": 800_000,
        "cpuinfo_max_freq": STOCK_KHZ,
        "scaling_min_freq": 800_000,
        "scaling_max_freq": STOCK_KHZ,
        "scaling_cur_freq": 1_500_000,
        "scaling_governor": "powersave",
    }.items():
        host.put(f"{CPU}/{name}", value)
    yield host
    if host.helper is not None:
        if host.helper.poll() is None:
            host.helper.send_signal(signal.SIGTERM)
            host.helper.wait(20)
        assert host.helper.stderr is not None
        host.helper.stderr.close()
    host.socket.unlink(missing_ok=True)


def test_limits_bound_the_next_lease_without_a_restart(host: Host) -> None:
    host.start()
    with host.client() as client:
        assert helper_device(client)[1]["cpu_freq_mhz"].levels[-1] == 3200.0
    host.limit("cpu_freq_mhz: {max: 1600}")
    with host.client() as client:
        controls = helper_device(client)[1]
        assert controls["cpu_freq_mhz"].levels[-1] == 1600.0
        keeper = Keeper(controls, RealClock(), Leased(client, "a run"))
        keeper.take()
        with pytest.raises(HelperRefusal, match="has no level 1700"):
            client.request("apply", settings={"cpu_freq_mhz": 1700.0}, reason="")
        keeper.apply({"cpu_freq_mhz": 1600.0})
        assert host.maximum_khz == 1_600_000
        assert keeper.release() == ()
    assert host.maximum_khz == STOCK_KHZ, "what was found is not bounded by what may be tried"


def test_limits_that_cannot_be_read_give_no_lease(host: Host) -> None:
    host.start()
    host.limit("cpu_freq_mhz: {max: ")
    with host.client() as client:
        assert "limits.yaml is not YAML at line" in helper_device(client)[2][-1]
        with pytest.raises(HelperRefusal, match=r"limits\.yaml is not YAML at line"):
            client.request("lease", owner="a run")


def test_limits_that_cannot_be_read_keep_nothing_from_its_originals(host: Host) -> None:
    host.start()
    client = host.client()
    Keeper(helper_device(client)[1], RealClock(), Leased(client, "a run")).take()
    client.request("apply", settings={"cpu_freq_mhz": 1200.0}, reason="")
    assert host.helper is not None
    host.helper.kill()
    host.helper.wait()
    client.close()
    assert host.maximum_khz == 1_200_000
    host.limit("cpu_freq_mhz: {max: ")
    done = subprocess.run(host.command("--restore"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert host.maximum_khz == STOCK_KHZ


def test_they_do_not_keep_a_living_helper_from_it_either(host: Host) -> None:
    host.start()
    with host.client() as client:
        client.request("lease", owner="a run")
        client.request("apply", settings={"cpu_freq_mhz": 1200.0}, reason="")
        client.request("keep", for_s=None, reason="confirmed")
    host.limit("cpu_freq_mhz: {max: ")
    environment = {
        **os.environ,
        "POLYTHROTTLE_SYSROOT": str(host.root),
        "POLYTHROTTLE_STATE_DIR": str(host.root / "no-other"),
        "POLYTHROTTLE_HELPER_SOCKET": str(host.socket),
    }
    script = "from polythrottle.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "restore"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert host.maximum_khz == STOCK_KHZ


MODES = """< POWER_MODEL ID=0 NAME=MAXN >
CPU_A78_0 MAX_FREQ 3200000
< POWER_MODEL ID=1 NAME=15W >
CPU_A78_0 MAX_FREQ 1500000
"""
PARAMS = f"""< PARAM TYPE=CLOCK NAME=CPU_A78_0 >
MAX_FREQ /{CPU}/scaling_max_freq
MIN_FREQ /{CPU}/scaling_min_freq
"""
CONF = PARAMS.replace(f"/{CPU}", "/sys/devices/system/cpu/cpu0/cpufreq") + MODES


def test_a_restore_after_a_change_of_the_power_mode_stays_below_its_cap(host: Host) -> None:
    host.put("etc/nvpmodel.conf", CONF)
    host.put("var/lib/nvpmodel/status", "pmode:0000")
    host.start()
    with host.client() as client:
        keeper = Keeper(helper_device(client)[1], RealClock(), Leased(client, "a run"))
        keeper.take()
        keeper.apply({"cpu_freq_mhz": 1200.0})
        host.put("var/lib/nvpmodel/status", "pmode:0001")
        # The helper holds what comes back within the new mode, and the client takes its word for it.
        assert keeper.restore() == ()
        assert host.maximum_khz == 1_500_000
        keeper.apply({"cpu_freq_mhz": 1200.0})
        assert keeper.release() == ()
        assert host.maximum_khz == 1_500_000
        (told,) = client.request("status")["drift"]
    assert "the power mode changed (MAXN (ID 0) → 15W (ID 1))" in told
    assert "run nvpmodel -m again" in told
    records = [record for record in read_audit(host.root / "state") if isinstance(record, Record)]
    assert any("held within power mode 15W (ID 1), it was MAXN (ID 0)" in r.reason for r in records)
    assert list((host.root / "state").glob("originals-*")) == []
