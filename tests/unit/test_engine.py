"""Worker processes: they agree with this process, outlive what dies beside them, and end with whoever started them."""

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from sparserobust import UserError
from sparserobust.analysis import WeightSparsity
from sparserobust.cli import main
from sparserobust.evaluation import Accuracy
from sparserobust.imagewise import unpack
from sparserobust.running import cluster, cluster_process, engine, progress, sweep
from sparserobust.running.store import Store
from sparserobust.sparsifiers import RGSM, Magnitude

pytestmark = pytest.mark.slow
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
def pruned(tiny_run, long_run):
    """Two runs that begin with the long one."""
    return [tiny_run(start=long_run, sparsifier=Magnitude(sparsity=share)) for share in (0.3, 0.6)]


@pytest.fixture(scope="module")
def undisturbed(long_run, pruned, tmp_path_factory) -> Store:
    """Where these runs were trained in this process in one go."""
    store = Store(tmp_path_factory.mktemp("undisturbed"), use_published=False)
    for run in (long_run, *pruned):
        store.train(run)
    return store


@pytest.fixture
def messages(monkeypatch) -> list[tuple]:
    """What the workers reported: keys of tasks, what they did, and epochs."""
    answers, message = [], progress.Monitor.message

    def recorded(self, task, doing, epochs):
        answers.append((task.key, doing, epochs))
        message(self, task, doing, epochs)

    monkeypatch.setattr(progress.Monitor, "message", recorded)
    return answers


def workers_of(process: int) -> list[psutil.Process]:
    """The worker processes below a process: those that its fork server made."""
    family = psutil.Process(process).children(recursive=True)
    servers = {child.pid for child in family if "forkserver" in " ".join(child.cmdline())}
    return [child for child in family if child.ppid() in servers]


def begun(store, run) -> None:
    """Wait until the run has a checkpoint."""
    end = time.monotonic() + 60
    while not (store.folder / f".partial-{run.identity}" / "checkpoint.safetensors").exists():
        assert time.monotonic() < end
        time.sleep(0.01)


# -------------------------------------------------------------------------------------------------- on this machine


def test_workers_train_a_common_start_once_agree_with_this_process_and_outlive_a_failing_run(
        store, undisturbed, messages, capsys, tiny_run, long_run, pruned):
    grid = [{"net": f"pruned {n}", "run": run} for n, run in enumerate(pruned)]
    bad = tiny_run(lr=1e8, schedule="constant")

    with pytest.raises(UserError) as caught:
        sweep.sweep([{"net": "bad", "lr": 1e8, "run": bad}, *grid], MEASURED, store, workers=2)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("1 of 3 runs failed")
    (line,) = lines
    assert all(word in line for word in ("bad", "lr 100000000.0", bad.identity, "lower lr"))
    assert "3 runs trained and measured, 1 failed" in capsys.readouterr().err
    assert messages.count((f"train-{long_run.identity}", "training", long_run.recipe.epochs)) == 1

    frame = sweep.sweep(grid, MEASURED, reopened(store))
    expected = [{**row, "run": row["run"].identity, "chance": 0.1, "metric": name, "sampled": measurement.sampled,
                 **undisturbed.measure(row["run"], measurement)}
                for row in grid for name, measurement in MEASURED.items()]
    found = frame.drop(columns="each")
    assert found.to_dict("records") == [{k: row[k] for k in found.columns} for row in expected]
    assert frame["each"].dropna().tolist() == [row["each"][""] for row in expected if "each" in row]
    assert frame["each"].isna().tolist() == ["each" not in row for row in expected]
    assert list(frame.columns) == ["net", "run", "chance", "metric", "sampled", "each", "value", "count", "total",
                                   "where", "processor"]
    assert [len(unpack(text)) for text in frame[frame.metric == "clean"]["each"]] == [100, 100]
    for run in (long_run, *pruned):
        assert files_of(store, run) == files_of(undisturbed, run)
    assert {p.name for p in store.folder.glob("[!.]*")} == {run.identity for run in (long_run, *pruned)}


def test_a_worker_does_not_wait_for_a_run_that_waits_itself(store, messages, tiny_run, long_run, pruned):
    """While what comes first goes on in one worker, the other takes what comes next, and then what comes after."""
    later = [tiny_run(seed=seed) for seed in (1, 2)]
    sweep.compute_all([[{"run": run}] for run in (pruned[0], *later)], MEASURED, store, workers=2)
    end = messages.index((f"train-{long_run.identity}", "training", long_run.recipe.epochs))
    assert {f"train-{run.identity}" for run in later} <= {key for key, *_ in messages[:end]}


def test_a_run_goes_on_from_its_checkpoint_when_its_worker_is_killed(store, undisturbed, long_run):
    def kill():
        begun(store, long_run)
        for worker in workers_of(os.getpid()):
            worker.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    frame = sweep.sweep([{"net": "long", "run": long_run}], MEASURED, store, workers=1)
    killer.join()
    assert frame.value.tolist() == [undisturbed.measure(long_run, m)["value"] for m in MEASURED.values()]
    assert files_of(store, long_run) == files_of(undisturbed, long_run)


@contextmanager
def killed_when_begun(store, run, name: str):
    """Inside the block the first process whose command has this name in it is killed when the run has a checkpoint;
    yields all that were there."""
    family: list[psutil.Process] = []

    def kill():
        begun(store, run)
        family.extend(psutil.Process().children(recursive=True))
        next(process for process in family if name in " ".join(process.cmdline())).kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    yield family
    killer.join()


def test_a_killed_fork_server_is_replaced(store, undisturbed, long_run):
    with killed_when_begun(store, long_run, "forkserver"):
        sweep.compute([{"net": "long", "run": long_run}], MEASURED, store, workers=1)
    assert files_of(store, long_run) == files_of(undisturbed, long_run)


def test_a_lost_cluster_process_is_one_line_and_takes_its_workers_along(store, tiny_run, refusal):
    with killed_when_begun(store, tiny_run(epochs=2000), "cluster_process") as family:
        message = refusal(sweep.compute, [{"run": tiny_run(epochs=2000)}], MEASURED, store, workers=1)
    assert "worker processes have ended: finished runs are kept" in message
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []


def test_a_worker_that_is_not_replaced_ends_the_sweep(refusal):
    async def closed(dask_worker):
        await dask_worker.close()

    def wait_in_vain():
        with cluster.connected(2) as client:
            client.wait_for_workers(2)
            lost = next(iter(client.scheduler_info()["workers"]))
            client.run(closed, nanny=True, wait=False, workers=[lost])
            client.submit(time.sleep, 120).result()

    assert "worker processes have ended" in refusal(wait_in_vain)


def test_a_cluster_process_that_dies_at_its_start_is_one_line(monkeypatch, refusal):
    monkeypatch.setattr(sys, "executable", shutil.which("true"))  # ends, and reads nothing
    message = refusal(cluster.connected(1).__enter__)
    assert "could not be started (exit code 0)" in message and "run it again" in message


def test_a_cluster_whose_driver_is_gone_before_it_asks_ends():
    done = subprocess.run([sys.executable, "-P", cluster_process.__file__], stdin=subprocess.DEVNULL, timeout=60,
                          capture_output=True, text=True, start_new_session=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, "", "")


OWN = """
import os
import shutil

from sparserobust.config import Measurement
from sparserobust.settings import settings

@settings
class Deadly(Measurement, kind="deadly_{name}"):
    def __call__(self, model, splits):
        if {deadly}:
            os._exit(9)
        return {{"value": 1.0}}
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Modules of somebody's own, each with a measurement in it."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def own(name: str, deadly: bool = False):
        (folder / f"{name}.py").write_text(OWN.format(name=name, deadly=deadly))
        return __import__(name).Deadly()

    yield own
    for path in folder.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_what_kills_its_worker_each_time_fails_and_its_neighbours_do_not(store, own, tiny_run):
    start = tiny_run()
    grid = [{"net": "fatal", "run": tiny_run(start=start, seed=1),
             "measurements": {"deadly": own("fatal_one", deadly=True)}},
            *({"net": "fine", "run": tiny_run(start=start, seed=seed)} for seed in range(2, 6))]
    with pytest.raises(UserError) as caught:
        sweep.sweep(grid, MEASURED, store, workers=1)
    first, line = str(caught.value).splitlines()
    assert first.startswith("1 of 5 runs failed") and "fatal" in line and "died 3 times" in line
    for row in grid[1:]:
        assert all(reopened(store).find(row["run"], m) for m in MEASURED.values())
    assert {path.suffix for path in (store.folder / ".locks").iterdir()} == {".lock"}


def test_all_of_the_first_grid_is_done_before_a_worker_begins_with_the_second(store, tiny_run):
    """Also what is not ready when the worker is idle for a moment."""
    first = tiny_run()
    grids = [[{"run": first}, {"run": tiny_run(start=first)}],
             [{"run": tiny_run(epochs=20, seed=seed)} for seed in range(1, 7)]]
    finished: list[str] = []
    sweep.compute_all(grids, MEASURED, store, workers=1, finished=finished.append)
    assert set(finished[:2]) == {row["run"].identity for row in grids[0]} and len(finished) == 8


def test_nothing_listens_but_on_loopback_and_nobody_enters_without_the_certificate():
    with cluster.connected(1) as client:
        client.wait_for_workers(1)
        family = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = {each.laddr for process in family for each in process.net_connections("inet")
                     if each.status == psutil.CONN_LISTEN}
        assert {address.ip for address in listening} == {cluster.LOOPBACK}
        host, port = client.scheduler.address.removeprefix("tls://").split(":")
        anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        with pytest.raises((ssl.SSLError, ConnectionError)), socket.create_connection((host, int(port)), 5) as plain:
            talk = anyone.wrap_socket(plain)
            talk.sendall(b"x" * 64)
            talk.recv(64)
            talk.recv(64)


DRIVER = """
import sys

from sparserobust import Run, Store
from sparserobust.analysis import WeightSparsity
from sparserobust.running import sweep

runs = [Run.parse(run) for run in {runs}]
sweep.compute([{{"run": run}} for run in runs], {{"sparsity": WeightSparsity()}}, Store(sys.argv[1], False))
print("through")
"""


@pytest.fixture
def driver(tmp_path, store, long_run, pruned):
    """Another process that sweeps the long run and what begins with it: a script without a guard around its call."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER.format(runs=[run.plain() for run in (*pruned, long_run)]))

    def driver() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, script, store.folder], text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})

    return driver


@pytest.mark.parametrize("deadly", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_whatever_ends_the_driver_ends_its_workers_and_the_next_goes_on(
        deadly, driver, store, undisturbed, long_run, pruned):
    process = driver()
    begun(store, long_run)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(workers_of(process.pid)) >= 1
    process.send_signal(deadly)
    process.communicate(timeout=20)
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []
    if deadly == signal.SIGKILL:
        out, err = driver().communicate(timeout=120)
        assert out == "through\n" and "3 runs trained and measured" in err
        for run in (long_run, *pruned):
            assert files_of(store, run) == files_of(undisturbed, run)
        assert driver().communicate(timeout=60) == ("through\n", "")  # nothing is left to do


# ---------------------------------------------------------------------------------------------- somewhere else, TLS


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A scheduler and two workers, started by hand in a folder where nothing of a caller's own can be imported; the
    driver is told of them."""
    monkeypatch.setenv("SPARSEROBUST_CERTIFICATES", str(tmp_path / "certificates"))
    assert main(["cluster", "certificates"]) == 0
    file, log = tmp_path / "scheduler.json", (tmp_path / "log").open("w")
    library = str(Path(cluster.__file__).parents[2])
    command = [sys.executable, "-m", "sparserobust.cli", "cluster"]
    started = [subprocess.Popen([*command, *more], stdout=log, stderr=log, cwd=tmp_path, start_new_session=True,
                                env=os.environ | {"PYTHONPATH": library})
               for more in (["scheduler", str(file), "--host", "127.0.0.1"], ["workers", str(file), "--count", "2"])]
    end = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < end and started[0].poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    monkeypatch.setenv(cluster.ADDRESS, str(file))
    yield started
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    log.close()


def test_a_cluster_loses_a_worker_and_its_driver_and_the_next_driver_finishes(
        remote, driver, store, undisturbed, long_run, pruned):
    process = driver()
    begun(store, long_run)
    process.kill()
    process.communicate()
    victims = workers_of(remote[1].pid)
    assert len(victims) == 2
    for victim in victims:
        victim.kill()
    out, err = driver().communicate(timeout=180)
    assert out == "through\n", err
    for run in (long_run, *pruned):
        assert files_of(store, run) == files_of(undisturbed, run)
    remote[0].kill()  # nobody is asked when there is nothing to do
    assert driver().communicate(timeout=60) == ("through\n", "")


def test_a_class_of_ones_own_reaches_workers_that_cannot_see_its_file(remote, store, own, tiny_run):
    measured = {"own": own("harmless_one")}
    frame = sweep.sweep([{"run": tiny_run()}], measured, store)
    assert frame.value.tolist() == [1.0]


def test_who_is_interrupted_leaves_a_cluster_idle(remote, store, monkeypatch, tiny_run, long_run):
    """The worker stops at its next report, not after hours."""
    endless = tiny_run(epochs=100_000)

    def interrupt(future):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_outcome", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sweep.compute([{"run": endless}, {"run": tiny_run()}], {"sparsity": WeightSparsity()}, store)
    with cluster.connected(1) as client:
        end = time.monotonic() + 60
        while any(client.run(lambda dask_worker: bool(dask_worker.state.executing_count)).values()):
            assert time.monotonic() < end
            time.sleep(0.2)
    assert not reopened(store).trained(endless)


def test_a_lost_scheduler_is_one_line(remote, store, tiny_run, messages):
    def kill():
        begun(store, tiny_run(epochs=2000))
        for process in remote:
            os.killpg(process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(UserError, match="scheduler is lost: finished runs are kept"):
        sweep.compute([{"run": tiny_run(epochs=2000)}], MEASURED, store)
    killer.join()
