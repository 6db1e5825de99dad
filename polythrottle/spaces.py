"""From what a device offers and what a user asked for to the search space and its anchor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from polythrottle.configuration import (
    SHORT_NAMES,
    AtMost,
    Configuration,
    Knob,
    Level,
    SearchSpace,
    format_level,
)
from polythrottle.errors import InvalidInputError, did_you_mean

BATCH = "batch_size"
GPU_MIN = "gpu_min_freq_mhz"
GPU_MAX = "gpu_freq_mhz"

DEFAULT_KNOBS = (GPU_MAX, "mem_freq_mhz", "cpu_freq_mhz", BATCH, "intra_op_threads")
"""Searched unless the user chooses: the knobs that matter most, without blowing up the grid."""

LEVEL_SEPARATOR = "/"


@dataclass(frozen=True)
class SpaceChoice:
    """The space, its anchor (max clocks, default batch), what is held fixed, and what to tell the user.

    `fixed` is applied with every configuration. Knobs in neither stay as the device was found.
    """

    space: SearchSpace
    anchor: Configuration
    fixed: tuple[tuple[str, Level], ...]
    notes: tuple[str, ...]


def middle_level(levels: Sequence[Level]) -> Level:
    """The middle one by rank, the upper of two."""
    return levels[len(levels) // 2]


def build_space(
    available: Mapping[str, Knob],
    chosen: Sequence[str] | None,
    fixed: Mapping[str, str],
    batch_sizes: Sequence[int] | None,
    recorded: tuple[Configuration, ...] | None,
    default_batch: int | None = None,
) -> SpaceChoice:
    """Build the search space.

    Args:
        available: every knob the device and workload have.
        chosen: names of the knobs to search, each optionally with the levels to try, as in
            `mem_freq_mhz=204/2133/3199`. None: GPU max, memory, CPU, batch and threads where there are any;
            of a recorded table every knob with more than one level.
        fixed: knob → level, as the user wrote it.
        batch_sizes: the batch sizes to try; None for all.
        recorded: the only configurations that exist, over all of `available`; None on a device that can
            take any.
        default_batch: the workload's batch size today; None for the middle one.

    Raises:
        InvalidInputError: an unknown knob or level, a knob both searched and fixed, or nothing to search.
    """
    notes: list[str] = []
    wanted = None if chosen is None else _parse_chosen(chosen, available)
    held = {name: _known(name, available).match(text) for name, text in fixed.items()}
    if wanted is not None:
        for name in wanted:
            if name in held:
                raise InvalidInputError(f"{name} is both searched and fixed; drop it from one of the two.")
    knobs = _searched(available, wanted, held, recorded is not None)
    if batch_sizes is not None:
        knobs = _with_batch_sizes(knobs, available, held, batch_sizes)
    knobs = _within_fixed_gpu_range(knobs, held, notes)
    if not knobs:
        raise InvalidInputError(
            "Nothing is left to search: every knob is fixed or has a single level; fix fewer knobs."
        )
    if recorded is not None:
        held = _hold_the_rest(available, knobs, held, default_batch, notes)
    space = _space(knobs, held, recorded)
    space, note = space.thinned()
    if note is not None:
        notes.append(note)
    anchor = _anchor(space, default_batch, notes)
    return SpaceChoice(space, anchor, tuple(held.items()), tuple(notes))


def _known(name: str, available: Mapping[str, Knob]) -> Knob:
    if name in available:
        return available[name]
    by_short_name = {SHORT_NAMES[knob].lower(): knob for knob in available if knob in SHORT_NAMES}
    if name.strip().lower() in by_short_name:
        hint = f"did you mean {by_short_name[name.strip().lower()]}?"
    else:
        hint = did_you_mean(name, available)
    raise InvalidInputError(f"Unknown knob {name!r}; {hint}")


def _parse_chosen(chosen: Sequence[str], available: Mapping[str, Knob]) -> dict[str, Knob]:
    wanted: dict[str, Knob] = {}
    for text in chosen:
        name, has_levels, levels = text.strip().partition("=")
        knob = _known(name, available)
        if name in wanted:
            raise InvalidInputError(f"Knob {name} is named twice; name it once.")
        if has_levels:
            named = levels.split(LEVEL_SEPARATOR)
            if not all(level.strip() for level in named):
                levels_text = [format_level(level) for level in knob.levels]
                raise InvalidInputError(
                    f"Knob {name} has an empty level in {text.strip()!r}; write for example "
                    f"{name}={LEVEL_SEPARATOR.join(levels_text[:2])}, or {name} alone for all of its levels: "
                    f"{', '.join(levels_text)}."
                )
            knob = Knob.of(name, [knob.match(level) for level in named])
        wanted[name] = knob
    if not wanted:
        raise InvalidInputError(f"No knob is named; choose from {', '.join(available)}.")
    return wanted


def _searched(
    available: Mapping[str, Knob],
    wanted: Mapping[str, Knob] | None,
    held: Mapping[str, Level],
    is_recorded: bool,
) -> dict[str, Knob]:
    """The knobs to search, in the device's order."""
    if wanted is not None:
        return {name: wanted[name] for name in available if name in wanted}
    several = {name: knob for name, knob in available.items() if len(knob.levels) > 1 and name not in held}
    if is_recorded:
        return several
    usual = {name: knob for name, knob in several.items() if name in DEFAULT_KNOBS}
    return usual or several


def _with_batch_sizes(
    knobs: dict[str, Knob],
    available: Mapping[str, Knob],
    held: Mapping[str, Level],
    batch_sizes: Sequence[int],
) -> dict[str, Knob]:
    if BATCH not in available:
        raise InvalidInputError("The workload has no batch size to set; leave --batch-sizes out.")
    if BATCH in held:
        raise InvalidInputError(f"{BATCH} is both searched and fixed; drop --batch-sizes or the --fix.")
    if not batch_sizes:
        raise InvalidInputError("No batch size is named; write for example --batch-sizes 1,4,16.")
    levels = [available[BATCH].match(str(size)) for size in batch_sizes]
    with_batch = {**knobs, BATCH: Knob.of(BATCH, levels)}
    return {name: with_batch[name] for name in available if name in with_batch}


def _within_fixed_gpu_range(
    knobs: dict[str, Knob], held: Mapping[str, Level], notes: list[str]
) -> dict[str, Knob]:
    """Where one end of the GPU range is fixed, keep the other end's levels on its right side."""
    low, high = held.get(GPU_MIN), held.get(GPU_MAX)
    if isinstance(low, float) and isinstance(high, float) and low > high:
        raise InvalidInputError(
            f"The GPU minimum is fixed at {low:g} MHz, above the maximum of {high:g} MHz; fix it lower."
        )
    if isinstance(low, float) and GPU_MAX in knobs:
        knobs = _restricted(knobs, GPU_MAX, [x for x in knobs[GPU_MAX].levels if _at_least(x, low)], notes)
    if isinstance(high, float) and GPU_MIN in knobs:
        knobs = _restricted(
            knobs, GPU_MIN, [x for x in knobs[GPU_MIN].levels if isinstance(x, str) or x <= high], notes
        )
    return knobs


def _at_least(level: Level, low: float) -> bool:
    return isinstance(level, str) or level >= low


def _restricted(
    knobs: dict[str, Knob], name: str, levels: Sequence[Level], notes: list[str]
) -> dict[str, Knob]:
    dropped = len(knobs[name].levels) - len(levels)
    if not dropped:
        return knobs
    if not levels:
        raise InvalidInputError(f"No level of {name} is left beside the fixed end of the GPU range.")
    notes.append(f"{dropped} levels of {name} lie beyond the fixed end of the GPU range and are left out.")
    return {**knobs, name: Knob.of(name, levels)}


def _hold_the_rest(
    available: Mapping[str, Knob],
    knobs: Mapping[str, Knob],
    held: Mapping[str, Level],
    default_batch: int | None,
    notes: list[str],
) -> dict[str, Level]:
    """A recorded table has no "as found": what is not searched is held at its anchor level."""
    rest = dict(held)
    for name, knob in available.items():
        if name in knobs or name in held:
            continue
        rest[name] = _anchor_level(knob, default_batch)
        if len(knob.levels) > 1:
            notes.append(f"{Configuration.of({name: rest[name]})} is held: it is not searched.")
    return rest


def _space(
    knobs: Mapping[str, Knob], held: Mapping[str, Level], recorded: tuple[Configuration, ...] | None
) -> SearchSpace:
    rules = (AtMost(GPU_MIN, GPU_MAX),) if GPU_MIN in knobs and GPU_MAX in knobs else ()
    whole = SearchSpace(tuple(knobs.values()), rules)
    if recorded is None:
        return whole
    cells = frozenset(_cells(whole, held, recorded))
    if not cells:
        text = ", ".join(f"{name}={format_level(level)}" for name, level in held.items())
        raise InvalidInputError(f"The table has no row with {text or 'these levels'}; choose other levels.")
    if len(cells) == whole.size_before_rules:
        return whole
    used = [sorted({cell[axis] for cell in cells}) for axis in range(len(whole.knobs))]
    trimmed = tuple(
        Knob(knob.name, tuple(knob.levels[i] for i in kept))
        for knob, kept in zip(whole.knobs, used, strict=True)
    )
    rank = [{index: new for new, index in enumerate(kept)} for kept in used]
    moved = frozenset(tuple(rank[axis][i] for axis, i in enumerate(cell)) for cell in cells)
    return SearchSpace(trimmed, rules, moved)


def _cells(
    space: SearchSpace, held: Mapping[str, Level], recorded: Iterable[Configuration]
) -> Iterable[tuple[int, ...]]:
    positions = [{level: i for i, level in enumerate(knob.levels)} for knob in space.knobs]
    for row in recorded:
        if any(row.get(name, level) != level for name, level in held.items()):
            continue
        settings = dict(row.settings)
        index = [position.get(settings[name]) for name, position in zip(space.names, positions, strict=True)]
        if None not in index:
            yield tuple(i for i in index if i is not None)


def _anchor_level(knob: Knob, default_batch: int | None) -> Level:
    """Highest number (never a governor's choice), or the default batch."""
    if knob.name != BATCH:
        return knob.highest_number
    if default_batch is None:
        return middle_level(knob.levels)
    numbers = [level for level in knob.levels if not isinstance(level, str)]
    return min(numbers, key=lambda level: (abs(level - default_batch), level))


def _anchor(space: SearchSpace, default_batch: int | None, notes: list[str]) -> Configuration:
    wanted = Configuration.of({knob.name: _anchor_level(knob, default_batch) for knob in space.knobs})
    if default_batch is not None and BATCH in wanted and wanted[BATCH] != default_batch:
        notes.append(
            f"Batch size {default_batch} is not among those searched: "
            f"the anchor has {format_level(wanted[BATCH])}."
        )
    if wanted in space:
        return wanted
    target = space.index_of(wanted)
    spans = [max(len(knob.levels) - 1, 1) for knob in space.knobs]
    nearest = min(
        space.indices(),
        key=lambda index: (
            sum(abs(i - t) / span for i, t, span in zip(index, target, spans, strict=True)),
            [-i for i in index],
        ),
    )
    notes.append(f"{wanted} is not in the table; the anchor is the nearest that is: {space.at(nearest)}.")
    return space.at(nearest)
