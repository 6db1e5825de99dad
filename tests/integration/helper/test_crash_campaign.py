"""The crash campaign itself: it passes where the promise is kept, and fails where it is broken."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.crash_campaign.targets import NvmlTarget
from tests.integration.helper.conftest import REPOSITORY

TWO_GPUS = "nvml H100 + A100-40"
needs_nvml = pytest.mark.skipif(
    NvmlTarget.why_not() is not None, reason=f"TWO GPUS WERE NOT TESTED: {NvmlTarget.why_not()}"
)

SABOTAGE = {
    "originals that are written after the device": (
        "from polythrottle_agent.privileged.journal import Journal\n"
        "Journal._write = lambda self, entry: None\n"
    ),
    "a restore that forgets a control": (
        "from polythrottle_agent.privileged import keeper\n"
        "order = keeper.restore_order\n"
        "keeper.restore_order = lambda knobs: [k for k in order(knobs) if k != 'power_limit_w']\n"
    ),
    "a second run that overwrites": (
        "from polythrottle_agent.privileged.journal import Journal\n"
        "add = Journal.add\n"
        "def overwrite(self, owner, originals, power_mode=None):\n"
        "    self.path.unlink(missing_ok=True)\n"
        "    return add(self, owner, {k: {'level': '306' if 'gpu' in k else v['level']} "
        "for k, v in originals.items()})\n"
        "Journal.add = overwrite\n"
    ),
}


SABOTAGE_OF_TWO = {
    "a restore that does not ask which GPU": (
        "from polythrottle_agent.privileged import restoring\nrestoring.gpu_of = lambda device: None\n"
    ),
    "one journal for all": (
        "from polythrottle_agent.privileged import journal\n"
        "journal._short = lambda device: 'one'\n"
        "def of_anybody(self):\n"
        "    entries, _ = journal.kept_entries(self.directory, self._boot_id)\n"
        "    return entries[0] if entries else None\n"
        "journal.Journal.read = of_anybody\n"
    ),
}


def campaign(before: str = "", board: str = "files") -> subprocess.CompletedProcess[str]:
    script = f"{before}\nimport sys\nfrom benchmarks.crash_campaign.__main__ import main\nsys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", script, "--quick", "--board", board, "--kills", "3"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_it_passes() -> None:
    done = campaign()
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("crash-campaign: PASS 0 boards left changed, 0 originals lost")
    assert last.endswith(")")


@pytest.mark.parametrize("broken", list(SABOTAGE))
def test_it_fails_on_a_broken_promise(broken: str) -> None:
    done = campaign(SABOTAGE[broken])
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.rpartition("crash-campaign: ")[2].startswith("FAIL"), done.stderr[-2000:]


@needs_nvml
def test_it_passes_on_two_gpus() -> None:
    done = campaign(board=TWO_GPUS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "crash-campaign: PASS" in done.stdout


@needs_nvml
@pytest.mark.parametrize("broken", list(SABOTAGE_OF_TWO))
def test_it_fails_where_two_gpus_are_mixed_up(broken: str) -> None:
    done = campaign(SABOTAGE_OF_TWO[broken], TWO_GPUS)
    assert done.returncode == 1, done.stdout + done.stderr
    # Such a mess also breaks the runs that nobody kills, and then there is nothing to count.
    assert "PASS" not in done.stdout
    assert "FAIL" in done.stdout or "the undisturbed run ended with 1" in done.stderr, done.stderr[-2000:]
