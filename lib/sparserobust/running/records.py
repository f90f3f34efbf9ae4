"""What a store and `data/published` hold as JSON, each part sealed with the hash of its content:

    record       format, identity and settings of a run, its history, counts, and the hash of its weights
    provenance   identity of the run; machine, versions, seconds
    measured     identity and settings of a measurement, the hashes of all `weights` that it was taken on, result,
                 provenance

A published file holds one record, its provenance, and what was measured, by identity.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sparserobust import files
from sparserobust.config import Measurement, Run
from sparserobust.errors import UserError

FORMAT = 1  # raised when a change of the library makes stored results wrong: they are then computed anew


def check(content: object, identity: str, what: object) -> dict:
    """A part that is as it was written, and is of the run or measurement of this identity; `files.Corrupt` otherwise.
    """
    part = files.check_seal(content, what)
    if part.get("identity") != identity:
        raise files.Corrupt(f"{what} is of another run or measurement")
    return part


def read(path: Path, identity: str) -> dict:
    """The same from a file that holds one part."""
    return check(files.read_json(path), identity, path)


def published(path: Path) -> dict | None:
    """A published file, all of whose parts were checked; None if it is of another format, `UserError` if it is
    damaged."""
    try:
        entry = files.read_json(path)
        if check(entry["record"], path.stem, path)["format"] != FORMAT:
            return None
        check(entry["provenance"], path.stem, path)
        for identity, measured in entry["measured"].items():
            check(measured, identity, path)
    except (files.Corrupt, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged, or not from this version: restore it with git checkout -- {path}"
                        ) from None
    return entry


def merged(entries: list[dict]) -> dict | None:
    """The first of several published files of a run, with the measurements that any has of the same weights; None of
    none."""
    measured: dict[str, dict] = {}
    for entry in reversed(entries):  # what comes first counts
        if entry["record"]["weights_sha256"] == entries[0]["record"]["weights_sha256"]:
            measured |= entry["measured"]
    return entries[0] | {"measured": measured} if entries else None


def of_run(run: Run, folder: Path) -> list[Path]:
    """The published files of a run, at any scale."""
    return sorted(folder.glob(f"*/{run.identity}.json"))


def of_fewer_images(measurement: Measurement, entries: Iterable[dict]) -> list[Measurement]:
    """The same measurement of fewer images, as many as one of these entries has, most images first."""
    if measurement.revision == 1 or not hasattr(measurement, "images"):
        return []
    counts = {entry["measurement"].get("images") for entry in entries} - {None}
    return [replace(measurement, images=n) for n in sorted(counts, reverse=True)
            if measurement.images is None or n < measurement.images]
