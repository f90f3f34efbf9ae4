"""Every script of the repository runs, at its smallest."""

import os
import re
import subprocess
import sys
from functools import cache

import pytest

from sparserobust.paths import PROJECT

SMALLEST = {  # arguments with which a script takes seconds
    "benchmarks/adversarial_training.py": "--batch 2 --repeats 1 --depth 8 --width 2",
    "benchmarks/audits.py": "--only squeezenet1_1 --images 2 --few 1 --queries 1",
    "benchmarks/classroom.py": "class 00 --ungraded",
    "benchmarks/compact.py": "--only mnasnet0_5 --side 32 --repeats 1",
    "benchmarks/coverage.py": "--draws 50 --seeds 3",
    "benchmarks/engine.py": "--runs 4 --seconds 0.1",
    "benchmarks/networks.py": "--plan",
    "benchmarks/stress/__main__.py": "--only sweeps --share 0.1",
    "benchmarks/thrifty.py": "--only detached --attacks clean Thrifty --images 2",
    "benchmarks/tuning.py": "--plan",
    "tests/mutants.py": "--list",
}
NOT_SCRIPTS = {"lib", "data", "build"}  # and what pytest collects


def scripts() -> list[str]:
    """Files that are run with arguments, wherever they lie, relative to the project."""
    found = [path for folder in PROJECT.glob("[!.]*") if folder.name not in NOT_SCRIPTS
             for path in (folder.rglob("*.py") if folder.is_dir() else [folder])
             if path.suffix == ".py" and not path.name.startswith("test_")]
    texts = {path.relative_to(PROJECT).as_posix(): path.read_text() for path in found}
    return sorted(name for name, text in texts.items()
                  if "ArgumentParser(" in text and 'if __name__ == "__main__":' in text)


@cache
def output(script: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, str(PROJECT / script), *arguments], text=True,
                          capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, f"{script} {' '.join(arguments)}:\n{done.stderr}"
    return done.stdout


def test_every_script_has_its_smallest_arguments():
    missing, gone = set(scripts()) - SMALLEST.keys(), SMALLEST.keys() - set(scripts())
    assert not missing, f"SMALLEST lacks arguments with which to run {missing}"
    assert not gone, f"SMALLEST has arguments of {gone}, which are not there"


@pytest.mark.parametrize("script", scripts())
def test_help_names_every_option(script):
    told = output(script, "--help")
    options = re.findall(r'add_argument\("(--[\w-]+)"', (PROJECT / script).read_text())
    assert told.startswith("usage:") and all(option in told for option in options)


@pytest.mark.parametrize("script", SMALLEST)
def test_it_runs_at_its_smallest(script):
    assert output(script, *SMALLEST[script].split())


def test_the_simulation_of_looks_tells_the_error_with_the_correction_and_without():
    told = output("benchmarks/coverage.py", "--draws", "20", "--looks", "3", "4", "5")
    rows = [[float(cell) for cell in line.split("|")[1:-1]] for line in told.splitlines() if re.match(r"\|\s+\d", line)]
    assert len(rows) == 32 and all(0 <= over <= plain <= 100 for *_, plain, over in rows)
    assert sum(row[-2] for row in rows) > sum(row[-1] for row in rows)


def test_the_benchmark_of_training_gives_two_speeds_and_their_ratio():
    script = "benchmarks/adversarial_training.py"
    told = output(script, *SMALLEST[script].split())
    speed = dict(re.findall(r"^(\w+) +([\d.]+) images/s", told, re.MULTILINE))
    library, plain = float(speed["library"]), float(speed["plain"])
    (ratio,) = re.findall(r"^ratio +([\d.]+)", told, re.MULTILINE)
    rounded = 0.051  # speeds are printed to a tenth
    assert plain > rounded
    assert (library - rounded) / (plain + rounded) <= float(ratio) + 0.01
    assert float(ratio) - 0.01 <= (library + rounded) / (plain - rounded)
