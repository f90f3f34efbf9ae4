"""Where the worker processes of a sweep are: on this machine, started for it, or at a Dask scheduler that is there.

A scheduler is a door to run code: whoever can talk to it can run anything as the user who started it. So all that this
library starts talks TLS, on loopback, too, which other users of a machine share, and takes nobody in who has not the
certificate: for a sweep a new one that never leaves memory, for a cluster that of `certificates`.
"""

import asyncio
import json
import logging
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sparserobust import files, paths
from sparserobust.errors import UserError, quoted
from sparserobust.provenance import cores, gpus
from sparserobust.running import cluster_process
from sparserobust.running.cluster_process import LOOPBACK

LIBRARY = Path(__file__).resolve().parents[2]
ADDRESS = "DASK_SCHEDULER_ADDRESS"  # environment variable: a scheduler file, or an address such as tls://host:8786
DASHBOARD_PORT = 8787
ANSWER = 30  # seconds in which a scheduler should answer
PATIENCE = 300  # seconds that a worker waits for its scheduler
log = logging.getLogger("sparserobust")


# ------------------------------------------------------------------------------------------------------ certificates


def certificates_folder() -> Path:
    """Where the certificate and the key of this user's clusters lie; `SPARSEROBUST_CERTIFICATES` moves them."""
    return Path(os.environ.get("SPARSEROBUST_CERTIFICATES")
                or Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "sparserobust")


def make_certificates(folder: Path) -> list[Path]:
    """Write a new certificate and its key, which only this user may read. `UserError` if there are some already: who
    holds the old ones could not talk to the new."""
    from distributed.security import Security

    made = Security.temporary()
    found = {folder / "cluster.crt": made.tls_scheduler_cert, folder / "cluster.key": made.tls_scheduler_key}
    for path in found:
        if path.exists():
            raise UserError(f"{path} is there already: remove it first if you want a new one, and copy that to all "
                            "machines that take part")
    paths.writable(folder).chmod(0o700)
    for path, text in found.items():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
    return list(found)


def security():
    """What schedulers, workers and drivers of this user's clusters show each other. `UserError` if it is not made."""
    files = [certificates_folder() / name for name in ("cluster.crt", "cluster.key")]
    for path in files:
        if not path.exists():
            raise UserError(f"{path} is missing: `sparserobust cluster certificates` makes it, once; copy "
                            f"{certificates_folder()} to each machine that takes part")
    return _security(*map(str, files))


def _security(certificate: str, key: str):
    """From files or their text, for all roles."""
    from distributed.security import Security

    roles = {f"tls_{role}_{what}": value for role in ("client", "scheduler", "worker")
             for what, value in (("cert", certificate), ("key", key))}
    return Security(require_encryption=True, tls_ca_file=certificate, **roles)


# ---------------------------------------------------------------------------------------------- schedulers, workers


def run_scheduler(file: str, host: str | None, port: int, idle_timeout: float | None) -> None:
    """Run a scheduler here, on all addresses of this machine or on `host`, until it is stopped or has had no work for
    so many minutes; `file` tells workers and drivers where it is. Its dashboard is on loopback."""
    def said(scheduler) -> None:
        dashboard = scheduler.http_server.port
        print(f"scheduler at {scheduler.address}, as {file} says; whoever has its certificate can run code here as you",
              f"dashboard at http://{LOOPBACK}:{dashboard}/status, on this machine only", sep="\n",
              flush=True)

    if idle_timeout is not None and not 0 < idle_timeout < math.inf:
        raise UserError(f"--idle-timeout should be minutes, more than 0, not {idle_timeout:g}")
    if not 0 <= port < 2**16:
        raise UserError(f"--port should be a whole number from 0 to {2**16 - 1}, not {port}")
    paths.writable(Path(file).absolute().parent)
    if Path(file).is_dir():
        raise UserError(f"{file} is a folder: name a file in it, which the scheduler will write")
    _until_stopped(cluster_process.serve(security(), said, {
        "host": host, "port": port, "scheduler_file": file, "dashboard": True,
        "dashboard_address": f"{LOOPBACK}:{DASHBOARD_PORT}",
        "idle_timeout": idle_timeout and f"{idle_timeout} minutes"}))


def run_workers(where: str, count: int | None, per_gpu: int) -> None:
    """Run workers here for a scheduler, given by its file, which may not be there yet, or its address, until that is
    gone: so many, or `per_gpu` for each GPU, or else one per core."""
    if per_gpu < 1 or (count is not None and count < 1):
        raise UserError("--count and --per-gpu should be whole numbers from 1")
    count = count or (len(gpus()) * per_gpu or cores())
    secret, address = security(), _address(_there(where))
    print(f"{count} workers for {address}", flush=True)
    _until_stopped(cluster_process.work(secret, address, environments(count), death_timeout=PATIENCE))


def _there(where: str) -> str:
    """The same, once a scheduler file is written; it may be a little late on a shared folder, and is empty at first."""
    end = time.monotonic() + PATIENCE
    while "://" not in where and not _written(Path(where)) and time.monotonic() < end:
        time.sleep(0.5)
    return where


def _written(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _until_stopped(serving) -> None:
    cluster_process.prepare()
    logging.getLogger("distributed").setLevel(logging.WARNING)
    with suppress(KeyboardInterrupt):
        asyncio.run(serving)


# ------------------------------------------------------------------------------------------------------ drivers


def given() -> str | None:
    """The scheduler that somebody named, if any."""
    return os.environ.get(ADDRESS) or None


@contextmanager
def connected(workers: int) -> Iterator:
    """A `distributed.Client` of the scheduler that somebody named, or else of a cluster of so many workers on this
    machine, which ends with the block, or with this process however that ends."""
    if where := given():
        address = _address(where)
        with _client(address, security() if address.startswith("tls://") else None,
                     f"no scheduler answers at {address}: start it (sparserobust cluster scheduler FILE), or unset "
                     f"{ADDRESS}") as client:
            yield client
    else:
        with _local(environments(workers)) as (address, secret), _client(
                address, secret, "the worker processes do not answer") as client:
            yield client


def environments(workers: int, gpu: list[str] | None = None) -> list[dict[str, str]]:
    """What is set in the environment of each of so many workers: each has one GPU to itself, or shares it with every
    n-th, where there are any."""
    found = gpus() if gpu is None else gpu
    return [{"CUDA_VISIBLE_DEVICES": found[number % len(found)], "SPARSEROBUST_DEVICE": "cuda"} if found else {}
            for number in range(workers)]


def _address(where: str) -> str:
    """Of a scheduler file or an address. `UserError` if it is neither."""
    if "://" in where:
        if not re.fullmatch(r"(tls|tcp)://([\w.-]+|\[[\w:.%-]+\]):\d{1,5}", where, re.ASCII):
            raise UserError(f"{quoted(where)} is no scheduler: name its file, or its address, such as tls://host:8786")
        if where.startswith("tcp://") and "127.0.0.1" not in where and "localhost" not in where:
            log.warning("%s is not encrypted: whoever can reach it can run code as you", where)
        return where
    if not Path(where).exists():
        raise UserError(f"there is no scheduler file '{where}': `sparserobust cluster scheduler {where}` starts a "
                        "scheduler that writes it")
    try:
        return files.read_json(Path(where))["address"]
    except (files.Corrupt, KeyError, TypeError):
        raise UserError(f"'{where}' is no scheduler file: start the scheduler anew, it writes one") from None


@contextmanager
def _client(address: str, secret, unreachable: str) -> Iterator:
    from distributed import Client

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # that a scheduler is lost is said in one line
    try:
        client = Client(address, security=secret, set_as_default=False, timeout=ANSWER)
    except (OSError, TimeoutError) as error:
        raise UserError(f"{unreachable} ({error})") from None
    try:
        yield client
    finally:
        client.close(timeout=5)


@contextmanager
def _local(wanted: list[dict[str, str]]) -> Iterator[tuple]:
    """A scheduler and workers on loopback, in a process of their own and a session of its own, so that an interrupt
    from the keyboard is this process's to handle; with a certificate that nobody else has."""
    # it finds the library and what that needs wherever this process does, but for the working folder; last of all, so
    # that nothing stands for what is installed
    path = [*(folder for folder in sys.path if folder not in ("", str(Path.cwd()))), str(LIBRARY)]
    process = subprocess.Popen([sys.executable, "-P", Path(cluster_process.__file__), *path], bufsize=0,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
                               creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0))  # Windows' session
    assert process.stdin is not None and process.stdout is not None  # pipes
    try:
        with suppress(BrokenPipeError):  # then it does not answer
            process.stdin.write(json.dumps(wanted).encode() + b"\n")
        import distributed  # noqa: F401  # which takes a second, in both processes

        answer = process.stdout.readline()
        if not answer:
            raise UserError(f"worker processes could not be started (exit code {process.wait()}): finished runs are "
                            "kept, run it again")
        address, *secret = json.loads(answer)
        try:
            yield address, _security(*secret)
        except Exception:
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)  # whatever the client made of that
                raise UserError("the worker processes have ended: finished runs are kept, run it again") from None
            raise
    finally:
        process.stdin.close()  # it ends with that, and its workers with it
        process.wait()
        process.stdout.close()
