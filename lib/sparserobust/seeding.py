"""Streams of chance: every random choice has a name, and is made again the same."""

import hashlib
from contextlib import contextmanager

import torch


def derived_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for one named stream of chance, independent of all others."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *names: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one named stream, as `stream(0, "order", epoch)`. Since a stream is named rather than
    continued, a computation that is taken up again at an epoch needs no saved random state."""
    return torch.Generator(device=device).manual_seed(derived_seed(seed, *names))


@contextmanager
def global_seed(seed: int, *names: str | int):
    """Seed torch's global generators (initialisation, noise layers) inside the block; outside nothing has changed."""
    with torch.random.fork_rng():
        torch.manual_seed(derived_seed(seed, *names))
        yield
