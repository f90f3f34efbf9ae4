"""Accuracy against a direct count, and held to its promises."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from scaffolding import batch_sizes, seeded, splits_of, with_noise
from sparserobust import answers as answers_of
from sparserobust import evaluation, training
from sparserobust.analysis import WeightSparsity
from sparserobust.analysis.linear import exact_radii
from sparserobust.attacks import (
    FGSM,
    PGD,
    AutoAttack,
    CarliniWagnerL2,
    CarliniWagnerReleased,
    DeepFool,
    RandomisedFGSM,
    l2_norm,
)
from sparserobust.config import Measurement
from sparserobust.data import Split, Splits
from sparserobust.evaluation import Accuracy, Distance
from sparserobust.imagewise import unpack
from sparserobust.models import Linear, NoisyWeights, PreActResNet, is_noisy, noise_off
from sparserobust.query_attacks import ZOO, Square
from sparserobust.running.store import Store
from sparserobust.seeding import global_seed, stream

STRONG = PGD(epsilon=0.15, step_size=0.05, steps=3, random_start=False)


@pytest.fixture(scope="module")
def noisy(net):
    """The trained weights, with noise."""
    return with_noise(net, 1.0)


@pytest.fixture
def sizes(net):
    """A copy of the net, and the sizes of the batches it was given."""
    model = deepcopy(net)
    return model, batch_sizes(model)


def answers(result: dict, part: str = "") -> list[bool]:
    """Which images were classified correctly."""
    found = unpack(result["each"][part])
    assert set(found.tolist()) <= {0, 1}
    return (found == 1).tolist()


def agrees(result: dict, count: int, total: int) -> bool:
    return (result["value"], result["count"], result["total"], result["flags"]) == (count / total, count, total, [])


def test_clean_accuracy_is_a_count_of_all_test_images(net, digits):
    count = sum(int(net(image[None]).argmax()) == int(label)
                for image, label in zip(digits.test.images, digits.test.labels, strict=True))
    result = Accuracy()(net, digits)
    assert agrees(result, count, 500) and 400 < count < 500
    assert result["mean_l2"] == 0


@pytest.mark.parametrize("images", [1, 60, 300, 500])
def test_drawn_images_under_attack(net, digits, images):
    test = digits.test.sample(images)
    attacked = STRONG(net, test.images, test.labels)
    result = Accuracy(attack=STRONG, images=images)(net, digits)
    assert agrees(result, int((net(attacked).argmax(1) == test.labels).sum()), images)
    length = (attacked - test.images).flatten(1).norm(dim=1).mean().item()
    assert result["mean_l2"] == pytest.approx(length, rel=1e-4) and length > 0.5


@pytest.mark.parametrize("attack", [None, STRONG, DeepFool(steps=3)], ids=["clean", "pgd", "deepfool"])
def test_batches_do_not_matter_to_a_deterministic_net(net, digits, monkeypatch, attack):
    whole = Accuracy(attack=attack, images=70)(net, digits)
    monkeypatch.setattr(evaluation, "BATCH", 16)
    parts = Accuracy(attack=attack, images=70)(net, digits)
    for length in ("mean_l2", "mean_l2_of_moved"):
        assert parts.pop(length) == pytest.approx(whole.pop(length), rel=1e-5)
    assert parts == whole


def test_lengths_are_over_all_images_and_over_those_that_moved(net, digits):
    attack = CarliniWagnerL2(steps=20, search_steps=2)
    result, test = Accuracy(attack=attack, images=40)(net, digits), digits.test.sample(40)
    lengths = l2_norm(attack(net, test.images, test.labels) - test.images)
    assert 0 < (lengths > 0).sum() < 40  # some were wrong before
    assert result["mean_l2"] == pytest.approx(float(lengths.mean()), rel=1e-4)
    assert result["mean_l2_of_moved"] == pytest.approx(float(lengths[lengths > 0].mean()), rel=1e-4)
    assert Accuracy(images=10)(net, digits)["mean_l2_of_moved"] == 0


def test_every_image_is_seen_once_in_batches_of_bounded_size(sizes, digits, monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH", 16)
    model, seen = sizes
    Accuracy(images=70)(model, digits)
    assert seen == [2, 16, 16, 16, 16, 6]  # two are asked first whether the network takes such images


def test_draws_are_counted_in_the_size_of_a_batch(noisy, digits, monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH", 16)
    model = deepcopy(noisy)
    seen = batch_sizes(model)
    Accuracy(attack=FGSM(epsilon=0.1, eot_draws=5), images=7)(model, digits)
    assert seen == [2, 15, 3, 15, 3, 5, 1, 7]  # two are asked first; all of them once more, without the attack


def test_draws_of_a_deterministic_net_are_not_repeated(sizes, digits):
    model, seen = sizes
    result = Accuracy(attack=FGSM(epsilon=0.1, eot_draws=5), images=40)(model, digits)
    assert seen == [2, *[40] * 3]  # the gradient, under attack, and without it
    assert result == Accuracy(attack=FGSM(epsilon=0.1), images=40)(model, digits)


@pytest.mark.parametrize("attack", [None, FGSM(epsilon=0.1), RandomisedFGSM(epsilon=0.1)], ids=str)
def test_without_noise_is_the_silenced_net(net, noisy, digits, attack):
    silent = Accuracy(attack=attack, noise=False)(noisy, digits)
    assert noisy.members[0].blocks[0].noise.level == 1 and is_noisy(noisy)
    with noise_off(noisy):
        assert Accuracy(attack=attack, noise=False)(noisy, digits) == silent
    if not isinstance(attack, RandomisedFGSM):  # else the start is drawn for each measurement anew
        assert Accuracy(attack=attack)(net, digits) == silent
    assert Accuracy(attack=attack)(noisy, digits)["count"] < silent["count"] - 5


@pytest.mark.parametrize("attack", [None, RandomisedFGSM(epsilon=0.1), AutoAttack(epsilon=0.5)],
                         ids=["clean", "rfgsm", "autoattack"])
def test_a_measurement_repeats_and_leaves_global_chance_alone(net, noisy, digits, attack, quick_suite):
    model = net if isinstance(attack, AutoAttack) else noisy
    measure = Accuracy(attack=attack, images=40)
    before = torch.get_rng_state()
    first = measure(model, digits)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert measure(model, digits) == first


def test_noise_of_the_answer_is_drawn_anew(noisy, digits):
    """Other measurements, other noise: the counts of like measurements scatter."""
    answers = {Accuracy(attack=FGSM(epsilon=e))(noisy, digits)["count"] for e in (1e-6, 2e-6, 3e-6, 4e-6)}
    assert len(answers) > 1


def test_a_net_in_training_is_measured_as_in_evaluation(net, digits):
    training = deepcopy(net).train()
    before = {name: t.clone() for name, t in training.state_dict().items()}
    assert Accuracy(attack=STRONG, images=50)(training, digits) == Accuracy(attack=STRONG, images=50)(net, digits)
    assert training.training
    assert all(torch.equal(t, before[name]) for name, t in training.state_dict().items())


def test_noise_comes_back_when_a_measurement_fails(noisy, digits):
    model = deepcopy(noisy)
    passes = iter((1, 0))  # the first is that by which a network is tried
    hook = model.register_forward_pre_hook(lambda *_: (1 / next(passes)) and None)
    with pytest.raises(ZeroDivisionError):
        Accuracy(noise=False)(model, digits)
    hook.remove()
    assert is_noisy(model)


def test_warnings_of_autoattack_are_kept(noisy, digits):
    result = Accuracy(attack=AutoAttack(epsilon=0.5, version="standard"), images=4)(noisy, digits)
    assert any("randomized" in flag for flag in result["flags"])


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.02), ("l2", 0.2)])
def test_autoattack_of_colour_images(norm, epsilon, quick_suite):
    """Which are handed over with channels last, to networks that were trained so."""
    with seeded():
        model, images = PreActResNet(depth=8, width=4).build((3, 8, 8), 10), torch.rand(16, 3, 8, 8)
    model.eval().to(memory_format=torch.channels_last)
    split = Split(images, model(images).argmax(1))
    attack = AutoAttack(epsilon=epsilon, norm=norm)
    expected = int((model(attack(model, images, split.labels)).argmax(1) == split.labels).sum())
    assert 0 < expected < 16
    result = Accuracy(attack=attack)(model, Splits(split, split, split, ()))
    assert abs(result["count"] - expected) <= 1


# --- trials


@pytest.fixture(scope="module")
def shaken(net):
    """The trained weights, with noise on them."""
    model = NoisyWeights(model=PreActResNet(depth=8, width=8)).build((1, 8, 8), 10)
    model.load_state_dict(net.state_dict(), strict=False)
    return model.eval()


@pytest.mark.parametrize("attack", [None, PGD(epsilon=0.1, step_size=0.05, steps=2, eot_draws=2)], ids=["clean", "pgd"])
@pytest.mark.parametrize("which", ["noisy", "shaken"])
def test_trials_by_hand(which, attack, request, digits, monkeypatch):
    """One after another, with the dice going on from trial to trial, and then to the answers without the attack."""
    model, test, trials = request.getfixturevalue(which), digits.test.sample(70), 3
    monkeypatch.setattr(evaluation, "BATCH", 32)
    measure, counts, lengths = Accuracy(attack=attack, images=70, trials=trials), [], []
    right, clean = [0] * 70, []  # of an image: in how many trials; whether without the attack
    with global_seed(0, "evaluation noise", measure.identity):
        chance = stream(0, "evaluation", measure.identity)
        for _ in range(trials):
            counts.append(0)
            size = 16 if attack else 32
            for start in range(0, 70, size):
                x, labels = test.images[start:start + size], test.labels[start:start + size]
                attacked = attack(model, x, labels, chance) if attack else x
                for i, hit in enumerate((model(attacked).argmax(1) == labels).tolist(), start):
                    right[i] += hit
                    counts[-1] += hit
                lengths.append((attacked - x).flatten(1).norm(dim=1))
        for x, labels in zip(test.images.split(32), test.labels.split(32), strict=True):
            clean += (model(x).argmax(1) == labels).tolist()
    result = measure(model, digits)
    assert len(set(counts)) > 1  # each trial has noise of its own
    assert unpack(result["each"][""]) == pytest.approx([r / 3 for r in right]) and {1, 2} & set(right)
    if attack:
        assert answers(result, "clean") == clean and 0 < sum(clean) < 70
        withstood = [r / 3 for r, without in zip(right, clean, strict=True) if without]
        assert result["of_correct"] == pytest.approx(sum(withstood) / len(withstood))
    assert result["trial_values"] == [count / 70 for count in counts]
    assert result["value"] == pytest.approx(sum(counts) / 210) and result["count"] == pytest.approx(sum(counts) / 3)
    assert (result["total"], result["flags"]) == (70, [])
    assert result["mean_l2"] == pytest.approx(torch.cat(lengths).mean().item(), rel=1e-4)


def test_a_single_trial_is_what_it_was_before_there_were_trials(shaken, digits):
    measure = Accuracy(attack=FGSM(epsilon=0.1), images=60)
    one = Accuracy(attack=FGSM(epsilon=0.1), images=60, trials=1)
    assert one == measure and one.identity == measure.identity and "trials" not in one.plain()
    result = one(shaken, digits)
    assert list(result) == ["value", "count", "total", "mean_l2", "mean_l2_of_moved", "each", "of_correct", "flags"]
    assert isinstance(result["count"], int) and result["value"] == result["count"] / 60
    many = Accuracy(attack=FGSM(epsilon=0.1), images=60, trials=2)
    assert many.identity != one.identity and Measurement.parse(many.plain()) == many


def test_trials_of_a_deterministic_net_are_all_the_same(net, digits):
    once = Accuracy(attack=STRONG, images=60)(net, digits)
    result = Accuracy(attack=STRONG, images=60, trials=3)(net, digits)
    assert result.pop("trial_values") == [once["value"]] * 3
    for length in ("mean_l2", "mean_l2_of_moved"):
        assert result.pop(length) == pytest.approx(once.pop(length), rel=1e-6)
    for part in ("", "clean"):
        assert answers(result, part) == answers(once, part)
    assert [other.pop("each").keys() for other in (result, once)] == [{"", "clean"}] * 2
    assert result == once
    started = PGD(epsilon=0.12, step_size=0.12, steps=1)  # a random start is drawn anew for each trial
    assert len(set(Accuracy(attack=started, trials=4)(net, digits)["trial_values"])) > 1


def test_trials_without_noise(net, shaken, digits):
    """Silent, and the weights are the plain network's."""
    result = Accuracy(images=60, noise=False, trials=2)(shaken, digits)
    assert result["trial_values"] == [Accuracy(images=60)(net, digits)["value"]] * 2
    assert is_noisy(shaken)
    assert Accuracy(images=60, trials=2)(shaken, digits)["value"] < result["value"]


# --- answers to single images


@pytest.mark.parametrize("attack", [None, STRONG, CarliniWagnerL2(steps=3, search_steps=1)], ids=["clean", "pgd", "cw"])
@pytest.mark.parametrize("images", [1, 290, None])  # one, more than a batch, all
def test_kept_answers_are_those_to_the_drawn_images(net, digits, attack, images):
    if images is None and isinstance(attack, CarliniWagnerL2):
        pytest.skip("that takes long, and shows nothing more")
    test = digits.test.sample(images)
    moved = test.images if attack is None else attack(net, test.images, test.labels)
    right, clean = ((net(x).argmax(1) == test.labels).tolist() for x in (moved, test.images))
    result = Accuracy(attack=attack, images=images)(net, digits)
    assert answers(result) == right and result["count"] == sum(right) and result["value"] == sum(right) / len(test)
    if attack is None:
        assert result["each"].keys() == {""} and "of_correct" not in result
        return
    assert result["each"].keys() == {"", "clean"} and answers(result, "clean") == clean
    both = sum(hit and without for hit, without in zip(right, clean, strict=True))
    assert result["of_correct"] == pytest.approx(both / sum(clean)) and "parts" not in result
    assert images == 1 or 0 < both < sum(clean) < len(test)


def test_of_correct_counts_no_image_that_the_attack_puts_right(net, digits, monkeypatch):
    """Which is among the right ones, but was wrong without the attack."""
    monkeypatch.setattr(FGSM, "__call__", lambda self, model, images, *_: images.flip(3))
    images = digits.test.images[:200]
    before, behind = net(images).argmax(1), net(images.flip(3)).argmax(1)
    labels = torch.where(torch.arange(200) < 100, before, behind)  # what it says of one half, and of the other flipped
    clean, right = before == labels, behind == labels
    assert (right & ~clean).any() and (right & clean).any() and (clean & ~right).any()
    result = Accuracy(attack=FGSM(epsilon=0.1))(net, Splits(None, None, Split(images, labels), ()))
    assert result["of_correct"] == pytest.approx(int((right & clean).sum()) / int(clean.sum()))
    assert result["count"] == int(right.sum())


def test_where_no_answer_is_correct_there_is_no_share_of_them(net, digits):
    wrong = Split(digits.test.images[:30], (net(digits.test.images[:30]).argmax(1) + 1) % 10)
    result = Accuracy(attack=STRONG)(net, Splits(None, None, wrong, ()))
    assert result["of_correct"] is None and not any(answers(result, "clean"))


@given(st.integers(1, 500), st.integers(1, 500))
@examples(max_examples=15)
def test_answers_do_not_depend_on_images_that_are_asked_for_beyond(net, digits, one, other):
    fewer, more = sorted((one, other))
    few, many = (Accuracy(attack=FGSM(epsilon=0.1), images=n)(net, digits) for n in (fewer, more))
    for part in ("", "clean"):
        assert len(answers(many, part)) == more and answers(few, part) == answers(many, part)[:fewer]
    assert answers(Accuracy(images=fewer)(net, digits)) == answers(many, "clean")[:fewer]


def test_all_measurements_are_on_the_same_images(net, noisy, shaken, other, digits, source, monkeypatch):
    """Of other networks, under other attacks, with other settings."""
    seen = []
    monkeypatch.setattr(PGD, "__call__", lambda self, model, images, *_: seen.append(images) or images)
    for model, more in ((net, {}), (noisy, {"noise": False}), (shaken, {}), (other, {"precision": "bfloat16"})):
        Accuracy(attack=STRONG, images=30, **more)(model, digits)
    Accuracy(attack=STRONG, images=30, source=source)(net, digits, other)
    assert len(seen) == 5 and all(torch.equal(images, digits.test.sample(30).images) for images in seen)


@pytest.mark.parametrize("measure", [Accuracy(), Accuracy(attack=STRONG, images=40),
                                     Accuracy(images=30, attack=STRONG, after=Accuracy(attack=FGSM(epsilon=0.05))),
                                     Distance(attack=DeepFool(steps=2), images=40)], ids=["all", "pgd", "after", "far"])
def test_validation_images_are_seen_where_they_are_asked_for_and_no_others(net, digits, measure):
    def of(split: str, measure):
        after = {"after": of(split, measure.after)} if getattr(measure, "after", None) else {}
        return replace(measure, split=split, **after)

    only = {split: Splits(None, None, None, ()) for split in ("validation", "test")}
    only = {split: replace(splits, **{split: digits.validation}) for split, splits in only.items()}
    found = {split: of(split, measure)(net, splits) for split, splits in only.items()}
    assert found["validation"] == found["test"] and found["test"]["total"] in (97, 40, 30)
    assert found["test"] != of("test", measure)(net, digits)
    assert len({of(split, measure).identity for split in only}) == 2
    assert of("test", measure).identity == measure.identity


def test_validation_accuracy_by_hand(net, digits):
    poisoned = replace(digits, test=Split(torch.full_like(digits.test.images, torch.nan), digits.test.labels))
    val = digits.validation.sample(60)
    for images in (val.images, STRONG(net, val.images, val.labels)):
        attack = None if images is val.images else STRONG
        expected = (net(images).argmax(1) == val.labels).tolist()
        assert answers(Accuracy(attack=attack, images=60, split="validation")(net, poisoned)) == expected
    lengths = l2_norm(DeepFool()(net, val.images, val.labels) - val.images)
    right = net(val.images).argmax(1) == val.labels
    found = Distance(attack=DeepFool(), images=60, split="validation")(net, poisoned)
    assert found["value"] == pytest.approx(float((lengths * right).mean()), rel=1e-4) and found["not_fooled"] == 0


# --- after another attack

WEAK = FGSM(epsilon=0.08)


@pytest.fixture
def tried(monkeypatch):
    """The images that STRONG was called with."""
    seen, call = [], PGD.__call__

    def watched(self, model, images, *more):
        if self == STRONG:
            seen.append(images)
        return call(self, model, images, *more)

    monkeypatch.setattr(PGD, "__call__", watched)
    return seen


@pytest.mark.parametrize("before", [None, WEAK, CarliniWagnerL2(steps=5, search_steps=1)], ids=["clean", "fgsm", "cw"])
def test_after_another_attack_is_right_what_withstands_both(net, digits, before, tried):
    test = digits.test.sample(300)
    images = before(net, test.images, test.labels) if before else test.images
    stood = net(images).argmax(1) == test.labels
    right = stood & (net(STRONG(net, test.images, test.labels)).argmax(1) == test.labels)
    tried.clear()
    result = Accuracy(attack=STRONG, images=300, after=Accuracy(attack=before, images=300))(net, digits)
    assert agrees(result, int(right.sum()), 300) and answers(result) == right.tolist()
    assert 0 < result["count"] < int(stood.sum()) < 300
    assert torch.equal(torch.cat(tried), test.images[stood]) and len(tried) == -(-int(stood.sum()) // 250)
    assert answers(result, "clean") == (net(test.images).argmax(1) == test.labels).tolist()


def test_a_weaker_attack_afterwards_finds_less_and_reads_no_higher(net, digits):
    """On its own it does."""
    alone, strong = (Accuracy(attack=attack, images=200) for attack in (WEAK, STRONG))
    both = Accuracy(attack=WEAK, images=200, after=strong)
    weak, first, then = (answers(measure(net, digits)) for measure in (alone, strong, both))
    assert sum(weak) > sum(first)
    assert then == [a and b for a, b in zip(weak, first, strict=True)]


@pytest.mark.parametrize("noise", [True, False])
def test_what_a_noisy_net_got_wrong_before_stays_wrong(noisy, digits, noise):
    """Whatever noise does to it the second time; the first time is that of the other measurement taken alone."""
    first = Accuracy(attack=PGD(epsilon=0.1, step_size=0.05, steps=2), images=150, noise=noise)
    then = Accuracy(attack=WEAK, images=100, noise=noise, after=first)(noisy, digits)
    before = answers(first(noisy, digits))
    assert not any(b and not a for a, b in zip(before, answers(then), strict=False))
    assert 0 < then["count"] <= sum(before[:100]) and len(answers(then)) == 100
    assert is_noisy(noisy)


@pytest.mark.parametrize("images", [40, None])
def test_what_comes_before_may_have_more_images(net, digits, tried, images):
    test = digits.test.sample(40)
    stood = net(WEAK(net, test.images, test.labels)).argmax(1) == test.labels
    Accuracy(attack=STRONG, images=40, after=Accuracy(attack=WEAK, images=images))(net, digits)
    assert torch.equal(torch.cat(tried), test.images[stood])


def test_three_attacks_one_after_another(net, digits, tried):
    first = Accuracy(attack=WEAK, images=100)
    second = Accuracy(attack=CarliniWagnerL2(steps=10, search_steps=2, lr=0.1, epsilon=0.7), images=80, after=first)
    third = Accuracy(attack=STRONG, images=80, after=second)
    one, two, three = (answers(measure(net, digits)) for measure in (first, second, third))
    assert sum(one[:80]) > sum(two) > sum(three) > 0
    assert all(a >= b >= c for a, b, c in zip(one, two, three, strict=False))
    assert torch.equal(torch.cat(tried), digits.test.sample(80).images[torch.tensor(two)])


def test_a_transfer_attack_after_another(net, other, digits, source, tried):
    test = digits.test.sample(200)
    stood = net(WEAK(other, test.images, test.labels)).argmax(1) == test.labels
    right = stood & (net(STRONG(other, test.images, test.labels)).argmax(1) == test.labels)
    tried.clear()
    before = Accuracy(attack=WEAK, images=200, source=source)
    result = Accuracy(attack=STRONG, images=200, source=source, after=before)(net, digits, other)
    assert answers(result) == right.tolist() and 0 < sum(right) < sum(stood)
    assert torch.equal(torch.cat(tried), test.images[stood])


@pytest.mark.parametrize("attack", [STRONG, AutoAttack(epsilon=0.1)], ids=["pgd", "autoattack"])
def test_where_nothing_is_left_nothing_is_tried(net, digits, tried, attack):
    """A suite of attacks does not take an empty batch."""
    lost = Accuracy(attack=FGSM(epsilon=1.0), images=20)
    assert lost(net, digits)["count"] == 0
    result = Accuracy(attack=attack, images=20, after=lost)(net, digits)
    assert agrees(result, 0, 20) and result["of_correct"] == result["mean_l2_of_moved"] == 0
    assert tried == []


def test_autoattack_on_what_pgd_leaves(net, digits, quick_suite):
    before = Accuracy(attack=PGD(epsilon=0.1, step_size=0.025, steps=10))
    attack, test = AutoAttack(epsilon=0.1), digits.test.sample(40)
    measure = Accuracy(attack=attack, images=40, after=before)
    stood = torch.tensor(answers(before(net, digits))[:40])
    with global_seed(0, "evaluation noise", measure.identity):
        moved = attack(net, test.images[stood], test.labels[stood], stream(0, "evaluation", measure.identity))
    right = stood.clone()
    right[stood] = net(moved).argmax(1) == test.labels[stood]
    result = measure(net, digits)
    assert agrees(result, int(right.sum()), 40) and answers(result) == right.tolist()
    assert 0 < result["count"] < int(stood.sum()) < 40  # it finds more, and there was something to find


@pytest.mark.parametrize(("change", "before", "words"), [
    ({"images": 60}, {"images": 59}, ["as many images"]),
    ({}, {"images": 499}, ["as many images"]),
    ({"noise": False}, {}, ["same noise"]),
    ({}, {"noise": False}, ["same noise"]),
    ({"split": "validation"}, {}, ["split"]),
    ({}, {"split": "validation"}, ["split"]),
    ({"trials": 2}, {}, ["one trial"]),
    ({}, {"trials": 2}, ["one trial"]),
    ({"trials": 2}, {"trials": 2}, ["one trial"]),
    ({"attack": None}, {}, ["goes with an attack"]),
], ids=str)
def test_what_comes_before_has_to_fit(change, before, words, refusal):
    message = refusal(Accuracy, **({"attack": STRONG, "after": Accuracy(attack=WEAK, **before)} | change))
    assert "(after)" in message and all(word in message for word in words), message


def test_what_comes_before_is_of_the_same_source(source, tiny_run, refusal):
    same = Accuracy(attack=WEAK, source=source)
    assert Accuracy(attack=STRONG, source=source, after=same).after == same
    for one, before in ((None, source), (source, None), (source, tiny_run(seed=8))):
        assert "source" in refusal(Accuracy, attack=STRONG, source=one, after=Accuracy(attack=WEAK, source=before))


def test_what_comes_before_is_part_of_the_settings():
    before = Accuracy(attack=WEAK, images=100)
    measure = Accuracy(attack=STRONG, images=60, after=before)
    assert Measurement.parse(measure.plain()) == measure and measure.plain()["after"] == before.plain()
    alone, other = Accuracy(attack=STRONG, images=60), replace(measure, after=Accuracy(attack=WEAK))
    assert len({m.identity for m in (measure, alone, other)}) == 3
    assert measure.cost == pytest.approx(alone.cost + before.cost) and before.cost > 0
    assert "after" not in alone.plain() and "split" not in alone.plain()


# --- transfer


@pytest.fixture(scope="module")
def other(net):
    """Another network that knows the digits, and whose gradients are others."""
    model = deepcopy(net)
    with seeded(3):
        for p in model.parameters():
            p.data += 0.4 * p.std() * torch.randn_like(p) if p.dim() > 1 else 0
    return model


@pytest.fixture
def source(tiny_run):
    return tiny_run(seed=7)


def test_a_transfer_attack_by_hand(net, other, digits, source):
    test = digits.test.sample(300)
    counts = {(a, b): int((answering(STRONG(attacked, test.images, test.labels)).argmax(1) == test.labels).sum())
              for a, attacked in (("net", net), ("other", other)) for b, answering in (("net", net), ("other", other))}
    assert len(set(counts.values())) == 4  # whoever is attacked and whoever answers, the count tells
    measure = Accuracy(attack=STRONG, images=300, source=source)
    result = measure(net, digits, other)
    assert agrees(result, counts["other", "net"], 300)
    assert agrees(measure(other, digits, net), counts["net", "other"], 300)
    assert agrees(measure(net, digits, net), counts["net", "net"], 300)
    length = (STRONG(other, test.images, test.labels) - test.images).flatten(1).norm(dim=1).mean().item()
    assert result["mean_l2"] == pytest.approx(length, rel=1e-4)


def test_trials_of_a_transfer_attack_by_hand(shaken, other, digits, source):
    """The network that answers is noisy, the attacked one is not: its draws are not repeated."""
    attack, test = PGD(epsilon=0.1, step_size=0.05, steps=2, eot_draws=3), digits.test.sample(50)
    measure = Accuracy(attack=attack, images=50, source=source, trials=2)
    with global_seed(0, "evaluation noise", measure.identity):
        chance, values = stream(0, "evaluation", measure.identity), []
        for _ in range(2):
            attacked = PGD(epsilon=0.1, step_size=0.05, steps=2)(other, test.images, test.labels, chance)
            values.append(int((shaken(attacked).argmax(1) == test.labels).sum()) / 50)
    attacked = deepcopy(other)
    seen = batch_sizes(attacked)
    assert measure(shaken, digits, attacked)["trial_values"] == values
    assert seen == [2, *[50] * 4]


def test_draws_are_those_of_the_attacked_network(net, noisy, digits, source, monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH", 16)
    attacked = deepcopy(noisy)
    seen = batch_sizes(attacked)
    Accuracy(attack=FGSM(epsilon=0.1, eot_draws=5), images=7, source=source)(net, digits, attacked)
    assert seen == [2, 15, 15, 5]


def test_both_networks_of_a_transfer_attack_are_silenced(net, noisy, shaken, other, digits, source):
    measure = Accuracy(attack=FGSM(epsilon=0.1), images=200, source=source, noise=False)
    white = Accuracy(attack=FGSM(epsilon=0.1), images=200)(net, digits)
    assert measure(noisy, digits, shaken) == measure(shaken, digits, noisy) == white  # the same weights
    assert is_noisy(noisy) and is_noisy(shaken)
    transferred = Accuracy(attack=FGSM(epsilon=0.1), images=200, source=source)(net, digits, other)
    assert measure(noisy, digits, other) == transferred and transferred["count"] != white["count"]
    assert Accuracy(attack=FGSM(epsilon=0.1), images=200, source=source)(noisy, digits, net)["count"] < white["count"]


def test_autoattack_attacks_the_source(net, other, digits, source, monkeypatch):
    seen = []

    def attack(self, model, images, labels, generator):
        seen.append(model)
        answers_of.flag("odd")
        return images

    monkeypatch.setattr(AutoAttack, "__call__", attack)
    result = Accuracy(attack=AutoAttack(epsilon=0.1), images=20, source=source)(net, digits, other)
    assert len(seen) == 1 and seen[0] is other
    assert result["value"] == Accuracy(images=20)(net, digits)["value"] and result["flags"] == ["odd"]


def test_a_transfer_attack_is_not_taken_without_its_network(net, other, digits, source):
    with pytest.raises(TypeError):
        Accuracy(attack=STRONG, images=5, source=source)(net, digits)
    with pytest.raises(TypeError):
        Accuracy(attack=STRONG, images=5)(net, digits, other)


def test_a_source_is_a_run_that_is_needed_besides(source, tiny_run, refusal):
    measure = Accuracy(attack=STRONG, source=source)
    assert measure.required_runs == (source,)
    assert Accuracy(attack=STRONG).required_runs == WeightSparsity().required_runs == ()
    assert Measurement.parse(measure.plain()) == measure and measure.plain()["source"] == source.plain()
    assert len({m.identity for m in (measure, Accuracy(attack=STRONG),
                                     Accuracy(attack=STRONG, source=tiny_run(seed=8)))}) == 3
    assert all(word in refusal(Accuracy, source=source) for word in ("source", "attack"))


def test_a_store_trains_the_source_and_keeps_the_result(tiny_run, source, digits, tmp_path, monkeypatch):
    run, train, trained = tiny_run(), training.train, []
    monkeypatch.setattr(training, "train", lambda run, *a, **k: trained.append(run.identity) or train(run, *a, **k))
    measure = Accuracy(attack=FGSM(epsilon=0.2), images=200, source=source)
    first = Store(tmp_path / "store", use_published=False).measure(run, measure)
    assert sorted(trained) == sorted([run.identity, source.identity])
    models = {r: train(r, digits).model for r in (run, source)}
    counts, test = {}, digits.test.sample(200)
    for name, attacked in {"transfer": models[source], "white box": models[run]}.items():
        images = FGSM(epsilon=0.2)(attacked, test.images, test.labels)
        counts[name] = int((models[run](images).argmax(1) == test.labels).sum())
    assert counts["transfer"] != counts["white box"]
    assert agrees(first, counts["transfer"], 200)
    again = Store(tmp_path / "store", use_published=False)
    assert again.find(run, measure) == again.measure(run, measure) == first
    assert again.find(run, Accuracy(attack=FGSM(epsilon=0.2), images=200)) is None
    assert again.find(source, measure) is None
    assert len(trained) == 2


# --- precision of the attack

ROUGH = PGD(epsilon=0.12, step_size=0.02, steps=8, random_start=False)


@pytest.fixture
def passes(net, monkeypatch):
    """A copy of the net that writes down, of each pass, the precision of its logits and whether a gradient is wanted;
    on a machine that has bfloat16, whatever this one has."""
    monkeypatch.setattr(evaluation, "has_bfloat16", lambda kind: kind == "cpu")
    model, seen = deepcopy(net), []
    model.register_forward_hook(lambda _, inputs, logits: seen.append((logits.dtype, inputs[0].requires_grad)))
    return model, seen


@pytest.mark.parametrize("attack", [ROUGH, FGSM(epsilon=0.1)], ids=["pgd", "fgsm"])
def test_rough_attack_and_exact_answer_by_hand(net, digits, passes, attack):
    test, (model, seen) = digits.test.sample(120), passes
    with torch.autocast("cpu", torch.bfloat16):
        attacked = attack(net, test.images, test.labels)
    assert attacked.dtype == torch.float32
    assert not torch.equal(attacked, attack(net, test.images, test.labels))  # bfloat16 does make a difference
    result = Accuracy(attack=attack, images=120, precision="bfloat16")(model, digits)
    assert agrees(result, int((net(attacked).argmax(1) == test.labels).sum()), 120) and 0 < result["count"] < 120
    assert result["mean_l2"] == pytest.approx((attacked - test.images).flatten(1).norm(dim=1).mean().item(), rel=1e-4)
    first, *rest = seen  # is asked whether the network takes such images
    assert first == (torch.float32, False)
    assert rest == [(torch.bfloat16, True)] * getattr(attack, "steps", 1) + 2 * [(torch.float32, False)]
    assert answers(result, "clean") == (net(test.images).argmax(1) == test.labels).tolist()


def test_rough_attack_with_chance_by_hand(noisy, digits, passes):
    """Start, noise in the attack and noise in the answer: drawn in the order in which a float32 attack draws them."""
    attack, test = PGD(epsilon=0.1, step_size=0.05, steps=2, eot_draws=2), digits.test.sample(40)
    measure = Accuracy(attack=attack, images=40, precision="bfloat16")
    with global_seed(0, "evaluation noise", measure.identity):
        with torch.autocast("cpu", torch.bfloat16):
            attacked = attack(noisy, test.images, test.labels, stream(0, "evaluation", measure.identity))
        count = int((noisy.eval()(attacked).argmax(1) == test.labels).sum())
    assert agrees(measure(noisy, digits), count, 40)


def test_float32_is_the_default_and_is_what_a_machine_without_bfloat16_does(passes, digits, monkeypatch):
    model, seen = passes
    exact = Accuracy(attack=ROUGH, images=60)(model, digits)
    assert {dtype for dtype, _ in seen} == {torch.float32}
    monkeypatch.setattr(evaluation, "has_bfloat16", lambda kind: False)
    seen.clear()
    assert Accuracy(attack=ROUGH, images=60, precision="bfloat16")(model, digits) == exact
    assert {dtype for dtype, _ in seen} == {torch.float32}


def test_precision_is_part_of_the_identity_unless_it_is_float32():
    """So that what was measured before there was a choice is found again, and the two are not taken for each other."""
    before = "32c7a7a03028"  # as of commit 5195762, which knows no precision
    plain = {"kind": "accuracy", "images": 5, "attack": {"kind": "fgsm", "epsilon": 0.1}}
    for exact in (Measurement.parse(plain), Measurement.parse(plain | {"precision": "float32"})):
        assert exact.first_identity == before and exact.identity == Measurement.parse(plain).identity
    rough = Measurement.parse(plain | {"precision": "bfloat16"})
    assert rough.first_identity != before and rough.identity != exact.identity
    assert Measurement.parse(rough.plain()) == rough


@pytest.mark.parametrize("attack", [
    None, RandomisedFGSM(epsilon=0.1), AutoAttack(epsilon=0.1), DeepFool(), CarliniWagnerL2(), CarliniWagnerReleased(),
    PGD(epsilon=0.5, step_size=0.1, steps=2, norm="l2"),
], ids=lambda attack: getattr(attack, "kind", "clean"))
def test_bfloat16_is_refused_where_more_than_signs_count(attack, refusal):
    message = refusal(Accuracy, attack=attack, precision="bfloat16")
    assert all(word in message for word in ("bfloat16", "FGSM", "PGD"))


@pytest.mark.parametrize(("change", "words"), [
    ({"precision": "float16"}, ["precision", "float16"]),
    ({"images": 0}, ["images", "positive"]),
    ({"trials": 0}, ["trials", "1"]),
    ({"split": "train"}, ["split", "'train'"]),
    ({"after": {"kind": "distance", "attack": {"kind": "deepfool"}}}, ["distance"]),
    ({"source": "net"}, ["source"]),
    ({"attack": "pgd"}, ["attack"]),
    ({"attack": {"kind": "fgsm", "epsilon": 8}}, ["8/255"]),
    ({"atack": None}, ["'attack'"]),
], ids=str)
def test_wrong_settings(refusal, change, words):
    message = refusal(Measurement.parse, {"kind": "accuracy"} | change)
    assert all(word in message for word in words), message


# --- distances


@pytest.fixture
def mislabelled(digits):
    """60 test images, every fifth with a label that is not its own: the net is wrong there."""
    images, labels = digits.test.images[:60], digits.test.labels[:60].clone()
    labels[::5] = (labels[::5] + 1) % 10
    return Splits(digits.train, digits.validation, Split(images, labels), digits.classes)


@pytest.mark.parametrize("attack", [DeepFool(steps=1), CarliniWagnerL2(steps=5, search_steps=1, lr=0.1)],
                         ids=["deepfool", "cw"])
def test_distances_image_by_image(net, mislabelled, attack):
    lengths, relative, wrong, not_fooled = [], [], 0, 0
    test = mislabelled.test.sample(50)
    for image, label in zip(test.images, test.labels, strict=True):
        moved = attack(net, image[None], label[None])
        if net(image[None]).argmax() != label:
            wrong += 1
            lengths.append(0.0)
            relative.append(0.0)
        elif net(moved).argmax() != label:
            lengths.append((moved[0] - image).norm().item())
            relative.append(lengths[-1] / image.norm().item())
        else:
            not_fooled += 1
            lengths.append(float("nan"))
            relative.append(float("nan"))
    assert wrong >= 10 and not_fooled and wrong + not_fooled < 50
    result = Distance(attack=attack, images=50)(net, mislabelled)
    assert (result["total"], result["not_fooled"]) == (50, not_fooled)
    for part, values in (("", lengths), ("relative", relative)):
        largest = max(v for v in values if v == v)
        assert unpack(result["each"][part]) == pytest.approx(values, abs=1e-3 * largest, nan_ok=True)
    known = [i for i, length in enumerate(lengths) if length == length]
    assert len(known) == 50 - not_fooled
    assert result["value"] == pytest.approx(sum(lengths[i] for i in known) / len(known), rel=1e-4)
    assert result["parts"] == pytest.approx({"relative": sum(relative[i] for i in known) / len(known),
                                             "not_fooled": not_fooled / 50}, rel=1e-4)


def test_what_an_attack_adds_to_a_misclassified_image_does_not_count(net, mislabelled, monkeypatch):
    """An attack may move such images too, to where they are classified correctly even: they count as zero."""
    monkeypatch.setattr(DeepFool, "__call__", lambda self, model, images, *_: (images + 0.7).clamp(0, 1))
    test = mislabelled.test
    moved = (test.images + 0.7).clamp(0, 1)
    right, fooled = (net(test.images).argmax(1) == test.labels), (net(moved).argmax(1) != test.labels)
    assert (fooled & ~right).any() and (fooled & right).any() and (~fooled & right).any()
    lengths = (l2_norm(moved - test.images) * right)[fooled | ~right]
    result = Distance(attack=DeepFool())(net, mislabelled)
    assert result["value"] == pytest.approx(float(lengths.mean()), rel=1e-5)
    assert result["not_fooled"] == int((~fooled & right).sum())


def test_a_black_image_has_no_relative_distance(net, digits):
    images = digits.test.images[:8] * (torch.arange(8) > 0).view(-1, 1, 1, 1)
    black, others = (splits_of(some, net(some).argmax(1)) for some in (images, images[1:]))
    found, expected = (Distance(attack=DeepFool())(net, split) for split in (black, others))
    assert (found["total"], found["not_fooled"]) == (8, 0)
    assert found["parts"]["relative"] == pytest.approx(expected["parts"]["relative"], rel=1e-5)


def linear_net(classes: int = 4):
    """A linear network, and images in the middle of the box, a quarter of them with a wrong label."""
    with seeded():
        model, images = Linear().build((1, 5, 5), classes).eval(), 0.4 + 0.2 * torch.rand(40, 1, 5, 5)
        torch.nn.init.normal_(model[1].weight)
    model[1].bias.data = -0.5 * model[1].weight.data.sum(1)  # so that no class leads at the mean image
    labels = model(images).argmax(1)
    labels[::4] = (labels[::4] + 1) % classes
    split = Split(images, labels)
    return model, Splits(split, split, split, tuple(map(str, range(classes))))


def test_on_a_linear_network_the_distance_is_the_exact_radius_but_for_the_overshoot():
    model, data = linear_net()
    images = data.test.images.flatten(1)
    exact = exact_radii(model[1].weight.detach(), model[1].bias.detach(), images, data.test.labels, "l2")
    result = Distance(attack=DeepFool(overshoot=0.001))(model, data)
    assert (result["total"], result["not_fooled"]) == (40, 0) and (exact == 0).sum() == 10
    assert result["value"] == pytest.approx(1.001 * float(exact.mean()), abs=1.5e-4)
    assert result["parts"]["relative"] == pytest.approx(1.001 * float((exact / images.norm(dim=1)).mean()), rel=0.01)
    assert Distance(attack=CarliniWagnerL2(steps=200, lr=0.01))(model, data)["value"] == pytest.approx(
        float(exact.mean()), rel=0.05)


def test_batches_do_not_matter_to_distances(net, digits, monkeypatch):
    whole = Distance(attack=DeepFool(steps=1), images=70)(net, digits)
    monkeypatch.setattr(evaluation, "BATCH", 16)
    parts = Distance(attack=DeepFool(steps=1), images=70)(net, digits)
    assert whole["not_fooled"] > 0 and parts["value"] == pytest.approx(whole["value"], rel=1e-5)
    assert parts["parts"] == pytest.approx(whole["parts"], rel=1e-5) and parts["not_fooled"] == whole["not_fooled"]


def test_distances_of_a_noisy_net_repeat_and_leave_global_chance_alone(noisy, digits):
    measure, before = Distance(attack=DeepFool(steps=3), images=20), torch.get_rng_state()
    first = measure(noisy, digits)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert measure(noisy, digits) == first


def test_an_attack_that_fools_nothing_is_told(refusal):
    model, data = linear_net()
    right = Split(data.test.images, model(data.test.images).argmax(1))
    attack = CarliniWagnerL2(steps=1, search_steps=1, lr=1e-6)
    message = refusal(Distance(attack=attack, images=7), model, Splits(right, right, right, data.classes))
    assert "cw_l2" in message and "none of 7 images" in message and "more steps" in message


@pytest.mark.parametrize("attack", [
    FGSM(epsilon=0.1), PGD(epsilon=0.5, step_size=0.1, steps=2, norm="l2"), CarliniWagnerL2(epsilon=0.5),
    AutoAttack(epsilon=0.5, norm="l2"), CarliniWagnerReleased(),
], ids=lambda attack: attack.kind)
def test_only_what_looks_for_the_nearest_wrong_answer_has_a_distance(attack, refusal):
    message = refusal(Distance, attack=attack)
    assert attack.kind in message and "take deepfool or cw_l2" in message
    assert "images must be positive" in refusal(Distance, attack=DeepFool(), images=0)
    assert "split is test or validation, not 'train'" in refusal(Distance, attack=DeepFool(), split="train")


def test_the_cost_of_a_distance_grows_with_images_and_steps():
    assert Distance(attack=DeepFool()).cost == DeepFool().cost == 2 * Distance(attack=DeepFool(), images=5000).cost
    assert Measurement.parse({"kind": "distance", "attack": {"kind": "deepfool"}}) == Distance(attack=DeepFool())


@pytest.mark.parametrize("attack", [Square(epsilon=0.1, queries=20), ZOO(iterations=2, search_steps=1, epsilon=0.5)])
def test_trials_of_an_attack_that_goes_by_a_seed_differ(attack, net, digits):
    """The first is what one trial is."""
    few = 20 if isinstance(attack, ZOO) else 200
    seen = []
    call = type(attack).__call__

    def noted(self, model, images, labels, generator=None):
        seen.append(generator.initial_seed())
        return call(self, model, images, labels, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(attack), "__call__", noted)
        Accuracy(attack=attack, images=few, trials=3)(net, digits)
    assert len(set(seen)) == 3 and seen[0] == stream(0, "evaluation", Accuracy(
        attack=attack, images=few, trials=3).identity).initial_seed()


@pytest.mark.parametrize("attack", [None, STRONG])
def test_images_in_double_precision_or_with_a_gradient_are_counted_alike(attack, net, digits):
    plain = Accuracy(attack=attack, images=40)(net, digits)
    graph = replace(digits.test, images=digits.test.images.clone().requires_grad_())
    assert Accuracy(attack=attack, images=40)(net, replace(digits, test=graph)) == plain
    double = replace(digits.test, images=digits.test.images.double())
    found = Accuracy(attack=attack, images=40)(deepcopy(net).double(), replace(digits, test=double))
    assert abs(found["count"] - plain["count"]) <= 1
    distance = Distance(attack=DeepFool(steps=2), images=10)
    assert distance(net, replace(digits, test=graph)) == distance(net, digits)
