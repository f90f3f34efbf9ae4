"""Saving figures and tables with where they come from: files, captions, runs, and apart from these the machine."""

import base64
import hashlib
import html
import re
from collections.abc import Collection
from io import BytesIO
from pathlib import Path

import pandas

from sparserobust import files, paths
from sparserobust.errors import UserError
from sparserobust.provenance import provenance
from sparserobust.reporting import claims, reported, tables
from sparserobust.reporting.reported import Reported
from sparserobust.running import scales


class Artifacts:
    """The figures and tables of one notebook at one scale, in `paths.figures_folder`; what differs from machine to
    machine (seconds, processors) in `paths.machine_folder`, so that the former come out the same everywhere."""

    def __init__(self, scale: str, notebook: str):
        scales.check(scale)  # it becomes the name of a folder
        self.folder = paths.writable(paths.figures_folder(scale, notebook))
        self.machine_folder = paths.writable(paths.machine_folder(scale, notebook))
        self.scale, self.notebook = scale, notebook
        self.entries: dict[str, dict] = {}  # what each file shows and from which runs, as in `manifest.json`
        self.machine_entries: dict[str, dict] = {}
        self.computed_on: dict[str, list[str]] = {}  # processors, by file

    def figure(self, figure, name: str, caption: str, frame: pandas.DataFrame | None = None, machine: bool = False):
        """Save a matplotlib figure as PNG. Returns what a notebook shows: the picture with its caption underneath.
        `frame` names the runs it was drawn from. `machine`: it differs from machine to machine."""
        self._add(f"{name}.png", png(figure, dpi=150), caption, frame, machine)
        figure.set_layout_engine("none")  # laid out once: the notebook's picture need not do it again
        return Picture(figure, caption)

    def measurements(self, frame: pandas.DataFrame) -> None:
        """Save the tidy frame behind all tables and figures, with every count, as `measurements.csv`."""
        tidy = frame.drop(columns=["where", "processor", "sampled", "each"], errors="ignore")
        self._add("measurements.csv", tidy.to_csv(index=False, lineterminator="\n").encode(),
                  "Every measurement of every run.", frame)

    def table(self, table: pandas.DataFrame, name: str, caption: str, frame: pandas.DataFrame | None = None,
              folded: bool = False, machine: Collection[str] = ()):
        """Save a table for people (Markdown, with its caption) and for programs (CSV); `frame` names the runs it was
        made from. Returns something a notebook shows, caption first (`folded`: the caption alone, until it is clicked).
        `machine`: the columns that differ from machine to machine; the whole table is then saved in the other folder.
        Lines without any entry are left out, and named in the caption.
        """
        empty = (table.isna() | table.eq("")).all(axis=1)
        missing, table = table.index[empty], table[~empty]
        if table.empty:
            caption += " Nothing of this is known at this scale."
        elif len(missing):
            names = "; ".join(map(str, missing))
            caption += f" Left out, since nothing is known of it at this scale: {names}."
        left_out = f" In build/machine, since they differ from machine to machine: {'; '.join(machine)}."
        self._add_table(table.drop(columns=list(machine)), name, caption, frame, left_out if len(machine) else "")
        if len(machine):
            self._add_table(table, name, caption, frame, machine=True)
        return Captioned(table, caption, folded)

    def _add_table(self, table: pandas.DataFrame, name: str, caption: str, frame: pandas.DataFrame | None,
                   left_out: str = "", machine: bool = False) -> None:
        csv = table.copy()
        if isinstance(csv.columns, pandas.MultiIndex):
            csv.columns = [" ".join(column) for column in csv.columns]
        self._add(f"{name}.csv", csv.to_csv(lineterminator="\n").encode(), caption, frame, machine)
        text = f"{caption}{left_out}\n\n{tables.markdown(table)}"
        self._add(f"{name}.md", text.encode(), caption, frame, machine)

    def others(self, paper: Reported, table: str, index: str | list[str], note: str,
               only: Collection[str] = ()) -> "Captioned":
        """Show a table of numbers that another paper reports, none of them ours, folded, with the columns `index` in
        front; `only`: the rows that have one of these values in the first of them."""
        heading, numbers = paper.other_table(table)
        first = index if isinstance(index, str) else index[0]
        if only:
            numbers = numbers[numbers[first].isin(list(only))]
        return self.table(numbers.set_index(index), f"others_{table.lower()}",
                          f"{heading}. {note} None of these numbers is ours.", folded=True)

    def judged(self, rows: pandas.DataFrame, lines: pandas.DataFrame, frame: pandas.DataFrame, caption: str):
        """Save all comparisons (`claims.csv`) and the ledger (`ledger.csv`, with every number, and `ledger.md`), and
        return what a notebook shows of the latter; `caption` stands over it."""
        self._add("claims.csv", rows.to_csv(index=False, lineterminator="\n").encode(), "Every comparison.", frame)
        self._add("ledger.csv", lines.to_csv(index=False, lineterminator="\n").encode(), caption, frame)
        self._add("ledger.md", f"{caption}\n\n{tables.markdown(claims.table(lines))}".encode(), caption, frame)
        return Captioned(claims.short_table(lines), caption)

    def finish(self) -> pandas.DataFrame:
        """Write `manifest.json` of both folders, and return what was made."""
        page = {"scale": self.scale, "notebook": self.notebook}
        machine = {k: v for k, v in provenance().items() if k != "commit"}
        files.write_json(self.folder / "manifest.json", page | {"files": self.entries})
        files.write_json(self.machine_folder / "manifest.json", page | {
            "drawn_on": machine, "computed_on": self.computed_on, "files": self.machine_entries})
        made = self.entries | self.machine_entries
        return pandas.DataFrame([{"file": name, "what it shows": e["caption"]} for name, e in made.items()])

    def _add(self, name: str, content: bytes, caption: str, frame: pandas.DataFrame | None,
             machine: bool = False) -> None:
        folder, entries = (self.machine_folder, self.machine_entries) if machine else (self.folder, self.entries)
        files.write(folder / name, content)
        entries[name] = {"caption": caption, "sha256": hashlib.sha256(content).hexdigest(),
                         "runs": [] if frame is None else sorted(set(frame["run"]))}
        self.computed_on[name] = [] if frame is None else sorted(set(frame["processor"]))


CONTESTS = {"side_by_side": ("the five side by side", "the same network, data and budget for all"),
            "ring": ("today's baselines beside them", "the same; tuned alike on digits")}


# what the README begins with: page and line
FINDINGS = (("02_iwi", "C4"), ("02_iwi", "C6"), ("04_sparsity_theory", "C4"), ("05_tscnc", "C1"))


def told_elsewhere() -> dict[str, dict[str, str]]:
    """By file of the project, and by part of it (`claims.with_part`), what the ledgers make of it: README's findings,
    its line per notebook, how many claims have which verdict at the scales that have been judged; and every claim in
    words with its verdict on real images (`laptop`), folded. Nothing is written."""
    ledgers = {scale: _joined(scale, "ledger.csv") for scale in scales.names() if has_ledger(scale)}
    pages = sorted(path.stem for path in paths.notebooks_folder().glob("[0-9]*.ipynb"))
    papers = {page: found for page in pages if (found := paper(page))}
    counts = claims.verdict_counts(ledgers).reindex(list(papers)).fillna("")
    table = tables.markdown(pandas.DataFrame(
        [{"paper": paper, "its answer": answer, "notebook": f"[{name}](notebooks/{name}.ipynb)"}
         | counts.loc[name].to_dict() for name, (paper, answer) in papers.items()]).set_index("paper"))
    real, folded = ledgers.get("laptop", pandas.DataFrame({"notebook": []})), []
    for name, lines in real.groupby("notebook"):
        if name not in papers:
            continue
        shown = claims.table(lines)[["holds if", "reported", "ours", "unit", "seeds", "images", "verdict", "why"]]
        folded.append(f"<details><summary>{papers[name][0]}, on real images: {counts.loc[name, 'laptop']}</summary>\n\n"
                      f"{tables.markdown(shown)}\n</details>\n")
    findings = [f"- **{row['verdict']}** ({papers[row['notebook']][0]}): {claims.sentence(row)}\n"
                for row in real.to_dict("records") if (row["notebook"], row["line"]) in FINDINGS]
    return {"README.md": {"findings": "".join(findings), "ledger": table},
            "docs/results.md": {"ledger": "\n".join(folded)}}


def paper(notebook: str) -> tuple[str, str] | None:
    """The paper of a notebook and its answer, in short."""
    study = notebook.split("_", 1)[-1]
    if study not in reported.papers():
        return CONTESTS.get(study)
    record = reported.load(study)
    return record.short, record.answer


def png(figure, dpi: int) -> bytes:
    """A matplotlib figure as PNG with a palette of 256 colours: a third of the size, to the eye the same."""
    from PIL import Image  # comes with matplotlib

    full, small = BytesIO(), BytesIO()
    figure.savefig(full, format="png", dpi=dpi, bbox_inches="tight", pil_kwargs={"compress_level": 0})
    Image.open(full).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def described(picture: bytes, text: str) -> str:
    """A picture (PNG) as HTML, with its alternative text: what a screen reader says of it."""
    source = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    return f'<img alt="{html.escape(text)}" src="{source}" style="max-width: 100%">'


class Picture:
    """A figure as a notebook shows it, small enough for a page with many, with its caption underneath and as its
    alternative text. As HTML, since JupyterLab leaves out the alternative text of a PNG, and as the PNG that a stored
    page keeps."""

    def __init__(self, figure, caption: str = ""):
        self.figure, self.caption = figure, caption

    def _ipython_display_(self) -> None:
        from IPython.display import Markdown, display

        picture = png(self.figure, dpi=90)
        display({"text/html": described(picture, self.caption), "image/png": base64.b64encode(picture).decode(),
                 "text/plain": self.caption}, raw=True)
        if self.caption:
            display(Markdown(f"*{self.caption}*"))

    def __repr__(self) -> str:
        return repr(self.figure)


class Markdown:
    """Text that a cell makes, as a notebook shows it: sentences whose numbers are computed, not typed."""

    def __init__(self, text: str):
        self.text = text

    def _repr_markdown_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text


class Captioned:
    """A table with its caption above, in a notebook and in text."""

    def __init__(self, table: pandas.DataFrame, caption: str, folded: bool = False):
        self.table, self.caption, self.folded = table, caption, folded

    def _repr_html_(self) -> str:
        caption, shown = html.escape(self.caption), self.table.map(_unbroken)
        with pandas.option_context("display.max_colwidth", None):
            table = shown.to_html(na_rep="")
        return f"<details><summary>{caption}</summary>{table}</details>" if self.folded else f"<p>{caption}</p>{table}"

    def __repr__(self) -> str:
        return f"{self.caption}\n\n{self.table.to_string()}"


def _unbroken(cell):
    """Numbers with their spread stay on one line: `57.6 ± 3.4`, `+2.0 [+1.1, +2.9]`."""
    numbers = isinstance(cell, str) and re.match(r"[+-]?[\d.]+ (±|\[|→)", cell)
    return cell.replace(" ", "\u00a0") if numbers else cell


LEDGERS = ("claims.csv", "ledger.csv")  # of a notebook, and of all at a scale


def ledger(scale: str) -> pandas.DataFrame:
    """The ledger of all notebooks at a scale, as they were last judged: the lines of each notebook's `ledger.csv`, and
    which notebook it was. `UserError` if nothing is judged yet."""
    scales.check(scale)
    if not has_ledger(scale):
        raise UserError(f"no claims judged at scale '{scale}' yet: run sparserobust reproduce --scale {scale}")
    return _joined(scale, "ledger.csv")


def write_ledger(scale: str) -> None:
    """Write the ledger of all notebooks at a scale, if any is judged, to `ledger.csv` beside their folders, and all
    comparisons behind it to `claims.csv`."""
    for name in LEDGERS if has_ledger(scale) else ():
        content = _joined(scale, name).to_csv(index=False, lineterminator="\n").encode()
        files.write(paths.figures_folder(scale, ".") / name, content)


def has_ledger(scale: str) -> bool:
    """Whether any claims were judged at a scale."""
    return any(paths.figures_folder(scale, ".").glob("*/ledger.csv"))


def _joined(scale: str, name: str) -> pandas.DataFrame:
    """The tables of this name of all notebooks at a scale, in one."""
    words = {"why": "", "unit": ""}
    drawn = sorted(paths.figures_folder(scale, ".").glob(f"*/{name}"))
    found = [pandas.read_csv(_as_drawn(path), keep_default_na=False, na_values=[""], dtype=dict.fromkeys(words, "str"))
             .fillna(words).assign(notebook=path.parent.name) for path in drawn]
    for path, lines in zip(drawn, found, strict=True):
        if "threshold" not in lines:
            raise UserError(f"{path} is of an earlier version: draw it anew, with sparserobust run {path.parent.name} "
                            f"-p scale {scale}")
    whole = pandas.concat(found, ignore_index=True)
    return whole[["notebook", *whole.columns.drop("notebook")]]


def _as_drawn(path: Path) -> Path:
    """The same path. `UserError` if the file is not the one that its page's manifest lists."""
    scale, page = path.parts[-3:-1]
    try:
        listed = files.read_json(path.with_name("manifest.json"))["files"][path.name]["sha256"]
        if listed == files.sha256(path):
            return path
    except (files.Corrupt, KeyError, TypeError):
        pass
    raise UserError(f"{path} or the manifest beside it is not what was drawn: draw them anew, with sparserobust run "
                    f"{page} -p scale {scale}")
