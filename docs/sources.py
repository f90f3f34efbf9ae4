"""The sources of the book, written anew at every build: the project's pages as they are, and those made from its
records."""

import ast
import html
import importlib
import inspect
import os
import pkgutil
import re
from functools import cache
from pathlib import Path

import nbformat
from myst_parser.mdit_to_docutils.base import default_slugify  # the anchors that it gives to headings

import provenance
import sparserobust
from sparserobust import paths
from sparserobust.paths import PROJECT
from sparserobust.reporting import artifacts, claims
from sparserobust.running import scales

HOW_TO = ["own_sparsifier", "own_network", "cluster", "variables", "teaching", "glossary", "reliability"]
ALONG = ["CONTRIBUTING.md", "data/README.md", "data/reported/README.md"]


def write(source: Path) -> None:
    """All sources of the book, in the folder `source`."""
    with paths.figures_in(paths.committed_figures()):
        texts = {"index.md": home(), "results.md": results()} | reference()
        texts |= {f"docs/{name}.md": path.read_text() for name in [*HOW_TO, "results"]
                  if (path := PROJECT / "docs" / f"{name}.md").exists()}
        texts |= {name: (PROJECT / name).read_text() for name in ALONG}
        texts |= {f"notebooks/{path.name}": notebook(path) for path in notebooks()}
        texts |= provenance.pages()
        texts = {name: with_links(text, name, texts, source) for name, text in texts.items()}
    for path in source.rglob("*.*"):
        if path.suffix in (".md", ".rst", ".ipynb") and path.relative_to(source).as_posix() not in texts:
            path.unlink()
    for name, text in texts.items():
        _write_if_new(source / name, text.encode())


def _write_if_new(path: Path, content: bytes) -> None:
    """Sphinx reads again what was written again."""
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def notebooks() -> list[Path]:
    return sorted((PROJECT / "notebooks").glob("[0-9]*.ipynb"))


# ---------------------------------------------------------------------------------------------------- links


def with_links(text: str, name: str, pages, source: Path) -> str:
    """A page of this name whose links hold in the book; of a notebook those in its words."""
    if name.endswith(".md"):
        return linked(text, name, pages, source)
    if name.endswith(".ipynb"):
        page = nbformat.reads(text, as_version=4)
        for cell in page.cells:
            for words, key in _words(cell):
                words[key] = linked(words[key], name, pages, source)
        return nbformat.writes(page)
    return text


def _words(cell) -> list[tuple[dict, str]]:
    """Where a cell has Markdown, its own or made by its code, each as what holds it and by which key."""
    made = [output["data"] for output in cell.get("outputs", []) if "text/markdown" in output.get("data", {})]
    return [(cell, "source")] if cell.cell_type == "markdown" else [(data, "text/markdown") for data in made]


def linked(text: str, name: str, pages, source: Path) -> str:
    """Words with links that hold in the book. Files that are no pages come along, as pictures or to be downloaded; of
    what is none of it, such as folders, the words stay. JupyterLab names headings in its own way."""
    def link(found: re.Match) -> str:
        mark, words, target = found.groups()
        place, _, anchor = target.partition("#")
        if not place:
            return f"{mark}[{words}](#{default_slugify(anchor)})"
        file = os.path.normpath(Path(name).parent / place)
        if re.match(r"[a-z]+:", target) or file in pages:
            return found[0]
        if (shown := "/".join(["computed", *Path(file).parts[1:]]) + ".md") in pages:
            return f"{mark}[{words}]({os.path.relpath(shown, Path(name).parent)})"
        if (PROJECT / file).is_file() and not file.endswith(".md"):
            _write_if_new(source / file, (PROJECT / file).read_bytes())
            return found[0]
        return words

    return re.sub(r"(!?)\[((?:[^\[\]]|`[^`]*`)*)\]\(([^()\s]+)\)", link, text)


# --------------------------------------------------------------------------------------------- home and notebooks


def home() -> str:
    """The README, and what the book holds."""
    readme = (PROJECT / "README.md").read_text()
    papers = {path.stem: artifacts.paper(path.stem) for path in notebooks()}
    pages = [f"{stem[:2]} {found[0]} <notebooks/{stem}>" if found and stem[3:] not in artifacts.CONTESTS
             else f"notebooks/{stem}"
             for stem, found in papers.items()]
    how = [f"docs/{name}" for name in HOW_TO if (PROJECT / "docs" / f"{name}.md").exists()]
    parts = {"Start here": pages[:1], "The papers": pages[1:6], "All of them, and yours": pages[6:],
             "Results": ["docs/results", "results", "computed/index"], "How to": how,
             "Reference": ["api/index", *(name.removesuffix(".md") for name in ALONG)]}
    trees = [f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(names) + "\n```\n"
             for caption, names in parts.items()]
    return "\n".join([readme, *trees])


def notebook(path: Path) -> str:
    """A notebook for the book: what only draws is folded, each picture has its caption as alternative text."""
    page = nbformat.read(path, as_version=4)
    names = provenance.captions(provenance.SCALE, path.stem)
    cells, drawn = [], False
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cells.append(cell)
            continue
        if cell.id == "start" or (drawn and only_draws(cell.source)):
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "hide-input"]
        drawn |= cell.id == "sweep"
        cell.outputs = [each for output in cell.outputs for each in [output, *_computed(output, names, path.stem)]]
        cells += apart(cell)
    page.cells = cells
    return nbformat.writes(page)


def _computed(output, names: dict[str, str], page: str) -> list:
    """For beneath a figure's caption, or a table with its caption: a link to how that was computed."""
    shown = output.get("data", {})
    caption = re.match(r"(?:<p>|<details><summary>)(.*?)</", shown.get("text/html", ""), re.DOTALL)
    name = names.get(html.unescape(caption[1]) if caption else shown.get("text/markdown", "").strip("*"))
    if name is None:
        return []
    link = f'<a href="../{provenance.address(provenance.SCALE, page, name)}">How was this computed?</a>'
    return [nbformat.v4.new_output("display_data", {"text/html": f'<p class="computed">{link}</p>'})]


def only_draws(source: str) -> bool:
    """Whether a cell ends with the making of a figure, a table or a sentence, and invites nobody to change it."""
    last = ast.parse(source).body[-1]
    return (isinstance(last, ast.Expr) and bool(re.match(r"(out|report|artifacts)\.\w+\(", ast.unparse(last)))
            and "change me" not in source)


def apart(cell) -> list:
    """A cell as several, none of which shows more than one picture, which has its alternative text: the one that it
    came with, or else the caption beneath."""
    cells = [cell]
    outputs, cell.outputs = cell.outputs, []
    for number, output in enumerate(outputs):
        if "image/png" in output.get("data", {}):
            if any("image/png" in shown.get("data", {}) for shown in cells[-1].outputs):
                cells.append(nbformat.v4.new_code_cell("...", id=f"{cell.id}-{number}", outputs=[],  # not empty, or
                                                       metadata={"tags": ["remove-input"]}))  # it is left out
            beneath = outputs[number + 1:number + 2]
            caption = "".join(shown.get("data", {}).get("text/markdown", "") for shown in beneath).strip("*")
            alt = output.metadata.get("image/png", {}).get("alt") or output.metadata.get("alt") or caption
            cells[-1].metadata["mystnb"] = {"image": {"alt": alt}}
        cells[-1].outputs.append(output)
    return cells


# ------------------------------------------------------------------------------------------------------ results


def results() -> str:
    """The claims of all papers at all scales: one table, to be filtered where the browser has script."""
    ledgers = {scale: artifacts.ledger(scale) for scale in reversed(scales.names())  # real images first
               if any(paths.figures_folder(scale, ".").glob("*/ledger.csv"))}
    papers = {name: found[0] for path in notebooks() if (found := artifacts.paper(name := path.stem))}
    rows = [(scale, row) for scale, lines in ledgers.items() for row in lines.to_dict("records")]
    body = "\n".join(_line(scale, row, papers[row["notebook"]]) for scale, row in rows)
    heads = "".join(f'<th scope="col">{name}</th>' for name in
                    ("scale", "paper", "claim", "reported", "ours", "seeds", "images", "verdict", "why"))
    return f"""---
html_theme.sidebar_secondary.remove: true
---
# Every claim

Every claim is judged by one comparison that was named beforehand, on real images (`laptop`) and on small ones that
need no download (`quick`, `digits`). *Ours* has its 95 % interval. *Holds* and *does not hold*: the 95 % interval lies
on one side. *No difference*: the 90 % interval lies inside a margin that was declared beforehand. *Open*: neither.
*Not tested*: one seed, a collapsed network, or nothing to judge by.

<div class="wide">
<table class="ledger"><thead><tr>{heads}</tr></thead>
<tbody>
{body}
</tbody></table>
</div>
"""


def _line(scale: str, row: dict, paper: str) -> str:
    """A line of the table: `short_table` has the words."""
    places, unit = claims.digits(row["unit"]), row["unit"]
    ours = f"{claims.effect(row, places)} {unit}" if row["n_seeds"] else ""
    page = row["notebook"]
    where = (f"notebooks/{page}.html#{_anchor_of_claims(page)}" if scale == provenance.SCALE
             else provenance.address(scale, page, "ledger"))
    cells = [scale, f'<a href="{where}">{html.escape(paper)}</a>', html.escape(row["words"]),
             claims.number(row["reported"], places), html.escape(ours), row["n_seeds"] or "",
             f"{row['images']:,}" if row["images"] else "", row["verdict"], html.escape(row["why"])]
    data = " ".join(f'data-{key}="{html.escape(value)}"' for key, value in
                    {"scale": scale, "paper": paper, "verdict": row["verdict"]}.items())
    return f"<tr {data}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


@cache
def _anchor_of_claims(page: str) -> str:
    """Of the heading under which a notebook has its claims."""
    cells = nbformat.read(PROJECT / "notebooks" / f"{page}.ipynb", as_version=4).cells
    heading = re.search(r"^## (Claims.*)$", "\n".join(cell.source for cell in cells), re.MULTILINE)
    return default_slugify(heading[1]) if heading else ""


# ---------------------------------------------------------------------------------------------------- reference


LEFT_OUT = {"studies", "cli", "preloaded"}  # of one paper each; documented by --help; for forked processes only


def modules(package: str = "sparserobust") -> list[str]:
    """The modules of a package, the package first."""
    found = importlib.import_module(package)
    return [package, *(name for m in pkgutil.iter_modules(getattr(found, "__path__", []), f"{package}.")
                       for name in modules(m.name) if not m.name.rsplit(".")[-1].startswith("_"))]


def reference() -> dict[str, str]:
    """A page for each module and package of the library; what is `sparserobust.*` stands on the first."""
    tops = [m.name for m in pkgutil.iter_modules(sparserobust.__path__) if m.name not in LEFT_OUT]
    offered = [name for name in tops if name in sparserobust.__all__]
    others = [name for name in tops if name not in offered]
    trees = [f".. toctree::\n   :maxdepth: 1\n   :caption: {caption}\n\n" + "".join(f"   {name}\n" for name in names)
             for caption, names in (("In sparserobust", offered), ("Beneath", others))]
    first = [_heading("Reference", "="), ".. automodule:: sparserobust\n   :members:\n   :imported-members:\n", *trees]
    texts = {"api/index.rst": "\n".join(first)}
    for top in tops:
        parts, known = [_heading(f"sparserobust.{top}", "=")], set(sparserobust.__all__)
        for name in modules(f"sparserobust.{top}"):
            if parts[1:]:
                parts.append(_heading(name, "-"))
            parts.append(_automodule(name, known))
            known |= set(getattr(importlib.import_module(name), "__all__", []))
        texts[f"api/{top}.rst"] = "\n".join(parts)
    return texts


def _automodule(name: str, known: set[str]) -> str:
    """What a module has that is not `known` from elsewhere."""
    module = importlib.import_module(name)
    package, _, last = name.rpartition(".")
    if not inspect.ismodule(getattr(importlib.import_module(package), last)):  # the package has a function of that name
        own = [each for each, thing in vars(module).items()
               if getattr(thing, "__module__", "") == name and not each.startswith("_") and each not in known]
        kinds = {each: "class" if inspect.isclass(getattr(module, each)) else "function" for each in own}
        return "\n".join(f".. auto{kind}:: {name}.{each}\n" for each, kind in kinds.items())
    return (f".. automodule:: {name}\n   :members:\n   :show-inheritance:\n"
            f"   :exclude-members: {', '.join(sorted(known))}\n"
            + ("   :imported-members:\n" if hasattr(module, "__all__") else ""))


def _heading(text: str, rule: str) -> str:
    return f"{text}\n{rule * len(text)}\n"
