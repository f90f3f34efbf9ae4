"""Where things lie. No other module builds a path of the project by hand."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparserobust.errors import UserError

VARIABLES = tuple(f"SPARSEROBUST_{name}" for name in ("HOME", "DATA", "STORE", "BUILD", "FIGURES", "CERTIFICATES"))
PROJECT = Path(os.environ.get("SPARSEROBUST_HOME") or Path(__file__).resolve().parents[2]).absolute()


def data_folder() -> Path:
    """Downloaded data sets and the run store; `SPARSEROBUST_DATA` moves it."""
    return Path(os.environ.get("SPARSEROBUST_DATA") or PROJECT / "data")


def store_folder() -> Path:
    """Trained runs; `SPARSEROBUST_STORE` moves it."""
    return Path(os.environ.get("SPARSEROBUST_STORE") or data_folder() / "runs")


def published_folder() -> Path:
    """Records (no weights) that are part of the repository, one folder per scale."""
    return PROJECT / "data" / "published"


def networks_folder() -> Path:
    """Trained networks that are part of the repository, each with its card."""
    return PROJECT / "data" / "networks"


def sample_folder() -> Path:
    """A hundred test images that are part of the repository."""
    return PROJECT / "data" / "sample"


def settings_folder() -> Path:
    """What each study runs at which scale, one YAML file per study."""
    return PROJECT / "notebooks" / "settings"


def committed_figures() -> Path:
    """What each scale gives as it stands: part of the repository."""
    return PROJECT / "figures"


def build_folder() -> Path:
    """What is no part of the repository and can be made again: executed notebooks, figures of what is no scale as it
    stands, what differs from machine to machine; `SPARSEROBUST_BUILD` moves it."""
    return Path(os.environ.get("SPARSEROBUST_BUILD") or PROJECT / "build")


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
    return next((name for name, place in places.items() if folder.is_relative_to(place)), "")


def writable(folder: Path) -> Path:
    """Make `folder` if need be and return it; a folder that cannot be written is a `UserError`, before any work, that
    names the variable that moves it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # it has no name, so that nobody who is killed here leaves it behind
    except OSError as error:
        name = _moved_by(folder)
        how = f"name another folder with {name}" if name else "name another folder"
        raise UserError(f"cannot write to {folder} ({error.strerror}): free it, or {how}") from None
    return folder
