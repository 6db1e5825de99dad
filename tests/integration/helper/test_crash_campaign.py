"""The crash campaign itself: it passes where the promise is kept, and fails where it is broken."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.integration.helper.conftest import REPOSITORY

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
        "def overwrite(self, device, owner, originals):\n"
        "    self.path.unlink(missing_ok=True)\n"
        "    return add(self, device, owner, {k: {'level': '306' if 'gpu' in k else v['level']} "
        "for k, v in originals.items()})\n"
        "Journal.add = overwrite\n"
    ),
}


def campaign(before: str = "") -> subprocess.CompletedProcess[str]:
    script = f"{before}\nimport sys\nfrom benchmarks.crash_campaign.__main__ import main\nsys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", script, "--quick", "--board", "files", "--kills", "3"],
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
