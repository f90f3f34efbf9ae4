"""Lipschitz Constant Meets Condition Number: its runs, its tables, its slopes, its verdicts."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch

from sparserobust import imagewise, seeding
from sparserobust.config import Dense
from sparserobust.errors import UserError
from sparserobust.models import gates
from sparserobust.objectives import TRADES
from sparserobust.reporting import claims, estimates, plots, reported, tables
from sparserobust.running import scales
from sparserobust.running.experiment import Results
from sparserobust.sparsifiers import TSCNC, FixedMask, LearnedScores, Magnitude
from sparserobust.studies import tscnc
from sparserobust.studies.tscnc import comparisons, report, runs, slopes, toy

NET = "WRN-28-10"
CONSTRAINED = {"+TSC": (True, False), "+CNC": (False, True), "TSCNC": (True, True)}


@pytest.fixture(scope="module")
def quick():
    return runs.experiment("quick")


@pytest.fixture(scope="module", params=[name for name in scales.names() if scales.has(name, "tscnc")])
def any_scale(request):
    return runs.experiment(request.param)


# --------------------------------------------------------------------------------------------------- the runs


def test_dense_networks_differ_in_constraints_and_gates_alone(any_scale):
    for net in any_scale.nets:
        rows = {row["method"]: row["run"] for row in any_scale.rows(net=net, part="dense", seed=any_scale.seeds[0])}
        plain = rows["TRADES"]
        assert plain.objective.kind == "trades" and plain.objective.beta == 6 and plain.recipe.averaging > 0
        assert plain.sparsifier == Dense() and not plain.model.gated and plain.start is None
        for method, (sparse, condition) in CONSTRAINED.items():
            run = rows[method]
            assert run.model == replace(plain.model, gated=sparse)
            # decay has moved from the optimiser into the loss, and is what it was
            assert run.recipe == replace(plain.recipe, weight_decay=0)
            assert run.sparsifier.weight_decay == plain.recipe.weight_decay > 0
            assert (run.sparsifier.sparse > 0, run.sparsifier.condition > 0) == (sparse, condition)
            assert (run.sparsifier.sign, run.sparsifier.form, run.sparsifier.layers) == (
                "literature", "scale_invariant", "linear")
            assert run == replace(plain, model=run.model, recipe=run.recipe, sparsifier=run.sparsifier)
        alone = any_scale.row(net=net, method="gates alone", level=0.0)
        assert alone["run"] == replace(plain, model=replace(plain.model, gated=True))


def test_decay_moves_into_the_loss_whatever_it_is(quick):
    own = quick.settings
    run = runs.pretraining(replace(own, recipe=replace(own.recipe, weight_decay=0.003)), 0, "TSCNC")
    assert run.recipe.weight_decay == 0 and run.sparsifier.weight_decay == 0.003


def test_all_ways_to_prune_get_the_epochs_of_the_control(any_scale):
    for net in any_scale.nets:
        control = any_scale.row(net=net, part="control")["run"]
        assert control.sparsifier == Dense() and control.recipe.averaging == 0
        for row in any_scale.rows(net=net, part="pruned", seed=any_scale.seeds[0]):
            dense, cut, tuned = row["run"].lineage
            assert cut.recipe.epochs + tuned.recipe.epochs == control.recipe.epochs
            assert tuned == replace(control, model=dense.model, start=cut, sparsifier=FixedMask(), recipe=tuned.recipe)
            assert tuned.recipe == replace(control.recipe, epochs=tuned.recipe.epochs)
            least = Magnitude(sparsity=row["level"], scope="layerwise")
            assert cut.sparsifier == (least if row["method"] == "LWM" else LearnedScores(sparsity=row["level"]))
            method = {"LWM": "TRADES", "HYDRA": "TRADES"}.get(row["method"], row["method"])
            assert dense == any_scale.row(net=net, part="dense", method=method)["run"]


def test_each_variation_varies_what_it_names(any_scale):
    for net in any_scale.nets:
        for row in any_scale.rows(net=net, part="varied"):
            variation, dense = any_scale.settings_for(net).varied[row["method"]], row["run"].lineage[0]
            if variation.of != "gates alone":
                main = any_scale.row(net=net, part="dense", method=variation.of, seed=row["seed"])["run"]
                assert dense == replace(main, sparsifier=replace(main.sparsifier, **variation.changes))
            if row["level"]:
                assert row["run"].start.sparsifier == LearnedScores(sparsity=row["level"])
                assert row["run"].sparsifier == FixedMask() and row["run"].start.start == dense


@pytest.mark.parametrize("wrong, said", [
    ({"of": "+TSCC", "levels": []}, "not '+TSCC'"),
    ({"of": "+CNC", "levels": [], "changes": {"forn": "size"}}, "did you mean 'form'?"),
    ({"of": "gates alone", "levels": [], "changes": {"form": "size"}}, "no constraints to change")])
def test_a_variation_that_cannot_be_is_refused(wrong, said, refusal):
    assert said in refusal(runs.Variation.parse, wrong)


def test_the_level_of_the_ledger_is_one_that_is_run(any_scale):
    own = any_scale.settings
    assert own.primary_level >= report.HEAVY
    assert tscnc.words(any_scale) == {"net": own.stand_in, "level": f"{100 * own.primary_level:g} %"}
    with pytest.raises(UserError, match="primary_level is one of the levels"):
        replace(own, primary_level=0.42)


def test_the_paper_scale_is_the_released_code():
    """Dossier, sections 3 and 6."""
    experiment = runs.experiment("full")
    assert list(experiment.nets)[:2] == ["WRN-28-10", "VGG-16"] and runs.experiment("paper").nets == ["VGG-16"]
    for net in experiment.nets:
        run = experiment.row(net=net, part="dense", method="TSCNC")["run"]
        assert run.objective == TRADES(epsilon=8 / 255, step_size=0.0069, steps=10, beta=6)
        recipe = run.recipe
        assert (recipe.epochs, recipe.lr, recipe.batch_size, recipe.momentum) == (200, 0.1, 128, 0.9)
        assert (recipe.milestones, recipe.drop, recipe.averaging) == ((60, 120, 160), 0.2, 0.99)
        assert run.data.name == ("cifar100" if "100" in net else "cifar10")
        assert run.sparsifier == TSCNC(drop_rate=0 if "VGG" in net else 0.3)  # defaults are the released numbers
        assert (run.sparsifier.a, run.sparsifier.l0, run.sparsifier.images) == (100, 1e-3, 50_000)


def test_what_is_judged_is_measured(any_scale):
    """Every comparison of the ledger finds its metric, or that of which it is a part, on both sides."""
    for contrast in comparisons.contrasts(any_scale):
        for side in filter(None, (contrast.treatment, contrast.reference)):
            (row,) = any_scale.rows(**side, seed=any_scale.seeds[0])
            assert contrast.metric.split(" ")[0] in row["measurements"]


def test_overview_has_a_line_for_each_net_part_method_and_epochs(any_scale):
    lines = report.overview(any_scale)
    epochs = [sum(run.recipe.trained_epochs for run in row["run"].lineage) for row in any_scale.grid]
    keys = [(row["net"], row["part"], row["method"]) for row in any_scale.grid]
    assert len(lines) == len(set(zip(keys, epochs, strict=True)))
    assert set(lines["epochs"]) == set(epochs)  # what is varied: dense ones apart from those that are fine-tuned


# -------------------------------------------------------------------------------------------------- the frame


IMAGES = np.linspace(-0.3, 0.3, 20)  # what each image has more than the mean, whatever the network


def made(experiment, value) -> pandas.DataFrame:
    """A frame as `sweep` makes it, of what `value(row, metric)` says; images follow the mean to about a
    ten-thousandth."""
    rows = []
    for row in experiment.grid:
        metrics = ["sparsity"] if row["part"] == "not fine-tuned" else [
            "sparsity", "clean", "pgd20", *MATRICES, *(["pgd50"] if "pgd50" in row["measurements"] else [])]
        for metric in metrics:
            labels = {k: row[k] for k in ("net", "ours", "part", "method", "level", "seed")}
            number = row["level"] if metric == "sparsity" else value(row, metric.replace("50", "20"))
            sampled = metric in ("clean", "pgd20", "pgd50") and number is not None
            rate = sampled or (metric == "sparsity" and number is not None)
            rows.append(labels | {"run": row["run"].identity, "metric": metric, "value": number,
                                  "count": 1000 * number if rate else None, "total": 1000 if rate else None,
                                  "chance": 0.1, "sampled": sampled or metric == "lipschitz",
                                  "each": imagewise.pack(number + IMAGES) if sampled else None,
                                  "where": "store", "processor": "P"})
    return pandas.DataFrame(rows)


MATRICES = ["lipschitz", "lipschitz relative", "kappa", "kappa classifier", "kappa over_null", "kappa null",
            "kappa classifier_over_null", "kappa null_classifier", "kappa zero", "kappa null_zero", "kappa log_norms",
            "kappa log_relative_norms", "kappa log_relative_norms_over", "kappa null_log_norms",
            "kappa null_log_relative_norms", "kappa effective_rank", *(
                f"kappa {name}{over}" for name in ("folded", "folded_floored", "folded_deficit", "classifier_folded",
                                                   "classifier_folded_floored", "classifier_folded_deficit")
                for over in ("", "_over_null"))]
ADDS = {"LWM": -0.02, "HYDRA": 0.0, "+TSC": 0.01, "+CNC": 0.03, "TSCNC": 0.05, "gates alone": 0.02, "TRADES": 0.0,
        "TRADES, trained on": 0.1, "CNC, all layers": -0.07, "TSC, decay alone": 0.015, "TSCNC, as released": -0.03}


def plausible(row, metric):
    """Effects that are known exactly, but for what seeds scatter."""
    level, add = row["level"], ADDS.get(row["method"], 0.0)
    scatter = 0.001 * (row["seed"] % 3) * (1 + level)
    add *= 1 + 1e-4 * (row["seed"] % 3 - 1)
    index, other = (int(row["run"].identity[i:i + 4], 16) / 65536 for i in (0, 4))  # any numbers, for each run its own
    return {"clean": 0.85 - 0.4 * level + add + scatter, "pgd20": 0.6 - 0.4 * level + add + scatter,
            "lipschitz": 10 * (1 + index), "kappa": 2 * 10 ** (0.5 * level + 0.01 * scatter + 0.1 * index),
            "kappa classifier": 1.5 * 10 ** (level - add), "kappa over_null": 2 * 10 ** (0.2 * level + scatter),
            "kappa classifier_over_null": 10 ** (0.3 * level + scatter), "kappa log_norms": 4 - 2 * level + 0.1 * other,
            "kappa log_relative_norms": 1 + level + 0.1 * index, "kappa log_relative_norms_over": 0.7 * level + scatter,
            "kappa effective_rank": 0.9 - 0.3 * level + 0.01 * index,
            "kappa folded": 2 * 10 ** (0.6 * level - 2 * add + 0.01 * scatter),
            "kappa folded_over_null": 10 ** (0.25 * level + scatter),
            "kappa folded_floored": 2 * 10 ** (0.4 * level - add + scatter),
            "kappa folded_deficit": 0.1 + 0.3 * level - add + scatter,
            "kappa folded_deficit_over_null": 0.2 * level + scatter,
            "kappa classifier_folded": 2 * 10 ** (0.8 * level - 3 * add + scatter)}.get(metric, 2.0)


@pytest.fixture(scope="module")
def frame(quick):
    return made(quick, plausible)


def results_of(experiment, frame, robust=lambda row: plausible(row, "pgd20")) -> Results:
    """With a store that knows of every run what `robust(row)` says of the validation split."""
    known = {row["run"].identity: robust(row) for row in experiment.grid if row["part"] == "pruned"}

    def record(run):
        return {"history": [{"validation_robust": -2}, {"validation_robust": known[run.identity],
                                                        "validation_clean": -1}]}

    store = SimpleNamespace(record=record)  # as much of a store as is needed
    return Results(experiment, store, frame)  # type: ignore[arg-type]


def test_series_begin_with_the_network_that_was_pruned(frame):
    lines = report.series(frame, "pgd20", NET)
    assert list(lines["series"].unique()) == list(runs.METHODS)
    assert (lines["left"] == 100 * (1 - lines["level"])).all()
    for method, rows in lines.groupby("series"):
        dense = set(rows.loc[rows["level"] == 0, "method"])
        assert dense == {{"LWM": "TRADES", "HYDRA": "TRADES"}.get(method, method)}
        assert set(rows["level"]) == {0, 0.5, 0.9, 0.95, 0.98} and set(rows["part"]) == {"dense", "pruned"}
        assert len(rows) == 15  # three seeds


def test_what_a_reader_appends_enters_table_and_figures(quick):
    start, like = (quick.row(method="TSCNC", part=part) for part in ("dense", "pruned"))
    _, tuned = runs.pruned(quick.settings, start["run"], level=0.97)
    more = replace(quick, grid=[*quick.grid, like | {"level": 0.97, "run": tuned},
                                like | {"method": "mine", "run": replace(tuned, seed=99)}])
    frame = made(more, plausible)
    assert {"TSCNC, 97 % removed", "mine, 50 % removed"} <= set(report.accuracies(report.main(frame)).index)
    assert {"TSCNC, 97 % removed", "mine, 50 % removed"} <= set(
        report.matrices(report.main(frame), report.SIZES).index)
    for curves in (report.accuracy_curves(frame, NET), report.matrix_curves(frame, NET)):
        assert 0.97 in set(curves.loc[curves["series"] == "TSCNC", "level"]) and "mine" in set(curves["series"])


def test_curves_can_be_drawn(frame):
    accuracy = report.accuracy_curves(frame, NET)
    assert list(accuracy["col"].unique()) == ["clean", "PGD-20"] and set(accuracy["factor"]) == {100}
    beside = plots.side_by_side(accuracy)
    assert (beside["left"] / (100 * (1 - accuracy["level"])) - 1).abs().max() < 0.09
    assert beside.groupby(["series", "level"])["left"].nunique().max() == 1
    assert beside.groupby("level")["left"].nunique().min() == len(runs.METHODS)
    assert len(plots.along_sparsity(beside).axes) == 2
    curves = report.matrix_curves(frame, NET)
    assert list(curves["col"].unique()) == list(report.CURVES)
    for heading, (metric, factor, of_null) in report.CURVES.items():
        panel = curves[curves["col"] == heading]
        assert set(panel["series"]) == {*runs.METHODS, *(["null"] if of_null else [])}
        drawn = panel[panel["series"] == "null"]
        assert set(drawn["metric"]) == ({of_null} if of_null else set()) and set(panel["factor"]) == {factor}
        assert set(drawn["method"]) == ({"HYDRA", "TRADES"} if of_null else set())
        assert set(panel.loc[panel["series"] == "LWM", "metric"]) == {metric}


def test_the_table_of_methods_has_a_line_for_each_method_and_level(frame):
    main = report.main(frame)
    rates, matrices = report.accuracies(main), report.matrices(main, report.SIZES)
    assert list(rates.index) == list(matrices.index) and len(rates) == 4 + 1 + 5 * 4  # dense, control, pruned
    assert rates.index[0].endswith("0 % removed") and rates.index[-1].endswith("98 % removed")
    line = "HYDRA, 90 % removed"
    assert rates.loc[line].to_dict() == {"clean": "49.2 ± 0.2", "PGD-20": "24.2 ± 0.2", "PGD-50": "24.2 ± 0.2"}
    assert matrices.loc[line, "log10 of norms"].startswith("2.") and list(matrices.columns) == list(report.SIZES)
    several = pandas.concat([main, main.assign(ours="VGG-16", run=main["run"] + "v")])
    assert {f"narrow WRN-10-1, {line}", f"VGG-16, {line}"} <= set(report.accuracies(several).index)


def test_a_network_without_a_condition_number_does_not_count(quick):
    def value(row, metric):
        gone = metric == "kappa" and row["level"] == 0.98 and row["seed"] > 0
        return None if gone else plausible(row, metric)

    shown = report.matrices(report.main(made(quick, value)), report.CONDITIONS)["convolutions"]
    assert "±" not in shown["HYDRA, 98 % removed"] and "±" in shown["HYDRA, 95 % removed"]


def test_forms_stand_beside_the_methods_of_the_first_seed(frame):
    rows = report.forms(frame)
    assert set(rows["seed"]) == {0} and set(rows["level"]) == {0.0, 0.9}  # where stronger attacks were used
    assert {"TSCNC", "TSC, released sign", "TRADES"} <= set(rows["method"])
    assert not {"LWM", "TRADES, trained on"} & set(rows["method"])
    table = report.forms_table(frame)
    assert list(table) == ["clean", "PGD-20", *report.FORMS] and "TSCNC, a 10, 90 % removed" in table.index


def test_pairs_compare_with_the_same_pipeline(quick, frame):
    pairs = comparisons.pairs(quick, NET, 0.9)
    effects = tables.effects(frame, pairs, {"PGD-20": "pgd20"})["PGD-20"]
    assert effects.str.split().str[0].to_dict() == {
        "HYDRA - TRADES": "-35.9", "HYDRA - TRADES, trained on": "-45.9", "HYDRA - LWM": "+2.0", "+TSC - HYDRA": "+1.0",
        "+CNC - HYDRA": "+3.0", "TSCNC - HYDRA": "+5.0", "TSCNC - gates alone": "+3.0",
        "TSCNC - TSC, decay alone": "+3.5", "CNC, all layers - HYDRA": "-7.0", "TSCNC, as released - HYDRA": "-3.0"}
    varied = set(pairs) - set(comparisons.pairs(quick, NET, 0.5))
    assert varied == {"TSCNC - gates alone", "TSCNC - TSC, decay alone", "CNC, all layers - HYDRA",
                      "TSCNC, as released - HYDRA"}


def test_growth_is_that_of_the_ledger_and_of_the_null(quick):
    """From the dense network to what HYDRA leaves of it, at the level of the claims, over seeds in the geometric mean;
    as claim C2 is judged."""
    metrics = {"kappa folded": (2.0, 1.0), "kappa": (2.0, 6.0), "kappa null": (4.0, 5.0)}

    def value(row, metric):
        before, after = metrics.get(metric, (1.0, 1.0))
        if row["method"] not in ("TRADES", "HYDRA") or row["level"] not in (0.0, 0.9):
            return 0.5
        return before if not row["level"] else after * (1, 2, 4)[row["seed"]]

    results = results_of(quick, made(quick, value))
    growth = comparisons.growth(results, NET)
    assert growth == pytest.approx({"folded": 1.0, "as they act": 6.0, "null": 2.5})
    lines = tscnc.judged(results).set_index("claim")
    assert lines.loc["C2 narrow WRN-10-1, 90 %, convolutions", "ours"] == pytest.approx(0, abs=1e-9)
    assert comparisons.growth_in_words(results, NET) == (
        "The condition number of convolutions, HYDRA, 90 % removed: 1.00 times folded, 6.00 times as they act, "
        "2.50 times null.")
    nothing = results_of(quick, results.frame[results.frame["method"] != "HYDRA"])
    assert all(map(math.isnan, comparisons.growth(nothing, NET).values()))


def test_at_level_0_a_method_is_the_dense_network_it_prunes():
    assert report.labels("n", "HYDRA") == {"net": "n", "part": "dense", "method": "TRADES", "level": 0.0}
    assert report.labels("n", "+CNC")["method"] == "+CNC" and report.labels("n", "LWM", 0.5)["method"] == "LWM"
    assert report.labels("n", "CNC, all layers", part="varied")["part"] == "varied"


def test_the_better_constraint_is_chosen_on_the_other_seeds(quick, frame):
    """On the validation split, after the last epoch."""
    found = comparisons.best_single(results_of(quick, frame), NET, 0.9)
    assert found.effects == pytest.approx([2, 2, 2], abs=0.01) and found.estimate.images == 20
    assert found.estimate.mean == pytest.approx(2, abs=0.02)
    rates = {"+TSC": [0.1, 0.9, 0.9], "+CNC": [0.7, 0.2, 0.2], "TSCNC": [0, 0, 0], "HYDRA": [1, 1, 1], "LWM": [1, 1, 1]}

    def added(robust, seeds=None, level=0.9):
        experiment = quick if seeds is None else runs.experiment("quick", seeds)
        return comparisons.best_single(results_of(experiment, frame, robust), NET, level)

    def some(row):
        return rates[row["method"]][row["seed"]]

    # without seed 0 +TSC is better by 0.7; without 1 or 2, by 0.05
    assert added(some).effects == pytest.approx([4, 4, 4], abs=0.01)
    rates |= {"+CNC": [1.0, 0.2, 0.2]}  # without 1 or 2, +CNC is
    assert added(some).effects == pytest.approx([4, 2, 2], abs=0.01)
    other = added(lambda row: some(row) if row["level"] == 0.9 else 1 - some(row))
    assert other.effects == pytest.approx([4, 2, 2], abs=0.01)
    assert added(lambda row: 0.5).effects == pytest.approx([2, 2, 2], abs=0.01)  # where both are alike: the first
    assert added(some, [0]).effects == pytest.approx([2], abs=0.01)
    assert added(some, level=0.42).why == estimates.NOT_RUN


def test_test_images_have_no_say_in_which_constraint_is_the_better_one(quick, frame):
    """+TSC is made far better there, which the validation split does not know."""
    poisoned = frame["value"].mask((frame["metric"] == "pgd20") & (frame["method"] == "+TSC"), 0.99)
    found = comparisons.best_single(results_of(quick, frame.assign(value=poisoned)), NET, 0.9)
    assert found == comparisons.best_single(results_of(quick, frame), NET, 0.9)


def test_the_condition_number_has_doubled_where_it_is_twice_that_of_the_dense_network(quick, frame):
    assert slopes.doubling_level(frame, NET) == 0.9  # 10^(0.5 level) is two at 0.6
    assert slopes.doubling_level(frame, NET, "kappa classifier") == 0.5
    assert slopes.doubling(frame, NET).endswith("the classifier has doubled with 50 % removed")
    flat = made(quick, lambda row, m: 3.0 if m == "kappa" else plausible(row, m))
    assert slopes.doubling_level(flat, NET) is None and "convolutions never doubles" in slopes.doubling(flat, NET)


def test_observations_have_logarithms_of_what_has_one(quick):
    frame = made(quick, lambda row, metric: 0.0 if metric == "lipschitz" and row["level"] == 0.95 else 100.0)
    found = slopes.observations(frame, NET)
    assert (found["log kappa folded"] == 2).all() and (found["log lipschitz"].dropna() == 2).all()
    assert (found["log lipschitz"].isna() == (found["level"] == 0.95)).all()
    assert np.allclose(found["log left"], np.log10(100 * (1 - found["level"])))
    assert slopes.observations(frame[frame["metric"] != "lipschitz"], NET)["log lipschitz"].isna().all()


def test_points_have_few_kinds(frame):
    found = slopes.points(frame, NET)
    single = {"TSCNC, a 10", "TSC, released sign", "CNC, slogdet"}
    assert set(found.loc[found["method"].isin(single), "kind"]) == {"other settings"}
    assert found["kind"].unique().tolist() == ["TRADES", "TRADES, trained on", *runs.METHODS, "gates alone",
                                               *runs.CONTROLS, "other settings"]


def test_the_thesis_finds_slopes_that_were_put_in(quick):
    def value(row, metric):
        index = int(row["run"].identity[:6], 16)
        a, b, c = (math.sin(index * k) for k in (1, 2, 3))
        return {"kappa folded": 10 ** (0.3 + 0.1 * a), "kappa log_norms": 2 + b, "kappa log_relative_norms": 1 + c,
                "kappa effective_rank": 0.5 + 0.3 * c, "pgd20": 0.5 - 0.1 * a + 0.05 * b - 0.2 * row["level"],
                "clean": {0.95: 0.45, 0.98: 0.35}.get(row["level"], 0.8),
                "lipschitz": 10 ** (1 + a - b)}.get(metric, 1.0)

    frame = made(quick, value)
    found, points = slopes.regressions(frame, NET), slopes.observations(frame, NET)
    assert len(points) == len([row for row in quick.grid if row["part"] != "not fine-tuned"])
    centred = points.assign(**{c: points[c] - points.groupby("level")[c].transform("mean")
                               for c in ("log kappa folded", "kappa log_norms", "pgd20")})
    spread = {name: centred[name].std() for name in ("log kappa folded", "kappa log_norms", "pgd20")}
    within = found["kappa, norms; within levels"]  # where the level itself says nothing, the line is exact
    slope = within.loc["log kappa folded", "slope"]
    assert slope == pytest.approx(-spread["log kappa folded"] / spread["pgd20"], rel=1e-6)
    expected = 0.05 * spread["kappa log_norms"] / spread["pgd20"]
    assert within.loc["kappa log_norms", "slope"] == pytest.approx(expected, rel=1e-6)
    assert within["r2"].iloc[0] == pytest.approx(1) and found["kappa, norms"]["r2"].iloc[0] < 0.99
    assert found["kappa, norms; standing"]["runs"].iloc[0] == (points["level"] < 0.98).sum()  # half of 0.8 is 0.4
    without = found["kappa, norms; without all layers"]["runs"].iloc[0]
    assert without == len(points) - len([r for r in quick.rows(part="varied") if r["method"] == "CNC, all layers"])
    assert list(found["kappa, scale-free norms"].index) == ["log kappa folded", "kappa log_relative_norms"]
    assert list(found["kappa, norms, weights left"].index) == ["log kappa folded", "kappa log_norms", "log left"]
    assert list(found["effective rank, weights left"].index) == ["kappa effective_rank", "log left"]
    assert found["effective rank, weights left"].loc["log left", "slope"] > 0
    assert found["Lipschitz"].loc["log kappa folded", "slope"] > 0 > found["Lipschitz"].loc["kappa log_norms", "slope"]
    table = slopes.slopes_table(results_of(quick, frame))
    assert len(table) == sum(map(len, found.values()))
    assert table.loc["kappa, norms; within levels: log10 of kappa", "slope [sd per sd]"].startswith("-")


def test_regressions_with_too_few_conditions_are_left_out(quick):
    """As where all but a few networks have collapsed."""
    def value(row, metric):
        standing = row["part"] == "dense" and row["method"] in ("TRADES", "+CNC")
        return (0.9 if standing else 0.1) if metric == "clean" else plausible(row, metric)

    found = slopes.regressions(made(quick, value), NET)
    assert "kappa, norms; standing" not in found and "kappa, norms" in found


def rows_of(experiment, frame) -> pandas.DataFrame:
    return tscnc.judged(results_of(experiment, frame)).set_index("claim", drop=False)


@pytest.fixture(scope="module")
def rows(quick, frame):
    return rows_of(quick, frame)


def test_every_claim_is_judged_at_every_level(rows, frame):
    record, net = reported.load("tscnc"), "narrow WRN-10-1"
    assert {name.split()[0] for name in rows.index} == set(record.claims) and rows.index.is_unique
    assert rows["reported"].isna().all() and rows["where"].str.startswith("05_tscnc, ").all()
    for level in (50, 90, 95, 98):
        heavy = level >= 90
        for name in ("C1.clean {}", "C1.robust {}, equal training", "C5 {}, classifier", "C6 {}, TSCNC against HYDRA",
                     "C7 {}"):
            assert (name.format(f"{net}, {level} %") in rows.index) == heavy
        assert rows.loc[f"C3 {net}, {level} %", "verdict"] == claims.HOLDS
        assert rows.loc[f"C3 {net}, {level} %, scale-free", "verdict"] == claims.FAILS
        over = rows.loc[f"C3 {net}, {level} %, scale-free, over null", "ours"]
        assert over == pytest.approx(0.007 * level, abs=0.003)
        effects = {"convolutions": 0.006, "convolutions, over null": 0.0025, "convolutions, floored": 0.004,
                   "convolutions, deficit": 0.003, "convolutions, deficit, over null": 0.002, "classifier": 0.008}
        for what, effect in effects.items():
            row = rows.loc[f"C2 {net}, {level} %, {what}"]
            assert row["ours"] == pytest.approx(effect * level, abs=0.003) and row["verdict"] == claims.HOLDS, what
            assert row["unit"] == ("log10" if "deficit" in what else "log10 of the ratio") and row["images"] == 0
        if heavy:
            assert rows.loc[f"C1.clean {net}, {level} %", "verdict"] == claims.HOLDS
            equal = rows.loc[f"C1.robust {net}, {level} %, equal training", "ours"]
            assert equal == pytest.approx(rows.loc[f"C1.robust {net}, {level} %", "ours"] - 10, abs=0.02)
            for what, effect in {"convolutions": -0.1, "convolutions, floored": -0.05, "convolutions, deficit": -0.05,
                                 "classifier": -0.15}.items():
                row = rows.loc[f"C5 {net}, {level} %, {what}"]
                assert (row["ours"], row["verdict"]) == (pytest.approx(effect, abs=1e-4), claims.HOLDS)
            against = rows.loc[f"C6 {net}, {level} %, TSCNC against HYDRA"]
            assert (against["ours"], against["verdict"]) == (pytest.approx(5, abs=0.02), claims.HOLDS)
            best = rows.loc[f"C7 {net}, {level} %"]
            assert (best["ours"], best["verdict"]) == (pytest.approx(2, abs=0.02), claims.HOLDS)
            assert best["images"] == against["images"] == 20
    controls = {f"{net}, 90 %, TSCNC against TSC, decay alone": 3.5,
                f"{net}, 90 %, TSCNC, as released against HYDRA": -3}
    for level in (90, 95):
        controls |= {f"{net}, {level} %, TSCNC against gates alone": 3,
                     f"{net}, {level} %, CNC, all layers against HYDRA": -7}
    for name, effect in controls.items():
        assert rows.loc[f"C6 {name}", "ours"] == pytest.approx(effect, abs=0.02), name
    others = {name for name in rows.index if name.startswith("C6") and not name.endswith("%, TSCNC against HYDRA")}
    assert others == {f"C6 {name}" for name in controls}
    slope = rows.loc[f"C4 {net}, slope: kappa, norms"]
    said = slopes.regressions(frame, NET)["kappa, norms"].loc["log kappa folded"]
    assert slope[["ours", "low", "high", "p"]].tolist() == said[["slope", "low", "high", "p"]].tolist()
    assert not rows.index.str.contains("lipschitz|effective", case=False).any()
    assert (rows.loc["C8", "verdict"], rows.loc["C8", "why"]) == (
        claims.UNTESTED, "what the paper claims is not on record")


@pytest.mark.parametrize("scale", ["quick", "laptop"])
def test_every_line_of_the_ledger_has_its_comparison(scale):
    experiment = runs.experiment(scale)
    rows = rows_of(experiment, made(experiment, plausible))
    lines = claims.ledger(rows, reported.load("tscnc"), **tscnc.words(experiment))
    assert lines["line"].tolist() == ["C1", "C2", "C3", "C4", "C5", "C6", "C7"][:len(lines)] and len(lines) == 7
    assert set(lines.loc[lines["line"] != "C4", "claim"]) <= set(rows.index)
    assert (lines.loc[lines["line"] != "C4", "n_seeds"] == len(experiment.seeds)).all()
    assert claims.UNTESTED not in set(lines.loc[lines["line"] != "C4", "verdict"])


FOLDED = [name for name in MATRICES if "folded" in name]


def test_matrices_are_judged_as_they_act(quick, frame, rows):
    """Filters of another size before BatchNorm change no comparison; the condition numbers of layers as stored do not
    enter, those with BatchNorm folded in do."""
    stored = ("kappa", "kappa classifier", "kappa over_null", "kappa classifier_over_null")
    dice = np.random.default_rng(0).uniform(0.1, 10, len(frame))
    rescaled = frame.assign(value=frame["value"].where(~frame["metric"].isin(stored), dice))
    pandas.testing.assert_frame_equal(rows_of(quick, rescaled), rows)
    turned = frame["metric"].isin(FOLDED)
    other = rows_of(quick, frame.assign(value=frame["value"].where(~turned, 1 / (1 + frame["value"]))))
    moved = rows.index[(other["ours"] != rows["ours"]) & rows["ours"].notna() & ~rows.index.str.startswith("C4")]
    named = {f"{metric} {' '.join(name.split(', ')[2:])}".strip() for name in moved for metric in [name.split()[0]]}
    assert named == {f"{claim} {layer}{kind}" for claim in ("C2", "C5") for layer, kind in (
        ("convolutions", ""), ("convolutions", " floored"), ("convolutions", " deficit"), ("classifier", ""))} | {
        "C2 convolutions over null", "C2 convolutions deficit over null"}


def test_one_seed_tests_nothing_and_what_has_no_value_has_no_comparison():
    experiment = runs.experiment("laptop", [0])

    def value(row, metric):
        return None if row["level"] >= 0.95 and metric.startswith("kappa") else plausible(row, metric)

    rows = rows_of(experiment, made(experiment, value))
    assert set(rows["verdict"]) == {claims.UNTESTED}
    found = rows.loc[["C2 WRN-10-1, 95 %, convolutions", "C1.clean WRN-10-1, 95 %", "C7 WRN-10-1, 95 %"]]
    assert found["why"].tolist() == [estimates.NOT_RUN, estimates.ONE_SEED, estimates.ONE_SEED]
    assert found["n_seeds"].tolist() == [0, 1, 1]


def test_a_collapsed_network_is_not_judged(quick):
    def value(row, metric):
        fallen = (row["method"], row["level"], row["part"], row["seed"]) == ("HYDRA", 0.98, "pruned", 1)
        return 0.12 if fallen and metric == "clean" else plausible(row, metric)

    rows = rows_of(quick, made(quick, value))
    fallen = rows[rows["why"] == "a network has collapsed (clean 12 %)"]
    assert {name.split(", ")[1] for name in fallen.index} == {"98 %"} and (fallen["verdict"] == claims.UNTESTED).all()
    at = rows[rows.index.str.contains(", 98 %")]
    assert set(at.index) - set(fallen.index) == {"C7 narrow WRN-10-1, 98 %"}  # which HYDRA does not enter


def test_condition_numbers_of_layers_are_medians_over_seeds(quick):
    def measure(run, measurement):
        assert measurement.kind == "conditioning"
        size = run.seed + 1.0 + 10 * run.model.gated
        gone = None if run.recipe.epochs == 1 and run.seed else size
        return {"layers": {"a.10": {"condition": size}, "a.2": {"condition": size}, "linear": {"condition": None},
                           "stem": {"condition": gone}},
                "null": {"a.2": {"condition_median": 7.0}}}

    found = report.layer_conditions(Results(quick, SimpleNamespace(measure=measure), pandas.DataFrame()), NET)
    assert found["col"].unique().tolist() == ["0 % removed", "90 % removed", "98 % removed"]
    assert set(found["layer"]) == {"stem", "a.2", "a.10", "linear"}
    value = found.set_index(["col", "series", "layer"])["value"].sort_index()
    for col in found["col"].unique():
        assert found.loc[found["col"] == col, "series"].unique().tolist() == ["HYDRA", "null", "TSCNC"]
        assert value[col, "null"].to_dict() == {"a.2": 7.0}
        assert value[col, "HYDRA", "a.2"] == 2.0 and value[col, "TSCNC", "a.2"] == 12.0
        assert np.isnan(value[col, "HYDRA", "linear"])
    assert value["90 % removed", "HYDRA", "stem"] == 1.0 and value["0 % removed", "HYDRA", "stem"] == 2.0


def test_sensitivity_holds_what_differs_in_one_setting(quick, frame):
    for setting, values in (("a", {10, 100, 1000}), ("sparse", {5, 20, 40})):
        rows = report.sensitivity(results_of(quick, frame), NET, setting)
        assert set(rows["level"]) == values and set(rows["series"]) == {"0 % removed", "90 % removed"}
        assert not {"TSCNC, as released", "CNC, all layers"} & set(rows["method"])
        assert set(rows["seed"]) == {0} and "+CNC" not in set(rows["method"])
        assert len(rows[rows["metric"] == "pgd20"]) == 2 * len(values)


def test_invariants_notice_what_is_wrong(quick):
    def value(row, metric):
        conditioned = {"kappa classifier": row["method"] in ("+CNC", "TSCNC"),
                       "kappa": row["method"] == "CNC, all layers"}
        return row["level"] if metric == "kappa sparsity" else 1.1 if conditioned.get(metric) else 0.5 if metric in (
            "clean", "pgd20") else 2.0

    frame = made(quick, value)
    extra = frame[frame["metric"] == "sparsity"].assign(metric="kappa sparsity", count=None, total=None)
    frame = pandas.concat([frame, extra], ignore_index=True)
    assert all(report.invariants(frame).values()) and len(report.invariants(frame)) == 5
    wrong = {"networks have the target sparsity": ("sparsity", 0.01), "gates only add zeros": ("kappa sparsity", -0.1),
             "CNC conditions the classifier before pruning": ("kappa classifier", 0.3),
             "on all layers, the convolutions": ("kappa", 0.2),
             "every rate is its count over its total": ("clean", 0.1)}
    for what, (metric, more) in wrong.items():
        found = report.invariants(frame.assign(value=frame["value"] + more * (frame["metric"] == metric)))
        assert not found[what], what


# ---------------------------------------------------------------------------------------------- small examples


def test_descent_follows_the_gradient_of_the_constraint():
    torch.manual_seed(0)
    weight = torch.randn(4, 9, dtype=torch.float64)
    path = toy.descent(weight, "scale_invariant", 0.5, lr=0.05, steps=1)
    w = weight.clone().requires_grad_()
    n, squares = 4, torch.linalg.svdvals(w).square()
    (gradient,) = torch.autograd.grad(n * (squares.sum() / n).log() - squares.log().sum(), w)
    after = torch.linalg.svdvals((w - 0.05 * (0.5 * gradient + 5e-4 * w)).detach())
    before = torch.linalg.svdvals(weight)
    assert path["step"].tolist() == [0, 1]
    assert path["condition"].tolist() == pytest.approx([float(before[0] / before[-1]), float(after[0] / after[-1])])
    assert path["norm"].tolist() == pytest.approx([float(before[0]), float(after[0])])


def test_the_null_table_stands_beside_what_was_noted():
    """Notes and draws agree where the mean does not follow single draws: up to 95 % removed."""
    table = toy.null_table(3)
    _, noted = reported.load("tscnc").other_table("T4")
    assert len(table) == len(noted)
    kept = table[table.index.str.contains(" 0 %| 90 %| 95 %")]
    for ours, theirs in (("norm, here", "norm, notes"), ("kappa, here", "kappa, notes")):
        assert (kept[ours].astype(float) / kept[theirs].astype(float) - 1).abs().max() < 0.2


def test_descents_start_alike_and_end_differently():
    paths = toy.descents(toy.gaussian(4, 30), {"size": 0.02, "scale_invariant": 1.0})
    first = paths[paths["step"] == 0].set_index(["col", "series"])["value"]
    assert first.groupby("col").nunique().eq(1).all() and len(first) == 4
    ratios = toy.last_over_first(paths)
    assert ratios.loc["scale_invariant", "condition number"] < 0.9 < ratios.loc["size", "condition number"]
    last = paths[(paths["step"] == paths["step"].max()) & (paths["series"] == "size")].set_index("col")["value"]
    assert ratios.loc["size", "condition number"] == pytest.approx(
        last["condition number"] / first["condition number", "size"])


def test_a_pruned_matrix_is_smaller_and_worse_conditioned():
    found = toy.pruned_matrix([0, 0.9, 0.99], draws=2).pivot(index="left", columns="series", values="value")
    assert found.index.tolist() == pytest.approx([1, 10, 100]) and (found.loc[100] == 1).all()
    norm, condition = found["norm (largest singular value)"], found["condition number"]
    assert norm.is_monotonic_increasing and condition.is_monotonic_decreasing and condition.iloc[0] > 1.5


def test_the_released_constraint_has_no_gradient_for_a_hundred_classes():
    lengths = toy.gradients((10, 100))["length of its gradient"]
    assert lengths["released, 100 classes"] == 0 < lengths["released, 10 classes"]
    assert (lengths.drop("released, 100 classes") > 0).all() and len(lengths) == 6


def test_filters_begin_far_below_the_pole(quick):
    least, most = toy.initial_costs(quick)
    assert 0 < least < most < quick.settings.constraints.a / 5
    with seeding.global_seed(0, "toy"):
        network = quick.row(method="TSCNC")["run"].model.build((1, 8, 8), 10)
    costs = torch.cat([0.92 * (1200 * 5e-4 / 0.7 / 2 * gate.weight.square() + 0.05).sum((1, 2, 3))
                       for gate in gates.gated(network).values()]).detach()  # open with probability 0.92
    assert (least, most) == pytest.approx((float(costs.min()), float(costs.max())), rel=0.01)


def test_costs_are_told_over_those_of_trades(quick, monkeypatch):
    asked = {}
    monkeypatch.setattr(report.analysis, "step_costs", lambda runs, *how: asked.update(runs=runs, how=how) or {})
    report.step_costs(quick, NET)
    assert list(asked["runs"]) == ["TRADES", "gates alone", "+TSC", "+CNC", "TSCNC", "TSCNC, all layers"]
    grid = {row["method"]: row["run"] for row in quick.rows(part="dense", seed=0)}
    assert all(run == grid[name] for name, run in asked["runs"].items() if name in grid)
    assert asked["how"] == ((1, 8, 8), 10, 15)
    made_up = {"TRADES": {"seconds": 0.01, "kept_bytes": 2e6}, "+TSC": {"seconds": 0.015, "kept_bytes": 3e6}}
    assert report.costs_table(made_up).loc["+TSC"].tolist() == ["15.0", "1.50", "3.00", "1.50"]


def test_a_slope_rests_on_the_seeds_of_which_all_networks_are_known(quick, frame):
    """Of seed 1 only what another claim needed is there: it enters neither the regression nor the number of seeds."""
    assert slopes.whole_seeds(frame, NET) == quick.seeds
    some = frame[(frame["seed"] != 1) | frame["method"].isin(["TRADES", "HYDRA"])]
    assert slopes.whole_seeds(some, NET) == [seed for seed in quick.seeds if seed != 1]
    found = slopes.regressions(some, NET)
    assert found["kappa, norms"]["runs"].iloc[0] == len(slopes.observations(frame[frame["seed"] != 1], NET))
    sloping = rows_of(quick, some)[lambda rows: rows["claim"].str.startswith("C4")]
    assert set(sloping["n_seeds"]) == {len(quick.seeds) - 1} and set(sloping["verdict"]) == {claims.UNTESTED}
