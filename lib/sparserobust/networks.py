"""Trained networks that come along (`data/networks`): `names()`, `card("lasso")`, `load("lasso")`.

    data/networks/<name>.json         its card: the run that it is, where it was trained, what was measured on it
                  <name>.safetensors  its weights, packed (`packed`); their sha256 is in the card

`benchmarks/networks.py` makes both from the run store.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sparserobust import data, files, paths
from sparserobust.config import Run
from sparserobust.errors import UserError
from sparserobust.seeding import global_seed
from sparserobust.settings import unknown

BITS = ".nonzero"  # of which entries are stored, as a tensor of its own
IMAGE_SHAPE = (3, 32, 32)
HUB_CARD = """---
library_name: sparserobust
license: mit
datasets: [cifar10]
pipeline_tag: image-classification
tags: [adversarial-robustness, pruning, sparsity, pytorch]
---

# {name}

{about}
    import sparserobust as sr

    net = sr.networks.from_hub(".")  # this folder

`config.json` holds the settings of the run that it came out of, `model.safetensors` plain float32 tensors. The weights
are under the MIT licence; the images they were trained on are not.
"""


def names() -> list[str]:
    """Of all networks, in alphabetical order."""
    return sorted(path.stem for path in paths.networks_folder().glob("*.json"))


def card(name: str) -> dict:
    """What is known of a network: `about` it in a sentence, its `paper`, `study`, `scale`, and `run` with its
    `identity`; the `processor` it was trained on; how many `parameters` it has, how many convolution and linear
    `weights`, of which `weights_left` are not zero; its `bytes`. Under `measured`, for `clean` images and under `pgd`:
    settings of the measurement, `count` right of `total`, 95 % interval of the share from `low` to `high`, the count
    `before` it was packed, and that of the `published` record, whose weights and images may be others. Under
    `sample` the counts on `data.sample()`. `UserError` for an unknown name and for a damaged card."""
    if name not in names():
        unknown("network", name, "networks", dict.fromkeys(names()))
    path = paths.networks_folder() / f"{name}.json"
    try:
        return files.check_seal(files.read_json(path), path)
    except files.Corrupt as error:
        raise _damaged(error) from None


def load(name: str) -> nn.Module:
    """A network, float32 and in eval mode, on the CPU: images (n, 3, 32, 32) in [0, 1] to logits (n, 10). `UserError`
    for an unknown name and for damaged files."""
    known, path = card(name), paths.networks_folder() / f"{name}.safetensors"
    run = Run.parse(known["run"])
    try:
        if files.sha256(path) != known["weights_sha256"]:
            raise files.Corrupt(f"{path} is not what its card says")
        tensors, _ = files.load_tensors(path)
    except ImportError:
        raise _without_safetensors() from None
    except files.Corrupt as error:
        raise _damaged(error) from None
    return unpacked(run, tensors)


def described(name: str) -> str:
    """What a network is, what was measured on it, and what it takes, in a few lines of Markdown."""
    known = card(name)
    measured = known["measured"]
    rates = {key: f"{100 * m['count'] / m['total']:.1f} % of {m['total']:,} (95 % interval {100 * m['low']:.1f} to "
             f"{100 * m['high']:.1f})" for key, m in measured.items()}
    attack = measured["pgd"]["measurement"]["attack"]
    about = f"{known['about'][0].upper()}{known['about'][1:]}"
    paper = f" ({known['paper']})" if known["paper"] else ""
    return (f"{about}{paper}. Trained on CIFAR-10, with one seed.\n\n"
            f"- weights that are not zero: {known['weights_left']:,} of {known['weights']:,}\n"
            f"- right on test images: {rates['clean']}\n"
            f"- right under PGD with {attack['steps']} steps at {255 * attack['epsilon']:g}/255: {rates['pgd']}; PGD "
            "is a screen, stronger attacks find more\n\n"
            "It takes images (n, 3, 32, 32) in [0, 1] to logits (n, 10). It shows what a method does, and is no state "
            "of the art.\n")


def for_hub(name: str, folder: Path | str) -> list[Path]:
    """Write a network into a folder as model hubs lay it out, and return the files: `config.json` (settings of its run,
    shape of images, classes), `model.safetensors` (plain float32 tensors, by the names of its state dictionary) and
    `README.md` (the card). `from_hub` reads them."""
    known, net, folder = card(name), load(name), paths.writable(Path(folder))
    config = {"library_name": "sparserobust", "name": name, "identity": known["identity"], "run": known["run"],
              "image_shape": IMAGE_SHAPE, "pixels": "in [0, 1]", "id2label": dict(enumerate(data.CIFAR10_CLASSES))}
    readme = folder / "README.md"
    files.write_json(folder / "config.json", config)
    files.write(folder / "model.safetensors", files.packed(net.state_dict(), {"format": "pt"}))
    files.write(readme, HUB_CARD.format(name=name, about=described(name)).encode())
    return [folder / "config.json", folder / "model.safetensors", readme]


def from_hub(folder: Path | str) -> nn.Module:
    """The network in a folder that `for_hub` has written, float32 and in eval mode, on the CPU. `UserError` if it
    is not whole."""
    folder = Path(folder)
    config = files.read_json(folder / "config.json")
    try:
        run = Run.parse(config["run"])
    except (KeyError, TypeError):
        raise files.Corrupt(f"{folder / 'config.json'} was not written by this library") from None
    path = folder / "model.safetensors"
    try:
        tensors = files.read_tensors(path)[0]
    except ImportError:
        raise _without_safetensors() from None

    def weight(key: str, like: Tensor) -> Tensor:
        if key not in tensors or tensors[key].shape != like.shape:
            raise files.Corrupt(f"{path} has no {key} of shape {tuple(like.shape)}, as config.json wants it")
        return tensors[key]

    return _filled(run, weight)


def packed(weights: dict[str, Tensor], precision: torch.dtype = torch.half) -> dict[str, Tensor]:
    """Tensors to store: of those with two dimensions or more the entries that are not zero, one after the other in this
    precision, and a bit for each entry that says whether it is one of them; others as they are."""
    found = {}
    for key, t in weights.items():
        found[key] = t if t.dim() < 2 else t[t != 0].to(precision)
        if t.dim() >= 2:
            found[key + BITS] = torch.from_numpy(np.packbits(t.cpu().numpy() != 0))
    return found


def unpacked(run: Run, tensors: dict[str, Tensor]) -> nn.Module:
    """The network of a run, in eval mode, with the weights that were `packed`."""
    return _filled(run, lambda key, like: _unpacked(tensors, key, like))


def _filled(run: Run, weight: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """The network of a run, in eval mode, with the tensor that `weight` gives for each name and a tensor like it."""
    with global_seed(run.seed, "init"):  # so that torch's global generators stay as they are
        model = run.model.build(data.image_shape(run.data), data.classes(run.data))
    model.load_state_dict({key: weight(key, t) for key, t in model.state_dict().items()})
    # as it was trained and measured: noise is drawn in the order in which weights lie in memory
    return model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in its stubs


def _unpacked(tensors: dict[str, Tensor], key: str, like: Tensor) -> Tensor:
    """One tensor, of shape and type of `like`."""
    if key + BITS not in tensors:
        return tensors[key]
    bits = np.unpackbits(tensors[key + BITS].numpy(), count=like.numel())
    whole = torch.zeros_like(like, memory_format=torch.contiguous_format)
    whole[torch.from_numpy(bits).bool().view(like.shape)] = tensors[key].to(like.dtype)
    return whole


def _without_safetensors() -> UserError:
    return UserError("reading a network needs safetensors: pip install 'sparserobust[lab]'")


def _damaged(error: files.Corrupt) -> UserError:
    return UserError(f"{error}: restore it with git checkout, or install the library anew")
