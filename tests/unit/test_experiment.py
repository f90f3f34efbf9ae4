"""What a study runs and what came out: as far as it is known, computed where it must be, whole results on demand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from scaffolding import experiment_of
from sparserobust import paths
from sparserobust.analysis import ChannelSparsity, RemainingParameters, WeightSparsity
from sparserobust.evaluation import Accuracy
from sparserobust.running import sweep
from sparserobust.running.store import Store

CLEAN, FEW, SPARSITY = Accuracy(images=100), Accuracy(images=50), WeightSparsity()


@pytest.fixture
def redrawn(tiny_run, tmp_path, monkeypatch):
    """An experiment of three seeds that only redraws. Of the first, all is published but what asks for more images;
    of the second one measurement; of the third nothing. No run can be trained or measured any more."""
    monkeypatch.setattr(paths, "published_folder", lambda: tmp_path / "published")
    runs = [tiny_run(seed=seed) for seed in range(3)]
    store = Store(tmp_path / "store", use_published=False)
    for run, measurement in ((runs[0], CLEAN), (runs[0], FEW), (runs[0], SPARSITY), (runs[1], FEW)):
        store.measure(run, measurement)
    store.publish(runs[:2], "s")

    def refuse(*_):
        raise AssertionError("nothing should be computed")

    for where, name in ((Store, "train"), (Store, "_take"), (sweep, "compute")):
        monkeypatch.setattr(where, name, refuse)
    common = {"clean": CLEAN, "sparsity": SPARSITY}
    grid = [{"net": "a", "seed": seed, "run": run,
             "measurements": common | {"few": FEW, "more": Accuracy(images=20)}} for seed, run in enumerate(runs)]
    return experiment_of([*grid, {"net": "b", "seed": 0, "run": runs[0], "measurements": common}],
                         seeds=[2, 0, 1], redraw=True)


def test_a_scale_that_redraws_shows_what_is_known(redrawn, tmp_path):
    store = Store(tmp_path / "elsewhere")
    known = redrawn.known(store)
    assert [(row["net"], row["seed"], list(row["measurements"])) for row in known.grid] == [
        ("a", 0, ["clean", "sparsity", "few"]), ("a", 1, ["few"]), ("b", 0, ["clean", "sparsity"])]
    assert known.seeds == [0, 1]
    expected = [("a", 0, "clean"), ("a", 0, "sparsity"), ("a", 0, "few"), ("a", 1, "few"), ("b", 0, "clean"),
                ("b", 0, "sparsity")]
    for experiment in (redrawn, known):
        frame = experiment.results(store).frame
        assert list(zip(frame["net"], frame["seed"], frame["metric"], strict=True)) == expected
        assert set(frame["where"]) == {"published"} and set(frame["chance"]) == {0.1}
    mine = Store(tmp_path / "store")
    for row, found in zip(expected, frame.to_dict("records"), strict=True):
        measurement = {"few": FEW, "clean": CLEAN, "sparsity": SPARSITY}[row[2]]
        assert found["value"] == mine.find(redrawn.grid[row[1]]["run"], measurement)["value"]
        assert found["run"] == redrawn.grid[row[1]]["run"].identity
    assert frame["sampled"].tolist() == [True, False, True, True, True, False]
    assert frame["each"].map(lambda text: isinstance(text, str)).tolist() == frame["sampled"].tolist()


def test_of_a_row_something_must_be_known_that_images_were_asked_for(redrawn, tmp_path):
    store = Store(tmp_path / "elsewhere")
    rows = [redrawn.grid[0] | {"measurements": {"sparsity": SPARSITY, "more": Accuracy(images=33, noise=False)}},
            redrawn.grid[0] | {"measurements": {"sparsity": SPARSITY, "left": RemainingParameters()}}]
    known = replace(redrawn, grid=rows).known(store)
    assert [list(row["measurements"]) for row in known.grid] == [["sparsity"]], "only where no images are asked"


def test_what_may_not_stand_in_is_computed(redrawn, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("sparserobust.running.experiment.sweep",
                        lambda *arguments: asked.append(arguments) or "computed")
    own = Store(tmp_path / "elsewhere", use_published=False)
    assert redrawn.known(own) is redrawn and redrawn.results(own, 3).frame == "computed"
    store = Store(tmp_path / "elsewhere")
    free = experiment_of(redrawn.grid, redraw=False)
    assert free.known(store) is free and free.results(store, 3).frame == "computed"
    assert asked == [(redrawn.grid, {}, own, 3), (free.grid, {}, store, 3)]


def test_where_nothing_is_known_nothing_is_shown(redrawn, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "published_folder", lambda: tmp_path / "nowhere")
    store = Store(tmp_path / "elsewhere")
    known = redrawn.known(store)
    assert (known.grid, known.seeds) == ([], []) and redrawn.results(store).frame.empty


def test_whole_results_are_found_by_labels(redrawn, tmp_path, refusal):
    store = Store(tmp_path / "elsewhere")
    results = redrawn.results(store)
    assert [row["seed"] for row, _ in results.details("few")] == [0, 1]  # of seed 2 it is not known
    assert results.detail("few", seed=1)["total"] == 50
    assert results.details("few", net="b") == []
    assert "'few' was not measured" in refusal(results.detail, "few", net="b")
    assert "no run with" in refusal(results.history, net="c")
    history = results.history(net="b")
    assert history == store.record(redrawn.grid[0]["run"])["history"]


def test_networks_are_those_of_which_there_are_rows():
    grid = [{"net": "b"}, {"net": "a"}, {"net": "b"}]
    settings = {name: SimpleNamespace(width=width) for name, width in (("a", 4), ("b", 8), ("c", 2))}
    experiment = replace(experiment_of(grid), settings_by_net=settings)
    assert experiment.nets == ["a", "b"]  # in the order of the settings
    assert experiment.settings_for("b").width == 8 and experiment.settings.width == 4


def test_a_measurement_is_found_by_its_name(refusal):
    grid = [{"net": "a", "measurements": {"sparsity": SPARSITY}},
            {"net": "b", "measurements": {"sparsity": ChannelSparsity(), "clean": CLEAN}}]
    experiment = experiment_of(grid)
    assert experiment.measurements == {"sparsity": SPARSITY, "clean": CLEAN}
    assert "no 'fgsm'" in refusal(experiment.measurement, "fgsm") and experiment.measurement("clean") == CLEAN


def test_rows_that_lack_a_label_are_not_those_that_have_it(refusal):
    experiment = experiment_of([{"net": "a"}, {"net": "b", "kept": "best"}])
    assert experiment.row(kept="best")["net"] == "b" and experiment.rows(kept="last") == []
    assert "no run with {'kep': 'best'}" in refusal(experiment.row, kep="best")
    assert experiment_of([]).rows(net="a") == []
