"""Many runs side by side: worker processes that wait for each other, fail, die, and agree with this process."""

import os
import signal
import subprocess
import threading
import time
from functools import partial
from types import SimpleNamespace

import pandas
import pytest

from sparserobust import Data, UserError
from sparserobust.analysis import ChannelSparsity, RadiusOrder, RemainingParameters, WeightHistogram, WeightSparsity
from sparserobust.attacks import FGSM, PGD, CarliniWagnerL2, DeepFool
from sparserobust.evaluation import Accuracy, Distance
from sparserobust.imagewise import unpack
from sparserobust.running import pool, progress, sweep
from sparserobust.running.store import Store
from sparserobust.sparsifiers import RGSM, Magnitude

MEASURED = {"clean": Accuracy(images=100), "sparsity": WeightSparsity()}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store", use_published=False)


def files_of(store, run) -> dict[str, bytes]:
    return {name: (store.folder / run.identity / name).read_bytes() for name in ("record.json", "model.safetensors")}


def reopened(store) -> Store:
    return Store(store.folder, use_published=False)


@pytest.fixture(scope="module")
def long_run(tiny_run):
    """Trains for some seconds."""
    return tiny_run(epochs=60, sparsifier=RGSM(lambda1=0.75), averaging=0.9)


@pytest.fixture(scope="module")
def undisturbed(long_run, tmp_path_factory) -> Store:
    """Where the long run was trained in this process in one go."""
    store = Store(tmp_path_factory.mktemp("undisturbed"), use_published=False)
    store.train(long_run)
    return store


# ------------------------------------------------------------------------------------ without processes


@pytest.fixture
def pretended(monkeypatch):
    """Workers that only write down their jobs and answer `answer(job)`."""
    def pretended(answer=lambda job: None, stop=lambda: None):
        told = SimpleNamespace(jobs=[], workers=[])

        class Worker:
            def __init__(self, threads):
                told.workers.append(threads)

            def do(self, job, on_message):
                told.jobs.append(job)
                return answer(job)

            def stop(self):
                stop()

        monkeypatch.setattr(pool, "_Worker", Worker)
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
    assert [job["run"] for job in told.jobs] == [tiny_run().plain()]
    pretended(lambda job: "no")
    with pytest.raises(UserError, match="1 of 1 runs failed"):
        sweep.compute([{"net": "a", "run": tiny_run()}], MEASURED, store, workers=1)


def test_one_job_for_each_distinct_run_with_what_is_missing_the_longest_first(pretended, store, tiny_run):
    told, known, long = pretended(lambda job: "no"), tiny_run(), tiny_run(epochs=50)
    store.measure(known, MEASURED["clean"])
    grid = [{"net": "a", "run": known}, {"net": "b", "run": long}, {"net": "a again", "run": known}]
    with pytest.raises(UserError, match="2 of 2 runs failed"):
        sweep.sweep(grid, MEASURED, store, workers=1, threads=3)
    assert [job["run"] for job in told.jobs] == [long.plain(), known.plain()]
    assert told.jobs[1]["measurements"] == [MEASURED["sparsity"].plain()]
    assert told.workers == [3]
    with pytest.raises(UserError):
        sweep.sweep(grid, MEASURED, store, workers=8)
    assert len(told.workers) == 1 + 2  # not more workers than jobs


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
    asked = {job["run"].get("seed", 0): job["measurements"] for job in told.jobs}  # one job for all rows of a run
    assert len(told.jobs) == 2
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


def test_what_is_costly_to_measure_goes_first_but_not_before_the_run_it_starts_from(pretended, store, tiny_run):
    told, quick, slow = pretended(lambda job: "no"), tiny_run(), tiny_run(epochs=3)
    pruned = tiny_run(seed=1, epochs=0, sparsifier=Magnitude(sparsity=0.5), start=slow)
    costly = {"strong": Accuracy(images=1000, attack=PGD(epsilon=0.1, step_size=0.1, steps=100))}
    grid = [{"net": "quick", "run": quick, "measurements": costly}, {"net": "slow", "run": slow},
            {"net": "pruned", "run": pruned, "measurements": costly}]
    with pytest.raises(UserError):
        sweep.sweep(grid, MEASURED, store, workers=1)
    assert [job["run"] for job in told.jobs] == [run.plain() for run in (quick, slow, pruned)]


def test_what_is_wanted_by_two_rows_is_asked_for_once_and_only_if_it_is_missing(pretended, store, tiny_run):
    told, run, also = pretended(lambda job: "no"), tiny_run(), {"left": RemainingParameters()}
    for measurement in MEASURED.values():
        store.measure(run, measurement)
    grid = [{"net": "a", "run": run}, {"net": "b", "run": run, "measurements": also},
            {"net": "c", "run": run, "measurements": also | {"weights": WeightHistogram()}}]
    with pytest.raises(UserError, match="1 of 1 runs failed") as caught:
        sweep.sweep(grid, MEASURED, store, workers=1)
    assert "b: no" in str(caught.value)  # named by the first row that wants something; `measurements` is no label
    assert told.jobs[0]["measurements"] == [RemainingParameters().plain(), WeightHistogram().plain()]
    sweep.sweep(grid[:1], MEASURED, store, workers=1)
    assert len(told.jobs) == 1


def test_each_failed_run_is_named_even_if_labels_repeat(pretended, store, tiny_run):
    pretended(lambda job: f"reason {job['run']['seed']}")
    grid = [{"net": "same", "run": tiny_run(seed=seed)} for seed in (1, 2)]
    with pytest.raises(UserError) as caught:
        sweep.sweep(grid, MEASURED, store, workers=1)
    message = str(caught.value)
    assert "2 of 2 runs failed" in message
    assert "reason 1" in message
    assert "reason 2" in message
    assert message.count("same") == 2


def test_an_interrupt_stops_the_workers_and_is_passed_on(pretended, store, tiny_run, capsys, request):
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    stopped = threading.Event()

    def answer(job):
        os.kill(os.getpid(), signal.SIGINT)
        stopped.wait(20)

    pretended(answer, stopped.set)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep([{"run": tiny_run()}, {"run": tiny_run(seed=1)}], MEASURED, store, workers=1)
    assert stopped.is_set()
    assert "interrupted: finished runs are kept" in capsys.readouterr().err


# --------------------------------------------------------------------------------------- with processes


@pytest.fixture
def started(monkeypatch) -> list[subprocess.Popen]:
    """The worker processes that were started."""
    processes, start = [], pool._Worker._start

    def watched(self):
        start(self)
        processes.append(self.process)

    monkeypatch.setattr(pool._Worker, "_start", watched)
    return processes


def test_a_stopped_cell_shows_no_traceback_of_a_worker(capfd):
    worker = pool._Worker(1)
    assert "ready" in worker.process.stdout.readline()
    if os.getpgid(worker.process.pid) == os.getpgid(0):  # else Ctrl-C and Jupyter's stop do not reach it
        os.kill(worker.process.pid, signal.SIGINT)
    worker.process.stdin.close()
    worker.process.wait()
    worker.stop()
    assert capfd.readouterr().err == ""


@pytest.fixture
def messages(monkeypatch) -> list[dict]:
    """What the workers reported."""
    answers, message = [], progress.Monitor.message

    def recorded(self, job, answer):
        answers.append(answer)
        message(self, job, answer)

    monkeypatch.setattr(progress.Monitor, "message", recorded)
    return answers


@pytest.mark.slow
def test_two_workers_train_a_common_start_once_agree_with_this_process_and_outlive_a_failing_run(
        store, undisturbed, started, messages, capsys, tiny_run, long_run):
    grid = [{"net": f"pruned {s}", "share": s, "run": tiny_run(start=long_run, sparsifier=Magnitude(sparsity=s))}
            for s in (0.3, 0.6)]
    bad = tiny_run(lr=1e8, schedule="constant")

    with pytest.raises(UserError) as caught:
        sweep.sweep([{"net": "bad", "lr": 1e8, "run": bad}, *grid], MEASURED, store, workers=2)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("1 of 3 runs failed")
    (line,) = lines
    assert all(word in line for word in ("bad", "lr 100000000.0", bad.identity, "lower lr"))
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)
    assert "2 runs trained and measured, 1 failed" in capsys.readouterr().err
    assert messages.count({"doing": "training", "epochs": long_run.recipe.epochs}) == 1  # the other worker waited

    frame = sweep.sweep(grid, MEASURED, reopened(store))
    assert len(started) == 2
    expected = [{**row, "run": row["run"].identity, "chance": 0.1, "metric": name, "sampled": measurement.sampled,
                 **undisturbed.measure(row["run"], measurement)}
                for row in grid for name, measurement in MEASURED.items()]
    found = frame.drop(columns="each")
    assert found.to_dict("records") == [{k: row[k] for k in found.columns} for row in expected]
    assert frame["each"].dropna().tolist() == [row["each"][""] for row in expected if "each" in row]
    assert frame["each"].isna().tolist() == ["each" not in row for row in expected]
    assert list(frame.columns) == ["net", "share", "run", "chance", "metric", "sampled", "each", "value", "count",
                                   "total", "where", "processor"]
    assert [len(unpack(text)) for text in frame[frame.metric == "clean"]["each"]] == [100, 100]
    runs = [long_run, *(row["run"] for row in grid)]
    for run in runs:
        assert files_of(store, run) == files_of(undisturbed, run)
    assert {p.name for p in store.folder.glob("[!.]*")} == {run.identity for run in runs}


@pytest.mark.slow
def test_after_a_worker_was_killed_the_next_sweep_ends_as_if_nothing_happened(store, undisturbed, started, long_run):
    partial = store.folder / f".partial-{long_run.identity}"

    def kill():
        while not (partial / "checkpoint.safetensors").exists():
            time.sleep(0.01)
        os.kill(started[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    grid = [{"net": "long", "run": long_run}]
    with pytest.raises(UserError, match=r"long.*: its process died \(exit code -9\)"):
        sweep.sweep(grid, MEASURED, store, workers=1)
    killer.join()
    assert not (store.folder / long_run.identity).exists()
    assert (partial / "checkpoint.safetensors").exists()
    frame = sweep.sweep(grid, MEASURED, store, workers=1)
    assert frame.value.tolist() == [undisturbed.measure(long_run, m)["value"] for m in MEASURED.values()]
    assert files_of(store, long_run) == files_of(undisturbed, long_run)


def test_a_job_that_would_wait_for_a_run_under_way_lets_others_go_first(store, tiny_run):
    first, other = tiny_run(), tiny_run(seed=1)
    after, beside = tiny_run(start=first), tiny_run(start=first, seed=2)
    jobs = {name: {"run": run, "measurements": []} for name, run in
            {"first": first, "after": after, "beside": beside, "other": other}.items()}
    turns = pool._Turns(list(jobs.values()), store)
    assert turns.next() is jobs["first"] and turns.next() is jobs["other"], "both others begin with the first"
    turns.done(jobs["other"])
    store.train(first)  # the job goes on, to measure: what others need is there
    assert turns.next() is jobs["after"] and turns.next() is jobs["beside"]
    assert turns.next() is None


def test_a_job_whose_measurement_needs_a_run_under_way_waits_until_that_is_done(store, tiny_run):
    source = tiny_run()
    transfer = Accuracy(images=5, source=source, attack=FGSM(epsilon=0.1))
    jobs = [{"run": source, "measurements": []}, {"run": tiny_run(seed=1), "measurements": [transfer]}]
    turns, begun = pool._Turns(jobs, store), []
    assert turns.next() is jobs[0]
    waiting = threading.Thread(target=lambda: begun.append(turns.next()))
    waiting.start()
    waiting.join(0.2)
    assert not begun
    turns.done(jobs[0])
    waiting.join(5)
    assert begun == [jobs[1]]
    stopped = pool._Turns([jobs[0]], store)
    stopped.stop()
    assert stopped.next() is None
