"""What makes the book's pages: links that hold, folded code, words for pictures, and where numbers come from."""

import importlib
import sys
from pathlib import Path

import nbformat
import pytest

from sparserobust import files, paths, showing
from sparserobust.paths import PROJECT


@pytest.fixture(scope="module")
def maker():
    """The modules of docs/ that write the pages."""
    sys.path.append(str(PROJECT / "docs"))
    yield importlib.import_module("sources")
    sys.path.remove(str(PROJECT / "docs"))


@pytest.fixture
def committed():
    with paths.figures_in(paths.committed_figures()):
        yield


def test_links_hold_in_the_book(maker, tmp_path):
    pages = {"notebooks/01_fk_resnet.ipynb", "docs/cluster.md", "computed/laptop/02_iwi.md"}

    def linked(text: str, name: str = "index.md") -> str:
        return maker.linked(text, name, pages, tmp_path)

    for whole in ("[a](notebooks/01_fk_resnet.ipynb)", "[a](docs/cluster.md#one)", "[a](https://arxiv.org/abs/1)"):
        assert linked(whole) == whole
    assert linked("[a `b[0]`](figures/laptop/02_iwi), so") == "[a `b[0]`](computed/laptop/02_iwi.md), so"
    assert linked("x [words](tests), [more](gone.py)") == "x words, more"
    assert linked("[cite](CITATION.cff)") == "[cite](CITATION.cff)"
    assert (tmp_path / "CITATION.cff").read_bytes() == (PROJECT / "CITATION.cff").read_bytes()
    assert linked("[a](../docs/cluster.md)", "notebooks/x.ipynb") == "[a](../docs/cluster.md)"
    assert linked("[a](#Table-1:-RVSM,-pruned)") == "[a](#table-1-rvsm-pruned)"


@pytest.mark.parametrize(("source", "folded"), [
    ("out.figure(plots.lines(x), 'a', 'b')", True), ("y = f(x)\nout.table(y, 'a', 'b')", True),
    ("artifacts.Markdown('a')", True), ("report.overview(experiment)", True), ("print(x)", False),
    ("out.figure(plots.lines(x))  # change me", False), ("answer = ...\nexercises.exercise_1(answer)", False)])
def test_code_is_folded_that_only_draws(maker, source, folded):
    assert maker.only_draws(source) is folded


def picture(**metadata):
    return nbformat.v4.new_output("display_data", {"image/png": "AAAA"}, metadata=metadata)


def words(text: str):
    return nbformat.v4.new_output("display_data", {"text/markdown": text})


def test_each_picture_has_a_cell_and_words(maker):
    cell = nbformat.v4.new_code_cell("draw()", id="two", outputs=[
        picture(), words("*The first.*"), picture(**{"image/png": {"alt": "Its own words."}}), words("*The second.*")])
    first, second = maker.apart(cell)
    assert first.source == "draw()" and second.metadata["tags"] == ["remove-input"] and second.source
    assert first.metadata["mystnb"]["image"]["alt"] == "The first."
    assert second.metadata["mystnb"]["image"]["alt"] == "Its own words."
    assert [len(each.outputs) for each in (first, second)] == [2, 2]


def test_every_figure_and_table_of_a_notebook_says_where_it_comes_from(maker, committed):
    for path in maker.notebooks():
        names = set(maker.provenance.captions("quick", path.stem).values())
        text = maker.notebook(path)
        assert len(names) > 3
        for name in names:
            assert f'{maker.provenance.address("quick", path.stem, name)}\\">How was this computed' in text, name


def test_a_page_of_provenance_has_runs_settings_machine_and_commands(maker, committed):
    page = maker.provenance.page("laptop", "06_side_by_side")
    listed = files.read_json(paths.committed_figures() / "laptop" / "06_side_by_side" / "manifest.json")["files"]
    part = page.split("## fig1_ranking\n")[1].split("\n## ")[0]
    runs = listed["fig1_ranking.png"]["runs"]
    assert f"{len(runs)} runs" in part and all(f'href="#run-{run}"' in part for run in runs)
    assert "sparserobust compute --scale laptop --study side_by_side" in part
    assert "(../../figures/laptop/06_side_by_side/fig1_ranking.png)" in part
    rows = page.split('<table class="runs">')[1]
    for run in runs:
        line = rows.split(f'<tr id="run-{run}">')[1].split("</tr>")[0]
        entry = files.read_json(paths.published_folder() / "laptop" / f"{run}.json")
        assert showing.machine(entry["provenance"]) in line and f"method {_method(run)}" in line
    assert "lr: " in rows and "(default)" not in rows
    assert "sparserobust run 06_side_by_side -p scale laptop" in page


def _method(run: str) -> str:
    return next(row["labels"]["method"] for row in showing.asked("laptop")[run] if row["study"] == "side_by_side")


def test_a_figure_without_runs_says_so(maker, committed):
    part = maker.provenance.page("quick", "00_start_here").split("## idea_pushes\n")[1].split("\n## ")[0]
    assert "No run enters" in part and "sparserobust compute" not in part


def test_only_what_is_new_is_written(maker, tmp_path):
    path = Path(tmp_path / "a" / "b.md")
    maker._write_if_new(path, b"x")
    before = path.stat().st_mtime_ns
    maker._write_if_new(path, b"x")
    assert path.stat().st_mtime_ns == before
    maker._write_if_new(path, b"y")
    assert path.read_bytes() == b"y"
