"""Exercises: a right answer is told so, every slip gets its own reason, and the notebooks ask what is checked. Answers
that need trained networks are tried in tests/notebooks."""

import ast
import copy
import inspect
import math
import re
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas
import pytest
import torch

from scaffolding import results_of
from sparserobust import config, data, inheritance, models, notebook_runner, sparsity, training
from sparserobust.analysis import linear
from sparserobust.objectives import Natural
from sparserobust.sparsifiers import Magnitude, RandomMask, proximal
from sparserobust.studies import checks
from sparserobust.studies.fk_resnet import exercises as fk_resnet
from sparserobust.studies.fk_resnet import report as fk_report
from sparserobust.studies.fk_resnet import runs as fk_resnet_runs
from sparserobust.studies.iwi import comparisons as iwi_comparisons
from sparserobust.studies.iwi import exercises as iwi
from sparserobust.studies.iwi import runs as iwi_runs
from sparserobust.studies.iwi.comparisons import ticket
from sparserobust.studies.ring import exercises as ring
from sparserobust.studies.ring import runs as ring_runs
from sparserobust.studies.rsr import exercises as rsr
from sparserobust.studies.rsr import runs as rsr_runs
from sparserobust.studies.side_by_side import exercises as side_by_side
from sparserobust.studies.side_by_side import runs as side_by_side_runs
from sparserobust.studies.side_by_side import toy as side_by_side_toy
from sparserobust.studies.sparsity_theory import exercises as sparsity_theory
from sparserobust.studies.sparsity_theory import runs as theory_runs
from sparserobust.studies.start_here import exercises as start_here
from sparserobust.studies.start_here import runs as start_here_runs
from sparserobust.studies.tscnc import exercises as tscnc
from sparserobust.studies.tscnc import runs as tscnc_runs
from sparserobust.studies.your_network import exercises as your_network
from sparserobust.studies.your_network import runs as your_network_runs

NOTEBOOKS = [notebook_runner.find(name) for name in notebook_runner.names()]
MODULES = {"fk_resnet": fk_resnet, "iwi": iwi, "ring": ring, "rsr": rsr, "side_by_side": side_by_side,
           "sparsity_theory": sparsity_theory, "start_here": start_here, "tscnc": tscnc,
           "your_network": your_network}


def functions(module) -> dict:
    return {name: f for name, f in vars(module).items() if re.fullmatch(r"exercise_\d+", name)}


ALL = [pytest.param(f, id=f"{module}.{name}") for module, m in MODULES.items() for name, f in functions(m).items()]


def answered(check, *rest, correct, slips):
    """The check tells `right` for the correct answer and not for any of the slips, each with a word of its reason."""
    assert check(correct, *rest).startswith("right: ")
    for wrong, said in slips:
        verdict = check(wrong, *rest)
        assert verdict.startswith("not yet: ") and said in verdict, (wrong, verdict)
    assert re.match("not yet: .* is expected", check("about a half", *rest))


def alone_answered(check, *rest, correct, slips):
    """The same, and what is no answer at all gets one line, never a traceback."""
    answered(check, *rest, correct=correct, slips=slips)
    for odd in (None, "", math.nan, -math.inf, True, 1j, [1, 2], torch.zeros(2, 3), np.array(["x"]), len, Magnitude,
                pandas.DataFrame({"run": [1]}), {"run": 3}, torch.nn.Linear(2, 2), Magnitude(sparsity=0.5)):
        assert re.fullmatch("not yet: .* is expected.*", check(odd, *rest)), odd


# ---------------------------------------------------------------------------------------------- what all have in common


def test_a_verdict_is_shown_without_quotes():
    assert repr(checks.right("so")) == "right: so" and repr(checks.not_yet("so")) == "not yet: so"
    assert isinstance(checks.right("so"), str)


def test_a_number_may_be_any_scalar():
    for half in (0.5, np.float32(0.5), torch.tensor([0.5]), pandas.Series([0.5]), np.array(0.5)):
        assert checks.number(half, 0.5, "w", {}) == "right: w"
    assert checks.number(1, 1.0, "w", {}) == "right: w"
    for other in (True, None, [0.5], np.zeros(2), torch.zeros(2), {"a": 1}, 0.5j):
        assert re.match("not yet: a number is expected, not an? ", checks.number(other, 0.5, "w", {}))
    for other in (math.nan, math.inf, np.float64("nan"), torch.tensor(math.inf)):
        assert re.fullmatch("not yet: a number is expected, not (nan|inf)", checks.number(other, 0.5, "w", {}))
    assert checks.number("0.5", 0.5, "w", {}) == "not yet: a number is expected, not text"


def test_a_number_has_a_tolerance():
    def verdict(answer, **more):
        return checks.number(answer, 100, "w", {50: "half", 100.5: "near"}, **more)

    assert verdict(100.9) == verdict(99.1) == verdict(100.5) == "right: w"  # right comes before any slip
    assert verdict(102) == "not yet: 102 is too large" and verdict(98.9) == "not yet: 98.9 is too small"
    assert verdict(50.4) == "not yet: half"
    assert verdict(100.5, tolerance=0) == "not yet: near" and verdict(50.4, tolerance=0) == "not yet: 50.4 is too small"
    assert verdict(103, within=3) == "right: w" and verdict(103.6, within=3) == "not yet: 103.6 is too large"
    assert checks.number(0, 0, "w", {}) == "right: w" and checks.number(-2, 1, "w", {}) == "not yet: -2 is too small"
    for sign, said in ((1, "large"), (-1, "small")):  # beyond all floats
        assert checks.number(sign * 10**400, 5, "w", {2: "slip"}).endswith(f"is too {said}")


def test_slips_of_any_number_are_known():
    assert checks.number(-0.25, 0.25, "w", {}) == "not yet: the sign should be the other one"
    assert "a share, between 0 and 1, is expected" in checks.number(25, 0.25, "w", {})
    assert "percent or points are expected" in checks.number(0.25, 25, "w", {})
    assert "a plain number is expected" in checks.number(130, 1.3, "w", {})
    for none in (0, 0.6, 0.0):  # what may be read off so much beside is no hundredth of it
        assert checks.number(none, 42, "w", {21: "half"}, within=2.5).endswith("is too small")
    assert "a hundredth" in checks.number(0.44, 42, "w", {}, within=2.5)
    assert checks.number(20, 42, "w", {21: "half"}, within=2.5) == "not yet: half"
    assert checks.number(0.001, 0, "w", {0.5: "half"}) == "not yet: 0.001 is too large"
    assert checks.number(25, 0.25, "w", {25: "own"}) == "not yet: own"


def test_a_choice_is_one_of_some_words():
    def verdict(answer):
        return checks.choice(answer, "C&W", "w", {"DeepFool": "far"})

    assert verdict(" c&w ") == "right: w" and verdict("deepfool") == "not yet: far"
    assert verdict("PGD") == "not yet: one of 'C&W', 'DeepFool' is expected, not 'PGD'"
    assert "\n" not in verdict("PGD\nC&W") and len(verdict("P" * 10_000)) < 500
    assert verdict(3).endswith("is expected, not an int")


def test_a_run_is_told_by_what_differs(tiny_run):
    correct = tiny_run(seed=1)

    def verdict(answer):
        return checks.chosen_run(answer, correct, lambda: "w", {tiny_run(): "the seed"})

    assert verdict(correct) == verdict({"run": correct, "net": "A"}) == "right: w"
    assert verdict(tiny_run()) == "not yet: the seed"
    assert verdict(tiny_run(seed=2, epochs=1)) == "not yet: its recipe and its seed should be another"
    for other in (pandas.DataFrame(), {"net": "A"}, 3, "run"):
        assert verdict(other).startswith("not yet: a run is expected, such as ")


def test_a_prediction_is_compared_and_never_judged():
    assert checks.predicted(..., 12.34, "points") == "no prediction; it is 12.3 points"
    assert checks.predicted(30, 12.34, "points") == "predicted 30 points, and it is 12.3 points"
    assert checks.predicted(torch.tensor(0.5), 0.25) == "predicted 0.5, and it is 0.25"
    assert checks.predicted(" Lower", "lower") == "predicted 'Lower', and so it is"
    assert checks.predicted("lower", "higher") == "predicted 'lower', and it is 'higher'"
    assert checks.predicted(..., "higher") == "no prediction; it is 'higher'"
    assert checks.predicted("a lot", 1.0) == "it is 1; a prediction would be a number, not text"
    assert checks.predicted(2, "lower") == "it is 'lower'; a prediction would be a word like that, not an int"


def test_rates_are_told_by_run(monkeypatch, tiny_run):
    frame = pandas.DataFrame([{"name": n, "metric": m, "value": v} for n, m, v in (
        ("a", "PGD", 0.5), ("a", "clean", 0.976), ("b", "PGD", 0.25), ("b", "clean", 1.0))])
    monkeypatch.setattr(checks.sweep, "sweep", lambda grid, measurements, store: frame)
    said = checks.rates({"a": tiny_run(), "b": tiny_run(seed=1)}, {"clean": None, "PGD": None}, None)
    assert said == "clean 98 % (a), 100 % (b); PGD 50 % (a), 25 % (b)"


@pytest.mark.parametrize("check", ALL)
def test_three_dots_are_no_answer_and_cost_nothing(check):
    nothing = [None] * (len(inspect.signature(check).parameters) - 1)
    assert check(..., *nothing) == "not answered yet: replace the three dots"


# ------------------------------------------------------------------------------------------------------- 01_fk_resnet


@pytest.fixture(scope="module")
def ensembles():
    return results_of(fk_resnet_runs.experiment("quick"), None, pandas.DataFrame())


class Untrained:
    """A store that has no runs: networks are as they begin, histories as told."""

    def __init__(self, *history):
        self.history = list(history)

    def model(self, run):
        return training.build(run, data.load(run.data)).eval()

    def record(self, run):
        return {"history": self.history}

    def measure(self, run, measurement):
        return {"value": 1.0}


@pytest.fixture
def told(monkeypatch):
    """No run is trained: what runs reach is their names."""
    for module in MODULES.values():
        if hasattr(module, "rates"):
            monkeypatch.setattr(module, "rates", lambda runs, measurements, store: ", ".join(runs))


def test_beta():
    alone_answered(fk_resnet.exercise_2, correct=0.02, slips=[
        (0.01, "factor 2"), (2e-4, "root is missing"), (1e-4, "l1"), (50, "upside down"), (0.02**0.5, "root of beta"),
        (0.03, "too large"), (0.001, "too small")])
    kept = proximal.l0(torch.tensor([0.0099, 0.0101]), 1e-6 / 0.02)
    assert kept[0] == 0 < kept[1]


def test_smallest_radius_of_a_linear_classifier():
    answered(start_here.exercise_1, correct=0.05, slips=[(20, "the other way round"), (0.6, "that is the margin"),
                                                        (0.025, "no factor of two"), (0.3, "too large")])


def test_first_radius_below_a_half():
    rates = {"trained as usual": [0.9, 0.6, 0.3], "trained under attack": [0.9, 0.8, 0.7]}
    frame = pandas.DataFrame([{"net": net, "seed": 0, "metric": radius, "value": value} for net, values in rates.items()
                              for radius, value in zip(("0.05", "0.1", "0.15"), values, strict=True)])
    answered(start_here.exercise_2, results_of(None, None, frame), correct=0.15, slips=[
        (0.1, "still classifies 60 %"), (0.3, "that is the accuracy there"), (0.5, "too large")])
    both = frame.assign(value=[0.9, 0.6, 0.3, 0.9, 0.8, 0.4], metric=["0.05", "0.1", "0.15", "0.1", "0.15", "0.2"])
    answered(start_here.exercise_2, results_of(None, None, both), correct=0.15, slips=[
        (0.2, "trained under attack")])


def test_pruned_layer_by_layer(digits):
    """Of a network whose first layer is the identity, and whose last, with smaller weights, knows the mean of each
    class: pruned all together, it keeps most of the latter."""
    means = torch.stack([digits.train.images[digits.train.labels == c].flatten(1).mean(0) for c in range(10)])
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 64, bias=False), torch.nn.Linear(64, 10)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(64))
        net[2].weight.copy_((means - means.mean(0)) / 2)
        net[2].bias.copy_((means.mean(0) ** 2 - means**2).sum(1) / 4)
    results = results_of(start_here_runs.experiment("quick"), SimpleNamespace(model=lambda run: net), None)
    found = {}
    for scope in ("layerwise", "global"):
        copy = deepcopy(net)
        Magnitude(sparsity=0.9, scope=scope).start(copy)
        images = start_here_runs.attack(0.1)(copy, digits.test.images, digits.test.labels)
        found[scope] = 100 * float((copy(images).argmax(1) == digits.test.labels).double().mean())
    change = found["layerwise"] - found["global"]
    assert abs(change) > 20  # a right answer may be off by 0.3
    answered(start_here.exercise_3, results, correct=change, slips=[
        (-change, "the other way round"), (found["layerwise"], "minus what"), (found["global"], "all together")])


def test_noise_is_no_attack(net, digits):
    results = results_of(start_here_runs.experiment("quick"), SimpleNamespace(model=lambda run: net), None)
    images, labels = digits.test.images, digits.test.labels
    with torch.random.fork_rng():
        torch.manual_seed(1)
        moved = (images + 0.1 * torch.randn(images.shape).sign()).clamp(0, 1)
    at_random, attacked = (float((net(x).argmax(1) == labels).double().mean()) for x in (
        moved, start_here_runs.attack(0.1)(net, images, labels)))
    answered(start_here.exercise_4, results, correct=100 * (at_random - attacked), slips=[
        (at_random - attacked, "points are asked for"), (100 * at_random, "at random"), (-30, "too small")])


def test_what_all_attacks_leave_is_an_upper_bound():
    attacks = {name: {"value": value} for name, value in (
        ("clean", 0.99), ("one step", 0.98), ("PGD-20", 0.97), ("PGD-100", 0.96))}
    report = SimpleNamespace(result={"attacks": attacks, "value": 0.02})
    answered(your_network.exercise_1, report, correct=2, slips=[
        (97, "PGD-20 leaves"), (99, "clean leaves"), (0.02, "hundredth"), (50, "too large")])


def test_noise_is_found_by_asking_again():
    answered(your_network.exercise_2, correct="random", slips=[
        ("saturated", "too large for float32"), ("rounded input", "blurs"), ("batch", "stands beside")])


def test_a_gradient_that_hides_is_found_out(net):
    results = results_of(your_network_runs.experiment("quick"), SimpleNamespace(model=lambda run: net), None)
    answered(your_network.exercise_3, results, correct=lambda images: (8 * images).round() / 8, slips=[
        (lambda images: images, "sees nothing wrong"), (lambda images: 0 * images, "change less"),
        (lambda images: images[:3], "of the shape"), (lambda images: images.numpy(), "as a tensor"),
        (lambda images: (8 * images).int(), "not torch.int32"), (lambda images: (8 * images).round(), "divide again"),
        (lambda images: images + 0.01 * torch.randn_like(images), "average it away"),
        (lambda images: (8 * images).round().double() / 8, "torch.float32, not torch.float64"),
        (lambda images: images / 0, "not finite"),
        (lambda images: (8 * images).round() / 8 if len(images) > 99 else images[0], "shape"),
        (lambda images, levels: images, "fails, with TypeError"), (round, "fails, with TypeError")])


def test_the_control_of_rounding_rounds_and_lets_the_gradient_pass(net):
    results = results_of(your_network_runs.experiment("quick"), SimpleNamespace(model=lambda run: net), None)

    class Unpassable(torch.autograd.Function):
        @staticmethod
        def forward(ctx, images):
            return images.clone()

        @staticmethod
        def backward(ctx, slope):
            raise ValueError("no way back")

    def passing(images, sign=1, levels=4):
        return sign * images + ((levels * images).round() / levels - sign * images).detach()

    answered(your_network.exercise_4, results, correct=passing, slips=[
        (lambda images: (4 * images).round() / 4, "still zero"), (lambda images: images, "rounds them, too"),
        (lambda images: passing(images, levels=5), "rounds to 6 grey values, the network's to 5"),
        (lambda images: ((4 * images).round() / 4).detach(), "cut off"),
        (lambda images: ((4 * images).round() / 4).detach().requires_grad_(), "cut off"),
        (lambda images: passing(images).half(), "torch.float32, not torch.float16"),
        (lambda images: passing(images) if len(images) > 99 else images[0], "shape"),
        (lambda images: Unpassable.apply(passing(images)), "gradient fails, with ValueError"),
        (lambda images: images ** 2, "differ by up to"),
        (lambda images: passing(images, sign=-1), "other way"), (lambda images: images[0], "of the shape"),
        (lambda images: None, "as a tensor"), (torch.nn.Linear(3, 2), "fails, with RuntimeError")])
    verdict = your_network.exercise_4(passing, results)
    assert int(re.search(r"(\d+) where it passes", verdict)[1]) < int(re.search(r"(\d+) of", verdict)[1])


@pytest.mark.parametrize("check", [your_network.exercise_1, your_network.exercise_2, your_network.exercise_3,
                                   your_network.exercise_4, *functions(ring).values()])
def test_an_answer_of_another_kind_gets_one_line(check):
    experiments = {"ring": ring_runs.experiment("quick", [0]), "your_network": your_network_runs.experiment("quick")}
    frame = pandas.DataFrame([{"part": "ring", "method": method, "cut": "weights", "level": 0.95, "metric": metric,
                               "value": 0.5} for method in ("magnitude", "a") for metric in ("clean", "pgd")])
    results = results_of(experiments[check.__module__.split(".")[2]], None, frame)
    attacks = {name: {"value": 0.9} for name in ("clean", "one step", "PGD-20", "PGD-100")}
    given = {"results": results, "hidden_report": SimpleNamespace(result={"attacks": attacks, "value": 0.02})}
    rest = [given[name] for name in list(inspect.signature(check).parameters)[1:]]
    run = experiments["ring"].row(part="ring", method="dynamic", level=0.95)["run"]
    for answer in (None, "word", math.nan, torch.zeros(2, 3), frame, [1, 2], {"run": 3}, "", b"", 1j, run.sparsifier):
        verdict = check(answer, *rest)
        assert re.fullmatch("not yet: .* expected.*", verdict), (answer, verdict)


def in_one_line(check, *rest):
    """What is no answer at all is told so in a line."""
    frame = pandas.DataFrame({"run": [1]})
    for wrong in (None, "about a half", math.nan, torch.zeros(2, 2), len, frame, {"run": 3}, []):
        verdict = check(wrong, *rest)
        assert verdict.startswith("not yet: ") and "is expected" in verdict and "\n" not in verdict, verdict


@pytest.fixture(scope="module")
def contest():
    return side_by_side_runs.experiment("quick", [0])


def test_best_in_its_worst_cut():
    values = {"a": {"weights": 0.5, "channels": 0.4}, "b": {"weights": 0.9, "channels": 0.3},
              "scores": {"weights": 0.95}, "dense": {None: 0.99}}
    frame = pandas.DataFrame([{"metric": "pgd", "method": method, "cut": cut, "level": 0.5, "value": value}
                              for method, cuts in values.items() for cut, value in cuts.items()])
    results = results_of(None, None, frame)
    answered(side_by_side.exercise_1, results, correct="a", slips=[
        ("b", "its lowest is 30.0 %"), ("scores", "not tried at every cut"), ("dense", "is not cut")])
    in_one_line(side_by_side.exercise_1, results)


def test_another_cut_keeps_other_weights(contest):
    results, whole = results_of(contest, None, None), side_by_side_toy.network(contest)
    weights = [weight.detach() for weight in sparsity.prunable(whole).values()]
    sizes = torch.cat([weight.abs().flatten() for weight in weights])
    together = sizes >= sizes.sort().values[round(0.9 * len(sizes))]
    apart = torch.cat([w.abs().flatten() >= w.abs().flatten().sort().values[round(0.9 * w.numel())] for w in weights])
    kept, both = int(apart.sum()), int((apart & together).sum())
    answered(side_by_side.exercise_2, results, correct=kept - both, slips=[
        (kept, "how many it keeps"), (both, "kept by both"), (int((apart ^ together).sum()), "each cut's own"),
        (len(apart) - kept, "how many it removes"), (1 - both / kept, "share"), (kept - both - 9, "too small")])
    in_one_line(side_by_side.exercise_2, results)


def test_members_share_the_weights():
    answered(side_by_side.exercise_3, correct=29 / 30, slips=[
        (0.9, "three times as many"), (0.3, "that *stays*"), (1 / 30, "share that stays"), (290 / 3, "not percent")])
    in_one_line(side_by_side.exercise_3)


def test_gradients_of_two_trainings():
    answered(side_by_side.exercise_4, correct=44, slips=[
        (37, "attacks alone"), (7, "epochs"), (56, "one step"), (40, "counts as well"), (45, "too large")])
    in_one_line(side_by_side.exercise_4)


def test_control_with_a_random_mask(contest, told):
    cut, results = contest.row(method="magnitude", cut="weights")["run"], results_of(contest, None, None)
    drawn = replace(cut, sparsifier=RandomMask(sparsity=0.9))
    answered(side_by_side.exercise_5, results, correct=drawn, slips=[
        (cut, "`magnitude` itself"), (replace(cut, sparsifier=Magnitude(sparsity=0.9, scope="layerwise")), "at random"),
        (replace(cut, sparsifier=RandomMask(sparsity=0.1)), "share that stays"),
        (replace(drawn, start=None), "keep the start"),
        (replace(drawn, recipe=replace(drawn.recipe, epochs=0)), "not trained after the cut"),
        (replace(cut, sparsifier=RandomMask(sparsity=0.8)), "its sparsifier")])
    in_one_line(side_by_side.exercise_5, results)


def test_wide_layers_are_thinnest():
    ratio = 16 * 38 / 134
    answered(ring.exercise_3, correct=ratio, slips=[
        (1 / ratio, "other way round"), (4.0, "3 + 3"), (16, "how many times"), (38 / 134, "divided"),
        (9.0, "too large")])


def test_a_second_loss_has_a_second_attack():
    answered(ring.exercise_2, correct=4, slips=[
        (2, "plain scores"), (3, "attacked anew"), (1, "a gradient each"), (8, "too large")])


def test_what_falls_least():
    experiment = ring_runs.experiment("quick", [0])
    rates = {"magnitude": (0.8, 0.4), "a": (0.6, 0.4), "b": (0.9, 0.6), "c": (0.8, 0.5), "d": (1.0, 0.5)}
    frame = pandas.DataFrame([
        {"part": "ring", "method": method, "cut": "weights", "level": 0.95, "metric": metric, "value": value}
        for method, both in rates.items() for metric, value in zip(("clean", "pgd"), both, strict=True)
        ] + [
        {"part": "ring", "method": method, "cut": "channels", "level": 0.5, "metric": metric, "value": 0.5}
        for metric in ("clean", "pgd") for method in ("b", "e")])
    answered(ring.exercise_1, results_of(experiment, None, frame), correct="a", slips=[
        ("c", "it falls by 30.0 points, the least by 20.0"), ("magnitude", "by 40.0"), ("e", "no network at this cut"),
        ("b", "the best under attack, and falls by 30.0"), ("d", "the best on clean images, and falls by 50.0"),
        ("dense", "nothing is removed"), ("dense, in two stages", "nothing is removed")])


def test_control_with_a_mask_that_stays(told):
    experiment = ring_runs.experiment("quick", [0])
    run = experiment.row(part="ring", method="dynamic", level=0.95)["run"]
    answered(ring.exercise_4, results_of(experiment, None, None),
             correct=replace(run, sparsifier=replace(run.sparsifier, share=0.0)), slips=[
        (run, "`dynamic` itself"), (replace(run, sparsifier=replace(run.sparsifier, growth="random")), "still changes"),
        (replace(run, sparsifier=replace(run.sparsifier, share=1.0)), "not what stays"),
        (replace(run, sparsifier=replace(run.sparsifier, stop=0)), "say so with `share`"),
        (replace(run, sparsifier=replace(run.sparsifier, share=0.0, growth="random")), "leave `growth`"),
        (experiment.row(part="overfitting", method="sparse, mask fixed", kept="last")["run"], "more epochs"),
        (experiment.row(part="ring", method="magnitude", level=0.95)["run"], "that is `magnitude`"),
        (replace(run, seed=5), "its seed")])


PARAMETERS, CHANNELS = "remaining_parameters", "channel_sparsity"


def left_frame(*rows) -> pandas.DataFrame:
    columns = ["net", "level", "metric", "seed", "count", "total"]
    return pandas.DataFrame(rows, columns=columns).assign(method="RGSM")


def test_size_of_the_headlines_ensemble():
    frame = left_frame(("En5ResNet20", 0.02, PARAMETERS, 0, 600, 1000), ("En5ResNet20", 0.02, PARAMETERS, 1, 500, 1000),
                       ("ResNet20", 0.1, PARAMETERS, 0, 160, 200), ("ResNet20", 0.1, PARAMETERS, 1, 115, 200),
                       ("ResNet20", 0.1, PARAMETERS, 2, 199, 200), ("En5ResNet20", 0.02, CHANNELS, 0, 20, 50),
                       ("En5ResNet20", 0.01, PARAMETERS, 0, 999, 1000), ("ResNet20", 0.1, CHANNELS, 0, 3, 10))
    alone_answered(fk_resnet.exercise_1, results_of(None, None, frame), correct=550 / 137.5, slips=[
        (137.5 / 550, "upside down"), (5, "before pruning"), (0.8, "compares shares"), (7.2, "parameters removed"),
        (30 / 7, "those are channels"), (4 / 3, "shares of channels removed"), (6, "too large")])


def test_channels_left():
    frame = left_frame(("En2ResNet20", 0.1, CHANNELS, 0, 100, 200), ("En2ResNet20", 0.1, CHANNELS, 1, 120, 200),
                       ("ResNet20", 0.1, CHANNELS, 0, 20, 100), ("ResNet20", 0.1, CHANNELS, 1, 20, 100),
                       ("ResNet20", 0.1, CHANNELS, 2, 99, 100), ("ResNet20", 0.05, CHANNELS, 0, 1, 100))
    assert fk_report.channels_left(results_of(None, None, frame)) == pytest.approx(180 / 160)
    printed = fk_report.channels_left_reported()  # 766 of the ensemble's 1,350 channels are removed, 171 of 675
    assert printed == pytest.approx((1350 - 766) / (675 - 171), rel=1e-3)


def test_gap(ensembles):
    results = replace(ensembles, store=Untrained({"gap": 0.9}, {"gap": 0.2}))
    alone_answered(fk_resnet.exercise_3, results, correct=0.96, slips=[
        (0.8, "lengths do not add up"), (0.2, "not squared"), (0.04, "which one stays"), (0.96**0.5, "|u| / |w|"),
        (0.19, "first epoch"), (96, "between 0 and 1"), (0.9, "too small")])


def test_ensemble_without_noise(ensembles, told):
    noisy, single = (ensembles.experiment.row(net=net, method="dense")["run"] for net in ("En2ResNet20", "ResNet20"))
    quiet = replace(noisy, model=replace(noisy.model, noise=0.0))
    alone_answered(fk_resnet.exercise_4, ensembles, correct=quiet, slips=[
        (noisy, "with its noise"), (single, "one network"),
        (replace(quiet, model=replace(quiet.model, members=1)), "one"),
        (replace(quiet, objective=Natural()), "not trained under attack"),
        (replace(quiet, seed=9), "its seed")])


def test_projected_admm(ensembles, told):
    released, corrected = (ensembles.experiment.row(net="ResNet20", method=m)["run"]
                           for m in ("released ADMM weights", "ADMM weights"))
    cut = replace(released, start=released, recipe=replace(released.recipe, epochs=0),
                  sparsifier=Magnitude(sparsity=0.75, scope="layerwise"))
    alone_answered(fk_resnet.exercise_5, ensembles, correct=cut, slips=[
        (replace(cut, recipe=released.recipe), "trains on"), (replace(cut, start=None), "untrained"),
        (replace(cut, start=corrected), "projected already"),
        (replace(cut, sparsifier=Magnitude(sparsity=0.75)), "layerwise"),
        (replace(cut, sparsifier=Magnitude(sparsity=0.8, scope="layerwise")), "percentile"),
        (released, "not projected"), (corrected, "corrected ADMM")])


# ------------------------------------------------------------------------------------------------------------- 02_iwi


@pytest.fixture(scope="module")
def tickets():
    return results_of(iwi_runs.experiment("quick"), None, pandas.DataFrame())


@pytest.fixture(scope="module")
def toys():
    """A narrow network, the settings of a wide one, and a wide one that inherits from the narrow one."""
    small, wide = models.PreActResNet(depth=8, width=4).build((1, 8, 8), 10), models.PreActResNet(depth=8, width=8)
    inherited = wide.build((1, 8, 8), 10)
    inheritance.inherit(inherited, small.state_dict(), config.Inheritance(kappa=0))
    return small.eval(), wide, inherited


def test_zeros_of_a_network_that_inherits(toys):
    *_, inherited = toys
    _, total = sparsity.zero_weights(inherited)
    half = (total - 8 * 9) // 2  # the stem has no new inputs
    alone_answered(iwi.exercise_3, {0: inherited}, correct=half, slips=[
        (total // 2, "counts all layers; the first reads the image and has no new inputs"),
        (half * 3 // 2, "at their default"), (total * 3 // 4, "at their default"), (half // 2, "no channel reads"),
        (total - half, "*not* zero"), (0.5, "share"), (half / total, "share"), (half + 1, "too large")])


def test_share_without_gradient(toys):
    small, wide, _ = toys
    layers, _ = iwi.stuck(small, wide)
    assert len(layers) == 8 and all(0.75 <= share < 0.8 for share in layers.values())  # 6 convolutions, 2 shortcuts
    alone_answered(iwi.exercise_4, small, wide, correct=0.75, slips=[
        (0.5, "both together"), (0.25, "does move"), (1, "inherited corner"), (75, "between 0 and 1"),
        (0.6, "too small")])


def test_cost_of_what_is_inherited(tickets):
    experiment = tickets.experiment
    labels = [iwi_comparisons.dense("ResNet") | {"seed": 0}, {"net": "ResNet", "method": iwi_runs.SMALL, "seed": 0},
              {"net": "LeNet-5", "part": "dense", "retraining": "adversarial", "seed": 0}]
    frame = pandas.DataFrame([{"metric": "macs", "run": experiment.row(**each)["run"].identity, "value": macs}
                              for each, macs in zip(labels, (100, 30, 5), strict=True)])
    alone_answered(iwi.exercise_1, results_of(experiment, None, frame), correct=1.3, slips=[  # both for five epochs
        (1, "without what it inherits from"), (2, "those are epochs"), (0.3, "the narrow network's share"),
        (1.4, "rounded up"), (1 / 1.3, "upside down"), (13, "those are passes"), (3, "too large")])


def test_inheritance_at_equal_cost(tickets):
    experiment = tickets.experiment
    kappa, net = experiment.settings.inheritance.kappa, experiment.nets[0]
    rates = {("dense", "dense", 0.0): (0.70, 0.90), ("inheritance", iwi_runs.IWI["ticket"], kappa): (0.78, 0.91),
             ("inheritance", iwi_runs.EQUAL["ticket"], None): (0.80, 0.95),
             ("inheritance", iwi_runs.EQUAL["narrow"], None): (0.75, 0.95),
             ("inheritance", iwi_runs.IWI["narrow"], kappa): (0.76, 0.91),
             ("inheritance", iwi_runs.MATCHED["ticket"], None): (0.775, 0.9)}
    rows = []
    for (part, method, level), values in rates.items():
        for metric, value in zip(("pgd20", "clean"), values, strict=True):
            rows += [{"net": net, "part": part, "pruning": "", "retraining": "adversarial", "method": method,
                      "level": level, "seed": seed, "run": f"{method} {seed}", "metric": metric, "chance": 0.1,
                      "value": value + seed / 100, "sampled": True, "each": None} for seed in (0, 1)]
    alone_answered(iwi.exercise_2, results_of(experiment, None, pandas.DataFrame(rows)), correct=-2.0, slips=[
        (8, "as many epochs"), (2, "other way round"), (-0.02, "points"), (1, "narrow"), (-4, "clean"),
        (0.5, "histogram"), (-3, "too small")])
    own = experiment.settings_for(net)
    narrow = replace(own, inheritance=replace(own.inheritance, sources=(iwi_runs.NARROW,)))
    no_ticket = results_of(replace(experiment, settings_by_net={net: narrow}), None, pandas.DataFrame(rows))
    assert iwi.exercise_2(1, no_ticket) == "not yet: nothing inherits from a ticket at this scale"


def test_signs_of_a_ticket(tickets, monkeypatch):
    run, asked = tickets.experiment.row(**ticket("ResNet", 0.95), seed=0)["run"], []
    results = replace(tickets, store=Untrained({"validation_robust": 0.5}))
    trained = SimpleNamespace(history=[{"validation_robust": 0.25}])
    monkeypatch.setattr(iwi.training, "train", lambda run, splits, start, others: asked.append(run) or trained)

    def begun(change, last=False):
        model = training.build(run, data.load(run.data))
        with torch.no_grad():
            for weight in list(sparsity.prunable(model).values())[-1 if last else 0:]:
                weight.copy_(change(weight))
        return model

    sized = begun(lambda w: w.sign() * w.std())
    said = iwi.exercise_6(sized, results)
    assert "keeps 25 % of 97 validation images under attack, with its values 50 %" in said
    alone_answered(iwi.exercise_6, results, correct=sized, slips=[
        (begun(lambda w: w), "has the values"), (begun(lambda w: w.abs() + 1), "does not have the signs"),
        (begun(lambda w: 2 * w), "several sizes"), (begun(lambda w: w.sign()), "not its standard deviation"),
        (begun(lambda w: w.sign() * w.std(), last=True), "has the values"),
        (begun(lambda w: w * torch.nan), "does not have the signs"), (sized.state_dict(), "a network is expected"),
        (sized.members[0], "a network is expected"), (lambda images: images, "a network is expected"),
        (models.LeNet300100().build((1, 8, 8), 10), "a network is expected"), (3, "a network is expected")])
    for unready in (training.build(run, data.load(run.data)).to("meta"), torch.nn.LazyLinear(3)):
        assert "a network is expected" in iwi.exercise_6(unready, results)
    assert "keeps 25 %" in iwi.exercise_6(copy.deepcopy(sized).double(), results)
    assert asked == [run, run, run], "trained when the answer is right, and only then"


def test_inheritance_from_a_quarter(tickets, told):
    row = tickets.experiment.row(net="ResNet", method=iwi_runs.IWI["narrow"], level=0.1, seed=0)
    half = row["run"]
    quarter = replace(half.start, model=replace(half.model, width=2))
    inherited = replace(half, start=quarter)
    alone_answered(iwi.exercise_5, tickets, correct=row | {"run": inherited}, slips=[
        (row, "half the width"), (quarter, "the answer starts from it"), (half.start, "small network of half"),
        (replace(inherited, model=quarter.model), "that is narrow itself"),
        (replace(inherited, inheritance=config.Inheritance(kappa=0)), "kappa"),
        (replace(inherited, seed=5), "its seed")])


# ------------------------------------------------------------------------------------------------------------- 03_rsr


ODD = [None, "a guess", math.nan, -math.inf, torch.zeros(2, 3), np.array(["x"]), lambda: 0.5, pandas.DataFrame(), [0.5],
       pandas.DataFrame({"a": [1]}), {"run": "dense"}, torch.nn.Linear(2, 2), torch.nn.Linear, 1j]


def refused(check, *rest):
    """What is no answer at all gets one line, and never a traceback."""
    for odd in ODD:
        assert re.fullmatch("not yet: .* is expected.*", check(odd, *rest)), odd


@pytest.fixture(scope="module")
def noisy():
    return rsr_runs.experiment("quick")


@pytest.fixture
def ablated(noisy):
    """Runs of the first seed of a method, by stage."""
    return lambda method: {stage: noisy.row(net=rsr_runs.ABLATED, method=method, stage=stage, varied="", seed=0)["run"]
                           for stage in ("dense", "pruned", "fine-tuned")}


def test_loudest_layer(noisy, ablated):
    first, last = (dict(zip(("stem", "b1", "b2", "linear"), scales, strict=True))
                   for scales in ((0.1, 0.2, 0.3, 0.2), (0.05, 0.2, 0.1, 0.1)))
    kept = {ablated("RSR")["dense"]: [first, last], ablated("AT + noise")["dense"]: [first, last | {"linear": 0.9}]}
    store = SimpleNamespace(record=lambda run: {"history": [{"noise_scales": scales} for scales in kept[run]]})
    results = results_of(noisy, store, None)
    answered(rsr.exercise_1, results, correct=" B1", slips=[
        ("stem", "keeps the least"), ("b2", "after the first epoch"), ("linear", "loudest of AT + noise")])
    assert "'b1', 'b2', 'linear', 'stem'" in rsr.exercise_1("b3", results)
    kept[ablated("RSR")["dense"]][0] = kept[ablated("AT + noise")["dense"]][1] = last
    answered(rsr.exercise_1, results, correct="b1", slips=[("b2", "ends at 0.100, another one at 0.200")])
    refused(rsr.exercise_1, results)


def test_square_without_noise(noisy):
    net = noisy.settings.black_box.net
    rates = {"AT": {"square": 0.4, "square_quiet": 0.4, "clean": 0.95},
             "RSR": {"square": 0.8, "square_quiet": 0.5, "clean": 0.9}}
    frame = pandas.DataFrame([
        {"net": net, "method": method, "stage": stage, "varied": "", "metric": metric, "seed": seed, "value": value,
         "run": f"{method} {seed}", "chance": 0.1, "sampled": True, "each": None}
        for method, stage in rsr_runs.BLACK_BOX for metric, value in rates[method].items() for seed in (0, 1)])
    results = results_of(noisy, None, frame)
    answered(rsr.exercise_2, results, correct=10.0, slips=[
        (40, "noise on"), (30, "silence takes away"), (-10, "other way round"), (0.1, "points"), (-5, "clean"),
        (20, "too large")])
    assert rsr.exercise_2(10.1, results).startswith("right: "), "a difference of two numbers as the table prints them"
    refused(rsr.exercise_2, results)


def test_standard_deviation_after_pruning():
    w = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    left = float((sparsity.all_but_smallest(w.abs(), 170_000) * w).std())
    assert rsr.variance_left(0.85) == pytest.approx(left**2, abs=0.01) and rsr.variance_left(0.0) == pytest.approx(1)
    answered(rsr.exercise_3, correct=left, slips=[
        (0.15**0.5, "one size"), (0.15, "share of weights"), (left**2, "square root"),
        (left / 0.15**0.5, "zeros count"),
        (1 / left, "upside down"), (100 * left, "in percent"), (0.9, "too large")])
    refused(rsr.exercise_3)


def test_beyond_the_lasso(noisy, ablated, told):
    dense, pruned, tuned = ablated("RSR").values()
    further = Magnitude(sparsity=0.97)
    most, results = replace(tuned, sparsifier=further), results_of(noisy, None, None)
    answered(rsr.exercise_4, results, correct=most, slips=[
        (replace(pruned, sparsifier=further), "not fine-tuned"), (tuned, "usual sparsity"),
        (replace(dense, sparsifier=further), "untrained"),
        (replace(most, start=replace(dense, sparsifier=further)), "no lasso"),
        (replace(most, sparsifier=Magnitude(sparsity=0.97, scope="layerwise")), "all together"),
        (replace(most, sparsifier=Magnitude(sparsity=0.9)), "its sparsifier"), (replace(most, seed=7), "its seed")])
    refused(rsr.exercise_4, results)


def test_a_scale_without_the_rows_of_an_exercise_says_so(noisy, refusal):
    left = replace(noisy, grid=[row for row in noisy.grid if row["stage"] != "fine-tuned"])
    assert "scale quick has no run" in refusal(rsr.exercise_4, "an answer", results_of(left, None, None))


def test_decay_in_place_of_a_lasso(noisy, ablated, told):
    runs, results = ablated("AT + noise"), results_of(noisy, None, None)
    more = replace(runs["dense"], recipe=replace(runs["dense"].recipe, weight_decay=5e-3))
    answered(rsr.exercise_5, results, correct=replace(runs["pruned"], start=more), slips=[
        (more, "not cut yet"), (runs["pruned"], "usual decay"), (runs["dense"], "the dense network"),
        (ablated("RSR")["pruned"], "its lasso"),
        (replace(runs["pruned"], recipe=replace(runs["pruned"].recipe, weight_decay=5e-3)), "no epochs"),
        (replace(runs["pruned"], start=replace(more, seed=3)), "its start")])
    refused(rsr.exercise_5, results)


# ------------------------------------------------------------------------------------------------- 04_sparsity_theory


@pytest.fixture(scope="module")
def theory():
    return theory_runs.experiment("quick")


@pytest.fixture
def first(theory):
    """Labels of the network of which exercises ask."""
    return {"net": theory_runs.networks(theory)[0], "training": "natural", "seed": 0}


def test_margin_over_slope(theory):
    values = {"margins": (8.0, 6.0), "margins slope": (16.0, 8.0), "margins ratio": (0.5, 0.8),
              "margins_linf ratio": (0.1, 0.4)}
    frame = pandas.DataFrame([
        {"net": net, "method": "dense", "training": training, "metric": metric, "value": value + shift}
        for net, shift in zip(theory_runs.networks(theory)[:2], (0, 9), strict=True) for metric, pair in values.items()
        for training, value in zip(("natural", "adversarial"), pair, strict=True)])
    results = results_of(theory, None, frame)
    answered(sparsity_theory.exercise_1, results, correct=1.6, slips=[
        (0.75, "margin alone"), (0.5, "slope alone"), (1 / 1.6, "upside down"), (1.5, "ratio of means"), (4, "l1"),
        (2, "large")])
    refused(sparsity_theory.exercise_1, results)


@pytest.mark.parametrize("near, far, reached", [("C&W", "DeepFool", (2.0, 0.5)), ("DeepFool", "C&W", (0.5, 2.0))])
def test_the_nearer_attack_counts(theory, first, near, far, reached):
    frame = pandas.DataFrame([{"net": first["net"], "method": "k-winners", "level": level, "metric": metric,
                               "value": value + 9 * (level != 0.1), "seed": 0} for level in (0.1, 0.5)
                              for metric, value in zip(("deepfool", "cw"), reached, strict=True)])
    results = results_of(theory, None, frame)
    answered(sparsity_theory.exercise_2, results, correct=near, slips=[
        (far, "within 0.50"), ("both", "mean"), ("neither", "no further")])
    refused(sparsity_theory.exercise_2, results)


def test_l1_at_equal_l2():
    answered(sparsity_theory.exercise_3, correct=0.5, slips=[
        (0.25, "those have grown"), (2, "each weight grows"), (1, "|w|_2"), (0.75, "share that goes"),
        (0.75**0.5, "not 75"), (50, "in percent"), (0.4, "too small")])
    refused(sparsity_theory.exercise_3)


def test_a_scaled_classifier():
    toy = linear.Binary(torch.tensor([3.0, 4.0]).double(), torch.tensor([1.0, 2.0, -1.0, 3.0]).double(), 2.0)
    answered(sparsity_theory.exercise_4, toy, correct=1, slips=[
        (10, "norm below"), (0.1, "numerator"), (100, "below the other"), (3, "too large")])
    refused(sparsity_theory.exercise_4, toy)


def test_random_masks(theory, first):
    run = theory.row(**first, method="dense")["run"]
    store = Untrained()

    def masked(keep, last=False, factor=1.0, bias=0.0):
        model = store.model(run)
        layers = [layer for layer in model if isinstance(layer, torch.nn.Linear)]
        with torch.no_grad():
            for layer in layers if last else layers[:-1]:
                layer.weight.mul_(keep(layer.weight)).mul_(factor)
                layer.bias.add_(bias)
        return model

    def few(w):
        return (torch.rand_like(w) > 0.9).to(w)

    results = results_of(theory, store, None)
    answered(sparsity_theory.exercise_5, results, correct=masked(few), slips=[
        (masked(few, last=True), "last layer"), (masked(few, factor=2.0), "keep its value"),
        (masked(few, bias=1.0), "biases"), (masked(lambda w: math.nan), "keep its value"),
        (masked(lambda w: 1 - few(w)), "that keeps 90 %"), (masked(lambda w: torch.rand_like(w) > 0.5), "not 90 %"),
        (masked(lambda w: w.abs() >= w.abs().quantile(0.9)), "smallest"), (masked(lambda w: 1.0), "0 % of a hidden"),
        (models.LeNet5(kernel=3).build((1, 8, 8), 10), "a network is expected"), (3, "a network is expected"),
        (torch.nn.LazyLinear(3), "a network is expected"), (masked(few).to("meta"), "a network is expected")])
    assert sparsity_theory.exercise_5(masked(few).double().train(), results).startswith("right: ")
    refused(sparsity_theory.exercise_5, results)


def test_pruned_at_random(theory, first, told):
    pruned, dense = (theory.row(**first, **labels)["run"]
                     for labels in ({"method": "magnitude", "level": 0.9}, {"method": "dense"}))
    drawn, results = replace(pruned, start=dense, sparsifier=RandomMask(sparsity=0.9)), results_of(theory, None, None)
    answered(sparsity_theory.exercise_6, results, correct=drawn, slips=[
        (pruned, "its smallest weights"), (dense, "that is dense"),
        (replace(drawn, start=pruned.start), "pruned already"),
        (replace(drawn, sparsifier=Magnitude(sparsity=0.9)), "smallest"),
        (replace(drawn, recipe=replace(drawn.recipe, epochs=0)), "not trained on"),
        (replace(drawn, start=None), "untrained"),
        (replace(drawn, sparsifier=RandomMask(sparsity=0.8)), "its sparsifier"), (replace(drawn, seed=7), "its seed")])
    refused(sparsity_theory.exercise_6, results)


# ----------------------------------------------------------------------------------------------------------- 05_tscnc


@pytest.fixture(scope="module")
def conditioned():
    return tscnc_runs.experiment("quick")


def test_pole():
    pole = 2 / (50_000 * 5e-4 / 0.7) * (100 / 0.92 - 0.576)
    answered(tscnc.exercise_3, correct=pole, slips=[
        (pole / 0.7, "without the factor 1 - 0.3"), (pole * 0.7, "not twice"),
        (0.056 * (100 - 0.576), "c has to be larger"),
        (0.056 * (92 - 0.576), "c = a / p"), (pole / 2, "1/2"), (pole**0.5, "square"), (2, "too small")])
    in_one_line(tscnc.exercise_3)


def conditioning_frame(experiment, metrics, **labels) -> pandas.DataFrame:
    some = {"net": experiment.nets[0], "seed": 0} | labels
    return pandas.DataFrame([some | {"metric": metric, "method": method, "value": value}
                             for metric, values in metrics.items() for method, value in values.items()])


def test_lost_rank(conditioned):
    zero = dict(zip(tscnc_runs.METHODS, (0.2, 0.5, 0.3, 0.1, 0.4), strict=True))
    frame = conditioning_frame(conditioned, {"kappa zero": zero, "kappa": dict.fromkeys(zero, 2.0)}, part="pruned",
                               level=conditioned.settings.levels[-1])
    less = {method: share for method, share in zero.items() if method != "HYDRA"}
    results = results_of(conditioned, None, frame)
    answered(tscnc.exercise_1, results, correct="HYDRA", slips=[
        (method, f"loses {100 * share:.1f} %, another one 50.0 %") for method, share in less.items()])
    in_one_line(tscnc.exercise_1, results)


def test_zero_singular_values(conditioned):
    class Cut(Untrained):
        def model(self, run):
            model = super().model(run)
            with torch.no_grad():
                for weight in list(sparsity.prunable(model).values())[1:4]:
                    weight[:2] = 0
            return model

    store = Cut()
    model = store.model(conditioned.row(part="dense")["run"])
    total = sum(min(weight.flatten(1).shape) for weight in sparsity.prunable(model).values())
    results = results_of(conditioned, store, pandas.DataFrame())
    answered(tscnc.exercise_4, results, correct=6, slips=[
        (total - 6, "*not* zero"), (total, "how many there are"), (3, "how many layers"), (6 / total, "share"),
        (7, "too large")])
    in_one_line(tscnc.exercise_4, results)


def test_a_scaled_last_layer(conditioned):
    results = results_of(conditioned, None, pandas.DataFrame())
    answered(tscnc.exercise_5, results, correct=2.3, slips=[
        (1, "accuracy stays"), (2.3**2, "linear"), (2.3**0.5, "linear"), (1 / 2.3, "the logits grow"),
        (4, "too large")])
    in_one_line(tscnc.exercise_5, results)


def test_conditioning_undone(conditioned):
    values = {("dense", 0.0): ({"TSCNC": 1.1, "+CNC": 1.25}, 4.0), ("pruned", 0.5): ({"TSCNC": 99.0}, 99.0),
              ("pruned", 0.9): ({"TSCNC": 3.2, "+CNC": 3.0, "HYDRA": 3.5}, 6.0)}
    frame = pandas.concat([conditioning_frame(
        conditioned, {"kappa classifier": classifier, "kappa": {"TSCNC": convolutions}}, part=part, level=level)
        for (part, level), (classifier, convolutions) in values.items()])
    results = results_of(conditioned, None, frame)
    answered(tscnc.exercise_2, results, correct=3.2 / 1.1, slips=[
        (1.1 / 3.2, "upside down"), (3.2, "kappa itself"), (2.1, "difference"), (2.4, "+CNC"), (1.5, "convolutions"),
        (9, "too large")])
    in_one_line(tscnc.exercise_2, results)


def test_both_constraints_everywhere(conditioned, told):
    usual, single = (conditioned.row(part="dense", method=m, seed=0)["run"] for m in ("TSCNC", "+CNC"))

    def changed(run, **changes):
        return replace(run, sparsifier=replace(run.sparsifier, **changes))

    results = results_of(conditioned, Untrained(), pandas.DataFrame())
    answered(tscnc.exercise_6, results, correct=changed(usual, layers="all", condition=0.1), slips=[
        (usual, "classifier alone"), (changed(usual, layers="all"), "too strong"),
        (changed(usual, condition=0.1), "layers should be all"),
        (changed(single, layers="all", condition=0.1), "no constraint on sparsity"),
        (changed(usual, a=1.0), "its sparsifier")])
    in_one_line(tscnc.exercise_6, results)


def test_gates_that_decay_are_the_control(conditioned, told):
    """It is a run of the page, and is measured there after pruning."""
    usual, alone = (conditioned.row(part=part, method=m, level=0.0, seed=0)["run"]
                    for part, m in (("dense", "TSCNC"), ("varied", "gates alone")))

    def changed(**changes):
        return replace(usual, sparsifier=replace(usual.sparsifier, **changes))

    control, results = changed(a=1e12, l0=0, condition=0), results_of(conditioned, None, None)
    assert control == conditioned.row(part="varied", method="TSC, decay alone", level=0.0)["run"]
    answered(tscnc.exercise_7, results, correct=control, slips=[
        (usual, "both constraints"), (changed(condition=0), "that is +TSC"),
        (conditioned.row(part="dense", method="+TSC", seed=0)["run"], "that is +TSC"),
        (changed(a=1e12, l0=0), "still constrains"), (changed(a=1e12, condition=0), "still costs"),
        (changed(l0=0, condition=0), "still bends"), (changed(sparse=0, condition=0), "like all other weights"),
        (alone, "no decay of their own"), (replace(control, seed=1), "its seed")])
    assert tscnc.exercise_7(control, results).startswith("right: with 90 % removed, TSCNC, control, HYDRA. ")
    in_one_line(tscnc.exercise_7, results)


# -------------------------------------------------------------------------------------------------------- the notebooks


def exercise_cells(path) -> dict[str, dict[str, nbformat.NotebookNode]]:
    """Number of an exercise to its question, the cell for the answer, and the solution."""
    cells = {cell.id: cell for cell in nbformat.read(path, as_version=4).cells}
    numbers = [match[1] for name in cells if (match := re.fullmatch(r"exercise-(\d+)", name))]
    return {n: {"text": cells[f"exercise-{n}-text"], "code": cells[f"exercise-{n}"], "solution": cells[f"solution-{n}"]}
            for n in numbers}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_has_exercises_that_are_checked(path):
    found = exercise_cells(path)
    assert len(found) >= 3 and list(found) == [str(n) for n in range(1, len(found) + 1)]
    module = path.stem.split("_", 1)[1]
    for number, cells in found.items():
        assert [cells[kind].cell_type for kind in ("text", "code", "solution")] == ["markdown", "code", "markdown"]
        assert cells["text"].source.startswith(f"**{number}.** ")
        first, call = cells["code"].source.split("\n")
        assert first == "answer = ...  # your answer"
        expected = functions(MODULES[module])[f"exercise_{number}"]
        arguments = re.fullmatch(rf"exercises\.exercise_{number}\((.*)\)", call)[1].split(", ")
        assert arguments == list(inspect.signature(expected).parameters)
        assert [o["data"]["text/plain"] for o in cells["code"].outputs] == [checks.OPEN]
        solution = cells["solution"].source
        assert solution.startswith("<details><summary>Solution</summary>") and solution.endswith("</details>")
        *_, last = ast.parse(re.search(r"```python\n(.*?)\n```", solution, re.DOTALL)[1]).body
        assert isinstance(last, ast.Assign) and [target.id for target in last.targets] == ["answer"]


def stored(tree) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_solution_takes_a_name_that_the_page_needs_afterwards(path):
    taken: set[str] = set()
    cells = nbformat.read(path, as_version=4).cells
    for cell in cells:
        if re.fullmatch(r"solution-\d+", cell.id):
            taken |= stored(ast.parse(re.search(r"```python\n(.*?)\n```", cell.source, re.DOTALL)[1])) - {"answer"}
        elif cell.cell_type == "code" and not cell.id.startswith("exercise-"):
            tree = ast.parse(cell.source)
            read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - stored(tree)
            assert not read & taken, cell.id


def test_every_exercise_is_asked_in_a_notebook():
    asked = {path.stem.split("_", 1)[1]: len(exercise_cells(path)) for path in NOTEBOOKS}
    assert {name: len(functions(module)) for name, module in MODULES.items()} == asked
