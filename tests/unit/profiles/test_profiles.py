from __future__ import annotations

import pytest

from polythrottle.errors import InvalidInputError
from polythrottle.profiles import board_names, load_profile, resolve_board, tables_digest


@pytest.mark.parametrize("name", ["tx2", "jetson-tx2", "Jetson_TX2", " TX2 ", "jetson tx2"])
def test_a_board_goes_by_many_names(name: str) -> None:
    assert load_profile(name).name == "jetson-tx2"


def test_no_name_stands_for_two_boards() -> None:
    names = [name for board in board_names() for name in (board, *load_profile(board).aliases)]
    assert len(set(names)) == len(names)


def test_an_unknown_board_is_refused_with_close_matches() -> None:
    with pytest.raises(InvalidInputError, match=r"Unknown board 'orin-nona'; did you mean orin-nano"):
        load_profile("orin-nona")


def test_a_name_like_no_board_lists_the_boards() -> None:
    with pytest.raises(InvalidInputError, match="known: jetson-agx-orin-32gb"):
        resolve_board("zzz")


@pytest.mark.parametrize("name", ["", "../jetson-tx2", "jetson-tx2.yaml"])
def test_a_name_is_never_a_path(name: str) -> None:
    with pytest.raises(InvalidInputError):
        load_profile(name)


def test_facts_of_the_tx2() -> None:
    tx2 = load_profile("tx2")
    gpu = tx2.table("gpu_freq_mhz")
    assert gpu.freqs_mhz is not None
    assert len(gpu.freqs_mhz) == 13
    assert gpu.freqs_mhz[-1] == 1300.5
    assert [len(table.freqs_mhz or ()) for table in tx2.mem_tables] == [11]
    assert [len(table.freqs_mhz or ()) for table in tx2.cpu_tables] == [12]
    assert tx2.total_rail == "VDD_IN"
    maxq = tx2.nvpmodels[0].modes[1]
    assert (maxq.gpu_cap_mhz, maxq.mem_cap_mhz) == (850.0, 1331.2)
    assert tx2.nvpmodels[0].modes[0].gpu_cap_mhz == float("inf")


def test_a_table_is_chosen_by_its_variant() -> None:
    nano = load_profile("orin-nano-8gb")
    stock = nano.table("gpu_freq_mhz", "stock").freqs_mhz
    boosted = nano.table("gpu_freq_mhz", "super (JetPack 6.2)").freqs_mhz
    assert stock is not None
    assert boosted is not None
    assert (stock[-1], boosted[-1]) == (624.75, 1020.0)


def test_without_a_variant_the_first_complete_table_is_taken() -> None:
    assert load_profile("orin-nano-8gb").table("mem_freq_mhz").freqs_mhz == (204.0, 665.6, 2133.0, 3199.0)


def test_levels_that_are_not_sourced_are_never_guessed() -> None:
    with pytest.raises(InvalidInputError, match="not sourced"):
        load_profile("thor").table("gpu_freq_mhz")
    assert load_profile("thor").gpu_tables[0].known_points_mhz == (315.0, 1575.0)


def test_unknown_variants_and_knobs_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"no variant 'stok'.*did you mean stock"):
        load_profile("orin-nano").table("gpu_freq_mhz", "stok")
    with pytest.raises(InvalidInputError, match=r"no table for knob 'gpu'.*gpu_freq_mhz"):
        load_profile("orin-nano").table("gpu")


def test_every_profile_names_its_sources() -> None:
    for board in board_names():
        assert load_profile(board).sources


def test_the_digest_tells_two_bsps_of_one_board_apart() -> None:
    agx = load_profile("agx-orin")
    early, late = (
        agx.table("gpu_freq_mhz", v).freqs_mhz for v in ("JetPack 5.0 (early)", "JetPack 5.1 and 6")
    )
    assert early is not None
    assert late is not None
    assert tables_digest({"gpu_freq_mhz": early}) != tables_digest({"gpu_freq_mhz": late})


def test_the_digest_depends_on_levels_alone() -> None:
    one = tables_digest({"gpu_freq_mhz": (306.0, 408.0), "mem_freq_mhz": (204.0, "unlocked")})
    same = tables_digest({"mem_freq_mhz": [204, "unlocked"], "gpu_freq_mhz": [306, 408]})
    assert one == same
    assert one != tables_digest({"gpu_freq_mhz": (306.0, 408.0), "mem_freq_mhz": (204.0,)})
    assert len(one) == 64
