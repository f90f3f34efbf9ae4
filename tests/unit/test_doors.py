"""The doors of the project: whatever a person types, or lets an environment variable say, is taken for what it is, or
refused in one line before anything is made."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import papermill
import pytest
import torch

from sparserobust import cli, data, notebook_runner, paths, provenance, studies
from sparserobust.errors import SHOWN, quoted
from sparserobust.reporting import artifacts
from sparserobust.running import cluster, jobs, progress, scales, slurm

PAGE = "00_start_here"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working folder, below which all that a command makes would lie."""
    monkeypatch.chdir(tmp_path)
    for name in ("STORE", "FIGURES", "CERTIFICATES"):
        monkeypatch.setenv(f"SPARSEROBUST_{name}", name.lower())
    monkeypatch.setattr(notebook_runner, "copy_of", lambda name, scale: tmp_path / "build" / scale / f"{name}.ipynb")
    monkeypatch.setattr(paths, "published_folder", lambda: tmp_path / "published")
    monkeypatch.delenv(cluster.ADDRESS, raising=False)
    return tmp_path


@pytest.fixture
def told(folder, capsys):
    """What a command that must fail says: one line; it leaves nothing behind."""
    def told(*words: str, leaves: tuple[str, ...] = ()) -> str:
        try:
            code: object = cli.main(list(words))
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        assert code in (1, 2) and not out
        assert err.startswith("error: ") and err.endswith("\n") and err[:-1].isprintable()
        assert len(err) < 500 and sorted(path.name for path in folder.iterdir()) == sorted(leaves)
        return err

    return told


# ------------------------------------------------------------------------------------------------------- what is typed


WRONG_SCALES = ["../../x", "/tmp", "", "quick/../../x", "quik", ".", "..", "x" * 9999, "quick ", "nul\0", "two\nlines"]


@pytest.mark.parametrize("scale", WRONG_SCALES)
@pytest.mark.parametrize("words", [["reproduce", "--scale"], ["ledger", "--scale"], ["publish", "--scale"],
                                   ["compute", "--scale"], ["compute", "--plan", "--scale"],
                                   ["run", PAGE, "-p", "scale"]], ids=" ".join)
def test_a_scale_is_one_that_is_known_before_anything_is_made(words, scale, told):
    message = told(*words, scale)
    assert "unknown scale" in message or "not valid text" in message


@pytest.mark.parametrize("scale", WRONG_SCALES)
def test_no_folder_is_made_for_a_scale_that_is_not_known(scale, folder, refusal):
    for call in (lambda: artifacts.Artifacts(scale, "page"), lambda: artifacts.ledger(scale),
                 lambda: notebook_runner.reproduce([PAGE], scale)):
        assert "unknown scale" in refusal(call)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("name", ["/elsewhere/00_start_here.ipynb", "elsewhere/00_start_here", "../00_start_here.ipynb",
                                  "build/quick/00_start_here.ipynb", "00_start_here/", "", ".", "00_start_here.py",
                                  "00_start_her", "own_method", "x" * 9999, "nul\0", "two\nlines"])
def test_a_notebook_is_a_page_of_the_project(name, told):
    message = told("run", name)
    assert "not this project's page" in message or "no notebook" in message or "not valid text" in message


def test_a_page_of_the_same_name_in_the_working_folder_is_not_run_in_its_place(folder, refusal):
    (folder / f"{PAGE}.ipynb").write_text("{}")
    assert "not this project's page" in refusal(notebook_runner.find, f"{PAGE}.ipynb")
    assert notebook_runner.find(PAGE) == notebook_runner.NOTEBOOKS / f"{PAGE}.ipynb"


def test_a_page_is_found_by_its_number_and_by_its_study(refusal):
    for page in notebook_runner.names():
        number, study = page.split("_", 1)
        assert notebook_runner.find(number).stem == notebook_runner.find(study).stem == page
    assert "known: " in refusal(notebook_runner.find, "nonsense")
    assert "did you mean '01_fk_resnet'" in refusal(notebook_runner.find, "01_fkresnet")


def test_a_page_is_found_by_its_name_and_by_every_path_to_it(folder, monkeypatch):
    page = notebook_runner.NOTEBOOKS / f"{PAGE}.ipynb"
    (folder / "link").symlink_to(notebook_runner.NOTEBOOKS)
    for name in (PAGE, f"{PAGE}.ipynb", str(page), str(page.with_suffix("")), f"link/{PAGE}.ipynb"):
        assert notebook_runner.find(name) == page
    monkeypatch.chdir(notebook_runner.NOTEBOOKS)
    assert notebook_runner.find(f"{PAGE}.ipynb") == notebook_runner.find(f"./{PAGE}.ipynb") == page


@pytest.mark.parametrize("output", ["a_folder", "a_folder.ipynb", "", ".", "-", "out.py", "a_file/out.ipynb",
                                    f"{'x' * 300}.ipynb", "s3://bucket/out.html", "nul\0.ipynb",
                                    "{notebooks}/00_start_here.ipynb", "link.ipynb", "{notebooks}/new.ipynb"])
def test_an_executed_copy_goes_where_nothing_is_lost(output, folder, told):
    (folder / "a_folder").mkdir()
    (folder / "a_folder.ipynb").mkdir()
    (folder / "a_file").write_text("")
    (folder / "link.ipynb").symlink_to(notebook_runner.NOTEBOOKS / f"{PAGE}.ipynb")
    before = {path: path.stat().st_mtime_ns for path in notebook_runner.NOTEBOOKS.iterdir()}
    told("run", PAGE, "-o", output.format(notebooks=notebook_runner.NOTEBOOKS),
         leaves=("a_folder", "a_folder.ipynb", "a_file", "link.ipynb"))
    assert {path: path.stat().st_mtime_ns for path in notebook_runner.NOTEBOOKS.iterdir()} == before


@pytest.mark.parametrize("output", ["new/folder/out.ipynb", "{seeds}.ipynb", "out{}.ipynb", "two words.ipynb", None])
def test_papermill_gets_the_output_as_it_was_named(output, folder, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(papermill, "execute_notebook", lambda *words, **more: asked.append(words))
    words = ["-o", output] if output else ["-p", "scale", "laptop"]
    assert cli.main(["run", PAGE, *words]) == 0
    ((page, copy, values),) = asked
    wanted = Path(output or folder / "build" / "laptop" / f"{PAGE}.ipynb")
    growing = wanted.with_name(f".{wanted.name}")  # until it is through
    assert copy.format() == str(growing) and page.format() == str(notebook_runner.find(PAGE))
    assert wanted.exists() and not growing.exists()
    assert values == ({} if output else {"scale": "laptop"})


@pytest.mark.parametrize(("name", "value"), [
    ("seeds", "[0"), ("seeds", "*x"), ("seeds", "\t"), ("seeds", "["  * 9999), ("seeds", "0\0"), ("workers", "-1"),
    ("use_published", "maybe"), ("scael", "laptop"), ("", ""), ("\ud800", "1"), ("seeds", "!!python/name:os.system")])
def test_a_parameter_is_one_of_the_page_and_of_its_type(name, value, told):
    told("run", PAGE, "-p", name, value)


def test_a_parameter_is_given_once(told):
    assert "'seeds' is given twice" in told("run", PAGE, "-p", "seeds", "[0]", "-p", "seeds", "[1]")


@pytest.mark.parametrize("words", [
    [], ["rum"], ["run"], ["run", PAGE, "-p", "seeds"], ["compute", "--gpus", "2"], ["compute", "--table", "table 1"],
    ["compute", "--study", "x\ny"], ["compute", "--study", "../iwi"], ["compute", "--study", ""],
    ["compute", "--study", "iwi", "--table", ""], ["publish"], ["evidence", "--hours", "1", "--minutes", "1"],
    *([option, value] for option in ("evidence --hours", "evidence --minutes")
      for value in ("-1", "0", "nan", "inf", "", "x", "1e999")),
    *(["evidence --workers", value] for value in ("-1", "0", "1.5", "", "x", "²", "9" * 5000, "1" * 10)),
    *(["compute --plan --gpus", value] for value in ("1.5", "", "x", "²", "9" * 5000)),
    *(["compute", "--scheduler", value] for value in ("", "nul\0")),
    ["data", ""], ["data", "../mnist"], ["data", "two\nlines"], ["data", "x" * 9999],
    ["cluster"], ["cluster", "slurm"], ["cluster", "slurm", "--cpus", "1", "--idle-timeout", "nan"],
    ["cluster", "kubernetes", "--image", "a\nb", "--volume", "v", "--gpus", "1"],
    ["cluster", "kubernetes", "--image", "i", "--volume", "../v", "--gpus", "1"]], ids=lambda words: str(words)[:50])
def test_what_makes_no_sense_is_told_in_one_line(words, told):
    told(*(words[0].split() if words else []), *words[1:])


@pytest.mark.parametrize("words", [["--port", "-1"], ["--port", "65536"], ["--idle-timeout", "nan"],
                                   ["--idle-timeout", "inf"]])
def test_a_scheduler_says_what_it_cannot_be(words, told):
    told("cluster", "scheduler", "file", *words)


def test_a_folder_is_no_scheduler_file(folder, told, refusal):
    (folder / "sub").mkdir()
    assert "is a folder" in told("cluster", "scheduler", "sub", leaves=("sub",))
    assert "is no scheduler file" in refusal(cluster._address, "sub")


def test_kernels_and_workers_find_what_is_named_from_the_working_folder(folder, monkeypatch):
    monkeypatch.setenv("SPARSEROBUST_DATA", "sub/data")
    monkeypatch.setattr(notebook_runner, "run", lambda *words: None)
    assert cli.main(["run", PAGE, "--scheduler", "sub/file"]) == 0
    assert os.environ["SPARSEROBUST_DATA"] == str(folder / "sub" / "data") == str(paths.data_folder())
    assert os.environ.pop(cluster.ADDRESS) == str(folder / "sub" / "file")
    assert cli.main(["run", PAGE, "--scheduler", "tls://host:1"]) == 0
    assert os.environ.pop(cluster.ADDRESS) == "tls://host:1"


def test_what_was_given_is_quoted_on_a_line_and_no_longer():
    assert quoted("a") == "'a'" and quoted("a\nb") == r"'a\nb'" and len(quoted("x" * 999)) == SHOWN + 3


def test_whoever_reads_no_further_sees_no_traceback(folder, monkeypatch, capfd):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        assert cli.main(["cluster", "kubernetes", "--image", "i", "--volume", "v", "--gpus", "1"]) == 1
        print("more")
    assert capfd.readouterr() == ("", "")


# -------------------------------------------------------------------------------------------- what the environment says


@pytest.mark.parametrize("named", ["tpu", "cuda:99", "xla", "meta", "CPU", "cpu:0", "", "two\nlines"])
def test_a_device_is_one_that_is_here(named, monkeypatch, refusal):
    monkeypatch.setenv("SPARSEROBUST_DEVICE", named)
    if not named:
        assert provenance.device().type in ("cpu", "cuda")
    else:
        assert quoted(named) in (message := refusal(provenance.device)) and "cpu" in message


def test_a_gpu_is_named_only_where_there_is_one(monkeypatch, refusal):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for named in ("cuda", "cuda:0"):
        monkeypatch.setenv("SPARSEROBUST_DEVICE", named)
        assert "SPARSEROBUST_DEVICE is 'cuda" in refusal(provenance.device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert provenance.device() == torch.device("cuda:0")


def test_a_project_without_settings_says_what_to_set(folder, monkeypatch, told):
    monkeypatch.setattr(scales, "settings_folder", lambda: folder / "nowhere")
    assert "SPARSEROBUST_HOME should name" in told("reproduce")
    (folder / "nowhere").write_text("")
    assert "SPARSEROBUST_HOME should name" in told("reproduce", leaves=("nowhere",))


@pytest.mark.parametrize("name", ["STORE", "FIGURES", "CERTIFICATES", "DATA"])
def test_a_file_in_place_of_a_folder_is_told_in_one_line(name, folder, monkeypatch, told):
    (folder / "file").write_text("")
    monkeypatch.setenv(f"SPARSEROBUST_{name}", "file")
    words = {"STORE": ["compute", "--study", "start_here"], "FIGURES": ["ledger"], "DATA": ["data", "mnist"],
             "CERTIFICATES": ["cluster", "certificates"]}[name]
    told(*words, leaves=("file",))


@pytest.mark.parametrize(("name", "file"), [("mnist", "MNIST/raw/train-images-idx3-ubyte"),
                                            ("cifar10", "cifar-10-batches-bin/data_batch_1.bin")])
def test_a_folder_in_place_of_a_data_file_is_told_in_one_line(name, file, folder, monkeypatch, told):
    for each in (*data.IDX_FILES["MNIST"], "x"):
        (folder / file).with_name(each).mkdir(parents=True)
    (folder / file).mkdir(exist_ok=True)
    monkeypatch.setenv("SPARSEROBUST_DATA", str(folder))
    data._held.clear()  # another test of this process may have read what is downloaded
    assert "cannot read" in told("data", name, leaves=(file.split("/")[0],))


def helped(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--help"])
    assert end.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_every_variable_is_documented_at_one_place_and_at_the_end_of_help(capsys):
    text = (paths.PROJECT / "docs" / "variables.md").read_text()
    named = {name for path in paths.LIBRARY.rglob("*.py")
             for name in re.findall(r"SPARSEROBUST_[A-Z]+", path.read_text())} - {"SPARSEROBUST_PROGRESS"}  # our own
    assert named < paths.DOCUMENTED.keys() and set(paths.VARIABLES) < named
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(paths.DOCUMENTED)
    end = helped(capsys).split("environment variables (docs/variables.md): ")[1]
    assert all(f"{name} {what}" in end for name, what in paths.DOCUMENTED.items())


@pytest.mark.parametrize("command", ["reproduce", "compute", "ledger", "publish", "benchmark-row"])
def test_help_says_which_scales_there_are(command, capsys):
    known = f"one of {', '.join(scales.names())}"
    assert f"{known} (default: quick)" in (text := helped(capsys, command)) or (command == "publish" and known in text)


def test_help_is_there_without_settings(folder, monkeypatch, capsys):
    monkeypatch.setattr(scales, "settings_folder", lambda: folder / "nowhere")
    assert "those of notebooks/settings/scales.yaml (default: quick)" in helped(capsys, "compute")


def test_a_page_says_which_scales_it_has(refusal):
    assert refusal(studies.modules()["start_here"].experiment, "laptop").startswith("start_here has only quick:")


@pytest.mark.parametrize("missing", ["yaml", "pandas"])
def test_a_machine_with_torch_and_numpy_alone_is_told_what_to_install(missing):
    code = f"""
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name}}", name=name)
sys.meta_path.insert(0, Without())
from sparserobust import cli
sys.exit(cli.main(sys.argv[1:]))
"""
    done = subprocess.run([sys.executable, "-c", code, "evidence"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (f"error: this command needs {missing}, which is not installed here: "
                           "pip install 'sparserobust[lab]'\n")
    done = subprocess.run([sys.executable, "-c", code, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_folder_that_no_variable_moves_is_not_said_to_be_moved_by_one(tmp_path, monkeypatch, refusal):
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    monkeypatch.setenv("SPARSEROBUST_DATA", str(tmp_path / "data"))
    published = tmp_path / "data" / "published" / "quick"
    published.parent.mkdir(parents=True)
    published.touch()  # a file in its place
    assert refusal(paths.writable, published).endswith("free it, or name another folder")
    (tmp_path / "data" / "other").touch()
    assert "SPARSEROBUST_DATA" in refusal(paths.writable, tmp_path / "data" / "other")


@pytest.mark.parametrize("said", [True, False])
def test_an_interrupt_is_told_once(said, monkeypatch, capsys):
    end = KeyboardInterrupt()
    if said:
        end.add_note(progress.INTERRUPTED)

    def interrupted(chosen):
        raise end

    lost = "interrupted: what was not written yet is lost"
    for command, told in (("compute", progress.INTERRUPTED), ("ledger", lost)):
        monkeypatch.setattr(cli, f"_{command}", interrupted)
        assert cli.main([command]) == 130
        assert capsys.readouterr().err == ("" if said else f"{told}\n")


# ------------------------------------------------------------------------------- nothing comes from the working folder


def test_workers_are_told_of_other_folders_for_modules_of_somebodys_own_alone(monkeypatch, tiny_run, folder, refusal):
    task = jobs.Task(tiny_run(), (), "n", ())
    monkeypatch.setattr(sys, "path", ["", "/somewhere"])
    store = type("Store", (), {"folder": folder, "use_published": True, "use_earlier": True})()
    assert jobs.order(task, store)["path"] == []
    monkeypatch.setattr(jobs, "modules", lambda task: ["own"])
    assert jobs.order(task, store)["path"] == [str(folder), "/somewhere"]


def test_a_job_array_imports_nothing_from_the_folder_where_it_is_handed_in(tmp_path):
    assert " -P -m sparserobust.cli" in slurm.Array(cpus=1).script(tmp_path)


@pytest.mark.slow
def test_no_process_imports_what_lies_in_the_working_folder_in_place_of_what_is_installed(tmp_path):
    """The command, its fork server, a kernel and its workers, in the folder of the pages, where there is a module for
    each that is installed or part of Python. The kernel is this environment's, whatever is called python3, and takes up
    what lies beside the page."""
    pages, foreign = tmp_path / "notebooks", tmp_path / "jupyter" / "kernels" / "python3"
    shutil.copytree(paths.settings_folder(), pages / "settings")
    for name in {*sys.stdlib_module_names, *packages_distributions(), "sparserobust", "kubernetes"}:
        if name.isidentifier():
            (pages / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write({name!r} + ' ')\n")
    (pages / "beside.py").write_text("WORD = 'found'")
    page = nbformat.read(notebook_runner.find(PAGE), as_version=4)
    page.cells = [cell for cell in page.cells if cell.id in ("parameters", "start", "digits")]
    page.cells.append(nbformat.v4.new_code_cell("import beside\nexperiment.results(store, 1)\nprint(beside.WORD)"))
    nbformat.write(page, pages / f"{PAGE}.ipynb")
    foreign.mkdir(parents=True)
    (foreign / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "another", "language": "python"}')
    own = {"SPARSEROBUST_HOME": tmp_path, "SPARSEROBUST_DATA": tmp_path, "SPARSEROBUST_STORE": tmp_path / "store",
           "SPARSEROBUST_FIGURES": tmp_path / "figures", "PYTHONPATH": paths.PROJECT / "lib",
           "JUPYTER_PATH": tmp_path / "jupyter"}
    done = subprocess.run([Path(sys.executable).with_name("sparserobust"), "refresh"], cwd=pages, capture_output=True,
                          text=True, env=os.environ | {name: str(value) for name, value in own.items()})
    assert not (tmp_path / "imported").exists(), (tmp_path / "imported").read_text()
    assert done.returncode == 0, done.stderr[-2000:]
    assert "found" in str(nbformat.read(pages / f"{PAGE}.ipynb", as_version=4).cells[-1].outputs)
    assert len(list((tmp_path / "store").glob("*/record.json"))) == 2
