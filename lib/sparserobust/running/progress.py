"""One line that says how far a long computation is: in a terminal, a notebook, or a file that a caller watches."""

import os
import sys
import time
from pathlib import Path

from sparserobust.provenance import in_notebook

LOGGED = 15.0  # seconds between lines where they cannot be replaced


class Progress:
    """A line that is replaced in place, or in a log one every `LOGGED` seconds; `close` leaves a last one.
    `SPARSEROBUST_PROGRESS` names a file to which the line is written as well, for a caller that cannot see this
    process's output."""

    def __init__(self):
        self._file = os.environ.get("SPARSEROBUST_PROGRESS")
        self._display = None
        self._written = 0.0
        if in_notebook():
            from IPython.display import display

            self._display = display({"text/plain": ""}, raw=True, display_id=True)

    def show(self, line: str, last: bool = False) -> None:
        terminal = self._file or self._display or sys.stderr.isatty()
        if not last and time.monotonic() - self._written < (0.5 if terminal else LOGGED):
            return
        self._written = time.monotonic()
        if self._file:
            Path(self._file).write_text(line)
        if self._display is not None:
            self._display.update({"text/plain": line}, raw=True)
        elif not self._file:
            clear, end = ("\r\x1b[K", "\n" if last else "") if terminal else ("", "\n")
            print(clear + line, end=end, file=sys.stderr, flush=True)

    def close(self, line: str) -> None:
        self.show(line, last=True)


def bar(done: float, width: int = 20) -> str:
    """`[#####...............]` for a share between 0 and 1."""
    full = round(width * min(1.0, max(0.0, done)))
    return "[" + "#" * full + "." * (width - full) + "]"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
