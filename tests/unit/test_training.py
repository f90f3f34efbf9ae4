"""The training loop: schedule, order, averaging, selection, and that an interruption changes nothing."""

import contextlib
import random
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

from scaffolding import Interrupt, assert_same_training, interrupted, weights_of
from sparserobust import Data, Recipe, training
from sparserobust.attacks import PGD, CarliniWagnerL2, predicted
from sparserobust.config import Objective, Sparsifier
from sparserobust.data import Split
from sparserobust.models import PreActResNet
from sparserobust.objectives import TRADES, Adversarial, Natural
from sparserobust.settings import settings
from sparserobust.sparsifiers import ADMM, RGSM, RVSM, FixedMask, Magnitude, OnlyNorms, ReleasedADMM

ATTACKED = Adversarial(attack=PGD(epsilon=0.1, step_size=0.05, steps=2))


@pytest.fixture
def seen():
    """A sparsifier and an objective that change nothing and write down what passes them."""
    lrs, weights, buffers, batches, seeds = [], [], [], [], []

    @settings
    class Watch(Sparsifier):
        def before_step(self, model, state, lr):
            lrs.append(lr)

        def after_step(self, model, state, lr):
            weights.append(weights_of(model))
            buffers.append(training.buffers_of(model))

    @settings
    class Batches(Objective):
        cost = 1.0

        def __call__(self, model, images, labels, generator):
            batches.append((images.clone(), labels))
            seeds.append(generator.initial_seed())
            return cross_entropy(model(images), labels)

    return SimpleNamespace(sparsifier=Watch(), objective=Batches(), lrs=lrs, weights=weights, buffers=buffers,
                           batches=batches, seeds=seeds)


# ------------------------------------------------------------------------------------------- schedules


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 1, exclude_max=True), st.floats(1e-4, 10))
def test_onecycle_rises_for_two_fifths_and_falls_to_zero(epochs, share, fraction, lr):
    epoch = int(share * (epochs - 1))
    expected = np.interp((epoch + fraction) / epochs, [0, 0.4, 1], [0, lr, 0])
    assert training.learning_rate(Recipe(epochs=epochs, lr=lr), epoch, fraction) == pytest.approx(expected, abs=1e-12)


def test_multistep_divides_by_ten_from_the_milestones_on():
    recipe = Recipe(epochs=200, lr=0.1, schedule="multistep", milestones=(80, 120, 160))
    expected = {0: 0.1, 79: 0.1, 80: 0.01, 119: 0.01, 120: 1e-3, 159: 1e-3, 160: 1e-4, 199: 1e-4}
    for epoch, lr in expected.items():
        for fraction in (0.0, 0.99):
            assert training.learning_rate(recipe, epoch, fraction) == pytest.approx(lr)


def test_multistep_drops_by_the_factor_it_is_told():
    recipe = Recipe(epochs=200, lr=0.1, schedule="multistep", milestones=(60, 120, 160), drop=0.2)
    expected = {59: 0.1, 60: 0.02, 120: 4e-3, 199: 8e-4}
    assert {e: training.learning_rate(recipe, e, 0) for e in expected} == pytest.approx(expected)


def test_constant_is_constant():
    recipe = Recipe(epochs=3, lr=0.7, schedule="constant")
    assert {training.learning_rate(recipe, e, f) for e in range(3) for f in (0, 0.5)} == {0.7}


def test_each_step_has_the_learning_rate_of_its_place(seen, tiny_run, digits):
    training.train(tiny_run(sparsifier=seen.sparsifier, epochs=4, lr=0.2), digits)  # 3 steps an epoch: 24, 24, 16
    assert seen.lrs == pytest.approx(np.interp(np.arange(12) / 12, [0, 0.4, 1], [0, 0.2, 0]))


# -------------------------------------------------------------------------------------- one epoch, one step


def test_an_epoch_shows_every_image_once_in_an_own_order(seen, tiny_run, digits):
    for seed in (0, 1):
        training.train(tiny_run(objective=seen.objective, seed=seed), digits)
    assert [len(labels) for _, labels in seen.batches] == [24, 24, 16] * 4
    orders = []
    for epoch in range(4):
        images, labels = (torch.cat(parts) for parts in zip(*seen.batches[3 * epoch:3 * epoch + 3], strict=True))
        same = (images[:, None] == digits.train.images[None]).flatten(2).all(2)  # (shown, in the data)
        assert (same.sum(0) == 1).all()
        order = same.int().argmax(1)
        assert torch.equal(labels, digits.train.labels[order])
        orders.append(tuple(order.tolist()))
    assert len(set(orders)) == 4
    assert len(set(seen.seeds)) == 4  # the attacker's dice: new in each epoch and for each seed


def test_images_are_varied_anew_each_epoch(seen, tiny_run, digits):
    run = tiny_run(objective=seen.objective, data=Data(train_images=64, crop_padding=2, flip=True), epochs=2)
    training.train(run, digits)
    first, second = (sorted(image.flatten().tolist() for images, _ in part for image in images)
                     for part in (seen.batches[:3], seen.batches[3:]))
    assert first != second
    assert all(images.shape[1:] == (1, 8, 8) for images, _ in seen.batches)


def test_the_loss_told_is_the_mean_over_images(tiny_run, digits):
    @settings
    class LabelMean(Objective):
        cost = 1.0

        def __call__(self, model, images, labels, generator):
            return model(images).sum() * 0 + labels.float().mean()

    history = training.train(tiny_run(objective=LabelMean()), digits).history
    expected = digits.train.labels.double().mean().item()
    assert [row["loss"] for row in history] == pytest.approx([expected] * 2, rel=1e-6)
    assert [row["epoch"] for row in history] == [1, 2]


@pytest.mark.parametrize("schedule", ["constant", "onecycle"])
def test_sgd_is_nesterov_with_weight_decay_on_all_parameters(schedule, tiny_run, digits):
    run = tiny_run(batch_size=64, epochs=3, lr=0.1, momentum=0.8, weight_decay=0.01, schedule=schedule,
                   precision="float32")
    model = training.build(run, digits).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.01)
    for epoch in range(3):
        optimiser.param_groups[0]["lr"] = training.learning_rate(run.recipe, epoch, 0)
        optimiser.zero_grad()
        cross_entropy(model(digits.train.images), digits.train.labels).backward()
        optimiser.step()
    for ours, theirs in zip(training.train(run, digits).model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_start_weights_are_taken_over_and_seeds_differ(tiny_run, digits):
    start = training.train(tiny_run(), digits).model.state_dict()
    kept = training.train(tiny_run(epochs=0, seed=5), digits, start).model.state_dict()
    assert all(torch.equal(kept[name], start[name]) for name in start)
    fresh = [training.build(tiny_run(seed=seed), digits).members[0].stem.weight for seed in (0, 0, 1)]
    assert torch.equal(fresh[0], fresh[1])
    assert not torch.equal(fresh[0], fresh[2])


@pytest.mark.parametrize("schedule", ["onecycle", "constant"])
def test_a_run_that_stops_early_has_the_weights_of_the_whole_one_by_then(schedule, tiny_run, digits, tmp_path):
    """To which a lottery ticket is rewound; after no epoch at all they are the initial ones."""
    whole, seen = tiny_run(epochs=4, schedule=schedule, objective=ATTACKED), {}

    def keep(done):
        seen[done] = {name: t.clone() for name, t in training.files.load_tensors(tmp_path / "whole")[0].items()}

    training.train(whole, digits, checkpoint=tmp_path / "whole", report=keep)
    for stop in (1, 3):
        result = training.train(replace(whole, recipe=replace(whole.recipe, stop=stop)), digits)
        assert len(result.history) == stop and "validation_robust" in result.history[-1]
        assert all(torch.equal(t, seen[stop][f"model/{name}"]) for name, t in result.model.state_dict().items())
    initial = training.train(replace(whole, recipe=replace(whole.recipe, stop=0)), digits)
    fresh = training.build(whole, digits).state_dict()
    assert initial.history == [] and all(torch.equal(t, fresh[n]) for n, t in initial.model.state_dict().items())


def test_watching_measures_after_every_epoch_and_changes_nothing(tiny_run, digits):
    run = tiny_run(epochs=3, objective=ATTACKED)
    plain, watched = training.train(run, digits), training.train(replace(run, recipe=replace(run.recipe, watched=True)),
                                                                 digits)
    assert ["validation_robust" in row for row in plain.history] == [False, False, True]
    assert all("validation_robust" in row for row in watched.history)
    assert_same_training(training.TrainingResult(plain.model, plain.history[-1:]),
                training.TrainingResult(watched.model, watched.history[-1:]))


# ------------------------------------------------------------------------------- averaging and selection


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_averaging_is_a_bias_corrected_moving_average(decay, seen, tiny_run, digits):
    model = training.train(tiny_run(sparsifier=seen.sparsifier, averaging=decay, epochs=3), digits).model
    weights = decay ** torch.arange(len(seen.weights) - 1, -1, -1.0)
    for name, p in model.named_parameters():
        steps = torch.stack([w[name] for w in seen.weights])
        expected = (steps * weights.view(-1, *[1] * p.dim())).sum(0) / weights.sum()
        torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("select", ["last", "best"])
def test_running_statistics_are_averaged_alike(select, seen, tiny_run, digits, tmp_path):
    """And replace the raw ones wherever the weights do, in the network that is validated, too."""
    run = tiny_run(sparsifier=seen.sparsifier, averaging=0.8, averaged_norms=True, epochs=3, precision="float32",
                   schedule="constant", select=select)
    result = training.train(run, digits)
    model, delivered = result.model, max(result.history, key=lambda row: (row["validation"], row["epoch"]))
    if select == "last":
        delivered = result.history[-1]
        weights = 0.8 ** torch.arange(len(seen.buffers) - 1, -1, -1.0)
        averaged = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
        assert averaged
        for name, b in averaged.items():
            steps = torch.stack([buffers[name] for buffers in seen.buffers])
            torch.testing.assert_close(b, (steps * weights[:, None]).sum(0) / weights.sum(), rtol=1e-4, atol=1e-6)
    correct = predicted(model, digits.validation.images) == digits.validation.labels
    assert delivered["validation_clean"] == correct.double().mean()
    assert_same_training(interrupted(run, digits, tmp_path / "checkpoint", [1.5]), result)


def test_averaged_weights_do_not_fit_the_statistics_of_the_last_ones(tiny_run, digits):
    """Where the rate does not fall, a network with averaged ones is far better, as with statistics taken anew."""
    common = {"averaging": 0.99, "epochs": 24, "schedule": "constant", "objective": Natural(), "precision": "float32"}
    raw, averaged = (training.train(tiny_run(**common, averaged_norms=norms), digits) for norms in (False, True))
    anew = training.train(tiny_run(epochs=1, precision="float32", sparsifier=OnlyNorms()), digits,
                          raw.model.state_dict())
    accuracies = [result.history[-1]["validation_clean"] for result in (raw, averaged, anew)]
    assert min(accuracies[1:]) > accuracies[0] + 0.2


@pytest.mark.parametrize("changes", [{}, {"averaging": 0.5}, {"sparsifier": RVSM(beta=0.5, lam=5e-3)}],
                         ids=["plain", "averaged", "split"])
def test_best_is_the_epoch_of_the_highest_validation(changes, tiny_run, digits, tmp_path):
    common = {"schedule": "constant", "precision": "float32", "lr": 0.2} | changes
    for seed in range(20):  # until the best epoch is a single one in the middle
        run = tiny_run(**common, epochs=5, select="best", seed=seed)
        best = training.train(run, digits)
        validation = [row["validation"] for row in best.history]
        epoch = validation.index(max(validation)) + 1
        if 1 < epoch < 5 and validation.count(max(validation)) == 1:
            break
    else:
        pytest.fail("no seed has its best epoch in the middle")
    stopped = training.train(tiny_run(**common, epochs=epoch, seed=seed), digits)
    last = training.train(tiny_run(**common, epochs=5, seed=seed), digits)
    assert_same_training(training.TrainingResult(best.model, []), training.TrainingResult(stopped.model, []))
    assert not torch.equal(last.model.members[0].stem.weight, best.model.members[0].stem.weight)
    assert_same_training(interrupted(run, digits, tmp_path / "checkpoint", [epoch + 0.5]), best)


# --------------------------------------------------------------------------------------------- validation


class Poison:
    """Whoever looks at it fails."""

    def __getattribute__(self, name):
        raise AssertionError(f"the test split was asked for its {name}")


@pytest.mark.parametrize("select", ["last", "best"])
def test_the_test_split_is_never_touched(select, tiny_run, digits):
    run = tiny_run(objective=ATTACKED, select=select)
    assert_same_training(training.train(run, replace(digits, test=Poison())), training.train(run, digits))


def test_validation_is_the_accuracy_of_what_is_delivered_on_the_validation_split(tiny_run, digits):
    run = tiny_run(precision="float32", averaging=0.9, epochs=3, sparsifier=RVSM(beta=0.5, lam=5e-3))
    result = training.train(run, digits)
    correct = predicted(result.model, digits.validation.images) == digits.validation.labels
    assert result.history[-1]["validation_clean"] == correct.double().mean()
    assert not result.model.training
    garbage = Split(digits.validation.images, (digits.validation.labels + 1) % 10)
    other = training.train(run, replace(digits, validation=garbage)).history[-1]
    assert other["validation"] != result.history[-1]["validation"]
    assert other["loss"] == result.history[-1]["loss"]


def test_robust_validation_selects_and_is_taken_when_it_is_needed(tiny_run, digits):
    last = training.train(tiny_run(objective=ATTACKED, epochs=3), digits).history
    best = training.train(tiny_run(objective=ATTACKED, epochs=3, select="best"), digits).history
    assert ["validation_robust" in row for row in last] == [False, False, True]
    assert ["validation_robust" in row for row in best] == [True, True, True]
    assert all(row["validation"] == row["validation_robust"] <= row["validation_clean"] for row in best)
    assert best[-1]["validation_robust"] == last[-1]["validation_robust"]


@pytest.mark.parametrize("objective", [ATTACKED, TRADES(epsilon=0.1, step_size=0.05, steps=1)])
def test_validation_attack_has_the_radius_of_training(objective):
    assert training.validation_attack(objective) == PGD(epsilon=0.1, step_size=0.025, steps=10)


def test_validation_attack_has_the_norm_of_training():
    attack = training.validation_attack(Adversarial(attack=PGD(epsilon=0.5, step_size=0.1, steps=2, norm="l2")))
    assert (attack.norm, attack.epsilon) == ("l2", 0.5)


@pytest.mark.parametrize("attack", [PGD(epsilon=0.0, step_size=0.1, steps=1),
                                    PGD(epsilon=2.0, step_size=0.5, steps=1, norm="l2"),
                                    CarliniWagnerL2(steps=1, search_steps=1)], ids=["zero", "l2", "no radius"])
def test_training_against_any_attack_ends_with_a_validation(attack, tiny_run, digits):
    row = training.train(tiny_run(objective=Adversarial(attack=attack), epochs=1), digits).history[-1]
    assert 0 <= row["validation"] <= row["validation_clean"] <= 1


def test_gap_is_how_far_the_delivered_weights_are_from_the_trained(tiny_run, digits, tmp_path):
    run = tiny_run(sparsifier=Magnitude(sparsity=0.5))
    assert training.train(run, digits).history[-1]["gap"] == 0
    run = tiny_run(sparsifier=RVSM(beta=0.5, lam=5e-3), precision="float32")
    result = training.train(run, digits, checkpoint=tmp_path / "c")
    tensors, _ = training.files.load_tensors(tmp_path / "c")
    u = {n.removeprefix("sparsifier/"): t for n, t in tensors.items() if n.startswith("sparsifier/")}
    w = torch.cat([tensors[f"model/{n}"].flatten() for n in u])
    expected = (w - torch.cat([t.flatten() for t in u.values()])).norm() / w.norm()
    assert 0 < result.history[-1]["gap"] == pytest.approx(expected.item(), rel=1e-5)


# ------------------------------------------------------------------------------------------- interruption


@pytest.fixture
def impatient(monkeypatch):
    """A clock that makes the loop report after every step."""
    ticks = iter(range(0, 10**9, 5))
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(ticks)))


HARD = {"data": Data(train_images=64, crop_padding=1, flip=True), "epochs": 4, "averaging": 0.9, "objective": ATTACKED,
        "model": PreActResNet(depth=8, width=2, members=2, noise=0.1), "weight_decay": 1e-3}
SPARSIFIERS = {"rgsm": RGSM(lambda1=0.75, lambda2=0.01), "swap": RVSM(beta=0.5, lam=5e-3, replace="swap"),
               "old": RGSM(lambda1=0.75, u_from="old", pull="gradient"), "magnitude": Magnitude(sparsity=0.5),
               "admm": ADMM(sparsity=0.5, rho=0.5), "released": ReleasedADMM(sparsity=0.8, rho=0.1),
               "admm-channel": ADMM(sparsity=0.5, granularity="channel", rho=0.5),
               "released-channel": ReleasedADMM(sparsity=0.6, granularity="channel", rho=0.1)}


@pytest.mark.parametrize(("sparsifier", "select", "stops"), [
    ("rgsm", "last", [0.4]), ("rgsm", "last", [1]), ("rgsm", "last", [1.5, 2.7]), ("rgsm", "last", [4]),
    ("rgsm", "best", [2.5, 3]), ("swap", "last", [1.5]), ("old", "best", [2.2]), ("magnitude", "last", [2.5]),
    ("admm", "last", [1.5, 3]), ("admm-channel", "best", [2.2]), ("released", "last", [2, 3.4]),
    ("released-channel", "last", [1.5]),
])  # fmt: skip
def test_an_interrupted_training_equals_an_undisturbed_one(sparsifier, select, stops, impatient, tiny_run, digits,
                                                           tmp_path):
    run = tiny_run(**HARD, sparsifier=SPARSIFIERS[sparsifier], select=select)
    resumed = interrupted(run, digits, tmp_path / "checkpoint", stops)
    assert_same_training(resumed, training.train(run, digits))
    assert len(resumed.history) == 4


def test_an_interrupted_fine_tuning_keeps_the_zeros_it_began_with(impatient, tiny_run, digits, tmp_path):
    pruned = tiny_run(epochs=0, model=HARD["model"], sparsifier=Magnitude(sparsity=0.5))
    start = training.train(pruned, digits).model.state_dict()
    run = tiny_run(**HARD, sparsifier=FixedMask())
    undisturbed = training.train(run, digits, start)
    for stops in ([1.5], [3]):
        checkpoint = tmp_path / f"checkpoint {stops}"
        assert_same_training(interrupted(run, digits, checkpoint, stops, start), undisturbed)
    assert training.sparsity(undisturbed.model) == pytest.approx(0.5, abs=1e-3)


def test_the_state_of_a_sparsifier_comes_back_in_any_shape_and_else_in_the_layout_of_its_parameter(tiny_run, digits,
                                                                                                   tmp_path):
    name, seen = "members.0.blocks.0.conv1.weight", []

    @settings
    class Odd(Sparsifier):
        def start(self, model):
            w = dict(model.named_parameters())[name]
            return {name: torch.rand(2, 4, 1, 1), f"like {name}": torch.rand_like(w), "own": torch.arange(3)}

        def before_step(self, model, state, lr):
            seen.append({key: (t.tolist(), t.stride()) for key, t in state.items()})

    model = PreActResNet(depth=8, width=8)  # wide enough for channels last on any processor
    interrupted(tiny_run(epochs=2, model=model, sparsifier=Odd()), digits, tmp_path / "checkpoint", [1])
    assert len(seen) == 6 and all(state == seen[0] for state in seen)
    assert seen[0][f"like {name}"][1] == (72, 1, 24, 8)  # channels last


def test_a_resumed_training_goes_on_from_the_last_whole_epoch(impatient, tiny_run, digits, tmp_path):
    told = []

    def report(done):
        told.append(done)
        if len(told) == 6:
            raise Interrupt

    for _ in range(2):
        with contextlib.suppress(Interrupt):
            training.train(tiny_run(epochs=3), digits, checkpoint=tmp_path / "checkpoint", report=report)
    one = [1 / 3, 2 / 3, 1, 1]  # three steps and the end of the epoch
    assert told == pytest.approx([*one, 4 / 3, 5 / 3, *(1 + e for e in one), *(2 + e for e in one)])


@pytest.mark.parametrize("damage", [lambda b: b[:-100], lambda b: b[:20], lambda b: b"", lambda b: b"\xff" * len(b)],
                         ids=["cut", "nearly nothing", "empty", "garbage"])
def test_a_damaged_checkpoint_is_said_and_training_begins_anew(damage, tiny_run, digits, tmp_path, caplog):
    run, checkpoint = tiny_run(), tmp_path / "checkpoint"
    training.train(run, digits, checkpoint=checkpoint)
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    assert_same_training(training.train(run, digits, checkpoint=checkpoint), training.train(run, digits))
    (line,) = caplog.messages
    assert run.identity in line
    assert "damaged" in line
    assert "\n" not in line


@pytest.mark.parametrize("seed", range(12))
def test_no_bit_of_a_checkpoint_may_change(seed, tiny_run, digits, tmp_path, caplog, whole_checkpoint):
    run, content, undisturbed = whole_checkpoint
    place = random.Random(seed).randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    (tmp_path / "checkpoint").write_bytes(content)
    assert_same_training(training.train(run, digits, checkpoint=tmp_path / "checkpoint"), undisturbed)
    assert len(caplog.messages) == 1 and "damaged" in caplog.messages[0]


@pytest.mark.parametrize("change", [{"epoch": "1"}, {"steps": "7"}, {"history": "[]"}, {"run": "0"}, None])
def test_nothing_that_a_checkpoint_says_of_itself_may_change(change, digits, tmp_path, caplog, whole_checkpoint):
    run, content, undisturbed = whole_checkpoint
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_bytes(content)
    with safe_open(checkpoint, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors, checkpoint, None if change is None else metadata | change)
    assert_same_training(training.train(run, digits, checkpoint=checkpoint), undisturbed)
    assert len(caplog.messages) == 1 and "damaged" in caplog.messages[0]


@pytest.fixture
def whole_checkpoint(tiny_run, digits, tmp_path_factory):
    """A run, the content of its last checkpoint but one, and how it comes out."""
    run, checkpoint, kept = tiny_run(epochs=3), tmp_path_factory.mktemp("whole") / "checkpoint", []
    undisturbed = training.train(run, digits, checkpoint=checkpoint,
                                 report=lambda epochs: kept.append(checkpoint.read_bytes()) if epochs == 2 else None)
    return run, bytearray(kept[0]), undisturbed


def test_the_checkpoint_of_another_run_is_refused(tiny_run, digits, tmp_path, refusal):
    training.train(tiny_run(), digits, checkpoint=tmp_path / "checkpoint")
    before = (tmp_path / "checkpoint").read_bytes()
    assert "checkpoint" in refusal(training.train, tiny_run(seed=1), digits, checkpoint=tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint").read_bytes() == before


# ------------------------------------------------------------------------------------- chance and divergence


def test_training_neither_reads_nor_moves_the_global_dice(tiny_run, digits):
    run, results = tiny_run(**HARD), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        results.append(training.train(run, digits))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (np.random.get_state()[1] == before[1]).all()
        assert random.getstate() == before[2]
    assert_same_training(*results)


@pytest.mark.parametrize("changes", [
    {"lr": 1e20}, {"schedule": "constant", "epochs": 20, "sparsifier": RVSM(beta=400.0, lam=1.0, u_from="old")},
], ids=["lr", "pull"])  # fmt: skip
def test_a_diverging_run_says_so(changes, tiny_run, digits, refusal):
    run = tiny_run(**changes)
    message = refusal(training.train, run, digits)
    assert run.identity in message
    assert "lower lr" in message


@pytest.mark.parametrize("lr", [1e12, 1e30, 3e38])
def test_a_run_that_diverges_in_its_last_step_says_so(lr, tiny_run, digits, refusal):
    """The loss is that of before the step; afterwards logits, or already weights, are not finite."""
    run = tiny_run(epochs=1, batch_size=64, lr=lr, schedule="constant")
    assert "lower lr" in refusal(training.train, run, digits)


def test_natural_training_learns(tiny_run, digits):
    run = tiny_run(model=PreActResNet(depth=8, width=8), objective=Natural(), epochs=15, batch_size=16)
    history = training.train(run, digits).history
    assert history[-1]["loss"] < 0.2 * history[0]["loss"]
    assert history[-1]["validation"] > 0.6


# ----------------------------------------------------------------------------------------------------- layout in memory


def strided(inputs: int, **kwargs) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, 16, **{"kernel_size": 1, "stride": 2} | kwargs))


def test_where_weights_would_get_wrong_gradients_channels_do_not_come_last(monkeypatch):
    last, first, cpu = torch.channels_last, torch.contiguous_format, torch.device("cpu")
    for capability, model, device, layout in (
            ("AVX2", strided(4), cpu, first), ("AVX2", strided(8), cpu, last),
            ("AVX2", strided(4, stride=1), cpu, last), ("AVX2", strided(4, kernel_size=3), cpu, last),
            ("AVX2", strided(16, groups=4), cpu, first), ("AVX512", strided(4), cpu, last),
            ("AVX2", strided(4), torch.device("cuda"), last)):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda found=capability: found)
        assert training.fastest_layout(model, device) == layout, (capability, model, device)


def test_all_that_is_trained_lies_in_the_chosen_layout(monkeypatch, tiny_run, digits):
    """Down to the strides of a single channel: they would decide for all layers that follow."""
    build, seen = training.build, set()

    def watched(*args):
        model = build(*args)
        for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1):
            conv.register_forward_pre_hook(lambda conv, given: seen.add((given[0].is_contiguous(), conv.training)))
        return model

    monkeypatch.setattr(training, "build", watched)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    training.train(tiny_run(epochs=1), digits)
    assert {contiguous for contiguous, in_training in seen if in_training} == {True}


def test_gradients_of_a_narrow_network_are_right_here():
    """In a process of its own, which dies where the fault is and is not avoided."""
    script = """
import torch
from sparserobust import models, training
torch.manual_seed(0)
x, weights = torch.randn(32, 1, 8, 8), []
for dtype in (torch.float32, torch.float64):
    torch.manual_seed(1)
    net = models.PreActResNet(depth=8, width=4).build((1, 8, 8), 10)
    layout = training.fastest_layout(net, torch.device("cpu"))
    net = net.to(dtype=dtype, memory_format=layout)
    loss = torch.nn.functional.cross_entropy(net(training.in_layout(x.to(dtype), layout)), torch.arange(32) % 10)
    loss.backward()
    weights.append([p.grad.double() for p in net.parameters()])
assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*weights, strict=True))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
