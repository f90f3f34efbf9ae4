"""SGD and Adam against the classes of torch.optim, and what they are for: no compiler is imported."""

import subprocess
import sys

import pytest
import torch

from sparserobust.optimisers import SGD, Adam


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs_bit_for_bit(momentum):
    ours = {name: torch.randn(3, 4) for name in "abc"}
    theirs = {name: p.clone() for name, p in ours.items()}
    decay = {"a": 0.1, "b": 0.1}
    sgd = SGD(ours, momentum, decay)
    groups = [{"params": [theirs["a"], theirs["b"]], "weight_decay": 0.1}, {"params": [theirs["c"]]}]
    reference = torch.optim.SGD(groups, lr=0.1, momentum=momentum, nesterov=momentum > 0)
    for step in range(5):
        for name in "abc":
            gradient = None if (name, step) == ("b", 2) else torch.randn(3, 4)  # left alone once, with its decay
            ours[name].grad = theirs[name].grad = gradient
        for group in reference.param_groups:
            group["lr"] = 0.1 / (step + 1)
        sgd.step(0.1 / (step + 1))
        reference.step()
        assert all(torch.equal(ours[name], theirs[name]) for name in "abc")
    assert set(sgd.buffers) == (set("abc") if momentum else set())


def test_adam_is_torchs_bit_for_bit():
    ours = torch.randn(3, 4)
    theirs = ours.clone()
    adam, reference = Adam(ours, 0.05), torch.optim.Adam([theirs], lr=0.05)
    for _ in range(20):
        theirs.grad = torch.randn(3, 4)
        adam.step(theirs.grad)
        reference.step()
        assert torch.equal(ours, theirs)


def test_training_and_attacking_import_no_compiler():
    code = """if True:
        import sys, torch
        from sparserobust import training, data, Data, Recipe, Run, models, objectives, attacks
        run = Run(data=Data(train_images=8), model=models.LeNet300100(), objective=objectives.Natural(),
                  recipe=Recipe(epochs=1))
        splits = data.load(run.data)
        net, images, labels = training.train(run, splits).model, splits.test.images[:2], splits.test.labels[:2]
        for attack in (attacks.CarliniWagnerL2(steps=2, search_steps=1), attacks.CarliniWagnerReleased(steps=2)):
            attack(net, images, labels)
        sys.exit("torch._dynamo" in sys.modules)"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
