"""Many notebooks at once: what is computed for them, and how they are run."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pandas
import pytest

from scaffolding import experiment_of
from sparserobust import Accuracy, Data, Store, cli, files, freshness, kernels, notebook_runner, paths, studies
from sparserobust.analysis import WeightSparsity
from sparserobust.errors import UserError
from sparserobust.provenance import machine
from sparserobust.reporting import artifacts, claims, reported
from sparserobust.running import scales, sweep
from sparserobust.running.jobs import Task

MEASURED = {"sparsity": WeightSparsity()}


def test_every_notebook_of_a_paper_has_its_module():
    of_papers = [name.split("_", 1)[1] for name in notebook_runner.names()]
    assert sorted(studies.modules()) == sorted(of_papers)


@pytest.mark.slow
def test_compute_does_all_that_papers_measure_or_one_of_them_and_says_what_it_cost(
        tmp_path, monkeypatch, tiny_run, capsys):
    runs = [tiny_run(seed=seed) for seed in (0, 1)]

    def paper(run, **also):
        grid = [{"net": "n", "run": run, "measurements": {"sparsity": WeightSparsity()} | also}]
        return SimpleNamespace(experiment=lambda scale: experiment_of(grid, scale))

    found = {"one": paper(runs[0], clean=Accuracy()), "two": paper(runs[1])}
    monkeypatch.setattr(studies, "modules", lambda: found)
    monkeypatch.setattr(scales, "has", lambda scale, paper: True)
    monkeypatch.setenv("SPARSEROBUST_STORE", str(tmp_path))
    assert cli.main(["compute", "--study", "one"]) == 0
    assert Store().find(runs[0], Accuracy()) and Store().find(runs[0], WeightSparsity())
    assert not Store().trained(runs[1])
    assert cli.main(["compute"]) == 0
    assert Store().find(runs[1], WeightSparsity()) and not Store().find(runs[1], Accuracy())
    assert capsys.readouterr().out.count("by all processes together") == 2
    monkeypatch.setattr(paths, "published_folder", lambda: tmp_path / "published")
    Store().publish(runs, "quick")
    monkeypatch.setenv("SPARSEROBUST_STORE", str(tmp_path / "elsewhere"))
    for fresh in ([], ["--fresh"]):
        assert cli.main(["compute", *fresh]) == 0
        assert [Store().trained(run) for run in runs] == [bool(fresh)] * 2


# ------------------------------------------------------------------------------------- which page, when


@pytest.fixture
def project(tmp_path, monkeypatch, tiny_run) -> SimpleNamespace:
    """A project with three pages, whose papers need the runs of these seeds at the scale quick; `executed` lists the
    pages that were executed (nothing but a figure comes of it), `bad` those that fail."""
    needed = {"a": (0,), "b": (0, 1), "c": (2, 3, 4)}
    for name, text in {"notebooks/01_a.ipynb": "from own import method", "notebooks/02_b.ipynb": "a longer page, " * 9,
                       "notebooks/03_c.ipynb": "page", "notebooks/own.py": "1", "notebooks/settings/scales.yaml": "1",
                       "lib/part/one.py": "1", "reported/a.yaml": "1", "published/quick/other.json": "{}",
                       **{f"notebooks/settings/{paper}.yaml": "1" for paper in needed}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    experiments = {paper: experiment_of([{"seed": seed, "run": tiny_run(seed=seed), "measurements": MEASURED}
                                         for seed in seeds], "quick", study=paper) for paper, seeds in needed.items()}
    monkeypatch.setattr(studies, "experiments", lambda scale: experiments)
    monkeypatch.setattr(scales, "has", lambda scale, paper: paper in experiments)
    monkeypatch.setattr(scales, "check", lambda scale: None)
    monkeypatch.setattr(notebook_runner, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    monkeypatch.setattr(notebook_runner, "cores", lambda: 1)
    monkeypatch.setattr(paths, "settings_folder", lambda: tmp_path / "notebooks" / "settings")
    monkeypatch.setattr(paths, "published_folder", lambda: tmp_path / "published")
    monkeypatch.setenv("SPARSEROBUST_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("SPARSEROBUST_BUILD", str(tmp_path / "build"))
    monkeypatch.setattr(reported, "FOLDER", tmp_path / "reported")
    monkeypatch.setattr("sparserobust.provenance.LIBRARY", tmp_path / "lib")
    monkeypatch.setattr(kernels, "fork", lambda: None)
    monkeypatch.setenv("SPARSEROBUST_STORE", str(tmp_path / "runs"))
    found = SimpleNamespace(folder=tmp_path, experiments=experiments, executed=[], bad=[], grids=None, parameters=None)

    def run(name, parameters, output, shown):
        assert not shown
        found.parameters = parameters
        found.executed.append(name)
        if name in found.bad:
            raise UserError(f"{name}.ipynb, cell 3: why")
        out = artifacts.Artifacts("quick", name)
        out.table(pandas.DataFrame({"x": [len(found.executed)], "s": [9]}), "table", "A table.", machine=["s"])
        out.finish()
        files.write(output, name.encode())
        return output

    monkeypatch.setattr(notebook_runner, "run", run)
    return found


@pytest.fixture
def computed(project):
    """All that the pages need is there."""
    for experiment in project.experiments.values():
        for row in experiment.grid:
            Store().measure(row["run"], WeightSparsity())
    return project


def pretend(monkeypatch, project, failing=()) -> None:
    """Runs end one after another in the order of the grids, those of the seeds in `failing` badly; each page that can
    be executed then is executed before the next run ends."""
    def compute_all(grids, measurements, store, finished):
        project.grids = [[row["paper"] for row in grid] for grid in grids]
        for row in [row for grid in grids for row in grid]:
            if row["seed"] not in failing and store.find(row["run"], WeightSparsity()) is None:
                store.measure(row["run"], WeightSparsity())
                project.executed.append(row["seed"])
                finished(row["run"].identity)
                time.sleep(0.3)
        if failing:
            raise UserError("1 of 5 runs failed, the others are kept:\n  seed 3: why")

    monkeypatch.setattr(sweep, "compute_all", compute_all)


def test_each_page_is_executed_as_soon_as_its_own_runs_are_there_the_cheapest_first(project, monkeypatch, capsys):
    pretend(monkeypatch, project)
    lines = notebook_runner.reproduce(["03_c", "02_b", "01_a"], "quick")
    assert project.executed == [0, "01_a", 1, "02_b", 2, 3, 4, "03_c"]
    assert project.grids == [["a"], ["b", "b"], ["c", "c", "c"]] and project.parameters == {"scale": "quick"}
    assert [line.split(":")[0] for line in lines] == ["03_c", "02_b", "01_a"] and "figures/quick/02_b/" in lines[1]
    told = capsys.readouterr().out
    assert told.startswith("3 notebooks at scale quick, 5 runs to compute") and "02_b: done" in told


def test_runs_that_papers_share_count_for_the_first_of_them(project, tiny_run):
    def tasks(*epochs):
        return [Task(tiny_run(data=Data(), epochs=each), (), "", ()) for each in epochs]

    assert notebook_runner.cheapest_first({"01_a": tasks(10, 9), "02_b": tasks(6, 5), "03_c": tasks(10, 6)}) == [
        "02_b", "03_c", "01_a"]  # 11; then 10 of 16, and 9 of 19
    assert notebook_runner.cheapest_first({"01_a": [], "02_b": [], "03_c": []})[0] == "02_b", "the largest page"


def test_a_page_whose_runs_failed_is_not_executed_and_named(project, monkeypatch):
    pretend(monkeypatch, project, failing=[3])
    with pytest.raises(UserError) as caught:
        notebook_runner.reproduce(["01_a", "02_b", "03_c"], "quick")
    assert str(caught.value).splitlines() == ["1 of 5 runs failed, the others are kept:", "  seed 3: why",
                                              "03_c: not executed, 1 of its runs failed"]
    assert "02_b" in project.executed and "03_c" not in project.executed


def test_a_page_that_fails_leaves_the_others_alone_is_named_and_counts_as_not_executed(computed, capsys):
    computed.bad.append("02_b")
    for _ in range(2):
        with pytest.raises(UserError, match=r"^02_b\.ipynb, cell 3: why$"):
            notebook_runner.reproduce(["01_a", "02_b", "03_c"], "quick")
        assert "02_b: failed" in capsys.readouterr().out
    assert sorted(computed.executed) == ["01_a", "02_b", "02_b", "03_c"]


def test_an_interrupt_kills_the_kernels_and_is_passed_on(project, monkeypatch):
    def compute_all(*_, finished):
        raise KeyboardInterrupt

    killed = []
    monkeypatch.setattr(sweep, "compute_all", compute_all)
    monkeypatch.setattr(kernels, "kill", lambda: killed.append(True))
    with pytest.raises(KeyboardInterrupt):
        notebook_runner.reproduce(["01_a"], "quick")
    assert killed


def test_notebooks_without_settings_at_a_scale_are_named_and_left_out(computed, capsys):
    lines = notebook_runner.reproduce(["01_a", "02_absent"], "quick")
    assert computed.executed == ["01_a"] and len(lines) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "scale quick has no settings for 02_absent: left out" and told[1].startswith("1 notebooks")


def test_experiments_are_those_of_papers_that_the_scale_has(monkeypatch):
    module = SimpleNamespace(experiment=lambda scale: f"all at {scale}")
    monkeypatch.setattr(studies, "modules", lambda: {"here": module, "absent": module})
    monkeypatch.setattr(scales, "has", lambda scale, paper: paper != "absent")
    assert studies.experiments("quick") == {"here": "all at quick"}


# ------------------------------------------------------------------------------------- whether a page is executed


def write(name: str):
    """Another byte in a file, or a new file."""
    def change(project):
        (project.folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (project.folder / name).open("a") as file:
            file.write("2")

    return change


def rewrite(pattern: str):
    """Another byte in a file of the run of seed 0."""
    def change(project):
        (path,) = project.folder.glob(f"runs/{project.experiments['a'].grid[0]['run'].identity}/{pattern}")
        path.write_bytes(path.read_bytes() + b" ")

    return change


def publish(project) -> None:
    identity = project.experiments["a"].grid[0]["run"].identity
    (project.folder / "published" / "quick" / f"{identity}.json").write_text("{}")


@pytest.mark.parametrize("change, kind", [
    (write("notebooks/01_a.ipynb"), "page"), (write("notebooks/own.py"), "modules beside it"),
    (write("lib/part/one.py"), "library"), (write("lib/part/two.py"), "library"),
    (write("notebooks/settings/a.yaml"), "settings"), (write("notebooks/settings/scales.yaml"), "settings"),
    (write("reported/a.yaml"), "reported numbers"), (write("data/anchors.yaml"), "data that come along"),
    (write("data/tuning/quick.csv"), "data that come along"), (write("data/networks/a.json"), "data that come along"),
    (write("data/sample/a.webp"), "data that come along"), (rewrite("record.json"), "records"),
    (rewrite("provenance.json"), "records"), (rewrite("model.safetensors"), "records"),
    (rewrite("measured/*.json"), "records"), (publish, "records"),
    (write("build/quick/01_a.ipynb"), "outputs"), (write("figures/quick/01_a/table.csv"), "outputs"),
    (lambda project: (project.folder / "figures/quick/01_a/table.md").unlink(), "outputs"),
    (lambda project: (project.folder / "figures/quick/01_a/manifest.json").unlink(), "outputs"),
    (write("build/machine/quick/01_a/table.csv"), "outputs"), (write("build/machine/quick/01_a/table.md"), "outputs"),
    (lambda project: (project.folder / "build/machine/quick/01_a/manifest.json").unlink(), "outputs"),
    (lambda project: (project.folder / "build/quick/01_a.json").unlink(), "outputs"),
    (lambda project: (project.folder / "build/quick/01_a.json").write_text("[]"), "outputs"),
    (lambda project: (project.folder / "figures/quick/01_a/manifest.json").write_text("{}"), "outputs")])
def test_whatever_has_changed_the_page_counts_as_changed(computed, change, kind):
    notebook_runner.reproduce(["01_a"], "quick")
    executed = computed.folder / "build" / "quick" / "01_a.ipynb"

    def changed():
        given = freshness.inputs(computed.folder / "notebooks/01_a.ipynb", computed.experiments["a"], Store())
        return freshness.changed(executed, given)

    assert changed() == []
    change(computed)
    assert changed() == [kind]


def test_other_packages_another_machine_and_another_scale_count_as_changes(computed, monkeypatch):
    page, experiment = computed.folder / "notebooks/01_a.ipynb", computed.experiments["a"]
    before = freshness.inputs(page, experiment, Store())
    assert freshness.inputs(page, replace(experiment, scale="laptop"), Store()) | {"scale": "quick"} == before
    with monkeypatch.context() as patch:
        patch.setattr("sparserobust.provenance.commit", lambda: "another")
        assert freshness.inputs(page, experiment, Store()) == before
        patch.setattr(freshness, "machine", lambda: machine() | {"torch": "another"})
        assert freshness.inputs(page, experiment, Store())["machine"] != before["machine"]
    (computed.folder / "numpy-99.dist-info").mkdir()
    monkeypatch.syspath_prepend(computed.folder)
    assert freshness.inputs(page, experiment, Store())["machine"] != before["machine"]


def test_a_page_is_executed_again_only_if_something_has_changed_for_it_or_it_is_asked_for(computed, capsys):
    def reproduced(**options):
        computed.executed.clear()
        notebook_runner.reproduce(["01_a", "02_b", "03_c"], "quick", **options)
        return sorted(computed.executed)

    assert reproduced() == ["01_a", "02_b", "03_c"] and reproduced() == []
    assert "02_b: unchanged" in capsys.readouterr().out
    write("notebooks/own.py")(computed)  # which one page imports
    assert reproduced() == ["01_a"] and reproduced() == []
    rewrite("measured/*.json")(computed)  # of a run that two papers share
    assert reproduced() == ["01_a", "02_b"] and reproduced() == []
    write("notebooks/settings/c.yaml")(computed)
    assert reproduced() == ["03_c"] and reproduced(redraw=True) == ["01_a", "02_b", "03_c"]


def test_published_records_stand_in_unless_all_is_to_be_fresh(computed, monkeypatch, capsys):
    Store().publish([row["run"] for each in computed.experiments.values() for row in each.grid], "quick")
    monkeypatch.setenv("SPARSEROBUST_STORE", str(computed.folder / "empty"))
    pretend(monkeypatch, computed)
    notebook_runner.reproduce(["01_a"], "quick")
    assert computed.executed == ["01_a"] and computed.parameters == {"scale": "quick"}
    assert "0 runs to compute" in capsys.readouterr().out
    for _ in range(2):  # then all of it is there
        notebook_runner.reproduce(["01_a"], "quick", fresh=True)
        assert computed.executed == ["01_a", 0, "01_a"]
        assert computed.parameters == {"scale": "quick", "use_published": "false"}
    notebook_runner.reproduce(["01_a"], "quick")
    assert computed.executed == ["01_a", 0, "01_a", "01_a"], "drawn from other records"


def test_the_command_line_passes_on_what_is_asked_for(monkeypatch, judged):
    asked = []
    monkeypatch.setattr(notebook_runner, "reproduce", lambda names, *words: asked.append(words) or [])
    for words in ([], ["--redraw"], ["--fresh", "--scale", "laptop"]):
        assert cli.main(["reproduce", *words]) == 0 or "laptop" in words  # of which nothing is judged here
    assert asked == [("quick", False, False), ("quick", True, False), ("laptop", False, True)]


# ----------------------------------------------------------------------------------------------------- the ledger


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """The folder of two notebooks with claims."""
    monkeypatch.setenv("SPARSEROBUST_FIGURES", str(tmp_path))
    row = {"line": "C1", "words": "A is better than B", "claim": "C1 a", "quantity": "q", "unit": "percentage points",
           "reported": None, "ours": 1.0, "low": 0.5, "high": 1.5, "n_seeds": 3, "images": 500, "p": 0.01,
           "p_holm": 0.02, "verdict": claims.HOLDS, "why": "", "where": "01_a, table 1", "direction": "increase",
           "threshold": 0.0}
    untested = row | {"claim": "C1 b", "words": "A is better than C", "n_seeds": 1, "low": None, "high": None,
                      "p": None, "p_holm": None, "verdict": claims.UNTESTED, "why": "one seed"}
    first = pandas.DataFrame([row, untested])
    second = pandas.DataFrame([untested | {"claim": "C8", "words": "D", "ours": None, "n_seeds": 0, "reported": 2.5,
                                           "why": "not run at this scale", "where": "02_b, figure 1"}])
    for name, lines in (("01_a", first), ("02_b", second)):
        out = artifacts.Artifacts("quick", name)
        out.judged(lines, lines, None, "Claims.")
        out.finish()
    return tmp_path / "quick"


def test_the_ledger_joins_the_claims_of_all_notebooks(judged):
    whole = artifacts.ledger("quick")
    assert list(whole["notebook"]) == ["01_a", "01_a", "02_b"] and list(whole["claim"]) == ["C1 a", "C1 b", "C8"]
    artifacts.write_ledger("quick")
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
    assert not list(judged.glob("*.csv")), "who only reads writes nothing"


def test_without_claims_the_ledger_says_what_to_do(tmp_path, monkeypatch, refusal):
    monkeypatch.setenv("SPARSEROBUST_FIGURES", str(tmp_path))
    artifacts.write_ledger("laptop")
    assert not list(tmp_path.iterdir())
    assert "sparserobust reproduce --scale laptop" in refusal(artifacts.ledger, "laptop")


@pytest.mark.parametrize("table", ["claims.csv", "ledger.csv"])
@pytest.mark.parametrize("scale", scales.names())
def test_the_committed_ledger_is_that_of_the_notebooks(scale, table):
    folder = paths.committed_figures() / scale
    parts = {path.parent.name: pandas.read_csv(path) for path in sorted(folder.glob(f"*/{table}"))}
    if not parts:
        assert not (folder / table).exists()
        return
    whole = pandas.read_csv(folder / table)
    assert list(whole["notebook"].unique()) == list(parts)
    for name, part in parts.items():
        mine = whole[whole["notebook"] == name].drop(columns="notebook").reset_index(drop=True)
        pandas.testing.assert_frame_equal(mine[part.columns], part, check_dtype=False)
