"""What a page lets its reader choose, checked by name, type and value wherever the page is run: by `sparserobust run`,
by Papermill, in JupyterLab."""

import ast
import difflib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sparserobust import yamls
from sparserobust.errors import UserError, quoted
from sparserobust.running import scales
from sparserobust.settings import number

INJECTED = "# Parameters"  # the first line of the cell that Papermill adds


def declared(source: str) -> dict[str, ast.AnnAssign]:
    """The parameters that a cell declares, in its order: `name: type = default`."""
    return {node.target.id: node for node in _statements(source)
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}


def fitted(given: Mapping[str, Any], known: dict[str, ast.AnnAssign], where: str = "this page") -> dict[str, Any]:
    """The values given, as the types of the parameters `known`: of text, `false` is False, `[0, 1]` a list, `null` and
    `none` nothing where that is the default. Unknown names, values of another type and values that make no sense are
    `UserError`s."""
    result = {}
    for name, value in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known)}"
            raise UserError(f"{where} has no parameter {quoted(name)}; {hint}")
        wanted, default = ast.unparse(known[name].annotation), known[name].value
        nothing = isinstance(default, ast.Constant) and default.value is None
        fits = _parsed(value, wanted) if isinstance(value, str) and wanted != "str" else value
        if nothing and isinstance(fits, str) and fits.lower() == "none":
            fits = None
        if not (nothing if fits is None else type(fits).__name__ == wanted):
            raise UserError(f"parameter '{name}' of {where} should be of type {wanted}, not {quoted(value)}")
        if name == "workers" and fits < 0:
            raise UserError(f"parameter 'workers' of {where} should be 0 or more, not {fits}")
        if name == "scale":
            scales.check(fits)
        if name == "seeds" and fits is not None:
            scales.checked_seeds(fits, ())
        result[name] = fits
    return result


def check(page: dict[str, Any]) -> None:
    """In a page, with its `globals()`: what its parameters cell, and the cell that Papermill adds, have set. Text is
    turned into the type that is declared."""
    sources = page.get("In", [])  # of all cells so far, the first ones of the page first
    cells = [cell for cell in map(declared, sources) if cell]
    known = cells[0] if cells else {}
    edited = [cell for cell in cells if cell.keys() & known.keys()][-1:]
    injected = [source for source in sources if source.startswith(INJECTED)][-1:]
    names = [*known, *(name for cell in edited for name in cell), *(
        target.id for source in injected for node in _statements(source) if isinstance(node, ast.Assign)
        for target in node.targets if isinstance(target, ast.Name))]
    page.update(fitted({name: page[name] for name in names if name in page}, known))


def _statements(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:  # a cell that was refused
        return []


def _parsed(text: str, wanted: str) -> Any:
    if wanted == "float":  # as a setting may be written: 8/255
        with suppress(ValueError):
            return number(text)
    try:
        return yamls.parsed(text, "a parameter")
    except UserError:
        return text
