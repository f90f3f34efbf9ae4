import os
from dataclasses import replace

import pytest
import torch
from hypothesis import settings

from scaffolding import seeded
from sparserobust import Data, Recipe, Run, UserError, data, training
from sparserobust.attacks import PGD
from sparserobust.models import PreActResNet
from sparserobust.objectives import Adversarial, Natural

os.environ["SPARSEROBUST_DEVICE"] = "cpu"
torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("repeatable")


LONGEST = ("test_notebooks.py", "test_paper_scales.py", "test_records.py")


def pytest_collection_modifyitems(items):
    """The longest files come first (`pytest -n 2 --dist loadfile --no-loadscope-reorder`): neither process waits for
    them at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def right_gradients():
    """Tests that take gradients by hand, channels last, do not die of what `training.fastest_layout` avoids."""
    as_it_is = torch.nn.Conv2d._conv_forward

    @torch.jit.ignore  # so that networks can be made TorchScript
    def _conv_forward(conv, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if weight.shape[1] < 8 and conv.kernel_size == (1, 1) and conv.stride != (1, 1):
            down, right = conv.stride
            return torch.nn.functional.conv2d(x[..., ::down, ::right], weight, bias, 1, 0, 1, conv.groups)
        return as_it_is(conv, x, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        if torch.backends.cpu.get_cpu_capability() == "AVX2":
            patch.setattr(torch.nn.Conv2d, "_conv_forward", _conv_forward)
        yield


@pytest.fixture(autouse=True)
def safe_path(monkeypatch):
    """What `kernels.fork` tells the processes that it starts does not reach those of later tests."""
    monkeypatch.setenv("PYTHONSAFEPATH", "")


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory):
    """No test writes into the project's own `figures/` or `build/`."""
    for name in ("SPARSEROBUST_FIGURES", "SPARSEROBUST_BUILD"):
        os.environ[name] = str(tmp_path_factory.mktemp(name.lower()))


RUN = Run(data=Data(train_images=64), model=PreActResNet(depth=8, width=2), objective=Natural(),
          recipe=Recipe(epochs=2, batch_size=24))


@pytest.fixture(scope="session")
def tiny_run():
    """A run that trains in a tenth of a second; recipe settings go into its recipe, others into the run."""
    def tiny_run(**changes) -> Run:
        recipe = {key: changes.pop(key) for key in list(changes) if key in Recipe.__dataclass_fields__}
        return replace(RUN, recipe=replace(RUN.recipe, **recipe), **changes)

    return tiny_run


@pytest.fixture(scope="session")
def digits() -> data.Splits:
    """The data of `tiny_run`."""
    return data.load(RUN.data)


@pytest.fixture(scope="session")
def net():
    """A net trained for a second against a weak attack on digits, in eval mode; copy it before changing it."""
    run = Run(data=Data(), model=PreActResNet(depth=8, width=8),
              objective=Adversarial(attack=PGD(epsilon=0.05, step_size=0.025, steps=2)),
              recipe=Recipe(epochs=4, batch_size=32, precision="float32"))
    return training.train(run, data.load(run.data)).model


@pytest.fixture(autouse=True)
def chance():
    """The same chance for every test, whatever ran before it, and none of it left behind."""
    with seeded():
        yield


@pytest.fixture
def quick_suite(monkeypatch):
    """AutoAttack with few iterations, for whoever calls it."""
    from pyautoattack import AutoAttack

    def shortened(suite, version="standard", original=AutoAttack._set_version):
        original(suite, version)
        suite.square.n_queries, suite.fab.n_iter, suite.apgd.n_iter, suite.apgd_targeted.n_iter = 200, 10, 40, 10

    monkeypatch.setattr(AutoAttack, "_set_version", shortened)


@pytest.fixture(scope="session")
def refusal():
    """The message of the UserError that a call must raise: one line."""
    def refusal(call, *arguments, **more) -> str:
        with pytest.raises(UserError) as caught:
            call(*arguments, **more)
        message = str(caught.value)
        assert message and "\n" not in message
        return message

    return refusal
