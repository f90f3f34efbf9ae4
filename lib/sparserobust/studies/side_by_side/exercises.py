"""Exercises of 06_side_by_side."""

from dataclasses import replace

from sparserobust.attacks import PGD
from sparserobust.objectives import Adversarial
from sparserobust.running.experiment import Results
from sparserobust.sparsifiers import Magnitude, RandomMask
from sparserobust.studies.checks import Verdict, choice, chosen_run, exercise, number, rates
from sparserobust.studies.contest import with_removed
from sparserobust.studies.methods import DENSE, MAGNITUDE, WEIGHTS
from sparserobust.studies.questions import ATTACKED
from sparserobust.studies.side_by_side import toy


@exercise
def exercise_1(answer, results: Results) -> Verdict:
    """The method whose lowest mean accuracy under attack over the cuts is highest."""
    frame = results.frame
    cut = with_removed(frame[(frame["metric"] == ATTACKED) & (frame["method"] != DENSE)])
    means = cut.groupby(["method", "removed"])["value"].mean().unstack()
    worst = means.dropna().min(axis=1)
    slips = {method: f"its lowest is {100 * value:.1f} %, the best one's {100 * worst.max():.1f} %"
             for method, value in worst.items() if method != worst.idxmax()}
    slips |= {method: "it was not tried at every cut"
              for method in means.index.difference(worst.index)}
    slips[DENSE] = "the dense network is not cut"
    why = (f"its lowest mean is {100 * worst.max():.1f} %; Figure 1 shows how certain that order "
           "is")
    return choice(answer, worst.idxmax(), why, slips)


@exercise
def exercise_2(answer, results: Results) -> Verdict:
    """How many weights does a cut layer by layer keep, of the network of the toy, that the cut of
    all layers together removes?"""
    experiment = results.experiment
    cuts = toy.cuts(toy.network(experiment), experiment.settings.weights[0])
    together, apart = map(toy.kept, cuts.values())
    changed, kept = int((apart & ~together).sum()), int(apart.sum())
    why = (f"{100 * changed / kept:.0f} % of those that it keeps: two cuts of one size are two "
           "networks, so a comparison has to say how it cuts")
    return number(answer, changed, why, {
        kept: "that is how many it keeps: how many of these does the other cut remove?",
        kept - changed: "that many are kept by both",
        int((apart ^ together).sum()): "that counts each cut's own: only what is kept layer by layer",
        len(apart) - kept: "that is how many it removes",
        changed / kept: "that is a share: how many are they?"}, tolerance=0.001)


@exercise
def exercise_3(answer) -> Verdict:
    """The share of its weights that an ensemble of three must lose to be as small as one network
    without 90 %."""
    why = ("so at the same size an ensemble is cut much deeper than one network, which puts it at "
           "a disadvantage in this comparison")
    return number(answer, 1 - 0.1 / 3, why, {
        0.9: "then it would keep three times as many weights as the one network",
        0.9 / 3: "the share that *stays* is divided by three",
        0.1 / 3: "that is the share that stays",
        100 * (1 - 0.1 / 3): "a share is asked for, not percent"}, within=0.004)


@exercise
def exercise_4(answer) -> Verdict:
    """Gradients per image of 5 epochs of PGD-7 and 2 of FGSM-RS."""
    strong, quick = (Adversarial(attack=PGD(epsilon=0.1, step_size=0.02, steps=steps)).cost
                     for steps in (7, 1))
    why = "the attack is most of what adversarial training costs"
    return number(answer, 5 * strong + 2 * quick, why, {
        5 * (strong - 1) + 2 * (quick - 1):
            "that is the attacks alone: the training step takes a gradient, too",
        5 + 2: "those are epochs: how many gradients does a training step take?",
        7 * strong: "the last two epochs are attacked with one step",
        5 * strong: "what follows the cut counts as well"}, tolerance=0.001)


@exercise
def exercise_5(answer, results: Results) -> Verdict:
    """The control with a random mask of the first cut of weights."""
    experiment = results.experiment
    row = experiment.row(method=MAGNITUDE, cut=WEIGHTS, seed=experiment.seeds[0])
    correct = replace(row["run"], sparsifier=RandomMask(sparsity=row["level"]))
    layerwise = replace(row["run"], sparsifier=Magnitude(sparsity=row["level"], scope="layerwise"))
    kept = replace(correct, sparsifier=RandomMask(sparsity=round(1 - row["level"], 9)))

    def why() -> str:
        measured = {name: row["measurements"][name] for name in ("clean", ATTACKED)}
        return rates({"magnitude": row["run"], "at random": correct}, measured, results.store)

    return chosen_run(answer, correct, why, {
        row["run"]: "that is `magnitude` itself",
        layerwise: "that takes the smallest of each layer: nothing is drawn at random",
        kept: "that is the share that stays: sparsity is the share that goes",
        replace(correct, start=None): "it cuts a network as it begins: keep the start",
        replace(correct, recipe=replace(correct.recipe, epochs=0)):
            "it is not trained after the cut, as `magnitude` is"})
