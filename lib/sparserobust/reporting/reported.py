"""What the five papers report, beside what merely looks like it: each number carries its kind, source and grade.

The numbers lie in `data/reported/*.yaml`; the README there explains kinds and grades. Only entries of kind `reported`
come out of `Claim.reported`, `Reported.reported_table` and `Reported.reported_row`.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from numbers import Real
from typing import Any, Self, TypeVar

import pandas

from sparserobust import yamls
from sparserobust.errors import UserError, quoted
from sparserobust.paths import reported_folder
from sparserobust.settings import Checked, located, settings

FOLDER = reported_folder()
KINDS = ("reported", "companion", "anchor", "derived", "code", "open")
GRADES = ("paper", "paper, second-hand", "code", "derived", "open")
UNITS = ("percentage points", "percent", "percent of steps downhill", "parameters", "ratio", "l2 distance", "l2 norm")
DIRECTIONS = ("increase", "decrease", "no worse")


@settings
class Citation(Checked):
    """What a paper is and where it appeared; `code` and the like name repositories, None where there is none."""

    title: str
    authors: tuple[str, ...]
    authors_journal: tuple[str, ...] = ()
    year: int
    year_journal: int | None = None
    arxiv: str | None = None
    doi: str | None = None
    venue: str | None = None
    venue_not_checked: str | None = None
    version: str | None = None
    code: str | tuple[str, ...] | None = None
    code_version: str | None = None
    companion: "Citation | None" = None
    related_code_same_group: tuple[str, ...] = ()


@settings
class Claim(Checked):
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

    @classmethod
    def parse(cls, plain: Mapping) -> Self:
        """As elsewhere, but a number is no text: what is on record is copied, never computed."""
        operands = plain.get("operands") if isinstance(plain, Mapping) else None
        numbers = [plain.get("value"), plain.get("margin")] if isinstance(plain, Mapping) else []
        for number in [*numbers, *(operands.values() if isinstance(operands, Mapping) else ())]:
            if isinstance(number, str):
                raise UserError(f"{number!r} is not a number but text")
        return super().parse(plain)

    @property
    def reported(self) -> float | None:
        """The paper's own number in `unit`, else None."""
        return self.value if self.kind == "reported" else None


@settings
class Line(Checked):
    """One line of a paper's ledger: the claim (by its id) in words, and the name of its primary comparison among the
    rows that the study judges, named before anything is measured; it may have holes such as `{level}`."""

    id: str
    claim: str
    words: str
    primary: str


@settings
class Table(Checked):
    """One table: each of `rows` is as long as `columns`, None where a cell is empty. Numbers are in
    `unit` (None: each column has its own); `approximate` means read off a picture."""

    id: str
    caption: str
    kind: str
    grade: str
    source: str | None
    unit: str | None
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float | None, ...], ...]
    notes: tuple[str, ...]
    approximate: bool = False
    companion: bool = False
    anchor: bool = False

    def frame(self) -> pandas.DataFrame:
        """The rows as a fresh DataFrame, whatever the kind."""
        return pandas.DataFrame(list(self.rows), columns=list(self.columns))


@dataclass(frozen=True)
class Reported:
    """Everything on record for one paper; `claims` and `tables` are keyed by id, `hyperparameters` by section, and
    each section has a `kind` of its own."""

    paper: str
    citation: Citation
    metrics: dict[str, str]
    claims: dict[str, Claim]
    tables: dict[str, Table]
    hyperparameters: dict[str, dict]
    ledger: tuple[Line, ...] = ()
    answer: str = ""  # to the question that all papers share, in short

    @property
    def short(self) -> str:
        """What the paper is called in a sentence, such as `Guo et al. 2018`."""
        return f"{self.citation.authors[0].split()[-1]} et al. {self.citation.year}"

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
    return _from_text(paper, yamls.text(path))


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


@settings
class _Sections(Checked):
    """A file, its entries unread."""

    paper: str  # as the file is called
    answer: str = ""
    citation: Citation
    metrics: dict[str, str] = field(default_factory=dict)
    claims: tuple[Any, ...]
    ledger: tuple[Any, ...]
    tables: tuple[Any, ...]
    hyperparameters: dict[str, dict[str, Any]]

    @classmethod
    def label(cls) -> str:
        return "sections"


@cache
def _from_text(paper: str, text: str) -> Reported:
    file = f"{paper}.yaml"
    content = yamls.parsed(text, file)
    with located(file):
        sections = _Sections.parse(content)
        if sections.paper != paper:
            raise UserError(f"this is the file of paper {quoted(sections.paper)}: restore the right one with git "
                            f"checkout -- {file}")
        for name, section in sections.hyperparameters.items():
            with located(f"hyperparameters, {name}"):
                _one_of("kind", section.get("kind"), KINDS)
    claims = _entries(file, Claim, "claim {}", sections.claims)
    tables = _entries(file, Table, "table {}", sections.tables, claims)
    lines = _entries(file, Line, "line {} of the ledger", sections.ledger)
    if claims and not lines:
        raise UserError(f"{file}: ledger has no line, so that none of its claims would be judged")
    for line in lines.values():
        with located(f"{file}, line {line.id} of the ledger"):
            _check_line(line, claims)
    return Reported(paper, sections.citation, sections.metrics, claims, tables, sections.hyperparameters,
                    tuple(lines.values()), sections.answer)


E = TypeVar("E", Claim, Table, Line)


def _entries(file: str, form: type[E], what: str, items: tuple, others: Iterable[str] = ()) -> dict[str, E]:
    """By id. `UserError` for an entry with a mistake in it, and for an id that is used twice, or by one of the
    others."""
    found: dict[str, E] = {}
    for number, item in enumerate(items, 1):
        with located(f"{file}, {what.format(item.get('id', number) if isinstance(item, dict) else number)}"):
            entry = form.parse(item)
            if empty := [key for key, value in vars(entry).items() if value == ""]:
                raise UserError(f"{empty[0]} is empty: write null where nothing is on record")
            if entry.id in {*found, *others}:
                raise UserError(f"id {entry.id} is used twice")
            if not isinstance(entry, Line):
                _check_source(entry)
            if isinstance(entry, Claim):
                _check_claim(entry)
            elif isinstance(entry, Table):
                _check_table(entry)
            found[entry.id] = entry
    return found


def _check_source(entry: Claim | Table) -> None:
    """Whose numbers these are, and where they are from."""
    filled = bool(entry.rows) if isinstance(entry, Table) else entry.value is not None
    _one_of("kind", entry.kind, KINDS)
    _one_of("grade", entry.grade, GRADES)
    _one_of("unit", entry.unit, (*UNITS, None))
    if entry.kind == "reported" and entry.grade != "paper":
        raise UserError(f"kind reported needs grade paper, not {entry.grade!r}")
    for flag in ("companion", "anchor"):  # said twice, so that one slip cannot turn foreign numbers into the paper's
        if getattr(entry, flag) != (entry.kind == flag):
            raise UserError(f"kind is {entry.kind} but `{flag}` is {str(getattr(entry, flag)).lower()}: the two must "
                            "agree")
    if filled and not entry.source:
        raise UserError("it holds numbers but names no source")
    if filled and entry.kind == "open":
        raise UserError("kind is open but it holds numbers: set kind: reported and grade: paper if they are the "
                        "paper's")


def _check_claim(claim: Claim) -> None:
    _one_of("direction", claim.direction, (*DIRECTIONS, None))
    if (claim.direction is None) != (claim.quantity is None):
        raise UserError("quantity and direction are both on record, or neither is")
    if claim.value is not None and claim.unit is None:
        raise UserError("it holds a number but names no unit")
    if (claim.margin is None) != (claim.margin_why is None) or (claim.margin is not None and claim.margin <= 0):
        raise UserError("a margin is positive, and margin_why gives the reason for it")
    if claim.direction == "no worse" and claim.margin is None:
        raise UserError("a claim of 'no worse' needs a margin: how much worse is still no worse")
    if claim.lower_bound and claim.value is None:
        raise UserError("a lower bound needs its value")
    if claim.derived and not claim.operands:
        raise UserError("a derived value needs its two operands")
    if claim.operands:
        _check_operands(claim)


def _check_operands(claim: Claim) -> None:
    """The value is their difference, in the digits that they have (or, of a ratio, their ratio); a lower bound is not
    above that."""
    if len(claim.operands) != 2 or claim.value is None:
        raise UserError("operands are two, and value is the first minus the second")
    first, second = claim.operands.values()
    if claim.unit == "ratio":
        result, what, digits = first / second if second else math.inf, "divided by", 2
    else:
        result, what = first - second, "minus"
        digits = max(-int(Decimal(repr(operand)).as_tuple().exponent) for operand in (first, second))
    slack = 0.6 * 10**-digits
    if claim.value > result + slack or (claim.value < result - slack and not claim.lower_bound):
        raise UserError(f"value is {claim.value:g}, but {first:g} {what} {second:g} is {result:.{digits}f}")


def _check_table(table: Table) -> None:
    if not table.rows and table.kind != "open":
        raise UserError(f"a table of kind {table.kind} has rows")
    if not table.columns or len(set(table.columns)) < len(table.columns):
        raise UserError("columns need names, each one of its own")
    for number, row in enumerate(table.rows, 1):
        if len(row) != len(table.columns):
            raise UserError(f"row {number} has {len(row)} cells for {len(table.columns)} columns")


def _check_line(line: Line, claims: dict[str, Claim]) -> None:
    if line.claim not in claims:
        raise UserError(f"there is no claim {line.claim}")
    if claims[line.claim].direction is None:
        raise UserError(f"claim {line.claim} has no direction, so that nothing can be judged")
    if re.search(r"[{}]", re.sub(r"{[a-z_]+}", "", line.primary)):
        raise UserError(f"primary {line.primary!r} has a brace that is not of a hole such as {{level}}")
    if not re.match(rf"{re.escape(line.claim.split('.')[0])}\b", line.primary):
        raise UserError(f"primary {line.primary!r} is no comparison of claim {line.claim}: its name begins otherwise")


def _one_of(what: str, value: object, known: tuple) -> None:
    if value not in known:
        raise UserError(f"{what} {value!r} is none of {', '.join(str(word or 'null') for word in known)}")


def _same(cell: object, wanted: object) -> bool:
    if isinstance(cell, Real) and isinstance(wanted, Real):
        return math.isclose(cell, wanted)
    return cell == wanted
