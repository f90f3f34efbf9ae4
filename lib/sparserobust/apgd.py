"""Attacks that choose their own step sizes, and one made of them for scales that cannot afford AutoAttack. Called as
those in `attacks`."""

# Written here and not taken from pyautoattack: its APGD takes neither another loss nor targets of one's own, attacks on
# what is fooled already, and is averaged over draws in another way (see `attacks`). It is the oracle of the tests.

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sparserobust.answers import NotFinite, flag, gradient, is_random, mean_logits, under_attack
from sparserobust.attacks import (
    check_radius,
    fits_square,
    into_ball,
    normed,
    per_image,
    random_in_ball,
    runner_up,
)
from sparserobust.config import Attack
from sparserobust.query_attacks import Square
from sparserobust.settings import settings


def logit_margin(logits: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
    """Logit of the rival class minus that of the label, (n,)."""
    return (logits.gather(1, rivals[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)


def probability_margin(logits: Tensor, labels: Tensor, rivals: Tensor) -> Tensor:
    """m = p(rival) - p(label), (n,), of Xie et al. 2024, as log((1 + m) / (1 - m)).

    Of a sure network, m itself is -1 to the last digit and its gradient is zero, in float32 from a margin of 17 logits
    on. Its log odds rise wherever m rises, so that an ascent that goes by the order of losses and by the direction of
    gradients takes the same steps; but they need no probabilities, and for a sure network they tend to the margin of
    logits."""
    def log_sum(left_out: Tensor, twice: Tensor) -> Tensor:
        others = logits.scatter(1, left_out[:, None], -torch.inf)
        return torch.cat([others, logits.gather(1, twice[:, None])], 1).logsumexp(1)

    return log_sum(labels, rivals) - log_sum(rivals, labels)


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "cross_entropy": lambda logits, labels, _: nn.functional.cross_entropy(logits, labels, reduction="none"),
    "margin": logit_margin, "probability_margin": probability_margin}


@settings
class APGD(Attack, kind="apgd"):
    """Auto-PGD (Croce & Hein 2020, algorithm 1): gradient ascent with momentum that starts with steps of twice the
    radius, and halves them and goes back to the best point where the loss has risen too seldom. With the loss
    `probability_margin` it is PMA (Xie et al. 2024), which sees label and strongest rival.

    An image that is fooled leaves, unless the network is random: there a wrong answer may be chance, and what comes
    back is the point of highest loss. Of several restarts, the first that fools is kept, or that of highest loss.
    Images already misclassified come back unchanged, unless the network is random. Where a gradient is exactly zero,
    the step has a random direction."""

    epsilon: float
    norm: str = "linf"
    steps: int = 100
    restarts: int = 1
    loss: str = "probability_margin"  # probability_margin | margin (of logits) | cross_entropy
    eot_draws: int = 1

    def check(self):
        self.choice("norm", "linf", "l2")
        self.choice("loss", *LOSSES)
        check_radius(self)
        self.require(min(self.steps, self.restarts, self.eot_draws) >= 1, "steps, restarts and eot_draws start at 1")

    @property
    def cost(self) -> float:
        return self.restarts * (self.steps + 1) * self.eot_draws

    def __call__(self, model, images, labels, generator=None):
        with under_attack(model):
            return self.towards(None, model, images, labels, generator)

    def towards(self, targets: Tensor | None, model, images, labels, generator=None) -> Tensor:
        """The attack on a network that is `under_attack`, with the classes `targets` (n,) as the label's rivals; for
        None, the strongest rival at each point."""
        found, top = images.clone(), torch.full_like(images[:, 0, 0, 0], -torch.inf)
        random = is_random(model, images)
        with torch.no_grad():
            left = ((mean_logits(model, images, self.eot_draws).argmax(1) == labels) | random).nonzero()[:, 0]
        for _ in range(self.restarts):
            if not len(left):
                break
            rivals = None if targets is None else targets[left]
            x, loss, fooled = self._ascend(model, images[left], labels[left], rivals, generator, random)
            better = fooled | (loss > top[left])
            found[left[better]], top[left[better]] = x[better], loss[better]
            left = left[~fooled]
        return found

    def _ascend(self, model, images, labels, targets, generator, random) -> tuple[Tensor, Tensor, Tensor]:
        """One ascent: the points, their losses, and which of them left as they were fooled."""
        x = into_ball(images + random_in_ball(images, self.epsilon, self.norm, generator), images, self.epsilon,
                      self.norm)
        before = best = x
        top = top_before = torch.full_like(x[:, 0, 0, 0], -torch.inf)
        loss = -top  # from where the first one does not rise
        slope = top_slope = torch.zeros_like(x)
        size = torch.full_like(loss, 2 * self.epsilon)
        climbs = torch.ones_like(labels, dtype=torch.bool)
        halved, rises = climbs, torch.zeros_like(labels)
        checks = self._checks()
        for step in range(self.steps + 1):
            on = climbs.nonzero()[:, 0]
            last, loss, slope = loss, loss.clone(), slope.clone()
            rivals = None if targets is None else targets[on]
            loss[on], slope[on], wrong = self._looked(model, x[on], labels[on], rivals)
            higher = climbs & (loss > top)
            if not random:
                climbs = climbs.index_put((on[wrong],), torch.tensor(False, device=x.device))
                higher[on[wrong]] = True  # the point that fools is the one to keep
            best, top_slope = (torch.where(per_image(higher, x), new, old)
                               for new, old in ((x, best), (slope, top_slope)))
            top = torch.where(higher, loss, top)
            if step == self.steps or not climbs.any():
                break
            rises = rises + (loss > last)
            if step in checks:
                stuck = (rises <= 0.75 * checks[step]) | (~halved & (top <= top_before))
                size = torch.where(stuck, size / 2, size)
                x, slope = (torch.where(per_image(stuck, x), new, old) for new, old in ((best, x), (top_slope, slope)))
                halved, top_before, rises = stuck, top, torch.zeros_like(rises)
            straight = self._stepped(x, slope, size, images, generator)
            share = 0.75 if step else 1.0  # of the step; the rest is what the last one was
            ahead = x + share * (straight - x) + (1 - share) * (x - before)
            before, x = x, into_ball(ahead, images, self.epsilon, self.norm)
        return best, top, ~climbs

    def _checks(self) -> dict[int, int]:
        """Steps after which the step size is looked at, each with how many steps ago that was last done."""
        window, done, found = max(int(0.22 * self.steps), 1), 0, {}
        while (done := done + window) <= self.steps:
            found[done] = window
            window = max(window - max(int(0.03 * self.steps), 1), max(int(0.06 * self.steps), 1))
        return found

    def _looked(self, model, x, labels, targets) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, its gradient and whether the answer is wrong, at x."""
        x = x.detach().requires_grad_(True)
        logits = mean_logits(model, x, self.eot_draws)
        rivals = runner_up(logits, labels) if targets is None else targets
        loss = LOSSES[self.loss](logits, labels, rivals)
        return loss.detach().to(x.dtype), gradient(loss.sum(), x), logits.argmax(1) != labels

    def _stepped(self, x, slope, size, images, generator) -> Tensor:
        flat = ~slope.flatten(1).any(1)
        if flat.any():
            chance = torch.randn(x.shape, generator=generator, device=x.device).to(x)
            slope = torch.where(per_image(flat, x), chance, slope)
        direction = slope.sign() if self.norm == "linf" else normed(slope)
        return into_ball(x + per_image(size, x) * direction, images, self.epsilon, self.norm)


def nearest_classes(model, images: Tensor, labels: Tensor, candidates: int, norm: str, draws: int = 1) -> Tensor:
    """The wrong classes (n, up to `candidates`) of highest logit, in the order in which MALT (Melamed et al. 2024)
    targets them: by (z_label - z_class) / |gradient of that|, the distance at which the two would be equal if the
    network were linear. The gradient's norm is dual to `norm`; a class that no pixel moves comes last. It takes a
    gradient for each."""
    x = images.detach().requires_grad_(True)
    logits = mean_logits(model, x, draws)
    classes = logits.scatter(1, labels[:, None], -torch.inf).topk(min(candidates, logits.shape[1] - 1)).indices
    distances = []
    for rivals in classes.unbind(1):
        gap = -logit_margin(logits, labels, rivals)
        slope = gradient(gap.sum(), x, retain_graph=True).flatten(1).double()
        length = slope.norm(p=1 if norm == "linf" else 2, dim=1)
        distances.append(torch.where(length > 0, gap.detach() / length, torch.inf))
    return classes.gather(1, torch.stack(distances, 1).argsort(stable=True))


@settings
class Thrifty(Attack, kind="thrifty"):
    """For scales that cannot afford AutoAttack; each part tries what withstands those before it. First PMA (`APGD` on
    the margin of probabilities); then the same towards `targets` classes in MALT's order (`nearest_classes`, of
    `candidates`); then, as gradients may mislead, `Square` with `queries`, on answers that are averaged as gradients
    are. Images already misclassified come back unchanged, as by `APGD`. What cannot be tried is flagged, as by
    `AutoAttack`; so is a network without finite gradients, on which `Square` is alone."""

    epsilon: float
    norm: str = "linf"
    steps: int = 50
    targets: int = 3
    candidates: int = 9
    queries: int = 1000  # 0: no Square
    eot_draws: int = 1

    def check(self):
        self.choice("norm", "linf", "l2")
        check_radius(self)
        self.require(min(self.steps, self.eot_draws) >= 1, "steps and eot_draws start at 1")
        self.require(0 <= self.targets <= self.candidates, "targets lie between 0 and candidates")
        self.require(self.queries >= 0, "queries cannot be negative")

    @property
    def cost(self) -> float:
        gradients = (1 + self.targets) * (self.steps + 1) + self.candidates * (self.targets > 0)
        return self.eot_draws * (gradients + self.queries / 3)  # of an image that withstands all

    def __call__(self, model, images, labels, generator=None):
        with under_attack(model):
            try:
                found = self._ascended(model, images, labels, generator)
            except NotFinite as error:
                flag(f"thrifty had Square alone: {error}")
                found = images.clone()
            if self.queries and self.norm == "l2" and not fits_square(images):
                flag("thrifty without Square, which in l2 is for square images of 5x5 pixels or more")
            elif self.queries:
                square = Square(epsilon=self.epsilon, queries=self.queries, norm=self.norm)
                found = self._tried(model, found, labels, lambda left: square(
                    lambda x: mean_logits(model, x, self.eot_draws), images[left], labels[left], generator))
        return found

    def _ascended(self, model, images, labels, generator) -> Tensor:
        """PMA, then the same towards the nearest classes."""
        ascent = APGD(epsilon=self.epsilon, norm=self.norm, steps=self.steps, eot_draws=self.eot_draws)
        found = ascent.towards(None, model, images, labels, generator)
        left = self._withstood(model, found, labels)
        if not (self.targets and len(left)):
            return found

        def nearest(left: Tensor) -> Tensor:
            return nearest_classes(model, images[left], labels[left], self.candidates, self.norm, self.eot_draws)

        order = nearest(left)
        if order.shape[1] == 1:
            flag("thrifty without targets, which need 3 classes, not 2")
            return found
        aims = torch.full((len(images), min(self.targets, order.shape[1])), -1, device=images.device)
        aims[left] = order[:, :self.targets]
        for place in range(aims.shape[1]):
            def towards_it(left: Tensor, place: int = place) -> Tensor:
                new = left[aims[left, 0] < 0]  # a random network answered them otherwise before
                if len(new):
                    aims[new] = nearest(new)[:, :aims.shape[1]]
                return ascent.towards(aims[left, place], model, images[left], labels[left], generator)

            found = self._tried(model, found, labels, towards_it)
        return found

    def _withstood(self, model, x, labels) -> Tensor:
        """Indices of the images whose label is answered."""
        with torch.no_grad():
            return (mean_logits(model, x, self.eot_draws).argmax(1) == labels).nonzero()[:, 0]

    def _tried(self, model, found, labels, attack: Callable[[Tensor], Tensor]) -> Tensor:
        """What was found so far; of the images that withstand it, what `attack` makes of these indices if it fools."""
        left = self._withstood(model, found, labels)
        if not len(left):
            return found
        x = attack(left)
        fools = torch.ones_like(left, dtype=torch.bool).index_fill(0, self._withstood(model, x, labels[left]), False)
        return found.index_put((left[fools],), x[fools])
