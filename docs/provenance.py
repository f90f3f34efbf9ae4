"""Pages that say of each figure and table of a scale how it was computed: from which runs, with what settings, where,
and by which command. They are made from the manifests in `figures/` and the records in `data/published`."""

import html
import re
from functools import cache
from pathlib import Path

from docutils.nodes import make_id

from sparserobust import files, paths, showing
from sparserobust.running import records, scales

SCALE = "quick"  # at which the notebooks are committed: their figures and tables stand there
WHOLE = ("measurements", "claims")  # files of a page that are no figure or table of it


def pages() -> dict[str, str]:
    """A page for each notebook at each scale that has been drawn, and one that lists them."""
    found = {f"computed/{scale}/{folder.name}.md": page(scale, folder.name)
             for scale in scales.names() for folder in sorted(paths.figures_folder(scale, ".").glob("[0-9]*"))}
    names = "\n".join(name.removeprefix("computed/").removesuffix(".md") for name in found)
    return found | {"computed/index.md": f"""# How it was computed

A page for each notebook and scale: every figure and table with its runs, their settings, where they were computed, and
the command that computes them again. What was measured on real images (`laptop`) is shown there, too. In a terminal,
`sparserobust show RUN` says the same of one run, with every number and its counts.

```{{toctree}}
:maxdepth: 1

{names}
```
"""}


def address(scale: str, notebook: str, name: str) -> str:
    """Where a figure or table of this name stands in the book."""
    return f"computed/{scale}/{notebook}.html#{make_id(name)}"


@cache
def manifest(scale: str, notebook: str) -> dict[str, dict]:
    """What each file shows and from which runs."""
    return files.read_json(paths.figures_folder(scale, notebook) / "manifest.json")["files"]


def captions(scale: str, notebook: str) -> dict[str, str]:
    """The names of figures and tables, by their captions."""
    return {entry["caption"]: name for file, entry in manifest(scale, notebook).items()
            if (name := Path(file).stem) not in WHOLE}


def page(scale: str, notebook: str) -> str:
    """What is known of the figures and tables of a notebook at a scale."""
    study, listed, asked = notebook.split("_", 1)[1], manifest(scale, notebook), showing.asked(scale)
    runs = sorted({run for entry in listed.values() for run in entry["runs"]})
    needed = [each.identity for run in runs if run in asked for each in asked[run][0]["run"].lineage]
    parts = [f"# {notebook} at scale {scale}: how it was computed",
             f"`sparserobust run {notebook} -p scale {scale}` draws all of it, and "
             f"`sparserobust compute --scale {scale} --study {study}` trains and measures what it needs.",
             _drawn_on(scale, notebook),
             "Every number with its counts: " + _files(scale, notebook, ["measurements.csv"]) + "."]
    for name in dict.fromkeys(Path(file).stem for file in listed):
        if name not in WHOLE:
            parts += _part(scale, notebook, name)
    parts += ["## The runs", "Click on a run for the settings that are not defaults; `sparserobust show` and its name "
              "say the rest.", _table(scale, study, sorted({*runs, *needed}))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _drawn_on(scale: str, notebook: str) -> str:
    """The machine that executed the committed notebook, which its first output names."""
    if scale != SCALE:
        return ""
    text = (paths.PROJECT / "notebooks" / f"{notebook}.ipynb").read_text()
    machine = re.search(r"[^\n\"]*, torch [^\n\"]*, commit \w+\+?", text)
    return f"The page was executed on {machine[0]}." if machine else ""


def _files(scale: str, notebook: str, names: list[str]) -> str:
    folder = f"../../figures/{scale}/{notebook}"
    return ", ".join(f"[{name}]({folder}/{name})" for name in names if name in manifest(scale, notebook))


def _part(scale: str, notebook: str, name: str) -> list[str]:
    """One figure or table: what it shows, its files, its runs, and what computes these."""
    own = [file for file in manifest(scale, notebook) if Path(file).stem == name]
    entry, study = manifest(scale, notebook)[own[0]], notebook.split("_", 1)[1]
    caption = re.sub(r"([\\`*_\[\]<>#|$])", r"\\\1", entry["caption"])
    shown = []
    for file in own if scale != SCALE else []:
        if file.endswith(".png"):
            alternative = entry["caption"].replace("[", "(").replace("]", ")")
            shown.append(f"![{alternative}](../../figures/{scale}/{notebook}/{file})")
        elif file.endswith(".md"):
            table = (paths.figures_folder(scale, notebook) / file).read_text().split("\n\n", 1)[1]
            shown.append(table.strip().replace("$", "\\$"))
    links = " ".join(f'<a href="#run-{run}"><code>{run}</code></a>' for run in entry["runs"])
    runs = (f"<details><summary>{len(entry['runs'])} runs</summary><p>{links}</p></details>" if entry["runs"] else
            "No run enters: the notebook computes it by itself, or shows what others report.")
    table = _smallest(scale, study, set(entry["runs"]))
    again = f"Its runs: `sparserobust compute --scale {scale} --study {study}{table}`." if entry["runs"] else ""
    return [f"## {name}", caption, *shown, runs, f"{again} Files: {_files(scale, notebook, own)}.".strip()]


def _smallest(scale: str, study: str, runs: set[str]) -> str:
    """The option for the smallest table of a study that has all these runs; nothing if none has."""
    tables: dict[str, set[str]] = {}
    for identity, rows in showing.asked(scale).items():
        for row in rows:
            for name in row["tables"] if row["study"] == study else ():
                tables.setdefault(name, set()).add(identity)
    fitting = [name for name in sorted(tables, key=lambda name: len(tables[name])) if runs <= tables[name]]
    return f' --table "{fitting[0]}"' if fitting else ""


def _table(scale: str, study: str, runs: list[str]) -> str:
    """All runs: what each is, with what it begins, and where it was computed, as far as that is published."""
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("run", "what it is", "begins with", "computed on"))
    return (f'<div class="wide"><table class="runs"><thead><tr>{heads}</tr></thead>\n<tbody>\n'
            + "\n".join(_line(scale, study, run, set(runs)) for run in runs) + "\n</tbody></table></div>")


def _line(scale: str, study: str, identity: str, listed: set[str]) -> str:
    found = showing.asked(scale).get(identity, [])
    rows = [row for row in found if row["study"] == study] or found
    settings, labels, begins = "", "of no scale's grid", ""
    if rows:
        run = rows[0]["run"]
        given = "\n".join(line for line in showing.setting_lines(run) if not line.endswith("(default)"))
        settings = f"<pre>{html.escape(given)}</pre>"
        labels = "; ".join(", ".join(f"{name} {value}" for name, value in row["labels"].items()
                                     if value not in (None, "")) or "others begin with it" for row in rows)
        begins = " ".join(f'<a href="#run-{each.identity}"><code>{each.identity}</code></a>' if each.identity in listed
                          else f"<code>{each.identity}</code>" for each in run.needs)
    path = paths.published_folder() / scale / f"{identity}.json"
    entry = records.published(path) if path.exists() else None
    where = showing.machine(entry["provenance"]) if entry else ""
    return (f'<tr id="run-{identity}"><td><details><summary><code>{identity}</code></summary>{settings}</details></td>'
            f"<td>{html.escape(labels)}</td><td>{begins}</td><td>{html.escape(where)}</td></tr>")
