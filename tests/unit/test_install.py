"""The library where it lies in no checkout: a wheel, in an environment of its own, used from an empty folder."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import nbformat
import pytest

from sparserobust import cli, paths, provenance

BIN = "Scripts" if os.name == "nt" else "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from this checkout, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "uv", "build", "--wheel", "--no-build-isolation", "--offline", "--quiet",
                    "--python", sys.executable, "--out-dir", folder, paths.PROJECT], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs commands of an environment that has the wheel, and all else from this one, as a user who has set nothing."""
    home = tmp_path_factory.mktemp("home")
    uv = [sys.executable, "-m", "uv", "--quiet", "--offline"]
    subprocess.run([*uv, "venv", "--python", sys.executable, home / "env"], check=True)
    subprocess.run([*uv, "pip", "install", "--no-deps", "--python", home / "env", wheel], check=True)
    (site,) = home.glob("env/**/site-packages")
    # .pth files in the folder that this one names, such as that of this checkout, do not count
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    environment = {name: value for name, value in os.environ.items()
                   if name != "PYTHONPATH" and not name.startswith(("SPARSEROBUST", "XDG"))}
    environment |= {"HOME": str(home), "SPARSEROBUST_DEVICE": "cpu"}
    before = inside(site)

    def installed(command: str, *words: str, folder: Path, code: int = 0) -> str:
        done = subprocess.run([home / "env" / BIN / command, *words], cwd=folder, env=environment, text=True,
                              capture_output=True)
        assert done.returncode == code, done.stderr[-2000:]
        assert inside(site) == before, "something was written beside the library"
        return done.stdout + done.stderr

    installed.home = home
    return installed


def inside(site: Path) -> set[Path]:
    return {path for path in site.rglob("*") if "__pycache__" not in path.parts}


def test_a_wheel_holds_whatever_the_library_reads_and_nothing_that_was_made_here(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = (provenance.git("ls-files", "-z") or "").rstrip("\0").split("\0")
    assert len(tracked) > 2000
    left_out = re.compile(r"figures/.*\.(png|md)|notebooks/ruff.toml")
    project = {f"sparserobust/project/{name}" for name in tracked
               if name.startswith(("data/", "notebooks/", "figures/")) and not left_out.fullmatch(name)}
    library = {name.removeprefix("lib/") for name in tracked if name.startswith("lib/")}
    assert {name for name in names if ".dist-info/" not in name} == project | library
    assert {f"sparserobust/project/{name}" for name in (
        "notebooks/00_start_here.ipynb", "notebooks/settings/scales.yaml", "notebooks/own_method.py",
        "data/reported/rsr.yaml", "data/networks/lasso.safetensors", "data/sample/images.png", "data/anchors.yaml",
        "data/tuning/quick.csv", "figures/quick/06_side_by_side/table1_methods.csv")} <= names


@pytest.mark.slow
def test_a_wheel_works_in_an_empty_folder(installed, tmp_path):
    asked = installed("python", "-c", "import sparserobust as sr; from sparserobust import paths; "
                      "print(len(sr.data.sample().images), sr.networks.load('lasso').training, paths.PROJECT, "
                      "paths.build_folder())", folder=tmp_path)
    assert asked.startswith("100 False ") and str(paths.PROJECT) not in asked
    assert str(installed.home / ".local" / "share" / "sparserobust" / "build") in asked
    assert "did you mean 'quick'? known: quick, " in installed("sparserobust", "ledger", "--scale", "quik", code=1,
                                                               folder=tmp_path)
    assert "claims in " in installed("sparserobust", "ledger", folder=tmp_path)
    assert "lasso" in installed("sparserobust", "networks", folder=tmp_path)
    assert "init FOLDER makes a folder" in installed("sparserobust", "refresh", code=1, folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_page_runs_in_a_folder_that_init_has_made(installed, tmp_path):
    assert "go there by cd work" in installed("sparserobust", "init", "work", folder=tmp_path)
    work = tmp_path / "work"
    scales = work / "notebooks" / "settings" / "scales.yaml"
    scales.write_text(scales.read_text().replace("quick:", "mine: mine\nquick:", 1))
    below = work / "notebooks" / "settings"  # anywhere in it
    assert "known: mine, quick, " in installed("sparserobust", "ledger", "--scale", "x", code=1, folder=below)
    told = installed("sparserobust", "run", "00", folder=work)
    assert "figures and tables in figures/quick/00_start_here/" in told
    executed = nbformat.read(work / "build" / "quick" / "00_start_here.ipynb", as_version=4)
    assert "release " in str(executed.cells) and list((work / "figures/quick/00_start_here").glob("*.png"))
    store = installed.home / ".local" / "share" / "sparserobust" / "runs"
    assert len(list(store.glob("*/record.json"))) == 2
    assert "0 files written" in installed("sparserobust", "init", "work", folder=tmp_path)
    assert "mine" in scales.read_text()


# ------------------------------------------------------------------------------------------------- without a wheel


@pytest.fixture
def packaged(tmp_path, monkeypatch) -> Path:
    """A library that lies in no checkout, with two files of a project."""
    folder = tmp_path / "site-packages" / "sparserobust" / "project"
    (folder / paths.SCALES.parent).mkdir(parents=True)
    (folder / paths.SCALES).write_text("quick: 1\n")
    (folder / "notebooks" / "own.py").write_text("1\n")
    for name, value in {"IN_CHECKOUT": False, "PACKAGED": folder, "PROJECT": folder,
                        "_users": lambda: tmp_path / "users"}.items():
        monkeypatch.setattr(paths, name, value)
    for name in paths.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return folder


def test_what_a_user_makes_never_lies_beside_the_library(packaged, refusal, tmp_path):
    for folder in (paths.data_folder(), paths.store_folder(), paths.build_folder(), paths.figures_folder("quick", "a"),
                   paths.machine_folder("quick", "a")):
        assert folder.is_relative_to(tmp_path / "users")
    before = inside(tmp_path)
    for folder in (paths.committed_figures(), paths.published_folder() / "quick", packaged):
        assert "init FOLDER makes a folder" in refusal(paths.writable, folder)
    assert inside(tmp_path) == before


def test_init_keeps_what_is_there(packaged, tmp_path, monkeypatch):
    work = tmp_path / "work"
    assert [path.name for path in paths.init(work)] == ["own.py", "scales.yaml"]
    (work / "notebooks" / "own.py").write_text("mine")
    (work / paths.SCALES).unlink()
    assert [path.name for path in paths.init(work)] == ["scales.yaml"]
    assert (work / "notebooks" / "own.py").read_text() == "mine"
    monkeypatch.chdir(work / "notebooks")
    assert paths._project() == work
    monkeypatch.chdir(tmp_path)
    assert paths._project() == packaged
    monkeypatch.setenv("SPARSEROBUST_HOME", str(work))
    assert paths._project() == work


def test_a_checkout_needs_no_folder_to_work_in(tmp_path, capsys):
    assert cli.main(["init", str(tmp_path / "work")]) == 1 and not list(tmp_path.iterdir())
    assert str(paths.LIBRARY.parents[1]) in capsys.readouterr().err


def test_a_repository_around_an_installed_library_is_not_its_commit(monkeypatch):
    monkeypatch.setattr(provenance, "IN_CHECKOUT", False)
    assert provenance.git("rev-parse", "HEAD") is None
    assert provenance.commit.__wrapped__().startswith("release ")
