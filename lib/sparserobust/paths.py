"""Where things lie. No other module builds a path of the project by hand.

A project's folder holds notebooks with their settings, numbers, networks and figures: a checkout, what `sparserobust
init` has written, or, for reading alone, what came along with an installed library.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparserobust.errors import UserError

VARIABLES = {  # that name folders
    "SPARSEROBUST_HOME": "the project's folder: notebooks, settings, numbers, figures",
    "SPARSEROBUST_DATA": "downloaded data sets, and the run store in them",
    "SPARSEROBUST_STORE": "trained runs (default: runs/ of the data)",
    "SPARSEROBUST_BUILD": "what is drawn and executed on the way (default: build/)",
    "SPARSEROBUST_FIGURES": "figures and tables (default: figures/, or figures/ of the build folder)",
    "SPARSEROBUST_CERTIFICATES": "who may talk to your clusters (default: ~/.config/sparserobust)",
}
DOCUMENTED = VARIABLES | {
    "SPARSEROBUST_DEVICE": "cpu, cuda, cuda:1, mps (default: the GPU if there is one)",
    "DASK_SCHEDULER_ADDRESS": "the scheduler that gets the runs, as --scheduler says it",
}
LIBRARY = Path(__file__).resolve().parent
PACKAGED = LIBRARY / "project"  # in a wheel (pyproject.toml): never written to
SCALES = Path("notebooks", "settings", "scales.yaml")  # a folder that has it is a project's
IN_CHECKOUT = (LIBRARY.parents[1] / SCALES).exists()


def _project() -> Path:
    """The folder that `SPARSEROBUST_HOME` names; or the checkout that the library lies in; or the project's folder that
    holds the working folder; or what came along."""
    if given := os.environ.get("SPARSEROBUST_HOME"):
        return Path(given).absolute()
    if IN_CHECKOUT:
        return LIBRARY.parents[1]
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / SCALES).exists()), PACKAGED)


PROJECT = _project()


def init(folder: Path) -> list[Path]:
    """Make `folder` a project's folder, by what came along with the library, and return the files that it has now more
    than before: what is there stays as it is. `UserError` in a checkout, which is one."""
    if IN_CHECKOUT:
        raise UserError(f"the library lies in a checkout, {LIBRARY.parents[1]}: work there; docs/variables.md says how "
                        "many can share it")
    writable(folder)
    missing = [path for path in (path.relative_to(PACKAGED) for path in sorted(PACKAGED.rglob("*")))
               if not (folder / path).exists()]
    for path in missing:
        if (PACKAGED / path).is_dir():
            (folder / path).mkdir()
        else:
            aside = (folder / path).with_name(f".{path.name}.part")  # so that no file is there by half
            shutil.copyfile(PACKAGED / path, aside)
            aside.replace(folder / path)
    return [folder / path for path in missing if (folder / path).is_file()]


def _users() -> Path:
    """Where this user's data go that belong to no checkout."""
    from platformdirs import user_data_path  # all but this works without

    return user_data_path("sparserobust", appauthor=False)


def data_folder() -> Path:
    """Downloaded data sets and the run store: `data` of a checkout, else in the user's data folder;
    `SPARSEROBUST_DATA` moves it."""
    return Path(os.environ.get("SPARSEROBUST_DATA") or (PROJECT / "data" if IN_CHECKOUT else _users()))


def store_folder() -> Path:
    """Trained runs; `SPARSEROBUST_STORE` moves it."""
    return Path(os.environ.get("SPARSEROBUST_STORE") or data_folder() / "runs")


def published_folder() -> Path:
    """Records (no weights) that are part of the repository, one folder per scale."""
    return PROJECT / "data" / "published"


def reported_folder() -> Path:
    """What the papers report, one YAML file per paper."""
    return PROJECT / "data" / "reported"


def anchors_file() -> Path:
    """What others reach."""
    return PROJECT / "data" / "anchors.yaml"


def tuning_file(scale: str) -> Path:
    """What each method of the ring tried at a scale."""
    return PROJECT / "data" / "tuning" / f"{scale}.csv"


def networks_folder() -> Path:
    """Trained networks that are part of the repository, each with its card."""
    return PROJECT / "data" / "networks"


def sample_folder() -> Path:
    """A hundred test images that are part of the repository."""
    return PROJECT / "data" / "sample"


def contest_table(scale: str) -> Path:
    """Table 1 of page 06 as it is committed, to which page 07 adds a row."""
    return committed_figures() / scale / "06_side_by_side" / "table1_methods.csv"


def notebooks_folder() -> Path:
    """The pages, and what lies beside them."""
    return PROJECT / "notebooks"


def settings_folder() -> Path:
    """What each study runs at which scale, one YAML file per study."""
    return notebooks_folder() / "settings"


def evidence_file() -> Path:
    """Which claims get more seeds, in order of worth."""
    return notebooks_folder() / "evidence.yaml"


def committed_figures() -> Path:
    """What each scale gives as it stands: part of the repository."""
    return PROJECT / "figures"


def build_folder() -> Path:
    """What is no part of the repository and can be made again: executed notebooks, figures of what is no scale as it
    stands, what differs from machine to machine; in a project's folder, else in the user's data folder;
    `SPARSEROBUST_BUILD` moves it."""
    return Path(os.environ.get("SPARSEROBUST_BUILD") or (_users() if PROJECT == PACKAGED else PROJECT) / "build")


def audits_folder() -> Path:
    """Pages and records of audits, and what an interrupted one has finished."""
    return build_folder() / "audits"


def figures_folder(scale: str, notebook: str) -> Path:
    """Figures and tables of one notebook at one scale, in `figures` of `build_folder()` unless `SPARSEROBUST_FIGURES`
    or `figures_in` names another place."""
    return Path(os.environ.get("SPARSEROBUST_FIGURES") or build_folder() / "figures") / scale / notebook


def machine_folder(scale: str, notebook: str) -> Path:
    """What one notebook shows at one scale that differs from machine to machine, wherever its other figures lie."""
    return build_folder() / "machine" / scale / notebook


@contextmanager
def figures_in(folder: Path | None) -> Iterator[None]:
    """Inside the block, and in kernels that are started there, figures lie in `folder`; None changes nothing."""
    before = os.environ.get("SPARSEROBUST_FIGURES")
    if folder is not None:
        os.environ["SPARSEROBUST_FIGURES"] = str(folder.absolute())
    try:
        yield
    finally:
        os.environ.pop("SPARSEROBUST_FIGURES", None)
        if before is not None:
            os.environ["SPARSEROBUST_FIGURES"] = before


def short(path: Path) -> str:
    """A path as it is told: within the project from there on."""
    return str(path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path)


def _moved_by(folder: Path) -> str:
    """The environment variable that puts another folder in its place; nothing if there is none."""
    places = {"SPARSEROBUST_FIGURES": os.environ.get("SPARSEROBUST_FIGURES") or committed_figures(),
              "SPARSEROBUST_BUILD": build_folder(), "SPARSEROBUST_STORE": store_folder(),
              "SPARSEROBUST_DATA": data_folder()}
    if folder.is_relative_to(published_folder()):
        return ""
    return next((name for name, place in places.items() if folder.is_relative_to(place)), "")


def writable(folder: Path) -> Path:
    """Make `folder` if need be and return it; a folder that cannot be written is a `UserError`, before any work, that
    names the variable that moves it; so is one of what came along with the library."""
    if folder.absolute().is_relative_to(PACKAGED):
        raise UserError("what came along with the library is not written to: sparserobust init FOLDER makes a folder "
                        "to work in; go there")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # it has no name, so that nobody who is killed here leaves it behind
    except OSError as error:
        name = _moved_by(folder)
        how = f"name another folder with {name}" if name else "name another folder"
        raise UserError(f"cannot write to {folder} ({error.strerror}): free it, or {how}") from None
    return folder
