"""Training losses: who attacks in training. Each is called with a batch and returns its loss."""

from dataclasses import replace

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from sparserobust.answers import gradient, under_attack
from sparserobust.attacks import FGSM, check_radius, into_ball, random_in_ball
from sparserobust.config import Attack, Objective
from sparserobust.models.winners import recorded_activations
from sparserobust.settings import settings


@settings
class Natural(Objective, kind="natural"):
    """Cross entropy on clean images."""

    @property
    def cost(self) -> float:
        return 1.0

    def __call__(self, model, images, labels, generator):
        return cross_entropy(model(images), labels)


@settings
class Adversarial(Objective, kind="adversarial"):
    """Cross entropy on attacked images (Madry et al. 2018, eq. 2.1). With PGD of one step of 1.25 epsilon it is
    FGSM-RS (Wong et al. 2020). `clean_weight` 0.5 gives the half clean, half adversarial loss of He, Rakin & Fan 2019,
    eq. 9; their code attacks the label that the network predicts for the clean image (`attacked_label: predicted`), so
    that the attack does not tell it the true one, and trains on clean images alone for the first `clean_epochs`."""

    attack: Attack
    clean_weight: float = 0.0
    attacked_label: str = "true"  # true | predicted
    clean_epochs: int = 0

    def check(self):
        self.require(0 <= self.clean_weight <= 1, "clean_weight must lie in [0, 1]")
        self.choice("attacked_label", "true", "predicted")
        self.require(self.clean_epochs >= 0, "clean_epochs cannot be negative")

    @property
    def cost(self) -> float:
        return 1.0 + self.attack.cost + self._sees_clean

    @property
    def _sees_clean(self) -> bool:
        return self.clean_weight > 0 or self.attacked_label == "predicted"

    def at(self, epoch):
        return Natural() if epoch < self.clean_epochs else self

    def __call__(self, model, images, labels, generator):
        clean = model(images) if self._sees_clean else None
        target = clean.detach().argmax(1) if self.attacked_label == "predicted" else labels
        loss = cross_entropy(model(self.attack(model, images, target, generator)), labels)
        if self.clean_weight:
            loss = (1 - self.clean_weight) * loss + self.clean_weight * cross_entropy(clean, labels)
        return loss


@settings
class TRADES(Objective, kind="trades"):
    """Clean cross entropy plus beta times the KL divergence between clean and attacked predictions, which the attack
    maximises in the l-infinity ball (Zhang et al. 2019, eq. 5). It is computed between log-probabilities: in terms of
    probabilities, its gradient is NaN where a network is so sure that one of them is exactly zero."""

    epsilon: float
    step_size: float
    steps: int = 10
    beta: float = 6.0

    def check(self):
        check_radius(self)
        check_radius(self, "step_size")
        self.require(self.steps >= 1 and self.beta >= 0, "steps start at 1 and beta cannot be negative")

    @property
    def cost(self) -> float:
        return 2.0 + self.steps

    def __call__(self, model, images, labels, generator):
        with under_attack(model):
            with torch.no_grad():
                target = log_softmax(model(images).float(), 1)
            noise = torch.randn(images.shape, generator=generator, device=images.device)
            x = (images + 0.001 * noise).clamp(0, 1)  # at the clean image itself the divergence has no gradient
            for _ in range(self.steps):
                x = x.detach().requires_grad_(True)
                divergence = kl_div(log_softmax(model(x).float(), 1), target, reduction="sum", log_target=True)
                step = self.step_size * gradient(divergence, x).sign()
                x = into_ball(x.detach() + step, images, self.epsilon, "linf")
        clean, attacked = model(images).float(), model(x.detach()).float()
        drift = kl_div(log_softmax(attacked, 1), log_softmax(clean, 1), reduction="batchmean", log_target=True)
        return cross_entropy(clean, labels) + self.beta * drift


@settings
class NFGSM(Objective, kind="n_fgsm"):
    """Cross entropy after one sign step from a point that is all noise away (N-FGSM, de Jorge et al. 2022, algorithm
    1): uniform noise of up to `noise` times epsilon, then `step` times epsilon along the sign of the gradient. Neither
    is projected onto the ball of radius epsilon, only to [0, 1]: the noise outside it is what keeps one step from
    catastrophic overfitting, which `Recipe.watched` and the measurement `health` show."""

    epsilon: float
    noise: float = 2.0
    step: float = 1.0

    def check(self):
        check_radius(self)
        self.require(self.noise >= 0 and 0 <= self.step * self.epsilon <= 1,
                     "noise and step, in units of epsilon, cannot be negative, nor a step longer than [0, 1]")

    @property
    def cost(self) -> float:
        return 2.0

    def __call__(self, model, images, labels, generator):
        begun = (images + random_in_ball(images, self.noise * self.epsilon, "linf", generator)).clamp(0, 1)
        return cross_entropy(model(FGSM(epsilon=self.step * self.epsilon)(model, begun, labels)), labels)


@settings
class SparseActivations(Objective, kind="sparse_activations"):
    """Another loss plus `lam` times the mean activation after each ReLU, over its units and images, summed over the
    ReLUs: an l1 penalty on hidden activations, which are not negative. Penalised is the last training pass of the other
    loss, so that on attacked images where there are two."""

    objective: Objective
    lam: float

    def check(self):
        self.require(self.lam >= 0, "lam cannot be negative")

    @property
    def cost(self) -> float:
        return self.objective.cost

    @property
    def attack(self) -> Attack | Objective:
        """What knows the ball of training: the other loss's attack, or that loss itself (TRADES)."""
        return getattr(self.objective, "attack", self.objective)

    def at(self, epoch):
        return replace(self, objective=self.objective.at(epoch))

    def __call__(self, model, images, labels, generator):
        with recorded_activations(model, training_only=True) as outputs:
            loss = self.objective(model, images, labels, generator)
        self.require(bool(outputs), "no ReLU took part in a training pass of this network")
        return loss + self.lam * sum(output.float().mean() for calls in outputs.values() for output in calls)
