"""Inputs for an ONNX model, made from its signature or read from a file. Only the child imports this."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

SEQUENCE_LENGTH = 128
IMAGE_SIDE = 224
CHANNELS = 3
"""Sizes for dynamic dimensions that the user left open."""
TOKENS = 100
"""Token ids are drawn below this: no vocabulary is smaller."""
POOL = 16
"""Different samples that are made and taken in turn."""

_SEQUENCE = re.compile(r"seq|tok|len|time|step|frame", re.IGNORECASE)
_SIDE = re.compile(r"height|width|^[hw]$|side|size", re.IGNORECASE)
_CHANNEL = re.compile(r"chan|^c$", re.IGNORECASE)
_BATCH = re.compile(r"batch|^n$|^b$|^bs$|^num|none|unk", re.IGNORECASE)

_TYPES: Mapping[str, str] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
    "tensor(bool)": "bool",
}

IMAGE_MEAN = np.asarray([0.485, 0.456, 0.406], dtype="float32")
IMAGE_SPREAD = np.asarray([0.229, 0.224, 0.225], dtype="float32")
"""Per channel over ImageNet, as image models are trained with."""


class Unusable(Exception):
    """No inputs can be made; one sentence says why, and what to do."""


@dataclass(frozen=True)
class Input:
    """One input: its name, ONNX type and dimensions (a number, or the name of a dynamic one, or None)."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]

    @property
    def is_batched(self) -> bool:
        """Whether the first dimension takes any number of queries."""
        if not self.shape or isinstance(self.shape[0], int):
            return False
        first = self.shape[0]
        return first is None or bool(_BATCH.search(first)) or not _names_a_size(first)

    @property
    def dtype(self) -> Any:
        if self.type not in _TYPES:
            raise Unusable(
                f"input {self.name!r} is of type {self.type}, for which no values can be made; "
                "serve this model another way, such as http:URL"
            )
        return np.dtype(_TYPES[self.type])

    def sizes(self) -> tuple[int, ...]:
        """The shape of one query, the batch dimension left out; every dynamic one gets a size.

        Raises:
            Unusable: a dimension whose size nothing tells.
        """
        first = 1 if self.is_batched else 0
        return tuple(self._size(axis) for axis in range(first, len(self.shape)))

    def _size(self, axis: int) -> int:
        dimension = self.shape[axis]
        if isinstance(dimension, int) and dimension > 0:
            return dimension
        name = dimension if isinstance(dimension, str) else ""
        for pattern, size in ((_SEQUENCE, SEQUENCE_LENGTH), (_SIDE, IMAGE_SIDE), (_CHANNEL, CHANNELS)):
            if name and pattern.search(name):
                return size
        rank = len(self.shape)
        if rank == 4 and self.dtype.kind in "fu":
            channel_axis = 3 if self.shape[3] in (1, CHANNELS) else 1
            return CHANNELS if axis == channel_axis else IMAGE_SIDE
        if rank == 2 and axis == 1 and self.dtype.kind == "i":
            return SEQUENCE_LENGTH
        called = f"{name!r} " if name else ""
        raise Unusable(
            f"input {self.name!r} has a dimension {called}(number {axis + 1} of {rank}) whose size nothing "
            "tells; give samples with --data FILE.npz"
        )

    def samples(self, n: int, random: np.random.Generator) -> Array:
        """Plausible values of n queries, of shape n × `sizes()`."""
        shape, dtype = (n, *self.sizes()), self.dtype
        if dtype.kind == "f":
            return np.asarray(random.standard_normal(shape, dtype=np.float32), dtype=dtype)
        if dtype.kind == "b" or re.search("mask", self.name, re.IGNORECASE):
            return np.ones(shape, dtype)
        if re.search("type|segment", self.name, re.IGNORECASE):
            return np.zeros(shape, dtype)
        if re.search("position", self.name, re.IGNORECASE) and len(shape) > 1:
            return np.array(np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape))
        below = 256 if self.type == "tensor(uint8)" else TOKENS
        return np.asarray(random.integers(0, below, shape), dtype=dtype)


def _names_a_size(name: str) -> bool:
    return any(pattern.search(name) for pattern in (_SEQUENCE, _SIDE, _CHANNEL))


class Samples:
    """Queries for one model, taken in turn.

    Attributes:
        fixed_batch: how many queries a call must hold; None where the model takes any number.
        images: raw images of N × height × width × 3 uint8 that are still to be pre-processed; None without.
    """

    def __init__(self, inputs: Sequence[Input], data: Path | None, seed: int) -> None:
        """
        Raises:
            Unusable: no values can be made, or the file does not fit the model.
        """
        self.inputs = tuple(inputs)
        self.fixed_batch = _fixed_batch(self.inputs)
        self.images: Array | None = None
        self._next = 0
        given = {} if data is None else _read(data, self.inputs)
        random = np.random.default_rng(seed)
        self._pool: dict[str, Array] = {}
        for one in self.inputs:
            if one.name not in given:
                self._pool[one.name] = (
                    one.samples(POOL, random) if one.is_batched else self._whole(one, random)
                )
            elif _is_raw_image(one, given[one.name]):
                self.images = given[one.name]
                self._layout = _ImageInput.of(one)
            else:
                self._pool[one.name] = _fitting(one, given[one.name])

    @staticmethod
    def _whole(one: Input, random: np.random.Generator) -> Array:
        """An input without a free batch dimension: its own shape, the same values for every call."""
        return np.asarray(one.samples(1, random)[0])

    def batch(self, n: int, prepared: Sequence[Array] = ()) -> dict[str, Array]:
        """The feed of the next n queries.

        Args:
            prepared: what `prepare` made of n raw images, where the model takes images.
        """
        size = n if self.fixed_batch is None else self.fixed_batch
        feed = {}
        for one in self.inputs:
            if one.name not in self._pool:
                stacked = np.stack([prepared[i % len(prepared)] for i in range(size)])
                feed[one.name] = stacked if one.is_batched else stacked.reshape(self._layout.shape)
            elif one.is_batched:
                pool = self._pool[one.name]
                feed[one.name] = pool[(self._next + np.arange(size)) % len(pool)]
            else:
                feed[one.name] = self._pool[one.name]
        self._next += n
        return feed

    def prepare(self, number: int) -> Array:
        """Pre-process one raw image: resize, scale, lay out."""
        assert self.images is not None
        return self._layout.prepare(self.images[number % len(self.images)])


def _fixed_batch(inputs: Sequence[Input]) -> int | None:
    """The first dimension where no input leaves it open; 1 where there is none to speak of."""
    if any(one.is_batched for one in inputs):
        return None
    sizes = {one.shape[0] for one in inputs if one.shape and isinstance(one.shape[0], int)}
    return sizes.pop() if len(sizes) == 1 and len(inputs[0].shape) > 1 else 1


def _read(path: Path, inputs: Sequence[Input]) -> dict[str, Array]:
    """The arrays of an .npz file by input."""
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays: dict[str, Array] = {}
        if not isinstance(loaded, np.ndarray):
            with loaded:
                arrays = {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise Unusable(f"{path} is not there; name a file that numpy.savez wrote") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        said = _first_line(error)
        raise Unusable(f"{path} cannot be read as .npz ({said}); write it with numpy.savez") from error
    if not arrays:
        raise Unusable(f"{path} holds no named arrays; write it with numpy.savez, each input under its name")
    if len(inputs) == 1 and len(arrays) == 1:
        return {inputs[0].name: next(iter(arrays.values()))}
    names = [one.name for one in inputs]
    unknown = sorted(set(arrays) - set(names))
    if unknown:
        raise Unusable(f"{path} holds {unknown[0]!r}, but the model's inputs are {', '.join(names)}")
    missing = [name for name in names if name not in arrays]
    if missing:
        raise Unusable(f"{path} lacks {missing[0]!r}: the model's inputs are {', '.join(names)}")
    return arrays


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def _fitting(one: Input, array: Array) -> Array:
    """
    Raises:
        Unusable: the array does not fit the input.
    """
    wanted = tuple(size if isinstance(size, int) else None for size in one.shape)
    text = " × ".join("any" if size is None else str(size) for size in wanted)
    fits = array.ndim == len(wanted) and all(
        size is None or size == got for size, got in zip(wanted, array.shape, strict=True)
    )
    if not fits or array.size == 0:
        raise Unusable(
            f"input {one.name!r} is {text or 'a single number'}, but the data are "
            f"{' × '.join(map(str, array.shape)) or 'a single number'}"
        )
    if not np.can_cast(array.dtype, one.dtype, casting="same_kind"):
        raise Unusable(f"input {one.name!r} is of type {one.dtype}, but the data are of type {array.dtype}")
    return array.astype(one.dtype)


def _is_raw_image(one: Input, array: Array) -> bool:
    """Pictures as a camera gives them, for an input that wants floats of a size of its own."""
    return (
        array.dtype == np.uint8
        and array.ndim == 4
        and array.shape[3] == CHANNELS
        and len(one.shape) == 4
        and one.dtype.kind == "f"
        and len(array) > 0
    )


@dataclass(frozen=True)
class _ImageInput:
    """How an image input wants its pictures: the shape of one call, and whether channels come first."""

    shape: tuple[int, ...]
    height: int
    width: int
    channels_first: bool
    dtype: Any

    @classmethod
    def of(cls, one: Input) -> _ImageInput:
        sizes = one.sizes()
        picture = sizes[-3:]
        channels_first = picture[0] == CHANNELS
        if not channels_first and picture[2] != CHANNELS:
            raise Unusable(
                f"input {one.name!r} does not take pictures of {CHANNELS} channels, but the data hold some"
            )
        height, width = picture[1:] if channels_first else picture[:2]
        return cls(sizes, height, width, channels_first, one.dtype)

    def prepare(self, image: Array) -> Array:
        """Height × width × 3 uint8 → what the model takes: bilinear, normalised per channel."""
        resized = resize(image, self.height, self.width)
        scaled = (resized / np.float32(255.0) - IMAGE_MEAN) / IMAGE_SPREAD
        if self.channels_first:
            scaled = np.ascontiguousarray(scaled.transpose(2, 0, 1))
        return np.asarray(scaled, self.dtype)


def resize(image: Array, height: int, width: int) -> Array:
    """Bilinear, pixel centres aligned: H × W × C of any number type → height × width × C float32."""
    top, bottom, down = _between(image.shape[0], height)
    left, right, across = _between(image.shape[1], width)
    down, across = down[:, None, None], across[None, :, None]
    upper = image[top][:, left] * (1.0 - across) + image[top][:, right] * across
    lower = image[bottom][:, left] * (1.0 - across) + image[bottom][:, right] * across
    return np.asarray(upper * (1.0 - down) + lower * down, dtype="float32")


def _between(size: int, wanted: int) -> tuple[Array, Array, Array]:
    """For each new pixel the old ones before and after it, and how far it lies between them."""
    at = np.clip((np.arange(wanted) + 0.5) * size / wanted - 0.5, 0, size - 1)
    before = np.floor(at).astype("int64")
    return before, np.minimum(before + 1, size - 1), (at - before).astype("float32")
