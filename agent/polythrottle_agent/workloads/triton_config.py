"""The configuration of a model in Triton, as far as batching goes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Config = Mapping[str, Any]
"""As Triton gives it and takes it: JSON, whole numbers as numbers over HTTP and partly as text over gRPC."""

SIZE, BATCHING, PREFERRED = "max_batch_size", "dynamic_batching", "preferred_batch_size"


def batch_size_of(config: Config) -> int:
    """The largest batch that Triton makes; 1 where the model takes no batches."""
    return max(int(config.get(SIZE, 0)), 1)


def why_no_knob(config: Config) -> str | None:
    """Why the batch size of this model cannot be set by its configuration; None where it can."""
    if int(config.get(SIZE, 0)) < 1:
        return "it takes no batches (max_batch_size is 0)"
    if config.get("sequence_batching") is not None:
        return "it batches sequences"
    if config.get("ensemble_scheduling") is not None:
        return "it is an ensemble, whose members have batch sizes of their own"
    if (config.get("model_transaction_policy") or {}).get("decoupled"):
        return "it is decoupled"
    return None


def usual_sizes(config: Config) -> tuple[int, ...]:
    """Powers of two up to the model's own limit, and the limit."""
    limit = batch_size_of(config)
    return (*(2**n for n in range(limit.bit_length()) if 2**n < limit), limit)


def with_batch_size(original: Config, size: int) -> dict[str, Any]:
    """The same configuration with batches of at most `size`, made by Triton from the requests that wait.

    A preferred size is the limit where the original prefers one; how long requests are held back to fill a
    batch stays as it is.
    """
    batching = dict(original.get(BATCHING) or {})
    if batching.get(PREFERRED):
        batching[PREFERRED] = [size]
    return {**original, SIZE: size, BATCHING: batching}


def holds(now: Config, wanted: Config) -> bool:
    """Whether `wanted` is in force. Triton fills in what was left open of the batching."""
    if text_of(apart_from_batching(now)) != text_of(apart_from_batching(wanted)):
        return False
    has, asked = now.get(BATCHING), wanted.get(BATCHING)
    if now.get(SIZE) != wanted.get(SIZE) or has is None or asked is None:
        return now.get(SIZE) == wanted.get(SIZE) and has == asked
    return all(has.get(key) == value for key, value in asked.items())


def apart_from_batching(config: Config) -> dict[str, Any]:
    """What is not ours to set."""
    return {key: value for key, value in config.items() if key not in (SIZE, BATCHING)}


def model_digest(config: Config) -> str:
    """Tells models apart by what they take, give and run on; HTTP and gRPC spell the rest differently."""
    tensors = [
        [side, one.get("name"), one.get("data_type"), [int(size) for size in one.get("dims", [])]]
        for side in ("input", "output")
        for one in config.get(side, [])
    ]
    groups = [[one.get("kind"), int(one.get("count", 0))] for one in config.get("instance_group", [])]
    told = [config.get(key) or "" for key in ("name", "backend", "platform", "default_model_filename")]
    return hashlib.sha256(json.dumps([told, tensors, groups]).encode()).hexdigest()


def text_of(config: Config) -> str:
    return json.dumps(config, sort_keys=True)
