"""Windows, macOS, Apple's GPU: what none of the machines that run these tests can try, read in the sources."""

import ast
import re
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import mypy
import pytest
import torch

from sparserobust import cli, paths, provenance, seeding, training
from sparserobust.models import PreActResNet
from sparserobust.sparsifiers import constraints

SOURCES = sorted(paths.LIBRARY.rglob("*.py"))
TYPESHED = Path(mypy.__file__).parent / "typeshed" / "stdlib"
ASKS = re.compile(r"\bhasattr\(|\bsys\.platform\b|\bos\.name\b")  # what a guard's condition says


# ------------------------------------------------------------------------------------------------- POSIX


@cache
def known(module: str, platform: str) -> frozenset[str]:
    """The names that a module of Python's library has on a platform, as mypy's stubs say; those of all Pythons."""
    name = TYPESHED / module.replace(".", "/")
    path = next((found for found in (name.with_suffix(".pyi"), name / "__init__.pyi") if found.exists()), None)
    if path is None:
        return frozenset()
    names: set[str] = set()
    todo = list(ast.parse(path.read_text(encoding="utf-8")).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If):
            asked = SimpleNamespace(platform=platform, version_info=(3, 13))
            todo += node.body if eval(ast.unparse(node.test), {"sys": asked}) else node.orelse
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            names |= {target.id for target in getattr(node, "targets", [getattr(node, "target", None)])
                      if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname for alias in node.names if alias.asname}
    return frozenset(names)


def missing(module: str, name: str) -> bool:
    """Whether Windows or macOS lacks a name that Linux has."""
    return name in known(module, "linux") and not all(name in known(module, system) for system in ("win32", "darwin"))


def on_posix_alone(source: str) -> list[str]:
    """What a source uses that not every platform has, unless it asks first: the name, and the line."""
    tree = ast.parse(source)
    asking = {target.id for node in tree.body if isinstance(node, ast.Assign) and ASKS.search(ast.unparse(node.value))
              for target in node.targets if isinstance(target, ast.Name)}  # such as FORKS = sys.platform == "linux"

    def asks(test: ast.AST) -> bool:
        return bool(ASKS.search(ast.unparse(test))) or any(
            isinstance(node, ast.Name) and node.id in asking for node in ast.walk(test))

    found: list[str] = []

    def read(node: ast.AST, docstring: bool = False) -> None:
        if isinstance(node, ast.If | ast.IfExp) and asks(node.test):
            return
        if isinstance(node, ast.BoolOp) and asks(node.values[0]):
            return
        name = ""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and missing(node.value.id, node.attr):
            name = f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Import):
            name = ", ".join(a.name for a in node.names if known(a.name, "linux") and not known(a.name, "win32"))
        elif isinstance(node, ast.ImportFrom) and node.module:
            name = ", ".join(a.name for a in node.names if missing(node.module, a.name))
        elif isinstance(node, ast.Attribute) and node.attr in ("symlink_to", "hardlink_to", "symlink", "mkfifo"):
            name = node.attr
        elif (isinstance(node, ast.Constant) and isinstance(node.value, str)
              and re.match(r"/(proc|dev|tmp|etc|sys|bin|usr|var)\b", node.value)):
            name = node.value
        if name:
            found.append(f"{name}, line {node.lineno}")  # type: ignore[attr-defined]
        for _, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    read(child)
                    # below `if not POSIX: return`, or `assert POSIX`, is guarded
                    if isinstance(child, ast.Assert) and asks(child.test):
                        break
                    if (isinstance(child, ast.If) and asks(child.test)
                            and isinstance(child.body[-1], ast.Return | ast.Raise)):
                        break

    read(tree)
    return found


@pytest.mark.parametrize("source", [
    "import fcntl", "import os\nos.fork()", "os.sched_getaffinity(0)", "signal.SIGKILL", "from os import killpg",
    "os.getuid() if x else 0", "open('/dev/null')", "Path('/proc/cpuinfo').read_text()", "path.symlink_to(other)",
    "import resource", "def f():\n    if x:\n        return\n    os.nice(1)", "if x:\n    os.umask\n    os.setsid()"])
def test_the_reader_of_sources_sees_what_is_not_everywhere(source):
    assert on_posix_alone(source)


@pytest.mark.parametrize("source", [
    "os.nice(1) if hasattr(os, 'nice') else 0", "HERE = sys.platform == 'linux'\nif HERE:\n    os.fork()",
    "def f():\n    if os.name != 'posix':\n        return\n    os.getuid()", "os.devnull", "os.getpid()",
    "import signal", "def f():\n    assert sys.platform == 'linux'\n    os.setsid()",
    "hasattr(os, 'nice') and os.nice(0)", "os.kill(1, 0)"])
def test_the_reader_of_sources_takes_what_is_everywhere_or_guarded(source):
    assert not on_posix_alone(source)


CHECKED = {"/proc/cpuinfo": "provenance.py", "/proc/self/autogroup": "cluster_process.py"}  # read where they exist
# needs Linux: what is done in containers, and `grade`, which asks before it imports anything of it
ON_LINUX_ALONE = ("running/kubernetes.py", "teaching/answering.py", "teaching/grading.py", "teaching/sandbox.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(paths.LIBRARY).as_posix())
def test_nothing_needs_posix_unless_it_asks_first(path):
    source = path.read_text(encoding="utf-8")
    found = [name for name in on_posix_alone(source) if CHECKED.get(name.split(",")[0]) != path.name]
    assert not found or str(path).endswith(ON_LINUX_ALONE), "guard it by hasattr, os.name or sys.platform"
    assert all(".exists()" in source for name, file in CHECKED.items() if file == path.name)


def test_submissions_are_graded_on_linux_and_what_grades_them_is_imported_nowhere_else(monkeypatch, capsys):
    importing = {path.name for path in SOURCES if re.search(
        r"import .*\b(grading|sandbox)\b|teaching\.(answering|grading|sandbox)", path.read_text(encoding="utf-8"))}
    assert importing == {"cli.py", "grading.py"}
    for name in ("grading", "sandbox"):
        monkeypatch.setitem(sys.modules, f"sparserobust.teaching.{name}", None)  # cannot be imported
    monkeypatch.setattr(sys, "platform", "win32")
    assert cli.main(["grade", "class"]) == 1
    assert "on Linux" in capsys.readouterr().err


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(paths.LIBRARY).as_posix())
def test_text_is_read_and_written_with_an_encoding_that_is_named(path):
    """Windows would take that of the country."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        text = name in ("read_text", "write_text") or (
            name in ("open", "fdopen") and any(isinstance(a, ast.Constant) and a.value in ("r", "w", "a", "x")
                                               for a in node.args))
        assert not text or any(keyword.arg == "encoding" for keyword in node.keywords), f"line {node.lineno}"


# ------------------------------------------------------------------------------------------------- Apple's GPU


@pytest.fixture
def apple(monkeypatch):
    """A machine that says it has Apple's GPU, and no other."""
    monkeypatch.delenv("SPARSEROBUST_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_apples_gpu_trains_and_the_processor_measures(apple, monkeypatch):
    assert provenance.device() == torch.device("mps") and provenance.measuring_device() == torch.device("cpu")
    assert provenance.gpus() == [] and not provenance.has_bfloat16("mps")
    assert provenance.provenance(torch.device("cpu"))["device"] == "cpu"
    with torch.autocast("mps", torch.bfloat16, enabled=False):  # as a training step has it
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert provenance.device().type == provenance.measuring_device().type == "cuda"
    for named in ("cpu", "mps"):
        monkeypatch.setenv("SPARSEROBUST_DEVICE", named)
        assert provenance.device() == torch.device(named) and provenance.measuring_device().type == "cpu"


def test_what_trains_on_apples_gpu_lies_in_memory_as_usual():
    net = PreActResNet(depth=8, width=8).build((3, 8, 8), 10)
    assert training.fastest_layout(net, torch.device("mps")) == torch.contiguous_format
    assert training.fastest_layout(net, torch.device("cuda", 0)) == torch.channels_last


class OnApple(torch.Tensor):
    """A tensor that says it lies on Apple's GPU, and refuses float64 as one there does."""

    @property
    def device(self):
        return SimpleNamespace(type="mps")

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), more=None):
        if function is torch.Tensor.double:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        plain = [a.as_subclass(torch.Tensor) if isinstance(a, cls) else a for a in arguments]
        result = function(*plain, **(more or {}))
        moved = function is torch.Tensor.cpu
        return result.as_subclass(cls) if isinstance(result, torch.Tensor) and not moved else result


def test_float64_is_the_processors():
    there = torch.tensor([1.5, 2.5]).as_subclass(OnApple)
    with pytest.raises(TypeError):
        there.double()
    exact = provenance.double(there)
    assert type(exact) is torch.Tensor and exact.tolist() == [1.5, 2.5] and exact.dtype == torch.float64


@pytest.mark.parametrize("form", ["released", "slogdet", "scale_invariant", "size"])
def test_the_condition_of_a_weight_on_apples_gpu_is_the_processors(form):
    weight = torch.rand(3, 5, generator=seeding.stream(0, "w"))
    there = constraints.condition_penalty(weight.clone().as_subclass(OnApple), form)
    assert float(there) == pytest.approx(float(constraints.condition_penalty(weight, form)))


def test_what_trains_asks_for_float64_by_the_one_function_that_knows_of_apples_gpu():
    """Measurements may: they are taken on the processor."""
    training = ["training", "sparsity", "objectives", "attacks", "optimisers", "inheritance", "config"]
    files = [paths.LIBRARY / f"{name}.py" for name in training]
    files += [path for folder in ("sparsifiers", "models") for path in (paths.LIBRARY / folder).glob("*.py")
              if path.name not in ("removal.py", "constraints.py")]  # networks that are measured; on the processor
    for path in files:
        assert not re.search(r"\.double\(\)|torch\.double|\.to\([^)]*float64", path.read_text(encoding="utf-8")), path


def test_chance_on_apples_gpu_is_put_back(monkeypatch, apple):
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: "before")
    told: list = []
    monkeypatch.setattr(torch.mps, "set_rng_state", told.append)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: None)
    with seeding.global_seed(0, "x"):
        assert not told
    assert told == ["before"]
    seeding.rewinder()()
    assert told == ["before"] * 2


@pytest.mark.parametrize(("where", "asked"), [("cpu", []), ("cuda", None)])
def test_no_gpu_is_touched_where_networks_are_on_the_cpu(where, asked, monkeypatch):
    seen, fork_rng = [], torch.random.fork_rng

    def recorded(devices=None):
        seen.append(devices)
        return fork_rng([])

    monkeypatch.setattr(torch.random, "fork_rng", recorded)
    monkeypatch.setattr(seeding, "device", lambda: torch.device(where))
    with seeding.global_seed(0, "x"):
        torch.rand(1)
    assert seen == [asked]
