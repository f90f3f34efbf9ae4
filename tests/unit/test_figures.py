"""Where figures and tables go, and whether they came out as committed."""

import json
import os
import subprocess

import pandas
import pytest

from sparserobust import UserError, cli, files, freshness, notebook_runner, paths, provenance
from sparserobust.reporting import artifacts, plots
from sparserobust.running import scales

PAGE = "01_fk_resnet"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of its own, with the scales of this one, and no variable that says where its figures go."""
    settings = paths.settings_folder()
    monkeypatch.setattr(scales, "settings_folder", lambda: settings)
    for module in (paths, provenance):
        monkeypatch.setattr(module, "PROJECT", tmp_path)
    for name in paths.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


# ------------------------------------------------------------------------------------------------- where they go


def test_figures_go_to_the_build_folder_unless_somebody_names_another(project, monkeypatch):
    assert paths.figures_folder("quick", "a") == project / "build/figures/quick/a"
    monkeypatch.setenv("SPARSEROBUST_BUILD", "/mine")
    assert str(paths.figures_folder("quick", "a")) == "/mine/figures/quick/a"
    assert str(paths.machine_folder("quick", "a")) == "/mine/machine/quick/a"
    assert str(notebook_runner.copy_of("a", "quick")) == "/mine/quick/a.ipynb"
    for before in (None, "/ours"):
        if before:
            monkeypatch.setenv("SPARSEROBUST_FIGURES", before)
        with pytest.raises(UserError), paths.figures_in(project / "other"):
            assert paths.figures_folder("quick", "a") == project / "other/quick/a"
            raise UserError("")
        assert os.environ.get("SPARSEROBUST_FIGURES") == before
        with paths.figures_in(None):
            assert os.environ.get("SPARSEROBUST_FIGURES") == before


@pytest.fixture
def drawn(project, monkeypatch):
    """Called with the words of a command: where the figures of each page went, within the project, and what was told.
    Pages draw nothing but a ledger."""
    def draw(page, parameters, *_, **__):
        scale = parameters.get("scale", "quick")
        places.append(paths.figures_folder(scale, page))
        lines = pandas.DataFrame([{"claim": "C1", "why": "", "unit": "", "threshold": 0.0}])
        out = artifacts.Artifacts(scale, page)
        out.judged(lines, lines, None, "Claims.")
        out.finish()
        return project / "copy.ipynb"

    def drawn(*words):
        places.clear()
        assert cli.main([*words]) == 0
        assert "SPARSEROBUST_FIGURES" not in os.environ or os.environ["SPARSEROBUST_FIGURES"].endswith("user")
        return [str(place.relative_to(project)) for place in places]

    places: list = []
    monkeypatch.setattr(artifacts.claims, "table", lambda lines: lines)
    monkeypatch.setattr(artifacts.claims, "short_table", lambda lines: lines)
    monkeypatch.setattr(cli, "_tell_ledger", lambda scale: places.append(paths.figures_folder(scale, ".")))
    monkeypatch.setattr(notebook_runner, "names", lambda: [PAGE])
    monkeypatch.setattr(notebook_runner, "run", draw)
    monkeypatch.setattr(notebook_runner, "refresh", lambda name: draw(name, {}))
    monkeypatch.setattr(notebook_runner, "reproduce", lambda names, scale, redraw, fresh: [
        str(draw(name, {"scale": scale})) for name in names])
    return drawn


def test_only_a_scale_as_it_stands_is_drawn_into_figures(drawn, project, monkeypatch):
    committed, own = f"figures/quick/{PAGE}", f"build/figures/quick/{PAGE}"
    assert drawn("run", PAGE) == drawn("refresh") == drawn("run", PAGE, "-p", "scale", "quick") == [committed]
    assert drawn("run", PAGE, "-p", "scale", "laptop") == [committed.replace("quick", "laptop")]
    assert drawn("reproduce") == [committed, "figures/quick"] and drawn("ledger") == ["figures/quick"]
    assert (project / "figures/quick/ledger.csv").exists() and not (project / "build/figures").exists()
    for value in ("[0]", "none"):
        assert drawn("run", PAGE, "-p", "scale", "quick", "-p", "seeds", value) == [own]
    assert (project / "build/figures/quick/ledger.csv").exists()


def test_an_option_or_a_variable_names_another_place_for_all(drawn, project, monkeypatch):
    other = ["--figures", str(project / "other")]
    assert drawn("run", PAGE, *other) == drawn("run", PAGE, "-p", "workers", "2", *other) == [f"other/quick/{PAGE}"]
    assert drawn("reproduce", *other) == [f"other/quick/{PAGE}", "other/quick"]
    monkeypatch.setenv("SPARSEROBUST_FIGURES", str(project / "user"))
    assert drawn("run", PAGE) == drawn("run", PAGE, "-p", "workers", "2") == drawn("refresh") == [f"user/quick/{PAGE}"]
    assert drawn("ledger") == ["user/quick"] and drawn("ledger", *other) == ["other/quick"]
    assert not (project / "figures").exists()


def test_a_relative_variable_counts_from_where_the_command_is_given(drawn, project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setenv("SPARSEROBUST_FIGURES", "user")
    assert drawn("run", PAGE) == [f"user/quick/{PAGE}"]  # kernels work in another folder


def test_where_figures_cannot_be_written_they_go_to_the_build_folder(drawn, project, capsys):
    (project / "figures").write_text("in the way")  # root may write into any folder
    assert drawn("run", PAGE) == [f"build/figures/quick/{PAGE}"]
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{project / 'figures'} cannot be written: figures and tables go to {project / 'build/figures'}"
    assert told[1].endswith(f"figures and tables in build/figures/quick/{PAGE}/")


@pytest.mark.parametrize("variable, folder", [
    ("SPARSEROBUST_BUILD", lambda: paths.build_folder() / "quick"), ("SPARSEROBUST_STORE", paths.store_folder),
    ("SPARSEROBUST_DATA", lambda: paths.data_folder() / "other"),
    ("SPARSEROBUST_FIGURES", lambda: paths.committed_figures() / "quick")])
def test_a_folder_that_cannot_be_written_is_told_with_the_variable_that_moves_it(project, refusal, variable, folder):
    folder().parent.mkdir(parents=True)
    folder().write_text("in the way")
    assert refusal(paths.writable, folder()).endswith(f": free it, or name another folder with {variable}")
    (project / "a").write_text("in the way")
    assert refusal(paths.writable, project / "a").endswith(": free it, or name another folder")


def test_a_variable_that_moves_figures_is_named_where_they_cannot_be_written(project, refusal, monkeypatch):
    (project / "a").write_text("in the way")
    monkeypatch.setenv("SPARSEROBUST_FIGURES", str(project / "a"))
    assert refusal(artifacts.Artifacts, "quick", "b").endswith("name another folder with SPARSEROBUST_FIGURES")


# ------------------------------------------------------------------------------- what differs from machine to machine


def draw(processor: str, seconds: float) -> artifacts.Artifacts:
    frame = pandas.DataFrame([{"run": "0", "metric": "clean", "value": 0.5, "processor": processor}])
    out = artifacts.Artifacts("quick", "99_test")
    out.measurements(frame)
    table = pandas.DataFrame({"MACs": [5.0], "time [s]": [seconds]}, index=["net"])
    shown = out.table(table, "cost", "What it takes.", frame, machine=["time [s]"])
    assert f"{seconds}" in repr(shown), "the page shows all"
    out.figure(plots.curves([0, 1], {"a": [0, seconds]}, "x", "y"), "time", "Times.", frame, machine=True)
    listed = out.finish()["file"].tolist()
    assert listed == ["measurements.csv", "cost.csv", "cost.md", "time.png"]
    return out


def test_figures_are_the_same_on_every_machine_and_the_rest_is_kept_apart(project, monkeypatch):
    def contents(folder):
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    out = draw("one", 1.5)
    here, machine = contents(out.folder), contents(out.machine_folder)
    monkeypatch.setattr(artifacts, "provenance", lambda: provenance.provenance() | {"torch": "9", "commit": "a"})
    draw("another", 2.5)
    assert contents(out.folder) == here and here.keys() == {"measurements.csv", "cost.csv", "cost.md", "manifest.json"}
    assert here["cost.csv"] == b",MACs\nnet,5.0\n"
    assert b"What it takes. In build/machine, since they differ from machine to machine: time [s].\n" in here["cost.md"]
    now = contents(out.machine_folder)
    assert now.keys() == machine.keys() == {"cost.csv", "cost.md", "time.png", "manifest.json"}
    assert not [name for name in now if now[name] == machine[name]]
    assert now["cost.csv"] == b",MACs,time [s]\nnet,5.0,2.5\n" and b"build/machine" not in now["cost.md"]
    manifest = json.loads(now["manifest.json"])
    assert manifest["drawn_on"]["torch"] == "9" and "commit" not in manifest["drawn_on"]
    assert manifest["computed_on"]["measurements.csv"] == ["another"]
    for folder in (out.folder, out.machine_folder):
        for name, entry in files.read_json(folder / "manifest.json")["files"].items():
            assert entry["sha256"] == files.sha256(folder / name)


COMMITTED = sorted(path.parent for path in paths.committed_figures().glob("*/*/manifest.json"))


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_committed_manifests_are_true(folder):
    manifest = files.read_json(folder / "manifest.json")
    assert manifest.keys() == {"scale", "notebook", "files"}
    assert (manifest["scale"], manifest["notebook"]) == (folder.parent.name, folder.name)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *manifest["files"]}
    for name, entry in manifest["files"].items():
        assert entry.keys() == {"caption", "runs", "sha256"} and entry["sha256"] == files.sha256(folder / name)


# --------------------------------------------------------------------------------------------------- as committed


def git(project, *words):
    subprocess.run(["git", "-C", project, "-c", "user.name=A", "-c", "user.email=a@b.c", *words], check=True,
                   capture_output=True)


def made(folder, *others):
    """What pages a and b make, and the ledger."""
    for page in "ab":
        table = folder / "quick" / page / "t.csv"
        files.write(table, page.encode())
        files.write_json(table.with_name("manifest.json"), {"files": {name: {} for name in ("t.csv", *others)}})
    files.write(folder / "quick" / "ledger.csv", b"l")


@pytest.fixture(params=["sha1", "sha256"])
def repository(project, request):
    """A project whose figures of the scale quick are committed."""
    git(project, "init", "--quiet", f"--object-format={request.param}")
    made(project / "figures")
    git(project, "add", "figures")
    git(project, "commit", "--quiet", "-m", "figures")
    return project


@pytest.mark.parametrize("where", ["figures", "other"])
def test_files_are_compared_with_those_that_are_committed(repository, where):
    def compared(*pages, scale="quick"):
        with paths.figures_in(repository / where):
            return freshness.compared([*pages], scale)

    made(repository / where)
    assert compared("a", "b") == ["5 of 5 files came out byte for byte as committed"]
    (repository / where / "quick/a/t.csv").write_text("other")
    (repository / where / "quick/a/new.csv").write_text("no page lists it, so none has made it")
    assert compared("a", "b") == [
        "4 of 5 files came out byte for byte as committed", "  a/t.csv: differs", f"  {freshness.DRIFT}"]
    assert compared("b")[1:] == ["  a/manifest.json: committed, but not made", "  a/t.csv: committed, but not made"]
    (repository / where / "quick/b/t.csv").unlink()
    assert compared("a", "b")[1:] == [
        "  a/t.csv: differs", "  b/t.csv: committed, but not made", f"  {freshness.DRIFT}"]
    assert compared("a", "b", scale="laptop") == [
        "nothing to compare with: no files of scale laptop are known to be committed"]


def test_at_most_a_dozen_files_are_named(repository):
    names = [f"{number:02d}.csv" for number in range(20)]
    for name in names:
        files.write(repository / "figures/quick/a" / name, b"")
    made(repository / "figures", *names)
    first, *named, more, why = freshness_of(repository / "figures")
    assert first == "3 of 25 files came out byte for byte as committed"  # both manifests list the new ones
    assert named == [f"  a/{name}: made, but not committed" for name in names[:12]]
    assert [more, why] == ["  and 10 more", f"  {freshness.DRIFT}"]  # the manifests differ


def freshness_of(folder):
    with paths.figures_in(folder):
        return freshness.compared(["a", "b"], "quick")


@pytest.mark.parametrize("without", [{"PATH": ""}, {}], ids=["no git", "no repository"])
def test_where_git_knows_nothing_other_places_are_compared_with_figures(project, monkeypatch, without):
    for name, value in without.items():
        monkeypatch.setenv(name, value)
    made(project / "figures")
    assert freshness_of(project / "figures")[0].startswith("nothing to compare with")
    made(project / "other")
    (project / "other/quick/b/t.csv").write_text("other")
    assert freshness_of(project / "other") == [
        "4 of 5 files came out byte for byte as committed", "  b/t.csv: differs", f"  {freshness.DRIFT}"]
