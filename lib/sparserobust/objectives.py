"""Training losses: who attacks in training. Each is called with a batch and returns its loss."""

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from sparserobust.attacks import check_radius, under_attack
from sparserobust.config import Attack, Objective, settings


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
    FGSM-RS (Wong et al. 2020). `clean_weight` 0.5 gives the half clean, half adversarial loss (Rakin et al. 2019)."""

    attack: Attack
    clean_weight: float = 0.0

    def check(self):
        self.require(0 <= self.clean_weight <= 1, "clean_weight must lie in [0, 1]")

    @property
    def cost(self) -> float:
        return 1.0 + self.attack.cost + (self.clean_weight > 0)

    def __call__(self, model, images, labels, generator):
        loss = cross_entropy(model(self.attack(model, images, labels, generator)), labels)
        if self.clean_weight:
            loss = (1 - self.clean_weight) * loss + self.clean_weight * cross_entropy(model(images), labels)
        return loss


@settings
class TRADES(Objective, kind="trades"):
    """Clean cross entropy plus beta times the KL divergence between clean and attacked predictions, which the attack
    maximises in the l-infinity ball (Zhang et al. 2019, eq. 5)."""

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
                target = softmax(model(images).float(), 1)
            noise = torch.randn(images.shape, generator=generator, device=images.device)
            x = (images + 0.001 * noise).clamp(0, 1)  # at the clean image itself the divergence has no gradient
            for _ in range(self.steps):
                x = x.detach().requires_grad_(True)
                divergence = kl_div(log_softmax(model(x).float(), 1), target, reduction="sum")
                (gradient,) = torch.autograd.grad(divergence, x)
                x = x.detach() + self.step_size * gradient.sign()
                x = torch.maximum(torch.minimum(x, images + self.epsilon), images - self.epsilon).clamp(0, 1)
        clean, attacked = model(images).float(), model(x.detach()).float()
        drift = kl_div(log_softmax(attacked, 1), softmax(clean, 1), reduction="batchmean")
        return cross_entropy(clean, labels) + self.beta * drift
