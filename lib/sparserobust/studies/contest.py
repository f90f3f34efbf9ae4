"""Tables and figures of a contest: all methods at the same size."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas

from sparserobust import imagewise
from sparserobust.errors import UserError
from sparserobust.reporting import estimates, tables
from sparserobust.running.experiment import Experiment, Results
from sparserobust.running.store import Store
from sparserobust.running.sweep import Grid, sweep
from sparserobust.studies.methods import DENSE, ContestSettings, budget, named
from sparserobust.studies.questions import ATTACKED

ACCURACIES = {"clean [%]": "clean", "PGD, averaged [%]": ATTACKED}
NO_NOISE = {"clean, noise off [%]": "clean_quiet", "PGD, noise off [%]": "pgd_quiet"}
STRONGER = {"clean [%]": "clean", "PGD [%]": ATTACKED, "AutoAttack [%]": "autoattack"}
# headings to columns of `networks`, with the digits that are shown
DIAGNOSTICS = {"margin / slope": ("margins ratio", 4), "kappa": ("kappa", 1)}
COSTS = {"weights left [%]": ("weights_left", 1), "channels left [%]": ("channels_left", 1),
         "file, packed [KB]": ("file_kb", 1), "MACs left [%]": ("macs_left", 1),
         "latency [ms]": ("latency_ms", 2), "training [s]": ("seconds", 1)}
FRONTS = {"weights left [%]": "weights_left", "file, packed [KB]": "file_kb",
          "multiply-accumulates left [%]": "macs_left"}
LATENCY = {"latency [ms]": "latency_ms"}  # that of the machine that measured it


def network_name(row: dict) -> str:
    """What a grid row is called in the table of health."""
    return f"{row['method']}, {named(row['cut'], row['level'])} removed"


# ---------------------------------------------------------------------------------------- tables


def overview(experiment: Experiment) -> pandas.DataFrame:
    """One line per method and cut, of the first seed that it has: what is trained, epoch by epoch,
    and what that takes. `UserError` where nothing is known that could be shown."""
    if not experiment.grid:
        raise UserError(f"nothing of scale {experiment.scale} is published or computed yet: "
                        "`sparserobust evidence --hours 2` begins with what is worth most")
    own, lines = experiment.settings, []
    shown: dict[tuple, dict] = {}
    for row in experiment.grid:
        shown.setdefault((row["method"], row["cut"], row["level"]), row)
    for row in shown.values():
        stages = [f"{run.recipe.trained_epochs} {run.sparsifier.kind}"
                  + (", inherits" if run.inheritance else "") for run in row["run"].lineage]
        lines.append({"method": row["method"], "paper": own.paper(row["method"]),
                      "removed": named(row["cut"], row["level"]), "epochs": " > ".join(stages),
                      "gradients per image": f"{budget(row['run']):g}"})
    return pandas.DataFrame(lines).set_index("method")


def networks(results: Results) -> pandas.DataFrame:
    """One row per grid row (of `alike` ones): `method`, `cut`, `level`, `seed`, `removed` (what the
    cut removes, in words), `run`; whether it has `collapsed`, and whether its test images were
    `drawn` under attack, not the first ones; a column per metric; and what it takes, in numbers and
    as shares of the one dense network: `weights_left`, `channels_left`, `macs_left` [%], `file_kb`,
    `latency_ms`, `seconds` of training, with all it begins with, where it was trained."""
    frame, store = alike(results.frame), results.store
    values = frame.pivot(index="run", columns="metric", values="value")
    labels = frame[["method", "cut", "level", "seed", "run"]].drop_duplicates()
    wide = labels.join(values, on="run").reset_index(drop=True)
    clean, attacked = (frame[frame["metric"] == metric].drop_duplicates("run").set_index("run")
                       for metric in ("clean", ATTACKED))
    wide["collapsed"] = wide["run"].map(estimates.collapsed(clean["value"], clean["chance"]))
    wide["drawn"] = wide["run"].map(attacked["each"].dropna().map(imagewise.is_sample)).eq(True)
    for name, metric in (("weights_left", "sparsity"), ("channels_left", "channel_sparsity")):
        counted = frame[frame["metric"] == metric].set_index("run")
        whole = counted[counted["method"] == DENSE]["total"].iloc[0]
        wide[name] = wide["run"].map(100 * (counted["total"] - counted["count"]) / whole)
    deployable = {row["run"].identity: found for row, found in results.details("deployable")}
    operations = results.detail("deployable", method=DENSE)["macs"]
    nothing = {"macs_left": np.nan, "latency_ms_left": np.nan}
    wide["macs_left"] = [100 * deployable.get(run, nothing)["macs_left"] / operations
                         for run in wide["run"]]
    wide["latency_ms"] = [deployable.get(run, nothing)["latency_ms_left"] for run in wide["run"]]
    wide["file_kb"] = wide["file"] / 1000
    lineages = {row["run"].identity: row["run"].lineage for row in results.experiment.grid}
    wide["seconds"] = [sum(map(store.seconds, lineages[run])) for run in wide["run"]]
    return with_removed(wide)


def alike(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The rows of each method at each cut, of those seeds alone whose networks answered images that
    were chosen alike under attack, drawn or the first of the test set: as most methods at this cut
    have them (drawn ones if as many), unless this method has too few seeds of that kind to test
    anything, and more of the other."""
    attacked = frame[(frame["metric"] == ATTACKED) & frame["each"].notna()]
    drawn = attacked.assign(drawn=attacked["each"].map(imagewise.is_sample).astype(bool))
    left_out: set[str] = set()
    for _, rows in drawn.groupby(["cut", "level"], dropna=False):
        of_each = rows.groupby("drawn")["method"].nunique().reindex([True, False], fill_value=0)
        usual = of_each[True] >= of_each[False]
        for _, own in rows.groupby("method"):
            as_usual = own["drawn"] == usual
            enough = as_usual.sum() >= min(estimates.FEWEST, (~as_usual).sum())
            left_out |= set(own.loc[as_usual != enough, "run"])
    return frame[~frame["run"].isin(left_out)]


def seed_counts(frame: pandas.DataFrame) -> list[int]:
    """How many seeds each method has at each cut, in `table`."""
    return tables.seed_counts(alike(frame))


def with_removed(frame: pandas.DataFrame) -> pandas.DataFrame:
    """The rows with what the cut of each removes, in words, as `removed`."""
    return frame.assign(removed=[named(None if pandas.isna(cut) else cut, level)
                                 for cut, level in zip(frame["cut"], frame["level"], strict=True)])


def table(results: Results, networks: pandas.DataFrame) -> pandas.DataFrame:
    """One line per method and cut, mean ± standard deviation over seeds: accuracies and
    diagnostics, as far as they were measured; and, if not all have test images that were chosen
    alike, under `images` how. Only lines on images chosen alike can be compared."""
    measured = {heading: metric for heading, metric in (ACCURACIES | NO_NOISE).items()
                if metric in set(results.frame["metric"])}
    seen = {heading: found for heading, found in DIAGNOSTICS.items() if found[0] in networks}
    frame = alike(results.frame)
    columns = [tables.rates(with_removed(frame), ["removed", "method"], measured),
               _means(networks, seen), *_two_kinds(frame)]
    return _by_method(pandas.concat(columns, axis=1))


def latency_note(networks: pandas.DataFrame) -> str:
    """A sentence for a caption: how far latencies lie apart where the operations are the same."""
    whole = networks.loc[networks["macs_left"].round(1) == 100, "latency_ms"]
    return (" Each was timed by itself: latencies of networks from which no operation can be removed differ by a "
            f"factor of up to {whole.max() / whole.min():.1f}." if len(whole) > 1 else "")


def images_note(frame: pandas.DataFrame) -> str:
    """A sentence for the caption of a figure that shows what `table` does."""
    return (" Compare only networks whose test images were chosen alike (Table 1, images)."
            if _two_kinds(alike(frame)) else "")


def _two_kinds(frame: pandas.DataFrame) -> list[pandas.Series]:
    """A column of `table`: how the test images of each line were chosen, `drawn`, or the `first` of
    the test set. Only if both occur."""
    attacked = with_removed(frame[(frame["metric"] == ATTACKED) & frame["each"].notna()])
    drawn = attacked.groupby(["removed", "method"], sort=False)["each"].first().map(
        imagewise.is_sample)
    found = drawn.map({True: "drawn", False: "first"}).rename("images")
    found = found.set_axis([", ".join(line) for line in found.index])
    return [found] if found.nunique() > 1 else []


def costs(networks: pandas.DataFrame) -> pandas.DataFrame:
    """One line per method and cut, mean over seeds: the size of the network, and what deploying and
    training it take."""
    return _by_method(_means(networks, COSTS, spread=False))


def autoattack(results: Results) -> pandas.DataFrame:
    """One line per network on which AutoAttack was tried, all attacks on the same images."""
    tried = estimates.measured_by(results.frame, "autoattack")
    return _by_method(tables.rates(with_removed(tried), ["removed", "method"], STRONGER))


def _means(networks: pandas.DataFrame, columns: dict[str, tuple[str, int]],
           spread: bool = True) -> pandas.DataFrame:
    """One line per cut and method; `columns` maps headings to columns and the digits that are
    shown."""
    lines: dict[str, dict[str, str]] = {}
    for (removed, method), rows in networks.groupby(["removed", "method"], sort=False):
        line = lines[f"{removed}, {method}"] = {}
        for heading, (column, digits) in columns.items():
            line[heading] = f"{rows[column].mean():.{digits}f}"
            if spread and rows[column].nunique() > 1:
                line[heading] += f" ± {rows[column].std():.{digits}f}"
    return pandas.DataFrame.from_dict(lines, orient="index").replace("nan", "")


def _by_method(table: pandas.DataFrame) -> pandas.DataFrame:
    """A table whose lines are called `removed, method`, with what is removed as a column."""
    removed, methods = zip(*(name.split(", ", 1) for name in table.index), strict=True)
    table = table.set_axis(pandas.Index(methods, name="method"))
    table.insert(0, "removed", removed)
    return table


def rank_correlations(networks: pandas.DataFrame) -> str:
    """A sentence for each cut: how the accuracy under attack follows each of the diagnostics over
    methods."""
    sentences = []
    for removed, rows in networks[networks["cut"].notna()].groupby("removed", sort=False):
        means = rows.groupby("method").mean(numeric_only=True)
        follows = [f"{means[ATTACKED].corr(means[column], method='spearman'):+.2f} with {heading}"
                   for heading, (column, _) in DIAGNOSTICS.items()]
        sentences.append(f"{removed} removed: {', '.join(follows)}")
    return f"Rank correlation of accuracy under attack over methods. {'; '.join(sentences)}."


def tried(rows: Grid, store: Store, workers: int | None = None) -> pandas.DataFrame:
    """Sparsity and accuracies [%] of some grid rows alone, one line per method and cut, means over
    seeds. Trains and measures what is not known yet."""
    names = ("sparsity", "clean", ATTACKED)
    grid = [row | {"measurements": {name: row["measurements"][name] for name in names}}
            for row in rows]
    frame = with_removed(sweep(grid, {}, store, workers))
    values = frame.pivot_table(index=["removed", "method"], columns="metric", values="value",
                               sort=False)
    return values[list(names)].mul(100).round(1).reset_index("removed")


# --------------------------------------------------------------------------------------- figures


def answers(frame: pandas.DataFrame, metric: str, cut: str | None,
            level: float) -> dict[str, np.ndarray]:
    """For `estimates.ranking`: of the methods at a cut which test images (seeds, images) were
    classified correctly, on seeds that all of them have, and on images that were chosen alike: those
    seeds, three at least if any method has so many, on which most methods can be compared. The
    others are left out, and so are networks of which no answers were kept."""
    packed = _packed(frame, metric, cut, level)
    if packed.empty:
        return {}
    values = estimates.common(packed.to_numpy().T.ravel().tolist())
    return dict(zip(packed.columns, values.reshape(packed.shape[1], len(packed), -1), strict=True))


def _packed(frame: pandas.DataFrame, metric: str, cut: str | None, level: float) -> pandas.DataFrame:
    """What `answers` unpacks (seeds, methods)."""
    rows = estimates.matching(frame, {"metric": metric, "cut": cut, "level": level})
    rows = rows.dropna(subset="each")
    drawn = rows["each"].map(imagewise.is_sample).astype(bool)
    found = [_on_most_seeds(some) for some in (rows[drawn], rows[~drawn]) if len(some)]
    return max(found, key=lambda each: (each.shape[1], len(each)), default=pandas.DataFrame())


def _on_most_seeds(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Answers (seeds, methods) of the methods that share seeds with most others."""
    packed = rows.pivot(index="seed", columns="method", values="each")[rows["method"].unique()]
    known = packed.notna()
    enough = min(estimates.FEWEST, int(known.sum().max()))
    most = max(combinations(packed.index, enough),
               key=lambda seeds: int(known.loc[list(seeds)].all().sum()))
    return packed.loc[:, known.loc[list(most)].all()].dropna()


def rankings(results: Results[ContestSettings]) -> dict[str, pandas.DataFrame]:
    """How methods rank at each cut (`estimates.ranking`) at which any were run, by what is
    removed."""
    found = {named(cut, level): answers(results.frame, ATTACKED, cut, level)
             for cut, level in results.experiment.settings.cuts}
    return {removed: estimates.ranking(right) for removed, right in found.items() if right}


def unranked(results: Results[ContestSettings], rankings: dict[str, pandas.DataFrame]) -> str:
    """A sentence for a caption: the methods that `rankings` had to leave out; nothing if there are
    none."""
    left_out = []
    for cut, level in results.experiment.settings.cuts:
        tried = estimates.matching(results.frame, {"metric": ATTACKED, "cut": cut, "level": level})
        removed = named(cut, level)
        ranked = rankings[removed].index if removed in rankings else ()
        if others := [method for method in tried["method"].unique() if method not in ranked]:
            left_out.append(f" {removed}: {'; '.join(others)}.")
    return (" Not ranked, since too few of their seeds or images are those of the others:"
            f"{''.join(left_out)}" if left_out else "")


def dense_networks(results: Results[ContestSettings]) -> dict[str, pandas.Series]:
    """Accuracy under attack [%] of the dense network, `mean` and its 95 % interval `low` to `high` over seeds and
    images, beside each of `rankings`: on images chosen as they are there. Left out where it answered none of these."""
    found, dense = {}, results.frame[results.frame["method"] == DENSE].dropna(subset="each")
    for cut, level in results.experiment.settings.cuts:
        packed = _packed(results.frame, ATTACKED, cut, level)
        if not packed.empty:
            drawn = imagewise.is_sample(packed.iat[0, 0])
            chosen = dense[[imagewise.is_sample(text) == drawn for text in dense["each"]]]
            if right := answers(chosen, ATTACKED, None, 0.0):
                found[named(cut, level)] = estimates.ranking(right).loc[DENSE]
    return found


def ranks(rankings: dict[str, pandas.DataFrame]) -> pandas.DataFrame:
    """The rankings as one table."""
    return pandas.DataFrame([{
        "method": method, "removed": removed,
        "PGD, averaged [%]": f"{row['mean']:.1f} [{row['low']:.1f}, {row['high']:.1f}]",
        "rank": f"{row['rank']:g} [{row['rank_low']:g}, {row['rank_high']:g}]",
        "comes first [%]": f"{row['best']:.0f}"}
        for removed, found in rankings.items() for method, row in found.iterrows()]
    ).set_index("method")


Panels = dict[str, tuple[str, pandas.DataFrame]]


def fronts(networks: pandas.DataFrame, columns: Mapping[str, str] = FRONTS
           ) -> tuple[pandas.DataFrame, Panels]:
    """One row per method and cut, means over seeds; and for each heading the column that is drawn,
    with the rows of its `front`, of those that are `compared`: networks that have not collapsed, on
    test images chosen as those of most are."""
    groups = networks.groupby(["method", "cut", "level"], sort=False, dropna=False)
    points = groups[[*columns.values(), ATTACKED]].mean()
    sound, drawn = ~groups["collapsed"].any(), groups["drawn"].all()
    points = points.assign(compared=sound & (drawn == (2 * drawn.sum() >= len(drawn)))).reset_index()
    return points, {heading: (column, front(points[points["compared"]], column, ATTACKED))
                    for heading, column in columns.items()}


def front_note(points: pandas.DataFrame) -> str:
    """A sentence for the caption of `fronts`: whose networks the front leaves out, if any."""
    names = dict.fromkeys(points.loc[~points["compared"], "method"])
    return (f" Not on the front, collapsed or on other test images: {', '.join(names)}."
            if names else "")


def front(points: pandas.DataFrame, x: str, y: str) -> pandas.DataFrame:
    """The rows that no other beats: none has as little of `x`, to one digit after the point, and
    more of `y`. In order of `x`."""
    ordered = points.assign(rounded=points[x].round(1))
    ordered = ordered.sort_values(["rounded", y], ascending=[True, False])
    best = ordered[ordered[y] > ordered[y].cummax().shift(fill_value=-np.inf)]
    return best.drop(columns="rounded")
