"""The HTTP service over real sockets and threads, on a board in this process."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from polythrottle.clock import RealClock
from polythrottle_agent.emulation.machine import Machine
from polythrottle_agent.emulation.serving.batcher import Batcher, Ticket
from polythrottle_agent.emulation.serving.metrics import Histogram
from polythrottle_agent.emulation.serving.running import RunningService, ServiceError, serving

CLOCK = RealClock()


@pytest.fixture
def machine() -> Machine:
    """About 14 ms a query."""
    return Machine("orin-nano-8gb", workload="efficientnet-b0", clock=CLOCK)


@pytest.fixture
def service(machine: Machine) -> Iterator[RunningService]:
    with serving(machine, port=0) as running:
        yield running


def _port(service: RunningService) -> int:
    return int(service.url.rpartition(":")[2])


@contextmanager
def connected(service: RunningService) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", _port(service), timeout=20.0)
    try:
        yield connection
    finally:
        connection.close()


def ask(service: RunningService, path: str = "/infer", method: str = "GET", **more: Any) -> tuple[int, Any]:
    with connected(service) as connection:
        connection.request(method, path, **more)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def metrics(service: RunningService) -> dict[str, float]:
    """Every sample by name, and by name and outcome."""
    with connected(service) as connection:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        assert response.getheader("Content-Type", "").startswith("text/plain; version=0.0.4")
        found = {}
        for line in response.read().decode().splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                bare, _, labels = name.partition("{")
                outcome = labels.partition('outcome="')[2].partition('"')[0]
                found[f"{bare} {outcome}".strip()] = float(value)
        return found


def eventually(holds: Any, timeout_s: float = 10.0) -> bool:
    ends_s = CLOCK.now() + timeout_s
    while not holds():
        if CLOCK.now() > ends_s:
            return False
        CLOCK.sleep(0.005)
    return True


def raw(service: RunningService, data: bytes) -> bytes:
    """All that the server answers to some bytes, until it closes or says nothing more for a while."""
    with socket.create_connection(("127.0.0.1", _port(service)), timeout=1.0) as sock:
        sock.sendall(data)
        answered = b""
        try:
            while piece := sock.recv(65536):
                answered += piece
        except TimeoutError:
            pass
        return answered


def test_a_query_takes_as_long_as_the_board_says(service: RunningService, machine: Machine) -> None:
    status, answer = ask(service)
    assert status == 200
    assert (answer["queries"], answer["batch"], answer["provenance"]) == (1, 1, "emulated")
    board = machine.board
    mean_ms = 1e3 * board.behaviour.latency_and_power(board.point_under_load())[0]
    assert answer["served_ms"] == pytest.approx(mean_ms, rel=0.3)


def test_slower_clocks_take_longer(service: RunningService, machine: Machine) -> None:
    fast = sum(ask(service)[1]["served_ms"] for _ in range(5))
    with machine.tree.lock:
        machine.tree.write(machine.node("gpu/max_freq"), b"306000000\n")
    slow = sum(ask(service)[1]["served_ms"] for _ in range(5))
    assert slow > 1.3 * fast


def test_what_waits_is_served_together_up_to_the_batch_size(
    service: RunningService, machine: Machine
) -> None:
    machine.set_batch(4)
    with ThreadPoolExecutor(24) as pool:
        answers = [answer for _, answer in pool.map(lambda _: ask(service), range(24))]
    batches = [answer["batch"] for answer in answers]
    assert max(batches) == 4
    assert sum(1.0 / batch for batch in batches) == pytest.approx(metrics(service)["inference_batches_total"])
    assert metrics(service)["inference_queries_total"] == 24


def test_queries_of_one_request_stay_together(service: RunningService, machine: Machine) -> None:
    machine.set_batch(4)
    body, json_type = json.dumps({"queries": 3}), {"Content-Type": "application/json"}
    status, answer = ask(service, method="POST", body=body, headers=json_type)
    assert (status, answer["queries"], answer["batch"]) == (200, 3, 3)
    assert ask(service, "/infer?queries=2")[1]["batch"] == 2
    assert metrics(service)["inference_queries_total"] == 5


@pytest.mark.parametrize("queries", ["0", "-1", "5", "2.0", "x", "", "1e3", "99999999999999999999", "٣"])
def test_a_number_of_queries_that_cannot_be_is_refused(
    service: RunningService, machine: Machine, queries: str
) -> None:
    machine.set_batch(4)
    path = "/infer?" + "&".join(f"queries={c}" for c in [queries]).encode("utf-8").decode("latin-1")
    data = f"GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode("latin-1")
    answer = raw(service, data)
    if queries == "":  # no number at all is one query
        assert answer.startswith(b"HTTP/1.1 200 ")
        return
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"1 to 4 queries" in answer
    assert metrics(service)["inference_requests_total bad_request"] == 1


@pytest.mark.parametrize("body", ["{", '{"queries": true}', '{"queries": "2"}', '{"queries": 1.5}'])
def test_a_body_that_says_no_number_is_refused(service: RunningService, body: str) -> None:
    status, answer = ask(service, method="POST", body=body, headers={"Content-Type": "application/json"})
    assert status == 400
    assert "queries" in answer["error"]


def test_any_other_body_is_one_query(service: RunningService) -> None:
    assert ask(service, method="POST", body=bytes(300_000))[1]["queries"] == 1
    json_type = {"Content-Type": "application/json"}
    assert ask(service, method="POST", body="[1, 2]", headers=json_type)[1]["queries"] == 1


def test_a_request_that_the_batch_size_has_left_behind_is_refused(
    service: RunningService, machine: Machine
) -> None:
    machine.set_batch(16)
    with ThreadPoolExecutor(4) as pool:
        large = [pool.submit(ask, service, "/infer?queries=16") for _ in range(4)]
        assert eventually(lambda: metrics(service)["inference_queue_queries"] >= 32)
        machine.set_batch(1)
        statuses = sorted(future.result()[0] for future in large)
    assert statuses[0] == 200
    assert statuses[-1] == 400


def test_a_full_queue_answers_503_at_once(machine: Machine) -> None:
    with serving(machine, port=0, queue_limit=3) as service, ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: ask(service), range(40)))
        refused = [answer for status, answer in answers if status == 503]
        assert refused
        assert all("queue is full" in answer["error"] for answer in refused)
        assert all(status in (200, 503) for status, _ in answers)
        found = metrics(service)
        assert found["inference_requests_total refused"] == len(refused)
        assert found["inference_requests_total ok"] == 40 - len(refused)
        assert found["inference_request_duration_seconds_count"] == 40 - len(refused)


def test_a_client_that_has_gone_is_not_served(service: RunningService) -> None:
    sockets = [socket.create_connection(("127.0.0.1", _port(service))) for _ in range(20)]
    for sock in sockets:
        sock.sendall(b"GET /infer HTTP/1.1\r\n\r\n")
    assert eventually(lambda: metrics(service)["inference_queue_queries"] >= 10)
    for sock in sockets:
        sock.close()
    assert eventually(lambda: metrics(service)["inference_in_service_queries"] == 0)
    found = metrics(service)
    assert found["inference_requests_total client_gone"] >= 10
    assert found["inference_queue_queries"] == 0
    assert found["inference_requests_total client_gone"] + found["inference_requests_total ok"] == 20
    assert found["inference_batches_total"] < 15
    assert ask(service)[0] == 200


def test_what_waits_at_the_end_is_still_answered() -> None:
    machine = Machine("orin-nano-8gb", workload="efficientnet-b7", clock=CLOCK)
    with ThreadPoolExecutor(8) as pool:
        with serving(machine, port=0) as service:
            futures = [pool.submit(ask, service) for _ in range(4)]
            assert eventually(lambda: metrics(service)["inference_queue_queries"] == 3)
        assert [future.result()[0] for future in futures] == [200] * 4
    with pytest.raises(ConnectionRefusedError):
        ask(service)
    assert machine.service_url is None


def test_two_services_need_two_ports(service: RunningService) -> None:
    other = Machine("tx2", clock=CLOCK)
    with (
        pytest.raises(ServiceError, match="in use; choose another --port"),
        serving(other, port=_port(service)),
    ):
        pytest.fail("two services at one port")


def test_health_and_what_is_not_there(service: RunningService) -> None:
    status, answer = ask(service, "/healthz")
    assert (status, answer["status"], answer["model"]) == (200, "ok", "efficientnet-b0")
    assert ask(service, "/v2/models")[0] == 404
    assert ask(service, "/infer", "DELETE")[0] == 405
    assert ask(service, "/metrics", "POST")[0] == 405


def test_metrics_rise_and_the_histogram_holds_every_good_request(service: RunningService) -> None:
    before = metrics(service)
    for _ in range(10):
        ask(service)
    found = metrics(service)
    assert found["inference_request_duration_seconds_count"] == 10
    assert found["inference_request_duration_seconds_bucket"] == 10  # the last one, +Inf
    assert 0.05 < found["inference_request_duration_seconds_sum"] < 5.0
    name = "emulated_board_energy_joules_total"
    assert found[name] > before[name]


def test_a_histogram_counts_by_upper_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert list(histogram.lines("x", 'a="b"')) == [
        'x_bucket{a="b",le="1"} 2',
        'x_bucket{a="b",le="2"} 3',
        'x_bucket{a="b",le="+Inf"} 4',
        'x_sum{a="b"} 12',
        'x_count{a="b"} 4',
    ]


# The server itself.


def test_requests_on_one_connection_are_answered_in_their_order(service: RunningService) -> None:
    two = b"GET /infer HTTP/1.1\r\n\r\nGET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n"
    answered = raw(service, two)
    assert answered.count(b"HTTP/1.1 200 OK") == 2
    assert answered.index(b"served_ms") < answered.index(b"status")


def test_a_request_may_come_in_pieces(service: RunningService) -> None:
    request = (
        b'POST /infer HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{"queries": 1}'
    )
    with socket.create_connection(("127.0.0.1", _port(service)), timeout=20.0) as sock:
        for start in range(0, len(request), 7):
            sock.sendall(request[start : start + 7])
            CLOCK.sleep(0.002)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_client_may_ask_before_it_sends_its_body(service: RunningService) -> None:
    with socket.create_connection(("127.0.0.1", _port(service)), timeout=20.0) as sock:
        sock.sendall(b"POST /infer HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"abc")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_http_1_0_gets_one_answer(service: RunningService) -> None:
    answered = raw(service, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert b"Connection: close" in answered


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /infer HTTP/2\r\n\r\n", 400),
        (b"GET /infer HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"POST /infer HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /infer HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST /infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"GET /infer HTTP/1.1\r\nX: " + b"x" * 20_000, 431),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_is_refused_and_the_service_goes_on(
    service: RunningService, data: bytes, status: int
) -> None:
    answered = raw(service, data)
    assert answered.startswith(f"HTTP/1.1 {status} ".encode())
    assert b'{"error": ' in answered
    assert ask(service)[0] == 200


# The batcher.


class _Broken:
    batch_size = 1

    def begin_window(self) -> None:
        pass

    def begin_batch(self, n_queries: int | None = None) -> float:
        raise RuntimeError(f"broken at {n_queries}")


def test_a_batcher_that_breaks_lets_go_of_everybody_and_says_why() -> None:
    done: list[Ticket] = []
    batcher = Batcher(_Broken(), CLOCK, 10, done.extend)
    tickets = [batcher.submit(1) for _ in range(3)]
    batcher.start()
    assert eventually(lambda: len(done) == 3)
    assert [ticket.batch for ticket in done] == [0, 0, 0]
    assert set(done) == set(tickets)
    assert isinstance(batcher.failure, RuntimeError)
    assert batcher.submit(1) is None
    batcher.stop(1.0)


class _Slow(_Broken):
    def begin_batch(self, _n_queries: int | None = None) -> float:
        return 0.2


def test_a_batcher_that_is_stopped_ends_the_batch_in_service_and_lets_go_of_the_rest() -> None:
    done: list[Ticket] = []
    batcher = Batcher(_Slow(), CLOCK, 10, done.extend)
    for _ in range(5):
        batcher.submit(1)
    batcher.start()
    assert eventually(lambda: batcher.n_in_service == 1)
    batcher.stop(0.01)
    assert sorted(ticket.batch for ticket in done) == [0, 0, 0, 0, 1]
    assert not any(thread.name == "emulated accelerator" for thread in threading.enumerate())
