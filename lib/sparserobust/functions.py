"""What functions refer to."""

import dis
import sys
from pathlib import Path
from types import CodeType
from typing import Any

LIBRARIES = sys.stdlib_module_names | {"torch", "numpy", "sparserobust"}  # of which names say enough


def referred(function: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a function refers to: name to value in its closure, and of what is global. That of packages is left out."""
    code, cells = function.__code__, function.__closure__ or ()
    closed = {}
    for name, cell in zip(code.co_freevars, cells, strict=True):
        try:
            closed[name] = cell.cell_contents
        except ValueError:  # nothing has been put there yet
            continue
    if is_installed(function.__module__, code.co_filename):
        return closed, {}
    return closed, {name: function.__globals__[name] for name in _names(code) if name in function.__globals__}


def _names(code: CodeType) -> list[str]:
    """All names that compiled code looks up as global, those in functions within it too, in alphabetical order."""
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names(part)]
    looked_up = [step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    return sorted({*looked_up, *inner})


def is_installed(module: str | None, file: str | None) -> bool:
    """Whether code belongs to Python, to this library, or to a package that was installed."""
    top = (module or "").split(".")[0]
    return top in LIBRARIES or bool({"site-packages", "dist-packages"} & set(Path(file or "").parts))
