"""Whether executing a notebook again could change anything: a fingerprint of all that goes into it, and of what came
out, written beside the executed copy."""

import hashlib
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from sparserobust import files, paths
from sparserobust.provenance import provenance
from sparserobust.reporting import reported
from sparserobust.running.experiment import Experiment
from sparserobust.running.store import Store

LIBRARY = Path(__file__).parent


def inputs(page: Path, experiment: Experiment, store: Store) -> dict[str, str]:
    """A hash of each kind of input of a notebook whose only parameter is the scale of `experiment`. Records and weights
    count by size and time of change, all other files by content."""
    beside = sorted(page.parent.glob("*.py"))
    imports = any(re.search(rf"\b{path.stem}\b", page.read_text()) for path in beside)
    settings = [paths.settings_folder() / f"{name}.yaml" for name in (experiment.study, "scales")]
    machine = {key: value for key, value in provenance().items() if key != "commit"}
    packages = sorted(path.name for folder in sys.path for path in Path(folder).glob("*.dist-info"))
    return {
        "page": _hash([page.name, files.sha256(page)]), "scale": experiment.scale,
        "modules beside it": _contents(beside if imports else []),
        "library": _contents(sorted(LIBRARY.rglob("*.py"))),
        "settings": _contents(settings), "reported numbers": _contents(sorted(reported.FOLDER.glob("*.yaml"))),
        "records": _hash(sorted(_records(experiment, store))), "machine": _hash([machine, packages])}


def note(executed: Path, given: dict[str, str]) -> None:
    """Write down from which inputs a notebook was executed just now, and what came out."""
    files.write_json(_beside(executed), {"inputs": given, "outputs": _outputs(executed, given["scale"])})


def forget(executed: Path) -> None:
    """From now on the copy does not count as executed."""
    _beside(executed).unlink(missing_ok=True)


def changed(executed: Path, given: dict[str, str]) -> list[str]:
    """The kinds of inputs that differ from those of the executed copy, and "outputs" if that or what was drawn is not
    what was noted; nothing if executing it again would change nothing."""
    try:
        noted = files.read_json(_beside(executed))
        made = _outputs(executed, given["scale"])
    except (OSError, files.Corrupt):
        return ["outputs"]
    different = [kind for kind, value in given.items() if noted["inputs"].get(kind) != value]
    return different + ["outputs"] * (made != noted["outputs"])


def _outputs(executed: Path, scale: str) -> dict[str, str]:
    """A hash of the executed copy, and, if it draws anything, of the manifest of its figures and of each file that this
    lists."""
    manifest, found = paths.figures_folder(scale, executed.stem) / "manifest.json", [executed]
    if manifest.exists():
        found += [manifest, *(manifest.with_name(name) for name in files.read_json(manifest)["files"])]
    return {path.name: files.sha256(path) for path in found}


def _beside(executed: Path) -> Path:
    return executed.with_suffix(".json")


def _records(experiment: Experiment, store: Store) -> Iterator[tuple]:
    """Each file of records, measurements and weights that the notebook may read, with its size and time of change."""
    wanted: set[Path] = set()
    for row in experiment.grid:
        measurements = row["measurements"].values()
        wanted.update(store.places(row["run"], measurements))
        for end in (row["run"], *(other for m in measurements for other in m.required_runs)):
            wanted.update(path for run in end.lineage for path in store.places(run))
    for path in wanted:
        if path.exists():
            status = path.stat()
            yield path.parts[-3:], status.st_size, status.st_mtime_ns


def _contents(found: Iterable[Path]) -> str:
    return _hash([(path.name, files.sha256(path)) for path in found])


def _hash(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]
