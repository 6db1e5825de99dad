from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest

from polythrottle.configuration import GRID_LIMIT, UNLOCKED, Configuration, Knob
from polythrottle.errors import InvalidInputError
from polythrottle.profiles import load_profile
from polythrottle.spaces import build_space, middle_level

BATCHES = (1, 2, 4, 8, 16)


def board(name: str, gpu_variant: str | None = None, unlocked: bool = False) -> dict[str, Knob]:
    """What a board offers, in the order a device lists it."""
    profile = load_profile(name)
    gpu = profile.table("gpu_freq_mhz", gpu_variant).freqs_mhz or ()
    mem = profile.table("mem_freq_mhz").freqs_mhz or ()
    return {
        "cpu_freq_mhz": Knob.of("cpu_freq_mhz", profile.table("cpu_freq_mhz").freqs_mhz or ()),
        "gpu_min_freq_mhz": Knob.of("gpu_min_freq_mhz", gpu),
        "gpu_freq_mhz": Knob.of("gpu_freq_mhz", gpu),
        "mem_freq_mhz": Knob.of("mem_freq_mhz", (*mem, UNLOCKED) if unlocked else mem),
        "batch_size": Knob.of("batch_size", BATCHES),
    }


TX2 = board("tx2")
ORIN = board("agx-orin", "JetPack 5.0 (early)")
PAPER_KNOBS = ["gpu_min_freq_mhz", "gpu_freq_mhz", "mem_freq_mhz", "batch_size"]


@pytest.mark.parametrize(("available", "points"), [(TX2, 5005), (ORIN, 1820)])
def test_the_papers_spaces(available: Mapping[str, Knob], points: int) -> None:
    choice = build_space(available, PAPER_KNOBS, {}, None, None, 1)
    assert len(choice.space) == points
    assert choice.notes == ()
    assert all(
        c["gpu_min_freq_mhz"] <= c["gpu_freq_mhz"] for c in map(choice.space.at, choice.space.indices())
    )  # type: ignore[operator]


def test_the_papers_space_on_a_board_that_also_offers_unlocked_memory() -> None:
    levels = "/".join(f"{level:g}" for level in TX2["mem_freq_mhz"].levels)
    chosen = ["gpu_min_freq_mhz", "gpu_freq_mhz", f"mem_freq_mhz={levels}", "batch_size"]
    assert len(build_space(board("tx2", unlocked=True), chosen, {}, None, None, 1).space) == 5005


def test_with_cpu_a_space_is_thinned_and_says_so() -> None:
    choice = build_space(ORIN, list(ORIN), {}, None, None, 16)
    assert len(choice.space) <= GRID_LIMIT
    assert any("more than 50,000" in note and "cpu_freq_mhz 29 →" in note for note in choice.notes)
    assert choice.space.knob("cpu_freq_mhz").levels[0] == ORIN["cpu_freq_mhz"].levels[0]
    assert choice.space.knob("cpu_freq_mhz").levels[-1] == ORIN["cpu_freq_mhz"].levels[-1]
    assert choice.anchor in choice.space
    assert choice.anchor == Configuration.of({name: knob.highest for name, knob in ORIN.items()})


def test_the_default_knobs_are_gpu_memory_cpu_and_batch() -> None:
    choice = build_space(TX2, None, {}, None, None, 1)
    assert set(choice.space.names) == {"gpu_freq_mhz", "mem_freq_mhz", "cpu_freq_mhz", "batch_size"}
    assert choice.fixed == ()


def test_a_workload_without_batch_has_no_batch_knob() -> None:
    without = {name: knob for name, knob in TX2.items() if name != "batch_size"}
    assert "batch_size" not in build_space(without, None, {}, None, None).space.names


def test_a_device_with_none_of_the_default_knobs_is_searched_over_what_it_has() -> None:
    cap = Knob("power_limit_w", (100.0, 200.0))
    assert build_space({"power_limit_w": cap}, None, {}, None, None).space.knobs == (cap,)


def test_the_anchor_is_max_clocks_and_the_default_batch() -> None:
    choice = build_space(TX2, None, {}, None, None, 4)
    assert dict(choice.anchor) == {
        "cpu_freq_mhz": 2035.2,
        "gpu_freq_mhz": 1300.5,
        "mem_freq_mhz": 1866.0,
        "batch_size": 4.0,
    }


def test_the_anchor_locks_memory_at_its_highest_number() -> None:
    choice = build_space(board("tx2", unlocked=True), None, {}, None, None, 1)
    assert choice.anchor["mem_freq_mhz"] == 1866.0
    assert UNLOCKED in choice.space.knob("mem_freq_mhz").levels


def test_knobs_may_be_chosen_with_their_levels() -> None:
    choice = build_space(TX2, ["mem_freq_mhz=1866/408", "gpu_freq_mhz"], {}, None, None, 1)
    assert choice.space.knob("mem_freq_mhz").levels == (408.0, 1866.0)
    assert choice.space.names == ("gpu_freq_mhz", "mem_freq_mhz")


def test_batch_sizes_are_restricted_and_the_anchor_says_when_today_s_is_not_among_them() -> None:
    choice = build_space(TX2, None, {}, [2, 16], None, 1)
    assert choice.space.knob("batch_size").levels == (2.0, 16.0)
    assert choice.anchor["batch_size"] == 2.0
    assert any("Batch size 1 is not among those searched" in note for note in choice.notes)


def test_batch_sizes_are_searched_even_when_batch_is_not_among_the_knobs() -> None:
    choice = build_space(TX2, ["gpu_freq_mhz"], {}, [1, 2], None, 1)
    assert choice.space.names == ("gpu_freq_mhz", "batch_size")


def test_a_fixed_knob_leaves_the_space() -> None:
    choice = build_space(TX2, None, {"cpu_freq_mhz": "2035.2", "batch_size": "8"}, None, None, 1)
    assert choice.fixed == (("cpu_freq_mhz", 2035.2), ("batch_size", 8.0))
    assert set(choice.space.names) == {"gpu_freq_mhz", "mem_freq_mhz"}


def test_unlocked_memory_can_be_fixed() -> None:
    choice = build_space(board("tx2", unlocked=True), None, {"mem_freq_mhz": "Unlocked"}, None, None, 1)
    assert choice.fixed == (("mem_freq_mhz", UNLOCKED),)


def test_a_fixed_gpu_minimum_cuts_the_maximum() -> None:
    choice = build_space(TX2, None, {"gpu_min_freq_mhz": "522.75"}, None, None, 1)
    assert min(choice.space.knob("gpu_freq_mhz").levels, key=float) == 522.75
    assert any("4 levels of gpu_freq_mhz" in note for note in choice.notes)
    choice = build_space(TX2, ["gpu_min_freq_mhz"], {"gpu_freq_mhz": "522.75"}, None, None, 1)
    assert choice.space.knob("gpu_min_freq_mhz").highest == 522.75


@pytest.mark.parametrize(
    ("chosen", "fixed", "batch_sizes", "message"),
    [
        (["gpu_frq_mhz"], {}, None, r"Unknown knob 'gpu_frq_mhz'; did you mean gpu_freq_mhz"),
        (["GPU"], {}, None, r"Unknown knob 'GPU'; did you mean gpu_freq_mhz\?"),
        (["memory"], {}, None, r"did you mean mem_freq_mhz\?"),
        (["gpu_freq_mhz", "gpu_freq_mhz"], {}, None, "named twice"),
        ([], {}, None, "No knob is named"),
        (["gpu_freq_mhz=500"], {}, None, "gpu_freq_mhz has no level 500; the nearest are"),
        (None, {"cpu_frequency": "1"}, None, "Unknown knob 'cpu_frequency'"),
        (None, {"cpu_freq_mhz": "2000"}, None, "the nearest are 1881.6 and 2035.2"),
        (["gpu_freq_mhz"], {"gpu_freq_mhz": "1300.5"}, None, "both searched and fixed"),
        (None, {"batch_size": "1"}, [1, 2], "both searched and fixed"),
        (None, {}, [3], "batch_size has no level 3"),
        (None, {}, [], "No batch size is named"),
        (None, {"gpu_min_freq_mhz": "1300.5", "gpu_freq_mhz": "114.75"}, None, "above the maximum"),
        (
            None,
            {n: f"{k.highest:g}" for n, k in TX2.items()},
            None,
            "Nothing is left",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    chosen: list[str] | None, fixed: dict[str, str], batch_sizes: list[int] | None, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message) as error:
        build_space(TX2, chosen, fixed, batch_sizes, None, 1)
    assert "\n" not in str(error.value)


def test_batch_sizes_without_a_batch_knob_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="no batch size to set"):
        build_space({"gpu_freq_mhz": TX2["gpu_freq_mhz"]}, None, {}, [1], None)


# Recorded tables


def recorded(**levels: tuple[float, ...]) -> tuple[dict[str, Knob], tuple[Configuration, ...]]:
    knobs = {name: Knob.of(name, values) for name, values in levels.items()}
    rows = tuple(
        Configuration.of(dict(zip(levels, values, strict=True)))
        for values in itertools.product(*(knob.levels for knob in knobs.values()))
    )
    return knobs, rows


def test_every_column_with_several_levels_is_searched() -> None:
    knobs, rows = recorded(batch_size=(8, 16, 32, 64), power_limit_w=(100, 150, 250), cpu_cores=(4,))
    choice = build_space(knobs, None, {}, None, rows)
    assert choice.space.names == ("batch_size", "power_limit_w")
    assert choice.space.cells is None
    assert dict(choice.anchor) == {"batch_size": 32.0, "power_limit_w": 250.0}
    assert dict(choice.fixed) == {"cpu_cores": 4.0}
    assert choice.notes == ()


def test_a_column_that_is_not_searched_is_held_and_said_so() -> None:
    knobs, rows = recorded(cpu_freq_mhz=(500, 1000), gpu_freq_mhz=(300, 600, 900))
    choice = build_space(knobs, ["gpu_freq_mhz"], {}, None, rows)
    assert len(choice.space) == 3
    assert dict(choice.fixed) == {"cpu_freq_mhz": 1000.0}
    assert choice.notes == ("CPU 1000 MHz is held: it is not searched.",)


def test_missing_cells_are_not_in_the_space() -> None:
    knobs, rows = recorded(gpu_freq_mhz=(300, 600, 900), mem_freq_mhz=(400, 800))
    hole = Configuration.of({"gpu_freq_mhz": 600.0, "mem_freq_mhz": 400.0})
    choice = build_space(knobs, None, {}, None, tuple(row for row in rows if row != hole))
    assert len(choice.space) == 5
    assert hole not in choice.space
    assert dict(choice.anchor) == {"gpu_freq_mhz": 900.0, "mem_freq_mhz": 800.0}


def test_the_anchor_of_a_table_with_holes_is_the_nearest_cell() -> None:
    knobs, rows = recorded(gpu_freq_mhz=(300, 600, 700, 900), mem_freq_mhz=(400, 800))
    top = Configuration.of({"gpu_freq_mhz": 900.0, "mem_freq_mhz": 800.0})
    choice = build_space(knobs, None, {}, None, tuple(row for row in rows if row != top))
    assert dict(choice.anchor) == {"gpu_freq_mhz": 700.0, "mem_freq_mhz": 800.0}
    assert any("the anchor is the nearest" in note for note in choice.notes)


def test_levels_that_no_row_has_beside_the_fixed_ones_are_dropped() -> None:
    knobs, rows = recorded(gpu_freq_mhz=(300, 600, 900), mem_freq_mhz=(400, 800))
    some = tuple(row for row in rows if row["mem_freq_mhz"] == 800 or row["gpu_freq_mhz"] != 900)
    choice = build_space(knobs, None, {"mem_freq_mhz": "400"}, None, some)
    assert choice.space.knob("gpu_freq_mhz").levels == (300.0, 600.0)
    assert len(choice.space) == 2
    assert dict(choice.anchor) == {"gpu_freq_mhz": 600.0}


def test_no_row_at_all_beside_the_fixed_levels() -> None:
    knobs, rows = recorded(gpu_freq_mhz=(300, 600), mem_freq_mhz=(400, 800), cpu_freq_mhz=(1, 2))
    some = tuple(row for row in rows if row["mem_freq_mhz"] != row["cpu_freq_mhz"] * 400)  # type: ignore[operator]
    with pytest.raises(InvalidInputError, match="no row with mem_freq_mhz=400, cpu_freq_mhz=1"):
        build_space(knobs, None, {"mem_freq_mhz": "400", "cpu_freq_mhz": "1"}, None, some)


def test_the_middle_level_is_the_upper_of_two() -> None:
    assert middle_level((1.0, 2.0, 3.0)) == 2.0
    assert middle_level((1.0, 2.0, 3.0, 4.0)) == 3.0
