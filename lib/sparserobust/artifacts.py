"""Saving figures and tables with where they come from: files, captions, runs, data, machine, in one manifest."""

import hashlib
import html
from io import BytesIO

import pandas

from sparserobust import files, paths, tables
from sparserobust.environment import provenance
from sparserobust.errors import UserError


class Artifacts:
    """The figures and tables of one notebook at one scale, in `figures/<scale>/<notebook>/`."""

    def __init__(self, scale: str, notebook: str):
        self.folder = paths.writable(paths.figures_folder(scale, notebook))
        self.scale, self.notebook = scale, notebook
        self.entries: dict[str, dict] = {}

    def figure(self, figure, name: str, caption: str, frame: pandas.DataFrame | None = None):
        """Save a matplotlib figure as PNG. Returns what a notebook shows. `frame` names the runs it was drawn from."""
        self._add(f"{name}.png", png(figure, dpi=150), caption, frame)
        figure.set_layout_engine("none")  # laid out once: the notebook's picture need not do it again
        return Picture(figure)

    def measurements(self, frame: pandas.DataFrame) -> None:
        """Save the tidy frame behind all tables and figures, with every count, as `measurements.csv`."""
        tidy = frame.drop(columns=["where", "processor"])
        self._add("measurements.csv", tidy.to_csv(index=False, lineterminator="\n").encode(),
                  "Every measurement of every run.", frame)

    def table(self, table: pandas.DataFrame, name: str, caption: str, frame: pandas.DataFrame | None = None):
        """Save a table for people (Markdown, with its caption) and for programs (CSV); `frame` names the runs it was
        made from. Returns something a notebook shows, caption first."""
        csv = table.copy()
        if isinstance(csv.columns, pandas.MultiIndex):
            csv.columns = [" ".join(column) for column in csv.columns]
        self._add(f"{name}.csv", csv.to_csv(lineterminator="\n").encode(), caption, frame)
        self._add(f"{name}.md", f"{caption}\n\n{tables.markdown(table)}".encode(), caption, frame)
        return Captioned(table, caption)

    def finish(self) -> pandas.DataFrame:
        """Write `manifest.json`, and return what was made."""
        machine = {k: v for k, v in provenance().items() if k != "commit"}
        files.write_json(self.folder / "manifest.json", {"scale": self.scale, "notebook": self.notebook,
                                                         "drawn_on": machine, "files": self.entries})
        return pandas.DataFrame([{"file": name, "what it shows": e["caption"]} for name, e in self.entries.items()])

    def _add(self, name: str, content: bytes, caption: str, frame: pandas.DataFrame | None) -> None:
        files.write(self.folder / name, content)
        known = frame is not None
        self.entries[name] = {
            "caption": caption, "sha256": hashlib.sha256(content).hexdigest(),
            "runs": sorted(set(frame["run"])) if known else [],
            "computed_on": sorted(set(frame["processor"])) if known else []}


def png(figure, dpi: int) -> bytes:
    """A matplotlib figure as PNG with a palette of 256 colours: a third of the size, to the eye the same."""
    from PIL import Image  # comes with matplotlib

    full, small = BytesIO(), BytesIO()
    figure.savefig(full, format="png", dpi=dpi, bbox_inches="tight")
    Image.open(full).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


class Picture:
    """A figure as a notebook shows it, small enough for a page with many."""

    def __init__(self, figure):
        self.figure = figure

    def _repr_png_(self) -> bytes:
        return png(self.figure, dpi=90)

    def __repr__(self) -> str:
        return repr(self.figure)


class Captioned:
    """A table with its caption above, in a notebook and in text."""

    def __init__(self, table: pandas.DataFrame, caption: str):
        self.table, self.caption = table, caption

    def _repr_html_(self) -> str:
        with pandas.option_context("display.max_colwidth", None):
            return f"<p>{html.escape(self.caption)}</p>" + self.table.to_html(na_rep="")

    def __repr__(self) -> str:
        return f"{self.caption}\n\n{self.table.to_string()}"


def ledger(scale: str) -> pandas.DataFrame:
    """The claims of all notebooks at a scale, as they were last judged, in one table: those of each notebook's
    `claims.csv`, and which notebook it was. It is also written to `figures/<scale>/claims.csv`. `UserError` if nothing
    is judged yet."""
    folder = paths.figures_folder(scale, ".")
    found = {path.parent.name: pandas.read_csv(path) for path in sorted(folder.glob("*/claims.csv"))}
    if not found:
        raise UserError(f"no claims judged at scale '{scale}' yet: run sparserobust reproduce --scale {scale}")
    whole = pandas.concat([frame.assign(notebook=name) for name, frame in found.items()], ignore_index=True)
    whole = whole[["notebook", *whole.columns.drop("notebook")]]
    files.write(paths.writable(folder) / "claims.csv", whole.to_csv(index=False, lineterminator="\n").encode())
    return whole
