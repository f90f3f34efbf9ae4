"""The first paper: what is run at each scale, and how measurements become its tables, curves and verdicts.

Expectations come from the YAML files as they stand, `data/reported/fk_resnet.yaml` and `notebooks/settings/`.
"""

import math
import zlib
from collections import Counter
from dataclasses import replace
from statistics import mean, stdev
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import yaml

from scaffolding import results_of
from sparserobust import imagewise, paths
from sparserobust.analysis import WeightSparsity
from sparserobust.attacks import PGD, CarliniWagnerReleased
from sparserobust.evaluation import Accuracy
from sparserobust.reporting import claims, estimates, reported, tables
from sparserobust.running import scales
from sparserobust.sparsifiers import FixedMask
from sparserobust.studies.fk_resnet import comparisons, report, runs, theorem

RECORD = yaml.safe_load((reported.FOLDER / "fk_resnet.yaml").read_text())
PRINTED = {t["id"]: [dict(zip(t["columns"], row, strict=True)) for row in t["rows"]] for t in RECORD["tables"]}
METRICS = {"A1": "clean", "A2": "fgsm", "A3": "ifgsm20", "A4": "cw"}
HEADINGS = {"A1": "A1 clean", "A2": "A2 FGSM", "A3": "A3 I-FGSM20", "A4": "A4 C&W"}
OURS = {("unstructured", "RVSM"): ("RVSM", 0.01), ("unstructured", "ADMM"): ("released ADMM weights", None),
        ("channel", "RGSM"): ("RGSM", 0.1), ("channel", "ADMM"): ("released ADMM channels", None)}  # rows of table 4
FAIR = {"released ADMM weights": "ADMM weights", "released ADMM channels": "ADMM channels"}
SCALES = [name for name in scales.names() if scales.has(name, "fk_resnet")]
every_scale = pytest.mark.parametrize("scale", SCALES)


def printed_rows(table: str) -> list[tuple]:
    """(net, method, level) of each row of a printed table."""
    if table == "T4":
        return [("ResNet20", *OURS[row["granularity"], row["method"]]) for row in PRINTED["T4"]]
    method, penalty = ("RVSM", "beta") if table == "T1" else ("RGSM", "lambda1")
    return [(row["net"], "dense" if row[penalty] is None else method, row[penalty]) for row in PRINTED[table]]


def key(row: dict) -> tuple:
    return row["net"], row["method"], row["level"]


# --------------------------------------------------------------------------------------------------- what is run


@every_scale
@pytest.mark.parametrize("seeds", [None, [7, 3]])
def test_every_printed_row_is_run_once_per_seed(scale, seeds):
    experiment = runs.experiment(scale, seeds)
    run = Counter((*key(row), row["seed"]) for row in experiment.grid)
    assert set(run.values()) == {1}
    assert len({row["run"].identity for row in experiment.grid}) == len(experiment.grid)
    assert seeds is None or {row["seed"] for row in experiment.grid} == set(seeds)
    for row in {row for table in ("T1", "T2", "T3", "T4") for row in printed_rows(table)}:
        labels, one_seed = dict(zip(("net", "method", "level"), row, strict=True)), experiment.settings.one_seed
        wanted = experiment.seeds[:1] if not seeds and scales.selected(labels, one_seed) else experiment.seeds
        assert {seed for *its, seed in run if tuple(its) == row} >= set(wanted), row


def test_rows_that_no_primary_claim_speaks_of_have_one_seed_at_the_paper_scale():
    experiment = runs.experiment("paper")
    seeds = Counter(key(row) for row in experiment.grid)
    assert experiment.seeds == [0, 1, 2] and set(seeds.values()) == {1, 3}
    assert {row for row, n in seeds.items() if n == 1} == {
        ("En5ResNet20", "RGSM", 0.01),
        *((net, "RVSM", beta) for net in ("ResNet20", "En2ResNet20") for beta in (0.1, 0.5))}
    nothing = pandas.DataFrame(columns=["net", "method", "level", "metric", "seed", "value"])
    primary = {line.primary for line in reported.load("fk_resnet").ledger}
    sides = [side for contrast in comparisons.contrasts(nothing) if contrast.claim.id in primary
             for side in (contrast.treatment, contrast.reference)]
    assert len(sides) > 15 and {seeds[key(side)] for side in sides} == {3}


def test_figures_1_3_and_4_have_seeds_of_their_own_at_the_full_scale():
    experiment = runs.experiment("full")
    seeds = {key(row): experiment.seeds for row in experiment.grid}
    for row in experiment.grid:
        if row["seed"] not in seeds[key(row)]:
            seeds[key(row)] = [*seeds[key(row)], row["seed"]]
    assert experiment.seeds == [0, 1, 2]
    of = {row: len(its) for row, its in seeds.items()}
    assert {row for row, n in of.items() if n == 10} == {("ResNet20", m, None) for m in ("natural", "dense")}
    assert {row for row, n in of.items() if n == 5} == {
        (net, "RGSM", level) for net in ("En2ResNet20", "ResNet38") for level in experiment.settings.curve}
    assert set(of.values()) == {3, 5, 10}


@every_scale
def test_fine_tuned_rows_start_from_the_run_they_name(scale):
    grid = runs.experiment(scale).grid
    found = {(*key(row), row["seed"]): row["run"] for row in grid}
    tuned = [row for row in grid if "fine-tuned" in row["method"]]
    assert {row["method"] for row in tuned} == {f"{m}, fine-tuned" for m in ("RVSM", "RGSM", *FAIR.values())}
    for row in tuned:
        start = found[row["net"], row["method"].removesuffix(", fine-tuned"), row["level"], row["seed"]]
        assert row["run"] == start.then(recipe=row["run"].recipe, sparsifier=FixedMask())


@pytest.fixture
def own_scale(tmp_path, monkeypatch):
    """Write settings of one's own, like quick but for some of them, and get the grid."""
    def own_scale(**changes):
        folder = paths.PROJECT / "notebooks" / "settings"
        content = yaml.safe_load((folder / "fk_resnet.yaml").read_text())
        quick, shared = content["quick"], content["shared"]
        for name, value in changes.items():
            if isinstance(value, dict):  # null takes away what is in `shared`
                value = {k: v for k, v in (quick.get(name, {}) | value).items()
                         if v is not None or k in shared.get(name, {})}
            quick[name] = value
        monkeypatch.setattr("sparserobust.running.scales.settings_folder", lambda: tmp_path)
        (tmp_path / "scales.yaml").write_text((folder / "scales.yaml").read_text())
        (tmp_path / "fk_resnet.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return {key(row) for row in runs.experiment("quick", [0]).grid}

    return own_scale


def test_rows_of_nets_and_penalties_that_a_scale_does_not_have_are_left_out(own_scale):
    rows = own_scale(nets={"ResNet38": None}, RGSM={0.05: None}, curve=[0.02], ADMM={"ADMM weights": None})
    assert {net for net, _, _ in rows} == {"ResNet20", "En2ResNet20", "En5ResNet20"}
    assert {(net, level) for net, method, level in rows if method == "RGSM"} == {
        ("ResNet20", 0.1), ("En2ResNet20", 0.1), ("En2ResNet20", 0.02), ("En5ResNet20", 0.01), ("En5ResNet20", 0.02)}
    assert not any("ADMM weights" in method and "released" not in method for _, method, _ in rows)


@pytest.mark.parametrize(("changes", "message"), [
    ({"RVSM": {0.2: {"beta": 1, "lam": 1e-3}}}, "RVSM: unknown entry '0.2'; did you mean '0.5'?"),
    ({"RGSM": {0.03: {"lambda1": 1}}}, "RGSM: unknown entry '0.03'; did you mean '0.05'?"),
    ({"curve": [0.02, 0.2]}, "curve: unknown entry '0.2'; did you mean '0.02'?"),
    ({"ADMM": {"ADMM chanels": {"kind": "admm", "sparsity": 0.5}}},
     "ADMM: unknown entry 'ADMM chanels'; did you mean 'ADMM channels'?"),
    ({"curves": [0.02]}, "unknown setting 'curves'; did you mean 'curve'?"),
    ({"RVSM": {0.01: {"lambda": 1}}}, "RVSM (rvsm): unknown setting 'lambda'; did you mean 'lam'?")])
def test_an_entry_that_belongs_to_no_row_is_refused(changes, message, own_scale, refusal):
    said = refusal(own_scale, **changes)
    assert said.startswith("fk_resnet.yaml, quick, ResNet20: ") and said.endswith(message)


def test_the_paper_scale_is_the_papers():
    experiment = runs.experiment("paper", [0])
    for row in experiment.grid:
        net, method, level = key(row)
        run = row["run"]
        assert run.model.members == int(net[2]) if net.startswith("En") else run.model.noise == 0
        assert (run.objective.kind == "natural") == (row["training"] == "natural") == (method == "natural")
        if "fine-tuned" in method:
            continue
        assert run.recipe.epochs == 200 and run.recipe.milestones == (80, 120, 160) and run.recipe.lr == 0.1
        if method == "RVSM":
            assert (run.sparsifier.beta, run.sparsifier.lam) == (level, 1e-6)
        if method == "RGSM":
            assert (run.sparsifier.beta, run.sparsifier.lambda1, run.sparsifier.lambda2) == (1.0, level, 1e-5)
        if "ADMM" in method:
            assert run.sparsifier.rho == 1e-2
            assert (run.sparsifier.kind == "admm_released") == method.startswith("released")
            assert run.sparsifier.granularity == ("channel" if method.endswith("channels") else "weight")


@every_scale
def test_what_is_judged_is_measured(scale):
    """Every comparison finds its metric on both sides, of every seed of both."""
    experiment = runs.experiment(scale)
    measured = {(*key(row), row["seed"]): set(row["measurements"]) for row in experiment.grid}
    nothing = pandas.DataFrame(columns=["net", "method", "level", "metric", "seed", "value"])
    for contrast in comparisons.contrasts(nothing):
        for side in (contrast.treatment, contrast.reference):
            found = [metrics for (*its, _), metrics in measured.items() if tuple(its) == key(side)]
            assert found and all(contrast.metric in metrics for metrics in found), contrast.claim.id


def test_overview_names_every_run_once():
    experiment = runs.experiment("quick", [0, 4])
    shown = report.overview(experiment)
    assert len(shown) * 2 == len(experiment.grid)
    assert shown["seeds"].tolist() == ["0, 4"] * len(shown)
    lines = shown.set_index(["the paper's net", "method", "the paper's penalty"])
    line = lines.loc[("ResNet20", "RVSM", "beta 0.01")]
    assert line["our penalty"] == "beta 1, lam 0.0032" and line["ours"] == "ResNet8"
    assert lines.loc[("ResNet20", "RVSM, fine-tuned", "beta 0.01")]["epochs"] == 1
    assert lines.loc[("ResNet20", "ADMM channels", "")]["our penalty"] == "sparsity 0.25, granularity channel, rho 1"


# -------------------------------------------------------------------------------------------- a synthetic frame


def made_up(net, method, level, seed, metric) -> int:
    """A count of 1000 that belongs to this measurement and no other; no network has collapsed."""
    return max(zlib.crc32(repr((net, method, level, seed, metric)).encode()) % 1000 + 1, 300 * (metric == "clean"))


def answers(*measured) -> np.ndarray:
    """Which of 1000 images were right: as many as are made up, and which ones belongs to this measurement, too."""
    return np.random.default_rng(made_up(*measured)).permutation(1000) < made_up(*measured)


UNSAMPLED = (*report.EXACT, "near_zero", "channel_norms")


def frame_of(grid: list[dict], *names: str) -> pandas.DataFrame:
    """As `sweep` gives it, without a run being trained."""
    rows = []
    for row in grid:
        labels = {k: v for k, v in row.items() if k != "measurements"} | {
            "run": row["run"].identity, "where": "store", "processor": "P", "chance": 0.1}
        for metric in (*names, *({"near_zero", "channel_norms"} & row["measurements"].keys())):
            measured = *key(row), row["seed"], metric
            sampled, count = metric not in UNSAMPLED, made_up(*measured)
            rows.append(labels | {"metric": metric, "value": count / 1000, "count": count, "total": 1000,
                                  "sampled": sampled, "each": imagewise.pack(answers(*measured)) if sampled else None})
        if "stability" in row["measurements"]:
            rows.append(labels | {"metric": "stability", "value": 0.7, "sampled": True, "each": None})
            for level in row["measurements"]["stability"].levels:
                values = changes(row["seed"], level)
                rows.append(labels | {"metric": f"stability level {level:g}", "value": values.mean(), "sampled": True,
                                      "each": imagewise.pack(values)})
    return pandas.DataFrame(rows)


def changes(seed: int, level: float) -> np.ndarray:
    """How far the output of 100 images moves: with noise less far."""
    return np.random.default_rng(seed).uniform(0.5, 1.5, 100) * (1 - level) ** (1 + 0.1 * seed)


ALL = (*METRICS.values(), "sparsity", "channel_sparsity", "pgd20_eot")


@pytest.fixture(scope="module")
def experiment():
    return runs.experiment("quick", [0, 1, 2])


@pytest.fixture(scope="module")
def frame(experiment):
    return frame_of(experiment.grid, *ALL)


@pytest.fixture
def of(experiment):
    """Results of the quick scale with this frame."""
    return lambda frame, experiment=experiment: results_of(experiment, None, frame)


def cell(row: tuple[str, str, float | None], metric: str, seeds=(0, 1, 2)) -> str:
    values = [made_up(*row, seed, metric) / 10 for seed in seeds]
    return f"{mean(values):.1f} ± {stdev(values):.1f}"


def difference(treatment: tuple[str, str, float | None], reference: tuple[str, str, float | None],
               metric: str) -> float:
    """In percentage points, mean over seeds."""
    return mean(made_up(*treatment, seed, metric) - made_up(*reference, seed, metric) for seed in range(3)) / 10


# ------------------------------------------------------------------------------------------------------- tables


def as_printed(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


@pytest.mark.parametrize(("table", "heading", "metric"), [
    ("T1", "sparsity", "sparsity"), ("T2", "channel sparsity", "channel_sparsity"),
    ("T3", "channel sparsity", "channel_sparsity")])
def test_tables_1_to_3(table, heading, metric, frame, of):
    shown, rows = report.table(of(frame), table), printed_rows(table)
    for code, name in METRICS.items():
        assert shown[HEADINGS[code], "reported"].tolist() == [as_printed(row[code]) for row in PRINTED[table]]
        assert shown[HEADINGS[code], "ours"].tolist() == [cell(row, name) for row in rows]
    assert shown[heading, "reported"].tolist() == [as_printed(row[metric]) for row in PRINTED[table]]
    assert shown[heading, "ours"].tolist() == [cell(row, metric) for row in rows]
    assert shown["PGD-20, few draws", "ours"].tolist() == [cell(row, "pgd20_eot") for row in rows]
    assert ("PGD-20, few draws", "reported") not in shown


def test_table_4(frame, of):
    """The four printed rows, and below them what the paper does not have: no number of its stands there."""
    shown = report.table(of(frame), "T4")
    printed = {(row["granularity"], row["method"]): row for row in PRINTED["T4"]}
    expected = {}
    for (granularity, theirs), (ours, level) in OURS.items():
        expected[f"{granularity}: {ours}"] = (ours, level), printed[granularity, theirs]
    for granularity, what, (ours, level) in (("unstructured", "weights", OURS["unstructured", "RVSM"]),
                                             ("channel", "channels", OURS["channel", "RGSM"])):
        expected[f"{granularity}: ADMM {what}"] = (f"ADMM {what}", None), None
        expected[f"{granularity}: ADMM {what}, fine-tuned"] = (f"ADMM {what}, fine-tuned", None), None
        expected[f"{granularity}: {ours}, fine-tuned"] = (f"{ours}, fine-tuned", level), None
    assert sorted(shown.index) == sorted(expected)
    for label, (row, theirs) in expected.items():
        line, removed = shown.loc[label], "channel_sparsity" if label.startswith("channel") else "sparsity"
        assert line["", "ours is"] == "ResNet8"
        for code, metric in (HEADINGS | {"sparsity": "removed"}).items():
            assert line[metric, "reported"] == (as_printed(theirs[code]) if theirs else ""), label
            assert line[metric, "ours"] == cell(("ResNet20", *row), METRICS.get(code, removed)), label
        assert line["PGD-20, few draws", "ours"] == cell(("ResNet20", *row), "pgd20_eot")


@pytest.mark.parametrize("table", ["T1", "T2", "T4"])
def test_one_seed_and_missing_rows(table, frame, of, refusal):
    some = frame[(frame["seed"] == 1) & ~frame["method"].isin(["RVSM", "released ADMM weights"])]
    shown = report.table(of(some), table)
    for label, line in shown.iterrows():
        missing = "beta" in label or label in ("unstructured: RVSM", "unstructured: released ADMM weights")
        assert ("[" in line["A1 clean", "ours"]) != missing
        assert not missing or line["A1 clean", "ours"] == line["", "ours is"] == ""
        sparsities = [line[c] for c in shown if c[1] == "ours" and ("sparsity" in c[0] or c[0] == "removed")]
        assert all("[" not in shown and bool(shown) != missing for shown in sparsities)  # exact: no sample of images
    assert "T1, T2, T3, T4" in refusal(report.table, of(frame), "T5")


def test_a_measurement_without_a_count_does_not_hinder_the_tables(frame, of):
    """Stability, of unpruned En2ResNet20, has none."""
    stability = frame["metric"].str.startswith("stability")
    assert stability.any() and frame[stability]["count"].isna().all()
    for table in ("T1", "T2", "T3"):
        pandas.testing.assert_frame_equal(report.table(of(frame), table), report.table(of(frame[~stability]), table))


def test_a_table_has_all_rates_of_the_same_images(frame, of):
    """If one attack was tried on 200 images, its line and the others are of those; shares of weights stay whole."""
    few = (frame["metric"] == "cw") & (frame["net"] == "ResNet20")
    fewer = frame.assign(each=[imagewise.pack(imagewise.unpack(each)[:200] == 1) if cut else each
                               for each, cut in zip(frame["each"], few, strict=True)])
    shown, rows = report.table(of(fewer), "T1"), printed_rows("T1")
    for code, name in METRICS.items():
        for line, row in zip(shown[HEADINGS[code], "ours"], rows, strict=True):
            rates = [100 * answers(*row, seed, name)[:200].mean() for seed in range(3)]
            assert line == f"{mean(rates):.1f} ± {stdev(rates):.1f}"
    assert shown["sparsity", "ours"].tolist() == [cell(row, "sparsity") for row in rows]


@pytest.mark.parametrize(("labels", "table", "line"), [
    ({"method": "RVSM", "level": 0.2}, "T1", "ResNet20 beta 0.2"),
    ({"method": "RGSM", "level": 0.2}, "T2", "ResNet20 lambda1 0.2"),
    ({"method": "RGSM", "level": 0.2, "net": "ResNet38"}, "T3", "ResNet38 lambda1 0.2"),
    ({"method": "RVSM, l1", "level": 0.01}, "T4", "added: RVSM, l1")])
def test_a_row_that_a_reader_appends_enters_its_table(labels, table, line, experiment, of):
    some = experiment.row(net=labels.get("net", "ResNet20"), method="RGSM")
    mine = [some | labels | {"seed": seed, "run": replace(some["run"], seed=40 + seed)} for seed in range(3)]
    whole = replace(experiment, grid=[*experiment.grid, *mine])
    before, after = (report.table(of(frame_of(e.grid, *ALL), e), table) for e in (experiment, whole))
    assert [name for name in after.index if name not in set(before.index)] == [line]
    row, metric = key(mine[0]), "channel_sparsity" if table in ("T2", "T3") else "sparsity"
    added, heading = after.loc[line], {"T1": "sparsity", "T4": "removed"}.get(table, "channel sparsity")
    assert added["A3 I-FGSM20", "ours"] == cell(row, "ifgsm20") and added[heading, "ours"] == cell(row, metric)
    assert all(added[heading, "reported"] == "" for heading, which in after if which == "reported")
    assert after.loc[before.index].equals(before)


def test_captions_say_scale_and_the_papers_inconsistencies(frame, of):
    assert "75.87" in report.caption(of(frame), "T2") and "quick" in report.caption(of(frame), "T2")
    assert "10.89" in report.caption(of(frame), "T4") and "ADMM" in report.caption(of(frame), "T4")
    assert "3 seeds" in report.caption(of(frame), "T1")
    assert "one seed" in report.caption(of(frame[frame["seed"] == 0]), "T1")
    some = frame[(frame["seed"] == 0) | (frame["net"] == "ResNet20")]
    assert "1 or 3 seeds" in report.caption(of(some), "T1")


def test_reported_points_of_the_curves(experiment):
    points = report.curve_reported(experiment)
    labels = {"En2ResNet20": "En2ResNet8", "ResNet38": "ResNet14"}  # what stands for them at this scale
    found = {(row["ours"], row["level"], row["metric"]): row["value"] for row in points.to_dict("records")}
    metrics = METRICS | {"channel_sparsity": "channel_sparsity"}
    expected = {(labels[row["net"]], row["lambda1"], metric): row[code] / 100 for row in PRINTED["T3"]
                if row["lambda1"] is not None for code, metric in metrics.items()}
    assert len(points) == len(expected) == 20 and found == pytest.approx(expected)


def test_stronger_attacks_of_one_seed(experiment, of):
    grid = [row for row in experiment.rows(seed=0) if "pgd20_eot20" in row["measurements"]]
    other_seed = [row | {"seed": 1, "run": replace(row["run"], seed=1)} for row in grid]
    frame = frame_of(grid + other_seed, "clean", "cw_l2", "pgd20_eot20", "remaining_parameters", "deployable")
    shown = report.stronger_table(of(frame))
    assert sorted(shown) == sorted(
        f"{row['ours']}, {row['method']}" + (f", lambda1 {row['level']}" if row["level"] else "") for row in grid)
    column, row = shown["ResNet8, RGSM, lambda1 0.1"], ("ResNet20", "RGSM", 0.1, 0)
    assert column["parameters left"] == f"{made_up(*row, 'remaining_parameters'):,}"
    assert column["MACs left"] == f"{made_up(*row, 'deployable'):,}"
    for heading, metric in (("A1 clean", "clean"), ("C&W, l2", "cw_l2"), ("PGD-20, 20 draws", "pgd20_eot20")):
        assert column[heading].startswith(f"{made_up(*row, metric) / 10:.1f} [")
    assert column["AutoAttack"] == ""


def test_averaging_gap_is_of_the_same_images(frame, of):
    """The attack that was tried on more images counts on those that both have."""
    one = frame["metric"] == "pgd20_eot"
    fewer = frame.assign(each=[imagewise.pack(imagewise.unpack(each)[:100] == 1) if cut else each
                               for each, cut in zip(frame["each"], one, strict=True)])
    rows = [row for row in zip(frame["net"], frame["method"], frame["level"], frame["seed"], strict=True)]
    rows = {(net, method, None if pandas.isna(level) else level, seed) for net, method, level, seed in rows
            if net == "En5ResNet20"}
    gaps = [100 * (answers(*row, "ifgsm20")[:100].mean() - answers(*row, "pgd20_eot")[:100].mean()) for row in rows]
    line = report.averaging_gap(of(fewer)).loc["En3ResNet8"]
    assert (line["mean"], line["std"], line["count"]) == pytest.approx((mean(gaps), stdev(gaps), len(rows)), abs=0.06)


def test_conditions_name_radius_draws_and_images():
    measurements = {"one": Accuracy(attack=PGD(epsilon=0.15, step_size=0.1, steps=2, eot_draws=7), images=30),
                    "two": Accuracy(attack=CarliniWagnerReleased()), "clean": Accuracy(), "count": WeightSparsity()}
    told = tables.conditions(measurements, {"A": "one", "B": "two", "C": "clean", "D": "count", "E": "absent"})
    assert told.startswith("Attacks: A (radius 0.15, 7 draws, up to 30 images); B (up to all images). Pixels")


def test_deployable_sizes_before_and_after(experiment):
    sizes = {"parameters": 272_282, "parameters_left": 100_000, "bytes": 1_100_000, "bytes_left": 400_400,
             "macs": 40_813_184, "macs_left": 20_000_000, "latency_ms": 2.0, "latency_ms_left": 1.234,
             "largest_difference": 3e-7}
    batch = sizes | {"latency_ms": 90.0, "latency_ms_left": 60.55}
    store = SimpleNamespace(measure=lambda run, wanted: sizes if wanted.images == 1 else batch)
    shown = report.deployable_table(results_of(experiment, store, pandas.DataFrame()))
    assert list(shown.index) == sorted(shown.index) and not any("dense" in name for name in shown.index)
    assert {"ResNet8, RGSM, lambda1 0.1", "ResNet8, ADMM channels"} <= set(shown.index)
    for line in shown.to_dict("records"):
        cells = {heading.split(" ")[0]: cell for heading, cell in line.items() if "latency" not in heading}
        assert cells == {"parameters": "272.3 → 100.0", "file": "1,100 → 400",
                         "MACs": "40,813 → 20,000", "largest": "3e-07"}
        assert [cell for heading, cell in line.items() if "latency" in heading] == ["2.00 → 1.23", "90.0 → 60.5"]


def test_what_admm_sets_to_zero_is_said_from_the_frame(frame, of):
    said = report.admm_zeros(of(frame))
    for method, metric in (("released ADMM weights", "sparsity"), ("ADMM channels", "channel_sparsity")):
        values = [made_up("ResNet20", method, None, seed, metric) / 10 for seed in range(3)]
        assert f"{method} {mean(values):.1f} %" in said


# ------------------------------------------------------------------------------------------------------ verdicts


FALLS = (300, 300, 3)  # steps downhill, steps, seeds
REAL_FALLS = theorem.falls


@pytest.fixture(autouse=True)
def falls(monkeypatch):
    """Nothing is descended; what the steps did is given."""
    def falls(*given):
        monkeypatch.setattr(theorem, "falls", lambda: given)

    falls(*FALLS)
    return falls


def judged(frame) -> pandas.DataFrame:
    return comparisons.judged(results_of(None, None, frame))


# ------------------------------------------------------------------------------------------------------ verdicts


def test_each_claim_compares_the_rows_it_names():
    """With the paper's own table cells as measurements, every effect is the number the paper reports."""
    rows = []
    for table in ("T1", "T2", "T3", "T4"):
        for (net, method, level), row in zip(printed_rows(table), PRINTED[table], strict=True):
            cells = {metric: row[code] for code, metric in METRICS.items()}
            cells |= {m: row[m] for m in ("sparsity", "channel_sparsity") if m in row}
            if row.get("granularity") == "channel":
                cells["channel_sparsity"] = cells.pop("sparsity")
            rows += [{"net": net, "method": method, "level": level, "metric": metric, "value": value / 100,
                      "table": table} for metric, value in cells.items()]
    for row in PRINTED["F1"]:
        rows.append({"net": "ResNet20", "method": {"adversarial": "dense"}.get(row["training"], "natural"),
                     "level": None, "metric": "near_zero", "value": row["share_below_1e-3"] / 100, "table": "T1"})
    cells = pandas.DataFrame(rows).assign(seed=0, chance=0.1, sampled=True, each=None)
    cells["run"] = [f"{net} {method} {level}" for net, method, level in cells[["net", "method", "level"]].to_numpy()]
    tables_of = {"C1": "T1", "C2a": "T1", "C2b": "T2", "C3": "T2", "C4": "T3", "C5a": "T4", "C5b": "T4", "C6": "T2",
                 "C10": "T2"}
    for name, table in tables_of.items():
        rows = judged(cells[cells["table"] == table])
        rows = rows[rows["claim"].str.split("[. ]", regex=True).str[0] == name]
        fair = rows["claim"].str.contains(" fair")
        assert (rows[fair]["why"] == estimates.NOT_RUN).all()  # no ADMM but the released one is on record
        assert len(rows[~fair]) and (rows[~fair]["n_seeds"] == 1).all()
        assert (rows["verdict"] == claims.UNTESTED).all()
        for row in rows[~fair].itertuples():
            expected = math.log10(53.36 / 25.33) if row.claim == "C3.ratio" else row.reported
            assert row.ours == pytest.approx(expected, abs=0.006), row.claim


@pytest.fixture
def rows(frame):
    return judged(frame).set_index("claim", drop=False)


def test_claims_about_admm_compare_with_the_released_one(rows):
    """As the paper did, with the code it released."""
    rgsm, released = ("ResNet20", "RGSM", 0.1), ("ResNet20", "released ADMM channels", None)
    assert rows.loc["C5a"]["ours"] == pytest.approx(difference(
        ("ResNet20", "RVSM", 0.01), ("ResNet20", "released ADMM weights", None), "sparsity"))
    for code, metric in (METRICS | {"S": "channel_sparsity"}).items():
        assert rows.loc[f"C5b.{code}"]["ours"] == pytest.approx(difference(rgsm, released, metric))
    # of small norms that are not zero: ADMM has more
    assert rows.loc["C7"]["ours"] == pytest.approx(difference(released, rgsm, "channel_norms"))
    assert rows.loc["C7"]["direction"] == "increase"


def test_fair_claims_compare_with_admm_not_released(rows):
    fair = rows[rows["claim"].str.contains(" fair")]
    pairs = {"C5a": (("ResNet20", "RVSM", 0.01), ("ResNet20", "ADMM weights", None)),
             "C5b": (("ResNet20", "RGSM", 0.1), ("ResNet20", "ADMM channels", None))}
    judged = Counter()
    for row in fair.itertuples():
        treatment, reference = pairs[row.claim[:3]]
        assert row.ours == pytest.approx(difference(treatment, reference, METRICS[row.claim[-2:]])), row.claim
        assert (row.unit, row.n_seeds, row.images) == ("percentage points", 3, 1000)
        assert pandas.isna(row.reported)  # the paper makes no such comparison
        assert row.margin == rows.loc["C5b.A3", "margin"] == 1.2  # of accuracies, also where sparsities are claimed
        assert all(method in row.quantity for _, method, _ in (treatment, reference))
        assert row.statement not in set(rows.loc[["C5a", "C5b.A4"], "statement"])
        judged[row.claim] += 1
    assert judged == Counter({f"{name} fair.{code}": 1 for name in pairs for code in METRICS})


def test_every_claim_is_judged_with_its_own_effect(frame, rows, falls):
    assert [claim for claim in rows.index if " fair" not in claim] == [claim["id"] for claim in RECORD["claims"]]
    assert rows.loc["C1"]["ours"] == pytest.approx(difference(
        ("ResNet20", "dense", None), ("ResNet20", "natural", None), "near_zero"))
    assert (rows.loc["C1"]["images"], rows.loc["C10.2.A3"]["images"]) == (0, 1000)  # no image enters a share of weights
    ratios = [math.log10(made_up("En5ResNet20", "RGSM", 0.02, s, "channel_sparsity")
                         / made_up("ResNet20", "RGSM", 0.1, s, "channel_sparsity")) for s in range(3)]
    assert rows.loc["C3.ratio"]["ours"] == pytest.approx(mean(ratios))
    assert rows.loc["C3.ratio"]["reported"] == pytest.approx(math.log10(2))
    assert (rows.loc["C8"]["ours"], rows.loc["C8"]["verdict"], rows.loc["C8"]["n_seeds"]) == (100, claims.HOLDS, 3)
    falls(299, 300, 3)
    once = judged(frame).set_index("claim").loc["C8"]
    assert (once["ours"], once["verdict"]) == (pytest.approx(99.6667, abs=1e-4), claims.FAILS)
    assert rows["where"].str.startswith("01_fk_resnet, ").all()


@pytest.mark.parametrize(("ratio", "verdict"), [(2.2, claims.HOLDS), (1.8, claims.FAILS)])
def test_at_least_twice_the_share_is_held_against_twice(ratio, verdict, frame):
    values = 0.2 * (1 + 0.01 * frame["seed"]) * (frame["net"] == "ResNet20") + 0.2 * ratio * (
        frame["net"] == "En5ResNet20")
    some = frame.assign(value=frame["value"].where(frame["metric"] != "channel_sparsity", values))
    assert judged(some).set_index("claim").loc["C3.ratio", "verdict"] == verdict


def test_noise_is_compared_with_none_in_the_same_networks(frame, rows):
    """By the ratio of the changes, seed by seed and image by image."""
    row = rows.loc["C9"]
    expected = [math.log10(changes(s, 0.1).mean() / changes(s, 0).mean()) for s in range(3)]
    assert row["ours"] == pytest.approx(mean(expected), abs=1e-4)
    assert (row["n_seeds"], row["images"], row["verdict"]) == (3, 100, claims.HOLDS)
    assert row["unit"] == "log10 of the ratio" and pandas.isna(row["reported"])  # the companion's
    swap = {"stability level 0.1": "stability level 0", "stability level 0": "stability level 0.1"}
    other = judged(frame.assign(metric=frame["metric"].replace(swap))).set_index("claim").loc["C9"]
    assert (other["ours"], other["verdict"]) == (pytest.approx(-row["ours"]), claims.FAILS)
    old = frame[~frame["metric"].str.startswith("stability level")]  # of a result that kept no values of images
    old = judged(old).set_index("claim").loc["C9"]
    assert (old["verdict"], old["why"], old["n_seeds"]) == (claims.UNTESTED, estimates.NO_ANSWERS, 0)


@pytest.mark.parametrize(("clean", "why"), [(0.9, "a value is zero, of which there is no logarithm"),
                                           (0.1, "a network has collapsed (clean 10 %)")])
def test_an_output_that_does_not_move_is_not_compared(clean, why, frame):
    still = (frame["net"] == "En2ResNet20") & (frame["method"] == "dense") & (frame["seed"] == 0)
    values = frame["value"].mask(still & frame["metric"].str.startswith("stability"), 0.0)
    some = frame.assign(value=values.mask(still & (frame["metric"] == "clean"), clean))
    row = judged(some).set_index("claim").loc["C9"]
    assert (row["verdict"], row["why"]) == (claims.UNTESTED, why)


@every_scale
def test_the_noise_of_training_is_among_the_levels_of_stability(scale):
    for row in runs.experiment(scale).grid:
        if "stability" in row["measurements"]:
            assert {0, row["run"].model.noise} <= set(row["measurements"]["stability"].levels)
            assert row["run"].model.noise == comparisons.TRAINING_NOISE


def test_every_line_of_the_ledger_has_its_comparison(rows):
    lines = claims.ledger(rows, reported.load("fk_resnet"))
    assert lines["line"].tolist() == [line["id"] for line in RECORD["ledger"]]
    assert lines["claim"].tolist() == [line["primary"] for line in RECORD["ledger"]]
    assert set(lines["claim"]) <= set(rows.index)
    assert (lines["n_seeds"] == 3).all() and claims.UNTESTED not in set(lines["verdict"])


def test_a_collapsed_network_is_not_judged(frame, rows):
    fallen = ((frame["metric"] == "clean") & (frame["net"] == "En2ResNet20") & (frame["method"] == "dense")
              & (frame["seed"] == 1))
    assert fallen.sum() == 1
    found = judged(frame.assign(value=frame["value"].where(~fallen, 0.12))).set_index("claim")
    its = found.index.str.match(r"C9|C10\.2")
    assert its.sum() == 5 and (found[its]["verdict"] == claims.UNTESTED).all()
    assert (found[its]["why"] == "a network has collapsed (clean 12 %)").all()
    assert found[~its]["verdict"].equals(rows[~its]["verdict"])


def test_one_seed_is_not_tested(frame, falls):
    falls(300, 300, 1)
    found = judged(frame[frame["seed"] == 1])
    assert (found["verdict"] == claims.UNTESTED).all()
    assert (found["why"] == estimates.ONE_SEED).all() and (found["n_seeds"] == 1).all()
    assert found["ours"].notna().all() and found.set_index("claim").loc["C8", "ours"] == 100


def test_two_seeds_are_too_few(frame, falls):
    falls(300, 300, 2)
    found = judged(frame[frame["seed"] < 2])
    assert (found["verdict"] == claims.UNTESTED).all() and (found["n_seeds"] == 2).all()
    assert found["ours"].notna().all()


def test_what_was_not_run_is_said_so(frame):
    some = frame[frame["net"] == "ResNet20"]
    found = judged(some).set_index("claim")
    missing = found.loc[["C2a.1", "C4.1.A1", "C10.5.A1", "C9"]]
    assert (missing["verdict"] == claims.UNTESTED).all() and (missing["why"] == estimates.NOT_RUN).all()
    assert found.loc["C5a"]["n_seeds"] == 3


def test_steps_downhill_are_counted_over_the_seeds(monkeypatch):
    lagrangians = {0: [3.0, 2.0, 1.0], 1: [3.0, 2.0, 2.5], 2: [3.0, 1.0, 0.5]}
    monkeypatch.setattr(theorem, "path", lambda seed: pandas.DataFrame({"lagrangian": lagrangians[seed]}))
    assert REAL_FALLS.__wrapped__() == (5, 6, 3)


def test_a_path_of_the_theorem_is_told_with_its_settings():
    short = {"steps": 3, "images": 20, "lr": 0.3}
    shown = theorem.table({"usual": short | {"lr": 0.01}, "far": short}).T
    followed = theorem.path(**short)
    assert shown["usual"]["learning rate"] == "0.01" and shown["far"]["learning rate"] == "0.3"
    assert shown["far"]["Lagrangian, last"] == f"{followed['lagrangian'].iloc[-1]:.3g}"
    assert shown["far"]["longest allowed"] == f"{followed['longest_lr'].min():.3g}"
    assert shown["usual"]["steps uphill"] == "0 of 2" and shown["usual"]["Lagrangian, first"] == (
        shown["far"]["Lagrangian, first"])


def test_user_mistakes_are_one_line(refusal):
    assert "did you mean 'laptop'" in refusal(runs.experiment, "labtop")
    for seeds in ([], [0, 0], [-1], "0", [True]):
        assert "seeds should be" in refusal(runs.experiment, "quick", seeds)
