"""What attacks and accuracies are given: right images in any form that is one, and one line for all others."""

import pytest
import torch

from scaffolding import built
from sparserobust.attacks import FGSM, PGD, CarliniWagnerL2, CarliniWagnerReleased, DeepFool, RandomisedFGSM
from sparserobust.config import Attack
from sparserobust.data import Split, Splits
from sparserobust.evaluation import Accuracy, Distance
from sparserobust.models import PreActResNet
from sparserobust.query_attacks import ZOO, Square
from sparserobust.settings import settings

ATTACKS = [FGSM(epsilon=0.1), RandomisedFGSM(epsilon=0.1), PGD(epsilon=0.1, step_size=0.05, steps=2),
           PGD(epsilon=0.5, step_size=0.2, steps=2, norm="l2"), CarliniWagnerL2(steps=2, search_steps=2),
           CarliniWagnerReleased(steps=2), DeepFool(steps=2), Square(epsilon=0.1, queries=5),
           ZOO(iterations=2, search_steps=1)]
WRONG = {
    "reach from -": lambda x, y: (x - 0.5, y), "reach from 0": lambda x, y: (x + 0.5, y),
    "scale them": lambda x, y: (x * 255, y), "floats of shape": lambda x, y: ((x * 255).byte(), y),
    "reach from nan": lambda x, y: (torch.where(x > 0.9, torch.nan, x), y),
    "to inf": lambda x, y: (torch.where(x > 0.9, torch.inf, x), y), r"(1, 8, 8)": lambda x, y: (x[0], y),
    "(6, 64)": lambda x, y: (x.flatten(1), y), "(6,), not int64 of shape (5,)": lambda x, y: (x, y[:-1]),
    "not float32 of": lambda x, y: (x, y.float()), "not from -10": lambda x, y: (x, y - 10),
    "label 15 is none of": lambda x, y: (x, y + 10), "tensor, not of type ndarray": lambda x, y: (x.numpy(), y),
    "tensor, not of type list": lambda x, y: (x, y.tolist())}
OF_THE_NETWORK = {
    "takes no float64 images": lambda x, y: (x.double(), y), "images of shape (2, 8, 8)": lambda x, y: (
        x.repeat(1, 2, 1, 1), y), "images of shape (8, 8, 1)": lambda x, y: (x.permute(0, 2, 3, 1), y)}
RIGHT = [lambda x, y: (x, y), lambda x, y: (x[:0], y[:0]), lambda x, y: (x * 0, y), lambda x, y: (x.transpose(2, 3), y),
         lambda x, y: (x, y.int()), lambda x, y: (x[..., :-1, :-1], y)]


@pytest.fixture
def net():
    return built(PreActResNet(depth=8, width=2)).eval()


@pytest.fixture
def few():
    return torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.kind)
def test_every_attack_refuses_what_are_no_images_or_labels_in_one_line(attack, net, few, refusal):
    for what, change in (WRONG | OF_THE_NETWORK).items():
        assert what in refusal(attack, net, *change(*few)), what
    for change in RIGHT:
        images, labels = change(*few)
        found = attack(net, images, labels, torch.Generator().manual_seed(0))
        assert found.shape == images.shape and torch.equal(found, found.clamp(0, 1))


@pytest.mark.parametrize("measurement", [Accuracy(), Accuracy(attack=ATTACKS[0]), Distance(attack=DeepFool(steps=2))])
def test_nothing_is_measured_on_what_are_no_images_or_labels(measurement, net, few, refusal):
    for what, change in WRONG.items():
        split = Split(*change(*few))
        assert what in refusal(measurement, net, Splits(split, split, split, tuple("abcdefghij"))), what


def test_an_attack_of_ones_own_is_guarded_and_its_own_mistakes_are_not_hidden(net, few, refusal):
    @settings
    class Mine(Attack):
        cost = 0.0

        def __call__(self, model, images, labels, generator=None):
            raise ValueError("a mistake of mine")

    with pytest.raises(ValueError, match="of mine"):
        Mine()(net, *few)
    assert "scale them" in refusal(Mine(), net, few[0] + 1, few[1])
