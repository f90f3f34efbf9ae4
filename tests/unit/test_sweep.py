"""A grid of runs in, a frame out: what is asked of the engine, and what is made of its results."""

from types import SimpleNamespace

import pandas
import pytest

from sparserobust import Data, Measurement, Run, UserError
from sparserobust.analysis import (
    Activations,
    ChannelSparsity,
    RadiusOrder,
    RemainingParameters,
    WeightHistogram,
    WeightSparsity,
)
from sparserobust.attacks import PGD, CarliniWagnerL2, DeepFool
from sparserobust.evaluation import Accuracy, Distance
from sparserobust.imagewise import unpack
from sparserobust.running import engine, sweep
from sparserobust.running.progress import INTERRUPTED
from sparserobust.running.store import Store

MEASURED = {"clean": Accuracy(images=100), "sparsity": WeightSparsity()}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store", use_published=False)


@pytest.fixture
def pretended(monkeypatch):
    """An engine that only writes down what it is asked, and answers `answer(order)`."""
    def pretended(answer=lambda order: None):
        told = SimpleNamespace(orders=[], workers=[])

        def pretend(tasks, orders, workers, monitor, sweep):
            told.workers.append(workers)
            for task in tasks:
                told.orders.append(orders[task.key])
                monitor.finished(task, answer(orders[task.key]))

        monkeypatch.setattr(engine, "_by_dask", pretend)
        return told

    return pretended


def test_nothing_to_do_starts_nothing(pretended, store, tiny_run):
    told = pretended()
    assert sweep.sweep([], MEASURED, store).empty
    for measurement in MEASURED.values():
        store.measure(tiny_run(), measurement)
    frame = sweep.sweep([{"net": "a", "run": tiny_run()}], MEASURED, store)
    assert list(frame.metric) == ["clean", "sparsity"]
    assert told.workers == []


def test_to_compute_reads_nothing_back(pretended, store, tiny_run, monkeypatch):
    told = pretended()
    monkeypatch.setattr(Store, "measure", None)
    assert sweep.compute([{"net": "a", "run": tiny_run()}], MEASURED, store, workers=1) is None
    assert [order["run"] for order in told.orders] == [tiny_run().plain()]
    pretended(lambda order: "no")
    with pytest.raises(UserError, match="1 of 1 runs failed"):
        sweep.compute([{"net": "a", "run": tiny_run()}], MEASURED, store, workers=1)


def test_one_job_for_each_distinct_run_with_what_is_missing_the_longest_first(pretended, store, tiny_run):
    told, known, long = pretended(lambda order: "no"), tiny_run(), tiny_run(epochs=50)
    store.measure(known, MEASURED["clean"])
    grid = [{"net": "a", "run": known}, {"net": "b", "run": long}, {"net": "a again", "run": known}]
    with pytest.raises(UserError, match="2 of 2 runs failed"):
        sweep.sweep(grid, MEASURED, store, workers=1)
    assert [order["run"] for order in told.orders] == [long.plain(), known.plain()]
    assert told.orders[1]["measurements"] == [MEASURED["sparsity"].plain()]
    assert told.workers == [1]


def test_what_one_row_wants_also_is_taken_of_that_row_only(pretended, store, tiny_run):
    told = pretended()
    left, norms = {"left": RemainingParameters()}, {"channels": ChannelSparsity()}
    plain, more = tiny_run(), tiny_run(seed=1)
    grid = [{"net": "a", "run": plain}, {"net": "b", "run": more, "measurements": left},
            {"net": "b again", "run": more}, {"net": "c", "run": more, "measurements": norms}]
    frame = sweep.sweep(grid, MEASURED, store, workers=1)
    assert list(zip(frame.net, frame.metric, strict=True)) == [
        ("a", "clean"), ("a", "sparsity"), ("b", "clean"), ("b", "sparsity"), ("b", "left"), ("b again", "clean"),
        ("b again", "sparsity"), ("c", "clean"), ("c", "sparsity"), ("c", "channels")]
    assert "also" not in frame.columns
    for row in frame.to_dict("records"):
        run = plain if row["net"] == "a" else more
        assert row["run"] == run.identity
        assert row["value"] == store.find(run, (MEASURED | left | norms)[row["metric"]])["value"]
    assert {p.stem for p in (store.folder / plain.identity / "measured").iterdir()} == {
        m.identity for m in MEASURED.values()}
    # one task for all rows of a run
    asked = {order["run"].get("seed", 0): order["measurements"] for order in told.orders}
    assert len(told.orders) == 2
    assert asked[0] == [m.plain() for m in MEASURED.values()]
    assert asked[1] == [m.plain() for m in (MEASURED | left | norms).values()]


def test_parts_of_a_measurement_are_rows_of_their_own(pretended, store, tiny_run):
    pretended()
    order = RadiusOrder(images=20, batches=2, samples=2, cw=CarliniWagnerL2(steps=2, search_steps=1))
    parted = {"far": Distance(images=20, attack=DeepFool()), "order": order}
    grid = [{"net": "a", "run": tiny_run(), "measurements": parted}, {"net": "b", "run": tiny_run()}]
    frame = sweep.sweep(grid, MEASURED, store, workers=1)
    assert list(zip(frame.net, frame.metric, strict=True)) == [
        ("a", "clean"), ("a", "sparsity"), ("a", "far"), ("a", "far not_fooled"), ("a", "far relative"),
        ("a", "order"), ("a", "order clever_above"), ("b", "clean"), ("b", "sparsity")]
    by_metric = frame[frame.net == "a"].set_index("metric")
    for name, measurement in parted.items():
        result = store.find(tiny_run(), measurement)
        assert by_metric.loc[name, "value"] == result["value"] and by_metric.loc[name, "total"] == result["total"] > 0
        for part, value in result["parts"].items():
            row = by_metric.loc[f"{name} {part}"]
            assert row["value"] == value and pandas.isna(row["count"]) and pandas.isna(row["total"])
            assert (row["run"], row["where"]) == (tiny_run().identity, by_metric.loc[name, "where"])
    assert by_metric.loc["order", "count"] == store.find(tiny_run(), order)["count"]


def test_the_frame_counts_no_units_over_images(store, tiny_run):
    grid = [{"net": "a", "run": tiny_run(), "measurements": {"zero": Activations(images=60)}}]
    rows = sweep.sweep(grid, MEASURED, store, workers=1).set_index("metric")
    assert rows["count"].notna().to_dict() == rows["total"].notna().to_dict() == {
        "clean": True, "sparsity": True, "zero": False, "zero dead": False}
    assert rows.value["zero"] == store.find(tiny_run(), Activations(images=60))["value"]


def test_the_frame_has_the_values_of_single_images_also_of_parts(pretended, store, tiny_run, digits):
    pretended()
    fooled = Accuracy(images=60, attack=PGD(epsilon=0.1, step_size=0.1, steps=1, random_start=False))
    also = {"pgd": fooled, "far": Distance(images=60, attack=DeepFool())}
    grid = [{"net": "a", "run": tiny_run(), "measurements": also}]
    rows = sweep.sweep(grid, MEASURED, store, workers=1).set_index("metric")
    assert rows["sampled"].to_dict() == {"clean": True, "sparsity": False, "pgd": True, "far": True,
                                         "far not_fooled": True, "far relative": True}
    each, model, test = rows["each"], store.model(tiny_run()), digits.test.sample(100)
    without = [name for name, text in each.items() if pandas.isna(text)]
    assert without == ["sparsity", "far not_fooled"]
    assert unpack(each["clean"]).tolist() == (model(test.images).argmax(1) == test.labels).tolist()
    moved = fooled.attack(model, test.images[:60], test.labels[:60])
    assert unpack(each["pgd"]).tolist() == (model(moved).argmax(1) == test.labels[:60]).tolist()
    lengths = unpack(each["far"])
    assert len(lengths) == 60 and rows.value["far"] == pytest.approx(lengths[lengths == lengths].mean(), rel=1e-3)
    assert unpack(each["far relative"]) == pytest.approx(
        lengths / test.images[:60].flatten(1).norm(dim=1).numpy(), rel=2e-3, abs=1e-6, nan_ok=True)


def test_guessing_is_right_once_in_as_many_times_as_there_are_classes(pretended, store, tiny_run):
    pretended()
    two = tiny_run(data=Data(classes=(3, 8)))
    rows = sweep.sweep([{"run": tiny_run()}, {"run": two}], {"sparsity": WeightSparsity()}, store, workers=1)
    assert rows.set_index("run")["chance"].to_dict() == {tiny_run().identity: 0.1, two.identity: 0.5}


def test_of_several_grids_the_first_is_worked_off_first_and_each_run_is_told_of_once_all_of_it_is_known(
        pretended, store, tiny_run):
    short, shared, long, bad = tiny_run(), tiny_run(epochs=3), tiny_run(epochs=50), tiny_run(epochs=40)
    failing, finished = {bad.identity}, []

    def answer(order):
        run = Run.parse(order["run"])
        if run.identity in failing:
            return "no"
        for measurement in order["measurements"]:
            store.measure(run, Measurement.parse(measurement))
        return None

    told = pretended(answer)
    left = {"measurements": {"left": RemainingParameters()}}
    grids = [[{"net": "a", "run": short}, {"net": "b", "run": shared}],
             [{"net": "c", "run": long}, {"net": "d", "run": shared} | left, {"net": "e", "run": bad}]]

    def tell(identity):
        finished.append(identity)
        if identity == shared.identity:  # with what only the second grid asks of it
            assert Store(store.folder, use_published=False).find(shared, RemainingParameters())

    with pytest.raises(UserError, match="1 of 4 runs failed"):
        sweep.compute_all(grids, MEASURED, store, workers=1, finished=tell)
    assert [order["run"] for order in told.orders] == [run.plain() for run in (shared, short, long, bad)]
    assert finished == [run.identity for run in (shared, short, long)]


def test_what_is_wanted_by_two_rows_is_asked_for_once_and_only_if_it_is_missing(pretended, store, tiny_run):
    told, run, also = pretended(lambda order: "no"), tiny_run(), {"left": RemainingParameters()}
    for measurement in MEASURED.values():
        store.measure(run, measurement)
    grid = [{"net": "a", "run": run}, {"net": "b", "run": run, "measurements": also},
            {"net": "c", "run": run, "measurements": also | {"weights": WeightHistogram()}}]
    with pytest.raises(UserError, match="1 of 1 runs failed") as caught:
        sweep.sweep(grid, MEASURED, store, workers=1)
    assert "b: no" in str(caught.value)  # named by the first row that wants something; `measurements` is no label
    assert told.orders[0]["measurements"] == [RemainingParameters().plain(), WeightHistogram().plain()]
    sweep.sweep(grid[:1], MEASURED, store, workers=1)
    assert len(told.orders) == 1


def test_each_failed_run_is_named_even_if_labels_repeat(pretended, store, tiny_run):
    pretended(lambda order: f"reason {order['run']['seed']}")
    grid = [{"net": "same", "run": tiny_run(seed=seed)} for seed in (1, 2)]
    with pytest.raises(UserError) as caught:
        sweep.sweep(grid, MEASURED, store, workers=1)
    message = str(caught.value)
    assert "2 of 2 runs failed" in message
    assert "reason 1" in message
    assert "reason 2" in message
    assert message.count("same") == 2


def test_an_interrupt_says_what_is_kept_and_is_passed_on(pretended, store, tiny_run, capsys):
    def interrupt(order):
        raise KeyboardInterrupt

    pretended(interrupt)
    with pytest.raises(KeyboardInterrupt) as end:
        sweep.sweep([{"run": tiny_run()}], MEASURED, store, workers=1)
    assert "interrupted: finished runs are kept" in capsys.readouterr().err
    assert end.value.__notes__ == [INTERRUPTED]  # the command does not say it again


@pytest.mark.parametrize("row, told", [
    (lambda run: {"run": run, "value": 0.1}, "'value' is a column that every result has"),
    (lambda run: {"run": run, "where": "x"}, "'where' is a column that every result has"),
    (lambda run: {"net": "a"}, "a row of a grid is a dictionary with a Run"), (lambda run: run, "a row of a grid is"),
    (lambda run: {"run": run, "measurements": {"a": PGD(epsilon=0.1, step_size=0.1, steps=1)}}, "'a' is no measure")])
def test_labels_that_would_be_lost_and_rows_that_are_none_are_one_line(row, told, store, tiny_run, refusal):
    assert told in refusal(sweep.sweep, [row(tiny_run())], {}, store)
    assert told in refusal(sweep.frame_of, [row(tiny_run())], {"sparsity": WeightSparsity()}, store)
