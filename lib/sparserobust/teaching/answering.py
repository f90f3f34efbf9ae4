"""What runs a page's cells, and a submission's, and carries its answers away as plain data: numbers, words, the
settings of a run, the tensors of a network. Nothing is pickled, so that whoever reads an answer runs no code of it."""

import base64
import json
import math
import os
import re
import signal
from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sparserobust import files
from sparserobust.config import Run
from sparserobust.errors import UserError

LARGE = 10**300  # an integer beyond is no float, and may be no JSON
SHOWN = 200  # characters of an error, and of a word that is an answer
WORDS = re.compile(r"[\w -]*")  # all text in the settings of a run; what is outside the library is named otherwise


class Cell(NamedTuple):
    """A code cell of a submission; the number of the exercise that it answers or (`checks`) checks, if it does."""

    source: str
    exercise: str = ""
    checks: bool = False


class TooLate(BaseException):
    """Raised in a cell that takes too long; not an `Exception`, so that few cells catch it."""


class Page:
    """The cells of a page are executed as in a notebook, but in this process. What they show is thrown away."""

    def __init__(self):
        from IPython.core.history import HistoryManager
        from IPython.core.interactiveshell import InteractiveShell

        class Shell(InteractiveShell):
            """Without a history on disk, whose thread would not survive a fork."""

            def init_history(self):
                self.history_manager = HistoryManager(shell=self, parent=self, enabled=False)

        self.shell = Shell.instance()
        self.shell.display_formatter.active_types = ["text/plain"]  # nobody looks at pictures
        self.names = self.shell.user_ns

    def execute(self, source: str, seconds: float = 0) -> str:
        """Execute a cell within so many seconds (0: any); in one line what went wrong, nothing if it went well."""
        def late(*_):
            raise TooLate(f"the cell took longer than {seconds:.0f} seconds")

        signal.signal(signal.SIGALRM, late)
        with (Path(os.devnull).open("w", encoding="utf-8") as nothing, redirect_stdout(nothing),
              redirect_stderr(nothing)):
            signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # again each second, should it be caught
            done = self.shell.run_cell(source, store_history=True)
            signal.setitimer(signal.ITIMER_REAL, 0)
        error = done.error_before_exec or done.error_in_exec
        return "" if error is None else described(error)

    def answer(self, cells: Iterable[Cell], seconds: float, out: int) -> None:
        """Execute a submission's cells, and write each answer to the file descriptor `out` as it is given. What checks
        an answer is not executed, but looked for: the answer counts as it stands there."""
        errors = {}
        for cell in cells:
            if cell.exercise and not cell.checks:
                self.names["answer"] = ...
            if not cell.checks:
                errors[cell.exercise] = self.execute(cell.source, seconds)
            if cell.exercise:
                said = {"exercise": cell.exercise, "answer": plain(self.names.get("answer", ...)),
                        "error": errors.get(cell.exercise, "")}
                _write(out, json.dumps(said).encode() + b"\n")


def described(error: BaseException) -> str:
    """An error in one line."""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return one_line(str(error) if isinstance(error, TooLate | UserError) else said)


def one_line(text: str, length: int = SHOWN) -> str:
    """Text that somebody else wrote, to be shown: printable, and not too long."""
    return "".join(sign if sign.isprintable() else " " for sign in text[:length]).strip()


def _write(out: int, content: bytes) -> None:
    while content:
        content = content[os.write(out, content):]


# ------------------------------------------------------------------------------------------------------- plain answers


def plain(answer: Any) -> dict:
    """An answer as JSON; of one that raises when it is looked at, its type."""
    try:
        return _plain(answer)
    except Exception:
        return {"kind": "other", "type": type(answer).__name__}


def _plain(answer: Any) -> dict:
    run = answer.get("run") if isinstance(answer, dict) else answer
    if answer is ...:
        return {"kind": "none"}
    if isinstance(run, Run):
        return {"kind": "run", "settings": run.plain()}
    if isinstance(answer, torch.nn.Module):
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in answer.state_dict().items()}
        return {"kind": "network", "tensors": base64.b64encode(files.packed(tensors)).decode()}
    value = answer
    if hasattr(answer, "item"):  # numpy, torch, pandas
        try:
            value = answer.item()
        except (TypeError, ValueError, RuntimeError):
            value = None
    if isinstance(value, bool | int | float):
        large = isinstance(value, int) and abs(value) > LARGE
        return {"kind": "value", "value": math.copysign(math.inf, value > 0 or -1) if large else value}
    if isinstance(value, str):
        return {"kind": "value", "value": one_line(value)}
    return {"kind": "function" if callable(answer) else "other", "type": type(answer).__name__}


def restored(given: dict, like: Any = None) -> Any:
    """The answer that `plain` made, or one of the same type with nothing in it where that is all that is known. A
    network gets the tensors in a copy of the module `like`."""
    kind = given["kind"]
    if kind == "none":
        return ...
    if kind == "value":
        if not isinstance(given["value"], bool | int | float | str):
            raise ValueError("not a plain value")
        return given["value"]
    if kind == "run":
        if not _of_the_library(given["settings"]):
            return _empty("run of something outside the library")
        return Run.parse(given["settings"])
    if kind == "network":
        return _network(base64.b64decode(given["tensors"]), like)
    return _empty(given["type"])


def _of_the_library(settings: Any) -> bool:
    if isinstance(settings, dict):
        return all(map(_of_the_library, [*settings, *settings.values()]))
    if isinstance(settings, list):
        return all(map(_of_the_library, settings))
    return WORDS.fullmatch(settings) is not None if isinstance(settings, str) else True


def _network(packed: bytes, like: Any) -> torch.nn.Module:
    """`like` with these tensors; a module with none if they do not fit."""
    from copy import deepcopy

    from safetensors.torch import load

    tensors = load(packed)
    if isinstance(like, torch.nn.Module):
        network, wanted = deepcopy(like), like.state_dict()
        if {name: (w.shape, w.dtype) for name, w in tensors.items()} == {
                name: (w.shape, w.dtype) for name, w in wanted.items()}:
            network.load_state_dict(tensors)
            return network
    return torch.nn.Module()


def _empty(name: str) -> Any:
    return type(re.sub(r"[^\w ]", "", str(name))[:40] or "object", (), {})()
