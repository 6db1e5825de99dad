"""The canary: a share of the traffic first, all of it only then, and all of it again at the end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from polythrottle.errors import InvalidInputError
from polythrottle.measurement import LatencyReading, Provenance, Unavailable
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.canary import CanaryWorkload, CommandSplit, with_canary
from polythrottle_agent.ports import ControlError, Served

PLAN = MeasurementPlan(abort_latency_s=0.1, precision=0.03)


def splitter(tmp_path: Path, code: int = 0) -> tuple[CommandSplit, Path]:
    """A real program that writes the shares it was told into a file."""
    log, script = tmp_path / "shares", tmp_path / "split.py"
    script.write_text(
        f"import sys\nopen({str(log)!r}, 'a').write(sys.argv[1] + ' ')\n"
        f"print('no such backend', file=sys.stderr)\nsys.exit({code})\n"
    )
    return CommandSplit(f"{sys.executable} {script} {{share}}"), log


class Service:
    """A workload that is slow on configurations that a test says; it notes the share it served."""

    name, model_version, batch_sizes, default_batch_size = "service", "1", (), 1

    def __init__(self, log: Path, is_slow: bool = False) -> None:
        self.log, self.is_slow = log, is_slow
        self.served: list[tuple[str, MeasurementPlan]] = []

    def check_statistic(self, statistic: str) -> None: ...

    def warm_up(self, n_queries: int) -> None: ...

    def serve(self, plan, statistic, may_end=None) -> Served:  # noqa: ARG002
        self.served.append((self.log.read_text().split()[-1], plan))
        aborted = "too slow" if self.is_slow and plan.abort_latency_s is not None else None
        reading = LatencyReading(
            0.2 if self.is_slow else 0.05, 0.001, statistic, 1000, True, Provenance.MEASURED
        )
        return Served(1000, 10.0, reading, aborted)


def test_a_good_configuration_meets_a_share_and_then_all_traffic(tmp_path: Path) -> None:
    split, log = splitter(tmp_path)
    service = Service(log := log)
    with with_canary(service, split, 0.1) as workload:
        served = workload.serve(PLAN, "p99")
    assert served.aborted_reason is None
    assert [share for share, _ in service.served] == ["0.1", "1"]
    short, whole = (plan for _, plan in service.served)
    assert short.min_queries < whole.min_queries
    assert short.precision is None
    assert short.abort_latency_s == PLAN.abort_latency_s
    assert whole == PLAN
    assert log.read_text().split() == ["1", "0.1", "1", "0.1", "1"]


def test_a_bad_one_never_meets_all_traffic(tmp_path: Path) -> None:
    split, log = splitter(tmp_path)
    service = Service(log, is_slow=True)
    with with_canary(service, split, 0.1) as workload:
        served = workload.serve(PLAN, "p99")
        assert log.read_text().split()[-1] == "0.1"
    assert served.aborted_reason == "too slow"
    assert "canary share of 10%" in served.notes[-1]
    assert [share for share, _ in service.served] == ["0.1"]
    assert log.read_text().split()[-1] == "1"


def test_what_is_measured_in_full_has_no_canary(tmp_path: Path) -> None:
    split, log = splitter(tmp_path)
    service = Service(log, is_slow=True)
    with with_canary(service, split, 0.1) as workload:
        workload.serve(MeasurementPlan(), "p99")
    assert [share for share, _ in service.served] == ["1"]


def test_traffic_that_cannot_be_split_fails_the_trial(tmp_path: Path) -> None:
    split, log = splitter(tmp_path, code=3)
    served = CanaryWorkload(Service(log), split, 0.1).serve(PLAN, "p99")
    assert isinstance(served.latency, Unavailable)
    assert "ended with 3 (no such backend)" in served.latency.reason
    with pytest.raises(ControlError, match="could not be split"), with_canary(Service(log), split, 0.1):
        pass


def test_a_program_that_is_not_there_is_said_so() -> None:
    with pytest.raises(ControlError, match="No such file"):
        CommandSplit("/no/such/program {share}").set_share(0.5)


@pytest.mark.parametrize(("command", "word"), [("set-weight 10", "takes no share"), ("'", "cannot be read")])
def test_a_command_that_makes_no_sense(command: str, word: str) -> None:
    with pytest.raises(InvalidInputError, match=word):
        CommandSplit(command)


def test_it_is_the_workload_in_everything_else(tmp_path: Path) -> None:
    split, log = splitter(tmp_path)
    service = Service(log)
    service.stages = {"cpu": service}
    workload = CanaryWorkload(service, split, 0.2)
    assert (workload.name, workload.model_version) == ("service", "1")
    assert (workload.batch_sizes, workload.default_batch_size) == ((), 1)
    assert workload.stages == {"cpu": service}
    workload.check_statistic("p99")
    workload.warm_up(3)
