"""Domain values as JSON and back: explicit, strict, and never pickle.

Reading refuses a wrong type, a missing field and a field this release does not know, so that a document
written by another release is never half understood. Writing refuses what would not read back equal, and
numbers that are not finite.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from polythrottle.errors import InvalidInputError, StateError
from polythrottle.study import StudySpec

Json = Any
"""What `json.loads` gives: dict, list, str, int, float, bool or None."""

T = TypeVar("T")


_adapters: dict[type, TypeAdapter[Any]] = {}


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    """Built once a type: building one costs much more than using it."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def encode(kind: type[T], value: T) -> Json:
    """The value, a frozen dataclass of the domain, as a JSON tree in canonical form (4 becomes 4.0).

    Raises:
        InvalidInputError: it holds a number that is not finite, or something JSON cannot give back.
    """
    adapter = _adapter(kind)
    tree = adapter.dump_python(value, mode="json", warnings="none")
    try:
        # Levels may be whole numbers in memory; what reads back is what is kept.
        read_back = adapter.validate_json(json.dumps(tree, allow_nan=False), strict=True)
    except ValueError as error:  # pydantic's ValidationError is one
        raise InvalidInputError(f"This {kind.__name__} cannot be stored: {_sentence(error)}.") from error
    if read_back != value:
        raise InvalidInputError(f"This {kind.__name__} cannot be stored: it would read back changed.")
    return adapter.dump_python(read_back, mode="json")


def decode(kind: type[T], tree: Json) -> T:
    """The value that a JSON tree stands for.

    Raises:
        StateError: the tree is not what this release writes; the first fault is named.
    """
    adapter = _adapter(kind)
    try:
        value = adapter.validate_json(json.dumps(tree, allow_nan=False), strict=True)
    except (ValueError, InvalidInputError) as error:
        raise StateError(f"A stored {kind.__name__} cannot be read: {_sentence(error)}.") from error
    unknown = _unknown_field(tree, adapter.dump_python(value, mode="json"))
    if unknown is not None:
        raise StateError(
            f"A stored {kind.__name__} has a field {unknown!r} that this release does not know; "
            "use the polythrottle that wrote it, or a newer one."
        )
    return value


def spec_digest(spec: StudySpec) -> str:
    """SHA-256 of the canonical spec: equal specs, and only those, share it."""
    tree = encode(StudySpec, spec)
    tree["space"] = spec.space.digest  # its recorded cells are a set, which has no order of its own
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _unknown_field(stored: Json, known: Json, path: str = "") -> str | None:
    if isinstance(stored, dict) and isinstance(known, dict):
        for key, value in stored.items():
            here = f"{path}.{key}" if path else key
            if key not in known:
                return here
            deeper = _unknown_field(value, known[key], here)
            if deeper is not None:
                return deeper
    if isinstance(stored, list) and isinstance(known, list):
        for position, (a, b) in enumerate(zip(stored, known, strict=False)):
            deeper = _unknown_field(a, b, f"{path}[{position}]")
            if deeper is not None:
                return deeper
    return None


def _sentence(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        return f"{where}: {first['msg']}"
    return str(error).rstrip(".")
