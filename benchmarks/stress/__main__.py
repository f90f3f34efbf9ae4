"""Whether anything is lost, or believed that is wrong, when all goes amiss: `make stress`.

    python benchmarks/stress [--only NAME ...] [--share 1] [--record] [--readme]

Each property tries faults of one kind and prints one line: how many, what was wrong afterwards (see `--kinds`), and the
seconds it took; what fell short stands above it. The exit code is 1 if anything was wrong. All of it takes about ten
minutes on two quiet cores of Linux; root tries more, as it can mount disks. `--share 0.1` tries a tenth of the faults,
at least one of each property. `--record` writes the table into benchmarks/stress.csv, with the machine and the commit;
`--readme` writes that table into docs/reliability.md.
"""

import argparse
import csv
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from faults import KINDS, REPOSITORY, Fault, make_project

TABLE, PAGE = Path("benchmarks/stress.csv"), Path("docs/reliability.md")
BEGIN, END = "<!-- stress: begin -->", "<!-- stress: end -->"
Line = dict[str, str | int]
Property = tuple[Callable[[int], Iterator[Fault]], int, Callable[[], str]]  # and how many faults, and why none


def properties() -> dict[str, Property]:
    """By name. They import the library, which asks the environment where its project is."""
    import damage
    import disk
    import doors
    import kills
    import pages

    def always() -> str:
        return ""

    return {
        "sweeps killed": (kills.killed_sweeps, 10, always),
        "pages killed": (pages.killed_runs, 4, always),
        "drawing killed": (pages.killed_drawing, 20, always),
        "publishing killed": (pages.killed_publishing, 20, always),
        "a crowd of four": (kills.crowd, 1, always),
        "two notebooks at once": (pages.two_at_once, 1, always),
        "store damaged": (damage.store, 230, always),
        "store damaged, workers": (damage.by_workers, 3, always),
        "checkpoint damaged": (damage.checkpoint, 40, always),
        "locks damaged": (damage.locks, 12, always),
        "published damaged": (damage.published, 60, always),
        "page damaged": (pages.damaged_page, 7, always),
        "ledger damaged": (pages.damaged_ledger, 40, always),
        "settings damaged": (damage.settings, 40, always),
        "reported damaged": (damage.reported, 60, always),
        "data sets damaged": (damage.data_sets, 18, damage.no_data),
        "disk full": (disk.full, 61, disk.possible),
        "disk read-only": (disk.read_only, 8, disk.possible),
        "settings fuzzed": (doors.settings_fuzzed, 2000, always),
        "YAML fuzzed": (doors.yaml_fuzzed, 150, always),
        "commands fuzzed": (doors.commands_fuzzed, 80, always),
        "environment fuzzed": (doors.environment_fuzzed, 15, always),
        "images fuzzed": (doors.images_fuzzed, 300, always),
    }


def tried(name: str, each: Property, share: float) -> Line:
    """The line of a property, after all its faults; what is wrong is printed at once."""
    faults, number, missing = each
    if why := missing():
        print(f"{name:24s} left out: {why}", flush=True)
        return {}
    begun, count, wrong = time.perf_counter(), 0, Counter[str]()
    for fault in faults(max(1, round(share * number))):
        count += 1
        wrong.update({kind for kind, _ in fault.problems})  # a fault counts once for each kind
        for kind, what in fault.problems:
            print(f"  {kind}: {fault.name}: {' '.join(what.split())[:400]}", flush=True)
    line: Line = {"property": name, "faults": count, **{kind: wrong[kind] for kind in KINDS},
                  "seconds": round(time.perf_counter() - begun)}
    print(printed(line.values()), flush=True)
    return line


def printed(cells: Iterable[str | int]) -> str:
    name, *numbers = cells
    return f"{name:24s}" + "".join(f"{number:>10}" for number in numbers)


def record(lines: list[Line], share: float) -> None:
    """Write the table, with where and how it was made."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    commit = subprocess.run(["git", "-C", REPOSITORY, "describe", "--always", "--dirty=+", "--abbrev=10"],
                            capture_output=True, text=True, check=True).stdout.strip()
    where = {"machine": f"{os.cpu_count()} cores of {model[1] if model else platform.machine()}", "commit": commit,
             "command": "make stress" if share == 1 else f"python benchmarks/stress --share {share:g}"}
    with (REPOSITORY / TABLE).open("w", newline="") as file:
        table = csv.DictWriter(file, [*lines[0], *where], lineterminator="\n")
        table.writeheader()
        table.writerows(line | where for line in lines)
    print(f"written: {TABLE}")


def markdown(lines: list[dict[str, str]]) -> str:
    """The recorded table for people, and where it was made."""
    columns = [key for key in lines[0] if key not in ("machine", "commit", "command")]
    total = {"property": "all"} | {key: str(sum(int(line[key]) for line in lines)) for key in columns[1:]}
    rows = [columns, ["---", *["--:"] * (len(columns) - 1)],
            *([line[key] for key in columns] for line in [*lines, total])]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows) + (
        f"\nOn {lines[0]['machine']}, commit {lines[0]['commit']}, by `{lines[0]['command']}`.\n")


def with_table(readme: str, table: str) -> str:
    """The text of PAGE with this table between the two marks."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(END) < readme.index(BEGIN):
        sys.exit(f"error: {PAGE} should have the lines {BEGIN} and {END} once each, the table stands between them")
    return readme[:readme.index(BEGIN) + len(BEGIN)] + f"\n{table}" + readme[readme.index(END):]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these properties, by a part of their names")
    parser.add_argument("--share", type=float, default=1, help="of the faults of each property (default: all)")
    parser.add_argument("--record", action="store_true", help=f"write the table into {TABLE}")
    parser.add_argument("--readme", action="store_true", help=f"write the recorded table into {PAGE}; try nothing")
    parser.add_argument("--kinds", action="store_true", help="say what the columns mean; try nothing")
    parser.add_argument("--sweep", metavar="STORE", help="be one of the sweeps that are disturbed")
    parser.add_argument("--rows", type=int, nargs="*", help="with --sweep: rows of the grid")
    chosen = parser.parse_args()
    if chosen.sweep:
        import sweeps

        return sweeps.drive(chosen.sweep, chosen.rows)
    if chosen.kinds:
        print(*(f"{kind:10s} {what}" for kind, what in KINDS.items()), sep="\n")
        return 0
    if chosen.readme:
        with (REPOSITORY / TABLE).open() as file:
            table, readme = markdown(list(csv.DictReader(file))), REPOSITORY / PAGE
        readme.write_text(with_table(readme.read_text(), table))
        return 0
    signal.signal(signal.SIGTERM, lambda *caught: sys.exit(1))  # no file system stays mounted
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= make_project(Path(folder))
        found = properties()
        names = [name for name in found if not chosen.only or any(part in name for part in chosen.only)]
        if not names:
            sys.exit(f"error: no property is named so: there are {', '.join(found)}")
        print(printed(["property", "faults", *KINDS, "seconds"]), flush=True)
        lines = [line for name in names if (line := tried(name, found[name], chosen.share))]
    if chosen.record and lines:
        record(lines, chosen.share)
    return int(any(line[kind] for line in lines for kind in KINDS))


if __name__ == "__main__":
    sys.exit(main())
