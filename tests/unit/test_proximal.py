"""Proximal maps against numerical minimisation of  level * penalty(x) + (x - y)^2 / 2."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparserobust.sparsifiers import RGSM, RVSM, proximal

TL1 = {f"transformed_l1, a={a:g}": a for a in (0.05, 0.5, 1.0, 3.0, 100.0)}
PENALTIES = {  # of sizes, that is of |x| for scalars and of the norm for groups
    "l0": lambda x: (x != 0).double(),
    "l1": lambda x: x,
    **{name: partial(lambda a, x: (a + 1) * x / (a + x), a) for name, a in TL1.items()},
}
PENALTIES |= {"group_l0": PENALTIES["l0"], "group_l1": PENALTIES["l1"]}
MAPS = {"l0": proximal.l0, "l1": proximal.l1, "group_l0": proximal.group_l0, "group_l1": proximal.group_l1}
MAPS |= {name: partial(proximal.transformed_l1, a=a) for name, a in TL1.items()}
SCALAR = ["l0", "l1", *TL1]
GROUP = ["group_l0", "group_l1"]
levels = st.floats(1e-6, 5)


def assert_minimal(x: float, size: float, level: float, penalty) -> None:
    """x reaches the lowest value on a dense grid over [0, size], and lies where it is reached."""
    grid = torch.linspace(0, size, 20001, dtype=torch.float64)
    grid = torch.cat([grid, torch.tensor([x], dtype=torch.float64)])
    values = level * penalty(grid) + (grid - size) ** 2 / 2
    assert values[-1] <= values.min() + 1e-9 * size**2
    near = grid[:-1][values[:-1] <= values.min() + 1e-8 * size**2]
    assert near.min() - 3e-4 * size <= x <= near.max() + 3e-4 * size


@pytest.mark.parametrize("name", SCALAR)
@given(st.floats(0, 6), levels)
def test_scalar_maps_minimise_and_are_odd(name, size, level):
    y = torch.tensor([size, -size], dtype=torch.float64)
    x = MAPS[name](y, level)
    assert x[0] == -x[1]
    assert 0 <= x[0] <= size * (1 + 1e-12)
    assert_minimal(x[0].item(), size, level, PENALTIES[name])


@pytest.mark.parametrize("name", TL1)
@pytest.mark.parametrize("share", [0.3, 0.9, 1.1, 1.5, 1.9, 4])
def test_transformed_l1_on_both_sides_of_where_its_threshold_changes_form(name, share):
    level = share * TL1[name] ** 2 / (2 * (TL1[name] + 1))
    for size in torch.linspace(0.02, 4, 200) * level * (TL1[name] + 1) / TL1[name]:
        y = size.double()
        assert_minimal(MAPS[name](y, level).item(), y.item(), level, PENALTIES[name])


@pytest.mark.parametrize("name", SCALAR)
@given(levels, st.floats(1, 3))
def test_scalar_maps_are_monotone_and_a_higher_level_shrinks_more(name, level, factor):
    y = torch.linspace(-6, 6, 401, dtype=torch.float64)
    x, smaller = MAPS[name](y, level), MAPS[name](y, factor * level)
    assert (x.diff() >= -1e-12).all()
    assert (smaller.abs() <= x.abs() + 1e-12).all()


@pytest.mark.parametrize("name", SCALAR)
@pytest.mark.parametrize("level", [1e-4, 1e-2, 0.3])
def test_scalar_maps_in_float32_agree_with_float64(name, level):
    y = torch.linspace(-2, 2, 1000, dtype=torch.float64)
    a = TL1.get(name, 1.0)
    torch.testing.assert_close(MAPS[name](y.float(), level).double(), MAPS[name](y, level), rtol=0, atol=1e-6 * (1 + a))


@pytest.mark.parametrize("name", GROUP)
@given(st.integers(0, 10**6), levels)
def test_group_maps_minimise_per_input_channel_and_keep_direction(name, seed, level):
    y = torch.randn(4, 5, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y *= torch.tensor([0, 0.05, 0.2, 0.5, 1])[:, None, None]  # norms of about 0 to 6
    x = MAPS[name](y, level)
    assert x.shape == y.shape
    for channel in range(5):
        old, new = y[:, channel], x[:, channel]
        size, kept = old.norm().item(), new.norm().item()
        torch.testing.assert_close(new * size, old * kept, rtol=1e-9, atol=1e-12)
        assert_minimal(kept, size, level, PENALTIES[name])


def test_transformed_l1_lies_between_l0_and_l1():
    y = torch.linspace(-2, 2, 401, dtype=torch.float64)
    torch.testing.assert_close(proximal.transformed_l1(y, 0.3, a=1e5), proximal.l1(y, 0.3), rtol=0, atol=1e-4)
    clear = (y.abs() - 0.6**0.5).abs() > 0.01
    assert clear.sum() > 390
    torch.testing.assert_close(proximal.transformed_l1(y, 0.3, a=1e-5)[clear], proximal.l0(y, 0.3)[clear], rtol=0,
                               atol=1e-4)


@pytest.mark.parametrize(("beta", "threshold"), [(0.01, 1.414e-2), (0.1, 4.472e-3), (0.5, 2.0e-3)])
def test_rvsm_thresholds_of_the_paper(beta, threshold):
    w = threshold * torch.tensor([0.999, 1.001, -0.999, -1.001]).view(1, 1, 2, 2)
    assert torch.equal(RVSM(beta=beta, lam=1e-6).prox(w), w * torch.tensor([0, 1, 0, 1.0]).view(1, 1, 2, 2))


@pytest.mark.parametrize(("lambda1", "threshold"), [(1e-2, 0.1414), (2e-2, 0.2), (5e-2, 0.3162), (1e-1, 0.4472)])
def test_rgsm_thresholds_of_the_paper(lambda1, threshold):
    channels = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    norms = threshold * torch.tensor([0.999, 1.001])
    w = channels * (norms / channels.pow(2).sum((0, 2, 3)).sqrt())[:, None, None]
    u = RGSM(lambda1=lambda1).prox(w)
    assert not u[:, 0].any()
    assert torch.equal(u[:, 1], w[:, 1])


def test_beta_divides_the_level_of_every_penalty():
    w = torch.tensor([0.5, 1.5]).view(1, 2, 1, 1)
    shrunk = torch.tensor([0.25, 1.25]).view(1, 2, 1, 1)
    torch.testing.assert_close(RVSM(beta=4.0, lam=1.0, penalty="l1").prox(w), shrunk)
    torch.testing.assert_close(RGSM(beta=4.0, lambda1=1.0, penalty="group_l1").prox(w), shrunk)
    torch.testing.assert_close(RVSM(beta=4.0, lam=1.0, penalty="tl1", a=2.0).prox(w),
                               proximal.transformed_l1(w, 0.25, a=2.0))


def test_what_lies_at_the_threshold_is_removed():
    w = torch.ones(1, 1, 1, 1)
    assert not proximal.l0(w, 0.5).any()
    assert not proximal.group_l0(w, 0.5).any()
