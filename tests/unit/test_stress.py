"""The suite of `make stress` sees what it is there to see."""

import importlib
import json
import os
import runpy
import subprocess
import sys
import time

import pytest

from sparserobust.errors import UserError
from sparserobust.paths import PROJECT

FOLDER = PROJECT / "benchmarks" / "stress"

# a sweep over a store that is whole, and over the same when other answers are right, or when a result is gone
SUBJECT = """
import tempfile
from pathlib import Path
from damage import EXTRA, Subject

with tempfile.TemporaryDirectory() as folder:
    subject = Subject(Path(folder))
    subject.copied()
    print(subject.problems(True, False))
    next(subject.copied().glob(f"*/measured/{EXTRA.identity}.json")).unlink()
    print([kind for kind, _ in subject.problems(False, False)])
    subject.copied()
    subject.told = [*subject.told[1:], subject.told[0]]
    next(iter(subject.published.values()))["record"] = {}
    print([kind for kind, _ in subject.problems(True, False)])
"""


@pytest.fixture
def faults(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("faults")


def test_each_fault_alters_the_file(faults, tmp_path):
    content = {"value": 0.25, "count": 1, "inner": {"total": 4, "name": "x"}}
    path, sibling = tmp_path / "one.json", tmp_path / "two.json"
    sibling.write_text(json.dumps(content | {"value": 0.5}))

    def state():
        return path.exists() and (path.stat().st_mode, path.is_dir() or path.read_bytes())

    for name, damage in faults.damages(path, faults.BYTES | faults.JSON, [sibling], 1000):
        faults.remove(path)
        path.write_text(json.dumps(content, indent=1, sort_keys=True))
        before = state()
        damage(path)
        assert state() != before, name


def test_so_many_faults_are_taken_at_equal_distances(faults):
    assert faults.evenly(list(range(10)), 5) == [0, 2, 4, 6, 8]
    assert faults.evenly([1, 2], 5) == [1, 2]


def ends(faults, work, limit: float = 30) -> list[str]:
    return [kind for kind, _ in faults.ending(faults.Forked(work).wait(limit))]


def test_an_end_is_an_answer_or_one_line(faults):
    def refuse():
        raise UserError("so it is")

    def fail():
        raise KeyError("so it is not")

    assert ends(faults, lambda: print("an answer")) == ends(faults, refuse) == []
    assert ends(faults, fail) == ["traceback"]
    assert ends(faults, lambda: sys.exit(1)) == ["traceback"]  # without a word
    assert ends(faults, lambda: os.kill(os.getpid(), 9)) == ["traceback"]
    assert ends(faults, lambda: time.sleep(60), limit=0.2) == ["hang"]
    unsaid = ("unsaid", "says nothing of other: error: so it is")
    assert faults.ending(faults.Forked(refuse).wait(30), "other") == [unsaid]


def test_what_is_wrong_after_damage_is_seen(faults, tmp_path):
    done = subprocess.run([sys.executable, "-c", SUBJECT], text=True, capture_output=True,
                          env=os.environ | faults.make_project(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "['lost']", "['believed', 'believed']"]


def test_readme_gets_the_recorded_table(faults):
    suite = runpy.run_path(str(FOLDER / "__main__.py"), run_name="stress")
    made = {"machine": "a machine", "commit": "abc", "command": "make it"}
    lines = [{"property": name, "faults": "3", "lost": "0", "seconds": seconds} | made
             for name, seconds in (("one", "5"), ("other", "7"))]
    table = suite["markdown"](lines)
    assert "| other | 3 | 0 | 7 |" in table and "| all | 6 | 0 | 12 |" in table
    assert "a machine, commit abc, by `make it`" in table
    readme = f"before\n{suite['BEGIN']}\nan old table\n{suite['END']}\nafter\n"
    written = suite["with_table"](readme, table)
    assert written == readme.replace("an old table\n", table) == suite["with_table"](written, table)
    with pytest.raises(SystemExit, match="once each"):
        suite["with_table"]("before\nafter\n", table)
