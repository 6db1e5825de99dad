from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from polythrottle.cli.main import invoke
from polythrottle_agent import service_install
from polythrottle_agent.nvidia_gpu import SeveralGpus
from polythrottle_agent.ports import ControlError
from polythrottle_agent.service_install import AGENT_UNIT, HELPER_UNIT, LAYOUT, InstallError

PROGRAMS = Path("/opt/polythrottle/bin")
needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="NOT TESTED: there is no systemd-analyze"
)


@pytest.fixture
def laid_out(tmp_path: Path) -> Path:
    service_install.lay_out(tmp_path, PROGRAMS)
    return tmp_path


def unit(root: Path, name: str) -> str:
    return (root / LAYOUT[name]).read_text(encoding="utf-8")


def values(text: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


def test_everything_is_laid_out_and_removed_again(laid_out: Path) -> None:
    files = {str(path.relative_to(laid_out)) for path in laid_out.rglob("*") if path.is_file()}
    assert files == set(LAYOUT.values())
    assert len(service_install.remove(laid_out)) == len(LAYOUT)
    assert service_install.remove(laid_out) == ()
    assert not [path for path in laid_out.rglob("*") if path.is_file()]


def test_no_placeholder_is_left(laid_out: Path) -> None:
    for place in LAYOUT.values():
        assert "@" not in (laid_out / place).read_text(encoding="utf-8").replace(
            "@system-service", ""
        ).replace("@privileged", "").replace("@resources", "")


def test_the_helper_is_ready_watched_and_put_back_after(laid_out: Path) -> None:
    text = unit(laid_out, HELPER_UNIT)
    assert values(text, "Type") == ["notify"]
    assert values(text, "ExecStart") == [f"{PROGRAMS}/polythrottle-helper"]
    assert values(text, "ExecStopPost") == [f"+{PROGRAMS}/polythrottle-helper --restore"]
    assert float(values(text, "WatchdogSec")[0]) >= 30
    assert values(text, "Restart") == ["on-failure"]
    assert "nvpmodel.service" in values(text, "After")[0]


def test_the_helper_can_write_clocks_and_reaches_no_network(laid_out: Path) -> None:
    text = unit(laid_out, HELPER_UNIT)
    for closed in ("ProtectKernelTunables", "PrivateDevices", "PrivateUsers", "DynamicUser"):
        assert values(text, closed) == [], f"{closed} would keep it from /sys or from NVML"
    assert values(text, "RestrictAddressFamilies") == ["AF_UNIX"]
    assert values(text, "PrivateNetwork") == ["yes"]
    assert values(text, "StateDirectory") == ["polythrottle"]


def test_stopping_the_helper_stops_the_agent_that_would_start_it_again(laid_out: Path) -> None:
    unit = (laid_out / LAYOUT[AGENT_UNIT]).read_text()
    assert f"Wants={HELPER_UNIT}\n" in unit
    assert f"PartOf={HELPER_UNIT}\n" in unit


def test_the_programs_are_looked_for_where_pip_puts_them() -> None:
    """Which is not beside the interpreter for Debian's own Python: there it is /usr/local/bin."""
    for name in service_install.PROGRAMS:
        assert (service_install.programs_directory() / name).is_file()


def test_the_agent_has_no_power_at_all(laid_out: Path) -> None:
    text = unit(laid_out, AGENT_UNIT)
    assert values(text, "User") == ["polythrottle"]
    assert values(text, "CapabilityBoundingSet") == [""]
    assert values(text, "NoNewPrivileges") == ["yes"]


@needs_analyze
@pytest.mark.parametrize(("name", "limit"), [(AGENT_UNIT, 3.0), (HELPER_UNIT, 4.0)])
def test_systemd_rates_their_exposure_low(laid_out: Path, name: str, limit: float) -> None:
    done = subprocess.run(
        [
            "systemd-analyze",
            "security",
            "--offline=true",
            f"--threshold={limit * 10:g}",
            str(laid_out / LAYOUT[name]),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Overall exposure level" in done.stdout, done.stderr
    level = float(done.stdout.rpartition("Overall exposure level for")[2].split(":")[1].split()[0])
    assert level <= limit
    assert done.returncode == 0


@needs_analyze
@pytest.mark.parametrize("name", [AGENT_UNIT, HELPER_UNIT])
def test_systemd_understands_every_line(tmp_path: Path, name: str) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in service_install.PROGRAMS:
        (programs / program).write_text("#!/bin/sh\n")
        (programs / program).chmod(0o755)
    service_install.lay_out(tmp_path, programs)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / LAYOUT[name])],
        capture_output=True, text=True, check=False,
        env={"SYSTEMD_UNIT_PATH": f"{tmp_path}/etc/systemd/system:", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "polythrottle" in line]
    assert ours == [], "an unknown key or value gives a message, and exit status 0"


def test_programs_in_a_home_are_seen_and_not_written(tmp_path: Path) -> None:
    service_install.lay_out(tmp_path, Path("/home/somebody/venv/bin"))
    assert values(unit(tmp_path, HELPER_UNIT), "ProtectHome") == ["read-only"]


def test_programs_that_are_not_there_are_noticed_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_install, "LAYOUT", {HELPER_UNIT: str(tmp_path / "unit")})
    with pytest.raises(InstallError, match="no program /nowhere/polythrottle-helper"):
        service_install.lay_out(Path("/"), Path("/nowhere"))
    assert not (tmp_path / "unit").exists()


def test_programs_that_a_service_cannot_reach_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_install, "LAYOUT", {HELPER_UNIT: str(tmp_path / "unit")})
    programs = tmp_path / "private" / "bin"
    programs.mkdir(parents=True)
    for program in service_install.PROGRAMS:
        (programs / program).write_text("")
        (programs / program).chmod(0o755)
    (tmp_path / "private").chmod(0o700)
    with pytest.raises(InstallError, match=r"may not enter .*private.*/opt/polythrottle"):
        service_install.lay_out(Path("/"), programs)


def test_the_command_lays_out_a_root_and_says_what_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["install-service", "--root", str(tmp_path), "--programs", str(PROGRAMS)]) == 0
    out = capsys.readouterr().out
    assert "systemd-sysusers /etc/sysusers.d/polythrottle.conf" in out
    assert "systemctl enable polythrottle-helper.service" in out
    assert invoke(["uninstall", "--root", str(tmp_path)]) == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_gpu_to_serve_is_named_in_the_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("install-service", "--root", str(tmp_path), "--programs", str(PROGRAMS))
    assert invoke([*arguments, "--gpu", "GPU-1a2b"]) == 0
    text = unit(tmp_path, HELPER_UNIT)
    assert values(text, "ExecStart") == [f"{PROGRAMS}/polythrottle-helper --gpu GPU-1a2b"]
    assert values(text, "ExecStopPost") == [f"+{PROGRAMS}/polythrottle-helper --restore --gpu GPU-1a2b"]
    for name in ("GPU 1", "GPU-%h", "a\nExecStartPre=/bin/sh"):
        capsys.readouterr()
        assert invoke([*arguments, "--gpu", name]) == 1
        assert "neither a UUID nor a PCI address" in capsys.readouterr().err


@dataclass(frozen=True)
class Found:
    gpu: str | None


def test_several_gpus_and_none_named_is_refused_before_anything_is_written() -> None:
    def discover(_: Path, *, gpu: str | None, **__: object) -> Any:
        if gpu is None:
            raise SeveralGpus(["GPU-1", "GPU-2"])
        if gpu not in ("GPU-1", "0000:18:00.0"):
            raise ControlError(f"{gpu!r} names no GPU")
        return Found("GPU-1")

    with pytest.raises(InstallError, match=r"2 GPUs \(GPU-1, GPU-2\).* install-service --gpu GPU-1"):
        service_install.gpu_to_serve(None, discover)
    with pytest.raises(InstallError, match="GPU-9 cannot be served: 'GPU-9' names no GPU"):
        service_install.gpu_to_serve("GPU-9", discover)
    assert service_install.gpu_to_serve("0000:18:00.0", discover) == "GPU-1"


def test_where_nobody_has_to_name_a_gpu_none_is_written() -> None:
    def discover(_: Path, **__: object) -> Any:
        return Found(None)

    assert service_install.gpu_to_serve(None, discover) is None
    with pytest.raises(InstallError, match="there is no NVIDIA GPU"):
        service_install.gpu_to_serve("GPU-1", discover)


def test_nothing_that_was_never_installed_is_said_to_be_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(["uninstall", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "Nothing to remove" in out
    assert "audit log" not in out


def test_a_command_that_fails_is_one_sentence() -> None:
    with pytest.raises(InstallError, match="could not prove a point: no such luck"):
        service_install.run(
            (service_install.Step(("sh", "-c", "echo no such luck >&2; exit 3"), "prove a point"),)
        )
    with pytest.raises(InstallError, match="takes systemd"):
        service_install.run((service_install.Step(("no-such-program-here",), "x"),))
