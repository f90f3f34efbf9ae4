"""Which channels of a network go together: the dependency graph of Torch-Pruning (DepGraph, Fang et al. 2023), followed
channel by channel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparserobust.errors import UserError, quoted

Convolution = nn.modules.conv._ConvNd
Norm = nn.modules.batchnorm._BatchNorm
OUT, IN = 0, 1  # sides of a layer; norms and PReLUs have the first one only
Side = tuple[str, int]  # name of a layer, and which side
End = tuple[Any, Callable]  # the same in the graph: a node, and the function that would prune this side of it


@dataclass(frozen=True)
class Couplings:
    """`sets[side]` (channels,) numbers sets of channels that have to go together: one number for all ends at which such
    a set passes. `fixed` (sets,) says which have to stay, `space` (sets,) which pass through the same layers."""

    sets: dict[Side, Tensor]
    fixed: Tensor
    space: Tensor

    @classmethod
    def of(cls, model: nn.Module, images: Tensor) -> "Couplings":
        """As images (n, c, h, w) pass the network, whose parameters all ask for gradients. To stay have: what is put
        out at the end, what a layer or function passes that may look at all channels at once (other norms, attention,
        noise by standard deviation), and what the graph does not follow. Channels of a convolution in groups go by
        whole groups. `UserError` if Torch-Pruning is not installed, or cannot trace the network."""
        graph, ends, entries, pairs = _traced(model, images)
        for (name, side), (node, prune, _) in ends.items():
            layer = model.get_submodule(name)
            if isinstance(layer, Convolution) and layer.groups > 1 and side == IN:
                other = ends[name, OUT][1]
                ins, outs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
                pairs += [(entries[node, prune, i], entries[node, other, i // ins * outs + k])
                          for i in range(layer.in_channels) for k in range(outs)]
        if not entries:
            return cls({}, torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.long))
        sets = _connected(pairs, len(entries))
        passed = {end: number for number, end in enumerate(dict.fromkeys(entry[:2] for entry in entries))}
        spaces = _connected([(passed[entry[:2]], len(passed) + int(number)) for entry, number in
                             zip(entries, sets, strict=True)], len(passed) + int(sets.max()) + 1)[len(passed):]
        last = next(iter(graph.module2node.values()))  # where tracing began
        out = last, graph.get_pruner_of_module(last.module).prune_out_channels
        sizes = {(node, prune): size for node, prune, size in ends.values()}
        fixed = torch.zeros(len(spaces), dtype=torch.bool)
        for (node, prune, channel), number in zip(entries, sets, strict=True):
            if (node, prune) == out or not _followed(node) or channel >= sizes.get((node, prune), channel + 1):
                fixed[number] = True
        return cls({side: sets[[entries[node, prune, i] for i in range(size)]]
                    for side, (node, prune, size) in ends.items()}, fixed, spaces)


def _traced(model: nn.Module, images: Tensor):
    """The dependency graph of Torch-Pruning, with `_ends` and `_spread`."""
    try:
        from torch_pruning import DependencyGraph
        from torch_pruning.dependency.index_mapping import update_index_mapping
    except ImportError:
        raise UserError("removing channels needs Torch-Pruning: pip install 'sparserobust[lab]'") from None
    try:
        with torch.inference_mode(False), torch.enable_grad():
            graph = DependencyGraph().build_dependency(model, (images.clone(),), verbose=False)
        if next(iter(graph.module2node.values())).grad_fn is None:
            raise RuntimeError("its logits have no gradient")
        update_index_mapping(graph)
        ends = _ends(graph, model)
        return graph, ends, *_spread(graph, ends)
    except Exception as error:  # with a network from elsewhere it may stop in any way
        raise UserError(f"Torch-Pruning cannot trace which channels of {type(model).__name__} go together "
                        f"({type(error).__name__}: {quoted(str(error))})") from error


def _ends(graph, model: nn.Module) -> dict[Side, tuple[Any, Callable, int]]:
    """Of every layer with channels, each side: its node, what would prune it, and how many channels it has."""
    ends = {}
    for name, layer in model.named_modules():
        if layer in graph.module2node and isinstance(layer, Convolution | nn.Linear | Norm | nn.PReLU):
            node, pruner = graph.module2node[layer], graph.get_pruner_of_module(layer)
            if channels := pruner.get_out_channels(layer):  # a PReLU may have one slope for all
                ends[name, OUT] = node, pruner.prune_out_channels, channels
            if isinstance(layer, Convolution | nn.Linear):
                ends[name, IN] = node, pruner.prune_in_channels, pruner.get_in_channels(layer)
    return ends


def _spread(graph, ends) -> tuple[dict[tuple[Any, Callable, int], int], list[tuple[int, int]]]:
    """Every channel at every end that it passes, numbered; and pairs of numbers that go together."""
    from torch_pruning._helpers import _HybridIndex

    entries: dict[tuple[Any, Callable, int], int] = {}
    pairs = []

    def new(node, prune: Callable, channels) -> list[int]:
        fresh = [i for i in channels if (node, prune, i) not in entries]
        entries.update({(node, prune, i): len(entries) + k for k, i in enumerate(dict.fromkeys(fresh))})
        return fresh

    waiting = [(node, prune, new(node, prune, range(size))) for node, prune, size in ends.values()]
    while waiting:
        node, prune, channels = waiting.pop()
        for step in node.dependencies:
            if channels and step.is_triggered_by(prune):
                reached = [_HybridIndex(i, i) for i in channels]
                for mapping in filter(None, step.index_mapping):
                    reached = mapping(reached)
                waiting.append((step.target, step.handler, new(step.target, step.handler, [r.idx for r in reached])))
                pairs += [(entries[node, prune, r.root_idx], entries[step.target, step.handler, r.idx])
                          for r in reached]
    return entries, pairs


def _connected(pairs: list[tuple[int, int]], count: int) -> Tensor:
    """Numbers (count,) of the connected components that these edges make."""
    import numpy
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a, b = numpy.array(pairs, dtype=int).reshape(-1, 2).T
    return torch.from_numpy(connected_components(coo_array((numpy.ones(len(a)), (a, b)), (count, count)))[1]).long()


def _followed(node) -> bool:
    """Whether the graph knows which channel of a node is which. Functions that are not PyTorch's own, whose names do
    not end in a digit, may do anything."""
    from torch_pruning.ops import OPTYPE

    if node.type == OPTYPE.DEPTHWISE_CONV:
        return node.module.in_channels == node.module.out_channels
    if node.type == OPTYPE.ELEMENTWISE:
        return str(getattr(node.module, "_grad_fn", ""))[-1:].isdigit()
    return node.type in (OPTYPE.CONV, OPTYPE.BN, OPTYPE.LINEAR, OPTYPE.PRELU, OPTYPE.CONCAT, OPTYPE.SPLIT,
                         OPTYPE.SLICE, OPTYPE.RESHAPE, OPTYPE.EXPAND)
