"""What attacks and accuracies are given: right images in any form that is one, and one line for all others."""

import json
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from scaffolding import built, seeded, splits_of
from sparserobust.analysis import Health, Margins
from sparserobust.analysis.layer_table import LayerTable
from sparserobust.answers import CUT_OFF, flagged
from sparserobust.apgd import APGD, Thrifty
from sparserobust.attacks import FGSM, PGD, AutoAttack, CarliniWagnerL2, CarliniWagnerReleased, DeepFool, RandomisedFGSM
from sparserobust.config import Attack, Measurement
from sparserobust.data import Split, Splits
from sparserobust.evaluation import Accuracy, Distance
from sparserobust.inputs import network
from sparserobust.models import PreActResNet
from sparserobust.query_attacks import ZOO, Square
from sparserobust.settings import settings

ATTACKS = [FGSM(epsilon=0.1), RandomisedFGSM(epsilon=0.1), PGD(epsilon=0.1, step_size=0.05, steps=2),
           PGD(epsilon=0.5, step_size=0.2, steps=2, norm="l2"), CarliniWagnerL2(steps=2, search_steps=2),
           CarliniWagnerReleased(steps=2), DeepFool(steps=2), APGD(epsilon=0.1, steps=2),
           Thrifty(epsilon=0.1, steps=2, queries=2), Square(epsilon=0.1, queries=5),
           ZOO(iterations=2, search_steps=1)]
WRONG = {
    "reach from -": lambda x, y: (x - 0.5, y), "reach from 0": lambda x, y: (x + 0.5, y),
    "scale them": lambda x, y: (x * 255, y), "floats of shape": lambda x, y: ((x * 255).byte(), y),
    "reach from nan": lambda x, y: (torch.where(x > 0.9, torch.nan, x), y),
    "to inf": lambda x, y: (torch.where(x > 0.9, torch.inf, x), y), r"(1, 8, 8)": lambda x, y: (x[0], y),
    "(6, 64)": lambda x, y: (x.flatten(1), y), "(6,), not int64 of shape (5,)": lambda x, y: (x, y[:-1]),
    "not float32 of": lambda x, y: (x, y.float()), "not from -10": lambda x, y: (x, y - 10),
    "label 15 is none of": lambda x, y: (x, y + 10), "tensor, not of type ndarray": lambda x, y: (x.numpy(), y),
    "tensor, not of type list": lambda x, y: (x, y.tolist()), "1.00000012: clamp them": lambda x, y: (
        torch.where(x == x.max(), 1 + 2**-23, x), y),
    "float64, not float16": lambda x, y: (x.half(), y), "net(x.to(torch.bfloat16)).float()": lambda x, y: (
        x.bfloat16(), y), "images should be a dense tensor": lambda x, y: (x.to_sparse(), y),
    "labels should be a dense tensor": lambda x, y: (x, y.to("meta")),
    "images should be a dense tensor with values": lambda x, y: (x.to("meta"), y)}
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


# --- networks of others


class Answers(nn.Module):
    """Images to what `answer` makes of the logits of a linear network."""

    def __init__(self, answer, classes: int = 4):
        super().__init__()
        with seeded():
            self.net, self.answer = nn.Sequential(nn.Flatten(), nn.Linear(64, classes)), answer

    def forward(self, x):
        return self.answer(self.net(x))


NO_LOGITS = {"answers with a tuple": lambda z: (z, z), "answers with a dict": lambda z: {"logits": z},
             "for a single logit z": lambda z: z[:, :1], "shape (6, 4, 1)": lambda z: z[..., None],
             "shape (6,)": lambda z: z[:, 0], "label 5 is none of 4 classes": lambda z: z,
             "numbers that are not finite": lambda z: torch.cat([z, z, z * torch.nan], 1),
             "are not finite, so": lambda z: torch.cat([z, z, z[:, :1] / 0], 1)}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.kind)
def test_what_are_no_logits_for_these_labels_is_one_line(attack, few, refusal):
    for what, answer in NO_LOGITS.items():
        assert what in refusal(attack, Answers(answer).eval(), *few), what


@pytest.mark.parametrize("measurement", [
    Accuracy(), Distance(attack=DeepFool(steps=2)), Health(epsilon=0.1, steps=(1, 2)), Margins(images=4, samples=2)],
    ids=lambda measurement: measurement.kind)
def test_no_number_comes_of_what_are_no_logits(measurement, few, refusal):
    data = Split(*few)
    for what, answer in NO_LOGITS.items():
        told = refusal(measurement, Answers(answer).eval(), Splits(data, data, data, tuple("abcdefghij")))
        assert what.replace("(6", "(2") in told, what


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.kind)
def test_attacks_take_functions_and_need_no_gradients_switched_on(attack, net, few):
    def found(model, images=few[0]):
        return attack(model, images, few[1], torch.Generator().manual_seed(0))

    whole = found(net)
    assert torch.equal(found(lambda x: net(x)), whole)
    for outside in (torch.no_grad, torch.inference_mode):
        with outside():
            assert torch.equal(found(net, few[0].clone()), whole)
    assert torch.equal(found(net, few[0].clone().requires_grad_(True)), whole) and not whole.requires_grad


@pytest.mark.parametrize("attack", ATTACKS[:-1], ids=lambda attack: attack.kind)  # ZOO sees float32
def test_attacks_know_other_precisions_and_images_that_are_not_square(attack, few):
    model = Answers(lambda z: z, 10).eval()
    wide = nn.Sequential(nn.AdaptiveAvgPool2d(8), *model.net).eval()
    found = attack(model.double(), few[0].double(), few[1], torch.Generator().manual_seed(0))
    assert found.dtype == torch.float64
    images = torch.rand(6, 1, 8, 12, generator=torch.Generator().manual_seed(0))
    assert attack(wide.float(), images, few[1]).shape == images.shape


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("classes", [2, 4, 10])
def test_autoattack_goes_on_where_logits_are_tied(norm, classes):
    """As behind layers that are dead on dark images."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, classes, bias=False)).eval()
    with torch.no_grad():
        net[1].bias.fill_(-2.0)  # all are
        net[1].weight[0].fill_(0.06)  # but for one, on bright images
    images = torch.stack([torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.9)])
    assert net(images[:1]).eq(0).all()
    moved = AutoAttack(epsilon=0.1, norm=norm)(net, images, net(images).argmax(1), torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and bool(moved.isfinite().all())


def test_a_last_batch_of_one_image_that_a_network_does_not_take_is_one_line(few, refusal):
    alone = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64, track_running_stats=False), nn.Linear(64, 10))
    images, labels = few[0][:1].repeat(251, 1, 1, 1), few[1][:1].repeat(251)
    assert "takes no float32 images of shape (1, 8, 8), 1 together" in refusal(
        Accuracy(), alone, splits_of(images, labels))


def test_autoattack_takes_no_images_float64_and_networks_without_gradients(few):
    model, (images, labels) = Answers(lambda z: z, 10).eval(), few
    attack = AutoAttack(epsilon=0.1, version="standard")
    assert attack(model, images[:0], labels[:0]).shape == (0, 1, 8, 8)
    single, double = attack(model, images, labels), attack(model.double(), images.double(), labels)
    assert double.dtype == torch.float64 and (double - images).abs().max() <= 0.1
    assert torch.allclose(single.double(), double, atol=1e-6)
    for cut in (lambda x: model.float()(x.detach()), lambda x: model.float()(x).detach()):
        with flagged() as flags:
            found = attack(cut, images, labels)
        assert CUT_OFF in flags and found.shape == images.shape
    with flagged() as flags:
        attack(model.float(), images, labels)
    assert CUT_OFF not in flags


def written_over(x):
    x -= 0.5
    return x.flatten(1)[:, :10]


def written_below(x):
    return x.data.mul_(0.5).flatten(1)[:, :10]


@pytest.mark.parametrize("writes", [written_over, written_below])
def test_a_network_that_writes_over_its_images_is_refused_and_they_stay(writes, few, refusal):
    images, labels = few[0].clone(), few[1]
    data = Split(images, labels)
    for call in (*ATTACKS[-2:], ATTACKS[0]):
        assert "writ" in refusal(call, writes, images, labels) or call is ATTACKS[0]  # torch refuses at a leaf
    for call in (Accuracy(), Accuracy(attack=ATTACKS[0])):
        assert "writes over the images" in refusal(call, writes, Splits(data, data, data, tuple("abcdefghij")))
    assert torch.equal(images, few[0])


class Fails(Answers):
    """Raises, after a first answer or always."""

    def __init__(self, error: Exception, always: bool):
        super().__init__(lambda z: z, 10)
        self.error, self.always, self.passes = error, always, 0

    def forward(self, x):
        self.passes += 1
        if self.always or self.passes > 1:
            raise self.error
        return super().forward(x)


@pytest.mark.parametrize("always", [True, False])
@pytest.mark.parametrize("error", [KeyError("no such thing"), AssertionError(), ZeroDivisionError("by zero")], ids=repr)
def test_whatever_a_network_raises_is_one_line(error, always, few, refusal):
    told = refusal(ATTACKS[2], Fails(error, always).eval(), *few)
    assert "images of shape (1, 8, 8), 6 together" in told and type(error).__name__ in told
    if always:
        assert type(error).__name__ in refusal(Accuracy(), Fails(error, always).eval(), splits_of(*few, classes=10))


def test_a_program_of_torchscript_is_a_network(few, refusal):
    model = Answers(lambda z: z, 10).net.eval()
    traced = torch.jit.trace(model, few[0])
    for attack in (ATTACKS[2], ATTACKS[-2]):
        found = [attack(each, *few, torch.Generator().manual_seed(0)) for each in (model, traced)]
        assert torch.equal(*found)
    assert not network(traced).training
    assert "if it was traced in eval mode" in refusal(network, traced.train())


@pytest.mark.parametrize("labels", [torch.int32, torch.uint8, torch.int8, torch.bool, torch.uint16, torch.uint32,
                                    torch.uint64])
def test_labels_of_any_whole_type_and_unknown_classes_are_measured_alike(labels, net, few):
    given = (net(few[0]).argmax(1) > 0 if labels is torch.bool else net(few[0]).argmax(1)).to(labels)
    one, other = Split(few[0], given.long()), Split(few[0], given)
    for measurement in (Accuracy(attack=ATTACKS[2]), Health(epsilon=0.1, steps=(1, 2))):
        whole = measurement(net, Splits(one, one, one, tuple("abcdefghij")))
        for classes in (tuple("abcdefghij"), list("abcdefghij")):
            assert measurement(net, Splits(other, other, other, classes)) == whole
    assert Accuracy()(net, Splits(other, other, other, None))["total"] == 6  # type: ignore[arg-type]


def test_an_empty_split_and_what_is_none_are_one_line(net, few, refusal):
    none = Split(few[0][:0], few[1][:0])
    assert "the test split is empty" in refusal(Accuracy(), net, Splits(none, none, none, ()))
    assert "should be data.Split(images, labels)" in refusal(Accuracy(), net, Splits(few, few, few, ()))


def test_whole_numbers_are_no_logits(few, refusal):
    assert "int64 of shape" in refusal(Accuracy(), Answers(lambda z: z.long(), 10).eval(), splits_of(*few, classes=10))


@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode])
def test_measurements_need_no_gradients_switched_on(outside, net, few):
    data = splits_of(few[0], net(few[0]).argmax(1), classes=10)
    for measurement in (Accuracy(attack=ATTACKS[2]), Margins(images=4, samples=2), LayerTable(images=6)):
        whole = measurement(net, data)
        with outside():
            assert measurement(net, data) == whole


def test_splits_are_asked_for_where_one_is_given(net, few, refusal):
    assert "the three splits of a data set" in refusal(Accuracy(), net, Split(*few))
    assert "a torch.nn.Module or a function" in refusal(Accuracy(), net.state_dict(), splits_of(*few))


@settings
class Broken(Measurement, kind="broken"):
    """Gives what it is told to."""

    given: dict

    def __call__(self, model, splits):
        return self.given.get("all of it", self.given)


@pytest.mark.parametrize("given", [{"value": float("nan")}, {"value": 1.0, "parts": {"part": float("inf")}},
                                   {"value": 1.0, "rows": [{"x": 0.5}, {"x": float("-inf")}]}])
def test_a_measurement_of_ones_own_gives_numbers_or_an_error(given, net, few, refusal):
    assert "is not a finite number" in refusal(Broken(given=given), net, splits_of(*few))
    assert Broken(given={"value": 1.0, "other": None})(net, splits_of(*few)) == {"value": 1.0, "other": None}


def test_numbers_of_numpy_and_tensors_are_numbers_and_nothing_else_is_a_result(net, few, refusal):
    given = {"value": np.float32(0.5), "parts": {"a": torch.tensor(0.25)}, "rows": [np.int64(3), (np.bool_(True),)]}
    found = Broken(given=given)(net, splits_of(*few))
    assert json.dumps(found) == '{"value": 0.5, "parts": {"a": 0.25}, "rows": [3, [true]]}'
    assert "is not a finite number" in refusal(Broken(given={"value": np.float32("nan")}), net, splits_of(*few))
    for given in (0.5, [0.5], {"count": 1}, None):
        assert "should return a dictionary with its number as 'value'" in refusal(
            Broken(given={"all of it": given}), net, splits_of(*few))


def test_what_an_attack_of_ones_own_returns_are_images(net, few, refusal):
    @settings
    class Wild(Attack, kind="wild"):
        cost = 0.0

        def __call__(self, model, images, labels, generator=None):
            return {0: images + 1, 1: images[:1], 2: images * torch.nan}[len(labels) % 3]

    for n in (6, 4, 5):
        assert "are no images" in refusal(Wild(), net, few[0][:n], few[1][:n])


def _functions(net) -> dict:
    """Ways in which a function may hold a network."""
    class Holder:
        def __init__(self):
            self.net = net

        def __call__(self, x):
            return self.net(x)

    def through_another(x):
        return (lambda y: net(y))(x)

    return {"closure": lambda x: net(x), "argument": partial(lambda x, model: model(x), model=net),
            "default": lambda x, model=net: model(x), "method": net.forward, "object": Holder(),
            "within": through_another, "bound": Holder().__call__}


@pytest.mark.parametrize("how", ["closure", "argument", "default", "method", "object", "within", "bound"])
def test_a_network_within_a_function_is_judged_in_eval_mode_and_left_as_it_was(how, net, digits):
    fresh = deepcopy(net)
    expected = Accuracy(images=60, attack=PGD(epsilon=0.1, step_size=0.05, steps=2))(fresh, digits)
    before = {name: t.clone() for name, t in fresh.train().state_dict().items()}
    found = Accuracy(images=60, attack=PGD(epsilon=0.1, step_size=0.05, steps=2))(_functions(fresh)[how], digits)
    assert found == expected
    assert fresh.training and all(torch.equal(t, before[name]) for name, t in fresh.state_dict().items())
    assert network(_functions(fresh)[how]).training and not network(_functions(fresh.eval())[how]).training


def test_a_program_that_was_traced_in_training_mode_is_refused(net, digits, few, refusal):
    """No later eval() reaches the norms that were written into it."""
    traced = torch.jit.trace(net.train(), few[0], check_trace=False)
    assert "no eval() changes what was traced" in refusal(Accuracy(images=20), traced, digits)
    whole = torch.jit.trace(net.eval(), few[0], check_trace=False)
    assert Accuracy(images=20)(whole, digits)["count"] == Accuracy(images=20)(net, digits)["count"]


class Observing(nn.Module):
    """Remembers, in eval mode too, the largest logit that it has seen."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("seen", torch.empty(0))

    def forward(self, x):
        logits = self.net(x)
        if not len(self.seen):
            self.seen.resize_(1).fill_(-torch.inf)
        self.seen.copy_(torch.maximum(self.seen, logits.detach().max()))
        return logits


def test_buffers_that_a_network_writes_in_eval_mode_are_left_as_they_were(net, few):
    observing = Observing(net).eval()
    for start in (torch.empty(0), torch.tensor([-3.0])):
        observing.seen = start.clone()
        PGD(epsilon=0.1, step_size=0.05, steps=2)(observing, *few)
        assert torch.equal(observing.seen, start)
    observing(few[0])
    assert not torch.equal(observing.seen, start)
