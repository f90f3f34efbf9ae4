"""A sweep on a real SLURM, of one machine, with two GPUs that it only believes to be there: `make test-slurm`.

As root on Debian or its kin SLURM is installed for this and removed again afterwards, unless it was there; elsewhere
the test is left out, and says so. Daemons, ports, keys and logs are this test's own, in a folder of its own.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml

from sparserobust import files, paths
from sparserobust.running import cluster

COMMANDS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "squeue", "sinfo")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/node.pid
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 Gres=gpu:2 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=10 State=UP
"""
GPUS = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"  # files that are there on any machine


# --------------------------------------------------------------------------------------------------- a small SLURM


@contextmanager
def installed() -> Iterator[None]:
    """SLURM's commands are there; what had to be installed for that is removed in the end, and nothing else."""
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if os.geteuid():
        pytest.skip("left out: only root can start SLURM's daemons")
    if not missing:
        yield
        return
    if shutil.which("apt-get") is None:
        pytest.skip(f"left out: {', '.join(missing)} are missing, and there is no apt-get to install them")
    before = packages()
    try:
        done = apt("install", "--no-install-recommends", "slurm-wlm", "munge")
        if done.returncode:
            apt("update")
            done = apt("install", "--no-install-recommends", "slurm-wlm", "munge")
        if done.returncode:
            pytest.skip(f"left out: SLURM cannot be installed: {done.stderr.strip().splitlines()[-1]}")
        yield
    finally:
        if new := sorted(packages() - before):
            apt("purge", *new)


def packages() -> set[str]:
    listed = subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n"], capture_output=True,
                            text=True, check=True).stdout
    return {name for name, status in map(str.split, listed.splitlines()) if status == "installed"}


def apt(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["apt-get", "-y", "-q", *arguments], capture_output=True, text=True, timeout=300,
                          env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})


@contextmanager
def daemon(log: Path, *command: str) -> Iterator[subprocess.Popen]:
    """A process in the background, stopped in the end."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def until(true: Callable[[], object], seconds: float, what: str) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.1)


def told(*command: str) -> str:
    """What a command says; it has a minute, and has to succeed."""
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Iterator[Path]:
    """A SLURM of this machine; returns its folder, with the logs of its daemons."""
    folder = tmp_path / "slurm"
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    controller, node = free_ports(2)
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=socket.gethostname().split(".")[0], folder=folder,
                                                  controller=controller, node=node))
    (folder / "gres.conf").write_text(GPUS)
    monkeypatch.setenv("SLURM_CONF", str(configuration))
    munge = [f"--{name}-file={folder}/munge/{name}" for name in ("pid", "log", "seed")]
    with installed(), ExitStack() as stack:
        stack.enter_context(daemon(folder / "munged.log", "munged", "--foreground", "--force", f"--key-file={key}",
                                   f"--socket={folder}/munge/socket", *munge))  # --force: in a folder of root's own
        until((folder / "munge" / "socket").exists, 20, "munged")
        for name in ("slurmctld", "slurmd"):
            stack.enter_context(daemon(folder / f"{name}.log", name, "-D", "-f", str(configuration)))
        until(lambda: "idle" in subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True,
                                               timeout=30).stdout, 30, "slurmctld and slurmd")
        try:
            yield folder
        finally:
            told("scancel", "--full", "--user=root")
            until(lambda: not told("squeue", "-h"), 30, "the end of all jobs")


# --------------------------------------------------------------------------------------------------------- a sweep


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A project whose scale `small` is 13 networks of 02_iwi, in chains of up to five."""
    settings = tmp_path / "home" / "notebooks" / "settings"
    settings.mkdir(parents=True)
    scales, iwi = (yaml.safe_load((paths.settings_folder() / name).read_text()) for name in ("scales.yaml", "iwi.yaml"))
    small = iwi["quick"] | {"seeds": [0], "measurements": {}}
    small["nets"] = {"LeNet-5": iwi["quick"]["nets"]["LeNet-5"]}
    small["recipe"] |= {"epochs": 10}
    iwi["shared"]["measurements"] = {"all": {"clean": {"kind": "accuracy"}, "sparsity": {"kind": "sparsity"}}}
    (settings / "scales.yaml").write_text(yaml.safe_dump({"small": "", **scales}))
    (settings / "iwi.yaml").write_text(yaml.safe_dump({"shared": iwi["shared"], "small": small}))
    monkeypatch.setenv("SPARSEROBUST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SPARSEROBUST_CERTIFICATES", str(tmp_path / "certificates"))
    monkeypatch.delenv(cluster.ADDRESS, raising=False)
    cluster.make_certificates(cluster.certificates_folder())
    return tmp_path / "home"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "sparserobust.cli", *arguments]


def weights(store: Path) -> dict[str, str]:
    """Of each finished run: the hash of its weights."""
    return {path.parent.name: files.read_json(path)["weights_sha256"] for path in store.glob("[!.]*/record.json")}


def contents(store: Path) -> dict[str, int]:
    """Every file of finished runs, with the time it was written."""
    return {str(path): path.stat().st_mtime_ns for path in store.glob("[!.]*/**/*.*")}


def test_a_sweep_outlives_a_lost_worker_and_a_killed_driver_and_the_array_ends_by_itself(slurm, home, tmp_path,
                                                                                        monkeypatch):
    begun = time.monotonic()

    def step(what: str) -> None:
        print(f"{time.monotonic() - begun:6.1f} s  {what}", flush=True)

    alone, store = tmp_path / "alone", tmp_path / "store"
    monkeypatch.setenv("SPARSEROBUST_STORE", str(alone))
    subprocess.run(command("compute", "--scale", "small"), check=True, timeout=300)
    expected = weights(alone)
    step(f"{len(expected)} runs on this machine")

    monkeypatch.setenv("SPARSEROBUST_STORE", str(store))
    folder = tmp_path / "it's a \"shared\" 100% folder"
    lines = told(*command("cluster", "slurm", "--gpus", "2", "--time", "5:00", "--partition", "test", "--idle-timeout",
                          "0.75", "--folder", str(folder), "--submit")).splitlines()
    job = lines[0].split("job ")[1].split(":")[0]
    scheduler = folder / f"scheduler-{job}.json"
    compute = command("compute", "--scale", "small", "--scheduler", str(scheduler))
    until(scheduler.exists, 60, "the scheduler")
    with monkeypatch.context() as patch:
        patch.setenv(cluster.ADDRESS, str(scheduler))
        with cluster.connected(1) as client:
            client.wait_for_workers(2, timeout=60)
            assert sorted(client.run(os.getenv, "CUDA_VISIBLE_DEVICES").values()) == ["0", "1"]
    step("a job array: a scheduler, and two workers with a GPU each")

    driver = subprocess.Popen(compute)
    until(lambda: driver.poll() is not None or len(weights(store)) >= 2, 60, "the first runs")
    told("scancel", f"{job}_1")
    until(lambda: told("squeue", "-h", "-r", "-t", "R", "-o", "%K") == "0", 30, "the end of the cancelled element")
    step("a worker cancelled")
    before = len(weights(store))
    until(lambda: driver.poll() is not None or len(weights(store)) > before, 60, "a run after the worker was lost")
    driver.kill()
    assert driver.wait() == -signal.SIGKILL, "it ended before it was killed"
    found = weights(store)
    assert 0 < len(found) < len(expected)
    step(f"the driver killed after {len(found)} runs")

    subprocess.run(compute, check=True, timeout=300)
    assert weights(store) == expected
    step("all runs, their weights as on this machine")

    written = contents(store)
    subprocess.run(compute, check=True, timeout=60)
    assert contents(store) == written
    step("nothing left to compute")

    until(lambda: not told("squeue", "-h"), 120, "the end of the idle array")
    assert not list(folder.glob("scheduler-*.json"))
    assert len(list(folder.glob(f"{job}_*.log"))) == 2
    step("the idle array has ended")
