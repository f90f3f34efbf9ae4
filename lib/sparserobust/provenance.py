"""The machine: device, cores, precision, threads, versions."""

import os
import platform
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy
import torch

from sparserobust import files
from sparserobust.errors import UserError, quoted
from sparserobust.paths import IN_CHECKOUT, LIBRARY, PROJECT


def device() -> torch.device:
    """Where networks are trained: the GPU if there is one, Apple's ("mps"), too, else the CPU; `SPARSEROBUST_DEVICE`
    overrules. `UserError` if it names what is not here."""
    given = os.environ.get("SPARSEROBUST_DEVICE")
    apple = torch.backends.mps.is_available()
    if not given:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if apple else "cpu")
    here = {"cpu", *(["mps"] if apple else []),
            *(["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
              if torch.cuda.is_available() else [])}
    if given not in here:
        raise UserError(f"SPARSEROBUST_DEVICE is {quoted(given)}, but this machine has {', '.join(sorted(here))}: "
                        "unset it, or name one of them")
    return torch.device(given)


def measuring_device() -> torch.device:
    """Where trained networks are measured: the same, but for Apple's GPU, which knows no float64, the CPU."""
    where = device()
    return torch.device("cpu") if where.type == "mps" else where


def double(t: torch.Tensor) -> torch.Tensor:
    """In float64: where it lies, or on the CPU if it lies on Apple's GPU, which knows none."""
    return (t.cpu() if t.device.type == "mps" else t).double()


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side() -> int:
    """How many processes train side by side unless somebody says otherwise: one per GPU, or else per core."""
    return len(gpus()) or cores()


def gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them; none where it works without."""
    if device().type != "cuda":
        return []
    given, index = os.environ.get("CUDA_VISIBLE_DEVICES"), device().index
    names = given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]
    return names if index is None else [names[index]]


@cache
def has_bfloat16(kind: str) -> bool:
    """Whether a device of this kind multiplies bfloat16 in hardware (an emulation would only be slower)."""
    if kind == "cuda":
        return torch.cuda.get_device_capability(device()) >= (8, 0)
    if kind != "cpu":
        return False
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


@contextmanager
def with_threads(number: int):
    """Inside the block torch uses so many threads; small networks are fastest with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def provenance(where: torch.device | None = None) -> dict:
    """Where and with what a number was computed, by default where networks are trained: no host name, no path, no
    user."""
    return machine(where) | {"commit": commit()}


def machine(where: torch.device | None = None) -> dict:
    """The same but for the library's own code."""
    where = where or device()
    return {
        "processor": torch.cuda.get_device_name(where) if where.type == "cuda" else _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability() if where.type == "cpu" else None,
        "device": where.type,
        "threads": torch.get_num_threads(),
        "platform": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def packages() -> list[str]:
    """What is installed, each with its version."""
    return sorted(path.name for folder in sys.path for path in Path(folder).glob("*.dist-info"))


def library() -> str:
    """Sixteen hexadecimal digits that name the library's code as it lies here."""
    return files.short_hash([(str(path.relative_to(LIBRARY)), files.sha256(path))
                             for path in sorted(LIBRARY.rglob("*.py"))])


def processor(made: dict) -> str:
    """The processor that a `provenance` names, with its widest vector instructions where these are known: processors of
    one name may differ in them, and then in the last digits of what they compute."""
    return ", ".join(filter(None, (made["processor"], made.get("instructions"))))


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@cache
def commit() -> str:
    """Short hash of the checked-out commit, with `+` where the library differs from it, `unknown` outside git; of an
    installed library its release."""
    if not IN_CHECKOUT:
        return f"release {metadata.version('sparserobust')}"
    head, changes = git("rev-parse", "--short=10", "HEAD"), git("status", "--porcelain", "--", "lib")
    return "unknown" if head is None else head.strip() + ("+" if changes else "")


def git(*words: str) -> str | None:
    """What git says of the project; None without git, outside a repository, and where the library lies in no checkout:
    a repository around it is somebody else's."""
    if not IN_CHECKOUT or not (PROJECT / ".git").exists():
        return None
    try:
        return subprocess.run(["git", "-C", PROJECT, *words], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def in_notebook() -> bool:
    """Whether output goes to a notebook rather than a terminal."""
    ipython = sys.modules.get("IPython")
    return hasattr(ipython and ipython.get_ipython(), "kernel")  # to have ipykernel imported is not enough


def summary() -> str:
    """One line for the top of a notebook: machine and versions."""
    p = provenance()
    return (f"{processor(p)} ({p['device']}, {cores()} cores), {p['platform']}, Python {p['python']}, "
            f"torch {p['torch']}, commit {p['commit']}")
