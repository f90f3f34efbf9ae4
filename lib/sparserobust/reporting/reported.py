"""What the five papers report, beside what merely looks like it: each number carries its kind, source and grade.

The numbers lie in `data/reported/*.yaml`; the README there explains kinds and grades. Only entries of kind `reported`
come out of `Claim.reported`, `Reported.reported_table` and `Reported.reported_row`.
"""

import math
from dataclasses import dataclass, field
from functools import cache
from numbers import Real
from pathlib import Path

import pandas
import yaml

from sparserobust.errors import UserError
from sparserobust.paths import PROJECT

FOLDER = PROJECT / "data" / "reported"
KINDS = ("reported", "companion", "anchor", "derived", "code", "open")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of a paper. `value` is the number on record for `quantity`, in `unit`, whatever its kind (None: not
    on record); `direction` is increase, decrease or no worse; with `lower_bound` the paper says "at least `value`".
    With `derived`, `value` is the first of the two printed `operands` minus the second. Effects within `margin`, in
    `unit`, are no difference, for the reason that `margin_why` gives; `no worse` allows a loss of that size."""

    id: str
    statement: str
    quantity: str | None
    unit: str | None
    direction: str | None
    value: float | None
    kind: str
    grade: str
    source: str | None
    operands: dict[str, float] = field(default_factory=dict)
    note: str | None = None
    margin: float | None = None
    margin_why: str | None = None
    lower_bound: bool = False
    derived: bool = False
    companion: bool = False
    anchor: bool = False

    @property
    def reported(self) -> float | None:
        """The paper's own number in `unit`, else None."""
        return self.value if self.kind == "reported" else None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a paper's ledger: the claim (by its id) in words, and the name of its primary comparison among the
    rows that the study judges, named before anything is measured; it may have holes such as `{level}`."""

    id: str
    claim: str
    words: str
    primary: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table: `rows` is a list of lists, each as long as `columns`, None where a cell is empty. Numbers are in
    `unit` (None: each column has its own); `approximate` means read off a picture."""

    id: str
    caption: str
    kind: str
    grade: str
    source: str | None
    unit: str | None
    columns: list[str]
    rows: list[list]
    notes: list[str]
    approximate: bool = False
    companion: bool = False
    anchor: bool = False

    def frame(self) -> pandas.DataFrame:
        """The rows as a fresh DataFrame, whatever the kind."""
        return pandas.DataFrame(self.rows, columns=self.columns)


@dataclass(frozen=True)
class Reported:
    """Everything on record for one paper; `claims` and `tables` are keyed by id, `hyperparameters` by section, and
    each section has a `kind` of its own."""

    paper: str
    citation: dict
    metrics: dict[str, str]
    claims: dict[str, Claim]
    tables: dict[str, Table]
    hyperparameters: dict[str, dict]
    ledger: tuple[Line, ...] = ()
    answer: str = ""  # to the question that all papers share, in short

    @property
    def short(self) -> str:
        """What the paper is called in a sentence, such as `Guo et al. 2018`."""
        return f"{self.citation['authors'][0].split()[-1]} et al. {self.citation['year']}"

    def claim(self, claim_id: str) -> Claim:
        """One claim by id; UserError if there is none."""
        return self._entry(self.claims, "claim", claim_id)

    def reported_table(self, table_id: str) -> pandas.DataFrame:
        """The paper's own table; UserError if it is not of kind reported."""
        return self._own(table_id).frame()

    def other_table(self, table_id: str) -> tuple[str, pandas.DataFrame]:
        """A table that is not the paper's, with the heading to print over it; UserError if it is of kind reported."""
        table = self._entry(self.tables, "table", table_id)
        if table.kind == "reported":
            raise UserError(f"table {table_id} of {self.paper} is the paper's own: use reported_table('{table_id}')")
        return f"{table.kind}: {table.source or 'nothing on record'}, not this paper's numbers", table.frame()

    def reported_row(self, table_id: str, /, **match) -> dict | None:
        """The one row of the paper's own table whose columns equal `match`, as {column: cell}, or None if there is
        none. None matches an empty cell. UserError if the table is not of kind reported, if it has no such column, or
        if several rows match."""
        table = self._own(table_id)
        if unknown := match.keys() - set(table.columns):
            raise UserError(
                f"table {table_id} of {self.paper} has no column {', '.join(sorted(unknown))}: "
                f"it has {', '.join(table.columns)}"
            )
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        found = [row for row in rows if all(_same(row[column], cell) for column, cell in match.items())]
        if len(found) > 1:
            raise UserError(f"table {table_id} of {self.paper} has {len(found)} rows for {match}: name more columns")
        return found[0] if found else None

    def _own(self, table_id: str) -> Table:
        table = self._entry(self.tables, "table", table_id)
        if table.kind != "reported":
            raise UserError(
                f"table {table_id} of {self.paper} is of kind {table.kind}, not the paper's own: "
                f"use other_table('{table_id}')"
            )
        return table

    def _entry(self, entries: dict, what: str, name: str):
        if name not in entries:
            raise UserError(f"{self.paper} has no {what} {name}: it has {', '.join(entries)}")
        return entries[name]


def papers() -> list[str]:
    """Names of the papers on record, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(paper: str) -> Reported:
    """Everything on record for `paper`, read again only when its file changes; UserError for an unknown paper or for
    a file with a mistake in it."""
    if paper not in papers():
        raise UserError(
            f"no numbers on record for paper {paper!r}: data/reported has {', '.join(papers()) or 'no YAML file'}"
        )
    path = FOLDER / f"{paper}.yaml"
    return _read(path, path.stat().st_mtime_ns)


def how_to_add(paper: str, entry_id: str) -> str:
    """One line that tells a reader who has the paper where its number goes; UserError for an entry that is not a
    place for the paper's own numbers."""
    record = load(paper)
    entry = record._entry(record.claims | record.tables, "entry", entry_id)
    if entry.kind not in ("reported", "open"):
        raise UserError(f"{entry_id} of {paper} is of kind {entry.kind}: no place for the paper's own numbers")
    key = "value" if isinstance(entry, Claim) else "rows"
    return (
        f"to add {entry_id}: in data/reported/{paper}.yaml, under `id: {entry_id}`, fill `{key}`, give page or table "
        "in `source`, set `kind: reported` and `grade: paper`, then run `make test`"
    )


@cache
def _read(path: Path, _changed: int) -> Reported:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path.name} cannot be read: {' '.join(str(error).split())}") from None
    for section, shape in {"citation": dict, "claims": list, "tables": list, "hyperparameters": dict}.items():
        if not isinstance(data, dict) or not isinstance(data.get(section), shape):
            raise UserError(f"{path.name}: section {section} is missing or is not a {shape.__name__}")
    entries: dict[str, Claim | Table] = {}
    for cls, items in ((Claim, data["claims"]), (Table, data["tables"])):
        for number, item in enumerate(items, 1):
            name = item.get("id", number) if isinstance(item, dict) else number
            try:
                entry = cls(**item)
                problem = _problem(entry) or (f"id {name} is used twice" if name in entries else None)
            except TypeError as error:  # a key too many, a key missing, or a value of the wrong shape
                problem = str(error)
            if problem:
                raise UserError(f"{path.name}, {cls.__name__.lower()} {name}: {problem}")
            entries[entry.id] = entry
    return Reported(
        paper=path.stem,
        citation=data["citation"],
        metrics=data.get("metrics", {}),
        claims={name: entry for name, entry in entries.items() if isinstance(entry, Claim)},
        tables={name: entry for name, entry in entries.items() if isinstance(entry, Table)},
        hyperparameters=data["hyperparameters"],
        ledger=_lines(path, data.get("ledger", []), entries),
        answer=data.get("answer", ""),
    )


def _lines(path: Path, items: object, entries: dict[str, Claim | Table]) -> tuple[Line, ...]:
    """The lines of the ledger; `UserError` for a key too many or missing, a name used twice, a claim that is not
    there."""
    if not isinstance(items, list):
        raise UserError(f"{path.name}: section ledger is not a list")
    lines: dict[str, Line] = {}
    for number, item in enumerate(items, 1):
        try:
            line = Line(**item)
        except TypeError as error:
            raise UserError(f"{path.name}, line {number} of the ledger: {error}") from None
        if not all(isinstance(text, str) and text for text in vars(line).values()):
            raise UserError(f"{path.name}, line {number} of the ledger: id, claim, words and primary are texts")
        if line.id in lines or not isinstance(entries.get(line.claim), Claim):
            problem = "id is used twice" if line.id in lines else f"there is no claim {line.claim}"
            raise UserError(f"{path.name}, line {line.id} of the ledger: {problem}")
        lines[line.id] = line
    return tuple(lines.values())


def _problem(entry: Claim | Table) -> str | None:
    """What is wrong with an entry, in words, or None."""
    if entry.kind not in KINDS:
        return f"kind {entry.kind!r} is none of {', '.join(KINDS)}"
    if entry.kind == "reported" and entry.grade != "paper":
        return f"kind reported needs grade paper, not {entry.grade!r}"
    for flag in ("companion", "anchor"):  # said twice, so that one slip cannot turn foreign numbers into the paper's
        if getattr(entry, flag) != (entry.kind == flag):
            return f"kind is {entry.kind} but `{flag}` is {str(getattr(entry, flag)).lower()}: the two must agree"
    if isinstance(entry, Claim):
        filled = entry.value is not None
        for key in ("value", "margin"):
            number = getattr(entry, key)
            if number is not None and (isinstance(number, bool) or not isinstance(number, Real)
                                       or not math.isfinite(number)):
                return f"{key} {number!r} is not a number"
        if entry.direction not in (None, "increase", "decrease", "no worse"):
            return f"direction {entry.direction!r} is none of increase, decrease, no worse"
        if (entry.margin is None) != (not entry.margin_why) or (entry.margin is not None and entry.margin <= 0):
            return "a margin is positive, and margin_why gives the reason for it"
        if entry.direction == "no worse" and entry.margin is None:
            return "a claim of 'no worse' needs a margin: how much worse is still no worse"
    else:
        filled = bool(entry.rows)
        for number, row in enumerate(entry.rows, 1):
            if len(row) != len(entry.columns):
                return f"row {number} has {len(row)} cells for {len(entry.columns)} columns"
    if filled and not entry.source:
        return "it holds numbers but names no source"
    if filled and entry.kind == "open":
        return "kind is open but it holds numbers: set kind: reported and grade: paper if they are the paper's"
    return None


def _same(cell: object, wanted: object) -> bool:
    if isinstance(cell, Real) and isinstance(wanted, Real):
        return math.isclose(cell, wanted)
    return cell == wanted
