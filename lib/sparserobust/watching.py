"""What a network does inside PyTorch, operation by operation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    """Calls `note` with each operation of ATen inside the block, its arguments and its result."""

    def __init__(self, note: Callable[[Any, tuple, Any], None]):
        super().__init__()
        self.note = note

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # or else torch loads what compiles networks, which takes seconds

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:  # in inference mode, operations that consist of others come in one piece
            found = func.decompose(*args, **(kwargs or {}))
        if found is NotImplemented:
            found = func(*args, **(kwargs or {}))
            self.note(func, args, found)
        return found


@contextmanager
def attention_in_parts() -> Iterator[None]:
    """Inside the block, layers of attention do not take the fast path: one operation that shows nothing of what is
    inside."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
