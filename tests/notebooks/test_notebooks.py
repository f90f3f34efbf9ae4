"""The committed notebooks: clean as files, and the same again when they are run."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter

import nbformat
import pandas
import pytest

from sparserobust import notebook_runner, paths
from sparserobust.errors import UserError
from sparserobust.files import read_json
from sparserobust.provenance import processor, provenance

NOTEBOOKS = [notebook_runner.find(name) for name in notebook_runner.names()]
TRAINS = ("00_start_here", "07_your_network")  # on this processor: tables differ in some digits


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_executed_small_and_free_of_this_machine(path):
    text = path.read_text()
    notebook = nbformat.reads(text, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(text) < 1_000_000
    assert all(cell.execution_count for cell in code), "run `make notebooks`"
    assert not [o for cell in code for o in cell.outputs if o.output_type == "error"]
    for output in (o for cell in code for o in cell.outputs):
        assert output.get("name") != "stderr" and "runs trained and measured" not in str(output), "progress is not kept"
        output.get("data", {}).pop("image/png", None)  # base64 can spell anything
    assert not re.search(r"/home/|/root/|/Users/|/work/|/tmp/", nbformat.writes(notebook))
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert any("parameters" in cell.metadata.get("tags", []) for cell in code)
    assert any("NBVAL_CHECK_OUTPUT" in cell.source for cell in code)


def test_every_picture_has_an_alternative_text(path):
    pictures = [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", [])
                if "image/png" in output.get("data", {})]
    assert pictures and all(len(picture.metadata["image/png"]["alt"]) > 20 for picture in pictures)


def test_cells_hold_no_class_no_long_function_and_no_way_round_the_results(path):
    """What a page shows comes from `results` and from functions of its study; nothing is built from the store."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert not re.search(r"^\s*class ", cell.source, re.MULTILINE), cell.id
            for function in re.findall(r"^def .*\n(?:(?: .*)?\n?)*", cell.source, re.MULTILINE):
                assert len(function.strip().splitlines()) <= 15, cell.id
            assert not re.search(r"\bstore\.\w|pandas\.(DataFrame|concat|merge)", cell.source), cell.id


def markdown(path) -> list[str]:
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]


def test_links_within_a_page_point_to_headings(path):
    """JupyterLab and GitHub make an anchor of a heading's text, with hyphens for spaces. JupyterLab drops others."""
    texts = markdown(path)
    headings = [re.sub(r"[`*]", "", heading) for text in texts
                for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    anchors = {heading.strip().replace(" ", "-") for heading in headings}
    assert len(anchors) == len(headings), "two headings are the same"
    for source in texts:
        assert "<a id" not in source and "<a name" not in source
        for target in re.findall(r"\]\(#([^)\s]+)\)", source):
            assert target in anchors, f"#{target}"


def test_a_picture_comes_early(path):
    """No more than 120 words before it, apart from what is folded."""
    words = 0
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and any("image/png" in output.get("data", {}) for output in cell.outputs):
            break
        if cell.cell_type == "markdown":
            shown = re.sub(r"<details>.*?</details>|\]\(\S+?\)|https?://\S+|\$.+?\$", "", cell.source, flags=re.DOTALL)
            words += len(re.findall(r"\w[\w'.-]*", shown))
    assert words <= 120


def test_no_text_speaks_of_what_came_out_at_one_scale(path):
    """What came out is said by cells that compute it. The first cell may name the settings of a scale, an exercise what
    its check takes."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown" and not re.match("title|exercise|solution", cell.id):
            assert not re.search(r"\b(quick|laptop)`? scale|was executed at", cell.source), cell.id


def told(notebook) -> set[str]:
    """The sentences with numbers that the cells of an executed notebook have made."""
    texts = [str(output["data"]["text/markdown"]) for cell in notebook.cells if cell.cell_type == "code"
             for output in cell.outputs if "text/markdown" in output.get("data", {})]
    captions = [text for text in texts if re.fullmatch(r"\*[^*].*\*", text, re.DOTALL)]
    return {line for text in texts if text not in captions for line in text.splitlines() if re.search(r"\d", line)}


@pytest.mark.slow
def test_a_page_at_another_scale_says_nothing_of_the_first(tmp_path):
    """Redrawn from published records, without training, and with other sentences."""
    page = notebook_runner.find("03_rsr")
    elsewhere = os.environ | {"SPARSEROBUST_STORE": str(tmp_path / "runs"), "SPARSEROBUST_FIGURES": str(tmp_path)}
    done = subprocess.run([sys.executable, "-m", "sparserobust.cli", "run", page.stem, "-p", "scale", "laptop",
                           "-o", str(tmp_path / "out.ipynb")], capture_output=True, text=True, env=elsewhere)
    assert done.returncode == 0, done.stderr[-2000:]
    first, other = (told(nbformat.read(path, as_version=4)) for path in (page, tmp_path / "out.ipynb"))
    assert first and other and not first & other
    assert not list((tmp_path / "runs").glob("*/record.json")), "nothing is trained"


def solved(path):
    """The notebook with the solutions in place of the three dots; a cell whose answer is not right is an error."""
    notebook = nbformat.read(path, as_version=4)
    cells = {cell.id: cell for cell in notebook.cells}
    for name in (name for name in cells if re.fullmatch(r"exercise-\d+", name)):
        code = re.search(r"```python\n(.*?)\n```", cells[name.replace("exercise", "solution")].source, re.DOTALL)[1]
        _, check = cells[name].source.split("\n")
        cells[name].source = f"{code}\nverdict = {check}\nassert verdict.startswith('right: '), verdict\nverdict"
    return notebook


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """Empty: pages are drawn from published records, and train the networks whose weights they need."""
    return tmp_path_factory.mktemp("computed") / "runs"


def records_are_of_this_processor() -> bool:
    """Most of them."""
    made = Counter(processor(read_json(path)["provenance"]) for path in (paths.published_folder() / "quick").iterdir())
    return made.most_common(1)[0][0] == processor(provenance())


@pytest.mark.slow
def test_runs_again_and_its_solutions_are_right(path, store, tmp_path):
    """nbval, lax: every cell runs, the check cells print what is stored, and every exercise is told `right`. Tables
    come out as committed: on another processor than that of the records those of the page as it is, since solutions
    train networks that are not quite the published ones there, and tables further down show them."""
    notebook, figures = tmp_path / path.name, tmp_path / "figures"
    nbformat.write(solved(path), notebook)
    elsewhere = os.environ | {"SPARSEROBUST_STORE": str(store), "SPARSEROBUST_FIGURES": str(figures)}
    options = ["--nbval-lax", "--nbval-cell-timeout=900", "-p", "no:cacheprovider", "-p", "no:xdist", "-c", os.devnull]
    done = subprocess.run([sys.executable, "-m", "pytest", *options, f"--rootdir={tmp_path}", str(notebook)],
                          capture_output=True, text=True, cwd=tmp_path, env=elsewhere)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    if path.stem not in TRAINS and not records_are_of_this_processor():
        elsewhere |= {"SPARSEROBUST_STORE": str(tmp_path / "runs"), "SPARSEROBUST_FIGURES": str(figures / "unsolved")}
        figures = figures / "unsolved"
        subprocess.run([sys.executable, "-m", "sparserobust.cli", "run", path.stem, "-o", str(tmp_path / "out.ipynb")],
                       env=elsewhere, check=True, capture_output=True)
    made, committed = (folder / "quick" / path.stem for folder in (figures, paths.committed_figures()))
    assert (made / "manifest.json").exists()
    for table in committed.glob("*.csv") if path.stem not in TRAINS else ():
        pandas.testing.assert_frame_equal(*(pandas.read_csv(folder / table.name) for folder in (made, committed)),
                                          obj=table.name)


@pytest.mark.slow
def test_a_class_is_graded_on_a_page_with_numbers_words_a_network_and_a_run(store, tmp_path):
    """The solutions are right, and the page as it is handed out is not answered."""
    page = "04_sparsity_theory"

    def sparserobust(*words: str) -> None:
        done = subprocess.run([sys.executable, "-m", "sparserobust.cli", *words], capture_output=True, text=True,
                              env=os.environ | {"SPARSEROBUST_STORE": str(store)})
        assert done.returncode == 0, done.stderr[-2000:]

    sparserobust("handout", page, "-o", str(tmp_path))
    for part, name in (("source", "solved"), ("release", "open")):
        shutil.copytree(tmp_path / part / page, tmp_path / "submitted" / name)
    sparserobust("grade", str(tmp_path), "--seconds", "300")
    outcomes = pandas.read_csv(tmp_path / "grades.csv").groupby("submission")["outcome"].agg(set)
    assert outcomes.to_dict() == {"solved": {"right"}, "open": {"-"}}


def test_text_on_the_command_line_is_taken_as_the_types_of_the_page():
    given = {"scale": "laptop", "seeds": "[3, 4]", "use_published": "false", "workers": "2"}
    assert notebook_runner.typed(NOTEBOOKS[0], given) == {
        "scale": "laptop", "seeds": [3, 4], "use_published": False, "workers": 2}
    with pytest.raises(UserError, match=r"^00_start_here\.ipynb has no parameter 'scal'; did you mean 'scale'"):
        notebook_runner.typed(NOTEBOOKS[0], {"scal": "quick"})


@pytest.mark.slow
def test_what_a_page_refuses_ends_in_one_line_that_names_the_cell(tmp_path):
    done = subprocess.run([sys.executable, "-m", "sparserobust.cli", "run", "00_start_here", "-p", "scale", "laptop",
                           "-o", str(tmp_path / "out.ipynb")], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: 00_start_here.ipynb, cell ") and "laptop" in last
    assert "Traceback" not in done.stderr
