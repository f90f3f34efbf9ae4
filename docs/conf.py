"""Sphinx's configuration of the book: nothing is executed, nothing is loaded from elsewhere. `book.py` puts its sources
together and starts it."""

import dataclasses
import inspect
import re
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

project = html_title = "Sparse & Robust"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
html_theme = "sphinx_book_theme"
html_theme_options = {
    "show_toc_level": 2, "max_navbar_depth": 1, "navbar_persistent": [],
    "use_download_button": False, "use_fullscreen_button": False,
    "pygments_light_style": "a11y-high-contrast-light", "pygments_dark_style": "a11y-high-contrast-dark"}
html_static_path = [str(Path(__file__).parent / "static")]
html_css_files, html_js_files = ["book.css"], ["filter.js"]
html_copy_source = html_show_copyright = html_show_sphinx = False
html_math_renderer = "mathml"
nb_execution_mode = "off"
nb_code_prompt_show, nb_code_prompt_hide = "Show the code", "Hide the code"
myst_enable_extensions = ["dollarmath", "amsmath", "html_image"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
default_role = "py:obj"  # `name` in a docstring: linked where that is documented, else code
suppress_warnings = ["ref.python"]  # what a name may stand for twice


def setup(app):
    """Formulas as MathML, which browsers draw themselves; docstrings as this project writes them."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula, None))
    app.connect("autodoc-process-docstring", docstring)


def inline_formula(page, node) -> None:
    """Write a formula within a line."""
    page.body.append(convert(node.astext()))
    raise nodes.SkipNode


def formula(page, node) -> None:
    """Write a formula of its own."""
    page.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def docstring(app, what: str, name: str, thing, options, lines: list[str]) -> None:
    """In place: a block that is set in stays as it is written, the rest has no markup but names in backticks; settings
    are listed with their comments."""
    parts = [f"::\n\n{part}" if part.startswith("    ") else plain(part)
             for part in "\n".join(lines).strip("\n").split("\n\n")]
    if inspect.isclass(thing) and dataclasses.is_dataclass(thing):
        parts += [f"``{field}``\n    {plain(said)}" for field, said in comments(thing).items()]
    lines[:] = "\n\n".join(parts).split("\n")


def plain(text: str) -> str:
    """A paragraph in which nothing means something to Sphinx but names in backticks and words in asterisks."""
    emphasis = r"(?<![\w*])\*\w[\w ]*\*(?![\w*])"
    pieces = re.findall(rf"`[^`]+`\w?|{emphasis}|.", text, re.DOTALL)
    return "".join(f"{piece[:-1]}\\ {piece[-1]}" if re.fullmatch(r"`.+`\w", piece, re.DOTALL) else
                   f"\\{piece}" if piece in "*|_\\`" else piece for piece in pieces)


def comments(cls: type) -> dict[str, str]:
    """What is said beside each field of a dataclass, in its own lines or in those of the classes it comes from."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        if dataclasses.is_dataclass(each):
            found |= dict(re.findall(r"^    (\w+): [^#\n]*?  # (.*)$", inspect.getsource(each), re.MULTILINE))
    return {field.name: found[field.name] for field in dataclasses.fields(cls) if field.name in found}
