"""Attacks that only ask: they see the logits that the network answers, never a gradient. Called as those in `attacks`.

A noisy network answers every batch of queries with fresh noise.
"""

import logging
from contextlib import contextmanager
from typing import ClassVar

import numpy
import torch
from torch.nn.functional import one_hot

from sparserobust.answers import untied
from sparserobust.attacks import check_radius, fits_square, l2_norm, mean_logits, per_image, under_attack
from sparserobust.config import Attack
from sparserobust.errors import UserError
from sparserobust.seeding import own_chance
from sparserobust.settings import settings


@settings
class Square(Attack, kind="square"):
    """Square Attack (Andriushchenko et al. 2020) through pyautoattack: squares at random places, kept where the margin
    falls; their size shrinks on a schedule that spans `queries`. Images already misclassified come back unchanged, and
    those it does not fool as far as it got: the next answer of a noisy network may be another one. Against noise it is
    weak, as it stops at the first answer that is wrong."""

    by_seed: ClassVar[bool] = True
    epsilon: float
    queries: int = 1000
    norm: str = "linf"

    def check(self):
        self.choice("norm", "linf", "l2")
        check_radius(self)
        self.require(self.queries >= 1, "queries start at 1")

    @property
    def cost(self) -> float:
        return self.queries / 3  # a forward pass is a third of a gradient

    def __call__(self, model, images, labels, generator=None):
        try:
            from pyautoattack.square import SquareAttack
        except ImportError:
            raise UserError("Square needs pyautoattack: pip install 'sparserobust[lab]'") from None
        self.require(self.norm == "linf" or fits_square(images), "in l2 it is for square images of 5x5 pixels or more, "
                     f"not for {images.shape[2]}x{images.shape[3]}: take norm linf")
        images = images.contiguous()
        adversarial = images.clone()
        with under_attack(model), torch.no_grad(), _chance(generator):
            attack = SquareAttack(lambda x: untied(mean_logits(model, x, 1)), eps=self.epsilon,
                                  norm={"linf": "Linf", "l2": "L2"}[self.norm], n_queries=self.queries,
                                  device=images.device)
            attack.init_hyperparam(images)
            right = mean_logits(model, images, 1).argmax(1) == labels
            if right.any():
                adversarial[right] = attack.attack_single_run(images[right], labels[right])[1]
        return adversarial


@settings
class RandomNoise(Attack, kind="random_noise"):
    """The first of `draws` random perturbations that fools: at the corners of the linf ball, or of length `epsilon` in
    a random direction (l2). Hardly an attack: where one that looks at gradients finds no more than this, they mislead.
    Images already misclassified come back unchanged, and those it does not fool with the last draw."""

    epsilon: float
    draws: int = 10
    norm: str = "linf"

    def check(self):
        self.choice("norm", "linf", "l2")
        check_radius(self)
        self.require(self.draws >= 1, "draws start at 1")

    @property
    def cost(self) -> float:
        return self.draws / 3  # a forward pass is a third of a gradient

    def __call__(self, model, images, labels, generator=None):
        found = images.clone()
        with under_attack(model), torch.no_grad():
            right = mean_logits(model, images, 1).argmax(1) == labels
            for _ in range(self.draws):
                noise = torch.randn(images.shape, generator=generator, device=images.device)
                noise = noise.sign() if self.norm == "linf" else noise / per_image(l2_norm(noise), noise)
                tried = (images + self.epsilon * noise).clamp(0, 1)
                found = torch.where(per_image(right, images), tried, found)
                right &= mean_logits(model, found, 1).argmax(1) == labels
        return found


@settings
class ZOO(Attack, kind="zoo"):
    """The smallest l2 perturbation that fools, as `CarliniWagnerL2`, but by Adam on a few pixels at a time, whose
    derivatives are differences of two answers (Chen et al. 2017), through the Adversarial Robustness Toolbox, one image
    after another. Where noise lies on weights, the queries of an iteration share one draw, which spares the attacker
    some noise. Images it cannot fool, or already misclassified, come back unchanged. With `epsilon`, only perturbations
    up to that l2 length are returned, so accuracy can be read at a radius."""

    by_seed: ClassVar[bool] = True
    iterations: int = 100
    search_steps: int = 5
    lr: float = 0.05
    constant: float = 1.0
    confidence: float = 0.0
    parallel: int = 128  # pixels (of one channel) in an iteration, at most all there are: two queries each
    epsilon: float | None = None

    norm = "l2"

    def check(self):
        self.require(min(self.iterations, self.search_steps, self.parallel) >= 1,
                     "iterations, search_steps and parallel start at 1")
        self.require(self.epsilon is None or self.epsilon >= 0, "epsilon cannot be negative")
        self.require(self.lr > 0 and self.constant > 0, "lr and constant must be positive")
        self.require(self.confidence >= 0, "confidence cannot be negative")

    @property
    def cost(self) -> float:
        return self.search_steps * self.iterations * (2 * self.parallel + 1) / 3  # forward passes only

    def __call__(self, model, images, labels, generator=None):
        search, oracle = _toolbox()
        best = images.clone()
        with under_attack(model), torch.no_grad(), _chance(generator), _unheard("art"):
            logits = mean_logits(model, images, 1)
            targets = one_hot(labels, logits.shape[1])
            for i in (logits.argmax(1) == labels).nonzero().flatten().tolist():
                image, label = images[i : i + 1], targets[i : i + 1]
                found = search(
                    oracle(self._answers(model, image, label), tuple(image.shape[1:]), logits.shape[1]),
                    max_iter=self.iterations, binary_search_steps=self.search_steps, learning_rate=self.lr,
                    initial_const=self.constant, nb_parallel=min(self.parallel, image.numel()), abort_early=False,
                    use_resize=False, use_importance=False, verbose=False,
                ).generate(image.cpu().float().numpy(), label.cpu().numpy())  # fmt: skip
                best[i] = torch.from_numpy(found[0]).to(best).clamp(0, 1)
        if self.epsilon is not None:
            best = torch.where(per_image(l2_norm(best - images) <= self.epsilon, images), best, images)
        return best

    def _answers(self, model, image, label):
        """The network as the toolbox sees it: logits of a batch, that of the label raised by `confidence`. So what
        fools has at least that margin, while the toolbox would only aim for it."""
        def answers(batch: numpy.ndarray) -> numpy.ndarray:
            queries = torch.from_numpy(batch).to(image).clamp(0, 1)
            return (mean_logits(model, queries, 1) + self.confidence * label).cpu().numpy()

        return answers


def _toolbox():
    """The toolbox's attack and classifier, mended: it would add the whole perturbation anew at each step, count its
    length from the step before, and leave the box; and it would ask for one image at a time."""
    try:
        from art.attacks.evasion import ZooAttack
        from art.estimators.classification import BlackBoxClassifier
    except ImportError:
        raise UserError("ZOO needs adversarial-robustness-toolbox: pip install 'sparserobust[lab]'") from None

    class Search(ZooAttack):
        def _generate_bss(self, x_batch, y_batch, c_batch):
            self._origin = x_batch
            return super()._generate_bss(x_batch, y_batch, c_batch)

        def _optimizer(self, x, targets, c_batch):
            moved = super()._optimizer(self._origin, targets, c_batch).clip(0, 1)
            self._current_noise = moved - self._origin
            return moved

    class Oracle(BlackBoxClassifier):
        def predict(self, x, batch_size=None, **more):
            return super().predict(x, batch_size=len(x), **more)

    return Search, Oracle


@contextmanager
def _chance(generator: torch.Generator | None):
    """The global generators of torch and numpy, seeded as `generator` was inside the block, as they were after it."""
    seed, state = 0 if generator is None else generator.initial_seed() % 2**31, numpy.random.get_state()
    try:
        with own_chance():
            torch.manual_seed(seed)
            numpy.random.seed(seed)
            yield
    finally:
        numpy.random.set_state(state)


@contextmanager
def _unheard(name: str):
    """Nothing that is logged under this name is passed on inside the block."""
    log = logging.getLogger(name)
    propagate, log.propagate = log.propagate, False
    try:
        yield
    finally:
        log.propagate = propagate
