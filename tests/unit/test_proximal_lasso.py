"""Proximal lasso: its limit against scikit-learn's solution of the same problem, its steps by hand."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import ElasticNet
from sklearn.linear_model import Lasso as ReferenceLasso
from torch import nn
from torch.nn.functional import cross_entropy

from scaffolding import batches
from sparserobust import sparsity, training
from sparserobust.config import Sparsifier
from sparserobust.sparsifiers import Lasso, ProximalLasso

IMAGES, PIXELS, OUTPUTS = 120, 24, 3


@pytest.fixture(scope="module")
def problem():
    """Features (120, 24), some of them close to others, and targets (120, 3) that few of them make."""
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(IMAGES, PIXELS, generator=chance, dtype=torch.float64)
    x[:, 12:] += x[:, :12]
    true = torch.randn(OUTPUTS, PIXELS, generator=chance, dtype=torch.float64)
    true *= torch.rand(true.shape, generator=chance) < 0.2
    return x, x @ true.T + 2 + 0.5 * torch.randn(IMAGES, OUTPUTS, generator=chance, dtype=torch.float64)


class Convolution(nn.Module):
    """A linear map (n, 24) to (n, 3) written as a convolution of 2x3x4 inputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, OUTPUTS, (3, 4))

    def forward(self, x):
        return self.layer(x.view(-1, 2, 3, 4)).flatten(1)


def descended(model, problem, lam: float, lr: float = 0.2, steps: int = 1000, **optimiser) -> tuple:
    """Weights (3, 24) and biases (3,) after full-batch gradient descent on half the mean squared error."""
    x, y = problem
    model, sparsifier = model.double(), ProximalLasso(lam=lam)
    sgd = torch.optim.SGD(model.parameters(), lr, **optimiser)
    state = sparsifier.start(model)
    for _ in range(steps):
        sgd.zero_grad()
        loss = (model(x) - y).pow(2).sum() / (2 * IMAGES) + sparsifier.added_loss(model, state)
        loss.backward()
        sparsifier.before_step(model, state, lr)
        sgd.step()
        sparsifier.after_step(model, state, lr)
    weight, bias = [p.detach().numpy() for p in model.parameters()]
    return weight.reshape(OUTPUTS, PIXELS), bias


@pytest.mark.parametrize("build", [lambda: nn.Linear(PIXELS, OUTPUTS), Convolution], ids=["linear", "convolution"])
@pytest.mark.parametrize("lam", [0.02, 0.1, 0.5])
def test_it_converges_to_the_lasso_solution_with_the_same_zeros(build, lam, problem):
    weight, bias = descended(build(), problem, lam)
    reference = ReferenceLasso(alpha=lam, tol=1e-12, max_iter=100_000).fit(*problem)
    np.testing.assert_allclose(weight, reference.coef_, atol=1e-6)
    np.testing.assert_allclose(bias, reference.intercept_, atol=1e-6)  # which is not penalised
    assert ((weight == 0) == (reference.coef_ == 0)).all()
    assert 5 < (weight == 0).sum() < weight.size - 2


@pytest.mark.parametrize("lr", [0.1, 0.25])
def test_the_limit_does_not_depend_on_the_learning_rate(lr, problem):
    reference = ReferenceLasso(alpha=0.1, tol=1e-12, max_iter=100_000).fit(*problem)
    np.testing.assert_allclose(descended(nn.Linear(PIXELS, OUTPUTS), problem, 0.1, lr)[0], reference.coef_, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.5, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_with_momentum_m_it_rests_where_one_minus_m_lam_would(momentum, nesterov, problem):
    lam = 0.1
    weight, _ = descended(nn.Linear(PIXELS, OUTPUTS), problem, lam / (1 - momentum), 0.2 * (1 - momentum),
                          momentum=momentum, nesterov=nesterov)
    reference = ReferenceLasso(alpha=lam, tol=1e-12, max_iter=100_000).fit(*problem)
    np.testing.assert_allclose(weight, reference.coef_, atol=1e-6)
    assert ((weight == 0) == (reference.coef_ == 0)).all()


def test_with_weight_decay_it_is_the_elastic_net(problem):
    x, y = problem
    lam, decay = 0.1, 0.3
    weight, _ = descended(nn.Linear(PIXELS, OUTPUTS, bias=True), (x - x.mean(0), y - y.mean(0)), lam,
                          weight_decay=decay)  # centred, as weight decay acts on biases too
    reference = ElasticNet(alpha=lam + decay, l1_ratio=lam / (lam + decay), tol=1e-12, max_iter=100_000).fit(x, y)
    np.testing.assert_allclose(weight, reference.coef_, atol=1e-6)
    assert ((weight == 0) == (reference.coef_ == 0)).all()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_training_by_hand(momentum, tiny_run, digits):
    """Learning rates that change, norms and biases that are left alone."""
    run = tiny_run(epochs=3, batch_size=16, lr=0.1, precision="float32", momentum=momentum, weight_decay=0.05,
                   sparsifier=ProximalLasso(lam=0.05))
    model, recipe, steps = training.build(run, digits).train(), run.recipe, 0
    optimiser = torch.optim.SGD(model.parameters(), 1.0, momentum, weight_decay=recipe.weight_decay,
                                nesterov=momentum > 0)
    for epoch in range(recipe.epochs):
        for images, labels in batches(run, digits, epoch):
            lr = optimiser.param_groups[0]["lr"] = float(np.interp(steps / 12, [0, 0.4, 1], [0, 0.1, 0]))
            optimiser.zero_grad()
            cross_entropy(model(images), labels).backward()
            optimiser.step()
            for p in model.parameters():
                if p.dim() > 1:
                    size = p.detach().abs() - lr * 0.05
                    p.data = torch.where(size > 0, p.detach().sign() * size, 0.0)
            steps += 1
    result = training.train(run, digits)
    for name, p in result.model.named_parameters():
        torch.testing.assert_close(p, model.get_parameter(name), rtol=1e-3, atol=1e-5)
        assert torch.equal(p == 0, model.get_parameter(name) == 0)
    assert 0.05 < result.history[-1]["sparsity"] == sparsity.sparsity(result.model)
    assert [row["gap"] for row in result.history] == [0.0] * 3


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_weights_become_exactly_zero_and_averaging_does_not_undo_it(averaging, tiny_run, digits):
    proximal, added = (training.train(tiny_run(epochs=4, averaging=averaging, sparsifier=kind(lam=0.1)), digits)
                       for kind in (ProximalLasso, Lasso))
    assert 0.05 < sparsity.sparsity(proximal.model) == proximal.history[-1]["sparsity"] < 1
    assert sparsity.sparsity(added.model) == 0


def test_without_a_penalty_it_is_dense_training(tiny_run, digits):
    none, dense = (training.train(tiny_run(**change), digits) for change in ({"sparsifier": ProximalLasso(lam=0)}, {}))
    assert none.history == dense.history
    for name, t in none.model.state_dict().items():
        assert torch.equal(t, dense.model.state_dict()[name])


def test_settings(refusal):
    assert "lam" in refusal(ProximalLasso, lam=-1e-9)
    assert Sparsifier.parse({"kind": "proximal_lasso", "lam": "1e-4"}) == ProximalLasso(lam=1e-4)
    assert ProximalLasso(lam=0.1).identity != Lasso(lam=0.1).identity
