"""Trained networks that come along (`data/networks`): `names()`, `card("lasso")`, `load("lasso")`.

    data/networks/<name>.json         its card: the run that it is, where it was trained, what was measured on it
                  <name>.safetensors  its weights in half precision, packed (`packed`); their sha256 is in the card

`benchmarks/networks.py` makes both from the run store.
"""

import numpy as np
import torch
from torch import Tensor, nn

from sparserobust import data, files, paths
from sparserobust.config import Run
from sparserobust.errors import UserError
from sparserobust.seeding import global_seed
from sparserobust.settings import unknown

BITS = ".nonzero"  # of which entries are stored, as a tensor of its own


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
        raise UserError("reading a network needs safetensors: pip install 'sparserobust[lab]'") from None
    except files.Corrupt as error:
        raise _damaged(error) from None
    return unpacked(run, tensors)


def packed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors to store: of those with two dimensions or more the entries that are not zero, one after the other in half
    precision, and a bit for each entry that says whether it is one of them; others as they are."""
    found = {}
    for key, t in weights.items():
        found[key] = t if t.dim() < 2 else t[t != 0].half()
        if t.dim() >= 2:
            found[key + BITS] = torch.from_numpy(np.packbits(t.cpu().numpy() != 0))
    return found


def unpacked(run: Run, tensors: dict[str, Tensor]) -> nn.Module:
    """The network of a run, in eval mode, with the weights that were `packed`."""
    with global_seed(run.seed, "init"):  # so that torch's global generators stay as they are
        model = run.model.build(data.image_shape(run.data), data.classes(run.data))
    model.load_state_dict({key: _unpacked(tensors, key, t) for key, t in model.state_dict().items()})
    return model.eval()


def _unpacked(tensors: dict[str, Tensor], key: str, like: Tensor) -> Tensor:
    """One tensor, of shape and type of `like`."""
    if key + BITS not in tensors:
        return tensors[key]
    bits = np.unpackbits(tensors[key + BITS].numpy(), count=like.numel())
    whole = torch.zeros_like(like, memory_format=torch.contiguous_format)
    whole[torch.from_numpy(bits).bool().view(like.shape)] = tensors[key].to(like.dtype)
    return whole


def _damaged(error: files.Corrupt) -> UserError:
    return UserError(f"{error}: restore it with git checkout")
