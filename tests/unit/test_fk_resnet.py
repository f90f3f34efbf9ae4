"""The first paper: what is run at each scale, and how measurements become its tables, curves and verdicts.

Expectations come from the YAML files as they stand, `data/reported/fk_resnet.yaml` and `notebooks/scales/*.yaml`.
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

from sparserobust import imagewise, paths
from sparserobust.analysis import WeightSparsity
from sparserobust.attacks import PGD, CarliniWagnerReleased
from sparserobust.config import Dense, Measurement, Model, Recipe, Sparsifier
from sparserobust.evaluation import Accuracy
from sparserobust.reporting import claims, estimates, reported, tables
from sparserobust.running import scales
from sparserobust.sparsifiers import RGSM, RVSM, FixedMask
from sparserobust.studies.fk_resnet import report as fk_resnet

RECORD = yaml.safe_load((reported.FOLDER / "fk_resnet.yaml").read_text())
PRINTED = {t["id"]: [dict(zip(t["columns"], row, strict=True)) for row in t["rows"]] for t in RECORD["tables"]}
METRICS = {"A1": "clean", "A2": "fgsm", "A3": "ifgsm20", "A4": "cw"}
HEADINGS = {"A1": "A1 clean", "A2": "A2 FGSM", "A3": "A3 I-FGSM20", "A4": "A4 C&W"}
OURS = {("unstructured", "RVSM"): ("RVSM", 0.01), ("unstructured", "ADMM"): ("released ADMM weights", None),
        ("channel", "RGSM"): ("RGSM", 0.1), ("channel", "ADMM"): ("released ADMM channels", None)}  # rows of table 4
FAIR = {"released ADMM weights": "ADMM weights", "released ADMM channels": "ADMM channels"}
SCALES = [name for name in scales.names() if scales.has(name, "fk_resnet")]
every_scale = pytest.mark.parametrize("scale", SCALES)


def settings_of(scale: str) -> dict:
    return yaml.safe_load((paths.scales_folder() / f"{scale}.yaml").read_text())["fk_resnet"]


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
    settings, experiment = settings_of(scale), fk_resnet.experiment(scale, seeds)
    assert experiment.seeds == (seeds or settings["seeds"])
    run = Counter((*key(row), row["seed"]) for row in experiment.grid)
    assert set(run.values()) == {1}
    assert len({row["run"].identity for row in experiment.grid}) == len(experiment.grid)
    assert seeds is None or {row["seed"] for row in experiment.grid} == set(seeds)
    left_out = []
    for net, method, level in {row for table in ("T1", "T2", "T3", "T4") for row in printed_rows(table)}:
        known = net in settings["nets"] and (method not in ("RVSM", "RGSM") or level in settings[method])
        missing = [seed for seed in experiment.seeds if (net, method, level, seed) not in run]
        assert missing == ([] if known else experiment.seeds), (net, method, level)
        left_out += [] if known else [(net, method, level)]
    assert scale != "paper" or left_out == []


@every_scale
def test_each_row_has_the_run_of_its_settings(scale):
    settings = settings_of(scale)
    for row in fk_resnet.experiment(scale).grid:
        net, method, level = key(row)
        run, chosen = row["run"], settings["nets"][net]
        assert (run.seed, run.model, row["ours"]) == (row["seed"], Model.parse(chosen["model"]), chosen["label"])
        assert run.data.name == settings["data"]["name"]
        assert (run.objective.kind == "natural") == (row["training"] == "natural") == (method == "natural")
        if method.endswith("fine-tuned"):
            assert (run.recipe, run.sparsifier) == (Recipe.parse(settings["fine_tuning"]), FixedMask())
            continue
        assert (run.recipe, run.start) == (Recipe.parse(settings["recipe"]), None)
        if method in ("natural", "dense"):
            assert run.sparsifier == Dense()
        elif "ADMM" in method:
            assert run.sparsifier == Sparsifier.parse(settings["ADMM"][method])
            assert (run.sparsifier.kind == "admm_released") == method.startswith("released")
            assert run.sparsifier.granularity == ("channel" if method.endswith("channels") else "weight")
        else:
            assert run.sparsifier == {"RVSM": RVSM, "RGSM": RGSM}[method](**settings[method][level])


@every_scale
def test_fine_tuned_rows_start_from_the_run_they_name(scale):
    grid = fk_resnet.experiment(scale).grid
    runs = {(*key(row), row["seed"]): row["run"] for row in grid}
    tuned = [row for row in grid if "fine-tuned" in row["method"]]
    assert {row["method"] for row in tuned} == {f"{m}, fine-tuned" for m in ("RVSM", "RGSM", *FAIR.values())}
    for row in tuned:
        pruned = row["method"].removesuffix(", fine-tuned")
        assert row["run"].start == runs[row["net"], pruned, row["level"], row["seed"]]
        assert (row["run"].data, row["run"].objective) == (row["run"].start.data, row["run"].start.objective)


@every_scale
def test_the_curve_has_all_its_points(scale):
    settings, experiment = settings_of(scale), fk_resnet.experiment(scale)
    assert experiment.settings["curve"] == settings["curve"]
    run = {(*key(row), row["seed"]) for row in experiment.grid}
    for net in {"En2ResNet20", "ResNet38"} & settings["nets"].keys():
        for level in settings["curve"]:
            assert all((net, "RGSM", level, seed) in run for seed in settings["seeds"])


def test_every_point_of_the_curve_has_the_curves_seeds():
    settings, experiment = settings_of("paper"), fk_resnet.experiment("paper")
    run = {(*key(row), row["seed"]) for row in experiment.grid}
    assert {(net, "RGSM", level, seed) for net in ("En2ResNet20", "ResNet38") for level in settings["curve"]
            for seed in settings["curve_seeds"]} <= run


@every_scale
def test_what_is_measured_on_some_rows_only(scale):
    settings, experiment = settings_of(scale), fk_resnet.experiment(scale)
    assert settings["measurements"].keys() | {"sparsity", "channel_sparsity", "remaining_parameters"} == set(
        experiment.measurements)
    rows_with = {}
    for row in experiment.grid:
        assert not row["also"].keys() & experiment.measurements.keys()
        assert all(isinstance(m, Measurement) for m in row["also"].values())
        for name in row["also"]:
            rows_with.setdefault(name, []).append((*key(row), row["seed"]))
    first = experiment.seeds[0]
    run = {(*key(row), row["seed"]) for row in experiment.grid}
    in_pair = {("ResNet20", "natural"), ("ResNet20", "dense")}
    assert set(rows_with["near_zero"]) == {row for row in run if row[:2] in in_pair}  # figure 1: all seeds
    assert set(rows_with["stability"]) == {row for row in run if row[:2] == ("En2ResNet20", "dense")}
    ensemble = "En5ResNet20" if "En5ResNet20" in settings["nets"] else "En2ResNet20"
    assert set(rows_with["layer"]) == {(net, "dense", None, first) for net in ("ResNet20", ensemble)}
    in_figure_5 = [("RVSM", 0.01), ("RGSM", 0.1), ("released ADMM channels", None), ("ADMM channels", None)]
    assert set(rows_with["channel_norms"]) == {row for row in run if row[0] == "ResNet20" and row[1:3] in in_figure_5}
    assert set(rows_with.get("health", [])) == {row for row in run if row[1] != "natural" and row[3] == first
                                                and "health" in settings}
    strongest = {"ResNet20": 0.1, "En2ResNet20": 0.1, "En5ResNet20": 0.02, "ResNet38": 0.1}
    expected = {(net, method, level, first) for net, highest in strongest.items()
                if net in settings.get("stronger_nets", settings["nets"])
                for method, level in (("dense", None), ("RGSM", highest))}
    assert set(rows_with["pgd20_eot20"]) == expected
    assert set(rows_with["autoattack"]) == {row for row in expected
                                            if row[1] in settings["autoattack_rows"].get(row[0], [])}
    assert expected <= set(rows_with["deployable"]) == set(rows_with["deployable_batch"])


@pytest.fixture
def own_scale(tmp_path, monkeypatch):
    """Write a scale of one's own, like quick but for some settings, and get its grid."""
    def own_scale(**changes):
        settings = settings_of("quick") | changes
        monkeypatch.setattr("sparserobust.running.scales.scales_folder", lambda: tmp_path)
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"fk_resnet": settings}))
        return {key(row) for row in fk_resnet.experiment("mine", [0]).grid}

    return own_scale


def test_rows_of_nets_and_penalties_that_a_scale_does_not_have_are_left_out(own_scale):
    settings = settings_of("quick")
    two = {net: settings["nets"][net] for net in ("ResNet20", "En2ResNet20")}
    rows = own_scale(nets=two, RGSM={0.1: settings["RGSM"][0.1]})
    assert {net for net, _, _ in rows} == set(two)
    assert {(net, level) for net, method, level in rows if method == "RGSM"} == {(net, 0.1) for net in two}
    assert ("ResNet20", "RVSM", 0.5) in rows


def test_fine_tuned_rows_are_left_out_with_what_they_start_from(own_scale):
    """As the laptop scale once had it, without RVSM."""
    assert not any("RVSM" in method for _, method, _ in own_scale(RVSM={}))


def test_the_paper_scale_is_the_papers():
    experiment = fk_resnet.experiment("paper", [0])
    for row in experiment.grid:
        net, method, level = key(row)
        run = row["run"]
        assert run.model.members == int(net[2]) if net.startswith("En") else run.model.noise == 0
        if "fine-tuned" in method:
            continue
        assert run.recipe.epochs == 200 and run.recipe.milestones == (80, 120, 160) and run.recipe.lr == 0.1
        if method == "RVSM":
            assert (run.sparsifier.beta, run.sparsifier.lam) == (level, 1e-6)
        if method == "RGSM":
            assert (run.sparsifier.beta, run.sparsifier.lambda1, run.sparsifier.lambda2) == (1.0, level, 1e-5)
        if "ADMM" in method:
            assert run.sparsifier.rho == 1e-2


def test_overview_names_every_run_once():
    experiment = fk_resnet.experiment("quick", [0, 4])
    shown = fk_resnet.overview(experiment.grid)
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


UNSAMPLED = (*fk_resnet.EXACT, "near_zero", "channel_norms")


def frame_of(grid: list[dict], *names: str) -> pandas.DataFrame:
    """As `sweep` gives it, without a run being trained."""
    rows = []
    for row in grid:
        labels = {k: v for k, v in row.items() if k != "also"} | {
            "run": row["run"].identity, "where": "store", "processor": "P", "chance": 0.1}
        for metric in (*names, *({"near_zero", "channel_norms"} & row["also"].keys())):
            measured = *key(row), row["seed"], metric
            sampled, count = metric not in UNSAMPLED, made_up(*measured)
            rows.append(labels | {"metric": metric, "value": count / 1000, "count": count, "total": 1000,
                                  "sampled": sampled, "each": imagewise.pack(answers(*measured)) if sampled else None})
        if "stability" in row["also"]:
            rows.append(labels | {"metric": "stability", "value": 0.7, "sampled": True, "each": None})
            for level in row["also"]["stability"].levels:
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
    return fk_resnet.experiment("quick", [0, 1, 2])


@pytest.fixture(scope="module")
def frame(experiment):
    return frame_of(experiment.grid, *ALL)


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
def test_tables_1_to_3(table, heading, metric, frame):
    shown, rows = fk_resnet.table(frame, table), printed_rows(table)
    for code, name in METRICS.items():
        assert shown[HEADINGS[code], "reported"].tolist() == [as_printed(row[code]) for row in PRINTED[table]]
        assert shown[HEADINGS[code], "ours"].tolist() == [cell(row, name) for row in rows]
    assert shown[heading, "reported"].tolist() == [as_printed(row[metric]) for row in PRINTED[table]]
    assert shown[heading, "ours"].tolist() == [cell(row, metric) for row in rows]
    assert shown["PGD-20, few draws", "ours"].tolist() == [cell(row, "pgd20_eot") for row in rows]
    assert ("PGD-20, few draws", "reported") not in shown


def test_table_4(frame):
    """The four printed rows, and below them what the paper does not have: no number of its stands there."""
    shown = fk_resnet.table(frame, "T4")
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
def test_one_seed_and_missing_rows(table, frame, refusal):
    some = frame[(frame["seed"] == 1) & ~frame["method"].isin(["RVSM", "released ADMM weights"])]
    shown = fk_resnet.table(some, table)
    for label, line in shown.iterrows():
        missing = "beta" in label or label in ("unstructured: RVSM", "unstructured: released ADMM weights")
        assert ("[" in line["A1 clean", "ours"]) != missing
        assert not missing or line["A1 clean", "ours"] == line["", "ours is"] == ""
        sparsities = [line[c] for c in shown if c[1] == "ours" and ("sparsity" in c[0] or c[0] == "removed")]
        assert all("[" not in shown and bool(shown) != missing for shown in sparsities)  # exact: no sample of images
    assert "T1, T2, T3, T4" in refusal(fk_resnet.table, frame, "T5")


def test_a_measurement_without_a_count_does_not_hinder_the_tables(frame):
    """Stability, of unpruned En2ResNet20, has none."""
    stability = frame["metric"].str.startswith("stability")
    assert stability.any() and frame[stability]["count"].isna().all()
    for table in ("T1", "T2", "T3"):
        pandas.testing.assert_frame_equal(fk_resnet.table(frame, table), fk_resnet.table(frame[~stability], table))


def test_a_table_has_all_rates_of_the_same_images(frame):
    """If one attack was tried on 200 images, its line and the others are of those; shares of weights stay whole."""
    few = (frame["metric"] == "cw") & (frame["net"] == "ResNet20")
    fewer = frame.assign(each=[imagewise.pack(imagewise.unpack(each)[:200] == 1) if cut else each
                               for each, cut in zip(frame["each"], few, strict=True)])
    shown, rows = fk_resnet.table(fewer, "T1"), printed_rows("T1")
    for code, name in METRICS.items():
        for line, row in zip(shown[HEADINGS[code], "ours"], rows, strict=True):
            rates = [100 * answers(*row, seed, name)[:200].mean() for seed in range(3)]
            assert line == f"{mean(rates):.1f} ± {stdev(rates):.1f}"
    assert shown["sparsity", "ours"].tolist() == [cell(row, "sparsity") for row in rows]


def test_captions_say_scale_and_the_papers_inconsistencies(experiment):
    assert "75.87" in fk_resnet.caption(experiment, "T2") and "quick" in fk_resnet.caption(experiment, "T2")
    assert "10.89" in fk_resnet.caption(experiment, "T4") and "ADMM" in fk_resnet.caption(experiment, "T4")
    assert "3 seeds" in fk_resnet.caption(experiment, "T1")
    assert "one seed" in fk_resnet.caption(fk_resnet.experiment("quick", [0]), "T1")


def test_reported_points_of_the_curves(experiment):
    points = fk_resnet.curve_reported(experiment)
    labels = {"En2ResNet20": "En2ResNet8", "ResNet38": "ResNet14"}  # what stands for them at this scale
    expected = [{"net": row["net"], "ours": labels[row["net"]], "level": row["lambda1"],
                 "channel_sparsity": row["channel_sparsity"]} | {m: row[a] for a, m in METRICS.items()}
                for row in PRINTED["T3"] if row["lambda1"] is not None]
    assert len(expected) == 4
    assert points[list(expected[0])].to_dict("records") == expected


def test_stronger_attacks_of_one_seed():
    grid = [row for row in fk_resnet.experiment("quick", [0]).grid if "pgd20_eot20" in row["also"]]
    other_seed = [row | {"seed": 1, "run": replace(row["run"], seed=1)} for row in grid]
    frame = frame_of(grid + other_seed, "clean", "cw_l2", "pgd20_eot20", "remaining_parameters", "deployable")
    shown = fk_resnet.stronger(frame, 0)
    assert sorted(shown.index) == sorted([row["ours"] + (f", lambda1 {row['level']}" if row["level"] else "")
                                          for row in grid])
    line = shown.loc["ResNet8, lambda1 0.1"]
    row = ("ResNet20", "RGSM", 0.1, 0)
    assert line["parameters left"] == f"{made_up(*row, 'remaining_parameters'):,}"
    assert line["MACs left"] == f"{made_up(*row, 'deployable'):,}"
    for heading, metric in (("A1 clean", "clean"), ("C&W, l2", "cw_l2"), ("PGD-20, 20 draws", "pgd20_eot20")):
        assert line[heading].startswith(f"{made_up(*row, metric) / 10:.1f} [")
    assert "AutoAttack" not in shown


def test_conditions_name_radius_draws_and_images():
    measurements = {"one": Accuracy(attack=PGD(epsilon=0.15, step_size=0.1, steps=2, eot_draws=7), images=30),
                    "two": Accuracy(attack=CarliniWagnerReleased()), "clean": Accuracy(), "count": WeightSparsity()}
    told = tables.conditions(measurements, {"A": "one", "B": "two", "C": "clean", "D": "count", "E": "absent"})
    assert told.startswith("Attacks: A (radius 0.15, 7 draws, up to 30 images); B (up to all images). Pixels")


def test_deployable_sizes_before_and_after():
    sizes = {"parameters": 272_282, "parameters_left": 100_000, "bytes": 1_100_000, "bytes_left": 400_400,
             "macs": 40_813_184, "macs_left": 20_000_000, "latency_ms": 2.0, "latency_ms_left": 1.234,
             "largest_difference": 3e-7}
    batch = sizes | {"latency_ms": 90.0, "latency_ms_left": 60.55}
    also = {"deployable": "one", "deployable_batch": "many"}
    store = SimpleNamespace(measure=lambda run, wanted: {"one": sizes, "many": batch}[wanted])
    rows = [{"ours": "net", "method": method, "level": level, "run": None, "also": also}
            for method, level in (("RGSM", 0.1), ("ADMM channels", None))]
    shown = fk_resnet.deployable(rows, store)
    assert sorted(shown["method"]) == ["ADMM channels", "RGSM, lambda1 0.1"]
    for line in shown.to_dict("records"):
        cells = {heading.split(" ")[0]: cell for heading, cell in line.items() if "latency" not in heading}
        assert cells == {"net": "net", "method": line["method"], "parameters": "272.3 → 100.0", "file": "1,100 → 400",
                         "MACs": "40,813 → 20,000", "largest": "3e-07"}
        assert [cell for heading, cell in line.items() if "latency" in heading] == ["2.00 → 1.23", "90.0 → 60.5"]


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
        rows = fk_resnet.judged(cells[cells["table"] == table], (1, 1, 1))
        rows = rows[rows["claim"].str.split("[. ]", regex=True).str[0] == name]
        fair = rows["claim"].str.contains(" fair")
        assert (rows[fair]["why"] == estimates.NOT_RUN).all()  # no ADMM but the released one is on record
        assert len(rows[~fair]) and (rows[~fair]["n_seeds"] == 1).all()
        assert (rows["verdict"] == claims.UNTESTED).all()
        for row in rows[~fair].itertuples():
            expected = math.log10(53.36 / 25.33) if row.claim == "C3.ratio" else row.reported
            assert row.ours == pytest.approx(expected, abs=0.006), row.claim


FALLS = (300, 300, 3)  # steps downhill, steps, seeds


@pytest.fixture(scope="module")
def rows(frame):
    return fk_resnet.judged(frame, FALLS).set_index("claim", drop=False)


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


def test_every_claim_is_judged_with_its_own_effect(frame, rows):
    assert [claim for claim in rows.index if " fair" not in claim] == [claim["id"] for claim in RECORD["claims"]]
    assert rows.loc["C1"]["ours"] == pytest.approx(difference(
        ("ResNet20", "dense", None), ("ResNet20", "natural", None), "near_zero"))
    assert (rows.loc["C1"]["images"], rows.loc["C10.2.A3"]["images"]) == (0, 1000)  # no image enters a share of weights
    ratios = [math.log10(made_up("En5ResNet20", "RGSM", 0.02, s, "channel_sparsity")
                         / made_up("ResNet20", "RGSM", 0.1, s, "channel_sparsity")) for s in range(3)]
    assert rows.loc["C3.ratio"]["ours"] == pytest.approx(mean(ratios))
    assert rows.loc["C3.ratio"]["reported"] == pytest.approx(math.log10(2))
    assert (rows.loc["C8"]["ours"], rows.loc["C8"]["verdict"], rows.loc["C8"]["n_seeds"]) == (100, claims.HOLDS, 3)
    once = fk_resnet.judged(frame, (299, 300, 3)).set_index("claim").loc["C8"]
    assert (once["ours"], once["verdict"]) == (pytest.approx(99.6667, abs=1e-4), claims.FAILS)
    assert rows["where"].str.startswith("01_fk_resnet, ").all()


@pytest.mark.parametrize(("ratio", "verdict"), [(2.2, claims.HOLDS), (1.8, claims.FAILS)])
def test_at_least_twice_the_share_is_held_against_twice(ratio, verdict, frame):
    values = 0.2 * (1 + 0.01 * frame["seed"]) * (frame["net"] == "ResNet20") + 0.2 * ratio * (
        frame["net"] == "En5ResNet20")
    some = frame.assign(value=frame["value"].where(frame["metric"] != "channel_sparsity", values))
    assert fk_resnet.judged(some, FALLS).set_index("claim").loc["C3.ratio", "verdict"] == verdict


def test_noise_is_compared_with_none_in_the_same_networks(frame, rows):
    """By the ratio of the changes, seed by seed and image by image."""
    row = rows.loc["C9"]
    expected = [math.log10(changes(s, 0.1).mean() / changes(s, 0).mean()) for s in range(3)]
    assert row["ours"] == pytest.approx(mean(expected), abs=1e-4)
    assert (row["n_seeds"], row["images"], row["verdict"]) == (3, 100, claims.HOLDS)
    assert row["unit"] == "log10 of the ratio" and pandas.isna(row["reported"])  # the companion's
    swap = {"stability level 0.1": "stability level 0", "stability level 0": "stability level 0.1"}
    other = fk_resnet.judged(frame.assign(metric=frame["metric"].replace(swap)), FALLS).set_index("claim").loc["C9"]
    assert (other["ours"], other["verdict"]) == (pytest.approx(-row["ours"]), claims.FAILS)
    old = frame[~frame["metric"].str.startswith("stability level")]  # of a result that kept no values of images
    old = fk_resnet.judged(old, FALLS).set_index("claim").loc["C9"]
    assert (old["verdict"], old["why"], old["n_seeds"]) == (claims.UNTESTED, estimates.NO_ANSWERS, 0)


@pytest.mark.parametrize(("clean", "why"), [(0.9, "a value is zero, of which there is no logarithm"),
                                           (0.1, "a network has collapsed (clean 10 %)")])
def test_an_output_that_does_not_move_is_not_compared(clean, why, frame):
    still = (frame["net"] == "En2ResNet20") & (frame["method"] == "dense") & (frame["seed"] == 0)
    values = frame["value"].mask(still & frame["metric"].str.startswith("stability"), 0.0)
    some = frame.assign(value=values.mask(still & (frame["metric"] == "clean"), clean))
    row = fk_resnet.judged(some, FALLS).set_index("claim").loc["C9"]
    assert (row["verdict"], row["why"]) == (claims.UNTESTED, why)


@every_scale
def test_the_noise_of_training_is_among_the_levels_of_stability(scale):
    for row in fk_resnet.experiment(scale).grid:
        if "stability" in row["also"]:
            assert {0, row["run"].model.noise} <= set(row["also"]["stability"].levels)
            assert row["run"].model.noise == fk_resnet.TRAINING_NOISE


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
    found = fk_resnet.judged(frame.assign(value=frame["value"].where(~fallen, 0.12)), FALLS).set_index("claim")
    its = found.index.str.match(r"C9|C10\.2")
    assert its.sum() == 5 and (found[its]["verdict"] == claims.UNTESTED).all()
    assert (found[its]["why"] == "a network has collapsed (clean 12 %)").all()
    assert found[~its]["verdict"].equals(rows[~its]["verdict"])


def test_one_seed_is_not_tested(frame):
    found = fk_resnet.judged(frame[frame["seed"] == 1], (300, 300, 1))
    assert (found["verdict"] == claims.UNTESTED).all()
    assert (found["why"] == estimates.ONE_SEED).all() and (found["n_seeds"] == 1).all()
    assert found["ours"].notna().all() and found.set_index("claim").loc["C8", "ours"] == 100


def test_two_seeds_are_too_few(frame):
    found = fk_resnet.judged(frame[frame["seed"] < 2], (300, 300, 2))
    assert (found["verdict"] == claims.UNTESTED).all() and (found["n_seeds"] == 2).all()
    assert found["ours"].notna().all()


def test_what_was_not_run_is_said_so(frame):
    some = frame[frame["net"] == "ResNet20"]
    found = fk_resnet.judged(some, FALLS).set_index("claim")
    missing = found.loc[["C2a.1", "C4.1.A1", "C10.5.A1", "C9"]]
    assert (missing["verdict"] == claims.UNTESTED).all() and (missing["why"] == estimates.NOT_RUN).all()
    assert found.loc["C5a"]["n_seeds"] == 3


def test_user_mistakes_are_one_line(refusal):
    assert "did you mean 'laptop'" in refusal(fk_resnet.experiment, "labtop")
    for seeds in ([], [0, 0], [-1], "0", [True]):
        assert "seeds should be" in refusal(fk_resnet.experiment, "quick", seeds)
