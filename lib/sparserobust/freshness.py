"""Whether executing a notebook again could change anything: a fingerprint of all that goes into it, and of what came
out, written beside the executed copy. And whether what came out is what is committed."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from sparserobust import files, paths
from sparserobust.files import short_hash
from sparserobust.provenance import git, library, machine, packages
from sparserobust.reporting import artifacts, reported
from sparserobust.running.experiment import Experiment
from sparserobust.running.store import Store

NAMED = 12  # files that did not come out as committed
DIFFERS = "differs"
DRIFT = "(what a page trains or attacks by itself has other last digits on another kind of processor)"


def inputs(page: Path, experiment: Experiment, store: Store) -> dict[str, str]:
    """A hash of each kind of input of a notebook whose only parameters are the scale of `experiment` and whether
    published records are used. Records and weights count by size and time of change, all other files by content."""
    beside = sorted(page.parent.glob("*.py"))
    imports = any(re.search(rf"\b{path.stem}\b", page.read_text(encoding="utf-8")) for path in beside)
    settings = [paths.settings_folder() / f"{name}.yaml" for name in (experiment.study, "scales")]
    return {
        "page": short_hash([page.name, files.sha256(page)]), "scale": experiment.scale,
        "modules beside it": _contents(beside if imports else []),
        "library": library(),
        "settings": _contents(settings), "reported numbers": _contents(sorted(reported.FOLDER.glob("*.yaml"))),
        "data that come along": _contents(_brought(experiment)),
        "records": short_hash([store.use_published, *sorted(_records(experiment, store))]),
        "machine": short_hash([machine(), packages()])}


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
        different = [kind for kind, value in given.items() if noted["inputs"].get(kind) != value]
        return different + ["outputs"] * (_outputs(executed, given["scale"]) != noted["outputs"])
    except (OSError, files.Corrupt, KeyError, TypeError, AttributeError):  # gone, damaged, or not what is written here
        return ["outputs"]


def _outputs(executed: Path, scale: str) -> dict[str, str]:
    """A hash of the executed copy, and, if it draws anything, of its manifests and of each file that these list."""
    folders = {"figures": paths.figures_folder(scale, executed.stem),
               "machine": paths.machine_folder(scale, executed.stem)}
    return {executed.name: files.sha256(executed)} | {
        f"{name}/{path.name}": files.sha256(path) for name, folder in folders.items() for path in _listed(folder)}


def _listed(folder: Path) -> list[Path]:
    """The manifest of a folder, if there is one, and the files that it lists."""
    manifest = folder / "manifest.json"
    return [manifest, *(folder / name for name in files.read_json(manifest)["files"])] if manifest.exists() else []


def compared(pages: list[str], scale: str) -> list[str]:
    """How many files of a scale came out byte for byte as committed, in one line; then, at most a dozen, those that
    differ, are not committed, or are committed but were not made; and what may be why. `pages` are the notebooks that
    have made files."""
    folder, committed = paths.figures_folder(scale, "."), _committed(scale)
    if not committed:
        return [f"nothing to compare with: no files of scale {scale} are known to be committed"]
    listed = [folder / name for name in artifacts.LEDGERS] + [path for page in pages for path in _listed(folder / page)]
    made = {path.relative_to(folder).as_posix(): path for path in listed if path.exists()}
    every = sorted(made.keys() | committed.keys())
    told = [f"  {name}: {why}" for name in every if (why := _unlike(made.get(name), committed.get(name)))]
    more = [f"  and {len(told) - NAMED} more"] if len(told) > NAMED else []
    reasons = [f"  {DRIFT}"] if any(line.endswith(DIFFERS) for line in told) else []
    return [f"{len(every) - len(told)} of {len(every)} files came out byte for byte as committed",
            *told[:NAMED], *more, *reasons]


def _committed(scale: str) -> dict[str, str]:
    """The committed files of a scale by git's hash of each; where git knows nothing of the project, the files that lie
    in its `figures/`, unless they have been written anew just now."""
    listed = git("ls-tree", "-r", "-z", "HEAD", "--", f"figures/{scale}/")
    if listed is not None:
        entries = [entry.split("\t") for entry in listed.split("\0") if entry]
        return {name.split("/", 2)[2]: about.split()[2] for about, name in entries}
    folder = paths.committed_figures() / scale
    if paths.figures_folder(scale, ".").resolve() == folder.resolve() or paths.PROJECT == paths.PACKAGED:  # no pictures
        return {}
    return {path.relative_to(folder).as_posix(): _blob(path) for path in folder.rglob("*") if path.is_file()}


def _unlike(made: Path | None, committed: str | None) -> str:
    """In what a file is not as committed; empty if in nothing."""
    if made is None:
        return "committed, but not made"
    if committed is None:
        return "made, but not committed"
    return "" if _blob(made, len(committed)) == committed else DIFFERS


def _blob(path: Path, digits: int = 40) -> str:
    """Git's hash of a file, of which a repository has one kind: SHA-1, or SHA-256 with 64 digits."""
    content = path.read_bytes()
    kind = "sha1" if digits == 40 else "sha256"
    return hashlib.new(kind, b"blob %d\0" % len(content) + content).hexdigest()


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
        with suppress(FileNotFoundError):
            status = path.stat()
            yield path.parts[-3:], status.st_size, status.st_mtime_ns


def _brought(experiment: Experiment) -> list[Path]:
    """Files of the repository that pages read besides: what others reach, what was tuned, networks, photographs, and
    the table that page 07 adds a row to."""
    folders = paths.networks_folder(), paths.sample_folder(), paths.tuning_file("").parent
    found = [paths.anchors_file(), *(path for folder in folders for path in sorted(folder.glob("*.*")))]
    if experiment.study == "your_network":
        found.append(paths.contest_table(experiment.scale))
    return [path for path in found if path.is_file()]


def _contents(found: Iterable[Path]) -> str:
    return short_hash([(path.name, files.sha256(path)) for path in found])
