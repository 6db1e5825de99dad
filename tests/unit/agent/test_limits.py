from __future__ import annotations

from pathlib import Path

import pytest

from polythrottle.configuration import UNLOCKED
from polythrottle.errors import InvalidInputError
from polythrottle_agent.bounds import Bounds
from polythrottle_agent.limits import Limit, OperatorLimits, load_limits
from polythrottle_agent.ports import ControlError

LEVELS = (204.0, 665.6, 2133.0, 3199.0, UNLOCKED)


def limits(root: Path, text: str) -> OperatorLimits:
    file = root / "etc/polythrottle/limits.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return load_limits(root)


def test_without_a_file_nothing_is_limited(tmp_path: Path) -> None:
    found = load_limits(tmp_path)
    assert found.source is None
    assert Bounds.of("mem_freq_mhz", found).allowed(LEVELS) == LEVELS


def test_a_minimum_and_a_maximum_bound_the_levels(tmp_path: Path) -> None:
    found = limits(tmp_path, "mem_freq_mhz: {min: 300, max: 2133}\ncpu_cores: {min: 2}\n")
    assert Bounds.of("mem_freq_mhz", found).allowed(LEVELS) == (665.6, 2133.0)
    assert found.of("cpu_cores") == Limit(lowest=2)
    assert found.of("gpu_freq_mhz").allows(1.0)


def test_a_maximum_rules_unlocked_out_and_a_minimum_does_not(tmp_path: Path) -> None:
    assert UNLOCKED not in Bounds.of("mem_freq_mhz", limits(tmp_path, "mem_freq_mhz: {max: 9999}")).allowed(
        LEVELS
    )
    assert UNLOCKED in Bounds.of("mem_freq_mhz", limits(tmp_path, "mem_freq_mhz: {min: 1}")).allowed(LEVELS)


def test_an_empty_file_limits_nothing(tmp_path: Path) -> None:
    assert limits(tmp_path, "# none yet\n").limits == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpu_freq_mhz: {max: 918", "is not YAML at line 1"),
        ("- gpu_freq_mhz", "must map knobs to limits"),
        ("gpu_freq: {max: 918}", r"names knob 'gpu_freq'; did you mean gpu_freq_mhz"),
        ("gpu_freq_mhz: 918", "must have min, max or both"),
        ("gpu_freq_mhz: {}", "must have min, max or both"),
        ("gpu_freq_mhz: {maximum: 918}", r"has 'maximum'; did you mean max\?"),
        ("gpu_freq_mhz: {max: fast}", "max is 'fast', not a number of MHz"),
        ("gpu_freq_mhz: {max: true}", "max is True, not a number"),
        ("gpu_freq_mhz: {min: -1}", "min is -1, not a number"),
        ("gpu_freq_mhz: {max: .nan}", "max is nan, not a number"),
        ("gpu_freq_mhz: {min: 900, max: 600}", "min 900 above max 600"),
    ],
)
def test_limits_that_cannot_be_understood_are_refused_in_one_sentence(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words) as error:
        limits(tmp_path, text)
    assert "\n" not in str(error.value)
    assert "limits.yaml" in str(error.value)


def test_limits_that_cannot_be_read_do_not_count_as_none(tmp_path: Path) -> None:
    (tmp_path / "etc/polythrottle/limits.yaml").mkdir(parents=True)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_limits(tmp_path)


def test_a_cap_bounds_levels_and_is_asked_again_at_each_write() -> None:
    cap = [2133.0]
    bounds = Bounds.of("mem_freq_mhz", OperatorLimits(), lambda: cap[0])
    assert bounds.allowed(LEVELS) == (204.0, 665.6, 2133.0, UNLOCKED)
    bounds.check(2133.0, LEVELS)
    cap[0] = 665.6
    bounds.check(665.6, LEVELS)
    with pytest.raises(ControlError, match=r"the power mode now allows 665\.6 MHz at most"):
        bounds.check(2133.0, LEVELS)


def test_a_level_beyond_the_limits_is_refused_at_the_write(tmp_path: Path) -> None:
    bounds = Bounds.of("mem_freq_mhz", limits(tmp_path, "mem_freq_mhz: {max: 700}"))
    with pytest.raises(InvalidInputError, match=r"mem_freq_mhz = 2133 lies outside .*limits\.yaml"):
        bounds.check(2133.0, LEVELS)
    with pytest.raises(InvalidInputError, match="mem_freq_mhz has no level 1234 here"):
        bounds.check(1234.0, LEVELS)


def test_limits_that_are_edited_bound_the_next_write(tmp_path: Path) -> None:
    found = limits(tmp_path, "mem_freq_mhz: {max: 2133}")
    bounds = Bounds.of("mem_freq_mhz", found)
    bounds.check(2133.0, LEVELS)
    limits(tmp_path, "mem_freq_mhz: {max: 700}")
    found.reread()
    assert bounds.allowed(LEVELS) == (204.0, 665.6)
    with pytest.raises(InvalidInputError, match="outside the limits"):
        bounds.check(2133.0, LEVELS)
    (tmp_path / "etc/polythrottle/limits.yaml").write_text("mem_freq_mhz: {max: ")
    with pytest.raises(InvalidInputError, match="is not YAML"):
        found.reread()
    assert bounds.allowed(LEVELS) == (204.0, 665.6), "limits that cannot be read take none away"
    (tmp_path / "etc/polythrottle/limits.yaml").unlink()
    found.reread()
    assert bounds.allowed(LEVELS) == LEVELS
