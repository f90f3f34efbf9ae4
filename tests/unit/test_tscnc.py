"""Lipschitz Constant Meets Condition Number: its grid of runs, its tables, its slopes, its verdicts."""

import math
from dataclasses import replace

import numpy as np
import pandas
import pytest
import torch
import yaml

from sparserobust import analysis, imagewise, paths
from sparserobust.config import Dense, Recipe
from sparserobust.objectives import TRADES
from sparserobust.reporting import claims, estimates, plots, reported, tables
from sparserobust.running import scales
from sparserobust.sparsifiers import TSCNC, FixedMask, LearnedScores, Magnitude
from sparserobust.studies.tscnc import report as tscnc

SCALES = [name for name in scales.names()
          if tscnc.PAPER in yaml.safe_load((paths.scales_folder() / f"{name}.yaml").read_text())]
CONSTRAINED = {"+TSC": (True, False), "+CNC": (False, True), "TSCNC": (True, True)}


@pytest.fixture(scope="module")
def quick():
    return tscnc.experiment("quick")


@pytest.fixture(scope="module", params=SCALES)
def any_scale(request):
    return tscnc.experiment(request.param)


# --------------------------------------------------------------------------------------------------- the grid


def test_every_row_is_another_run_and_has_its_own_label(any_scale):
    keys = ("net", "part", "method", "level", "seed")
    assert len({tuple(row[k] for k in keys) for row in any_scale.grid}) == len(any_scale.grid)
    assert len({row["run"].identity for row in any_scale.grid}) == len(any_scale.grid)
    assert all(run.seed == row["seed"] for row in any_scale.grid for run in row["run"].lineage)
    assert {row["net"] for row in any_scale.grid} == set(any_scale.nets)


def test_what_is_needed_is_in_the_grid_too(any_scale):
    grid = {row["run"].identity for row in any_scale.grid}
    assert {run.identity for row in any_scale.grid for run in row["run"].lineage} <= grid


def test_dense_networks_differ_in_constraints_and_gates_alone(any_scale):
    for net in any_scale.nets:
        own = any_scale.of(net)
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
        if "gates alone" in own["varied"]:
            (gates,) = any_scale.rows(net=net, method="gates alone", level=0.0, seed=any_scale.seeds[0])
            assert gates["run"] == replace(plain, model=replace(plain.model, gated=True))


def test_decay_moves_into_the_loss_whatever_it_is(quick):
    settings = quick.of("WRN-28-10")
    run = tscnc.pretraining(settings | {"recipe": settings["recipe"] | {"weight_decay": 0.003}}, 0, "TSCNC")
    assert run.recipe.weight_decay == 0 and run.sparsifier.weight_decay == 0.003


def test_all_ways_to_prune_get_the_epochs_of_the_control(any_scale):
    for net in any_scale.nets:
        own, seed = any_scale.of(net), any_scale.seeds[0]
        rows = any_scale.rows(net=net, seed=seed)
        by = {(row["part"], row["method"], row["level"]): row["run"] for row in rows}
        control = by["control", "TRADES, trained on", 0.0]
        assert control.start == by["dense", "TRADES", 0.0] and control.sparsifier == Dense()
        after, scores = control.recipe.epochs, Recipe.parse(own["scores"])
        assert after == own["fine_tuning"]["epochs"] > scores.epochs > 0
        assert control.recipe.averaging == 0
        for (part, method, level), run in by.items():
            if part == "pruned":
                dense = by["dense", {"LWM": "TRADES", "HYDRA": "TRADES"}.get(method, method), 0.0]
                assert run.sparsifier == FixedMask() and run.start == by["not fine-tuned", method, level]
                assert run.start.start == dense and run.model == dense.model
                assert run.recipe.epochs + run.start.recipe.epochs == after
                assert run.objective == run.start.objective == dense.objective
                wanted = (Magnitude(sparsity=level, scope="layerwise") if method == "LWM"
                          else LearnedScores(sparsity=level))
                assert run.start.sparsifier == wanted
                assert run.start.recipe == (replace(control.recipe, epochs=0) if method == "LWM" else scores)
                assert run.recipe == replace(control.recipe, epochs=run.recipe.epochs)
        levels = {level for part, method, level in by if part == "pruned" and method in tscnc.METHODS}
        assert levels == set(own["levels"])


def test_what_is_varied_differs_from_its_method_in_what_is_named(any_scale):
    for net in any_scale.nets:
        own, first = any_scale.of(net), any_scale.seeds[0]
        rows = any_scale.rows(net=net, part="varied")
        assert {row["method"] for row in rows} == set(own["varied"])
        for row in rows:
            asked = dict(own["varied"][row["method"]])
            of, levels, every = asked.pop("of"), asked.pop("levels"), asked.pop("every_seed", False)
            assert row["level"] in (0, *levels) and (every or row["seed"] == first)
            dense = row["run"].lineage[0]
            if of != "gates alone":
                main = any_scale.rows(net=net, part="dense", method=of, seed=row["seed"])[0]["run"]
                assert dense == replace(main, sparsifier=replace(main.sparsifier, **asked))
            if row["level"]:
                assert row["run"].start.sparsifier == LearnedScores(sparsity=row["level"])
        for name, asked in own["varied"].items():
            found = {row["seed"] for row in rows if row["method"] == name}
            assert found == set(any_scale.seeds if asked.get("every_seed") else [first])


def test_the_paper_scale_is_the_released_code():
    """Dossier, sections 3 and 6."""
    experiment = tscnc.experiment("paper")
    assert list(experiment.nets)[:2] == ["WRN-28-10", "VGG-16"]
    for net in experiment.nets:
        rows = {row["method"]: row["run"] for row in experiment.rows(net=net, part="dense", seed=0)}
        run = rows["TSCNC"]
        assert run.objective == TRADES(epsilon=8 / 255, step_size=0.0069, steps=10, beta=6)
        recipe = run.recipe
        assert (recipe.epochs, recipe.lr, recipe.batch_size, recipe.momentum) == (200, 0.1, 128, 0.9)
        assert (recipe.milestones, recipe.drop, recipe.averaging) == ((60, 120, 160), 0.2, 0.99)
        drop_rate = 0 if "VGG" in net else 0.3
        assert run.sparsifier == TSCNC(drop_rate=drop_rate)  # whose defaults are the released numbers
        assert (run.sparsifier.a, run.sparsifier.l0, run.sparsifier.images) == (100, 1e-3, 50_000)


def test_attacks_and_analyses_of_rows(quick):
    every = {"clean", "pgd20", "lipschitz", "kappa"}
    for row in quick.grid:
        part, names = row["part"], set(row["also"])
        if part == "not fine-tuned":
            wanted = {"clean", "pgd20"} if row["level"] == 0.9 and row["method"] in tscnc.METHODS else set()
            assert names == wanted
            continue
        assert every <= names
        strong = part in ("dense", "pruned") and row["level"] in (0, 0.9)
        assert ({"pgd50", "cw"} <= names) == strong
        assert ("near_zero" in names) == (part == "dense")
        checked = part in ("dense", "pruned") and row["seed"] == 0 and row["level"] in (0, 0.9)
        assert ("health" in names) == checked
        autoattack = part == "pruned" and (row["method"], row["level"], row["seed"]) in {
            ("HYDRA", 0.9, 0), ("TSCNC", 0.9, 0)}
        assert ("autoattack" in names) == autoattack
        assert row["also"]["kappa"].null_draws == quick.settings["null_draws"] > 0


def test_overview_has_a_line_for_each_net_part_method_and_epochs(any_scale):
    lines = tscnc.overview(any_scale.grid)
    epochs = [sum(run.recipe.trained_epochs for run in row["run"].lineage) for row in any_scale.grid]
    keys = [(row["net"], row["part"], row["method"]) for row in any_scale.grid]
    assert len(lines) == len(set(zip(keys, epochs, strict=True)))
    assert set(lines["epochs"]) == set(epochs)  # what is varied: dense ones apart from those that are fine-tuned
    assert lines["epochs"].min() == min(row["run"].recipe.trained_epochs for row in any_scale.rows(part="dense"))


# -------------------------------------------------------------------------------------------------- the frame


IMAGES = np.linspace(-0.3, 0.3, 20)  # what each image has more than the mean, whatever the network


def made(experiment, value) -> pandas.DataFrame:
    """A frame as `sweep` makes it, of what `value(row, metric)` says; images follow the mean to about a
    ten-thousandth."""
    rows = []
    for row in experiment.grid:
        metrics = ["sparsity"] if row["part"] == "not fine-tuned" else [
            "sparsity", "clean", "pgd20", *MATRICES]
        for metric in metrics:
            labels = {k: row[k] for k in ("net", "ours", "part", "method", "level", "seed")}
            number = row["level"] if metric == "sparsity" else value(row, metric)
            rate = metric in ("clean", "pgd20", "sparsity") and number is not None
            sampled = metric in ("clean", "pgd20") and number is not None
            rows.append(labels | {"run": row["run"].identity, "metric": metric, "value": number,
                                  "count": 1000 * number if rate else None, "total": 1000 if rate else None,
                                  "chance": 0.1, "sampled": metric in ("clean", "pgd20", "lipschitz"),
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
    return tscnc.located(made(quick, plausible))


def test_located_adds_what_is_left_and_logarithms_and_drops_what_is_missing(quick):
    def value(row, metric):
        if metric == "lipschitz" and row["level"] == 0.95:
            return 0.0
        return None if metric == "kappa" and row["level"] == 0.98 else 100.0

    frame = tscnc.located(made(quick, value))
    assert (frame["left"] == 100 * (1 - frame["level"])).all()
    assert frame["value"].notna().all() and frame["value"].dtype == float
    assert not ((frame["metric"].isin(["kappa", "log kappa"])) & (frame["level"] == 0.98)).any()
    logs = frame[frame["metric"].str.startswith("log ")]
    assert set(logs["metric"]) == {"log kappa", "log kappa classifier", "log kappa over null", "log kappa folded",
                                   "log kappa classifier over null", "log lipschitz"}
    assert (logs["value"] == 2).all()
    assert not ((logs["metric"] == "log lipschitz") & (logs["level"] == 0.95)).any()  # of zero there is none


def test_series_begin_with_the_network_that_was_pruned(frame):
    lines = tscnc.series(frame, "pgd20", "WRN-28-10")
    assert list(lines["series"].unique()) == list(tscnc.METHODS)
    for method, rows in lines.groupby("series"):
        dense = set(rows.loc[rows["level"] == 0, "method"])
        assert dense == {{"LWM": "TRADES", "HYDRA": "TRADES"}.get(method, method)}
        assert set(rows["level"]) == {0, 0.5, 0.9, 0.95, 0.98} and set(rows["part"]) == {"dense", "pruned"}
        assert len(rows) == 15  # three seeds


def test_panels_can_be_drawn(frame):
    rows = [{"clean [%]": ("clean", 100), "PGD-20 [%]": ("pgd20", 100)}]
    panels = tscnc.panels(frame, rows, "WRN-28-10")
    assert [panel["title"] for panel in panels[0]] == list(rows[0])
    assert len(plots.along_sparsity(panels).axes) == 2
    null = [panel for row in tscnc.null_panels(frame, "WRN-28-10") for panel in row]
    assert [panel["title"] for panel in null] == list(tscnc.CURVES)
    for panel, (metric, factor, of_null) in zip(null, tscnc.CURVES.values(), strict=True):
        assert set(panel["frame"]["series"]) == {*tscnc.METHODS, *(["null"] if of_null else [])}
        drawn = panel["frame"][panel["frame"]["series"] == "null"]
        assert set(drawn["metric"]) == ({of_null} if of_null else set()) and panel["factor"] == factor
        assert set(drawn["method"]) == ({"HYDRA", "TRADES"} if of_null else set())
        assert set(panel["frame"].loc[panel["frame"]["series"] == "LWM", "metric"]) == {metric}


def test_the_table_of_methods_has_a_line_for_each_method_and_level(frame):
    main = frame[frame["part"].isin(["dense", "control", "pruned"])]
    rates, matrices = tscnc.accuracies(main), tscnc.matrices(main)
    assert list(rates.index) == list(matrices.index) and len(rates) == 4 + 1 + 5 * 4  # dense, control, pruned
    assert rates.index[0].endswith("0 % removed") and rates.index[-1].endswith("98 % removed")
    line = "narrow WRN-10-1, HYDRA, 90 % removed"
    assert rates.loc[line].to_dict() == {"clean": "49.2 ± 0.2", "PGD-20": "24.2 ± 0.2"}
    assert matrices.loc[line, "log10 of norms"].startswith("2.") and list(matrices.columns) == list(tscnc.MATRICES)


def test_pairs_compare_with_the_same_pipeline(quick, frame):
    pairs = tscnc.compared(quick, "WRN-28-10", 0.9)
    effects = tables.effects(frame, pairs, {"PGD-20": "pgd20"})["PGD-20"]
    assert effects.str.split().str[0].to_dict() == {
        "HYDRA - TRADES": "-35.9", "HYDRA - TRADES, trained on": "-45.9", "HYDRA - LWM": "+2.0", "+TSC - HYDRA": "+1.0",
        "+CNC - HYDRA": "+3.0", "TSCNC - HYDRA": "+5.0", "TSCNC - gates alone": "+3.0",
        "TSCNC - TSC, decay alone": "+3.5", "CNC, all layers - HYDRA": "-7.0", "TSCNC, as released - HYDRA": "-3.0"}
    varied = set(pairs) - set(tscnc.compared(quick, "WRN-28-10", 0.5))
    assert varied == {"TSCNC - gates alone", "TSCNC - TSC, decay alone", "CNC, all layers - HYDRA",
                      "TSCNC, as released - HYDRA"}


def test_at_level_0_a_method_is_the_dense_network_it_prunes():
    assert tscnc.labels("n", "HYDRA") == {"net": "n", "part": "dense", "method": "TRADES", "level": 0.0}
    assert tscnc.labels("n", "+CNC")["method"] == "+CNC" and tscnc.labels("n", "LWM", 0.5)["method"] == "LWM"
    assert tscnc.labels("n", "CNC, all layers", part="varied")["part"] == "varied"


def validation_of(experiment, value) -> pandas.DataFrame:
    """As `tscnc.validated` makes it, of what `value(row)` says."""
    return pandas.DataFrame([{k: row[k] for k in ("net", "method", "level", "seed")} | {"value": value(row)}
                             for row in experiment.rows(part="pruned")])


@pytest.fixture(scope="module")
def validation(quick):
    return validation_of(quick, lambda row: plausible(row, "pgd20"))


def test_what_was_validated_is_robust_accuracy_after_the_last_epoch(quick):
    class Known:
        @staticmethod
        def record(run):
            last = {"validation_robust": run.seed + run.recipe.epochs / 100, "validation_clean": -1}
            return {"history": [{"validation_robust": -2}, last]}

    found = tscnc.validated(quick, Known)
    rows = quick.rows(part="pruned")
    assert list(found.columns) == ["net", "method", "level", "seed", "value"] and len(found) == len(rows)
    for line, row in zip(found.to_dict("records"), rows, strict=True):
        assert line == {k: row[k] for k in ("net", "method", "level", "seed")} | {
            "value": row["seed"] + row["run"].recipe.epochs / 100}


def test_the_better_constraint_is_chosen_on_the_other_seeds(quick, frame, validation):
    """On the validation split."""
    found = tscnc.best_single(frame, validation, "WRN-28-10", 0.9)
    assert found.effects == pytest.approx([2, 2, 2], abs=0.01) and found.estimate.images == 20
    assert found.estimate.mean == pytest.approx(2, abs=0.02)
    rates = {"+TSC": [0.1, 0.9, 0.9], "+CNC": [0.7, 0.2, 0.2], "TSCNC": [0, 0, 0], "HYDRA": [1, 1, 1], "LWM": [1, 1, 1]}
    some = validation_of(quick, lambda row: rates[row["method"]][row["seed"]])
    # without seed 0 +TSC is better by 0.7; without 1 or 2, by 0.05
    assert tscnc.best_single(frame, some, "WRN-28-10", 0.9).effects == pytest.approx([4, 4, 4], abs=0.01)
    rates |= {"+CNC": [1.0, 0.2, 0.2]}  # without 1 or 2, +CNC is
    some = validation_of(quick, lambda row: rates[row["method"]][row["seed"]])
    assert tscnc.best_single(frame, some, "WRN-28-10", 0.9).effects == pytest.approx([4, 2, 2], abs=0.01)
    other = some.assign(value=some["value"].where(some["level"] == 0.9, 1 - some["value"]))
    assert tscnc.best_single(frame, other, "WRN-28-10", 0.9).effects == pytest.approx([4, 2, 2], abs=0.01)
    assert tscnc.best_single(frame, some[some["seed"] == 0], "WRN-28-10", 0.9).effects == pytest.approx([2], abs=0.01)
    assert tscnc.best_single(frame, some, "WRN-28-10", 0.42).why == estimates.NOT_RUN


def test_test_images_have_no_say_in_which_constraint_is_the_better_one(frame, validation):
    """+TSC is made far better there, which the validation split does not know."""
    poisoned = frame["value"].mask((frame["metric"] == "pgd20") & (frame["method"] == "+TSC"), 0.99)
    found = tscnc.best_single(frame.assign(value=poisoned), validation, "WRN-28-10", 0.9)
    assert found == tscnc.best_single(frame, validation, "WRN-28-10", 0.9)


def test_take_off_is_where_the_condition_number_has_doubled(quick, frame):
    assert tscnc.takes_off(frame, "WRN-28-10") == 0.9  # 10^(0.5 level) is two at 0.6
    assert tscnc.takes_off(frame, "WRN-28-10", "log kappa classifier") == 0.5
    flat = tscnc.located(made(quick, lambda row, m: 3.0 if m == "kappa" else plausible(row, m)))
    assert tscnc.takes_off(flat, "WRN-28-10") is None


def test_the_thesis_finds_slopes_that_were_put_in(quick):
    def value(row, metric):
        index = int(row["run"].identity[:6], 16)
        a, b, c = (math.sin(index * k) for k in (1, 2, 3))
        return {"kappa folded": 10 ** (0.3 + 0.1 * a), "kappa log_norms": 2 + b, "kappa log_relative_norms": 1 + c,
                "kappa effective_rank": 0.5 + 0.3 * c, "pgd20": 0.5 - 0.1 * a + 0.05 * b - 0.2 * row["level"],
                "clean": {0.95: 0.45, 0.98: 0.35}.get(row["level"], 0.8),
                "lipschitz": 10 ** (1 + a - b)}.get(metric, 1.0)

    frame = tscnc.located(made(quick, value))
    found, points = tscnc.thesis(frame, "WRN-28-10"), tscnc.observations(frame, "WRN-28-10")
    assert len(points) == len([row for row in quick.grid if row["part"] != "not fine-tuned"])
    assert np.allclose(points["log left"], np.log10(100 * (1 - points["level"])))
    centred = points.assign(**{c: points[c] - points.groupby("level")[c].transform("mean")
                               for c in ("log kappa folded", "kappa log_norms", "pgd20")})
    spread = {name: centred[name].std() for name in ("log kappa folded", "kappa log_norms", "pgd20")}
    slopes = found["kappa, norms; within levels"]  # where the level itself says nothing, the line is exact
    slope = slopes.loc["log kappa folded", "slope"]
    assert slope == pytest.approx(-spread["log kappa folded"] / spread["pgd20"], rel=1e-6)
    expected = 0.05 * spread["kappa log_norms"] / spread["pgd20"]
    assert slopes.loc["kappa log_norms", "slope"] == pytest.approx(expected, rel=1e-6)
    assert slopes["r2"].iloc[0] == pytest.approx(1) and found["kappa, norms"]["r2"].iloc[0] < 0.99
    assert found["kappa, norms; standing"]["runs"].iloc[0] == (points["level"] < 0.98).sum()  # half of 0.8 is 0.4
    without = found["kappa, norms; without all layers"]["runs"].iloc[0]
    assert without == len(points) - len([r for r in quick.rows(part="varied") if r["method"] == "CNC, all layers"])
    assert list(found["kappa, scale-free norms"].index) == ["log kappa folded", "kappa log_relative_norms"]
    assert list(found["kappa, norms, weights left"].index) == ["log kappa folded", "kappa log_norms", "log left"]
    assert list(found["effective rank, weights left"].index) == ["kappa effective_rank", "log left"]
    assert found["effective rank, weights left"].loc["log left", "slope"] > 0
    assert found["lipschitz"].loc["log kappa folded", "slope"] > 0 > found["lipschitz"].loc["kappa log_norms", "slope"]
    table = tscnc.slopes_table(found)
    assert len(table) == sum(map(len, found.values()))
    assert table.loc["kappa, norms; within levels: log kappa folded", "slope [sd per sd]"].startswith("-")


def test_regressions_with_too_few_conditions_are_left_out(quick):
    """As where all but a few networks have collapsed."""
    def value(row, metric):
        standing = row["part"] == "dense" and row["method"] in ("TRADES", "+CNC")
        return (0.9 if standing else 0.1) if metric == "clean" else plausible(row, metric)

    found = tscnc.thesis(tscnc.located(made(quick, value)), "WRN-28-10")
    assert "kappa, norms; standing" not in found and "kappa, norms" in found


def rows_of(experiment, frame, slopes) -> pandas.DataFrame:
    validation = validation_of(experiment, lambda row: plausible(row, "pgd20"))
    of_nets = dict.fromkeys(experiment.nets, slopes)
    return tscnc.judged(frame, experiment, of_nets, validation).set_index("claim", drop=False)


@pytest.fixture(scope="module")
def slopes(frame):
    return tscnc.thesis(frame, "WRN-28-10")


@pytest.fixture(scope="module")
def rows(quick, frame, slopes):
    return rows_of(quick, frame, slopes)


def test_every_claim_is_judged_at_every_level(rows, slopes):
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
    said = slopes["kappa, norms"].loc["log kappa folded"]
    assert slope[["ours", "low", "high", "p"]].tolist() == said[["slope", "low", "high", "p"]].tolist()
    assert not rows.index.str.contains("lipschitz|effective").any()
    assert (rows.loc["C8", "verdict"], rows.loc["C8", "why"]) == (
        claims.UNTESTED, "what the paper claims is not on record")


@pytest.mark.parametrize("scale", ["quick", "laptop"])
def test_every_line_of_the_ledger_has_its_comparison(scale, slopes):
    experiment = tscnc.experiment(scale)
    rows = rows_of(experiment, tscnc.located(made(experiment, plausible)), slopes)
    lines = claims.ledger(rows, reported.load("tscnc"), **tscnc.holes(experiment))
    assert lines["line"].tolist() == ["C1", "C2", "C3", "C4", "C5", "C6", "C7"]
    assert set(lines["claim"]) <= set(rows.index) and (lines["n_seeds"] == len(experiment.seeds)).all()
    assert claims.UNTESTED not in set(lines["verdict"])


def test_the_level_of_the_ledger_is_one_that_is_run(any_scale):
    own = any_scale.of(any_scale.nets[0])
    assert own["primary_level"] in own["levels"] and own["primary_level"] >= tscnc.HEAVY
    assert tscnc.holes(any_scale) == {"net": own["label"], "level": f"{100 * own['primary_level']:g} %"}


FOLDED = [name for name in MATRICES if "folded" in name]


def test_matrices_are_judged_as_they_act(quick, frame, rows, slopes):
    """Filters of another size before BatchNorm change no comparison; the condition numbers of layers as stored do not
    enter, those with BatchNorm folded in do."""
    stored = ("kappa", "kappa classifier", "kappa over_null", "kappa classifier_over_null", "log kappa",
              "log kappa classifier", "log kappa over null", "log kappa classifier over null")
    dice = np.random.default_rng(0).uniform(0.1, 10, len(frame))
    rescaled = frame.assign(value=frame["value"].where(~frame["metric"].isin(stored), dice))
    rescaled = rows_of(quick, rescaled, tscnc.thesis(rescaled, "WRN-28-10"))
    pandas.testing.assert_frame_equal(rescaled, rows)
    turned = frame["metric"].isin(FOLDED)
    other = rows_of(quick, frame.assign(value=frame["value"].where(~turned, 1 / (1 + frame["value"]))), slopes)
    moved = rows.index[(other["ours"] != rows["ours"]) & rows["ours"].notna()]
    named = {f"{metric} {' '.join(name.split(', ')[2:])}".strip() for name in moved for metric in [name.split()[0]]}
    assert named == {f"{claim} {layer}{kind}" for claim in ("C2", "C5") for layer, kind in (
        ("convolutions", ""), ("convolutions", " floored"), ("convolutions", " deficit"), ("classifier", ""))} | {
        "C2 convolutions over null", "C2 convolutions deficit over null"}


def test_one_seed_tests_nothing_and_what_has_no_value_has_no_comparison(slopes):
    experiment = tscnc.experiment("laptop", [0])

    def value(row, metric):
        return None if row["level"] >= 0.95 and metric.startswith("kappa") else plausible(row, metric)

    rows = rows_of(experiment, tscnc.located(made(experiment, value)), slopes)
    assert set(rows["verdict"]) == {claims.UNTESTED}
    found = rows.loc[["C2 WRN-10-1, 95 %, convolutions", "C1.clean WRN-10-1, 95 %", "C7 WRN-10-1, 95 %"]]
    assert found["why"].tolist() == [estimates.NOT_RUN, estimates.ONE_SEED, estimates.ONE_SEED]
    assert found["n_seeds"].tolist() == [0, 1, 1]


def test_a_collapsed_network_is_not_judged(quick, slopes):
    def value(row, metric):
        fallen = (row["method"], row["level"], row["part"], row["seed"]) == ("HYDRA", 0.98, "pruned", 1)
        return 0.12 if fallen and metric == "clean" else plausible(row, metric)

    rows = rows_of(quick, tscnc.located(made(quick, value)), slopes)
    fallen = rows[rows["why"] == "a network has collapsed (clean 12 %)"]
    assert {name.split(", ")[1] for name in fallen.index} == {"98 %"} and (fallen["verdict"] == claims.UNTESTED).all()
    at = rows[rows.index.str.contains(", 98 %")]
    assert set(at.index) - set(fallen.index) == {"C7 narrow WRN-10-1, 98 %"}  # which HYDRA does not enter


def test_condition_numbers_of_layers_are_medians_over_seeds(quick):
    class Known:
        @staticmethod
        def measure(run, measurement):
            assert measurement.kind == "conditioning"
            size = run.seed + 1.0 + 10 * run.model.gated
            gone = None if run.recipe.epochs == 1 and run.seed else size
            return {"layers": {"a": {"condition": size}, "linear": {"condition": None}, "stem": {"condition": gone}},
                    "null": {"a": {"condition_median": 7.0}}}

    found = tscnc.layer_conditions(quick, Known, "WRN-28-10")
    assert list(found) == ["0 % removed", "90 % removed", "98 % removed"]
    for panel in found.values():
        assert list(panel) == ["HYDRA", "null", "TSCNC"] and panel["null"] == {"a": 7.0}
        assert list(panel["HYDRA"]) == ["stem", "a", "linear"]  # from image to answer
        assert panel["HYDRA"]["a"] == 2.0 and panel["TSCNC"]["a"] == 12.0 and np.isnan(panel["HYDRA"]["linear"])
    assert found["90 % removed"]["HYDRA"]["stem"] == 1.0 and found["0 % removed"]["HYDRA"]["stem"] == 2.0


def test_sensitivity_holds_what_differs_in_one_setting(quick, frame):
    for setting, values in (("a", {10, 100, 1000}), ("sparse", {5, 20, 40})):
        rows = tscnc.sensitivity(frame, quick, "WRN-28-10", setting)
        assert set(rows["level"]) == values and set(rows["removed"]) == {"0 % removed", "90 % removed"}
        assert not {"TSCNC, as released", "CNC, all layers"} & set(rows["method"])
        assert set(rows["seed"]) == {0} and "+CNC" not in set(rows["method"])
        assert len(rows[rows["metric"] == "pgd20"]) == 2 * len(values)


# ---------------------------------------------------------------------------------------------- small examples


def test_descent_follows_the_gradient_of_the_constraint():
    torch.manual_seed(0)
    weight = torch.randn(4, 9, dtype=torch.float64)
    path = tscnc.descent(weight, "scale_invariant", 0.5, lr=0.05, steps=1)
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
    table = tscnc.null_table(3)
    _, noted = reported.load("tscnc").other_table("T4")
    assert len(table) == len(noted)
    kept = table[table.index.str.contains(" 0 %| 90 %| 95 %")]
    for ours, theirs in (("drawn here", "largest singular value"), ("kappa, drawn here", "kappa")):
        assert (kept[ours].astype(float) / kept[theirs].astype(float) - 1).abs().max() < 0.2


def test_costs_are_told_over_those_of_trades(quick):
    runs = tscnc.step_runs(quick, "WRN-28-10")
    assert list(runs) == ["TRADES", "gates alone", "+TSC", "+CNC", "TSCNC", "TSCNC, all layers"]
    grid = {row["method"]: row["run"] for row in quick.rows(part="dense", seed=0)}
    assert all(run == grid[name] for name, run in runs.items() if name in grid)
    costs = analysis.step_costs({name: runs[name] for name in ("TRADES", "+TSC")}, (1, 8, 8), 10, repeats=1)
    table = tscnc.costs_table(costs)
    assert table.loc["TRADES", "over TRADES"] == "1.00" and table.loc["TRADES", "over TRADES, memory"] == "1.00"
    for column, key in (("over TRADES", "seconds"), ("over TRADES, memory", "kept_bytes")):
        assert table.loc["+TSC", column] == f"{costs['+TSC'][key] / costs['TRADES'][key]:.2f}"
    made_up = {"TRADES": {"seconds": 0.01, "kept_bytes": 2e6}, "+TSC": {"seconds": 0.015, "kept_bytes": 3e6}}
    assert tscnc.costs_table(made_up).loc["+TSC"].tolist() == ["15.0", "1.50", "3.00", "1.50"]


def test_a_slope_rests_on_the_seeds_of_which_all_networks_are_known(quick, frame):
    """Of seed 1 only what another claim needed is there: it enters neither the regression nor the number of seeds."""
    assert tscnc.whole_seeds(frame, "WRN-28-10") == quick.seeds
    some = frame[(frame["seed"] != 1) | frame["method"].isin(["TRADES", "HYDRA"])]
    assert tscnc.whole_seeds(some, "WRN-28-10") == [seed for seed in quick.seeds if seed != 1]
    slopes = tscnc.thesis(some, "WRN-28-10")
    assert slopes["kappa, norms"]["runs"].iloc[0] == len(tscnc.observations(frame[frame["seed"] != 1], "WRN-28-10"))
    rows = rows_of(quick, some, slopes)
    sloping = rows[rows["claim"].str.startswith("C4")]
    assert set(sloping["n_seeds"]) == {len(quick.seeds) - 1} and set(sloping["verdict"]) == {claims.UNTESTED}
