"""Many notebooks at once: what is computed for them, and how they are run."""

import subprocess
from types import SimpleNamespace

import pandas
import pytest

from scaffolding import experiment_of
from sparserobust import Accuracy, Store, cli, notebook_runner, paths, studies
from sparserobust.analysis import WeightSparsity
from sparserobust.errors import UserError
from sparserobust.reporting import artifacts, claims
from sparserobust.running import scales


def test_every_notebook_of_a_paper_has_its_module():
    of_papers = [name.split("_", 1)[1] for name in notebook_runner.names()]
    assert sorted(studies.modules()) == sorted(of_papers)


@pytest.mark.slow
def test_all_that_papers_measure_is_computed_in_one_sweep(tmp_path, monkeypatch, tiny_run):
    runs = [tiny_run(seed=seed) for seed in (0, 1)]

    def paper(run, **also):
        grid = [{"net": "n", "run": run, "measurements": {"sparsity": WeightSparsity()} | also}]
        return SimpleNamespace(experiment=lambda scale: experiment_of(grid, scale))

    found = {"one": paper(runs[0], clean=Accuracy()), "two": paper(runs[1]), "three": paper(tiny_run(seed=2))}
    monkeypatch.setattr(studies, "modules", lambda: found)
    monkeypatch.setattr(scales, "has", lambda scale, paper: True)
    monkeypatch.setenv("SPARSEROBUST_STORE", str(tmp_path))
    notebook_runner.compute(["one", "two"], "quick")
    store = Store()
    assert store.find(runs[0], Accuracy()) and store.find(runs[0], WeightSparsity())
    assert store.find(runs[1], WeightSparsity()) and not store.find(runs[1], Accuracy())
    assert not (tmp_path / tiny_run(seed=2).identity).exists()


@pytest.fixture
def executed(monkeypatch, tmp_path) -> list[list[str]]:
    """Commands that would have been run; those that name 02_b fail. The later a notebook, the larger it is."""
    commands = []

    def find(name):
        path = tmp_path / name
        path.write_bytes(bytes(int(name[:2])))
        return path

    def run(words, **_):
        commands.append(words[1:])
        bad = "02_b" in words
        told = "warning\nerror: 02_b.ipynb, cell 3: why\n" if bad else ""
        return subprocess.CompletedProcess(words, int(bad), stderr=told)

    monkeypatch.setattr(notebook_runner, "find", find)
    monkeypatch.setattr(notebook_runner, "cores", lambda: 1)
    monkeypatch.setattr(notebook_runner.subprocess, "run", run)
    monkeypatch.setattr(notebook_runner, "compute", lambda names, scale, all_of_it: commands.append(
        ["compute", names, scale, all_of_it]))
    monkeypatch.setattr(scales, "has", lambda scale, paper: paper != "absent")
    return commands


def test_notebooks_are_run_once_all_is_computed(executed, capsys):
    lines = notebook_runner.reproduce(["01_a", "03_c_d"], "laptop")
    assert executed[0] == ["compute", ["a", "c_d"], "laptop", False]
    assert executed[1:] == [["-m", "sparserobust.cli", "run", name, "-p", "scale", "laptop"]
                            for name in ("03_c_d", "01_a")]
    assert [line.split(":")[0] for line in lines] == ["01_a", "03_c_d"] and "figures/laptop/03_c_d/" in lines[1]
    assert "03_c_d: done" in capsys.readouterr().out


def test_notebooks_without_settings_at_a_scale_are_named_and_left_out(executed, capsys):
    lines = notebook_runner.reproduce(["01_a", "02_absent", "03_c_d"], "laptop")
    assert executed[0] == ["compute", ["a", "c_d"], "laptop", False] and len(executed) == 3 and len(lines) == 2
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "scale laptop has no settings for 02_absent: left out" and "what 2 notebooks need" in told[1]


def test_experiments_are_those_of_papers_that_the_scale_has(monkeypatch):
    module = SimpleNamespace(experiment=lambda scale: f"all at {scale}")
    monkeypatch.setattr(studies, "modules", lambda: {"here": module, "absent": module})
    monkeypatch.setattr(scales, "has", lambda scale, paper: paper != "absent")
    assert studies.experiments("quick") == {"here": "all at quick"}


def test_a_notebook_that_fails_leaves_the_others_alone_and_is_named(executed, capsys):
    with pytest.raises(UserError, match=r"^02_b\.ipynb, cell 3: why$"):
        notebook_runner.reproduce(["01_a", "02_b", "03_c"], "quick")
    assert len(executed) == 4
    assert "02_b: failed" in capsys.readouterr().out


def test_a_notebook_that_dies_without_a_word_is_named(executed, monkeypatch):
    monkeypatch.setattr(notebook_runner.subprocess, "run",
                        lambda words, **_: subprocess.CompletedProcess(words, -9, stderr=""))
    with pytest.raises(UserError, match=r"^01_a: its process died \(exit code -9\)$"):
        notebook_runner.reproduce(["01_a"], "quick")


# ----------------------------------------------------------------------------------------------------- the ledger


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Two notebooks with claims."""
    monkeypatch.setattr(paths, "figures_folder", lambda scale, notebook: tmp_path / scale / notebook)
    row = {"line": "C1", "words": "A is better than B", "claim": "C1 a", "quantity": "q", "unit": "percentage points",
           "reported": None, "ours": 1.0, "low": 0.5, "high": 1.5, "n_seeds": 3, "images": 500, "p": 0.01,
           "p_holm": 0.02, "verdict": claims.HOLDS, "why": "", "where": "01_a, table 1"}
    untested = row | {"claim": "C1 b", "words": "A is better than C", "n_seeds": 1, "low": None, "high": None,
                      "p": None, "p_holm": None, "verdict": claims.UNTESTED, "why": "one seed"}
    first = pandas.DataFrame([row, untested])
    second = pandas.DataFrame([untested | {"claim": "C8", "words": "D", "ours": None, "n_seeds": 0, "reported": 2.5,
                                           "why": "not run at this scale", "where": "02_b, figure 1"}])
    for name, lines in (("01_a", first), ("02_b", second)):
        artifacts.Artifacts("quick", name).judged(lines, lines, None, "Claims.")
    return tmp_path / "quick"


def test_the_ledger_joins_the_claims_of_all_notebooks(judged):
    whole = artifacts.ledger("quick")
    assert list(whole["notebook"]) == ["01_a", "01_a", "02_b"] and list(whole["claim"]) == ["C1 a", "C1 b", "C8"]
    for name in ("ledger.csv", "claims.csv"):
        assert list(pandas.read_csv(judged / name)["claim"]) == ["C1 a", "C1 b", "C8"]
    assert whole.columns[0] == "notebook" and whole.loc[0, "where"] == "01_a, table 1"


def test_the_ledger_is_printed_in_words_with_intervals_and_verdicts(judged, capsys):
    assert cli.main(["ledger"]) == 0
    told = capsys.readouterr().out
    assert "01_a, scale quick:" in told and "02_b, scale quick:" in told and "nan" not in told
    assert "holds          A is better than B: +1.0 [+0.5, +1.5] points; 3 seeds, 500 images." in told
    assert "not tested     A is better than C: +1.0 points; 1 seed" in told and "one seed." in told
    assert told.strip().endswith("  01_a: 1 holds, 1 not tested\n  02_b: 1 not tested")


def test_without_claims_the_ledger_says_what_to_do(tmp_path, monkeypatch, refusal):
    monkeypatch.setattr(paths, "figures_folder", lambda scale, notebook: tmp_path / scale / notebook)
    assert "sparserobust reproduce --scale laptop" in refusal(artifacts.ledger, "laptop")


@pytest.mark.parametrize("table", ["claims.csv", "ledger.csv"])
@pytest.mark.parametrize("scale", scales.names())
def test_the_committed_ledger_is_that_of_the_notebooks(scale, table):
    folder = paths.figures_folder(scale, ".")
    parts = {path.parent.name: pandas.read_csv(path) for path in sorted(folder.glob(f"*/{table}"))}
    if not parts:
        assert not (folder / table).exists()
        return
    whole = pandas.read_csv(folder / table)
    assert list(whole["notebook"].unique()) == list(parts)
    for name, part in parts.items():
        mine = whole[whole["notebook"] == name].drop(columns="notebook").reset_index(drop=True)
        pandas.testing.assert_frame_equal(mine[part.columns], part, check_dtype=False)
