"""`emulated:BOARD` as a device: controls, meter and workload of one emulated board."""

from __future__ import annotations

from polythrottle.clock import Clock
from polythrottle.configuration import SearchSpace
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import Provenance
from polythrottle.study import DeviceIdentity
from polythrottle_agent.controls.emulated import EMULATED_KNOBS, EmulatedControl
from polythrottle_agent.emulation.behaviour import Behaviour
from polythrottle_agent.emulation.board import EmulatedBoard
from polythrottle_agent.emulation.calibration import DEFAULT_WORKLOAD
from polythrottle_agent.emulation.preprocessing import CpuStage, has_stage, without_stage
from polythrottle_agent.emulation.surroundings import Environment, Surroundings
from polythrottle_agent.load.options import Load
from polythrottle_agent.meters.emulated import EmulatedMeter
from polythrottle_agent.ports import Device, Workload
from polythrottle_agent.workloads.emulated import EmulatedWorkload
from polythrottle_agent.workloads.emulated_queue import QueuedEmulatedWorkload
from polythrottle_agent.workloads.emulated_stages import StagedEmulatedWorkload


def open_emulated(
    board: str,
    workload: str | None,
    clock: Clock,
    seed: int,
    environment: Environment | None = None,
    load: Load | None = None,
) -> Device:
    """A device whose every number is emulated, in the state it is found in.

    Args:
        board: one of `BOARDS`.
        workload: one of `WORKLOADS`, with `+preprocessing` for images that are prepared on the CPU; None for
            `DEFAULT_WORKLOAD`.
        clock: with a `VirtualClock` an hour of trials takes no time.
        seed: of the noise; the same calls on the same seed give the same numbers.
        environment: heat, throttling and drift around the board; None leaves them out, as calibrated.
        load: queries arrive at a rate, wait and are batched; without arrivals, or None: batches back to back.

    Raises:
        InvalidInputError: an unknown board or workload; close names are given.
    """
    workload = DEFAULT_WORKLOAD if workload is None else workload
    behaviour = Behaviour.of(board, without_stage(workload))
    emulated = EmulatedBoard(behaviour, clock, seed)
    if environment is not None:
        Surroundings.attach(emulated, environment)
    tables = behaviour.board
    label = f"{tables.label}, emulated"
    if tables.extrapolated is not None:
        label += f" (extrapolated from {tables.extrapolated})"
    return Device(
        identity=DeviceIdentity(
            id=f"emulated:{tables.name}",
            board=tables.name,
            label=label,
            provenance=Provenance.EMULATED,
            tables_digest=SearchSpace(tuple(tables.knobs.values())).digest,
        ),
        controls={knob: EmulatedControl(emulated, knob) for knob in EMULATED_KNOBS},
        meter=EmulatedMeter(emulated),
        workload=_workload(emulated, workload, load),
        clock=clock,
        stock_note=(
            f"emulated as found: GPU between {tables.gpu_mhz[0]:g} and {tables.gpu_mhz[-1]:g} MHz, where the "
            f"governor runs about {emulated.gpu_under_load_mhz:.0f} MHz under this load; memory unlocked; "
            f"CPU under its governor; batch {emulated.nodes.batch}"
        ),
    )


def _workload(board: EmulatedBoard, name: str, load: Load | None) -> Workload:
    if has_stage(name):
        if load is not None and load.arrivals is not None:
            raise InvalidInputError(
                f"The emulated {name} is served back to back; leave --rate out, or take "
                f"{without_stage(name)}."
            )
        return StagedEmulatedWorkload(board, CpuStage.of(board.behaviour))
    if load is None or load.arrivals is None:
        return EmulatedWorkload(board)
    return QueuedEmulatedWorkload(board, load)
