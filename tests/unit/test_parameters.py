"""A page's parameters: checked by name, type and value, whoever passes them on."""

import nbformat
import papermill
import pytest

from sparserobust import notebook_runner, parameters
from sparserobust.errors import UserError

CELL = '''\
scale: str = "quick"  # quick | laptop
seeds: list = None  # such as [0, 1]
workers: int = 0
use_published: bool = True
'''
DEFAULTS = {"scale": "quick", "seeds": None, "workers": 0, "use_published": True}
KNOWN = parameters.declared(CELL)


@pytest.mark.parametrize(("given", "fits"), [
    ({"scale": "laptop"}, "laptop"), ({"seeds": "[3, 4]"}, [3, 4]), ({"seeds": "null"}, None), ({"seeds": [3]}, [3]),
    ({"seeds": "none"}, None), ({"seeds": "None"}, None),
    ({"seeds": None}, None), ({"workers": "2"}, 2), ({"workers": 2}, 2), ({"use_published": "false"}, False),
    ({"use_published": "True"}, True), ({"use_published": False}, False)])
def test_text_becomes_the_type_that_is_declared(given, fits):
    (value,) = parameters.fitted(given, KNOWN).values()
    assert value == fits and type(value) is type(fits)


@pytest.mark.parametrize(("given", "told"), [
    ({"scael": "laptop"}, "page has no parameter 'scael'; did you mean 'scale'?"),
    ({"epochs": 1}, "page has no parameter 'epochs'; it has scale, seeds, workers, use_published"),
    ({"scale": "quik"}, "unknown scale 'quik': did you mean 'quick'?"),
    *(({"scale": value}, "unknown scale")
      for value in ("", "../../x", "/tmp", "a\0", "two\nlines", "null", "x" * 9999)),
    *(({"scale": value}, "'scale' of page should be of type str") for value in (1, None, ["quick"])),
    *(({"workers": value}, "'workers' of page should be of type int")
      for value in ("many", "", "1.5", 1.5, True, "true", "null", None, [1])),
    *(({"workers": value}, "should be 0 or more, not -1") for value in (-1, "-1")),
    *(({"use_published": value}, "'use_published' of page should be of type bool")
      for value in ("maybe", "", "null", None, 0, 1, "0", "[false]")),
    *(({"seeds": value}, "'seeds' of page should be of type list")
      for value in ("0", 0, "[0", "*x", "\t", "a: b", "{0}", "[" * 9999, (0, 1), "2020-99-99")),
    *(({"seeds": value}, "seeds should be a list of different whole numbers from 0")
      for value in ("[]", "[-1]", "[0, 0]", "[a]", "[true]", "[0.5]", "[[0]]", [None]))])
def test_what_is_something_else_is_told_in_one_line(given, told, refusal):
    message = refusal(parameters.fitted, given, KNOWN, "page")
    assert told in message and len(message) < 300


@pytest.mark.parametrize(("given", "fits"), [("8/255", 8 / 255), ("0.5/255", 0.5 / 255), ("1", 1.0), (0.25, 0.25)])
def test_a_radius_may_be_a_ratio(given, fits):
    assert parameters.fitted({"epsilon": given}, parameters.declared("epsilon: float = 0.1")) == {"epsilon": fits}


@pytest.mark.parametrize("given", ["1/0", "nan/1", "eight/255", "", "inf", [1.0]])
def test_what_is_no_number_is_told_in_one_line(given, refusal):
    assert "'epsilon' of page should be of type float" in refusal(
        parameters.fitted, {"epsilon": given}, parameters.declared("epsilon: float = 0.1"), "page")


def page(*cells: str, **injected) -> dict:
    """The names in a page after these cells, and after the one that Papermill adds, if it adds any."""
    added = "# Parameters\n" + "".join(f"{name} = {value!r}\n" for name, value in injected.items())
    names: dict = {"In": ["", *cells, *([added] if injected else []), "parameters.check(globals())"]}
    for source in names["In"][:-1]:
        exec(source, names)
    return names


def checked(names: dict) -> dict:
    parameters.check(names)
    return {name: names[name] for name in DEFAULTS}


def test_a_page_as_it_is_is_left_alone():
    assert checked(page(CELL)) == DEFAULTS


def test_what_papermill_adds_is_turned_into_what_is_declared():
    given = {"use_published": "false", "seeds": "[1]", "workers": 2}
    assert checked(page(CELL, **given)) == DEFAULTS | {"use_published": False, "seeds": [1], "workers": 2}


@pytest.mark.parametrize(("given", "told"), [
    ({"scael": "laptop"}, "did you mean 'scale'"), ({"workers": -1}, "or more"),
    ({"use_published": "maybe"}, "type bool"), ({"scale": "../x"}, "unknown scale")])
def test_what_papermill_adds_is_checked(given, told, refusal):
    assert told in refusal(parameters.check, page(CELL, **given))


@pytest.mark.parametrize(("edited", "told"), [
    (CELL.replace("scale:", "scael:"), "did you mean 'scale'"), (CELL.replace("True", '"maybe"'), "type bool"),
    (CELL.replace("= 0", "= -1"), "or more"), (CELL.replace("None", "[0, 0]"), "different whole numbers"),
    (CELL.replace("quick", "quik"), "did you mean 'quick'")])
def test_a_cell_that_was_edited_is_checked_when_the_page_runs_again(edited, told, refusal):
    names = page(CELL, "x: int = 1", edited)
    names["In"].insert(2, "print(")  # a cell that could not be run
    assert told in refusal(parameters.check, names)


def test_a_mistake_that_was_mended_is_forgotten():
    names = page(CELL, CELL.replace("workers", "wokers"), "# Parameters\nscael = 'laptop'", CELL, scale="laptop")
    assert checked(names) == DEFAULTS | {"scale": "laptop"}


@pytest.mark.parametrize("name", notebook_runner.names())
def test_every_page_checks_its_parameters_before_anything_is_made_or_read(name):
    cells = {cell.id: cell.source for cell in nbformat.read(notebook_runner.find(name), as_version=4).cells}
    assert list(parameters.declared(cells["parameters"]))[:len(DEFAULTS)] == list(DEFAULTS)
    before, after = cells["start"].split("\nparameters.check(globals())\n")
    assert not [line for line in before.splitlines() if "(" in line and not line.startswith(("from", "sys.path."))]
    sources = list(cells.values())
    start = sources.index(cells["start"])
    assert "Artifacts(" in after and "Store(" in "".join([after, *sources[start + 1:]])
    assert "Store(" not in "".join([*sources[:start], before])


@pytest.mark.slow
def test_plain_papermill_is_told_in_one_line_and_passes_no_text_for_false(tmp_path):
    cells = [CELL, "from sparserobust import parameters\nparameters.check(globals())\nprint(use_published)"]
    plain = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    plain.cells[0].metadata["tags"] = ["parameters"]
    plain.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(plain, tmp_path / "page.ipynb")

    def run(**given):
        return papermill.execute_notebook(tmp_path / "page.ipynb", tmp_path / "out.ipynb", given, progress_bar=False)

    assert run(use_published="false").cells[-1].outputs[0].text == "False\n"
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        run(scael="laptop")
    assert (caught.value.ename, caught.value.evalue.count("\n")) == (UserError.__name__, 0)
    assert "no parameter 'scael'; did you mean 'scale'?" in caught.value.evalue
