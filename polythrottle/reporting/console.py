"""Printing that every terminal can take: narrow, piped, without colour, without Unicode."""

from __future__ import annotations

import errno
import os
import re
import sys
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.text import Text

_ASCII = {
    " · ": ", ",
    "·": "*",
    "±": "+/-",
    "≤": "<=",
    "≥": ">=",
    "→": "->",
    "×": "x",
    "µ": "u",
    "✓": "ok",
    "✗": "over",
    "–": "-",
    "—": "-",
    "…": "...",
    "“": '"',
    "”": '"',
    "‘": "'",
    "’": "'",
    "°": "deg",
    "σ": "sd",
    "\N{NO-BREAK SPACE}": " ",
}
"""What stands for a character that the terminal's encoding lacks; anything else becomes `?`."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_QUANTITY = re.compile(r"(?<=\d) (?=(?:MHz|W|[kmµu]?J|[mµu]?s|%|min|h)\b|%|±|\+/-)|(?<=±) |(?<=\+/-) ")
"""The spaces inside a quantity such as `612 ± 7 mJ`."""
_GLUE = "\ue000"
"""Stands for such a space while lines are wrapped: no wrapper takes it for one."""
PIPED_WIDTH = 160


def make_console(file: TextIO | None = None, *, width: int | None = None) -> Console:
    """A console for tables and lines of text: nothing in them is read as markup.

    Into a pipe, lines are not broken at 80 columns but at 160, unless COLUMNS says otherwise. NO_COLOR and
    TERM=dumb are honoured.
    """
    stream = file if file is not None else sys.stdout
    if width is None and not stream.isatty() and not os.environ.get("COLUMNS", "").isdigit():
        width = PIPED_WIDTH
    return _LastingConsole(file=file, width=width, markup=False, highlight=False, emoji=False)


class _LastingConsole(Console):
    """Goes quiet when its terminal vanishes (EIO), as when a connection is lost in the middle of a run.

    An error out of a print would otherwise end whatever came to say something, be it a run that has to put a
    device back. A pipe that nobody reads is another matter, and still ends the program.
    """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            super().__exit__(kind, error, traceback)
        except OSError as vanished:
            if vanished.errno != errno.EIO:
                raise
            self.quiet = True


def printable(console: Console, text: str) -> str:
    """`text` with what the console's encoding cannot take replaced, and control characters removed."""
    text = _CONTROL.sub("", text)
    if _encodes(text, console.encoding):
        return text
    for character, stand_in in _ASCII.items():
        if character in text and not _encodes(character, console.encoding):
            text = text.replace(character, stand_in)
    encoding = console.encoding if _known(console.encoding) else "ascii"
    return text.encode(encoding, "replace").decode(encoding)


def _known(encoding: str) -> bool:
    try:
        "".encode(encoding)
    except LookupError:
        return False
    return True


def _encodes(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def print_text(console: Console, *parts: str | tuple[str, str], indent: int = 0) -> None:
    """Print one paragraph of (text, style) parts; further lines are indented by `indent` columns.

    Words are wrapped at the console's width, a number stays with its unit, and a word wider than a line is
    folded rather than cut.
    """
    line = Text()
    for part in parts:
        content, style = (part, "") if isinstance(part, str) else part
        line.append(printable(console, content), style=style)
    if line.cell_len <= console.width:
        console.print(line)
        return
    line.plain = _QUANTITY.sub(_GLUE, line.plain)
    room = max(console.width - indent, 8)
    margin, body = line[:indent], line[indent:]
    for wrapped in body.wrap(console, room, overflow="fold"):
        wrapped.rstrip()
        wrapped.plain = wrapped.plain.replace(_GLUE, " ")
        margin.plain = margin.plain.replace(_GLUE, " ")
        console.print(margin.append_text(wrapped), overflow="fold")
        margin = Text(" " * indent)
