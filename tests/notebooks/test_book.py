"""The book, built once: nothing of it is loaded from elsewhere, every link arrives, everything public is in it."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from sphinx.util.inventory import InventoryFile

import sparserobust
from sparserobust.paths import PROJECT, committed_figures, figures_in
from sparserobust.reporting import artifacts

pytestmark = pytest.mark.slow
OFFLINE = """
import runpy, socket, sys
def connect(*words):
    raise OSError("the book is built offline")
socket.socket.connect = socket.create_connection = connect
runpy.run_path(sys.argv[1], run_name="__main__")
"""
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "srcset", "link": "href", "video": "src",
          "audio": "src", "object": "data", "embed": "src", "use": "href", "image": "href"}


@dataclass
class Page(HTMLParser):
    """What a page loads, where its links lead, what may be linked in it, and its pictures' alternative texts."""

    text: str
    loaded: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    alternatives: list[str | None] = field(default_factory=list)

    def __post_init__(self):
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if found.get(LOADED.get(tag, "")) and found.get("rel") not in ("index", "search", "prev", "next", "author"):
            self.loaded.append(found[LOADED[tag]])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "img":
            self.alternatives.append(found.get("alt"))


@pytest.fixture(scope="session")
def book(tmp_path_factory) -> Path:
    """The folder of the built book."""
    folder = tmp_path_factory.mktemp("book")
    done = subprocess.run([sys.executable, "-c", OFFLINE, str(PROJECT / "docs" / "book.py")], text=True,
                          capture_output=True, env=os.environ | {"SPARSEROBUST_BUILD": str(folder)})
    assert done.returncode == 0, done.stderr
    return folder / "book" / "html"


@pytest.fixture(scope="session")
def pages(book) -> dict[str, Page]:
    """Its pages, by their path within it."""
    return {path.relative_to(book).as_posix(): Page(path.read_text()) for path in sorted(book.rglob("*.html"))
            if "_static" not in path.parts}


def test_nothing_is_loaded_from_elsewhere(book, pages):
    loaded = {(name, target) for name, page in pages.items() for target in page.loaded}
    assert len(loaded) > 100
    outside = {(name, target) for name, target in loaded if urlsplit(target).scheme not in ("", "data")
               or target.startswith("//")}
    assert not outside
    for path in book.rglob("*.css"):
        assert not re.findall(r"""(?:url\(\s*["']?|@import\s+["'])(?:https?:)?//""", path.read_text()), path


def test_every_link_and_every_anchor_arrives(book, pages):
    lost = set()
    for name, page in pages.items():
        for link in [*page.links, *page.loaded]:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto", "data"):
                continue
            target = name if not parts.path else os.path.normpath(Path(name).parent / unquote(parts.path))
            found = (book / target).is_file() and (not parts.fragment or target not in pages
                                                   or unquote(parts.fragment) in pages[target].anchors)
            if not found:
                lost.add((name, link))
    assert not lost


def test_every_notebook_is_there_and_its_pictures_have_words(pages):
    for path in (PROJECT / "notebooks").glob("[0-9]*.ipynb"):
        page, notebook = pages[f"notebooks/{path.stem}.html"], nbformat.read(path, as_version=4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        pictures = sum("image/png" in output.get("data", {}) for output in outputs)
        assert len(page.alternatives) == pictures > 0
        assert all(text and len(text) > 30 for text in page.alternatives)
        words = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
        solutions = sum(text.count("<details><summary>Solution") for text in words)
        assert page.text.count("<details><summary>Solution</summary>") == solutions > 0
        assert page.text.count("<math") >= sum(text.count("$$") // 2 for text in words)
        assert "MathJax" not in page.text and r"\frac" not in re.sub("<pre>.*?</pre>", "", page.text, flags=re.DOTALL)


def test_code_that_only_draws_is_folded_and_the_method_is_not(pages):
    text = pages["notebooks/00_start_here.html"].text
    folded = re.findall(r'<details class="[^"]*above-input[^"]*">(.*?)</details>', text, re.DOTALL)
    shown = text
    for part in folded:
        shown = shown.replace(part, "")
    assert any('fig2_radius"' in part for part in folded) and 'fig2_radius"' not in shown
    for words in ('idea_pushes"', "by_hand", "# change me", "exercise_1"):
        assert words in re.sub(r"</?span[^>]*>", "", shown), words


def test_every_claim_is_a_line_that_needs_no_script(pages):
    text = pages["results.html"].text
    with figures_in(committed_figures()):
        for scale in ("quick", "digits", "laptop"):
            lines = artifacts.ledger(scale)
            found = re.findall(rf'<tr data-scale="{scale}" data-paper="[^"]+" data-verdict="([^"]+)">', text)
            assert found == list(lines["verdict"])
    assert "hidden" not in re.search(r"<table class=.ledger.*?</table>", text, re.DOTALL)[0]


def test_everything_public_is_in_the_reference(book):
    listed = InventoryFile.loads((book / "objects.inv").read_bytes(), uri="").data
    known = {name for kind, found in listed.items() if kind.startswith("py:") for name in found}
    wanted = {f"sparserobust.{name}" for name in sparserobust.__all__}
    for module in [sparserobust.analysis, sparserobust.models, sparserobust.sparsifiers]:
        wanted |= {f"{module.__name__}.{name}" for name in module.__all__ if name not in sparserobust.__all__}
    for path in (PROJECT / "lib" / "sparserobust").rglob("*.py"):
        parts = path.relative_to(PROJECT / "lib").with_suffix("").parts
        if "studies" in parts or path.stem in ("__init__", "cli", "preloaded"):
            continue
        module = importlib.import_module(".".join(parts))
        wanted |= {f"{module.__name__}.{name}" for name, thing in vars(module).items()
                   if (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__ == module.__name__
                   and not name.startswith("_") and thing.__doc__ and name not in _offered(parts)}
    assert len(wanted) > 400 and not wanted - known


def _offered(parts: tuple[str, ...]) -> list[str]:
    """What the packages around a module offer as theirs, which stands there."""
    packages = [sys.modules[".".join(parts[:n])] for n in range(1, len(parts))]
    return [name for package in packages for name in getattr(package, "__all__", [])]
