"""`polythrottle models`: make a model to serve where there is none at hand."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated

import typer

from polythrottle.errors import InvalidInputError

app = typer.Typer(no_args_is_help=True)


@app.callback()
def models() -> None:
    """Models to try things with: real work, random weights."""


@app.command("make")
def make(
    kind: Annotated[str, typer.Argument(help="efficientnet or bert.")],
    file: Annotated[Path, typer.Argument(help="The .onnx file to write.")],
    size: Annotated[
        str | None, typer.Option(help="efficientnet: tiny, b0, b4, b7; bert: tiny, mini, base.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random weights.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write an EfficientNet-like or a BERT-like ONNX model. Its answers mean nothing."""
    from polythrottle_agent.workloads.onnx_models import DEFAULT_SIZES, make

    if file.is_dir():
        raise InvalidInputError(f"{file} is a directory; name a file.")
    if file.exists() and not force:
        raise InvalidInputError(f"{file} is there already; name another file, or add --force.")
    size = size or DEFAULT_SIZES.get(kind, "")
    model = make(kind, size, seed)
    content = model.SerializeToString()
    # Beside it and then into its place: a disk that fills up leaves no half model behind.
    partial = file.with_name(f"{file.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise InvalidInputError(f"Cannot write {file}: {error.strerror}.") from error
    typer.echo(f"{file}: {kind} {size}, {len(content) / 1e6:.1f} MB, random weights")
