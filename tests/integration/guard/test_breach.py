"""The whole chain under load: a service on an emulated board behind FUSE, the root helper and the guard.

Each is a process of its own. The service is flooded, the SLO is missed, and the clocks have to come back
within a second of the detection. A machine that is busy with other work may take longer, so one of three
breaches has to.
"""

from __future__ import annotations

import json
import signal

import pytest

from benchmarks.guard.scenario import BATCH, KEPT, breach, scene, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=f"NO FUSE: {why_not()}")

LIMIT_S = 1.0
TRIES = 3


def test_clocks_are_back_within_a_second_of_the_detection() -> None:
    took: list[float] = []
    with scene() as found:
        before = found.clocks
        for _ in range(TRIES):
            done = breach(found)
            took.append(done.clocks_s)
            assert "over 400 ms" in done.reason
            assert found.clocks == before
            if done.clocks_s < LIMIT_S:
                break
    assert min(took) < LIMIT_S, took


def test_apply_keep_guard_goes_on_guarding_and_what_is_kept_outlives_it() -> None:
    with scene() as found:
        before = found.clocks
        file = found.directory / "settings.json"
        file.write_text(json.dumps({**KEPT, "batch_size": BATCH}))
        serving = ("--workload", f"http:{found.url}", "--rate", "12")
        process = found.start("apply", str(file), "--keep", "--guard", *serving, "--latency-slo", "mean<5s")
        lines: list[str] = []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if line.startswith("guarding"):
                break
        assert any(line.startswith("kept") for line in lines), lines
        kept = found.clocks
        assert kept != before
        other = found.directory / "other.json"
        other.write_text(json.dumps({"gpu_freq_mhz": 510}))
        refused = found.start(
            "guard", str(other), "--latency-slo", "1s", "--watch", f"http:{found.url}", "--rate", "1"
        )
        _, complaint = refused.communicate(timeout=60)
        assert refused.returncode == 1
        assert "Another configuration is kept on the device" in " ".join(complaint.split())
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 0
        assert found.clocks == kept
        found.put_back()
        assert found.clocks == before
