"""Tables and figures of the ring that no other contest has."""

import math
from collections.abc import Mapping
from typing import Any

import pandas

from sparserobust import imagewise, paths, sparsity
from sparserobust.reporting import anchors, estimates, tables
from sparserobust.running.experiment import Results
from sparserobust.sparsifiers import rates
from sparserobust.studies.methods import named
from sparserobust.studies.questions import ATTACKED
from sparserobust.studies.ring import runs as r

SHORTER = {"clean [%]": "clean", "PGD [%]": ATTACKED, "thrifty [%]": "thrifty"}


def layer_rates(shapes: Mapping[str, tuple[int, ...]], share: float) -> pandas.DataFrame:
    """For `plots.layerwise`: what stays of layers of these shapes (out, in, *kernel) when a share
    of all their weights is removed, in percent, by ERK and by a uniform rate."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    gone = {"ERK": rates.erk(list(shapes.values()), round(share * sum(sizes))),
            "uniform": sparsity.same_share(share, sizes)}
    return pandas.DataFrame([
        {"layer": layer, "series": rule, "value": 100 * (1 - removed / size)}
        for rule, counts in gone.items() for layer, removed, size in zip(shapes, counts, sizes,
                                                                         strict=True)])


def gaps(results: Results) -> pandas.DataFrame:
    """One row per network that was trained too long, as `sweep` has them: under `gap`, the accuracy
    under attack of its best epoch minus that of its last, image by image. And one under `clean`, of
    the two the lower: a network that answers the same to all has nothing to forget."""
    best, last = _best_and_last(results, ATTACKED)
    each = [_forgotten(one, other) for one, other in zip(best["each"], last["each"], strict=True)]
    gap = last.assign(metric="gap", value=best["value"] - last["value"], each=each, count=None,
                      total=None)
    best, last = _best_and_last(results, "clean")
    clean = last.assign(value=last["value"].clip(upper=best["value"]))
    return pandas.concat([gap.reset_index(), clean.reset_index()], ignore_index=True)


def _forgotten(best: Any, last: Any) -> str | None:
    """Answers to drawn images minus later ones, packed; None where they were not kept, or are to
    the first of the test set."""
    if not all(isinstance(text, str) and imagewise.is_sample(text) for text in (best, last)):
        return None
    before, after = estimates.common([best, last])
    return imagewise.pack(before - after)


def _best_and_last(results: Results, metric: str) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """What was measured of networks that were trained too long, at their best epoch and at their
    last, by method and seed: of those where both are known."""
    frame = results.only(part=r.OVERFITTING).frame
    found = frame[frame["metric"] == metric].assign(kept=frame.get("kept"))
    best, last = (found[found["kept"] == kept].set_index(["method", "seed"])
                  for kept in ("best", "last"))
    last = last[last.index.isin(best.index)]
    return best.loc[last.index], last


def overfitting(results: Results) -> pandas.DataFrame:
    """One line per network that was trained too long, means over seeds: accuracy under attack of
    its best and of its last epoch, and the gap between them."""
    best, last = (100 * found["value"] for found in _best_and_last(results, ATTACKED))
    means = [found.groupby("method", sort=False).mean() for found in (best, last)]
    gap = (best - last).groupby("method").agg(["mean", "std"])
    lines = [{"method": method, "best epoch [%]": f"{best:.1f}", "last epoch [%]": f"{last:.1f}",
              "gap [points]": f"{gap['mean'][method]:.1f}" + (
                  "" if math.isnan(gap["std"][method]) else f" ± {gap['std'][method]:.1f}")}
             for method, best, last in zip(means[0].index, *means, strict=True)]
    return pandas.DataFrame(lines, columns=["method", "best epoch [%]", "last epoch [%]",
                                            "gap [points]"]).set_index("method")


def epochs(results: Results) -> pandas.DataFrame:
    """Accuracy under attack on validation images [%] after each epoch: a row per method, seed and
    epoch."""
    rows, known = [], set(results.frame["run"])
    for row in results.experiment.rows(part=r.OVERFITTING, kept="last"):
        if row["run"].identity in known:
            history = results.store.record(row["run"])["history"]
            rows += [{"method": row["method"], "seed": row["seed"], "epoch": after["epoch"],
                      "validation": 100 * after["validation_robust"]} for after in history]
    return pandas.DataFrame(rows, columns=["method", "seed", "epoch", "validation"])


def overlaps(results: Results) -> pandas.DataFrame:
    """One row per pair of masks, as `sweep` has them: under `seeds` and `epochs`, what share of the
    kept weights they have in common beyond chance, on a scale where masks that are drawn by the same
    layer rates have 0, and equal ones 1."""
    frame = results.only(part=r.STABILITY).frame
    chance = frame.set_index(["run", "metric"])["value"]
    found = frame[frame["metric"].isin(["seeds", "epochs"])]
    drawn = [chance[run, f"{metric} chance"]
             for run, metric in zip(found["run"], found["metric"], strict=True)]
    return found.assign(value=(found["value"] - drawn) / (1 - pandas.Series(drawn, found.index)))


def stability(results: Results) -> pandas.DataFrame:
    """One line per way to choose weights, means over seeds: what share of the kept weights two
    masks have in common, and what share they would if they were drawn by the same layer rates."""
    frame = results.only(part=r.STABILITY).frame
    shown = frame.pivot_table(index="method", columns="metric", values="value", sort=False)
    headings = {"seeds": "two seeds [%]", "seeds chance": "by chance [%]",
                "epochs": "last two epochs [%]", "epochs chance": "by chance, epochs [%]"}
    return (100 * shown.reindex(columns=list(headings))).round(1).rename(columns=headings)


def shorter(results: Results) -> pandas.DataFrame:
    """One line per network that the thrifty attack was tried on, on the same images as PGD."""
    tried = estimates.measured_by(results.frame, "thrifty")
    return tables.rates(tried, ["method"], SHORTER)


def tuning(own: r.RingSettings) -> pandas.DataFrame:
    """One line per method: what was tried, with the accuracy under attack on validation images [%],
    the chosen one first. What was not tried at a scale has no number."""
    known = tuned(own.tuned_at)
    lines = []
    for method, candidates in own.candidates.items():
        told = []
        for changes in candidates:
            value = known.get((method, r.as_text(changes)))
            told.append(", ".join(_told(changes))
                        + (f": {value:.1f}" if value is not None else ""))
        lines.append({"method": method, "in the ring": told[0], "tried": "; ".join(told[1:])})
    return pandas.DataFrame(lines).set_index("method")


def tuned(scale: str) -> dict[tuple[str, str], float]:
    """Method and changes (`runs.as_text`) to accuracy under attack on validation images [%], as
    `benchmarks/tuning.py` recorded them; empty at a scale at which nothing was tried."""
    path = paths.tuning_file(scale)
    if not path.exists():
        return {}
    found = pandas.read_csv(path)
    return dict(zip(zip(found["method"], found["changes"], strict=True), found["value"],
                    strict=True))


def _told(changes: Any) -> list[str]:
    """`after_cut lr 0.1`: the keys on the way to each value, but for `methods`."""
    if not isinstance(changes, Mapping):
        return [f"{changes:g}"]
    return [part if key == "methods" else f"{key} {part}"
            for key, inner in changes.items() for part in _told(inner)]


def others(architecture: str = "ResNet-18") -> tuple[pandas.DataFrame, str]:
    """What others reach on CIFAR-10 with an architecture, clean and under AutoAttack [%]: one line
    per method, a column for what is removed; and where that is from."""
    found = anchors.table(data="CIFAR-10", architecture=architecture)
    cells = [f"{100 * clean:.1f} / {100 * attacked:.1f}"
             for clean, attacked in zip(found["clean"], found["autoattack"], strict=True)]
    removed = [named(None if kind == "none" else kind, share)
               for kind, share in zip(found["structure"], found["sparsity"], strict=True)]
    shown = found.assign(cell=cells, removed=removed).pivot(index="method", columns="removed",
                                                            values="cell")
    shown = shown.loc[found["method"].unique(), list(dict.fromkeys(removed))].fillna("")
    radii = found.groupby("source", sort=False)["epsilon"].first()
    sources = "; ".join(f"{source} (radius {radius:.4g})" for source, radius in radii.items())
    return shown, sources
