"""Pictures have an alternative text where people see them: in a notebook that runs, as a committed page, as HTML."""

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter

from sparserobust import notebook_runner
from sparserobust.reporting import artifacts, plots, widgets

CAPTION = 'Figure 1. A line: <20 % of "all" & more.'
CELL = f"""
from sparserobust.reporting import artifacts, plots
artifacts.Picture(plots.curves([0, 1], {{"a": [0, 1]}}, "x", "y"), {CAPTION!r})
"""


def image(text: str):
    (found,) = BeautifulSoup(text, "html.parser").select("img")
    return found


@pytest.mark.slow
def test_a_picture_is_described_by_its_caption(tmp_path, monkeypatch):
    cell = nbformat.v4.new_code_cell(CELL)
    page = nbformat.v4.new_notebook(cells=[cell], metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    nbformat.write(page, tmp_path / "page.ipynb")
    executed, run = tmp_path / "executed.ipynb", notebook_runner.run
    monkeypatch.setattr(notebook_runner, "find", lambda name: tmp_path / "page.ipynb")
    monkeypatch.setattr(notebook_runner, "run", lambda name, parameters: run(name, parameters, executed))
    notebook_runner.refresh("page")
    live, committed = (nbformat.read(path, as_version=4) for path in (executed, tmp_path / "page.ipynb"))
    picture, caption = live.cells[0].outputs
    assert image(picture.data["text/html"])["src"] == f"data:image/png;base64,{picture.data['image/png']}"
    assert caption.data["text/markdown"] == f"*{CAPTION}*"
    assert image(picture.data["text/html"])["alt"] == CAPTION
    (stored, _) = committed.cells[0].outputs
    assert set(stored.data) == {"image/png", "text/plain"}, "a page holds each picture once"
    assert stored.metadata == {"image/png": {"alt": CAPTION}}
    shown, _ = HTMLExporter(template_name="classic").from_notebook_node(committed)
    assert [found["alt"] for found in BeautifulSoup(shown, "html.parser").select("img")] == [CAPTION]


def test_the_picture_of_a_slider_says_where_the_slider_is():
    def draw(value):
        return plots.curves([0, 1], {"line": [0, value]}, "x", "y")

    choice, picture = widgets.slider(draw, [0.5, 0.75], "share", 0.5, "{:.0%}").children
    assert image(picture.value)["alt"] == "Y against x, at share 50%."
    choice.value = 0.75
    assert image(picture.value)["alt"] == "Y against x, at share 75%."


def test_what_stands_in_a_description_cannot_end_it():
    assert image(artifacts.described(b"", '" onerror="x" <b>'))["alt"] == '" onerror="x" <b>'
