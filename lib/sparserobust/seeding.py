"""Streams of chance: every random choice has a name, and is made again the same."""

import hashlib
from collections.abc import Callable
from contextlib import contextmanager

import torch

from sparserobust.provenance import device


def derived_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one named stream of chance, independent of all others."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one named stream, as `stream(0, "order", epoch)`. Since a stream is named rather than
    continued, a computation that is taken up again at an epoch needs no saved random state."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, *names))


@contextmanager
def own_chance():
    """What torch's global generators give inside the block changes nothing outside. Where networks are on the CPU, the
    generators of GPUs are not put back: to ask one for its state takes memory of it, and no process could be forked any
    more."""
    with torch.random.fork_rng([] if device().type == "cpu" else None):
        yield


@contextmanager
def global_seed(seed: int, *names: str | int):
    """Seed torch's global generators (initialisation, noise layers) inside the block; outside nothing has changed."""
    with own_chance():
        apple = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
        try:
            torch.manual_seed(derived_seed(seed, *names))
            yield
        finally:
            if apple is not None:
                torch.mps.set_rng_state(apple)


def rewinder(*generators: torch.Generator | None) -> Callable[[], None]:
    """A function that sets these generators and torch's global ones back to where they are now."""
    states = [(generator, generator.get_state()) for generator in generators if generator is not None]
    cpu, cuda = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    apple = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def rewind():
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(cuda)
        if apple is not None:
            torch.mps.set_rng_state(apple)
        for generator, state in states:
            generator.set_state(state)

    return rewind
