"""The CPU stage's physics beside Table 7 of the paper, and what follows from it."""

from __future__ import annotations

import pytest

from polythrottle.errors import InvalidInputError
from polythrottle_agent.emulation.behaviour import Behaviour
from polythrottle_agent.emulation.boards import SYSFS_BOARDS
from polythrottle_agent.emulation.paper import MOST_BY_CPU, TABLE_7
from polythrottle_agent.emulation.preprocessing import CpuStage, has_stage, pipelined, without_stage

MODELS = ("efficientnet-b0", "efficientnet-b4", "efficientnet-b7")


@pytest.mark.parametrize("published", TABLE_7, ids=lambda row: row.board)
@pytest.mark.parametrize("model", MODELS)
def test_the_best_cpu_clock_and_its_saving_are_those_of_table_7(published, model: str) -> None:
    stage = CpuStage.of(Behaviour.of(published.board, model))
    levels = stage.behaviour.board.cpu_mhz
    nearest = min(range(len(levels)), key=lambda i: abs(levels[i] - published.cpu_mhz))
    assert abs(levels.index(stage.best_mhz()) - nearest) <= 1
    saving = 1.0 - stage.alone_j(stage.best_mhz()) / stage.alone_j(levels[-1])
    assert saving == pytest.approx(published.saving, abs=0.05)


@pytest.mark.parametrize("board", [row.board for row in TABLE_7])
def test_it_saves_no_more_of_a_whole_query_than_the_paper_says(board: str) -> None:
    shares = []
    for model in MODELS:
        stage = CpuStage.of(Behaviour.of(board, model))
        tables = stage.behaviour.board
        top = tables.cpu_mhz[-1]
        point = stage.behaviour.point(
            cpu_mhz=top, gpu_mhz=tables.gpu_mhz[-1], mem_mhz=tables.mem_mhz[-1], batch=1
        )
        whole_j = stage.behaviour.energy_per_query_j(point) + stage.alone_j(top)
        saved_j = stage.alone_j(top) - stage.alone_j(stage.best_mhz())
        shares.append(saved_j / whole_j)
    assert max(shares) <= MOST_BY_CPU
    # Images cost every model the same, so a larger model saves a smaller share.
    assert shares == sorted(shares, reverse=True)


def test_an_image_takes_every_model_the_same_time() -> None:
    times = {CpuStage.of(Behaviour.of("tx2", model)).image_s(960.0) for model in MODELS}
    assert len(times) == 1


@pytest.mark.parametrize("board", SYSFS_BOARDS)
def test_a_lower_clock_takes_longer_and_draws_less(board: str) -> None:
    stage = CpuStage.of(Behaviour.of(board, "efficientnet-b0"))
    levels = stage.behaviour.board.cpu_mhz
    times = [stage.image_s(mhz) for mhz in levels]
    assert times == sorted(times, reverse=True)
    powers = [stage.added_power_w(mhz) for mhz in levels]
    assert powers == sorted(powers)


def test_larger_images_take_longer_in_proportion_and_draw_the_same() -> None:
    behaviour = Behaviour.of("agx-orin", "efficientnet-b0")
    one, four = CpuStage.of(behaviour), CpuStage.of(behaviour, 4.0)
    assert four.image_s(960.0) == pytest.approx(4 * one.image_s(960.0))
    assert four.added_power_w(960.0) == one.added_power_w(960.0)


def test_a_board_with_a_slower_cpu_takes_longer_at_its_highest_clock() -> None:
    orin, nano = (CpuStage.of(Behaviour.of(b, "efficientnet-b0")) for b in ("agx-orin", "orin-nano-8gb"))
    assert nano.image_s(1728.0) > orin.image_s(2201.6)
    assert nano.image_s(1728.0) < 2201.6 / 1728.0 * orin.image_s(2201.6)


def test_bert_has_no_such_stage() -> None:
    with pytest.raises(InvalidInputError, match="no CPU stage"):
        CpuStage.of(Behaviour.of("tx2", "bert-base"))


def test_names_tell_whether_the_stage_is_wanted() -> None:
    assert has_stage("efficientnet-b4+preprocessing")
    assert not has_stage("efficientnet-b4")
    assert (
        without_stage("efficientnet-b4+preprocessing")
        == without_stage("efficientnet-b4")
        == "efficientnet-b4"
    )


# Both stages together


def at(stage: CpuStage, batch: int = 1, cpu_mhz: float = 2201.6):
    tables = stage.behaviour.board
    return stage.behaviour.point(
        cpu_mhz=cpu_mhz, gpu_mhz=tables.gpu_mhz[-1], mem_mhz=tables.mem_mhz[-1], batch=batch
    )


def test_a_query_goes_through_both_stages_and_the_slower_one_sets_the_pace() -> None:
    small = CpuStage.of(Behaviour.of("agx-orin", "efficientnet-b0"))
    huge = CpuStage.of(small.behaviour, 64.0)
    for stage in (small, huge):
        both = pipelined(stage, 2201.6, at(stage))
        assert both.stage_s == stage.image_s(2201.6)
        assert both.latency_s == both.stage_s + both.model_s
    assert pipelined(small, 2201.6, at(small)).period_s == pipelined(small, 2201.6, at(small)).model_s
    assert pipelined(huge, 2201.6, at(huge)).period_s == pipelined(huge, 2201.6, at(huge)).stage_s


def test_energy_is_that_of_the_model_and_the_stage_and_of_the_wait_for_it() -> None:
    small = CpuStage.of(Behaviour.of("agx-orin", "efficientnet-b0"))
    point = at(small)
    model_s, model_w = small.behaviour.latency_and_power(point)
    stage_j = small.image_s(2201.6) * small.added_power_w(2201.6)
    assert pipelined(small, 2201.6, point).energy_j == pytest.approx(model_s * model_w + stage_j)
    huge = CpuStage.of(small.behaviour, 64.0)
    waits_s = huge.image_s(2201.6) - model_s
    assert pipelined(huge, 2201.6, point).energy_j == pytest.approx(
        model_s * model_w + 64 * stage_j + waits_s * small.behaviour.idle_power_w(point)
    )


def test_the_images_of_a_batch_are_prepared_one_after_the_other() -> None:
    stage = CpuStage.of(Behaviour.of("agx-orin", "efficientnet-b0"))
    assert pipelined(stage, 2201.6, at(stage, 8)).stage_s == pytest.approx(8 * stage.image_s(2201.6))
