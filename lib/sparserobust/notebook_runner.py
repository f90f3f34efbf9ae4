"""Running notebooks without a browser: Papermill, made strict. Unknown parameters are errors, text is turned into the
type the notebook declares, failures end in one line, and the caller sees the progress of a long cell."""

# Strict by hand: Papermill takes unknown parameters and text in place of a list without a word.

import difflib
import os
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event, Lock
from typing import TYPE_CHECKING

from tqdm import tqdm

from sparserobust import files, parameters
from sparserobust.errors import UserError, quoted
from sparserobust.files import one_line
from sparserobust.paths import PROJECT, build_folder, figures_folder, notebooks_folder, short, writable
from sparserobust.provenance import cores
from sparserobust.running import scales
from sparserobust.running.progress import CALLER, columns, duration, stderr

if TYPE_CHECKING:
    from sparserobust.running.experiment import Experiment
    from sparserobust.running.jobs import Task
    from sparserobust.running.store import Store

NOTEBOOKS = notebooks_folder()
WIDGET = "application/vnd.jupyter.widget-view+json"


def names() -> list[str]:
    """Notebooks of the project, in order."""
    return sorted(path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb"))


def find(name: str) -> Path:
    """The notebook of this name, number or study (`01_fk_resnet`, `01`, `fk_resnet`), or of this path. `UserError` for
    a name that is not known, with the nearest one that is, and for a notebook that lies elsewhere."""
    given = Path(name)
    stem = given.name.removesuffix(".ipynb")
    if stem == name:
        stem = next((page for page in names() if name in page.split("_", 1)), name)
    if stem not in names():
        near = difflib.get_close_matches(stem, names(), n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names())}"
        raise UserError(f"no notebook {quoted(name)}; {hint}")
    page = NOTEBOOKS / f"{stem}.ipynb"
    is_path = name != given.name or (given.suffix and given.exists())
    if is_path and given.with_name(page.name).resolve() != page.resolve():
        raise UserError(f"{quoted(name)} is not this project's page {page}: say {stem} to run that, or open the other "
                        "in JupyterLab")
    return page


def run(name: str, given: dict[str, str], output: Path | str | None = None, shown: bool = True) -> Path:
    """Execute a notebook with parameters (as text, typed by the notebook's parameters cell) and return the executed
    copy, by default `<scale>/<name>.ipynb` in the build folder. A failure is a `UserError` in one line; the copy shows
    where. Unless its progress is `shown`, several may run in one process."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    from sparserobust import kernels

    notebook = find(name)
    values = typed(notebook, given)
    output = _free(copy_of(notebook.stem, values.get("scale", "quick")) if output is None else Path(output))
    growing = output.with_name(f".{output.name}")  # an earlier copy stays until this one is through
    with one_line(growing):
        growing.open("wb").close()
    # of a bar that was replaced many times the executed copy keeps the last state (`coalesce_streams`)
    bar = {"desc": notebook.stem, "bar_format": "{desc}: {n} of {total} cells", "leave": False, "disable": None}
    how = {"progress_bar": bar, "stderr_file": stderr()} if shown else {
        "progress_bar": False, "request_save_on_cell_execute": False}
    if shown:
        os.environ[CALLER] = str(columns())
    failure = None
    try:
        papermill.execute_notebook(*map(_literal, (notebook, growing)), values, kernel_name="python3",
                                   kernel_manager_class=kernels.Manager, coalesce_streams=True,
                                   resources={"metadata": {"path": str(NOTEBOOKS)}}, **how)
    except PapermillExecutionError as error:
        why = error.evalue if error.ename == "UserError" else f"{error.ename}: {error.evalue}"
        failure = f"{notebook.name}, cell {error.cell_index}: {why}"
    except DeadKernelError:
        failure = f"{notebook.name}: its kernel died; was memory short?"
    finally:
        if shown:
            del os.environ[CALLER]
    growing.replace(output)
    if failure:
        raise UserError(failure)
    return output


def _free(output: Path) -> Path:
    """The same path, where an executed copy may be written. `UserError` if it is a folder, no notebook by its name, or
    a page of the project."""
    if output.suffix != ".ipynb" or output.is_dir():
        raise UserError(f"the executed copy cannot be {quoted(str(output))}: name a file that ends in .ipynb")
    writable(output.parent)
    if output.resolve().parent == NOTEBOOKS.resolve():
        raise UserError(f"the executed copy cannot be {output}, among the project's pages: name a file elsewhere")
    return output


def _literal(path: Path) -> str:
    """A path for Papermill, which takes what stands in braces for the name of a parameter."""
    return str(path).replace("{", "{{").replace("}", "}}")


def copy_of(name: str, scale: str) -> Path:
    """Where the executed copy of a notebook goes."""
    return build_folder() / scale / f"{name}.ipynb"


def typed(notebook: Path, given: dict[str, str]) -> dict:
    """Parameters given as text, as the types that the notebook declares. Unknown names, values of another type and
    values that make no sense are `UserError`s."""
    import nbformat

    source = next((cell.source for cell in nbformat.read(notebook, as_version=4).cells
                   if "parameters" in cell.metadata.get("tags", [])), "")
    return parameters.fitted(given, parameters.declared(source), notebook.name)


def refresh(name: str) -> Path:
    """Execute a notebook at its defaults and write the result over the committed one, without what differs from run to
    run (times, paths, progress), without widgets, and with each picture once: as PNG, which every viewer shows."""
    import nbformat

    from sparserobust import kernels

    writable(find(name).parent)
    kernels.fork()
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
            if "image/png" in output.get("data", {}) and output.data.pop("text/html", None):
                output.metadata["image/png"] = {"alt": output.data["text/plain"]}
            if "text" in output:
                output["text"] = re.sub(rf"{re.escape(str(PROJECT))}/?", "", output["text"])
    files.write(find(name), (nbformat.writes(notebook) + "\n").encode())
    return find(name)


def reproduce(chosen: list[str], scale: str, redraw: bool = False, fresh: bool = False) -> list[str]:
    """Compute what notebooks need, the cheapest first, and execute each as soon as its own runs are there, as many at a
    time as there are cores, telling how long it took; returns lines that say where to look. Published records stand in
    for computing unless it is to be `fresh`. A notebook with nothing new since the last time is executed only with
    `redraw`. Those for whose paper the scale has no settings are named and left out. What fails leaves the others
    alone; `UserError` names it then."""
    from sparserobust import kernels, studies
    from sparserobust.running import sweep
    from sparserobust.running.jobs import tasks
    from sparserobust.running.store import Store

    scales.check(scale)
    begun, store = time.monotonic(), Store(use_published=not fresh)
    paper = {name: name.split("_", 1)[1] for name in chosen}
    if missing := [name for name in chosen if not scales.has(scale, paper[name])]:
        _tell(f"scale {scale} has no settings for {', '.join(missing)}: left out")
        chosen = [name for name in chosen if name not in missing]
    found = studies.experiments(scale)
    experiments = {name: found[paper[name]] for name in chosen}
    grids = {name: [] if each.redraws(store) else [{"paper": paper[name]} | row for row in each.grid]
             for name, each in experiments.items()}
    jobs = {name: sweep.missing(grid, {}, store) for name, grid in grids.items()}
    waits_for = {name: {job["run"].identity for job in jobs[name]} for name in chosen}
    order = cheapest_first({name: tasks(jobs[name], store) for name in chosen})
    runs = len(set().union(*waits_for.values()))
    _tell(f"{len(chosen)} notebooks at scale {scale}, {runs} runs to compute ...")
    if redraw or runs:
        kernels.fork()  # what they need is imported meanwhile

    pool, changing, interrupted = ThreadPoolExecutor(cores()), Lock(), Event()
    futures: dict[str, Future] = {}

    def execute(name: str) -> str | None:
        why = None
        try:
            done = _execute(name, experiments[name], store, redraw)
        except UserError as error:
            done, why = "failed", str(error)
        if not interrupted.is_set():
            _tell(f"{name}: {done}, {duration(time.monotonic() - begun)} after the start")
        return why

    def finished(identity: str = "") -> None:
        with changing:
            for name in order:
                waits_for[name].discard(identity)
                if not waits_for[name] and name not in futures:
                    futures[name] = pool.submit(execute, name)

    failures = []
    try:
        finished()  # some need nothing
        try:
            sweep.compute_all([grids[name] for name in order], {}, store, finished=finished)
            if runs:
                _tell(f"computed, in {duration(time.monotonic() - begun)}")
        except UserError as error:
            failures.append(str(error))
        failures += [f"{name}: not executed, {len(waits_for[name])} of its runs failed"
                     for name in order if name not in futures]
        failures += [why for future in futures.values() if (why := future.result())]
    except BaseException:  # an interrupt: threads cannot be killed, but what they wait for
        interrupted.set()
        pool.shutdown(wait=False, cancel_futures=True)
        kernels.kill()
        raise
    if failures:
        raise UserError("\n".join(failures))
    return [f"{name}: executed notebook {short(copy_of(name, scale))}, figures and tables in "
            f"{short(figures_folder(scale, name))}/" for name in chosen]


def cheapest_first(tasks: "dict[str, list[Task]]") -> list[str]:
    """Notebooks in the order in which they are worked on, from the tasks that each needs: always the one whose tasks
    cost least, without those that an earlier one needs, too. Of several that need nothing the largest, which draws
    most."""
    order: list[str] = []
    shared: set[str] = set()
    while len(order) < len(tasks):
        costs = {name: sum(task.cost for task in needed if task.key not in shared)
                 for name, needed in tasks.items() if name not in order}
        order.append(min(costs, key=lambda name: (costs[name], -find(name).stat().st_size)))
        shared |= {task.key for task in tasks[order[-1]]}
    return order


def _execute(name: str, experiment: "Experiment", store: "Store", redraw: bool) -> str:
    """Execute a notebook at the scale of its experiment unless nothing has changed; returns "done" or "unchanged"."""
    from sparserobust import freshness, kernels

    copy, given = copy_of(name, experiment.scale), freshness.inputs(find(name), experiment, store)
    if not redraw and not freshness.changed(copy, given):
        return "unchanged"
    kernels.fork()
    freshness.forget(copy)
    fresh = {} if store.use_published else {"use_published": "false"}
    run(name, {"scale": experiment.scale} | fresh, copy, shown=False)
    freshness.note(copy, given)
    return "done"


def _tell(line: str) -> None:
    """Print a line, above the bar if one is shown."""
    with tqdm.external_write_mode():
        print(line, flush=True)
