"""A sixth study is one folder, one settings file, one notebook and one file of reported numbers; nothing else is
touched."""

import os
import shutil
import subprocess
import sys

import nbformat
import pandas
import pytest

from sparserobust.paths import PROJECT

FILES = {
    "lib/sparserobust/studies/toy/__init__.py": """\
from sparserobust.studies.toy.report import judged
from sparserobust.studies.toy.runs import experiment
""",
    "lib/sparserobust/studies/toy/runs.py": """\
from sparserobust.config import Recipe
from sparserobust.running.experiment import planned
from sparserobust.running.scales import StudySettings
from sparserobust.settings import settings
from sparserobust.sparsifiers import Magnitude


@settings
class ToySettings(StudySettings):
    levels: tuple[float, ...]
    fine_tuning: Recipe


def experiment(scale, seeds=None):
    return planned("toy", scale, seeds, ToySettings, rows)


def rows(own, net, seed, first):
    dense = own.run(seed)
    yield {"method": "dense", "level": 0.0, "run": dense}
    for level in own.levels:
        pruned = dense.then(recipe=own.fine_tuning, sparsifier=Magnitude(sparsity=level))
        yield {"method": "pruned", "level": level, "run": pruned}
""",
    "lib/sparserobust/studies/toy/report.py": """\
from sparserobust.reporting import claims, reported


def judged(results):
    dense, pruned = {"method": "dense"}, {"method": "pruned", "level": 0.5}
    claim = reported.load("toy").claim("C1")
    return claims.judge(results.frame, [claims.Contrast(claim, "clean", pruned, dense, "07_toy")])
""",
    "notebooks/settings/toy.yaml": """\
quick:
  seeds: [0, 1, 2]
  data: {name: digits, train_images: 200}
  model: {kind: preact_resnet, depth: 8, width: 2}
  objective: {kind: natural}
  recipe: {epochs: 6, batch_size: 16, precision: float32}
  fine_tuning: {epochs: 0}
  levels: [0.5, 0.9]
  measurements:
    all:
      clean: {kind: accuracy}
    first:
      rows: {seed: first}
      sparsity: {kind: sparsity}
""",
    "data/reported/toy.yaml": """\
paper: toy
answer: "none"
citation: {title: A toy, authors: [A. Toy], year: 2026}
claims:
  - {id: C1, statement: Pruning helps, quantity: clean accuracy, unit: percentage points, direction: increase,
     value: null, kind: open, grade: open, source: null}
ledger:
  - {id: C1, claim: C1, primary: C1, words: A pruned network is more accurate}
tables: []
hyperparameters: {}
""",
}
CELLS = ["""\
scale: str = "quick"
""", """\
from sparserobust.reporting import artifacts
from sparserobust.running.store import Store
from sparserobust.studies import ledger
from sparserobust.studies.toy import report, runs

results = runs.experiment(scale).results(Store())
out = artifacts.Artifacts(scale, "07_toy")
rows = report.judged(results)
out.judged(rows, ledger(results, rows), results.frame, "The claims of a toy.")
out.finish()
"""]


@pytest.mark.slow
def test_a_study_is_added_by_new_files_alone(tmp_path):
    shutil.copytree(PROJECT / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copy(PROJECT / "notebooks" / "settings" / "scales.yaml", tmp_path / "notebooks" / "settings")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, tmp_path / "notebooks" / "07_toy.ipynb")
    home = {"PYTHONPATH": str(tmp_path / "lib"), "SPARSEROBUST_HOME": str(tmp_path), "SPARSEROBUST_DEVICE": "cpu",
            "SPARSEROBUST_FIGURES": "", "SPARSEROBUST_BUILD": ""}

    def command(*words: str) -> str:
        done = subprocess.run([sys.executable, "-m", "sparserobust.cli", *words], capture_output=True, text=True,
                              env=os.environ | home, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = command("reproduce", "--scale", "quick")
    assert "07_toy: done" in told and "nothing to compare with" in told.splitlines()[-1]
    (line,) = pandas.read_csv(tmp_path / "figures/quick/07_toy/ledger.csv").to_dict("records")
    assert (line["words"], line["n_seeds"]) == ("A pruned network is more accurate", 3)
    assert line["ours"] < 0 and line["verdict"] in ("does not hold", "open")
    command("publish", "--scale", "quick")
    assert len(list((tmp_path / "data/published/quick").glob("*.json"))) == 9
