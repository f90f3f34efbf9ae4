"""A process of somebody else's code: with limits on memory, processes and disk, without network, that sees every file
as read-only and ends with whoever started it. Linux only; it is a fork, so that it begins with all that is in memory.

`start(..., confined=True)` puts it into namespaces of its own (user, mount, process, network, IPC), as containers are
made, without privileges. Where a system does not allow that (`possible`), limits hold, and Python's own sockets are
refused; but files can be written, and other processes of this user ended.
"""

import ctypes
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from select import select

NAMESPACES = 0x10000000 | 0x20000 | 0x20000000 | 0x40000000 | 0x08000000  # user, mount, process, network, IPC
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 32, 4096, 16384, 1 << 18
FLAGS = {"nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}
DIE_WITH_PARENT, NO_NEW_PRIVILEGES = 1, 38  # of prctl
DEVICES = ("null", "zero", "full", "random", "urandom")
DISK = 256 << 20  # bytes that it may write, all in memory
PROCESSES = 64
SAID = 64 << 20  # bytes that are read of it


@dataclass(frozen=True)
class Limits:
    """Seconds of wall-clock time, and bytes of memory beyond what is in memory at its beginning."""

    seconds: float
    memory: int


def possible() -> str:
    """Why processes cannot be confined here; nothing if they can."""
    said, _ = run(lambda out: os.write(out, b"confined"), Limits(20, 1 << 30), Path("/tmp"))
    return "" if said == b"confined" else "this system lets no user make namespaces of its own"


def run(work: Callable[[int], object], limits: Limits, scratch: Path, hidden: Collection[Path] = (),
        overlaid: Path | None = None, confined: bool = True) -> tuple[bytes, str]:
    """What `work` writes to the file descriptor that it gets, in a process of its own, and why that was ended, if it
    was: time, memory. `scratch` is an empty folder that it may write to, and changes of the folder `overlaid` are seen
    by it alone; nothing of both outlives it. The files `hidden` are empty to it."""
    base, (reading, writing) = _memory(os.getpid()), os.pipe()
    process = os.fork()
    if not process:
        try:
            os.setsid()
            _call("prctl", DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
            if confined:
                _confine(scratch, hidden, overlaid)
            _limit(limits)
            _close_all_but(writing)
            if not confined:
                _refuse_sockets()
            os.chdir(scratch)
            os.environ.update(HOME=str(scratch), TMPDIR=str(scratch))
            tempfile.tempdir = None
            work(writing)
        finally:
            os._exit(0)
    os.close(writing)
    try:
        return _read(reading, process, limits, base)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)  # what is in its namespace ends with it
        os.waitpid(process, 0)
        os.close(reading)


def _read(reading: int, process: int, limits: Limits, base: int) -> tuple[bytes, str]:
    said, end = bytearray(), time.monotonic() + limits.seconds
    while time.monotonic() < end:
        if select([reading], [], [], 0.1)[0]:
            if not (more := os.read(reading, 1 << 20)):
                return bytes(said), ""
            said += more
            if len(said) > SAID:
                return bytes(said[:SAID]), "its answers were too long"
        elif os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return bytes(said), ""  # what it has left behind still holds the pipe
        below = _descendants(process)
        if len(below) > PROCESSES:
            return bytes(said), f"it had more than {PROCESSES} processes"
        if sum(max(_memory(each) - base, 0) for each in below) > limits.memory:
            return bytes(said), "it took too much memory"
    return bytes(said), f"it took longer than {limits.seconds:.0f} seconds"


# ----------------------------------------------------------------------------------------------------------- within


def _confine(scratch: Path, hidden: Collection[Path], overlaid: Path | None) -> None:
    """Go on as the second process of namespaces of its own, without any privilege over them."""
    sockets = [Path(line.split(" ", 7)[-1].split(" ")[-1].strip()) for line in
               Path("/proc/net/unix").read_text(encoding="utf-8").splitlines() if " /" in line]
    user, group = os.getuid(), os.getgid()
    _call("unshare", NAMESPACES)
    for name, content in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path(f"/proc/self/{name}").write_text(content, encoding="utf-8")
    _go_on_as_child()
    _call("prctl", DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
    _remount(scratch, [*hidden, *sockets], overlaid)
    _go_on_as_child()  # the first process of a namespace is immune to its own signals, and all others end with it
    _call("capset", ctypes.create_string_buffer(b"\x22\x05\x08\x20\0\0\0\0"), ctypes.create_string_buffer(24))
    _call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def _go_on_as_child() -> None:
    if child := os.fork():
        while os.wait()[0] != child:  # orphans
            pass
        os._exit(0)


def _remount(scratch: Path, hidden: Collection[Path], overlaid: Path | None) -> None:
    """Make all that is mounted read-only, apart from `scratch`; of devices, keep harmless ones."""
    _mount(None, "/", PRIVATE | RECURSIVE)
    with suppress(OSError):  # a container may hide parts of /proc: then the old one stays, without power over anything
        _mount("proc", "/proc", FLAGS["nosuid"] | FLAGS["nodev"] | FLAGS["noexec"], "proc")
    _mount("tmpfs", scratch, FLAGS["nosuid"] | FLAGS["nodev"], "tmpfs", f"size={DISK},mode=700")
    for name in ("upper", "work", "dev/shm"):
        (scratch / name).mkdir(parents=True)
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        _, _, _, _, point, options, *_ = line.split(" ")
        where = point.encode().decode("unicode_escape").encode("latin-1")
        if os.fsdecode(where) != str(scratch):
            kept = sum(flag for name, flag in FLAGS.items() if name in options.split(","))
            try:
                _mount(None, where, REMOUNT | BIND | READ_ONLY | kept)
            except OSError:
                if os.path.exists(where) and not os.statvfs(where).f_flag & os.ST_RDONLY:  # noqa: PTH110
                    raise
    with suppress(OSError):  # Linux before 5.11: then it is read-only
        if overlaid:
            _mount("overlay", overlaid, 0, "overlay", f"lowerdir={overlaid},upperdir={scratch}/upper,"
                   f"workdir={scratch}/work,userxattr")
    for path in hidden:
        with suppress(OSError):  # it is gone
            _mount("/dev/null", path, BIND)
    for name in DEVICES:
        (scratch / "dev" / name).touch()
        _mount(f"/dev/{name}", scratch / "dev" / name, BIND)
    _mount(scratch / "dev", "/dev", BIND | RECURSIVE)
    with suppress(OSError):
        _mount("tmpfs", "/run", FLAGS["nosuid"] | FLAGS["nodev"] | READ_ONLY, "tmpfs")  # sockets of services


def _limit(limits: Limits) -> None:
    size = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    for what, value in ((resource.RLIMIT_AS, size + limits.memory), (resource.RLIMIT_CORE, 0),
                        (resource.RLIMIT_CPU, int(limits.seconds) + 1), (resource.RLIMIT_FSIZE, DISK),
                        (resource.RLIMIT_NPROC, PROCESSES)):
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))


def _close_all_but(kept: int) -> None:
    """Standard input and output become nothing."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    os.closerange(3, kept)
    os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))


def _refuse_sockets() -> None:
    def refuse(event: str, arguments: tuple) -> None:
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind", "socket.getaddrinfo"):
            raise PermissionError("there is no network here")

    sys.addaudithook(refuse)


def _call(name: str, *arguments) -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _mount(source, target, flags: int, kind: str | None = None, options: str | None = None) -> None:
    text = [None if each is None else os.fsencode(each) for each in (source, target, kind, options)]
    _call("mount", *text[:3], ctypes.c_ulong(flags), text[3])


# ------------------------------------------------------------------------------------------------------- from outside


def _descendants(process: int) -> list[int]:
    """The processes that a process has started, and those that these have."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    found, below = [], [process]
    while below:
        below = [each for each, parent in parents.items() if parent in below]
        found += below
    return found


def _memory(process: int) -> int:
    """Bytes that only this process, and those that it was forked from, have in memory."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{process}/statm").read_text(encoding="utf-8").split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * resource.getpagesize()
