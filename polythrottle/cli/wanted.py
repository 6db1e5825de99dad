"""What a user wants in force: the answer of a study, or a file, as levels of the device here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console

from polythrottle.cli.studies import find_study
from polythrottle.configuration import Configuration, Knob, Level, format_level
from polythrottle.errors import InvalidInputError, did_you_mean
from polythrottle.measurement import Provenance
from polythrottle.objective import LatencySlo
from polythrottle.reporting.console import print_text
from polythrottle.study import DeviceIdentity

if TYPE_CHECKING:
    from polythrottle_agent.ports import Control

BATCH = "batch_size"

_FORM = "write for example `gpu_freq_mhz: 612`"


@dataclass(frozen=True)
class Wanted:
    """The settings, and what is known of where they come from: `tuned` is the device they were found on."""

    settings: Mapping[str, Level]
    device: str = "auto"
    workload: str | None = None
    slo: LatencySlo | None = None
    tuned: DeviceIdentity | None = None


def wanted(what: str, state_dir: Path | None) -> Wanted:
    """What a study or a file says.

    Raises:
        InvalidInputError: there is no such study or file, or it says nothing that can be applied.
    """
    path = Path(what)
    if path.is_file():
        return _from_file(path)
    if path.suffix in (".json", ".yaml", ".yml"):
        raise InvalidInputError(f"There is no file {what}.")
    study = find_study(what, state_dir)
    result = study.result
    if result is None or result.chosen is None:
        raise InvalidInputError(
            f"Study {study.id} has chosen no configuration; see polythrottle studies show."
        )
    settings = {**dict(study.spec.fixed), **dict(result.chosen.configuration)}
    if not settings:
        raise InvalidInputError(
            f"Study {study.id} says to keep the device as it is: there is nothing to apply."
        )
    tuned = study.spec.device
    device = tuned.id if tuned.id.startswith("emulated:") else "auto"
    return Wanted(settings, device, study.spec.workload, result.slo, tuned)


def _from_file(path: Path) -> Wanted:
    """
    Raises:
        InvalidInputError: not a mapping from knobs to levels.
    """
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidInputError(f"{path} cannot be read ({reason}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" at line {mark.line + 1}"
        raise InvalidInputError(f"{path} is neither YAML nor JSON{where}; {_FORM}.") from error
    tuned = None
    if isinstance(content, dict) and str(content.get("schema", "")).startswith("polythrottle-result/"):
        tuned = _tuned_on(path, content)
        content = (content.get("chosen") or {}).get("configuration")
    if not isinstance(content, dict) or not content:
        raise InvalidInputError(f"{path} must map knobs to levels: {_FORM}, or use what tune --json printed.")
    for knob, level in content.items():
        if isinstance(level, bool) or not isinstance(level, (int, float, str)):
            raise InvalidInputError(f"{path}: {knob} must be a number or a name such as unlocked.")
    settings = {str(k): v if isinstance(v, str) else float(v) for k, v in content.items()}
    return Wanted(settings, tuned=tuned)


def _tuned_on(path: Path, result: Mapping[str, Any]) -> DeviceIdentity | None:
    """The device of a result; None where somebody took that out."""
    device = result.get("device")
    if not isinstance(device, dict):
        return None
    try:
        provenance = Provenance(result.get("provenance", Provenance.MEASURED))
        return DeviceIdentity(
            str(device["id"]), str(device["board"]), str(device["label"]), provenance, tables_digest=""
        )
    except (KeyError, ValueError) as error:
        raise InvalidInputError(f"{path} does not say on which device it was found ({error}).") from error


def matched(
    settings: Mapping[str, Level], controls: Mapping[str, Control], console: Console | None
) -> Configuration:
    """The settings as levels of the device with these controls. `console` is told of what is left out.

    Raises:
        InvalidInputError: a knob or level that the device does not have.
    """
    found: dict[str, Level] = {}
    for name, level in settings.items():
        control = controls.get(name)
        if control is not None:
            found[name] = Knob(name, tuple(control.levels)).match(format_level(level))
        elif name == BATCH:
            if console is None:
                continue
            print_text(
                console,
                ("note      ", "dim"),
                f"batch size {format_level(level)} is set in what serves.",
                indent=10,
            )
        else:
            raise InvalidInputError(f"The device has no knob {name!r}; {did_you_mean(name, controls)}")
    if not found:
        raise InvalidInputError("Nothing in there can be set on this device.")
    return Configuration.of(found)
