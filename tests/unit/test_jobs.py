"""What is handed to an engine: tasks, their order, and packs of small ones."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparserobust import Data
from sparserobust.analysis import WeightSparsity
from sparserobust.attacks import FGSM, PGD
from sparserobust.evaluation import Accuracy
from sparserobust.running import engine, jobs
from sparserobust.running.jobs import Task
from sparserobust.running.store import Store
from sparserobust.sparsifiers import Magnitude

MEASURED = (WeightSparsity(),)
NOTHING: Any = SimpleNamespace(has_record=lambda run: False, has_twin=lambda run: False)  # a store that is empty


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store", use_published=False)


def job(run, *measurements, **more) -> dict:
    return {"run": run, "measurements": list(measurements or MEASURED), "label": "", **more}


def as_told(tasks) -> list[tuple]:
    return [(task.run, task.trains, len(task.measurements)) for task in tasks]


def test_a_run_that_others_wait_for_is_trained_before_and_measured_beside_them(store, tiny_run):
    first, other = tiny_run(), tiny_run(seed=1)
    after = tiny_run(start=first, sparsifier=Magnitude(sparsity=0.5))
    found = jobs.tasks([job(after), job(first), job(other)], store)
    assert as_told(found) == [(first, True, 0), (after, True, 1), (first, False, 1), (other, True, 1)]
    assert [task.needs for task in found] == [(), (found[0].key,), (found[0].key,), ()]
    store.train(first)
    assert as_told(jobs.tasks([job(after), job(first)], store)) == [(after, True, 1), (first, True, 1)]
    assert {task.needs for task in jobs.tasks([job(after), job(first)], store)} == {()}


def test_all_that_a_run_begins_with_and_is_measured_with_comes_first(store, tiny_run):
    one, source = tiny_run(), tiny_run(seed=5)
    two = tiny_run(start=one, seed=1)
    three = tiny_run(start=two, seed=2)
    transfer = Accuracy(images=5, source=source, attack=FGSM(epsilon=0.1))
    found = jobs.tasks([job(three, transfer)], store)
    assert {task.run for task in found[:-1]} == {one, two, source} and found[-1].run == three
    assert found.index(next(t for t in found if t.run == one)) < found.index(next(t for t in found if t.run == two))
    assert set(found[-1].needs) == {f"train-{run.identity}" for run in (two, source)}, "of one the second tells"


def test_a_run_that_is_its_own_source_waits_for_nothing(store, tiny_run):
    transfer = Accuracy(images=5, source=tiny_run(), attack=FGSM(epsilon=0.1))
    assert [task.needs for task in jobs.tasks([job(tiny_run(), transfer)], store)] == [()]


def test_twins_are_trained_once_by_the_one_that_has_both(store, tiny_run):
    """Unless it comes later. Neither waits for what is measured on the other."""
    last, best = tiny_run(watched=True), tiny_run(watched=True, select="best")
    first, *found = jobs.tasks([job(last), job(best)], store)
    assert as_told([first]) == [(best, True, 0)] and {task.needs for task in found} == {(first.key,)}
    assert sorted(as_told(found), key=repr) == sorted([(best, False, 1), (last, False, 1)], key=repr)
    for apart in ([job(last, rank=0), job(best, rank=1)], [job(last), job(replace(best, seed=1))],
                  [job(tiny_run()), job(best)]):
        assert all(task.trains and not task.needs for task in jobs.tasks(apart, store))
    store.train(best)
    by_run = {task.run: task for task in jobs.tasks([job(last), job(best)], store)}
    assert all(not task.needs for task in by_run.values())
    assert by_run[last].training_cost == 0, "there is nothing left to train"


def test_what_holds_up_most_work_goes_first(store, tiny_run):
    """A short run before a longer one, if much waits for it; a costly measurement counts as much."""
    short, long = tiny_run(), tiny_run(seed=1, epochs=20)
    after = tiny_run(seed=2, epochs=30, start=short)
    strong = Accuracy(images=1000, attack=PGD(epsilon=0.1, step_size=0.1, steps=800))
    costly = tiny_run(seed=3)
    found = jobs.tasks([job(long), job(after), job(costly, strong)], store)
    costs = {task.run.seed: task.cost for task in found}
    assert costs[3] > 10 * tiny_run().model.cost > costs[2] > costs[1] > costs[0]
    assert [task.run for task in found] == [costly, short, after, long]


def test_a_pass_of_small_images_costs_less_where_they_are_measured(tiny_run):
    attacked = Accuracy(images=1000, attack=PGD(epsilon=0.1, step_size=0.1, steps=10))
    costs = {name: jobs.measuring_cost(tiny_run(data=Data(name=name)), attacked)
             for name in ("digits", "cifar10", "mnist")}
    assert costs["cifar10"] == costs["mnist"] == tiny_run().model.cost * attacked.cost == 8 * costs["digits"]


def test_of_two_ranks_the_first_goes_first_with_all_that_it_needs(store, tiny_run):
    long, start = tiny_run(epochs=50), tiny_run(seed=1)
    shared = [job(tiny_run(seed=2, start=start), rank=1), job(tiny_run(seed=3, start=start), rank=0)]
    found = jobs.tasks([job(long, rank=1), *shared], store)
    assert [(task.run.seed, task.rank) for task in found] == [(1, 0), (3, 0), (0, 1), (2, 1)]


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 9), st.booleans(), st.booleans()),
                max_size=8))
def test_whatever_the_ranks_each_task_comes_after_those_it_needs(tiny_run, plan):
    """Runs that begin with one of those before (or with none), or are the twin of the one before, are of some rank, and
    are asked for or not."""
    runs, asked = [], []
    for start, rank, epochs, wanted, twin in plan:
        run = tiny_run(data=Data(), seed=len(runs), epochs=epochs, watched=True,
                       start=runs[start] if start < len(runs) else None)
        runs.append(runs[-1].twin if twin and runs and runs[-1].twin else run)
        asked += [job(runs[-1], rank=rank)] if wanted else []
    found = jobs.tasks(asked, NOTHING)
    done: set[str] = set()
    for task in found:
        assert done.issuperset(task.needs)
        done.add(task.key)
    assert len(done) == len(found)
    assert {task.run for task in found} == {run for each in asked for run in jobs.needed(each)}
    assert [task.rank for task in found] == sorted(task.rank for task in found)


def test_a_task_that_costs_nothing_takes_time(store, tiny_run):
    (task,) = jobs.tasks([job(tiny_run(epochs=0))], store)
    assert task.cost == jobs.LEAST


def test_a_worker_that_knows_a_run_by_another_name_does_not_train_it(store, tiny_run):
    (task,) = jobs.tasks([job(tiny_run())], store)
    order = jobs.order(task, store)
    assert "another version" in jobs.perform(order | {"identity": "0" * 12}, print)
    assert not store.trained(tiny_run())
    assert jobs.perform(order, lambda doing, epochs: None) is None
    assert Store(store.folder, use_published=False).trained(tiny_run())


# ------------------------------------------------------------------------------------------------------------ packs


@st.composite
def plans(draw) -> list[SimpleNamespace]:
    """Tasks of random costs, each waiting for some of those before."""
    tasks: list[SimpleNamespace] = []
    for number in range(draw(st.integers(0, 12))):
        needs = draw(st.lists(st.sampled_from([t.key for t in tasks]), unique=True, max_size=2)) if tasks else []
        tasks.append(SimpleNamespace(key=str(number), needs=tuple(sorted(needs)), rank=draw(st.integers(0, 1)),
                                     cost=draw(st.sampled_from([1.0, 2.0, 10.0]))))
    return tasks


@given(plans(), st.sampled_from([0.0, 2.0, 5.0, 100.0]))
def test_packs_hold_each_task_once_and_only_small_ones_that_nobody_waits_for_together(tasks, small):
    packs = engine.packed(tasks, small)
    assert sorted(task.key for pack in packs for task in pack) == sorted(task.key for task in tasks)
    assert [pack[0].key for pack in packs] == [t.key for t in tasks if t.key in {pack[0].key for pack in packs}]
    waited_for = {need for task in tasks for need in task.needs}
    for pack in packs:
        if len(pack) > 1:
            assert sum(task.cost for task in pack) <= small
            assert not any(task.key in waited_for for task in pack)
            assert len({(task.rank, task.needs) for task in pack}) == 1


def test_small_tasks_go_together_until_they_are_worth_it():
    tasks = [SimpleNamespace(key=str(n), needs=(), rank=0, cost=cost) for n, cost in enumerate([9, 1, 1, 1, 1, 1])]
    assert [[task.cost for task in pack] for pack in engine.packed(tasks, 2.5)] == [[9], [1, 1], [1, 1], [1]]


# ----------------------------------------------------------------------------------------------------- without Dask


def pretended(monkeypatch, answer):
    performed: list[str] = []

    def perform(order, report, sweep=""):
        performed.append(order["key"])
        report("training", 1)
        return answer(order)

    monkeypatch.setattr(jobs, "perform", perform)
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    return performed


def test_without_dask_this_process_does_one_after_the_other(monkeypatch, store, tiny_run, capsys):
    start = tiny_run()
    tasks = jobs.tasks([job(tiny_run(start=start, seed=seed)) for seed in (1, 2)], store)
    performed, ended = pretended(monkeypatch, lambda order: None), []
    assert engine.work(tasks, store, 2, lambda task, failure: ended.append((task.key, failure))) == []
    assert performed == [task.key for task in tasks] and ended == [(task.key, None) for task in tasks]
    assert "3 runs trained and measured, in" in capsys.readouterr().err


def test_what_waits_for_a_run_that_failed_fails_for_the_same_reason(monkeypatch, store, tiny_run, capsys):
    start, other = tiny_run(), tiny_run(seed=7)
    chain = [job(tiny_run(start=start, seed=seed), label=f"net {seed}") for seed in (1, 2)]
    tasks = jobs.tasks([*chain, job(other) | {"label": "other"}], store)
    performed = pretended(monkeypatch, lambda order: "no" if order["identity"] == start.identity else None)
    assert sorted(engine.work(tasks, store, 2)) == [("net 1", "no"), ("net 2", "no")]
    assert performed == [f"train-{start.identity}", f"train-{other.identity}"]
    assert "1 runs trained and measured, 3 failed" in capsys.readouterr().err


def test_a_disk_without_space_for_its_mark_fails_a_task_in_one_line(monkeypatch, store, tiny_run, capsys):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (task,) = jobs.tasks([job(tiny_run())], store)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        failure = jobs.perform(jobs.order(task, store), print, "sweep")
    assert failure and failure.startswith("no space left") and "\n" not in failure
    assert capsys.readouterr().err == ""


def test_a_task_that_is_given_up_need_not_find_its_mark(store, tiny_run):
    def given_up(doing, epochs):
        jobs.clear(store, "sweep")
        raise jobs.Abandoned

    (task,) = jobs.tasks([job(tiny_run())], store)
    with pytest.raises(jobs.Abandoned):
        jobs.perform(jobs.order(task, store), given_up, "sweep")
    assert {path.suffix for path in (store.folder / ".locks").iterdir()} == {".lock"}


def test_marks_that_a_worker_removes_meanwhile_do_not_trouble_whoever_clears(store, monkeypatch):
    folder = store.folder / ".locks"
    folder.mkdir(parents=True)
    left = folder / "sweep-killed"
    left.touch()
    monkeypatch.setattr(Path, "glob", lambda here, pattern: [here / "sweep-ended", left])
    jobs.clear(store, "sweep")
    assert not left.exists()


def test_a_class_of_the_notebook_itself_is_refused(store, tiny_run, monkeypatch, refusal):
    monkeypatch.setattr(WeightSparsity, "__module__", "__main__")
    assert "move it into a file" in refusal(jobs.modules, Task(tiny_run(), MEASURED, "", ()))
