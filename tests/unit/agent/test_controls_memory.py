from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from polythrottle.clock import VirtualClock
from polythrottle.configuration import UNLOCKED
from polythrottle.errors import InvalidInputError
from polythrottle_agent.bounds import Bounds
from polythrottle_agent.controls.jetson_memory import BWMGR_HALT, CLOCK, MEM_KNOB, JetsonMemory
from polythrottle_agent.controls.memory_rates import LockableRates
from polythrottle_agent.limits import Limit, OperatorLimits
from polythrottle_agent.ports import ControlError
from polythrottle_agent.sysfs import Sysfs

RATES = (204_000_000, 665_600_000, 2_133_000_000, 3_199_000_000)


class Bpmp(Sysfs):
    """Plain files whose `rate` answers as BPMP does: rounds up, or rejects without a word."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.lockable: tuple[int, ...] = RATES
        self.rejects: Callable[[int], bool] = lambda _: False
        self.writes: list[tuple[str, str]] = []

    def write(self, path: Path, value: int | str) -> None:
        self.writes.append((path.name, str(value)))
        if path.name == "rate":
            wanted = int(value)
            if self.rejects(wanted):
                return
            value = next((rate for rate in self.lockable if rate >= wanted), self.lockable[-1])
        super().write(path, value)


@pytest.fixture
def bpmp(tmp_path: Path) -> Bpmp:
    sysfs = Bpmp(tmp_path)
    for path, value in {
        f"{CLOCK}/rate": 204_000_000,
        f"{CLOCK}/min_rate": RATES[0],
        f"{CLOCK}/max_rate": RATES[-1],
        f"{CLOCK}/mrq_rate_locked": 0,
        f"{CLOCK}/state": 1,
        BWMGR_HALT: 0,
    }.items():
        file = sysfs.at(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
    return sysfs


def memory(
    sysfs: Sysfs, said: tuple[int, ...] = RATES, cache: Path | None = None, key: str = "boot 1"
) -> JetsonMemory:
    return JetsonMemory(
        sysfs, LockableRates(said, cache, key), Bounds.of(MEM_KNOB, OperatorLimits()), VirtualClock()
    )


def test_a_closed_debugfs_means_no_control(tmp_path: Path, bpmp: Bpmp) -> None:
    assert JetsonMemory.is_here(bpmp)
    assert not JetsonMemory.is_here(Sysfs(tmp_path / "elsewhere"))


def test_locking_halts_the_bandwidth_manager_before_it_locks(bpmp: Bpmp) -> None:
    control = memory(bpmp)
    control.apply(2133.0)
    assert bpmp.writes == [("bwmgr_halt", "1"), ("mrq_rate_locked", "1"), ("rate", "2133000000")]
    assert control.accepted() == 2133.0
    assert control.observed() == 2133.0


def test_a_board_without_the_halt_is_locked_without_it(bpmp: Bpmp) -> None:
    bpmp.at(BWMGR_HALT).unlink()
    control = memory(bpmp)
    control.apply(665.6)
    assert bpmp.writes == [("mrq_rate_locked", "1"), ("rate", "665600000")]
    assert "bwmgr_halt" not in control.save()


def test_a_clock_that_is_off_is_switched_on(bpmp: Bpmp) -> None:
    bpmp.at(f"{CLOCK}/state").write_text("0\n")
    memory(bpmp).apply(665.6)
    assert ("state", "1") in bpmp.writes


def test_unlocked_lets_demand_decide(bpmp: Bpmp) -> None:
    control = memory(bpmp)
    control.apply(204.0)
    control.apply(UNLOCKED)
    assert control.accepted() == UNLOCKED
    assert bpmp.text(bpmp.at(BWMGR_HALT)) == "0"


def test_rounding_up_shows_in_what_is_accepted(bpmp: Bpmp) -> None:
    control = memory(bpmp, said=(204_000_000, 1_701_500_000, 3_199_000_000))
    control.apply(1701.5)
    assert control.accepted() == 2133.0


def test_a_silent_rejection_shows_in_what_is_accepted(bpmp: Bpmp) -> None:
    bpmp.rejects = lambda wanted: wanted > 2_133_000_000
    control = memory(bpmp)
    control.apply(665.6)
    control.apply(3199.0)
    assert control.accepted() == 665.6


def test_an_original_that_is_unlocked_is_equal_at_any_rate(bpmp: Bpmp) -> None:
    control = memory(bpmp)
    original = control.save()
    bpmp.at(f"{CLOCK}/rate").write_text("3199000000\n")
    assert control.save() == original
    control.apply(204.0)
    control.restore(original)
    assert control.save() == original


def test_an_original_that_is_locked_comes_back_locked(bpmp: Bpmp) -> None:
    control = memory(bpmp)
    control.apply(3199.0)
    original = control.save()
    control.apply(UNLOCKED)
    control.restore(original)
    assert (
        control.save()
        == original
        == {
            "mrq_rate_locked": "1",
            "rate": "3199000000",
            "bwmgr_halt": "1",
            "state": "1",
        }
    )


def test_a_clock_that_was_off_is_off_again(bpmp: Bpmp) -> None:
    bpmp.at(f"{CLOCK}/state").write_text("0\n")
    control = memory(bpmp)
    original = control.save()
    control.apply(2133.0)
    assert bpmp.at(f"{CLOCK}/state").read_text() == "1\n"
    control.restore(original)
    assert bpmp.at(f"{CLOCK}/state").read_text() == "0\n"


def test_a_probe_asks_for_nothing_above_the_operator_s_limit_or_the_mode_s_cap(bpmp: Bpmp) -> None:
    limits = OperatorLimits({MEM_KNOB: Limit(0.0, 700.0)}, "limits.yaml")
    for bounds in (
        Bounds.of(MEM_KNOB, limits),
        Bounds.of(MEM_KNOB, OperatorLimits(), lambda: 665.6),
    ):
        bpmp.writes.clear()
        told: list[object] = []
        control = JetsonMemory(bpmp, LockableRates(RATES, None, "boot 1"), bounds, VirtualClock())
        assert control.probe(told.append) == (204.0, 665.6)
        asked = [int(value) for name, value in bpmp.writes if name == "rate"]
        assert max(asked) <= 665_600_000
        assert told == [hz / 1e6 for hz in asked]


@pytest.mark.parametrize(
    "saved",
    [
        {},
        {"mrq_rate_locked": "2"},
        {"mrq_rate_locked": "1", "rate": ""},
        {"mrq_rate_locked": "1", "rate": "fast"},
        {"mrq_rate_locked": "0", "rate": "", "bwmgr_halt": "9"},
    ],
)
def test_a_saved_state_that_makes_no_sense_writes_nothing(bpmp: Bpmp, saved: dict[str, str]) -> None:
    with pytest.raises(ControlError):
        memory(bpmp).restore(saved)
    assert bpmp.writes == []


def test_a_probe_finds_the_rates_that_nobody_listed_and_puts_the_lock_back(bpmp: Bpmp) -> None:
    control = memory(bpmp, said=(RATES[-1],))
    before = control.save()
    assert not control.is_probed
    assert control.probe() == (204.0, 665.6, 2133.0, 3199.0)
    assert control.save() == before
    assert control.is_probed
    assert control.levels == (204.0, 665.6, 2133.0, 3199.0, UNLOCKED)


def test_a_probe_of_a_board_that_is_stuck_below_its_maximum_ends_there(bpmp: Bpmp) -> None:
    bpmp.lockable = RATES[:3]
    assert memory(bpmp).probe() == (204.0, 665.6, 2133.0)


def test_a_probe_where_nothing_can_be_locked_says_so(bpmp: Bpmp) -> None:
    bpmp.rejects = lambda _: True
    bpmp.at(f"{CLOCK}/rate").write_text("100\n")
    control = memory(bpmp)
    with pytest.raises(ControlError, match="no memory clock can be locked"):
        control.probe()
    assert control.accepted() == UNLOCKED
    assert not control.is_probed


def test_a_probe_holds_until_the_next_boot(bpmp: Bpmp, tmp_path: Path) -> None:
    cache = tmp_path / "state/rates.json"
    memory(bpmp, cache=cache).probe()
    assert memory(bpmp, said=(), cache=cache).levels[:-1] == (204.0, 665.6, 2133.0, 3199.0)
    assert not memory(bpmp, cache=cache, key="boot 2").is_probed


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": "other"}', '{"schema": 1, "rates_hz": "x"}'])
def test_a_damaged_cache_is_as_good_as_none(bpmp: Bpmp, tmp_path: Path, content: str) -> None:
    cache = tmp_path / "rates.json"
    cache.write_text(content)
    assert not memory(bpmp, cache=cache).is_probed


def test_a_level_outside_the_table_is_refused(bpmp: Bpmp) -> None:
    with pytest.raises(InvalidInputError):
        memory(bpmp).apply(1700.0)
    assert bpmp.writes == []


def test_a_saved_lock_comes_back_within_the_cap_of_the_mode_that_holds_now(bpmp: Bpmp) -> None:
    bounds = Bounds.of(MEM_KNOB, OperatorLimits(), lambda: 2133.0)
    control = JetsonMemory(bpmp, LockableRates(RATES, None, "boot 1"), bounds, VirtualClock())
    locked = {"mrq_rate_locked": "1", "rate": "3199000000", "bwmgr_halt": "1"}
    assert control.within_caps(locked) == {**locked, "rate": "2133000000"}
    unlocked = {"mrq_rate_locked": "0", "rate": ""}
    assert control.within_caps(unlocked) == unlocked
