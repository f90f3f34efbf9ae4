"""Training losses against the same loss written out by hand, and finite differences."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, kl_div, linear, one_hot

from scaffolding import generator, seeded
from sparserobust import Data, data, training
from sparserobust.analysis import Health, symptoms
from sparserobust.attacks import FGSM, PGD, under_attack
from sparserobust.config import Attack, Objective
from sparserobust.models import LeNet300100, Linear, PreActResNet, Winners
from sparserobust.objectives import NFGSM, TRADES, Adversarial, Natural, SparseActivations
from sparserobust.settings import settings

ATTACK = PGD(epsilon=0.1, step_size=0.03, steps=3)
FGSM_RS = PGD(epsilon=0.1, step_size=0.125, steps=1)
TRADE = TRADES(epsilon=0.1, step_size=0.03, steps=3)
OBJECTIVES = {  # with the number of training passes in each
    "natural": (Natural(), 1),
    "adversarial": (Adversarial(attack=ATTACK), 1),
    "half clean": (Adversarial(attack=ATTACK, clean_weight=0.5), 2),
    "predicted": (Adversarial(attack=ATTACK, attacked_label="predicted"), 2),
    "half clean, predicted": (Adversarial(attack=ATTACK, attacked_label="predicted", clean_weight=0.5), 2),
    "fgsm-rs": (Adversarial(attack=FGSM_RS), 1),
    "trades": (TRADE, 2),
    "n-fgsm": (NFGSM(epsilon=0.1), 1),
    "sparse activations": (SparseActivations(objective=Adversarial(attack=ATTACK, clean_weight=0.5), lam=0.3), 2),
    "sparse activations, trades": (SparseActivations(objective=TRADE, lam=0.3), 2),
}
every_objective = pytest.mark.parametrize(("objective", "passes"), OBJECTIVES.values(), ids=OBJECTIVES)


@pytest.fixture
def model(net):
    """In training mode, in which its outputs are other than in evaluation."""
    return deepcopy(net).train()


@pytest.fixture(scope="module")
def batch(digits):
    return digits.test.images[:32], digits.test.labels[:32]


def tracked(model) -> set[int]:
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return {int(m.num_batches_tracked) for m in norms if m.num_batches_tracked is not None}


def close(a, b) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_every_objective_is_tried():
    assert {objective.kind for objective, _ in OBJECTIVES.values()} == set(Objective.family)


def test_natural_is_cross_entropy(model, batch):
    loss = Natural()(model, *batch, generator())
    log_probabilities = model(batch[0]).log_softmax(1)
    assert close(loss, -log_probabilities[range(32), batch[1]].mean())


@pytest.mark.parametrize("clean_weight", [0.0, 0.25, 0.5, 1.0])
def test_adversarial_mixes_clean_and_attacked(model, batch, clean_weight):
    images, labels = batch
    loss = Adversarial(attack=ATTACK, clean_weight=clean_weight)(deepcopy(model), images, labels, generator())
    seen = deepcopy(model)
    if clean_weight:
        seen(images)  # the attack meets the statistics of the pass over clean images
    attacked = ATTACK(seen.eval(), images, labels, generator())
    clean, hard = cross_entropy(model(images), labels), cross_entropy(model(attacked), labels)
    assert hard > clean + 0.1
    assert close(loss, clean_weight * clean + (1 - clean_weight) * hard)


@pytest.fixture
def mistaken(net):
    """In training mode; what it predicts there is often neither the label nor what it predicts in evaluation."""
    model, chance = deepcopy(net).train(), generator()
    with torch.no_grad():
        for p in model.parameters():
            p += 1.2 * p.std() * torch.randn(p.shape, generator=chance)
    return model


def watched_attack() -> tuple[Attack, list]:
    """An attack that inverts images, and the images and labels it was called with."""
    calls = []

    @settings
    class Inverting(Attack):
        cost = 0.0

        def __call__(self, model, images, labels, generator=None):
            calls.append((images, labels))
            return 1 - images

    return Inverting(), calls


@pytest.mark.parametrize("clean_weight", [0.0, 0.5])
def test_the_predicted_label_is_attacked_and_the_true_one_learned(mistaken, batch, clean_weight):
    images, labels = batch
    attack, calls = watched_attack()
    clean = deepcopy(mistaken)(images)
    prediction = clean.argmax(1)
    with torch.no_grad():
        others = labels, deepcopy(mistaken).eval()(images).argmax(1)
    assert all((prediction != other).sum() > 3 for other in others)
    hard = deepcopy(mistaken)(1 - images)
    for attacked_label, expected in {"true": labels, "predicted": prediction}.items():
        loss = Adversarial(attack=attack, attacked_label=attacked_label, clean_weight=clean_weight)(
            deepcopy(mistaken), images, labels, generator())
        ((attacked_images, attacked),) = calls
        calls.clear()
        assert torch.equal(attacked, expected) and not attacked.requires_grad
        assert torch.equal(attacked_images, images)
        mixed = (1 - clean_weight) * cross_entropy(hard, labels) + clean_weight * cross_entropy(clean, labels)
        assert close(loss, mixed)


def test_half_clean_half_adversarial_of_predicted_labels_by_hand(mistaken, batch):
    """He, Rakin & Fan 2019, eq. 9, as released: the clean pass first, whose prediction is then attacked."""
    images, labels = batch
    objective = Adversarial(attack=ATTACK, clean_weight=0.5, attacked_label="predicted")
    seen = deepcopy(mistaken)
    clean = seen(images)
    images_of = {name: ATTACK(deepcopy(seen).eval(), images, attacked, generator())
                 for name, attacked in (("predicted", clean.argmax(1)), ("true", labels))}
    values = {name: (cross_entropy(clean, labels) + cross_entropy(deepcopy(seen)(attacked), labels)) / 2
              for name, attacked in images_of.items()}
    assert close(objective(deepcopy(mistaken), images, labels, generator()), values["predicted"])
    assert abs(values["predicted"] - values["true"]) > 1e-2


@pytest.mark.parametrize("clean_epochs", [0, 1, 20])
def test_the_first_epochs_are_natural(clean_epochs):
    objective = Adversarial(attack=ATTACK, clean_epochs=clean_epochs)
    for epoch in range(25):
        if epoch < clean_epochs:
            assert objective.at(epoch) == Natural()
        else:
            assert objective.at(epoch) is objective


@every_objective
def test_other_objectives_are_the_same_in_all_epochs(objective, passes):
    assert objective.at(0) == objective.at(100) == objective


class Called(Exception):
    pass


@settings
class Raising(Attack):
    cost = 1.0

    def __call__(self, model, images, labels, generator=None):
        raise Called


@pytest.mark.parametrize("attacked_label", ["true", "predicted"])
def test_no_attack_in_the_first_epochs_of_a_training(attacked_label, tiny_run, digits):
    objective = Adversarial(attack=Raising(), clean_weight=0.5, clean_epochs=2, attacked_label=attacked_label)
    result = training.train(tiny_run(objective=objective, epochs=2), digits)
    natural = training.train(tiny_run(epochs=2), digits)
    assert result.history == natural.history
    for ours, theirs in zip(result.model.parameters(), natural.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    done = []
    with pytest.raises(Called):
        training.train(tiny_run(objective=objective, epochs=4), digits, report=done.append)
    assert done[-1] == 2


def test_one_step_of_pgd_is_fgsm_rs(model, batch):
    """Wong et al. 2020, algorithm 3, in the network's evaluation mode."""
    images, labels = batch
    loss = Adversarial(attack=FGSM_RS)(deepcopy(model), images, labels, generator())
    noise = torch.empty_like(images).uniform_(-0.1, 0.1, generator=generator())
    delta = noise.clamp(-images, 1 - images).requires_grad_(True)
    cross_entropy(deepcopy(model).eval()(images + delta), labels).backward()
    stepped = (delta + 0.125 * delta.grad.sign()).clamp(-0.1, 0.1).clamp(-images, 1 - images)
    assert close(loss, cross_entropy(model(images + stepped), labels))


@pytest.mark.parametrize(("noise", "step"), [(2.0, 1.0), (1.0, 1.25), (0.0, 1.0)])
def test_n_fgsm(model, batch, noise, step):
    """De Jorge et al. 2022, algorithm 1, in the network's evaluation mode: as an offset, clipped to the box alone."""
    images, labels = batch
    loss = NFGSM(epsilon=0.1, noise=noise, step=step)(deepcopy(model), images, labels, generator())
    eta = torch.empty_like(images).uniform_(-noise * 0.1, noise * 0.1, generator=generator())
    eta = eta.clamp(-images, 1 - images).requires_grad_(True)
    cross_entropy(deepcopy(model).eval()(images + eta), labels).backward()
    delta = (eta + step * 0.1 * eta.grad.sign()).clamp(-images, 1 - images).detach()
    assert torch.allclose(loss, cross_entropy(model(images + delta), labels), rtol=1e-4)
    assert delta.abs().max() > 0.1 * (noise + step) - 0.01  # far outside the ball
    assert training.validation_attack(NFGSM(epsilon=0.1)) == PGD(epsilon=0.1, step_size=0.025, steps=10)


@pytest.mark.slow
def test_fgsm_overfits_catastrophically_where_n_fgsm_does_so_less_and_the_check_sees_it(tiny_run):
    """One sign step without noise, at a large radius; 20 seconds. When it happens is a matter of rounding: of sixteen
    trainings by FGSM, on two kinds of processors, none escaped; of those by N-FGSM some did not."""
    digits, found = data.load(Data()), {"fgsm": [], "n-fgsm": []}
    for name, objective in {"fgsm": Adversarial(attack=FGSM(epsilon=0.4)), "n-fgsm": NFGSM(epsilon=0.4)}.items():
        for seed in (0, 1):
            run = tiny_run(data=Data(), model=PreActResNet(depth=8, width=16), objective=objective, seed=seed, epochs=8,
                           batch_size=32, precision="float32")
            parts = Health(epsilon=0.4)(training.train(run, digits).model, digits)["parts"]
            found[name].append(parts["pgd"] / parts["fgsm"])
            assert name == "n-fgsm" or "catastrophic overfitting" in symptoms(parts)
    assert max(found["fgsm"]) < 0.1 and sum(found["n-fgsm"]) / 2 > 0.2, found


def divergence(clean, attacked):
    """Mean Kullback-Leibler divergence of the attacked from the clean prediction."""
    p, q = clean.softmax(1), attacked.softmax(1)
    return (p * (p.log() - q.log())).sum(1).mean()


def trades_images(model, images, attack: TRADES):
    """Independently: as an offset that is clipped to the ball and, with the image, to the box."""
    frozen = deepcopy(model).eval()
    clean = frozen(images).detach()
    offset = (images + 0.001 * torch.randn(images.shape, generator=generator())).clamp(0, 1) - images
    for _ in range(attack.steps):
        offset.requires_grad_(True)
        (gradient,) = torch.autograd.grad(divergence(clean, frozen(images + offset)), offset)
        offset = (offset.detach() + attack.step_size * gradient.sign()).clamp(-attack.epsilon, attack.epsilon)
        offset = offset.clamp(-images, 1 - images)
    return images + offset


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades(model, batch, beta):
    images, labels = batch
    loss = TRADES(epsilon=0.1, step_size=0.03, steps=5, beta=beta)(deepcopy(model), images, labels, generator())
    attacked = trades_images(model, images, TRADES(epsilon=0.1, step_size=0.03, steps=5))
    clean = model(images)
    drift = divergence(clean, model(attacked))
    assert drift > 0.02
    assert torch.allclose(loss, cross_entropy(clean, labels) + beta * drift, rtol=1e-3)


def trades_and_images(objective: TRADES, model, images, labels):
    """Its loss, whose gradients are in the weights, and the images, clean and attacked, of its two training passes."""
    seen = []
    hook = model.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].detach()))
    loss = objective(model, images, labels, generator())
    loss.backward()
    hook.remove()
    assert torch.equal(seen[-2], images)
    return loss.detach().double(), *seen[-2:]


def linear_network(scale: float, seed: int):
    """A linear classifier with logits of about `scale`, three random images and their labels."""
    chance = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4, bias=False)).train()
    model[1].weight.data = scale * torch.randn(4, 64, generator=chance) / 8
    return model, torch.rand(3, 1, 8, 8, generator=chance), torch.randint(4, (3,), generator=chance)


@tried(max_examples=30)
@given(st.floats(0.1, 3.0), st.integers(0, 99))
def test_trades_of_an_unsure_network_is_what_probabilities_give(scale, seed):
    """Value and gradient against the divergence as it is usually written, through softmax, in float64."""
    model, images, labels = linear_network(scale, seed)
    loss, _, attacked = trades_and_images(TRADE, model, images, labels)
    exact = deepcopy(model).double()
    exact.zero_grad()
    p, log_q = exact(images.double()).softmax(1), exact(attacked.double()).log_softmax(1)
    drift = kl_div(log_q, p, reduction="batchmean")
    expected = cross_entropy(exact(images.double()), labels) + TRADE.beta * drift
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].weight.grad.double(), exact[1].weight.grad, rtol=1e-4, atol=1e-5)


@tried(max_examples=30)
@given(st.floats(0, 4), st.sampled_from([0.0, 1.0, 6.0]), st.integers(0, 99))
def test_trades_of_a_sure_network_in_closed_form(exponent, beta, seed):
    """Logits up to 1e4. With p clean and q attacked predictions, the gradient of the divergence D is p (log p/q - D) in
    the clean logits and q - p in the attacked ones."""
    model, images, labels = linear_network(10**exponent, seed)
    loss, clean, attacked = trades_and_images(replace(TRADE, beta=beta), model, images, labels)
    log_p, log_q = (model(x).detach().double().log_softmax(1) for x in (clean, attacked))
    p, q, truth = log_p.exp(), log_q.exp(), one_hot(labels, 4)
    drift = (p * (log_p - log_q)).sum(1, keepdim=True)
    assert float(loss) == pytest.approx(float(beta * drift.mean() - (truth * log_p).sum(1).mean()), rel=1e-3, abs=1e-5)
    of_clean, of_attacked = p - truth + beta * p * (log_p - log_q - drift), beta * (q - p)
    slopes = of_clean.T @ clean.flatten(1).double() / 3 + of_attacked.T @ attacked.flatten(1).double() / 3
    tolerance = 1e-3 * float(slopes.abs().max()) + 1e-5
    torch.testing.assert_close(model[1].weight.grad.double(), slopes, rtol=0, atol=tolerance)


def test_a_sure_network_trains_on_with_trades(tiny_run, digits):
    run = tiny_run(objective=TRADE, lr=1e-4)
    start = training.build(run, digits).state_dict()
    start["members.0.linear.weight"] *= 1e4
    result = training.train(run, digits, start)
    assert all(math.isfinite(row["loss"]) for row in result.history)
    assert all(p.isfinite().all() for p in result.model.parameters())


@pytest.mark.parametrize("objective", [Natural(), Adversarial(attack=ATTACK, clean_weight=0.3), TRADE], ids=str)
def test_gradient_is_that_of_the_total_with_the_attack_held_fixed(objective):
    """Along random directions of the weights of a smooth network, by central differences."""
    with seeded():
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        images, labels = torch.rand(5, 1, 2, 2).double(), torch.randint(3, (5,))
        directions = [[torch.randn_like(p) for p in model.parameters()] for _ in range(3)]
    objective(model, images, labels, generator()).backward()
    for direction in directions:
        slope = sum((p.grad * d).sum() for p, d in zip(model.parameters(), direction, strict=True))
        values = []
        for step in (3e-4, -3e-4):
            moved = deepcopy(model)
            for p, d in zip(moved.parameters(), direction, strict=True):
                p.data += step * d
            values.append(objective(moved, images, labels, generator()).item())
        assert (values[0] - values[1]) / 6e-4 == pytest.approx(slope.item(), rel=1e-2, abs=1e-3)


# --- sparse activations


@pytest.fixture
def lenet():
    with seeded():
        return LeNet300100().build((1, 8, 8), 10)


def hidden(lenet, images) -> list[torch.Tensor]:
    one, two, _ = [m for m in lenet if isinstance(m, nn.Linear)]
    first = linear(images.flatten(1), one.weight, one.bias).clamp_min(0)
    return [first, linear(first, two.weight, two.bias).clamp_min(0)]


def averaged(layers: list[torch.Tensor]) -> torch.Tensor:
    """The penalty: a mean for each layer, and their sum."""
    return torch.stack([layer.sum() / layer.numel() for layer in layers]).sum()


@pytest.mark.parametrize("clean_weight", [None, 0.0, 0.5], ids=["natural", "adversarial", "half clean"])
def test_sparse_activations_by_hand(lenet, batch, clean_weight):
    inner, seen = Natural(), batch[0]
    if clean_weight is not None:
        inner, seen = Adversarial(attack=ATTACK, clean_weight=clean_weight), ATTACK(lenet, *batch, generator())
    loss = inner(lenet, *batch, generator())
    added = averaged(hidden(lenet, seen))
    for lam in (0.0, 0.2, 3.0):
        sparse = SparseActivations(objective=inner, lam=lam)(lenet, *batch, generator())
        assert close(sparse, loss + lam * added)
        assert lam or torch.equal(sparse, loss)
    assert added > 0.1
    if clean_weight is not None:
        assert abs(added - averaged(hidden(lenet, batch[0]))) > 1e-3


@pytest.mark.parametrize("inner", [o for o, _ in OBJECTIVES.values() if not isinstance(o, SparseActivations)], ids=str)
def test_every_relu_of_the_last_training_pass_is_penalised(model, batch, inner, monkeypatch):
    """Against every call of torch.relu in a network with blocks that call one module twice."""
    passes, given, relu = [], [], torch.relu
    model.register_forward_pre_hook(lambda m, inputs: passes.append(inputs[0].detach()) if m.training else None)
    loss = inner(deepcopy(model), *batch, generator())
    sparse = SparseActivations(objective=inner, lam=2.0)(deepcopy(model), *batch, generator())
    monkeypatch.setattr(torch, "relu", lambda x: given.append(relu(x)) or given[-1])
    deepcopy(model)(passes[-1])
    assert len(given) == 7
    assert torch.allclose(sparse - loss, 2 * averaged(given), rtol=1e-4)


@settings
class Wandering(Objective):
    """A loss of one pass over the images, after which others are made that do not train."""

    cost = 1.0

    def __call__(self, model, images, labels, generator):
        loss = cross_entropy(model(images), labels)
        with under_attack(model):
            model(1 - images)
        with torch.no_grad():
            model(1 - images)
        return loss


def test_passes_that_do_not_train_do_not_count(lenet, batch):
    loss = SparseActivations(objective=Wandering(), lam=1.0)(lenet, *batch, generator())
    assert close(loss, cross_entropy(lenet(batch[0]), batch[1]) + averaged(hidden(lenet, batch[0])))


def test_winners_are_penalised_too(batch):
    net = Winners(model=LeNet300100(), share=0.1).build((1, 8, 8), 10)
    added = SparseActivations(objective=Natural(), lam=1.0)(net, *batch, generator()) - Natural()(net, *batch, None)
    first = hidden(net, batch[0])[0].topk(30).values.sum(1).mean() / 300
    second = net[:5](batch[0]).sum(1).mean() / 100
    assert torch.allclose(added, first + second, rtol=1e-4)


@pytest.mark.parametrize("inner", [Natural(), Adversarial(attack=FGSM_RS, clean_weight=0.5)], ids=["natural", "half"])
def test_gradient_with_sparse_activations_against_finite_differences(inner):
    with seeded():
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
        images, labels = torch.rand(5, 1, 2, 2).double(), torch.randint(3, (5,))
    model, objective = model.double(), SparseActivations(objective=inner, lam=5.0)
    objective(model, images, labels, generator()).backward()
    for p in model.parameters():
        for i in range(p.numel()):
            values = []
            for shift in (1e-3, -2e-3, 1e-3):
                p.data.view(-1)[i] += shift
                values.append(objective(model, images, labels, generator()).item())
            assert (values[0] - values[1]) / 2e-3 == pytest.approx(p.grad.view(-1)[i].item(), rel=1e-2, abs=2e-3)


def watched(model) -> bool:
    return any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_nobody_watches_the_network_afterwards(lenet, batch):
    @settings
    class Looking(Attack):
        cost = 0.0

        def __call__(self, model, images, labels, generator=None):
            assert watched(model)
            return Raising()(model, images, labels) if labels[0] > 99 else images

    objective = SparseActivations(objective=Adversarial(attack=Looking(), clean_weight=0.5), lam=1.0)
    objective(lenet, *batch, generator()).backward()
    assert not watched(lenet)
    with pytest.raises(Called):
        objective(lenet, batch[0], batch[1] + 100, generator())
    assert not watched(lenet)


def test_means_of_bfloat16_activations_are_exact(lenet, batch):
    with torch.autocast("cpu", torch.bfloat16):
        loss = Natural()(lenet, *batch, generator())
        sparse = SparseActivations(objective=Natural(), lam=100.0)(lenet, *batch, generator())
        layers = [lenet[:3](batch[0]), lenet[:5](batch[0])]
    assert {layer.dtype for layer in layers} == {torch.bfloat16} and sparse.dtype == torch.float32
    assert close(sparse, loss.float() + 100 * averaged([layer.double() for layer in layers]).float())


def test_a_network_without_relu_has_nothing_to_penalise(refusal, batch):
    linear = Linear().build((1, 8, 8), 10)
    assert "ReLU" in refusal(SparseActivations(objective=Natural(), lam=1.0), linear, *batch, generator())


def test_the_first_epochs_of_sparse_activations():
    inner = Adversarial(attack=ATTACK, clean_epochs=2)
    objective = SparseActivations(objective=inner, lam=0.5)
    assert [objective.at(epoch) for epoch in range(4)] == [SparseActivations(objective=Natural(), lam=0.5)] * 2 + [
        objective] * 2


@every_objective
def test_validation_meets_the_ball_of_training(objective, passes):
    nested = SparseActivations(objective=SparseActivations(objective=objective, lam=1.0), lam=0.5)
    attack = training.validation_attack(objective)
    assert training.validation_attack(nested) == attack and nested.cost == objective.cost
    assert (attack is None) == (objective == Natural())
    assert attack is None or attack.epsilon == 0.1


def test_training_with_sparse_activations(tiny_run, digits):
    """The penalty acts: hidden activations are smaller, and validation is attacked as it would be without."""
    inner = Adversarial(attack=FGSM_RS)
    run = tiny_run(objective=inner, model=LeNet300100(), precision="float32", epochs=3)
    sparse = tiny_run(objective=SparseActivations(objective=inner, lam=1.0), model=LeNet300100(),
                      precision="float32", epochs=3)
    models = [training.train(r, digits) for r in (run, sparse)]
    assert all("validation_robust" in trained.history[-1] for trained in models)
    sizes = [averaged(hidden(trained.model, digits.test.images)).item() for trained in models]
    assert sizes[1] < 0.7 * sizes[0]


# --- all


@every_objective
def test_only_the_training_passes_reach_weights_and_statistics(model, batch, objective, passes):
    before = tracked(model)
    assert len(before) == 1
    loss = objective(model, *batch, generator())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert tracked(model) == {before.pop() + passes}
    assert all(m.training for m in model.modules())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@every_objective
def test_statistics_are_those_of_the_training_passes(model, batch, objective, passes):
    """The passes of a training step, seen at the model: in training mode and with gradients."""
    seen, twin, reach = [], deepcopy(model), 0.3 if objective.kind == "n_fgsm" else 0.1
    hook = model.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].detach()) if m.training else None)
    objective(model, *batch, generator())
    hook.remove()
    assert len(seen) == passes
    for images in seen:
        assert images.shape == batch[0].shape and (images - batch[0]).abs().max() <= reach + 1e-6
        twin(images)
    assert sum(torch.equal(images, batch[0]) for images in seen) == (objective.kind == "natural") + passes // 2
    for name, expected in twin.named_buffers():
        assert close(model.get_buffer(name).float(), expected.float())


@every_objective
def test_cost_counts_the_passes_with_gradients(model, batch, objective, passes):
    counted = []
    model.register_forward_hook(lambda *_: counted.append(torch.is_grad_enabled()))
    objective(model, *batch, generator())
    assert sum(counted) == objective.cost


@pytest.mark.parametrize(("plain", "words"), [
    ({"kind": "trades", "epsilon": 8, "step_size": 0.01}, ["epsilon", "8/255"]),
    ({"kind": "trades", "epsilon": 0.1, "step_size": 2}, ["step_size", "2/255"]),
    ({"kind": "trades", "epsilon": 0.1, "step_size": 0.01, "beta": -1}, ["beta"]),
    ({"kind": "trades", "epsilon": 0.1, "step_size": 0.01, "steps": 0}, ["steps"]),
    ({"kind": "adversarial", "attack": {"kind": "fgsm", "epsilon": 8}}, ["8/255"]),
    ({"kind": "adversarial", "attack": {"kind": "fgsm", "epsilon": 0.1}, "clean_weight": 1.5}, ["clean_weight"]),
    ({"kind": "adversarial", "attack": {"kind": "fgsm", "epsilon": 0.1}, "attacked_label": "clean"},
     ["attacked_label", "'clean'", "predicted"]),
    ({"kind": "adversarial", "attack": {"kind": "fgsm", "epsilon": 0.1}, "clean_epochs": -1}, ["clean_epochs"]),
    ({"kind": "adversarial", "clean_weight": 0.5}, ["attack", "missing"]),
    ({"kind": "adversarial", "atack": {}}, ["atack", "'attack'"]),
    ({"kind": "n_fgsm", "epsilon": 8}, ["epsilon", "8/255"]),
    ({"kind": "n_fgsm", "epsilon": 0.1, "noise": -1}, ["noise", "negative"]),
    ({"kind": "n_fgsm", "epsilon": 0.1, "step": -1}, ["step", "negative"]),
    ({"kind": "n_fgsm", "epsilon": 0.1, "step": 11}, ["longer than [0, 1]"]),
    ({"kind": "trade"}, ["'trades'"]),
    ({"kind": "sparse_activations", "objective": {"kind": "natural"}, "lam": -1}, ["lam", "negative"]),
    ({"kind": "sparse_activations", "lam": 1}, ["objective", "missing"]),
], ids=str)
def test_wrong_settings(refusal, plain, words):
    message = refusal(Objective.parse, plain)
    assert all(word in message for word in words), message
