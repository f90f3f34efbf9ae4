"""Signs that a network looks more robust than it is: gradients that lead nowhere, attacks that should be weaker and are
not (Athalye et al. 2018; Carlini et al. 2019, "On evaluating adversarial robustness"; Croce et al. 2022).

A flag is a dictionary: `kind`; `found`, what was seen of this network; `means`, what that says of its numbers.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sparserobust.analysis.health import ERRORS, MOST_BEATEN, MOST_BLOCKED, _above
from sparserobust.answers import CUT_OFF, MENDED, ROUNDING, SAME, differ, finite, is_random, raw_gradient, under_attack
from sparserobust.attacks import margin, normed
from sparserobust.data import Split
from sparserobust.seeding import stream

# what an audit tries, by name
CLEAN, ONE_STEP, PGD20, AGAIN, MARGIN, AVERAGED, LONGER, NOISE, SQUARE, AUTOATTACK = (
    "clean", "one step", "PGD-20", "PGD-20 again", "PGD-20, margin loss", "PGD-20, averaged gradients", "PGD-100",
    "random noise", "Square", "AutoAttack")

GRADIENTS = "gradients"  # the look at single ones

BY_LOSS = 0.05  # share of images that the margin loss may fool and cross entropy not: some, in honest networks
BY_AUTOATTACK = 0.1  # likewise AutoAttack and PGD-20
UNTRUE = 0.5  # by how much a change along a gradient may differ from the sum of the gradients, as a share of either
LENGTHS = (1e-2, 1e-1)  # over which these are taken: l2, as shares of the root of the number of pixels
SIGNS = 2  # random directions
NODES = tuple(np.polynomial.legendre.leggauss(10))  # where on the way, and with what weight
SPECK = 0.25 / 255  # of pixel noise, which rounding to bytes would swallow

MEANS = {
    "not measured": "No number stands here, since any would be wrong.",
    "not attacked": "What withstands only attacks that never saw a gradient may fall to the first that does.",
    "not looked at": "Nobody saw whether gradients are masked, so nothing speaks for the numbers of attacks.",
    "not finite": "Where a gradient is NaN or infinite an attack that follows it is blind.",
    "cut off": "An attack by gradients sees nothing at all: only those that ask for answers say anything.",
    "zero gradient": "An attack by gradients stands still on these images, whatever a better one would find.",
    "saturated": "The softmax is rounded to one and zeros: cross entropy has no slope, a loss on logits has.",
    "untrue gradient": "What is differentiated is not what is computed, or it turns too fast for steps to follow.",
    "one step": "Many steps can do all that one can: when they find less, they fail to converge.",
    "noise": "Random noise looks at nothing: when it fools where gradients do not, these mislead.",
    "more steps": "The attack has not converged: more of it would find still more.",
    "other loss": "The loss hides the way that another one finds: its gradients are masked.",
    "averaging": "Single gradients of this network are mostly chance; an attacker would follow their mean.",
    "black box": "What sees answers alone finds what one that sees everything does not: gradients mislead.",
    "AutoAttack": "PGD is far from what can be found: trust AutoAttack, and try further attacks.",
    "no limit": "Without a limit any image can become one of another class: an attack that fails then is at fault.",
    "rising curve": "A larger ball holds the smaller one: when more is withstood in it, attacks fail to converge.",
    "random": "Each number is one draw of many: go by averaged gradients.",
    "batch": "Statistics of the batch are used: an attacker may choose what stands beside an image.",
    "two answers": "Attacks that follow its gradients see another network than those who only ask.",
    "training mode": "It was judged in evaluation mode all the same; what it does in training mode is not known.",
    "rounded input": "Between its steps the network is flat: it has no true gradient.",
    "no better than guessing": "Wrong weights, normalisation or order of classes are likelier than such a network.",
    "classes": "Some of its answers are no class of these data: check which network, and which data, belong together.",
    "AutoAttack's warning": "AutoAttack itself doubts that its number is to be believed.",
}
# say how numbers are to be read, not that they are too good: another flag is raised where they are
HARMLESS = ("random", "training mode", "not measured", "saturated")


@dataclass(frozen=True)
class Seen:
    """What a look at single images showed: shares of those classified correctly, and what holds for all."""

    zero: float  # whose cross entropy has an input gradient of exactly zero
    zero_margin: float  # likewise the margin of the logits
    not_finite: float  # with a gradient that is not finite
    saturated: float  # whose cross entropy is exactly zero
    untrue: float | None  # whose margin does not change as the gradient says; None: none was steep
    cut_off: bool
    rounded: bool
    batch: bool
    two_faced: bool  # answers otherwise where gradients are asked for
    logits: int


@dataclass(frozen=True)
class Evidence:
    """What an audit found, for `flags_of`: per attack which images withstand it, and all that was seen besides."""

    right: Mapping[str, np.ndarray]
    curve: list[dict] | None
    seen: Seen | None
    random: bool
    training: list[str]
    raised: Mapping[str, list[str]]
    unmeasured: Mapping[str, str]
    classes: int
    not_finite: Set[str] = frozenset()  # of `unmeasured`, what met numbers that are none


@torch.enable_grad()
def look(model: nn.Module, split: Split) -> Seen:
    """Gradients and answers of a network on the images of a split, taken once."""
    images, labels = split.images, split.labels
    with under_attack(model):
        x = images.detach().requires_grad_(True)
        logits = finite(model(x).float())
        right = logits.argmax(1) == labels
        loss, gap = cross_entropy(logits, labels, reduction="none"), margin(logits, labels)
        cut_off = not logits.requires_grad
        slopes = [_slope(values.sum(), x) for values in (loss, gap)]
        fixed = not is_random(model, images)
        with torch.no_grad():
            plain = finite(model(images).float())
        return Seen(
            zero=_share(~slopes[0].flatten(1).any(1), right), zero_margin=_share(~slopes[1].flatten(1).any(1), right),
            not_finite=_share(~slopes[0].flatten(1).isfinite().all(1), right),
            saturated=_share(loss.detach() == 0, right), cut_off=cut_off, logits=logits.shape[1],
            untrue=_untrue(model, images, labels, slopes[1]) if fixed else None,
            rounded=fixed and _unmoved(model, images, plain), batch=fixed and _apart(model, images, plain),
            two_faced=fixed and _differ(logits.detach(), plain))


def _slope(loss: Tensor, x: Tensor) -> Tensor:
    """The raw gradient at x; zero where the loss does not depend on it."""
    found = raw_gradient(loss, x, retain_graph=True)
    return torch.zeros_like(x) if found is None else found


def _share(which: Tensor, among: Tensor) -> float:
    return float((which & among).sum()) / max(int(among.sum()), 1)


def _untrue(model, images: Tensor, labels: Tensor, slope: Tensor) -> float | None:
    """Share of images whose margin does not change by what the gradients on the way add up to: along their gradients,
    or along random signs, whichever is more. Along signs it is so where gradients leave out pixels, or a part of what
    is computed. None if no change stands out from rounding."""
    steep = slope.flatten(1).isfinite().all(1) & slope.flatten(1).any(1)
    chance = stream(0, "signs", device=images.device)
    signs = [2.0 * torch.randint(2, images.shape, generator=chance, device=images.device) - 1 for _ in range(SIGNS)]
    along = _errors(model, images, labels, slope, steep)
    across = torch.cat([_errors(model, images, labels, sign, steep) for sign in signs])
    return max((float((errors > UNTRUE).double().mean()) for errors in (along, across) if len(errors)), default=None)


def _errors(model, images: Tensor, labels: Tensor, direction: Tensor, asked: Tensor) -> Tensor:
    """By how much the change of the margin and the sum of the gradients on the way differ, as a share of all ups and
    downs: the least of some lengths of the way, of those images `asked` for whose change stands out from rounding."""
    direction = normed(direction)
    best = torch.full_like(images[:, 0, 0, 0], torch.inf)
    told = torch.zeros_like(asked)
    for share in LENGTHS:
        h = share * images[0].numel() ** 0.5
        start, end = ((images + sign * h * direction).clamp(0, 1) for sign in (-1, 1))
        with torch.no_grad():
            logits = [model(x).float() for x in (start, end)]
        behind, ahead = (margin(each, labels) for each in logits)
        rounding = ROUNDING * torch.maximum(*(each.abs().amax(1) for each in logits))
        summed, ups_and_downs = torch.zeros_like(best), torch.zeros_like(best)
        for place, weight in zip(*NODES, strict=True):
            x = torch.lerp(start, end, (1 + place) / 2).requires_grad_(True)
            found = _slope(margin(model(x).float(), labels).sum(), x)
            step = weight / 2 * (found * (end - start)).flatten(1).sum(1).nan_to_num()
            summed, ups_and_downs = summed + step, ups_and_downs + step.abs()
        largest = torch.maximum((ahead - behind).abs(), ups_and_downs)
        clear = asked & (largest > torch.maximum(1e-4 * (ahead.abs() + behind.abs()).clamp_min(1e-3), 10 * rounding))
        error = (ahead - behind - summed).abs() / largest.clamp_min(1e-30)
        best = torch.where(clear, torch.minimum(best, error), best)
        told |= clear
    return best[told]


@torch.no_grad()
def _unmoved(model, images: Tensor, logits: Tensor) -> bool:
    """Whether pixel noise that rounding to bytes would swallow changes no logit of any image."""
    noise = 2 * torch.rand(images.shape, generator=stream(0, "specks", device=images.device), device=images.device) - 1
    inside = (images + SPECK * noise).clamp(0, 1)
    return bool(torch.equal(model(inside).float(), logits)) and bool(logits.std(0).any())


@torch.no_grad()
def _apart(model, images: Tensor, logits: Tensor) -> bool:
    """Whether images get other answers when they are alone."""
    try:
        alone = torch.cat([finite(model(images[i:i + 1]).float()) for i in range(min(4, len(images)))])
    except Exception:  # whatever the network of somebody else does: BatchNorm takes no single value
        return True
    return alone.shape[1:] != logits.shape[1:] or _differ(alone, logits[:len(alone)])


def _differ(answers: Tensor, others: Tensor) -> bool:
    return differ(answers, others, 10 * SAME)


def flags_of(evidence: Evidence) -> list[dict[str, str]]:
    """Every flag that what was found raises."""
    found = [*_of_gradients(evidence), *_of_attacks(evidence), *_of_the_network(evidence)]
    return [{"kind": kind, "found": what, "means": MEANS[kind]} for kind, what in found]


def unreliable(flags: list[dict[str, str]]) -> bool:
    """Whether a flag says that numbers may be too good."""
    return any(flag["kind"] not in HARMLESS for flag in flags)


def _of_gradients(evidence: Evidence) -> Iterator[tuple[str, str]]:
    for name, why in evidence.unmeasured.items():
        if name == "certificate":  # which many a good network has not
            continue
        yield "not finite" if name in evidence.not_finite else "not measured", f"{name}: {why}"
    odd: dict[str, list[str]] = {}
    for name, lines in evidence.raised.items():
        for line in lines:
            odd.setdefault(line, []).append(name)
    for line, names in odd.items():
        kind = {MENDED: "not finite", CUT_OFF: "cut off"}.get(line, "AutoAttack's warning")
        yield kind, f"{', '.join(names)}: {line}"
    seen = evidence.seen
    if seen is None:
        if GRADIENTS in evidence.unmeasured:
            yield "not looked at", evidence.unmeasured[GRADIENTS]
        return
    if seen.not_finite:
        yield "not finite", f"the gradient is not finite on {seen.not_finite:.0%} of the images"
    if seen.cut_off:
        yield "cut off", "the logits do not depend on the pixels in a way that can be differentiated"
    elif max(seen.zero - seen.saturated, seen.zero_margin) > MOST_BLOCKED:
        yield "zero gradient", (f"the gradient is exactly zero on {seen.zero:.0%} of the images "
                                f"({seen.zero_margin:.0%} with the margin for a loss)")
    if seen.saturated > MOST_BLOCKED:
        yield "saturated", f"cross entropy is exactly zero on {seen.saturated:.0%} of the images"
    if seen.untrue is not None and seen.untrue > MOST_BLOCKED:
        yield "untrue gradient", (f"on {seen.untrue:.0%} of the images the answers do not change, along the gradient "
                                  "or along random signs, as the gradient says")


def _of_attacks(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Who fools more images that PGD-20 leaves than a second go at it does, and than honest networks know."""
    right, again = evidence.right, 0.0
    if PGD20 in evidence.unmeasured:
        yield "not attacked", f"{PGD20} has no result: {evidence.unmeasured[PGD20]}"
    if PGD20 in right:
        left, n = right[PGD20], len(right[PGD20])
        if AGAIN in right:
            again = float((left & ~right[AGAIN]).mean())
        for name, kind, limit in (
                (ONE_STEP, "one step", MOST_BEATEN), (NOISE, "noise", MOST_BEATEN),
                (LONGER, "more steps", MOST_BEATEN), (MARGIN, "other loss", BY_LOSS),
                (AVERAGED, "averaging", MOST_BEATEN), (SQUARE, "black box", MOST_BEATEN),
                (AUTOATTACK, "AutoAttack", BY_AUTOATTACK)):
            if name in right:
                share = float((left & ~right[name]).mean())
                if _above(share, limit + again, n):
                    yield kind, (f"{name} fools {share:.1%} of the images that {PGD20} does not "
                                 f"({AGAIN}: {again:.1%})")
    if evidence.curve:
        last, n = evidence.curve[-1], evidence.curve[-1]["total"]
        if _above(last["count"] / n, 1 / evidence.classes, n):
            yield "no limit", f"{last['count']} of {n} images withstand radius {last['radius']:.3g}, the whole box"
        for smaller, larger in zip(evidence.curve, evidence.curve[1:], strict=False):
            rise = max(larger["count"] - smaller["count"], 0) / n
            chance = (2 * again / n) ** 0.5  # standard error, where a second go finds others by chance
            if _above(rise - ERRORS * chance, MOST_BEATEN, n):
                yield "rising curve", (f"{smaller['count']} of {n} images withstand radius {smaller['radius']:.3g}, "
                                       f"{larger['count']} withstand {larger['radius']:.3g}")


def _of_the_network(evidence: Evidence) -> Iterator[tuple[str, str]]:
    if evidence.random:
        yield "random", "asked again, it answers differently"
    if evidence.training:
        yield "training mode", f"{len(evidence.training)} modules were in training mode, such as {evidence.training[0]}"
    if evidence.seen is not None:
        if evidence.seen.batch:
            yield "batch", "an image alone gets another answer than among others"
        if evidence.seen.two_faced:
            yield "two answers", "it answers otherwise where gradients are asked for"
        if evidence.seen.rounded:
            yield "rounded input", f"noise of {255 * SPECK:g}/255 on all pixels changes no logit"
        if evidence.seen.logits != evidence.classes:
            yield "classes", f"it answers with {evidence.seen.logits} logits; the data have {evidence.classes} classes"
    clean = evidence.right.get(CLEAN)
    chance = 1 / evidence.classes
    if clean is not None and _above(1, chance, len(clean)) and not _above(float(clean.mean()), chance, len(clean)):
        yield "no better than guessing", f"{int(clean.sum())} of {len(clean)} images are classified correctly"
