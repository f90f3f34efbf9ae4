"""Running notebooks without a browser: Papermill, made strict. Unknown parameters are errors, text is turned into the
type the notebook declares, failures end in one line, and the caller sees the progress of a long cell."""

# Strict by hand: Papermill takes unknown parameters and text in place of a list without a word.

import difflib
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sparserobust.errors import UserError
from sparserobust.paths import PROJECT, writable
from sparserobust.provenance import cores
from sparserobust.running import scales
from sparserobust.running.progress import CALLER, columns, duration, stderr

NOTEBOOKS = PROJECT / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"


def names() -> list[str]:
    """Notebooks of the project, in order."""
    return sorted(path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb"))


def find(name: str) -> Path:
    """The notebook of this name; `UserError` with the nearest known one otherwise."""
    name = Path(name).stem
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.3)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names())}"
        raise UserError(f"no notebook '{name}'; {hint}")
    return NOTEBOOKS / f"{name}.ipynb"


def run(name: str, parameters: dict[str, str], output: Path | None = None) -> Path:
    """Execute a notebook with parameters (as text, typed by the notebook's parameters cell) and return the executed
    copy, by default `build/<scale>/<name>.ipynb`. A failure is a `UserError` in one line; the copy shows where."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    notebook = find(name)
    values = typed(notebook, parameters)
    output = Path(output or PROJECT / "build" / str(values.get("scale", "quick")) / notebook.name)
    writable(output.parent)
    # of a bar that was replaced many times the executed copy keeps the last state (`coalesce_streams`)
    bar = {"desc": notebook.stem, "bar_format": "{desc}: {n} of {total} cells", "leave": False, "disable": None}
    os.environ[CALLER] = str(columns())
    try:
        papermill.execute_notebook(notebook, output, values, kernel_name="python3", cwd=NOTEBOOKS, progress_bar=bar,
                                   stderr_file=stderr(), coalesce_streams=True)
    except PapermillExecutionError as error:
        why = error.evalue if error.ename == "UserError" else f"{error.ename}: {error.evalue}"
        raise UserError(f"{notebook.name}, cell {error.cell_index}: {why}") from None
    finally:
        del os.environ[CALLER]
    return output


def typed(notebook: Path, parameters: dict[str, str]) -> dict:
    """Parameters given as text, as the types that the notebook declares: `false` is False, `[0, 1]` a list, `none`
    nothing. Unknown names and values of another type are `UserError`s."""
    import papermill
    import yaml

    declared = papermill.inspect_notebook(str(notebook))
    result = {}
    for name, text in parameters.items():
        if name not in declared:
            near = difflib.get_close_matches(name, declared, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(declared)}"
            raise UserError(f"{notebook.name} has no parameter '{name}'; {hint}")
        wanted = declared[name]["inferred_type_name"]
        value = text if wanted == "str" else yaml.safe_load(text)
        if value is not None and type(value).__name__ != wanted:
            raise UserError(f"parameter '{name}' of {notebook.name} should be of type {wanted}, not {text!r}")
        result[name] = value
    return result


def refresh(name: str) -> Path:
    """Execute a notebook at its defaults and write the result over the committed one, without what differs from run to
    run (times, paths, progress) and without widgets."""
    import nbformat

    executed = run(name, {})
    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata = {key: notebook.metadata[key] for key in ("kernelspec", "language_info")}
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":  # a widget needs its kernel: a page without one has the picture beside it
            cell.outputs = [output for output in cell.outputs
                            if WIDGET not in output.get("data", {}) and output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            output.get("metadata", {}).clear()
            if "text" in output:
                output["text"] = re.sub(rf"{re.escape(str(PROJECT))}/?", "", output["text"])
    nbformat.write(notebook, find(name))
    return find(name)


def compute(chosen: list[str], scale: str, all_of_it: bool = True) -> None:
    """Train and measure whatever these papers need at a scale and is not known yet, side by side, in one pool: no core
    waits while a notebook draws, or for the last run of one paper. Unless `all_of_it`, papers that only redraw at this
    scale are left out."""
    from sparserobust import studies
    from sparserobust.running import sweep
    from sparserobust.running.store import Store

    store = Store()
    sweep.compute([{"paper": name} | row for name, experiment in studies.experiments(scale).items()
                   if name in chosen and (all_of_it or not experiment.redraws(store))
                   for row in experiment.grid], {}, store)


def reproduce(chosen: list[str], scale: str) -> list[str]:
    """Compute what notebooks need, then run as many of them at a time as there are cores, telling how long it took;
    returns lines that say where to look. Those for whose paper the scale has no settings are named and left out. A
    notebook that fails leaves the others alone; `UserError` names it then."""
    begun = time.monotonic()
    paper = {name: name.split("_", 1)[1] for name in chosen}
    if missing := [name for name in chosen if not scales.has(scale, paper[name])]:
        print(f"scale {scale} has no settings for {', '.join(missing)}: left out", flush=True)
        chosen = [name for name in chosen if name not in missing]
    print(f"computing what {len(chosen)} notebooks need at scale {scale} ...", flush=True)
    compute([paper[name] for name in chosen], scale, all_of_it=False)
    print(f"computed, in {duration(time.monotonic() - begun)}", flush=True)

    def execute(name: str) -> str | None:
        done = subprocess.run([sys.executable, "-m", "sparserobust.cli", "run", name, "-p", "scale", scale],
                              stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        told = duration(time.monotonic() - begun)
        print(f"{name}: {'failed' if done.returncode else 'done'}, {told} after the start", flush=True)
        if not done.returncode:
            return None
        said = done.stderr.strip().splitlines() or [f"{name}: its process died (exit code {done.returncode})"]
        return said[-1].removeprefix("error: ")

    heaviest_first = sorted(chosen, key=lambda name: find(name).stat().st_size, reverse=True)  # they draw most
    with ThreadPoolExecutor(cores()) as pool:
        failures = [why for why in pool.map(execute, heaviest_first) if why]
    if failures:
        raise UserError("\n".join(failures))
    return [f"{name}: executed notebook build/{scale}/{name}.ipynb, figures and tables in figures/{scale}/{name}/"
            for name in chosen]
