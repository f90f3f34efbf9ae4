"""`make book`: the web book, from the committed notebooks, figures and records; nothing is executed or downloaded.

    build/book/source   what Sphinx reads: laid out as the project is, so that links between its files hold
    build/book/html     what it makes of it: begin at index.html
"""

import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import build_main

sys.path.append(str(Path(__file__).parent))  # also where a test imports this file
import sources
from sparserobust import paths


def build(folder: Path) -> Path:
    """Build the book in `folder`; every warning is an error. Returns the first page."""
    source, html = folder / "source", folder / "html"
    sources.write(source)
    if not html.exists():
        shutil.rmtree(folder / "doctrees", ignore_errors=True)  # pictures of pages that it knows were in html/
    words = ["-q", "-W", "--keep-going", "-b", "html", "-c", str(Path(__file__).parent),
             "-d", str(folder / "doctrees"), str(source), str(html)]
    if build_main(words):
        shutil.rmtree(folder / "doctrees")  # or the next build would not warn of what this one read
        raise SystemExit("the book has faults: see above")
    return html / "index.html"


if __name__ == "__main__":
    print(f"built: {paths.short(build(paths.build_folder() / 'book'))}")
