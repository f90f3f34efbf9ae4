"""Links from the pages to the glossary.

    python docs/glossary.py

links every term of `glossary.md` where a page first uses it, and changes nothing else. A page whose links are right
stays as it is.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat

from sparserobust import notebook_runner

GLOSSARY = Path(__file__).with_name("glossary.md")
LINK = "../docs/glossary.md#"  # as the pages write it
NOT_PROSE = re.compile(r"""
    ```.*?``` | `[^`]+`             # code
  | \$\$.*?\$\$ | \$[^$]+\$         # formulas
  | ^\#[^\n]*                       # headings
  | !?\[[^]]*\]\([^)]*\)            # links and pictures
  | <summary>.*?</summary> | </?\w[^>]*>
  | (?:^[^\n]+\n)*^[^\n]*\]\(https://(?:arxiv|doi)\.org[^\n]*(?:\n[^\n]+)*  # paragraphs that cite a paper
""", re.VERBOSE | re.DOTALL | re.MULTILINE)
FOLDED = re.compile(r"<details>.*?</details>", re.DOTALL)


def entries() -> dict[str, str]:
    """Each term to what stands beneath its heading."""
    parts = re.split(r"^##+ (.+)\n", GLOSSARY.read_text(), flags=re.MULTILINE)
    return {term: text.strip() for term, text in zip(parts[1::2], parts[2::2], strict=True) if text.strip()}


def anchor(term: str) -> str:
    """Where a link to a heading of a Markdown file leads."""
    return re.sub(r"[^\w-]", "", term.lower().replace(" ", "-"))


def forms() -> dict[str, str]:
    """Each form of each term, at the beginning of a sentence and in the plural too, to the term's anchor."""
    found: dict[str, str] = {}
    for term, text in entries().items():
        also = re.match(r"\*Also: (.*?)\.\*", text, re.DOTALL)
        for form in [term, *(re.split(r",\s+", also[1]) if also else ())]:
            for one in (form, form[0].upper() + form[1:]):
                found |= dict.fromkeys((one, one + "s"), anchor(term))
    return found


def linked(cells: list[str]) -> list[str]:
    """The Markdown cells of a page, with each term linked at its first use: in headings, code, formulas and citations
    nowhere, in what is folded only if it is used nowhere else."""
    known = forms()
    words = [re.escape(form).replace(r"\ ", r"\s+") for form in sorted(known, key=len, reverse=True)]
    use = re.compile(rf"(?<![\w-])({'|'.join(words)})(?:-?\d+)?(?![\w-])")
    cells = [re.sub(rf"\[([^]]*)\]\({re.escape(LINK)}[\w-]*\)", r"\1", cell) for cell in cells]
    first: dict[str, tuple[int, re.Match]] = {}
    for texts in ([_blank(FOLDED, cell) for cell in cells], cells):
        for number, text in enumerate(texts):
            for match in use.finditer(_blank(NOT_PROSE, text)):
                first.setdefault(known[" ".join(match[1].split())], (number, match))
    for target, (number, match) in sorted(first.items(), key=lambda found: -found[1][1].start()):
        before, after = cells[number][:match.start()], cells[number][match.end():]
        cells[number] = f"{before}[{cells[number][match.start():match.end()]}]({LINK}{target}){after}"
    return cells


def _blank(pattern: re.Pattern, text: str) -> str:
    """The text with as many blanks in place of what matches, so that all else stays where it is."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def pages() -> Iterator[tuple[Path, nbformat.NotebookNode, list]]:
    """The path, the notebook and the Markdown cells of each page."""
    for path in map(notebook_runner.find, notebook_runner.names()):
        notebook = nbformat.read(path, as_version=4)
        yield path, notebook, [cell for cell in notebook.cells if cell.cell_type == "markdown"]


if __name__ == "__main__":
    for path, notebook, cells in pages():
        texts = linked([cell.source for cell in cells])
        if texts != [cell.source for cell in cells]:
            for cell, text in zip(cells, texts, strict=True):
                cell.source = text
            nbformat.write(notebook, path)
            print(f"{path.name}: linked")
