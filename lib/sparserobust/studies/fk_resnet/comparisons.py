"""The comparisons of Sparsity Meets Robustness (Dinh et al. 2020): what each claim compares."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace

import pandas

from sparserobust.reporting import claims, estimates, reported
from sparserobust.reporting.claims import Contrast
from sparserobust.reporting.reported import Claim
from sparserobust.running.experiment import Results
from sparserobust.studies.fk_resnet import theorem
from sparserobust.studies.fk_resnet.runs import PAPER

ACCURACIES = {"A1": "clean", "A2": "fgsm", "A3": "ifgsm20", "A4": "cw"}  # as the paper names them
TRAINING_NOISE = 0.1  # of the ensembles, as a share of the activations' standard deviation


def row(net: str, method: str = "dense", level: float | None = None) -> dict:
    """The labels that name a kind of run."""
    return {"net": net, "method": method, "level": level}


# By claim, less the accuracy that it speaks of: treatment, reference, and where it is shown
PAIRS: dict[str, tuple[dict, dict, str]] = {
    "C1": (row("ResNet20"), row("ResNet20", "natural"), "figure 1"),
    "C2a.1": (row("En2ResNet20", "RVSM", 0.01), row("ResNet20", "RVSM", 0.01), "table 1"),
    "C2a.2": (row("En2ResNet20", "RVSM", 0.1), row("ResNet20", "RVSM", 0.1), "table 1"),
    "C2a.3": (row("En2ResNet20", "RVSM", 0.5), row("ResNet20", "RVSM", 0.5), "table 1"),
    "C2b.1": (row("En2ResNet20", "RGSM", 0.05), row("ResNet20", "RGSM", 0.05), "table 2"),
    "C2b.2": (row("En2ResNet20", "RGSM", 0.1), row("ResNet20", "RGSM", 0.1), "table 2"),
    "C3": (row("En5ResNet20", "RGSM", 0.02), row("ResNet20", "RGSM", 0.1), "table 2"),
    "C4.1": (row("En2ResNet20", "RGSM", 0.05), row("ResNet38", "RGSM", 0.05), "table 3"),
    "C4.2": (row("En2ResNet20", "RGSM", 0.1), row("ResNet38", "RGSM", 0.1), "table 3"),
    "C5a": (row("ResNet20", "RVSM", 0.01), row("ResNet20", "released ADMM weights"), "table 4"),
    "C5b": (row("ResNet20", "RGSM", 0.1), row("ResNet20", "released ADMM channels"), "table 4"),
    "C6.1": (row("En5ResNet20", "RGSM", 0.01), row("En5ResNet20"), "table 2"),
    "C6.2": (row("ResNet20", "RGSM", 0.05), row("ResNet20"), "table 2"),
    "C7": (row("ResNet20", "released ADMM channels"), row("ResNet20", "RGSM", 0.1), "figure 5"),
    "C10.2": (row("En2ResNet20"), row("ResNet20"), "table 2"),
    "C10.5": (row("En5ResNet20"), row("ResNet20"), "table 2"),
}
OTHER_METRICS = {"C1": "near_zero", "C2a": "sparsity", "C5a": "sparsity", "C7": "channel_norms"}
FAIR_AFTER = ("C5a", "C5b.A4")  # the claims after which the comparison with corrected ADMM stands
FAIR = "At about the same sparsity, relaxed splitting keeps a higher accuracy than corrected ADMM"


def judged(results: Results) -> pandas.DataFrame:
    """All comparisons, in the order of the claims: every claim of the paper with its verdict."""
    record, frame = reported.load(PAPER), results.frame
    rows = [*claims.judge(frame, contrasts(frame)).to_dict("records"),
            claims.judge_universal(record.claim("C8"), *theorem.falls(), where="01_fk_resnet, theorem 1"),
            _stability(frame, record.claim("C9"))]
    return pandas.DataFrame(sorted(rows, key=lambda row: int(re.findall(r"\d+", row["claim"])[0])))


def contrasts(frame: pandas.DataFrame) -> Iterator[Contrast]:
    """What is compared. Where a claim compares with ADMM, comparisons marked `fair` follow: of
    accuracies, with corrected ADMM, which takes about as much sparsity as its target. They are this
    project's question, so nothing is reported."""
    for claim in reported.load(PAPER).claims.values():
        named, _, part = claim.id.rpartition(".")
        name = claim.id if claim.id in PAIRS else named
        if name not in PAIRS:
            continue
        treatment, reference, where = PAIRS[name]
        other = OTHER_METRICS.get(name.split(".")[0], "channel_sparsity")
        where = f"01_fk_resnet, {where}"
        ratio = claim.unit == "ratio"  # held against the number that the paper names, as logarithms
        yield Contrast(_logarithm(claim) if ratio else claim, ACCURACIES.get(part, other),
                       treatment, reference, where, log=ratio)
        if claim.id in FAIR_AFTER:
            corrected = reference | {"method": reference["method"].removeprefix("released ")}
            about = _with_sparsity(frame, treatment, corrected)
            for accuracy, metric in ACCURACIES.items():
                question = _fair(claim, name, f"{accuracy}, {about}")
                yield Contrast(question, metric, treatment, corrected, where)


def _logarithm(claim: Claim) -> Claim:
    value = None if claim.value is None else math.log10(claim.value)
    return replace(claim, unit="log10 of the ratio", value=value)


def _fair(claim: Claim, name: str, quantity: str) -> Claim:
    """This project's question next to a claim, with the margin of the paper's own comparison of
    accuracies."""
    margin = reported.load(PAPER).claim("C5b.A3")
    return replace(claim, id=f"{name} fair.{quantity[:2]}", statement=FAIR, quantity=quantity,
                   unit="percentage points", value=None, derived=False, operands={},
                   source="this project's question", margin=margin.margin,
                   margin_why=margin.margin_why)


def _with_sparsity(frame: pandas.DataFrame, treatment: dict, reference: dict) -> str:
    """`RGSM (61 % removed) minus ADMM channels (60 % removed)`, in the mean over the seeds that
    both have."""
    metric = "channel_sparsity" if treatment["method"] == "RGSM" else "sparsity"
    removed = [estimates.matching(frame, {"metric": metric, **labels}).set_index("seed")["value"]
               for labels in (treatment, reference)]
    seeds = removed[0].index.intersection(removed[1].index)
    return " minus ".join(
        labels["method"] + (f" ({100 * values[seeds].mean():.0f} % removed)" if len(seeds) else "")
        for labels, values in zip((treatment, reference), removed, strict=True))


def _stability(frame: pandas.DataFrame, claim: Claim) -> dict:
    """What the noise of training does to the change of an ensemble's output under a push along the
    gradient: the logarithm of the ratio to the same network without noise, paired by seed and
    image."""
    noise, without = (f"stability level {level:g}" for level in (TRAINING_NOISE, 0))
    ensemble = row("En2ResNet20")
    found = estimates.compared(frame, noise, ensemble, ensemble, log=True, against=without)
    metrics = set(frame["metric"])
    if "stability" in metrics and noise not in metrics:  # results that kept no values of images
        found = replace(found, why=estimates.NO_ANSWERS)
    about = "change of the averaged output under a push, at the noise of training over no noise"
    claim = replace(_logarithm(claim), quantity=about)
    return claims.judged(claim, found, "01_fk_resnet, stability")
