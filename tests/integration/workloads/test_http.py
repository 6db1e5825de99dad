"""`http:` against real services that do all that services do."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from polythrottle.clock import RealClock
from polythrottle.errors import InvalidInputError
from polythrottle.measurement import LatencyReading, Unavailable
from polythrottle.studies import MeasurementPlan
from polythrottle_agent.load.arrivals import Arrivals
from polythrottle_agent.load.batching import BatchSize
from polythrottle_agent.load.http_connection import Endpoint, Response
from polythrottle_agent.load.options import Load
from polythrottle_agent.ports import ControlError, Served, Workload
from polythrottle_agent.workloads.driven import DrivenWorkload
from polythrottle_agent.workloads.http import HttpSender, Success, Template
from polythrottle_agent.workloads.opening import Opened, WorkloadOptions, open_workload

if TYPE_CHECKING:
    from tests.integration.workloads.conftest import Start

SERVICE = Path(__file__).parents[2] / "fakes/http_service.py"

PLAN = MeasurementPlan(min_queries=100, min_window_s=1.0, max_window_s=8.0)
GUARDED = MeasurementPlan(min_queries=100, min_window_s=1.0, max_window_s=8.0, abort_latency_s=0.1)


def opened(url: str, rate_per_s: float = 100.0, **more: object) -> Opened:
    options = WorkloadOptions(rate_per_s=rate_per_s, **more)  # type: ignore[arg-type]
    return open_workload(f"http:{url}", options, RealClock())


def later(address: str, what: str, *, good: int = 1, **more: object) -> Workload:
    """A workload that answers well when it is opened, and then no more."""
    return opened(f"{address}/then/{good}/{what}", **more).workload


def reading(served: Served) -> LatencyReading:
    assert isinstance(served.latency, LatencyReading), served
    return served.latency


@pytest.mark.parametrize("path", ["/ok", "/chunked", "/until-closed", "/once", "/early", "/status/204"])
def test_latency_is_that_of_the_service(start_service: Start, path: str) -> None:
    workload = opened(f"{start_service(5.0)}{path}").workload
    workload.warm_up(20)
    served = workload.serve(PLAN, "p50")
    assert served.lost.total == 0, served
    assert served.n_queries >= 100
    assert 0.005 <= reading(served).latency_s < 0.02
    assert served.aborted_reason is None


def test_what_is_sent_is_what_was_asked_for(start_service: Start) -> None:
    found = opened(
        f"{start_service(0.0)}/echo?b={{batch_size}}",
        body='{"inputs": [{each}[1, 2]{/each}]}',
        headers=("X-Key: secret",),
        success=r'regex:"POST /echo\?b=(1|4) HTTP/1\.1".*"x-key": "secret".*\[\[1, 2\](,\[1, 2\]){0,3}\]',
        batch_sizes=(1, 4),
    )
    found.controls["batch_size"].apply(4.0)
    served = found.workload.serve(PLAN, "p50")
    assert served.lost.total == 0, served
    assert served.n_queries % 4 == 0


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/status/503", "status 503"),
        ("/close", "closed before an answer"),
        ("/half", "closed in the middle"),
        ("/garbage", "not HTTP"),
        ("/hang", "no answer within 300 ms"),
    ],
)
def test_a_service_that_does_not_work_is_refused_before_anything_is_measured(
    start_service: Start, path: str, words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words) as error:
        opened(f"{start_service(0.0)}{path}", time_out_s=0.3)
    assert "\n" not in str(error.value)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("address", "words"),
    [("127.0.0.1", "refused"), ("localhost", "refused"), ("nowhere.invalid", "cannot be connected to")],
)
def test_a_service_that_is_not_there_is_said_so(address: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as error:
        opened(f"{address}:{free_port()}/")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("status/503", "status 503"),
        ("close", "closed before an answer"),
        ("half", "closed in the middle"),
        ("garbage", "not HTTP"),
    ],
)
def test_a_service_that_fails_every_query_has_no_latency(start_service: Start, path: str, words: str) -> None:
    workload = later(start_service(0.0), path)
    served = workload.serve(GUARDED, "p99")
    assert isinstance(served.latency, Unavailable)
    assert words in served.latency.reason
    assert served.n_queries == 0
    assert served.duration_s < 4.0
    with pytest.raises(ControlError, match=words):
        workload.warm_up(20)


def test_a_service_that_fails_now_and_then_cannot_look_good(start_service: Start) -> None:
    served = later(start_service(1.0), "refuse-every/10").serve(GUARDED, "p99")
    assert served.aborted_reason is not None
    assert served.lost.errors > 0
    assert served.n_queries > 0
    assert any("closed before an answer" in note for note in served.notes)


def test_a_service_that_hangs_in_the_middle_is_given_up_soon(start_service: Start) -> None:
    served = later(start_service(1.0), "hang", good=100).serve(GUARDED, "p99")
    assert served.aborted_reason is not None
    assert served.duration_s < 5.0
    assert not reading(served).bounded
    assert served.lost.timeouts > 0


def test_a_service_that_never_answers_times_out_without_a_slo_too(start_service: Start) -> None:
    served = later(start_service(0.0), "hang", time_out_s=0.5).serve(PLAN, "p99")
    assert isinstance(served.latency, Unavailable)
    assert "no answer within 500 ms" in served.latency.reason


def test_a_service_that_dies_in_a_window_ends_it_in_words() -> None:
    process = subprocess.Popen([sys.executable, SERVICE, "1"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    try:
        workload = opened(f"127.0.0.1:{port}/ok").workload
        timer = threading.Timer(0.5, process.kill)
        timer.start()
        served = workload.serve(GUARDED, "p99")
        timer.join()
        assert served.aborted_reason is not None
        assert served.lost.errors > 0
        assert any("refused" in note or "closed" in note for note in served.notes)
        again = workload.serve(GUARDED, "p99")
        assert isinstance(again.latency, Unavailable)
        assert "refused" in again.latency.reason
        with pytest.raises(ControlError, match="refused"):
            workload.warm_up(5)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_rate_beyond_the_service_shows_in_the_latency(start_service: Start) -> None:
    """20 ms a query are 50 a second: at 100 a second the queue grows by half a second each second."""
    workload = opened(f"{start_service(20.0)}/ok").workload
    served = workload.serve(MeasurementPlan(min_queries=1, min_window_s=3.0, max_window_s=3.0), "p99")
    assert 1.0 < reading(served).latency_s < 4.5
    served = workload.serve(GUARDED, "p99")
    assert served.aborted_reason is not None
    assert served.duration_s < 2.0


def test_a_closed_loop_finds_the_peak(start_service: Start) -> None:
    found = open_workload(
        f"http:{start_service(10.0)}/ok", WorkloadOptions(closed_loop=True, connections=2), RealClock()
    )
    served = found.workload.serve(PLAN, "p50")
    assert served.n_queries / served.duration_s == pytest.approx(100.0, rel=0.15)
    assert reading(served).latency_s == pytest.approx(0.02, rel=0.2)


def test_interrupting_a_window_closes_every_connection(start_service: Start) -> None:
    address = start_service(1.0)
    workload = opened(f"{address}/ok").workload
    port = int(address.rpartition(":")[2])
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        workload.serve(MeasurementPlan(min_window_s=10.0, max_window_s=10.0), "p50")
    assert not list(connections_to(port))
    assert workload.serve(PLAN, "p50").n_queries >= 100


def connections_to(port: int) -> Iterator[str]:
    """Established connections of this process to a port of this machine."""
    mine = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            mine.add(os.readlink(entry))
        except OSError:
            continue  # the descriptor of this very listing
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if int(fields[2].rpartition(":")[2], 16) == port and f"socket:[{fields[9]}]" in mine:
            yield line


def test_a_generator_that_is_held_up_makes_the_window_void(start_service: Start) -> None:
    """Something else in this process keeps the interpreter: what was measured then is not the service."""

    def wrong(_: Response) -> None:
        until_s = time.monotonic() + 0.004
        while time.monotonic() < until_s:
            pass

    template = Template(Endpoint.parse(f"http://{start_service(1.0)}/ok"), "GET", (), None)
    sender = HttpSender(template, Success("slow to check", False, wrong), BatchSize())
    load = Load(Arrivals.parse("poisson", 100.0))
    served = DrivenWorkload("held up", "1", sender, load, RealClock()).serve(PLAN, "p50")
    assert served.void_reason is not None
    assert "could not keep up" in served.void_reason


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_tls_is_checked_against_the_certificates_that_are_trusted(
    start_service: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*make.split(), "-out", certificate, "-keyout", key], check=True, capture_output=True)
    url = f"https://{start_service(1.0, certificate, key)}/ok"
    with pytest.raises(InvalidInputError, match=r"TLS failed \(self.signed certificate\)"):
        opened(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    served = opened(url, rate_per_s=50.0).workload.serve(
        MeasurementPlan(min_queries=20, min_window_s=0.5), "p50"
    )
    assert served.lost.total == 0
    assert reading(served).latency_s >= 0.001


def test_a_host_that_swallows_everything_is_given_up() -> None:
    """A queue of connections that nobody takes from, and that is full."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        time.sleep(0.1)
        began_s = time.monotonic()
        with pytest.raises(InvalidInputError, match="cannot be connected to within 500 ms"):
            opened(f"127.0.0.1:{listener.getsockname()[1]}/", time_out_s=0.5)
        assert time.monotonic() - began_s < 2.0
