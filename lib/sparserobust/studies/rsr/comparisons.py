"""What Robust Sparse Regularization (Rakin et al. 2019) claims, and what is compared to judge it."""

from collections.abc import Iterator
from dataclasses import replace

import pandas

from sparserobust.reporting import claims, reported, tables
from sparserobust.reporting.claims import Contrast
from sparserobust.reporting.reported import Claim
from sparserobust.running.experiment import Results
from sparserobust.studies.rsr.runs import ABLATED, RSRSettings

ACCURACIES = {"clean": "clean", "PGD-7": "pgd7", "FGSM": "fgsm"}
PROTOCOL = {"removed": "sparsity"} | ACCURACIES
NO_NOISE = {"PGD-7, averaged": "pgd7_eot", "noise off: clean": "clean_quiet", "noise off: PGD-7": "pgd7_quiet"}
EFFECTS = ACCURACIES | NO_NOISE


def labels(net: str, method: str, stage: str, varied: str = "") -> dict:
    """The labels that name a row in which at most a switch is varied."""
    return {"net": net, "method": method, "stage": stage, "varied": varied}


def gains(nets: list[str]) -> tables.Pairs:
    """RSR against its baseline, as the abstract compares, and after equal training."""
    pairs = {}
    for net in nets:
        pairs[f"{net}: RSR, pruned - AT"] = labels(net, "RSR", "pruned"), labels(net, "AT", "dense")
        equal = labels(net, "RSR", "fine-tuned"), labels(net, "AT", "trained on")
        pairs[f"{net}: RSR, fine-tuned - AT, trained on"] = equal
    return pairs


def ingredients() -> tables.Pairs:
    """What each ingredient adds to the dense network, and what both add."""
    return {f"{one} - {other}": (labels(ABLATED, one, "dense"), labels(ABLATED, other, "dense")) for one, other in [
        ("AT + lasso", "AT"), ("AT + noise", "AT"), ("RSR", "AT + noise"), ("RSR", "AT + lasso"), ("RSR", "AT")]}


def controls() -> tables.Pairs:
    """Pairs that differ in nothing but pruning: same seed, same start, same epochs. Where there is noise, each network
    keeps its own, and (unless unmasked) none on what was pruned."""
    return {f"{method}{', noise on zeros too' if varied else ''}: pruned and fine-tuned - trained on": (
        labels(ABLATED, method, "fine-tuned", varied), labels(ABLATED, method, "trained on"))
        for method, varied in [("AT", ""), ("AT + lasso", ""), ("AT + noise", ""), ("RSR", ""), ("RSR", "unmasked")]}


def judged(results: Results[RSRSettings]) -> pandas.DataFrame:
    """All comparisons: every claim with its verdict, but for C6.PGD, which asks what C2 and C5 ask."""
    return claims.judge(results.frame, contrasts(results.experiment.settings.black_box.net))


def contrasts(black_box_net: str) -> Iterator[Contrast]:
    """What is compared. Where the paper leaves open what that is, or compares more than one thing, there are further
    comparisons of this project's own, with a suffix: after equal training, under averaged gradients, without the
    noise, by accuracy."""
    for claim in reported.load("rsr").claims.values():
        for suffix, metric, (treatment, reference), where in _compared(claim.id, black_box_net):
            yield Contrast(_own(claim, suffix), metric, treatment, reference, f"03_rsr, {where}")


def _own(claim: Claim, suffix: str) -> Claim:
    """A question of this project's own, next to a claim; next to that of a share, one of what such a share costs."""
    quantity = "accuracy: RSR, pruned, minus the baseline" if claim.unit == "percent" else claim.quantity
    return claim if not suffix else replace(
        claim, id=f"{claim.id} {suffix}", value=None, derived=False, operands={}, unit="percentage points",
        quantity=f"{quantity} ({suffix})", source="this project's question")


def _compared(claim: str, black_box_net: str) -> list[tuple[str, str, tuple[dict, dict], str]]:
    """(what is different from the claim itself, metric, (treatment, reference), where) of a claim, by its id."""
    name, _, part = claim.partition(".")
    if claim == "C6.PGD":
        return []
    if name == "C4":
        pair, quiet = ((labels(ABLATED, method, "fine-tuned"), labels(ABLATED, method, "trained on"))
                       for method in ("RSR", "AT + lasso"))
        return [("", "pgd7", pair, "control"), *_without_noise(pair, "control"),
                ("never any noise", "pgd7", quiet, "control")]
    if name == "C7":
        metric = {"PGD": "pgd7", "FGSM": "fgsm", "clean": "clean"}[part]
        dense, longer = ((labels(ABLATED, "AT + noise", stage), labels(ABLATED, "AT", stage))
                         for stage in ("dense", "trained on"))
        return [("", metric, dense, "table 1"), ("equal training", metric, longer, "table 1"),
                *(_without_noise(dense, "beyond") if part == "PGD" else [])]
    net = {"C5": "VGG-16" if part == "VGG" else ABLATED, "C6": black_box_net}.get(name, "ResNet-18")
    one, equal = gains([net]).values()
    if name == "C3":  # no worse in either
        return [("clean", "clean", one, "table 2"), ("PGD-7", "pgd7", one, "table 2")]
    if name == "C6":
        metric = {"FGSM": "fgsm", "BB": "square"}[part]
        silent = [("noise off", "square_quiet", one, "table 3")] if part == "BB" else []
        return [("", metric, one, "table 3" if part == "BB" else "table 2"), *silent]
    if name == "C1":
        return [("", "clean", one, "table 2"), ("equal training", "clean", equal, "table 2")]
    rows = [("", "pgd7", one, "table 2"), ("equal training", "pgd7", equal, "table 2"), *_without_noise(one, "beyond")]
    return rows + ([("clean", "clean", one, "table 2")] if name == "C5" else [])


def _without_noise(pair: tuple[dict, dict], where: str) -> list[tuple[str, str, tuple[dict, dict], str]]:
    """The same comparison under PGD-7 with averaged gradients, and with the noise off."""
    return [("averaged", "pgd7_eot", pair, where), ("noise off", "pgd7_quiet", pair, where)]
