"""What people, scripts and editors may hand over, made up by Hypothesis: settings, YAML, command lines, images.

Each is answered, or refused in one line.
"""

import copy
import json
import os
import resource
import shlex
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pages
import papermill  # noqa: F401  # once, and not in each fork
import torch
from damage import NO_NETWORK
from faults import Fault, Forked, Problems, ending, evenly, home, restored
from hypothesis import HealthCheck, given, seed
from hypothesis import settings as profile
from hypothesis import strategies as st
from sweeps import answers, few, rows

from sparserobust import Run, Store, UserError, cli, models
from sparserobust.attacks import into_ball
from sparserobust.config import Attack
from sparserobust.data import Split, Splits
from sparserobust.evaluation import Accuracy
from sparserobust.reporting import artifacts
from sparserobust.running import sweep
from sparserobust.studies import start_here

SECONDS = 20  # in which a value is refused or taken


def examples(strategy: st.SearchStrategy, number: int) -> list:
    """So many examples, the same each time."""
    found: list = []

    @seed(0)
    @profile(max_examples=number, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(example):
        found.append(example)

    collect()
    return found[:number]


@contextmanager
def limited() -> Iterator[None]:
    """`TimeoutError` for what takes too long."""
    def ring(*caught) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def refused(call: Callable[[], Problems]) -> Problems:
    """What is wrong with a call that gives an answer, which it judges, or a `UserError` of one line."""
    try:
        with limited():
            return call()
    except UserError as error:
        return [] if str(error) and "\n" not in str(error) else [("traceback", f"not one line: {error}")]
    except TimeoutError:
        return [("hang", f"takes more than {SECONDS} seconds")]
    except Exception as error:
        return [("traceback", f"{type(error).__name__}: {error}")]


# ------------------------------------------------------------------------------------------------------ settings

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["8/255", "1e999", "1/0", "nan", "-0", 10**400, -1, 0, "", "pgd"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=4)


@st.composite
def altered(draw, plain: list[dict]) -> dict:
    """Valid settings with one to three values replaced, keys removed or added."""
    result = copy.deepcopy(draw(st.sampled_from(plain)))
    for _ in range(draw(st.integers(1, 3))):
        places = _places(result)
        container, key = places[draw(st.integers(0, len(places) - 1))]
        what = draw(st.sampled_from(["value", "value", "remove", "add"]))
        if what == "value":
            container[key] = draw(VALUES)
        elif what == "remove":
            container.pop(key, None)
        else:
            container[draw(st.text(max_size=6))] = draw(VALUES)
    return result


def _places(content: dict) -> list[tuple[dict, str]]:
    found = [(content, key) for key in content] or [(content, "kind")]
    return found + [place for value in content.values() if isinstance(value, dict) for place in _places(value)]


def settings_fuzzed(number: int) -> Iterator[Fault]:
    """`Run.parse` of settings with values of any kind; what is taken can be written and read again."""
    plain = [json.loads(json.dumps(row["run"].plain())) for row in rows()] + [json.loads(json.dumps(
        row["run"].plain())) for row in start_here.experiment("quick").grid]

    for given_ in examples(altered(plain), number):
        def parse(given_: dict = given_) -> Problems:
            run = Run.parse(given_)
            again = Run.parse(json.loads(json.dumps(run.plain(), allow_nan=False)))
            same = again == run and again.identity == run.identity
            return [] if same else [("believed", "written and read again it is another run")]

        yield Fault(f"{given_}"[:300], refused(parse))


# ---------------------------------------------------------------------------------------------------------- YAML

NASTY = [".nan", "-.inf", "*x", "&x [*x]", "!!python/object/apply:os.getcwd []", "2020-13-45", "{[1]: 2}", "? [a]",
         "\t", "0o9", "1e999", "10" * 300, "'", '"', "[", "}", "!!binary x", "!!set {a}", "<<: *x", "%", "@", "`",
         "|", "---", "...", "null", "~", "{}", "[]", "\x00", "\x1b", "é", "\ufeff", "no", "1:2:3", "!!timestamp x",
         "!!float x", "!!int x", "? ", ": ", "- ", "{a: b", "# "]
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
BOMBS = {
    "a billion laughs": lambda text: f"{LAUGHS}{text}",
    "a billion laughs as a value": lambda text: text.replace(": quick", ": quick") + f"\n{LAUGHS}seeds: *a9\n",
    "a mapping that holds itself": lambda text: f"{text}\nx: &x {{x: *x}}\n",
    "deep lists": lambda text: f"{text}\nx: {'[' * 2000}{']' * 2000}\n",
    "deep mappings": lambda text: f"{text}\nx: {'{a: ' * 2000}1{'}' * 2000}\n",
    "a megabyte of text": lambda text: f"{text}\nx: {'x' * 2**20}\n",
    "a megabyte of keys": lambda text: text + "".join(f"\nx{n}: {n}" for n in range(60_000)) + "\n",
    "merged laughs": lambda text: text + "\nm0: &m0 {a: 1}\n" + "".join(
        f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 9)),
    "a long number": lambda text: f"{text}\nx: {'9' * 6000}\n",
    "a long number in base 60": lambda text: f"{text}\nx: {':'.join(['59'] * 20000)}\n",
}


@st.composite
def edited(draw, text: str) -> str:
    """A file with one to three lines removed, doubled, moved, indented, or with another value."""
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        n = draw(st.integers(0, len(lines) - 1))
        what = draw(st.sampled_from(["value", "value", "value", "remove", "double", "indent", "dedent", "cut", "type"]))
        if what == "value" and ":" in lines[n]:
            lines[n] = f"{lines[n][:lines[n].index(':')]}: {draw(st.sampled_from(NASTY))}"
        elif what == "remove" and len(lines) > 1:
            del lines[n]
        elif what == "double":
            lines.insert(n, lines[n])
        elif what in ("indent", "dedent"):
            lines[n] = f"  {lines[n]}" if what == "indent" else lines[n][2:]
        elif what == "cut":
            lines[n] = lines[n][:draw(st.integers(0, len(lines[n])))]
        else:
            place = draw(st.integers(0, len(lines[n])))
            lines[n] = lines[n][:place] + draw(st.characters()) + lines[n][place:]
    return "\n".join(lines) + "\n"


def _bounded(call: Callable[[], object]) -> None:
    """The call with four gigabytes of memory."""
    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
    call()


def yaml_fuzzed(number: int) -> Iterator[Fault]:
    """Settings and files of reported numbers, edited; and what no file should be able to do to its reader."""
    from sparserobust.reporting import reported

    doors: list[tuple[Path, Callable[[], object]]] = [
        (home() / "notebooks/settings/start_here.yaml", lambda: start_here.experiment("quick")),
        (home() / "data/reported/iwi.yaml", lambda: reported.load("iwi"))]
    for path, load in doors:
        text = path.read_text()
        with restored(path):
            for n, content in enumerate(examples(edited(text), number // 2)):
                path.write_bytes(content.encode(errors="surrogatepass"))

                def read(load: Callable[[], object] = load) -> Problems:
                    load()
                    return []

                problems = refused(read)
                changed = [line for line in content.splitlines() if line not in text.splitlines()]
                yield Fault(f"{path.name} {n}: {changed}"[:300], problems)
            for name, change in evenly(list(BOMBS.items()), number):
                path.write_text(change(text))
                yield Fault(f"{path.name}: {name}", ending(Forked(_bounded, load).wait(SECONDS)))


# ------------------------------------------------------------------------------------------------------ commands

WORDS = ["", " ", "\t", "\n", "-1", "0", "1e999", "nan", "inf", "9" * 40, "[0", "*x", "{a: b",
         "!!python/name:os.system", "..", "../../../outside", "/nowhere/at/all", ".", "/", "~", "\x00", "a\x00b",
         "é", "\udcff", "x" * 5000, "quik", "false", "[1, 1]", "[-1]", "[.nan]", "null", "2020-13-45", "-h", "--",
         "%s", "{}", "$(x)", "con", "\x1b[31m"]
SLOTS = ["run {}", "run 00_start_here -p scale {}", "run 00_start_here -p seeds {}",
         "run 00_start_here -p workers {}", "run 00_start_here -p use_published {}", "run 00_start_here -p {} 1",
         "run 00_start_here -o {}", "run 00_start_here -p scael {}", "reproduce --scale {}", "compute --scale {}",
         "compute --scale quick --study {}", "compute --scale quick --study start_here --table {}",
         "compute --plan --gpus {}", "compute --plan --scale quick --scheduler {}", "ledger --scale {}",
         "publish --scale {}", "data {}",
         "cluster scheduler {} --port x", "cluster scheduler f --idle-timeout -1 --host {}",
         "cluster workers {} --count -1", "cluster slurm --gpus {}", "cluster slurm --cpus 1 --folder {}",
         "cluster kubernetes --image {} --volume v --gpus 1", "{}", "cluster {}"]


def commands_fuzzed(number: int) -> Iterator[Fault]:
    """Command lines with one word that is wrong, or odd; none writes outside the project, or makes a folder there."""
    around = home().parents[2]
    pages.undisturbed()  # that nothing is left to compute
    slots = st.tuples(st.sampled_from(SLOTS), st.sampled_from(WORDS))
    chosen = list(dict.fromkeys([("run 00_start_here -p seeds {}", "[0"), ("run 00_start_here -p seeds {}", "*x"),
                                 ("run 00_start_here -p seeds {}", "\t"), ("run 00_start_here -o {}", "."),
                                 ("run 00_start_here -p scale {}", "../../../outside"),
                                 ("run 00_start_here -p workers {}", "-1"), ("ledger --scale {}", "../../../outside"),
                                 ("run {}", "/elsewhere/00_start_here.ipynb"),
                                 *examples(slots, 4 * number)]))[:number]
    for slot, word in chosen:
        words = [word if each == "{}" else each for each in slot.split()]
        with restored(home() / "figures", home() / "data", home() / "notebooks", home() / "README.md",
                      home() / "docs",
                      home() / "build"):
            before = _around(around)
            ended = Forked(_typed, words).wait(120)
            problems = ending(ended)
            if new := _around(around) - before:
                problems.append(("believed", f"writes outside the project: {', '.join(sorted(new))}"))
            if ended.code and (made := [path.name for path in home().glob("build/*") if not any(path.rglob("*.*"))]):
                problems.append(("left", f"an empty folder: build/{made[0]}"))
        yield Fault(shlex.join(words)[:200].encode(errors="replace").decode(), problems)


def _typed(words: list[str]) -> int:
    """A command line in the project's folder, where neither a network nor a program of a cluster is at hand."""
    os.chdir(home())
    if "workers" in words:  # that there is work for them
        os.environ["SPARSEROBUST_STORE"] = str(home() / "build/store")
    os.environ |= NO_NETWORK | {"SPARSEROBUST_CERTIFICATES": str(home() / "build/certificates"),
                                "SPARSEROBUST_DATA": str(home() / "data"), "PATH": "/nowhere"}
    return cli.main(words)


def _around(folder: Path) -> set[str]:
    """What lies beside the project, and not in it or in the store."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")
            if not path.is_relative_to(home()) and path.relative_to(folder).parts[0] not in ("store", "hypothesis")}


ENVIRONMENTS = [
    {"SPARSEROBUST_DEVICE": "tpu"}, {"SPARSEROBUST_DEVICE": "cuda:99"}, {"SPARSEROBUST_DEVICE": "meta"},
    {"SPARSEROBUST_DEVICE": "cpu:x"}, {"SPARSEROBUST_STORE": "{}/README.md"}, {"SPARSEROBUST_STORE": "/proc/nowhere"},
    {"SPARSEROBUST_STORE": "/dev/null"}, {"SPARSEROBUST_FIGURES": "{}/README.md"}, {"SPARSEROBUST_FIGURES": "/proc/x"},
    {"DASK_SCHEDULER_ADDRESS": "nowhere"}, {"DASK_SCHEDULER_ADDRESS": "http://localhost:1"},
    {"DASK_SCHEDULER_ADDRESS": "{}/README.md"}, {"DASK_SCHEDULER_ADDRESS": "tcp://localhost:x"},
    {"DASK_SCHEDULER_ADDRESS": "tcp://127.0.0.1:1"}, {"CUDA_VISIBLE_DEVICES": "x"}]


def environment_fuzzed(number: int) -> Iterator[Fault]:
    """Variables of the environment that name what is not there, or is something else."""
    with tempfile.TemporaryDirectory() as folder:
        right = Forked(_in_environment, {"SPARSEROBUST_STORE": folder}).wait(120)
    for variables in evenly(ENVIRONMENTS, number):
        given_ = {name: value.replace("{}", str(home())) for name, value in variables.items()}
        changed = restored(home() / "README.md", home() / "docs", home() / "figures")
        with tempfile.TemporaryDirectory() as folder, changed:
            ended = Forked(_in_environment, {"SPARSEROBUST_STORE": folder} | given_).wait(120)
        wrong = ended.code == 0 and ended.out != right.out
        yield Fault(f"{variables}", ending(ended) + ([("believed", f"other answers: {ended.out}")] if wrong else []))


def _in_environment(variables: dict[str, str]) -> None:
    """A run is trained and measured, and a manifest written, with these variables."""
    os.environ |= NO_NETWORK | variables
    engine = sweep.sweep if "DASK_SCHEDULER_ADDRESS" in variables else sweep.frame_of
    print(answers(engine(few()[:1], {}, Store(use_published=False))))
    artifacts.Artifacts("quick", "drawn").finish()


# -------------------------------------------------------------------------------------------------------- images

ATTACKS: list[dict[str, Any]] = [
    {"kind": "fgsm", "epsilon": 0.1}, {"kind": "rfgsm", "epsilon": 0.1},
    {"kind": "pgd", "epsilon": 0.1, "step_size": 0.05, "steps": 2},
    {"kind": "pgd", "epsilon": 0.5, "step_size": 0.2, "steps": 2, "norm": "l2", "restarts": 2},
    {"kind": "cw_l2", "steps": 2, "search_steps": 2}, {"kind": "cw_released", "steps": 2},
    {"kind": "deepfool", "steps": 2},
    {"kind": "square", "epsilon": 0.1, "queries": 5}, {"kind": "zoo", "iterations": 2, "search_steps": 1}]
WRONG: dict[str, Callable[[torch.Tensor, torch.Tensor], tuple]] = {
    "below zero": lambda x, y: (x - 0.5, y), "above one": lambda x, y: (x + 0.5, y),
    "as bytes in floats": lambda x, y: (x * 255, y), "bytes": lambda x, y: ((x * 255).byte(), y),
    "not a number": lambda x, y: (torch.where(x > 0.9, torch.nan, x), y),
    "infinite": lambda x, y: (torch.where(x > 0.9, torch.inf, x), y), "doubles": lambda x, y: (x.double(), y),
    "no batch": lambda x, y: (x[0], y), "two channels": lambda x, y: (x.repeat(1, 2, 1, 1), y),
    "channels last": lambda x, y: (x.permute(0, 2, 3, 1), y), "flat": lambda x, y: (x.flatten(1), y),
    "fewer labels": lambda x, y: (x, y[:-1]),
    "labels as floats": lambda x, y: (x, y.float()), "a label too high": lambda x, y: (x, y + 10),
    "a label below zero": lambda x, y: (x, y - 10), "an array": lambda x, y: (x.numpy(), y.numpy()),
    "a list": lambda x, y: (x.tolist(), y.tolist())}
RIGHT: dict[str, Callable[[torch.Tensor, torch.Tensor], tuple]] = {
    "as they are": lambda x, y: (x, y), "none": lambda x, y: (x[:0], y[:0]), "one": lambda x, y: (x[:1], y[:1]),
    "black": lambda x, y: (x * 0, y), "white": lambda x, y: (x * 0 + 1, y),
    "not contiguous": lambda x, y: (x.transpose(2, 3), y),
    "labels in short": lambda x, y: (x, y.int()), "another size": lambda x, y: (x[..., :-1, :-1], y)}


def images_fuzzed(number: int) -> Iterator[Fault]:
    """Attacks and accuracies on images in [0, 1] and on others; of the former the answer lies in ball and box."""
    doors = [*ATTACKS, {"kind": "accuracy"}]
    cases = [(door, name, True) for door in doors for name in WRONG] + [
        (door, name, False) for door in doors for name in RIGHT]
    chosen = evenly(cases, number)
    ended = Forked(_print_all, chosen).wait(300)
    assert ended.code == 0, ended.err  # forked: a network that has learnt must not be, once there was a gradient
    for (door, name, _), problems in zip(chosen, json.loads(ended.out.splitlines()[-1]), strict=True):
        yield Fault(f"{door['kind']} {door.get('norm', '')} on images {name}", list(map(tuple, problems)))


def _print_all(cases: list) -> None:
    print(json.dumps([_on_images(*case) for case in cases]))


def _on_images(door: dict[str, Any], name: str, wrong: bool) -> Problems:
    torch.manual_seed(0)
    net = models.PreActResNet(depth=8, width=2).build((1, 8, 8), 10).eval()
    given_ = (WRONG if wrong else RIGHT)[name](torch.rand(6, 1, 8, 8), torch.arange(6))

    def call() -> Problems:
        if door["kind"] == "accuracy":
            split = Split(*given_)
            found = Accuracy(attack=Attack.parse(ATTACKS[0]))(net, Splits(split, split, split, tuple("abcdefghij")))
            return [("believed", f"an accuracy of {found['value']}")] if wrong else []
        attack: Any = Attack.parse(door)
        found, images = attack(net, *given_, torch.Generator().manual_seed(0)), given_[0]
        if wrong:
            return [("believed", "they are attacked as if they were right")]
        inside = found if not hasattr(attack, "epsilon") or attack.epsilon is None else into_ball(
            found, images, attack.epsilon, getattr(attack, "norm", "linf"))
        fine = found.shape == images.shape and bool(found.isfinite().all()) and torch.allclose(
            inside, found, atol=1e-5) and torch.equal(found, found.clamp(0, 1))
        return [] if fine else [("believed", "what comes back is not in the ball or in the box")]

    return refused(call)
