"""Discovery over plain files: an x86 host, and a Jetson nobody knows. Boards: tests/integration/hardware."""

from __future__ import annotations

from pathlib import Path

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.errors import InvalidInputError, NoDeviceError
from polythrottle.measurement import Provenance
from polythrottle_agent.devices import open_device
from polythrottle_agent.discovery import Discovered, discover
from polythrottle_agent.privileged.journal import Journal, Owner

CPU = "sys/devices/system/cpu"


def put(root: Path, path: str, text: object) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Two cores under intel_pstate, with RAPL."""
    put(tmp_path, "proc/cpuinfo", "model name\t: Intel(R) Xeon(R) Gold 6338")
    put(tmp_path, "etc/machine-id", "0123456789abcdef")
    for cpu in range(2):
        directory = f"{CPU}/cpufreq/policy{cpu}"
        for name, value in {
            "related_cpus": cpu,
            "affected_cpus": cpu,
            "cpuinfo_min_freq": 800000,
            "cpuinfo_max_freq": 3200000,
            "scaling_min_freq": 800000,
            "scaling_max_freq": 3200000,
            "scaling_cur_freq": 1500000,
            "scaling_governor": "powersave",
            "scaling_driver": "intel_pstate",
        }.items():
            put(tmp_path, f"{directory}/{name}", value)
        put(tmp_path, f"{CPU}/cpu{cpu}/topology/core_id", cpu)
    put(tmp_path, f"{CPU}/cpu1/online", 1)
    zone = "sys/class/powercap/intel-rapl:0"
    for name, value in {"name": "package-0", "energy_uj": 5, "max_energy_range_uj": 262143328850}.items():
        put(tmp_path, f"{zone}/{name}", value)
    return tmp_path


def look(root: Path) -> Discovered:
    return discover(root, clock=VirtualClock())


def test_a_host_has_cpu_clocks_cores_and_rapl(host: Path) -> None:
    found = look(host)
    assert list(found.controls) == ["cpu_cores", "cpu_freq_mhz"]
    assert found.controls["cpu_freq_mhz"].levels[0] == 800.0
    assert found.controls["cpu_freq_mhz"].levels[-1] == 3200.0
    assert len(found.controls["cpu_freq_mhz"].levels) == 25
    assert [meter.name for meter in found.meters] == ["RAPL package-0"]
    assert found.is_writable
    assert found.identity.id.startswith("host:intel-r-xeon-r-gold-6338:")
    assert found.identity.label == "Intel(R) Xeon(R) Gold 6338"
    assert found.identity.provenance is Provenance.MEASURED


def test_looking_writes_nothing(host: Path) -> None:
    def state() -> dict[Path, tuple[int, bytes]]:
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in host.rglob("*") if p.is_file()}

    before = state()
    look(host)
    assert state() == before


def test_its_identity_changes_with_its_tables_and_not_with_what_it_holds(host: Path) -> None:
    first = look(host).identity
    put(host, f"{CPU}/cpufreq/policy0/scaling_max_freq", 1600000)
    assert look(host).identity == first
    for cpu in range(2):
        put(host, f"{CPU}/cpufreq/policy{cpu}/cpuinfo_max_freq", 3100000)
    second = look(host).identity
    assert second.id == first.id
    assert second.tables_digest != first.tables_digest


def test_the_operator_s_limits_bound_levels_and_are_told(host: Path) -> None:
    put(host, "etc/polythrottle/limits.yaml", "cpu_freq_mhz: {min: 1000, max: 2000}")
    found = look(host)
    assert found.controls["cpu_freq_mhz"].levels == tuple(float(mhz) for mhz in range(1000, 2001, 100))
    assert any("limits.yaml" in note for note in found.notes)
    with pytest.raises(InvalidInputError):
        found.controls["cpu_freq_mhz"].apply(3200.0)
    put(host, "etc/polythrottle/limits.yaml", "nonsense")
    with pytest.raises(InvalidInputError, match=r"limits\.yaml"):
        look(host)


def test_a_counter_that_is_closed_leaves_a_host_without_a_meter_and_says_why(host: Path) -> None:
    (host / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    found = look(host)
    assert found.meters == ()
    assert "energy_uj" in found.no_meter[0]
    with pytest.raises(NoDeviceError, match=r"no meter of its energy: .* Name one with --meter"):
        open_device("auto", None, 0, VirtualClock(), root=host)


def test_without_a_workload_it_says_how_to_name_one(host: Path) -> None:
    with pytest.raises(NoDeviceError, match="no workload is named; name what it serves, as in --workload"):
        open_device("auto", None, 0, VirtualClock(), root=host)


def test_a_user_who_may_not_write_is_told_what_to_start(host: Path) -> None:
    for cpu in range(2):
        (host / f"{CPU}/cpufreq/policy{cpu}/scaling_max_freq").chmod(0o444)
    assert not look(host).is_writable
    with pytest.raises(NoDeviceError, match="may not set its clocks"):
        open_device("auto", None, 0, VirtualClock(), root=host)


def test_a_jetson_that_is_not_known_has_controls_and_no_meter(host: Path) -> None:
    node = "sys/class/devfreq/17000000.gpu"
    for name, value in {
        "device/of_node/name": "ga10b",
        "available_frequencies": "306000000 612000000 918000000",
        "min_freq": 306000000,
        "max_freq": 612000000,
        "cur_freq": 306000000,
    }.items():
        put(host, f"{node}/{name}", value)
    found = look(host)
    assert "this board is not known" in found.no_meter[0]
    assert found.meters == ()
    # Nothing says how fast it may run, so what holds now is the most.
    assert found.controls["gpu_freq_mhz"].levels == (306.0, 612.0)
    assert any("present maximum of 612 MHz is taken as its cap" in note for note in found.notes)


def test_a_machine_with_nothing_to_set_has_no_control(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", "model name\t: a CPU")
    found = look(tmp_path)
    assert found.controls == {}
    assert any("no cpufreq policy" in note for note in found.notes)


def test_a_cpu_that_somebody_switched_off_stays_off(host: Path) -> None:
    put(host, f"{CPU}/cpu2/topology/core_id", 2)
    put(host, f"{CPU}/cpu2/online", 0)
    found = look(host)
    assert found.controls["cpu_cores"].levels == (1.0, 2.0)
    found.controls["cpu_cores"].apply(2.0)
    assert (host / f"{CPU}/cpu2/online").read_text() == "0\n"


@pytest.mark.parametrize("ours", [True, False])
def test_only_the_devices_own_journal_says_what_was_found(host: Path, tmp_path: Path, ours: bool) -> None:
    put(host, "proc/sys/kernel/random/boot_id", "this-boot")
    device = look(host).identity.id
    state = tmp_path / "state"
    journal = Journal(state, "this-boot", device if ours else "nvidia:GPU-1")
    journal.add(Owner("a run", 0, 1), {"cpu_cores": {"cpu1": "1"}})
    put(host, f"{CPU}/cpu1/online", 0)
    found = discover(host, clock=VirtualClock(), state_dir=state)
    assert found.identity.id == device
    levels = found.controls["cpu_cores"].levels if "cpu_cores" in found.controls else ()
    assert (levels == (1.0, 2.0)) is ours
