"""Which settings each method of the ring gets: every candidate of `notebooks/settings/ring.yaml`, by accuracy under
attack on validation images, mean over the tuning seeds. No test image is looked at.

    python benchmarks/tuning.py [--scale quick] [--method NAME ...] [--record | --plan]

Runs and results are kept in the run store. `--record` writes them into data/tuning/<scale>.csv, beside what is there of
other methods; the candidate that is best should then stand first in the settings file.
"""

import argparse

import pandas

from sparserobust import paths
from sparserobust.running.store import Store
from sparserobust.running.sweep import Grid, missing, sweep
from sparserobust.settings import unknown
from sparserobust.studies.ring import runs


def tried(grid: Grid) -> pandas.DataFrame:
    """One line per method and candidate, the best one first."""
    frame = sweep(grid, {}, Store(use_published=False))
    found = frame.groupby(["method", "changes"], sort=False).agg(
        value=("value", "mean"), seeds=("seed", "count"), images=("total", "first"),
        least=("value", "min"), most=("value", "max")).reset_index()
    found[["value", "least", "most"]] = (100 * found[["value", "least", "most"]]).round(2)
    return found.sort_values(["method", "value"], ascending=[True, False], kind="stable")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="quick")
    parser.add_argument("--method", action="append", help="only this one; may be given again (default: all)")
    parser.add_argument("--record", action="store_true", help="write the table into data/tuning")
    parser.add_argument("--plan", action="store_true", help="compute nothing: say how much there is to do")
    chosen = parser.parse_args()
    ways = runs.RingSettings.ways
    for method in chosen.method or ():
        if method not in ways:
            unknown("method", method, "--method", ways)
    grid = [row for row in runs.tuning(chosen.scale) if row["method"] in (chosen.method or ways)]
    if chosen.plan:
        print(f"{len(missing(grid, {}, Store(use_published=False)))} of {len(grid)} runs are not here yet")
        return
    found = tried(grid)
    print(found.to_string(index=False))
    if chosen.record:
        path = paths.tuning_file(chosen.scale)
        if path.exists():
            before = pandas.read_csv(path)
            found = pandas.concat([before[~before["method"].isin(found["method"])], found])
        path.parent.mkdir(parents=True, exist_ok=True)
        found.sort_values("method", kind="stable").to_csv(path, index=False)


if __name__ == "__main__":
    main()
