"""One run, shown whole: its settings with defaults, every number with its counts, the machine, and how to compute it
again. It answers where a number of a table comes from."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from functools import cache
from pathlib import Path

import pandas

from sparserobust import paths, studies
from sparserobust.config import Measurement, Run
from sparserobust.errors import UserError, quoted
from sparserobust.provenance import processor
from sparserobust.reporting.estimates import binomial_interval
from sparserobust.running import records, scales
from sparserobust.running.store import Store
from sparserobust.settings import Settings, unknown


@cache
def asked(scale: str) -> dict[str, list[dict]]:
    """The runs that a scale asks for, and those that they begin with, by identity: the `run`, and each `study` that has
    it in its grid with `labels` and `tables` (neither of them for one that others begin with)."""
    found: dict[str, list[dict]] = {}
    for study, experiment in studies.experiments(scale).items():
        tables = {name: {row["run"].identity for row in rows} for name, rows in experiment.tables.items()}
        for row in experiment.grid:
            labels = {name: value for name, value in row.items() if name not in ("run", "measurements")}
            found.setdefault(row["run"].identity, []).append(
                {"run": row["run"], "study": study, "labels": labels, "measurements": row["measurements"],
                 "tables": [name for name, runs in tables.items() if row["run"].identity in runs]})
        for run in (run for row in experiment.grid for run in row["run"].lineage):
            found.setdefault(run.identity, [{"run": run, "study": study, "labels": {}, "measurements": {},
                                             "tables": []}])
    return found


def find(word: str, store: Store) -> Run:
    """The run whose identity begins like this: one that is stored or published, or else that a scale asks for.
    `UserError` if there is none, or more than one."""
    if not re.fullmatch("[0-9a-f]{1,12}", word):
        raise UserError(f"a run is named by the first of its twelve hexadecimal digits, not {quoted(word)}")
    known = {path.parent.name if path.name == "record.json" else path.stem: path for path in
             (*store.folder.glob(f"{word}*/record.json"), *paths.published_folder().glob(f"*/{word}*.json"))}
    if len(known) == 1:
        return Run.parse(_record(*known.values())["run"])
    wanted = {identity: rows[0]["run"] for scale in scales.names() if not known
              for identity, rows in asked(scale).items() if identity.startswith(word)}
    if not known and len(wanted) == 1:
        return next(iter(wanted.values()))
    several = sorted(known or wanted)
    raise UserError(f"{len(several)} runs begin with {word}: {', '.join(several[:5])}{', ...' if several[5:] else ''}"
                    if several else f"no run begins with {word}, neither stored nor published nor asked for by a scale")


def _record(path: Path) -> dict:
    if path.name == "record.json":
        return records.read(path, path.parent.name)
    if entry := records.published(path):
        return entry["record"]
    raise UserError(f"{path} is of another version: restore it with git checkout -- {path}")


def chosen(scale: str, study: str, labels: Mapping[str, str]) -> dict[str, dict]:
    """The runs of a study with these labels, by identity, each with all its labels. `UserError` if there is none."""
    experiments = studies.experiments(scale)
    if study not in experiments:
        unknown("study", study, f"scale {scale}", experiments)
    grid = experiments[study].grid
    scales.checked([labels], grid, f"{study} at scale {scale}")
    found = {row["run"].identity: {name: value for name, value in row.items() if name != "measurements"}
             for row in grid if all(str(row.get(name)) == value for name, value in labels.items())}
    if not found:
        raise UserError(f"{study} at scale {scale} has no run with all of these labels")
    return found


def listed(found: dict[str, dict]) -> str:
    """Several runs as a table: identities and labels."""
    return pandas.DataFrame([{**row, "run": identity} for identity, row in found.items()]).to_string(
        index=False, na_rep="")


# -------------------------------------------------------------------------------------------------------- in lines


def told(run: Run, store: Store, again: Store | None = None) -> Iterator[str]:
    """All that is known of a run, line by line. With `again`, a store of its own for which nothing published stands in,
    every number is computed anew there and stands beside."""
    entry, (scale, rows) = store.known(run), place(run, store)
    yield f"run {run.identity}"
    yield from (f"  {where(scale, row)}" for row in rows)
    yield from (f"  begins with run {needed.identity}" for needed in run.needs)
    yield "\nsettings"
    yield from (f"  {line}" for line in setting_lines(run))
    if entry is None:
        yield f"\nnot computed here yet: {command(run, scale, rows)}"
        return
    record = entry["record"]
    yield f"\ntrained on {machine(entry['provenance'])}"
    yield (f"{record['parameters']:,} parameters, weight sparsity {record['sparsity']:.2%}, channel sparsity "
           f"{record['channel_sparsity']:.2%}")
    if record["history"]:
        yield "\nhistory, by epoch"
        frame = pandas.DataFrame(record["history"])
        frame.insert(0, "epoch", frame.pop("epoch"))
        yield frame.to_string(index=False, na_rep="", float_format="{:.4g}".format)
    yield "\nnumbers, with 95 % intervals of the images"
    yield numbers(run, entry, rows, again).to_string(index=False, na_rep="")
    if again is None:
        yield f"\nall of it computed again: sparserobust show {run.identity} --again"
    yield f"with what it is part of: {command(run, scale, rows)}"


def place(run: Run, store: Store) -> tuple[str, list[dict]]:
    """The first scale that asks for a run, beginning with those at which it is published, and how (`asked`); ("", [])
    if none does."""
    published = [path.parent.name for path in store.places(run) if path.stem == run.identity]
    for scale in sorted(scales.names(), key=lambda name: name not in published):
        if rows := asked(scale).get(run.identity):
            return scale, rows
    return "", []


def where(scale: str, row: dict) -> str:
    """Which run of a study it is, in one line."""
    labels = ", ".join(f"{name} {value}" for name, value in row["labels"].items() if value not in (None, ""))
    tables = f" ({', '.join(row['tables'])})" if row["tables"] else ""
    return f"{row['study']} at scale {scale}: {labels or 'others begin with it'}{tables}"


def command(run: Run, scale: str, rows: list[dict]) -> str:
    """What computes a run with the table or figure, or else the study, that it is part of."""
    if not rows:
        return "no scale asks for it; in Python, sr.Store().train(run)"
    table = f' --table "{rows[0]["tables"][0]}"' if rows[0]["tables"] else ""
    return f"sparserobust compute --scale {scale} --study {rows[0]['study']}{table}"


def machine(provenance: dict) -> str:
    """Where and with what something was computed."""
    return (f"{processor(provenance)} ({provenance['device']}), {provenance['platform']}, Python "
            f"{provenance['python']}, torch {provenance['torch']}, commit {provenance['commit']}, in "
            f"{provenance['seconds']:.1f} s")


def setting_lines(given: Settings) -> Iterator[str]:
    """All settings, one a line, those within set in; those that nobody gave are said to be defaults. Of another run its
    identity stands here."""
    for field in fields(given):
        value = getattr(given, field.name)
        usual = "  (default)" if value == _default(field) else ""
        if isinstance(value, Settings) and not isinstance(value, Run):
            yield f"{field.name}: {value.kind}".rstrip(": ") + usual
            yield from (f"  {line}" for line in setting_lines(value))
        else:
            yield f"{field.name}: {_short(value)}{usual}"


def _default(field: Field) -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_short, value))}]"
    return f"run {value.identity}" if isinstance(value, Run) else str(value)


def numbers(run: Run, entry: dict, rows: list[dict], again: Store | None = None) -> pandas.DataFrame:
    """What was measured on a run, a line for each number, named as in the settings of the study where it asks for it:
    value, count and total with the 95 % interval of a rate, and the machine."""
    names = {identity: name for row in rows for name, m in row["measurements"].items()
             for identity, name in ((m.first_identity, f"{name}, as first taken"), (m.identity, name))}
    lines = []
    for identity, measured in entry["measured"].items():
        result, made = measured["result"], measured["provenance"]
        name = names.get(identity) or " ".join(map(str, _values(measured["measurement"])))
        measurement = Measurement.parse(measured["measurement"])
        anew = again.measure(run, measurement) if again else None
        for part, value in {"": result["value"], **result.get("parts", {})}.items():
            line = {"number": f"{name} {part}".strip(), "value": _six_digits(value)}
            if anew:
                line["again"] = _six_digits(anew["parts"][part] if part else anew["value"])
            if not part and "count" in result:
                line["count"] = f"{round(result['count'], 2):.15g} of {result['total']}"  # over trials it is a mean
                if measurement.sampled and measurement.counts_images:
                    low, high = binomial_interval(result["count"], result["total"])
                    line["interval"] = f"[{low:.4f}, {high:.4f}]"
            lines.append(line | {"computed on": made["processor"], "commit": made["commit"]})
    columns = ["number", "value", "again", "count", "interval", "computed on", "commit"]
    found = pandas.DataFrame(lines, columns=columns).sort_values("number", kind="stable")
    return found.dropna(axis="columns", how="all")


def _six_digits(value: float | None) -> str:
    return "none" if value is None else f"{value:.6g}"


def _values(plain: dict) -> Iterator[object]:
    """The kind and the other settings of a measurement, in few words."""
    for name, value in sorted(plain.items(), key=lambda pair: pair[0] != "kind"):
        if isinstance(value, dict):
            yield from _values(value)
        else:
            yield value if name == "kind" else f"{name} {value}"
