"""Kernels that start in a tenth of a second: forked from one process that has imported what notebooks need."""

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from multiprocessing import forkserver
from pathlib import Path

import numpy
import torch
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

POSSIBLE = sys.platform == "linux"  # elsewhere system libraries start threads, which a fork would lose
LAUNCHER = "ipykernel_launcher"
SAFE_PATH = "PYTHONSAFEPATH"  # environment variable: nothing is imported from the folder where a process starts
SETTLED = 0.2  # seconds, after which a kernel that has answered waits for the next message
_started: list["Forked"] = []


def fork() -> None:
    """From now on kernels that this process starts are forked, where that is possible. The process from which they are
    forked begins to import at once; it ends with this one. In a script the usual `if __name__ == "__main__":` is needed
    around this, as for any process that `multiprocessing` starts."""
    factory = KernelProvisionerFactory.instance()
    factory.provisioners["forked"] = EntryPoint("forked", f"{__name__}:Forked", factory.GROUP_NAME)
    factory.default_provisioner_name = "forked"
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # several at a time: who waits should leave the core to others
    os.environ[SAFE_PATH] = "1"
    if POSSIBLE:
        forkserver.set_forkserver_preload(["sparserobust.preloaded"])
        with _unheard(signal.SIGINT):  # Ctrl-C reaches all processes of a terminal; that one has nothing to say to it
            forkserver.ensure_running()


@contextmanager
def _unheard(signum: int) -> Iterator[None]:
    """What is started meanwhile ignores this signal."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set that
        yield
        return
    before = signal.signal(signum, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signum, before)


def kill() -> None:
    """End at once all kernels that were started since `fork`; whoever waits for one is told that it died."""
    for provisioner in _started:
        if provisioner.process:
            provisioner.process.kill()


class Manager(AsyncKernelManager):
    """Of kernels of this environment, whatever else is called `python3` here. What lies beside a page can be imported
    there, but stands for nothing that is installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        beside = "--IPKernelApp.exec_lines=__import__('sys').path.append(__import__('os').getcwd())"
        return KernelSpec(**get_kernel_dict(extra_arguments=[beside, "--log-level=ERROR"], python_arguments=["-P"]))

    async def _async_interrupt_kernel(self) -> None:
        """A kernel is interrupted before it is told to end, as it may be busy. One that has answered just now would say
        as an error that it was interrupted on the way out."""
        if self.shutting_down:
            await asyncio.sleep(SETTLED)
        await super()._async_interrupt_kernel()


class Forked(LocalProvisioner):
    """Starts Python kernels of this environment by a fork where that is possible, all others as usual."""

    async def launch_kernel(self, cmd: list[str], **kwargs):
        _started.append(self)
        if not POSSIBLE or cmd[0] != sys.executable or LAUNCHER not in cmd:
            return await super().launch_kernel(cmd, **kwargs)
        self.cwd = kwargs.get("cwd") or Path.cwd()
        child = multiprocessing.get_context("forkserver").Process(
            target=_kernel, args=(cmd[cmd.index(LAUNCHER) + 1:], str(self.cwd), dict(kwargs["env"])))
        child.start()
        self.process = _Popen(child)  # type: ignore[assignment]
        self.pid = self.pgid = child.pid  # it makes a group of its own
        return self.connection_info


class _Popen:
    """A forked process in the words of `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, child):
        self.child, self.kill = child, child.kill

    def poll(self) -> int | None:
        return self.child.exitcode

    def wait(self) -> int | None:
        self.child.join()
        return self.child.exitcode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.child.pid, signum)


def _kernel(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    """The life of a forked kernel."""
    assert sys.platform == "linux"  # `POSSIBLE`
    os.setsid()  # an interrupt from the keyboard is for the process that started it
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    os.chdir(folder)
    sys.path.append(str(Path.cwd()))
    os.environ.clear()
    os.environ.update(environment)
    numpy.random.seed()  # chance that nobody has seeded is another one in each kernel
    torch.seed()
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(argv=[*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])


def _end_with(parent) -> None:
    """Kill this kernel, and what it has started, once the process that started it is gone."""
    assert sys.platform == "linux"
    parent.join()
    os.killpg(0, signal.SIGKILL)
