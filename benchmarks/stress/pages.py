"""What is drawn and published: killed on the way, two notebooks at once, and files that are damaged afterwards."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pandas
import yaml
from faults import BYTES, JSON, TEXT, Damage, Fault, Forked, Problems, damages, ending, evenly, home, remove, restored
from kills import Command

from sparserobust import cli
from sparserobust.reporting import artifacts, axes

PAGE, DRAWN = "00_start_here", "drawn"
LIMIT = 120  # seconds after which a command hangs
RUN = ("-m", "sparserobust.cli", "run", PAGE)


def files() -> dict[str, bytes]:
    """All that was drawn, and what a killed write has left: by name, relative to the project."""
    return {str(path.relative_to(home())): path.read_bytes() for folder in ("figures", "build")
            for path in sorted((home() / folder).rglob("*"))
            if path.is_file() and (path.parent.name in (PAGE, DRAWN) or path.name.startswith("."))}


def drawn(name: str) -> list[Path]:
    """The folders of what was drawn under this name, wherever in the project that goes; that of pictures first."""
    found = [path.parent for path in home().rglob("manifest.json") if path.parent.name == name]
    return sorted(found, key=lambda folder: not list(folder.glob("*.png")))


def copy() -> Path:
    return next((home() / "build").rglob(f"{PAGE}.ipynb"))


def half(path: Path) -> Problems:
    """What is wrong with an executed copy that should be whole."""
    try:
        cells = json.loads(path.read_text())["cells"]
    except (OSError, ValueError) as error:
        return [("lost", f"the executed copy is no notebook: {error}")]
    todo = [cell for cell in cells if cell["cell_type"] == "code" and not cell["execution_count"]]
    return [("lost", f"{len(todo)} cells of the executed copy are not executed")] if todo else []


@cache
def undisturbed() -> dict[str, bytes]:
    """What the page makes, computed now."""
    ended = Command(*RUN).wait(LIMIT)
    assert ended.code == 0, ended.err
    return files()


def different(wanted: dict[str, bytes], *others: dict[str, bytes]) -> Problems:
    """What is wrong with the files there are, each of which should be as wanted, or as in one of the others."""
    found = files()
    return [("lost", f"{name} is missing") for name in wanted.keys() - found.keys()] + [
        ("left", f"{name} stays behind") for name in found.keys() - wanted.keys()] + [
        ("believed", f"{name} is another") for name in wanted.keys() & found.keys()
        if found[name] not in [each.get(name) for each in (wanted, *others)]]


def killed_runs(number: int) -> Iterator[Fault]:
    """`sparserobust run` of a page is killed at a random moment, by each of four signals; then it is run again."""
    wanted, chance = undisturbed(), random.Random(0)
    begun = time.monotonic()
    Command(*RUN).wait(LIMIT)
    whole = time.monotonic() - begun
    for n in range(number):
        deadly = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)[n % 4]
        command, moment = Command(*RUN), chance.uniform(0.2, 0.95) * whole
        time.sleep(moment)
        command.process.send_signal(deadly)
        ended = command.wait(LIMIT)
        # a copy that was growing may lie there, hidden, until the page is run again
        problems = command.orphans() + half(copy()) + [each for each in different(wanted) if each[0] != "left"]
        if ended.code is None:
            problems.append(("hang", "it does not end"))
        again = Command(*RUN).wait(LIMIT)
        yield Fault(f"{deadly.name} {moment:.1f} s after its start",
                    problems + ending(again) + different(wanted) + half(copy()))


def two_at_once(number: int) -> Iterator[Fault]:
    """Two processes run a page at once, from nothing, in one store and one folder of figures."""
    wanted = undisturbed()
    for _ in range(number):
        for folder in (*drawn(PAGE), home() / "build", Path(os.environ["SPARSEROBUST_STORE"])):
            remove(folder)
        for command in [Command(*RUN), Command(*RUN)]:
            yield Fault("a notebook", ending(command.wait(LIMIT)))
        yield Fault("what they made", different(wanted) + half(copy()))


def _draw(version: int) -> None:
    """A figure and two tables, different ones in each version."""
    frame = pandas.DataFrame({"run": ["a", "b"], "processor": ["one", "one"], "value": [version, version / 3]})
    out = artifacts.Artifacts("quick", DRAWN)
    figure, ((axis,),) = axes.grid(1, 1, (4.0, 3.0))
    axis.plot([version, 1, version])
    out.figure(figure, "fig1", f"Figure 1, version {version}.", frame)
    out.table(frame * version, "table1", f"Table 1, version {version}.", frame)
    out.measurements(frame)
    out.finish()


def killed_drawing(number: int) -> Iterator[Fault]:
    """A process that draws anew is killed at a random moment; then it is drawn again."""
    chance, made, seconds = random.Random(0), [], 0.0
    for version in (1, 2):
        begun = time.monotonic()
        assert not Forked(_draw, version).wait(LIMIT).code
        made.append(files())
        seconds = time.monotonic() - begun
    folders = drawn(DRAWN)
    for _ in range(number):
        for folder in folders:
            remove(folder)
        Forked(_draw, 1).wait(LIMIT)
        drawing, moment = Forked(_draw, 2), chance.uniform(0.2, 1) * seconds
        time.sleep(moment)
        drawing.kill()
        drawing.wait()
        problems = [each for each in different(made[1], made[0]) if each[0] != "left"]
        yield Fault(f"killed after {moment:.2f} s",
                    problems + ending(Forked(_draw, 2).wait(LIMIT)) + different(made[1]))
    for folder in folders:
        remove(folder)


def _command(*words: str) -> Forked:
    return Forked(cli.main, list(words))


def killed_publishing(number: int) -> Iterator[Fault]:
    """`sparserobust publish` of twenty runs, of which more is known than is published, is killed when it has begun to
    write, or at any moment; then it is done again."""
    settings, folder = home() / "notebooks/settings/start_here.yaml", home() / "data/published/quick"
    chance, made, seconds = random.Random(0), [], 0.0
    own = yaml.safe_load(settings.read_text())
    own["quick"] |= {"seeds": list(range(10)), "recipe": own["quick"]["recipe"] | {"epochs": 1}}

    def published() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.glob("*")}

    def writing() -> bool:
        try:
            return published() != old
        except FileNotFoundError:  # it was renamed just now
            return True

    def wrong(*allowed: dict[str, bytes]) -> Problems:
        found = published()
        return [("lost", f"{name} is gone") for name in allowed[0].keys() - found.keys()] + [
            ("believed", f"{name} is neither old nor new") for name in allowed[0].keys() & found.keys()
            if found[name] not in [each[name] for each in allowed]]

    with restored(settings, folder):
        for radii in ([0.1], [0.1, 0.2]):
            settings.write_text(yaml.safe_dump({"quick": own["quick"] | {"radii": radii}}))
            for words in (("compute", "--scale", "quick"), ("publish", "--scale", "quick")):
                begun, ended = time.monotonic(), _command(*words).wait(LIMIT)
                seconds = time.monotonic() - begun
                assert ended.code == 0, ended.err
            made.append(published())
        old, new = made
        for n in range(number):
            remove(folder)
            folder.mkdir()
            for name, content in old.items():
                (folder / name).write_bytes(content)
            publishing = _command("publish", "--scale", "quick")
            while n % 2 and publishing.running() and not writing():
                time.sleep(0.0005)
            time.sleep(chance.uniform(0, 0.02 if n % 2 else seconds))
            publishing.kill()
            publishing.wait()
            problems = wrong(new, old) + ending(_command("publish", "--scale", "quick").wait(LIMIT)) + wrong(new)
            if strays := published().keys() - new.keys():
                problems.append(("left", f"{', '.join(strays)} stays behind"))
            yield Fault("killed while it writes" if n % 2 else "killed at any moment", problems)


def damaged_page(number: int) -> Iterator[Fault]:
    """Files of an executed page are damaged: `sparserobust reproduce` notices, and draws them anew."""
    undisturbed()
    reproduce = ("reproduce", "--scale", "quick")
    assert _command(*reproduce).wait(LIMIT).code == 0
    wanted, figures = files(), drawn(PAGE)[0]
    kinds: dict[str, Damage] = BYTES | JSON
    cases = [(path, name, damage) for path, names in (
        (copy(), ("truncated", "a digit changed")),
        (copy().with_suffix(".json"), ("truncated", "a list in its place", "a digit changed", "a key removed")),
        (figures / "manifest.json", ("a digit changed", "truncated", "nested too deeply", "a key removed")),
        (figures / "measurements.csv", ("a digit changed", "a folder in its place")),
        (next(figures.glob("*.png")), ("a bit flipped", "deleted")))
        for name, damage in damages(path, kinds, [], len(kinds)) if name in names]
    for path, name, damage in evenly(cases, number):
        damage(path)
        problems = ending(_command(*reproduce).wait(LIMIT)) + different(wanted) + half(copy())
        if problems:  # the next fault is tried on what is whole
            for each in (copy(), path, copy().with_suffix(".json")):
                remove(each)
            again = _command(*reproduce).wait(LIMIT)
            problems += ending(again)
        yield Fault(f"{path.name}: {name}", problems)


def damaged_ledger(number: int) -> Iterator[Fault]:
    """Judged claims of a page are damaged: the ledger of the scale does not tell anything else."""
    folder = home() / "figures/quick"

    def told() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in home().rglob("*.csv") if path.parent.name == "quick"}

    whole = _command("ledger", "--scale", "quick").wait(LIMIT)
    assert whole.code == 0 and whole.out, whole.err
    wanted = told()
    kinds: dict[str, Damage] = BYTES | TEXT
    for path, other in ((folder / "01_fk_resnet" / name, folder / "01_fk_resnet" / sibling)
                        for name, sibling in (("ledger.csv", "claims.csv"), ("claims.csv", "ledger.csv"))):
        for name, damage in damages(path, kinds, [other], max(1, number // 2)):
            if name == "unreadable":
                continue  # to root nothing is, and as nobody nothing could be written either
            with restored(folder):
                damage(path)
                ended = _command("ledger", "--scale", "quick").wait(LIMIT)
                problems = ending(ended)
                if ended.code == 0 and (ended.out, told()) != (whole.out, wanted):
                    problems.append(("believed", "another ledger is told"))
            yield Fault(f"{path.name}: {name}", problems)
