"""Networks and checkpoints from outside the library: built, filled with weights, told apart by their content.

    net = foreign.network("my_net.py:build", weights="my_weights.pt", mean=(0.49, 0.48, 0.45), std=(0.25, 0.24, 0.26))

Nothing is unpickled that could run code.
"""

import hashlib
import inspect
import os
import pickle
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from math import isfinite
from pathlib import Path, PurePath
from types import CodeType, GenericAlias, ModuleType, UnionType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sparserobust import files, outside, sparsity
from sparserobust.errors import UserError, quoted
from sparserobust.functions import LIBRARIES, is_installed, referred
from sparserobust.models.normalise import Normalise

WRAPPERS = ("module", "_orig_mod")  # what DataParallel and torch.compile add to names, anywhere in them
HOLDERS = (*WRAPPERS, "model", "net", "network", "backbone", "encoder")  # and what people call what holds a network
SCALES = ("mean", "mu", "std", "sigma")  # buffers of a layer that normalises images
NAMED = 3  # names that a message has of each kind
T = TypeVar("T")
Builder = nn.Module | Callable[..., nn.Module] | str


# ----------------------------------------------------------------------------------------------------- networks


def network(builder: Builder, weights: str | Path | None = None, mean: Sequence[float] = (),
            std: Sequence[float] = ()) -> nn.Module:
    """A network in eval mode that takes images (n, c, h, w) in [0, 1].

    `builder` is the network itself, which is then changed in place; a function; or the name of either, as in
    `my_net.py:build`, `my_net.py:build(width=8)` or `torchvision.models:resnet18(num_classes=10)`. `weights` is a file
    that `state` reads, with the part of it to take, if there are several: `my_weights.pt:ema`. With `mean` and `std`,
    a number for each channel, in units of [0, 1], images are normalised in a first layer of their own.

    `UserError` if anything is missing, raises, does not fit, or is no `torch.nn.Module`.
    """
    net = built(builder)
    mean, std = scales(mean, std)
    if weights is not None:
        load(net, state(weights), mean, std)
    return normalised(net, mean, std).eval()


def built(builder: Builder, **offered: Any) -> nn.Module:
    """The network of a builder, which gets those of the arguments on offer that it has a parameter for."""
    if isinstance(builder, nn.Module):
        return builder
    label = builder if isinstance(builder, str) else getattr(builder, "__name__", repr(builder))
    if isinstance(builder, str):
        net = outside.called(builder, nn.Module, **offered)
    elif callable(builder):
        net = outside.guarded(label, builder, offered=offered)
    else:
        raise UserError(f"a network is a torch.nn.Module, a function, or a name such as my_net.py:build, not of type "
                        f"{type(builder).__name__}")
    if not isinstance(net, nn.Module):
        raise UserError(f"{label} should give a torch.nn.Module, not something of type {type(net).__name__}")
    return net


def normalised(net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The network behind a layer that normalises, in the mode that it has, or as it is without mean and std."""
    mean, std = scales(mean, std)
    if twice := [name for name, t in net.named_buffers() if mean and _is_scale(name, t)]:
        raise UserError(f"the network normalises images itself ({twice[0]}): leave mean and std out")
    if not mean:
        return net
    whole = nn.Sequential(Normalise([255 * m for m in mean], [255 * s for s in std]), net)
    whole.training = whole[0].training = net.training
    return whole


def scales(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std as plain numbers. `UserError` unless they are as many of both, finite, std positive."""
    try:
        means, stds = tuple(map(float, mean)), tuple(map(float, std))
        fit = len(means) == len(stds) and all(map(isfinite, means + stds)) and min(stds, default=1) > 0
    except (TypeError, ValueError):
        fit = False
    if not fit:
        raise UserError("mean and std go together, a number for each channel, in units of [0, 1]; std is positive")
    return means, stds


# -------------------------------------------------------------------------------------------------- checkpoints


def state(path: str | Path) -> dict[str, Tensor]:
    """The weights in a file, name to tensor on the CPU, floating-point ones as float32: safetensors, or what
    `torch.save` wrote, of which only tensors and plain data are read. If weights lie within something else (as
    `state_dict`, `model`, ...), they are found; if there are several, `my_weights.pt:ema` says which.

    `UserError`, one line, if the file is missing, damaged, holds no weights, several, or objects that would have to be
    unpickled."""
    if not isinstance(path, str | Path):
        raise UserError(f"weights are named by their file, not of type {type(path).__name__}: tensors at hand go into "
                        "the network with its load_state_dict")
    place, part, content = _chosen(str(path))
    file = outside.located(place, content)
    whole = _opened(file)
    found = dict(_mappings(whole, ()))
    if part and part not in found:  # it may be a prefix
        for weights in list(found.values()):
            if within := _behind(weights, f"{part}."):
                found[part] = within
    if part and part not in found:
        raise UserError(f"{file.name} has no weights under {quoted(part)}; it has {_named(found) or 'none'}")
    if not part and len(found) > 1:
        raise UserError(f"{file.name} has weights under {_named(found)}: say which, as in "
                        f"{file.name}:{next(iter(found))}")
    if not found:
        raise UserError(f"{file.name} holds no weights: a dictionary of names and tensors, or one that contains it")
    chosen = found[part] if part else next(iter(found.values()))
    if empty := [name for name, t in chosen.items() if t.is_meta]:
        raise UserError(f"{file.name} holds no numbers for {quoted(empty[0])}, which was saved from the device meta")
    return {name: _plain(t) for name, t in chosen.items()}


def _chosen(path: str) -> outside.Name:
    """A name whose place is the whole of it if there is such a file."""
    return outside.Name(path, "", "") if os.path.exists(path) else outside.parsed(path)  # noqa: PTH110


def _opened(file: Path) -> Any:
    """What a file holds, told by its first bytes and not by its ending."""
    if not file.is_file():
        raise UserError(f"{file} is no file")
    try:
        with file.open("rb") as stream:
            head = stream.read(9)
    except OSError as error:
        raise UserError(f"cannot read {file} ({error.strerror})") from None
    if head[8:] == b"{":
        return files.read_tensors(file)[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript, which is then refused
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises anything
        if met := re.search(r"GLOBAL (\S+)|torch\.jit\.load|TorchScript", str(error)):
            raise UserError(
                f"{file.name} holds more than tensors ({met[1] or 'a TorchScript program'}), and opening that can run "
                "code: where you trust it, open it and torch.save the network's state_dict() to a file of its own"
            ) from None
        raise UserError(f"{file.name} is damaged, or no file of torch.save or safetensors "
                        f"({type(error).__name__})") from None


def _mappings(thing: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """The innermost mappings from names to tensors. Those under numbers are the state of an optimiser."""
    if not isinstance(thing, Mapping):
        return
    within = [found for key, value in thing.items() if isinstance(key, str) for found in _mappings(value, (*path, key))]
    tensors = {key: t for key, t in thing.items() if isinstance(key, str) and isinstance(t, Tensor)}
    if within or not any(t.dim() for t in tensors.values()):
        yield from within
    else:
        yield ".".join(path), tensors


def _plain(t: Tensor) -> Tensor:
    """Dense, and float32 if it is a floating-point number."""
    t = _dense(t).detach()
    return t.float() if t.is_floating_point() else t


def _dense(t: Tensor) -> Tensor:
    return t.dequantize() if t.is_quantized else t.to_dense() if t.layout != torch.strided else t


def load(model: nn.Module, weights: Mapping[str, Tensor], mean: Sequence[float] = (), std: Sequence[float] = ()
         ) -> None:
    """Put weights, name to tensor, into a network, in place. What differs in form alone is brought to the form of the
    network: prefixes that wrappers add, masks of `torch.nn.utils.prune`, weight and spectral norm, old or new, on
    either side. Counters of norms may be missing, and constants by which the network normalises images: a mean and a
    standard deviation that are no parameters, in a layer of their own, and other than zeros and ones.

    `UserError` that names the first tensors that are missing, left over, or of another shape; also where the weights
    normalise images by other numbers than `mean` and `std`, and where the network then holds other numbers than the
    weights, beyond rounding, such as whole ones or one tensor for two."""
    if not isinstance(weights, Mapping):
        raise UserError(f"weights are a dictionary of names and tensors, not of type {type(weights).__name__}")
    weights = {name: t for name, t in weights.items() if isinstance(t, Tensor) or not name.endswith("_extra_state")}
    for name, t in weights.items():
        if not isinstance(t, Tensor):
            raise UserError(f"weights are tensors by their names; {quoted(name)} is of type {type(t).__name__}")
        if t.is_meta:
            raise UserError(f"{quoted(name)} holds no numbers, being on the device meta: save the weights anew")
    if any(t.is_meta for t in model.parameters()):
        return  # a network without numbers, to be counted
    own = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    forms, theirs = _forms(own), _forms(weights)
    pairs = _aligned(forms, theirs)
    left = [name for base in theirs.keys() - pairs.values() for name in theirs[base].values()]
    left = sorted(left, key=list(weights).index)
    _check_scales({name: weights[name] for name in left if _is_scale(name, weights[name])}, mean, std)
    fitting: dict[str, Tensor] = {}
    for base, roles in forms.items():
        if base in pairs:
            given = {role: weights[name] for role, name in theirs[pairs[base]].items()}
            made = given if given.keys() == roles.keys() else _formed(model, base, given, {
                role: own[name] for role, name in roles.items()})
            fitting |= {name: made[role] for role, name in roles.items()}
    found = {own[name].data_ptr() for name in fitting}  # a tensor of two names may be stored under one
    told = {"missing": [name for name, t in own.items() if name not in fitting and t.data_ptr() not in found
                        and not _is_counter(name) and not _normalises(model, name, t)],
            "left over": [name for name in left if not _is_counter(name) and not _is_scale(name, weights[name])],
            "of another shape or type": [f"{name} {_kind(t)}, not {_kind(own[name])}" for name, t in fitting.items()
                                         if t.shape != own[name].shape
                                         or own[name].is_floating_point() > t.is_floating_point()]}
    if any(told.values()):
        raise UserError("the weights do not fit the network: "
                        + "; ".join(f"{what}: {_named(names)}" for what, names in told.items() if names))
    shared: dict[tuple, str] = {}
    for name, t in fitting.items():
        first = shared.setdefault((own[name].data_ptr(), own[name].shape, own[name].stride()), name)
        if not _same(fitting[first], t):
            raise UserError(f"{first} and {name} are one tensor in the network and two different ones in the weights")
        _check_held(name, own[name].detach().clone().copy_(t), t)
    model.load_state_dict(fitting, strict=False)
    sparsity.renew(model)
    for name, t in model.state_dict().items():
        if name in fitting:  # whatever else the network does to it
            _check_held(name, t, fitting[name])


def _check_held(name: str, held: Tensor, meant: Tensor) -> None:
    """`UserError`, with the number that changes most, unless a tensor of the network is the one that was meant."""
    if not _same(held, meant):
        was, now = _dense(meant).detach().cpu().flatten(), _dense(held).detach().cpu().flatten()
        place = int((now.double() - was.double()).abs().nan_to_num(torch.inf).argmax())
        raise UserError(f"the network cannot hold the numbers of {name}: {was[place].item():g} becomes "
                        f"{now[place].item():g}, of type {str(held.dtype).removeprefix('torch.')}")


def _same(held: Tensor, meant: Tensor) -> bool:
    """Whether two tensors of one shape are the same, up to rounding if they are of floating-point numbers."""
    held, meant = _dense(held).detach().cpu(), _dense(meant).detach().cpu()
    if not held.is_floating_point() and not held.is_complex():
        return torch.equal(held.to(meant.dtype), meant)
    exact = torch.complex128 if meant.is_complex() else torch.float64
    limits = torch.finfo(held.dtype)
    return torch.allclose(held.to(exact), meant.to(exact), limits.eps, limits.tiny * limits.eps, equal_nan=True)


def _kind(t: Tensor) -> str:
    """Shape, and type where that is not a floating-point number."""
    return f"{tuple(t.shape)}" + ("" if t.is_floating_point() else f" {str(t.dtype).removeprefix('torch.')}")


def _named(names: Iterable[str]) -> str:
    """The first of them, and how many more there are."""
    names = list(names)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _is_counter(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _is_scale(name: str, t: Tensor) -> bool:
    """Whether this may be a constant by which images are normalised."""
    return name.rsplit(".", 1)[-1] in SCALES and 0 < t.numel() <= 4


def _normalises(model: nn.Module, name: str, t: Tensor) -> bool:
    """Whether a tensor of a network is a constant by which it normalises images, as its builder knows them: a buffer
    beside the other one, in a layer that has nothing else. A norm that is learnt has them, too, and begins with zeros
    and ones."""
    place = name.rpartition(".")[0]
    layer = model.get_submodule(place)
    buffers = dict(layer.named_buffers(recurse=False))
    scales = {own: t for own, t in buffers.items() if own in SCALES}
    alone = not place or (scales.keys() == buffers.keys() and not dict(layer.named_parameters(recurse=False)))
    begins = all(bool((t == (own in SCALES[2:])).all()) for own, t in scales.items())
    return _is_scale(name, t) and len(scales) == 2 and alone and not begins


def _check_scales(scales: Mapping[str, Tensor], mean: Sequence[float], std: Sequence[float]) -> None:
    for name, t in scales.items():
        given = mean if name.rsplit(".", 1)[-1] in SCALES[:2] else std
        numbers = [float(f"{x:.6g}") for x in t.flatten().tolist()]
        ours = torch.tensor(given, dtype=torch.double)
        if len(numbers) != len(given) or not torch.allclose(t.flatten().double(), ours, atol=1e-4):
            raise UserError(f"the weights hold numbers by which images are normalised, {name} {numbers}, and the "
                            f"network has no place for them: give mean and std, now {list(mean)} and {list(std)}")


def _aligned(own: Iterable[str], theirs: Iterable[str]) -> dict[str, str]:
    """Own name to their name: as they are, or without what wrappers add, or without a prefix that all of one side may
    have; whichever finds most."""
    own, theirs = list(own), list(theirs)
    sides = [({n: n for n in own}, {n: n for n in theirs})]
    sides += [(_without(own, words), _without(theirs, words)) for words in (WRAPPERS, HOLDERS)]
    bare, plain = sides[1]
    sides += [(bare, _behind(plain, prefix)) for prefix in _prefixes(plain)]
    sides += [(_behind(bare, prefix), plain) for prefix in _prefixes(bare)]
    return max(({ours[key]: others[key] for key in ours if key in others} for ours, others in sides), key=len)


def _without(names: Iterable[str], words: Sequence[str]) -> dict[str, str]:
    """Names without these words anywhere in them, to the names; nothing if two become one."""
    names = list(names)
    short = {".".join(w for w in name.split(".") if w not in words): name for name in names}
    return short if len(short) == len(names) else {}


def _prefixes(names: Iterable[str]) -> dict[str, None]:
    """All that names begin with, up to a dot."""
    return dict.fromkeys(name[:dot.end()] for name in names for dot in re.finditer(r"\.", name))


def _behind(names: Mapping[str, T], prefix: str) -> dict[str, T]:
    return {key.removeprefix(prefix): name for key, name in names.items() if key.startswith(prefix)}


# What a weight may be stored as: itself; with a mask; as length and direction; with its largest singular vectors
FORMS = ({""}, {"orig", "mask"}, {"g", "v"}, {"orig", "u", "v"})
PARAMETRISED = {"original": "orig", "original0": "g", "original1": "v", "0._u": "u", "0._v": "v"}


def _forms(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Name of a weight to the names of the tensors that it is stored as, by their role in one of the `FORMS`."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        new = re.fullmatch(rf"(.*)parametrizations\.([^.]+)\.({'|'.join(map(re.escape, PARAMETRISED))})", name)
        old = re.fullmatch(r"(.+)_(orig|mask|g|v|u)", name)
        base, role = (new[1] + new[2], PARAMETRISED[new[3]]) if new else (old[1], old[2]) if old else (name, "")
        found.setdefault(base, {})[role] = name
    return {base: roles for whole, parts in found.items()
            for base, roles in ([(whole, parts)] if parts.keys() in FORMS else [(n, {"": n}) for n in parts.values()])}


def _formed(model: nn.Module, base: str, given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A weight in another form than that in which it is given. `UserError` if it has none."""
    layer = model.get_submodule(base.rpartition(".")[0])
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    weight = _folded(given, transposed)
    made = {"": weight}
    if "mask" in own:
        made = {"orig": weight, "mask": torch.ones_like(weight)}
    elif "g" in own:
        length = _length(weight, own["g"])
        made = {"g": length.reshape(own["g"].shape), "v": torch.where(length > 0, weight, 1.0)}
    elif "u" in own:
        left, _, right = torch.linalg.svd(_matrix(weight, transposed), full_matrices=False)
        made = {"orig": weight, "u": left[:, 0], "v": right[0]}
    if not torch.allclose(_folded(made, transposed), weight, rtol=1e-4, atol=1e-6):
        raise UserError(f"{base}: the network divides it by its spectral norm, which is not 1 in these weights")
    return made


def _folded(form: Mapping[str, Tensor], transposed: bool) -> Tensor:
    """The weight itself."""
    if "mask" in form:
        return form["orig"] * form["mask"]
    if "g" in form:
        return form["v"] * (form["g"] / _length(form["v"], form["g"]))
    if "u" in form:
        return form["orig"] / (form["u"] @ _matrix(form["orig"], transposed) @ form["v"])
    return form[""]


def _length(v: Tensor, g: Tensor) -> Tensor:
    """Norm of what each entry of g scales, to broadcast with v."""
    return v.norm() if g.numel() == 1 else torch.norm_except_dim(
        v, 2, next(d for d, size in enumerate(g.shape) if size > 1))


def _matrix(weight: Tensor, transposed: bool) -> Tensor:
    """A row for each output, as spectral norm sees it."""
    return (weight.transpose(0, 1) if transposed else weight).flatten(1)


# --------------------------------------------------------------------------------------------------- what it is


class Seen:
    """What was told already, by its address: its number, and the thing itself, so that it stays there. Copies of a
    network share its code; objects are of each alone, so that those that code refers to are told apart from them."""

    def __init__(self) -> None:
        self.code: dict[int, tuple[int, Any]] = {}
        self.objects: dict[int, tuple[int, Any]] = {}
        self.numbers = count()
        self.kept: list[Any] = []


EMPTY = ("_abc", "_io", "_thread", "_weakref", "logging", "threading", "weakref")  # things of these have no content


def fingerprint(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that name a network by its content: names, shapes and values of its tensors, its
    layers with their settings and hooks, and the code of all classes and functions outside torch, with what that refers
    to (of installed packages, their own code alone). Modes, devices, gradients, places of files, DataParallel and
    torch.compile do not enter. `UserError` for a network that holds something whose content cannot be told."""
    while isinstance(inner := getattr(model, "_orig_mod", None) or getattr(model, "module", None), nn.Module) and (
            type(model).__module__.split(".")[0] == "torch"):
        model = inner
    try:
        return files.short_hash(_network(model, Seen()))
    except RecursionError:
        raise UserError(f"what {type(model).__name__} holds is nested too deep to be told apart") from None


def _network(model: nn.Module, seen: Seen) -> list[Any]:
    """What a network is, likewise."""
    internal = vars(nn.Module()).keys()
    layers = list(model.named_modules(remove_duplicate=False))
    for _, module in layers:
        seen.code.setdefault(id(module), (next(seen.numbers), module))
    told: list[Any] = []
    for name, module in layers:
        hooks = [hook for kind in ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
                 for hook in vars(module)[kind].values()]
        own = {key: value for key, value in vars(module).items()
               if key not in internal and not re.match("_(is_)?torch", key)}  # what torch.compile leaves
        program = getattr(module, "code", "") if isinstance(module, torch.jit.ScriptModule) else ""
        told.append((name, module.extra_repr(), program, _told(type(module), seen), _told(own, seen),
                     _told(hooks, seen)))
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return [*told, [(name, _told(t, seen)) for name, t in tensors]]


def _told(value: Any, seen: Seen) -> Any:
    """What a value is, in plain data without addresses; each object once, and then by its number."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | range | torch.dtype | np.dtype
                                   | torch.layout | torch.memory_format | GenericAlias | UnionType):
        return repr(value)
    if isinstance(value, Tensor):
        if value.is_meta:
            return str(value.dtype), tuple(value.shape)
        content = files.tensor_bytes(_dense(value))
        return str(value.dtype), tuple(value.shape), hashlib.sha256(content).hexdigest()
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        return str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    name = "module" if isinstance(value, ModuleType) else getattr(value, "__qualname__", type(value).__qualname__)
    if found := seen.code.get(id(value)) or seen.objects.get(id(value)):
        return name, found[0]
    is_code = isinstance(value, type | ModuleType) or inspect.isfunction(value)
    (seen.code if is_code or isinstance(value, nn.Module) else seen.objects)[id(value)] = next(seen.numbers), value
    if is_code:
        outer, seen.objects = seen.objects, {}
        told = name, _of_code(value, seen)
        seen.kept.append(seen.objects)
        seen.objects = outer
        return told
    if isinstance(value, nn.Module):
        return _network(value, seen)
    if isinstance(value, list | tuple | deque | np.ndarray | Mapping | set | frozenset):
        entries: list[Any] = [(_told(key, seen), _told(entry, seen)) for key, entry in value.items()] if isinstance(
            value, Mapping) else [_told(entry, seen) for entry in value]
        seen.kept.append(seen.objects.pop(id(value)))  # an equal one elsewhere is the same, unless within this one
        return sorted(map(repr, entries)) if isinstance(value, set | frozenset) else entries
    if isinstance(value, partial):
        return _told([value.func, value.args, value.keywords], seen)
    if isinstance(value, staticmethod | classmethod):
        return _told(value.__func__, seen)
    if inspect.ismethod(value):
        return _told([value.__func__, value.__self__], seen)
    if isinstance(value, property):
        return _told([value.fget], seen)
    return name, _of_object(value, seen)


def _of_code(value: Any, seen: Seen) -> Any:
    """What a module of Python, a class or a function is."""
    if isinstance(value, ModuleType):
        return value.__name__ if is_installed(value.__name__, getattr(value, "__file__", None)) else [
            (key, _told(entry, seen)) for key, entry in vars(value).items() if not key.startswith("__")]
    if inspect.isfunction(value):
        return _source(value), _told([value.__defaults__, value.__kwdefaults__, *referred(value)], seen)
    if value.__module__.split(".")[0] in LIBRARIES - {"sparserobust"}:
        return ""
    return [_told(base, seen) for base in value.__bases__], [
        (key, _told(entry, seen)) for key, entry in vars(value).items()
        if not (key.startswith("__") and key.endswith("__")) or inspect.isfunction(entry)]


def _of_object(value: Any, seen: Seen) -> Any:
    """What an object of any other class is: its class and attributes, or else the hash of its pickle."""
    kind = type(value)
    if kind.__module__ in EMPTY or inspect.isroutine(value) or inspect.isdatadescriptor(value):
        return ""
    slots = {slot for base in kind.__mro__ for slot in np.atleast_1d(vars(base).get("__slots__", ())).tolist()}
    attributes = {slot: getattr(value, slot) for slot in sorted(slots - {"__dict__", "__weakref__"})
                  if hasattr(value, slot)} | getattr(value, "__dict__", {})
    if attributes or kind.__module__.split(".")[0] == "torch" or isinstance(value, PurePath):
        return _told([kind, attributes], seen)
    try:
        return _told(kind, seen), hashlib.sha256(pickle.dumps(value, protocol=4)).hexdigest()
    except Exception:  # whatever an object does that cannot be stored
        raise UserError(f"the network refers to something of type {kind.__qualname__}, of which it cannot be told "
                        "whether it changes") from None


def _source(function: Any) -> Any:
    """The text of a function, where there is one, and its compiled code."""
    if (function.__module__ or "").split(".")[0] in LIBRARIES - {"sparserobust"}:
        return ""
    try:
        return inspect.getsource(function), _compiled(function.__code__)
    except (OSError, TypeError):
        return _compiled(function.__code__)


def _compiled(code: CodeType) -> tuple:
    return code.co_code, code.co_names, [_compiled(c) if isinstance(c, CodeType) else _told(c, Seen())
                                         for c in code.co_consts]
