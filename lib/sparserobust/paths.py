"""Where things lie. No other module builds a path of the project by hand."""

import os
import tempfile
from pathlib import Path

from sparserobust.errors import UserError

PROJECT = Path(os.environ.get("SPARSEROBUST_HOME") or Path(__file__).resolve().parents[2])


def data_folder() -> Path:
    """Downloaded data sets and the run store; `SPARSEROBUST_DATA` moves it."""
    return Path(os.environ.get("SPARSEROBUST_DATA") or PROJECT / "data")


def store_folder() -> Path:
    """Trained runs; `SPARSEROBUST_STORE` moves it."""
    return Path(os.environ.get("SPARSEROBUST_STORE") or data_folder() / "runs")


def published_folder() -> Path:
    """Records (no weights) that are part of the repository, one folder per scale."""
    return PROJECT / "data" / "published"


def settings_folder() -> Path:
    """What each study runs at which scale, one YAML file per study."""
    return PROJECT / "notebooks" / "settings"


def figures_folder(scale: str, notebook: str) -> Path:
    """Figures and tables of one notebook at one scale; `SPARSEROBUST_FIGURES` moves them."""
    return Path(os.environ.get("SPARSEROBUST_FIGURES") or PROJECT / "figures") / scale / notebook


def writable(folder: Path) -> Path:
    """Make `folder` if need be and return it; a folder that cannot be written is a `UserError`, before any work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()  # it has no name, so that nobody who is killed here leaves it behind
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): free it, or name another folder") from None
    return folder
