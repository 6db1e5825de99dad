"""A session with NVML: opened when first needed, GPUs known by UUID, errors as one sentence.

The binding (`pynvml`, of the package nvidia-ml-py) is imported on first use. NVML is not fork-safe, so a
session notices that it lives in another process and opens there again. Error codes: nvml.h, API 13.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from polythrottle_agent.ports import ControlError

UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION = 1, 2, 3, 4
NOT_FOUND, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND = 6, 9, 12, 13
GPU_IS_LOST, LIB_RM_VERSION_MISMATCH, IN_USE, MEMORY, NO_DATA = 15, 18, 19, 20, 21

_STALE = (UNINITIALIZED, GPU_IS_LOST)
"""After these the handles are void: the next call opens again, since a reset may have mended it."""

_SENTENCES = {
    INVALID_ARGUMENT: "the driver does not accept these values",
    NOT_SUPPORTED: "this GPU or its driver does not support it",
    NO_PERMISSION: "it needs root; run polythrottle-helper, or this command as root",
    NOT_FOUND: "there is no such GPU or value",
    DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded; load it with `modprobe nvidia`",
    LIBRARY_NOT_FOUND: "libnvidia-ml.so.1 was not found; install the NVIDIA driver",
    FUNCTION_NOT_FOUND: "this driver is too old for it",
    GPU_IS_LOST: "the GPU has fallen off the bus; reset it or reboot",
    LIB_RM_VERSION_MISMATCH: "driver and library differ in version; reboot after the driver's update",
    IN_USE: "the GPU is in use",
}


class NvmlError(ControlError):
    """NVML refused a call. `code` is its return code, None where no call was made."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code

    @property
    def is_unsupported(self) -> bool:
        """Whether this GPU or driver will never answer, so that asking again is of no use."""
        return self.code in (NOT_SUPPORTED, FUNCTION_NOT_FOUND)


class NvmlSession:
    """Calls into NVML.

    Nothing is opened before the first call. `close` lets go of the driver, as `nvidia-smi --gpu-reset` needs;
    a later call opens again. Safe to use from several threads.
    """

    def __init__(self, load: Callable[[], Any] = lambda: importlib.import_module("pynvml")) -> None:
        """`load` gives the binding module; another one serves where the library lies elsewhere."""
        self._load = load
        self._binding: Any = None
        self._opened_by: int | None = None
        self._handles: dict[str, Any] = {}
        self._lock = threading.RLock()

    def __enter__(self) -> NvmlSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the driver. Does nothing on a session that is not open."""
        with self._lock:
            opened_here = self._opened_by == os.getpid()
            self._opened_by = None
            self._handles.clear()
            if not opened_here:
                return
            try:
                self._binding.nvmlShutdown()
            except self._binding.NVMLError as error:
                if _code(error) not in _STALE:
                    raise _translated(error, "nvmlShutdown", None) from error

    def gpus(self) -> tuple[str, ...]:
        """UUIDs of the GPUs that answer.

        Raises:
            NvmlError: no binding, no library, no driver.
        """
        with self._call("nvmlDeviceGetCount", None) as binding:
            count = binding.nvmlDeviceGetCount()
        found = []
        for index in range(count):
            try:
                with self._call("nvmlDeviceGetUUID", f"GPU {index}") as binding:
                    found.append(_text(binding.nvmlDeviceGetUUID(binding.nvmlDeviceGetHandleByIndex(index))))
            except NvmlError as error:
                if error.code != GPU_IS_LOST:  # one dead GPU does not hide the others
                    raise
        return tuple(found)

    def system(self, function: str) -> Any:
        """The value of an NVML function without a GPU, such as `nvmlSystemGetDriverVersion`.

        Raises:
            NvmlError: it cannot be had.
        """
        with self._call(function, None) as binding:
            return _text(getattr(binding, function)())

    def call(self, uuid: str, function: str, *arguments: Any) -> Any:
        """The value of an NVML function for one GPU; byte strings as text.

        Raises:
            NvmlError: it cannot be had; one sentence says why.
        """
        with self._call(function, uuid) as binding:
            handle = self._handles.get(uuid)
            if handle is None:
                handle = binding.nvmlDeviceGetHandleByUUID(uuid)
                self._handles[uuid] = handle
            implementation = getattr(binding, function, None)
            if implementation is None:
                raise NvmlError(
                    f"{function} of {uuid}: the installed nvidia-ml-py lacks it; upgrade it.",
                    FUNCTION_NOT_FOUND,
                )
            return _text(implementation(handle, *arguments))

    @contextmanager
    def _call(self, function: str, subject: str | None) -> Iterator[Any]:
        with self._lock:
            binding = self._open()
            try:
                yield binding
            except binding.NVMLError as error:
                if _code(error) in _STALE:
                    self._opened_by = None if _code(error) == UNINITIALIZED else self._opened_by
                    self._handles.clear()
                raise _translated(error, function, subject) from error

    def _open(self) -> Any:
        if self._opened_by == os.getpid():
            return self._binding
        if self._binding is None:
            try:
                self._binding = self._load()
            except ImportError as error:
                raise NvmlError(
                    "NVIDIA GPUs need the package nvidia-ml-py: pip install 'polythrottle[nvidia]'.", None
                ) from error
        self._handles.clear()
        try:
            self._binding.nvmlInit()
        except self._binding.NVMLError as error:
            raise _translated(error, "nvmlInit", None) from error
        self._opened_by = os.getpid()
        return self._binding


def _text(value: Any) -> Any:
    """Older bindings give bytes where newer ones give text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _code(error: Any) -> int:
    return int(error.value)


def _translated(error: Any, function: str, subject: str | None) -> NvmlError:
    code = _code(error)
    what = function if subject is None else f"{function} of {subject}"
    return NvmlError(f"{what}: {_SENTENCES.get(code) or str(error).lower()}.", code)
