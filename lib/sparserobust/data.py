"""Data sets as tensors: images (n, c, h, w) float32 in [0, 1], labels (n,) int64, split into train, validation, test.

The test split is the official one. Validation is carved from the official training images with a fixed seed, the same
for every run. `digits` ships inside scikit-learn; the others are taken from the data folder when their files carry the
official md5 sums, else downloaded with torchvision's checked download.

A data set of your own is one of these, and its content, not its place, is part of what a run is (`outside`):

    my_data.py:shapes    a function or class in a file (or package.module:name): what its call returns has
                         "train", "validation" and "test", as keys or attributes, each (images, labels) or a `Split`,
                         and may have "classes", their names; torch's global generator has a fixed seed meanwhile
    my_images/           a folder of train.safetensors, validation.safetensors and test.safetensors, each with `images`
                         and `labels`; the slash is part of the name
    my_images.safetensors    a file of train_images, train_labels, validation_images, ..., test_labels

Without validation images a tenth of the training images is set aside. Without training images a set serves to measure.
"""

import hashlib
import io
import urllib.error
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparserobust import files, inputs, outside
from sparserobust.config import Data
from sparserobust.errors import UserError, quoted
from sparserobust.paths import data_folder, sample_folder, writable
from sparserobust.seeding import global_seed, stream
from sparserobust.settings import located


@dataclass(frozen=True)
class Split:
    """Images (n, c, h, w) float32 in [0, 1] and labels (n,) int64, on one device."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, n: int | None) -> "Split":
        """The first n images (all, for None)."""
        return self if n is None else Split(self.images[:n], self.labels[:n])

    def sample(self, n: int | None) -> "Split":
        """n images (all, for None) drawn at random, of each class as many as its share of all images asks for, to
        within 1 + share (classes - 2): two, where classes are about equally large. They are the same whenever they
        are drawn, and the sample of fewer images is the beginning of this one."""
        chosen = self._drawn[:n].to(self.labels.device)
        return Split(self.images[chosen], self.labels[chosen])

    @cached_property
    def _drawn(self) -> Tensor:
        """All images (n,) in the order in which `sample` takes them: at random within a class, and each class spread
        evenly over the whole."""
        labels = self.labels.cpu()
        chance, place = stream(0, "sample", len(labels)), torch.empty(len(labels), dtype=torch.float64)
        for label in labels.unique():
            members = (labels == label).nonzero()[:, 0]
            ranks = torch.randperm(len(members), generator=chance) + torch.rand(len(members), generator=chance,
                                                                                dtype=torch.float64)
            place[members] = ranks / len(members)
        return place.argsort()

    def to(self, device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Splits:
    """The three splits of one data set."""

    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]  # their names, or none

    def __post_init__(self):
        names: Any = () if self.classes is None else self.classes
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise UserError(f"classes are their names, one for each, or None, not of type {type(names).__name__}")
        object.__setattr__(self, "classes", tuple(map(str, names)))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(c, h, w)."""
        channels, height, width = (self.train or self.test).images.shape[1:]
        return channels, height, width

    def to(self, device) -> "Splits":
        return replace(self, train=self.train.to(device), validation=self.validation.to(device),
                       test=self.test.to(device))


def load(settings: Data | str, device: torch.device | str = "cpu") -> Splits:
    """The splits of a data set, by settings or by name. Raises `UserError`: unknown name, no network, damaged file, a
    set of your own that is not what it should be."""
    settings = Data(name=settings) if isinstance(settings, str) else settings
    if not isinstance(settings, Data):
        raise UserError(f"a data set is named, or given as Data(...), not of type {type(settings).__name__}; for "
                        "images of your own, data.Splits(split, split, split, classes) of data.Split(images, labels)")
    splits = _load(settings.name)
    if settings.classes:
        splits = _only(splits, settings)
    wanted = settings.train_images
    if wanted is not None and wanted > len(splits.train):
        raise UserError(f"train_images: {settings.name} has only {len(splits.train)} training images, not {wanted}")
    return replace(splits, train=part(splits.train, wanted, settings)).to(device)


def part(split: Split, n: int | None, settings: Data) -> Split:
    """n images of a split of a data set (all, for None): the first ones of the library's sets, which are shuffled, and
    a sample of your own, which may be in order."""
    return split.sample(n) if n is not None and outside.is_own_data(settings.name) else split.first(n)


IMAGES = {"digits": (1, 10), "mnist": (1, 10), "fashion_mnist": (1, 10), "cifar10": (3, 10), "cifar100": (3, 100),
          "svhn": (3, 10)}  # channels and classes, known without the files


SIDES = {"digits": 8, "mnist": 28, "fashion_mnist": 28, "cifar10": 32, "cifar100": 32, "svhn": 32}  # pixels


def image_shape(settings: Data) -> tuple[int, int, int]:
    """(c, h, w) of the images of a data set; its files need not be here, unless it is one of your own."""
    if settings.name not in SIDES:
        return _load(settings.name).image_shape
    return IMAGES[settings.name][0], SIDES[settings.name], SIDES[settings.name]


def channels(settings: Data) -> int:
    """How many channels the images of a data set have, likewise."""
    return image_shape(settings)[0]


def classes(settings: Data) -> int:
    """How many classes a data set has, likewise."""
    return len(settings.classes) or _all_classes(settings.name)


def _all_classes(name: str) -> int:
    return IMAGES[name][1] if name in IMAGES else len(_load(name).classes)


TRAINING = {"digits": 1_200, "mnist": 55_000, "fashion_mnist": 55_000, "cifar10": 45_000, "cifar100": 45_000,
            "svhn": 68_257}  # training images, validation not among them


def training_images(settings: Data) -> int:
    """How many training images a data set has, likewise. About as many where only some classes are used."""
    whole = TRAINING[settings.name] if settings.name in TRAINING else len(_load(settings.name).train)
    return settings.train_images or round(whole * classes(settings) / _all_classes(settings.name))


def _only(splits: Splits, settings: Data) -> Splits:
    """The images of the chosen classes, in the order they had."""
    if not all(0 <= c < len(splits.classes) for c in settings.classes):
        raise UserError(f"classes: {settings.name} has those from 0 to {len(splits.classes) - 1}")
    number = torch.full((len(splits.classes),), -1)
    number[list(settings.classes)] = torch.arange(len(settings.classes))

    def chosen(split: Split) -> Split:
        labels = number[split.labels]
        return Split(split.images[labels >= 0], labels[labels >= 0])

    return Splits(chosen(splits.train), chosen(splits.validation), chosen(splits.test),
                  tuple(splits.classes[c] for c in settings.classes))


def augmented(images: Tensor, settings: Data, generator: torch.Generator) -> Tensor:
    """A batch with an own random crop and flip for each image, as one gather; shape and device stay."""
    if not settings.crop_padding and not settings.flip:
        return images
    n, _, height, width = images.shape
    pad, device = settings.crop_padding, images.device
    padded = torch.nn.functional.pad(images, (pad,) * 4) if pad else images
    rows = torch.arange(height, device=device).expand(n, height)
    columns = torch.arange(width, device=device).expand(n, width)
    if settings.flip:
        flipped = torch.rand(n, 1, generator=generator, device=device) < 0.5
        columns = torch.where(flipped, columns.flip(1), columns)
    if pad:
        rows = rows + torch.randint(2 * pad + 1, (n, 1), generator=generator, device=device)
        columns = columns + torch.randint(2 * pad + 1, (n, 1), generator=generator, device=device)
    # indexing around the channel axis puts that axis last, which is what channels_last convolutions read
    image = torch.arange(n, device=device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------------------- sources

CIFAR10_FILES = {  # md5 sums of the files of the official binary archive
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
CIFAR10_URL, CIFAR10_MD5 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
IDX_FILES = {  # md5 sums of the unpacked official files
    "MNIST": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "FashionMNIST": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}


ORDERED = ("mnist",)  # data sets whose official test images are not in random order (MNIST: easier ones first)


MOST_CLASSES = 100_000  # that no names are given of: larger labels are something else
_held: dict[str, tuple[Splits, list[tuple]]] = {}  # what has been read, and as what


def _load(name: str) -> Splits:
    """Splits on the CPU, read once per process; once more if somebody has written into them."""
    if name not in _held or _state(_held[name][0]) != _held[name][1]:
        splits = _read_anew(name)
        _held[name] = splits, _state(splits)
    return _held[name][0]


def _state(splits: Splits) -> list[tuple]:
    """What changes when somebody writes into the images or labels, through PyTorch or NumPy."""
    tensors = [t for split in (splits.train, splits.validation, splits.test) for t in (split.images, split.labels)]
    return [(0 if t.is_inference() else t._version, _sum_of_bits(t.flatten())) for t in tensors]


def _sum_of_bits(t: Tensor) -> int:
    """Of a flat tensor; in eights of bytes, where these come out even, twenty times as fast as in fours."""
    return int(t.view(torch.int64 if t.nbytes % 8 == 0 else torch.int32).sum())


@torch.inference_mode(mode=False)  # who asks first does not decide what others may do with the images
def _read_anew(name: str) -> Splits:
    if outside.is_own_data(name):
        with located(outside.parsed(name).place):
            return _own(name)
    if name not in _SOURCES:
        raise UserError(f"unknown data set {quoted(name)}; known: {', '.join(_SOURCES)}; one of your own is named as "
                        "my_data.py:name, my_folder/ or my_file.safetensors")
    source, held = _SOURCES[name]
    train, test, classes = source()
    return Splits(*_carved(Split(*train), held, name), Split(*test), tuple(classes))


def _carved(whole: Split, held: int, name: str) -> tuple[Split, Split]:
    """Training images, and as many as are held back for validation, drawn with a fixed seed."""
    order = torch.randperm(len(whole), generator=stream(0, "validation split", name))
    held_back, kept = order[:held], order[held:]
    return (Split(whole.images[kept], whole.labels[kept]), Split(whole.images[held_back], whole.labels[held_back]))


def _own(name: str) -> Splits:
    """A data set from outside the library, checked."""
    place, part, content = outside.parsed(name)
    if part:
        with global_seed(0, "own data"):
            found = outside.called(name)
            given = {split: value for split in (*outside.SPLITS, "classes")
                     if (value := _of(found, split, name)) is not None}
    else:
        given = _read(outside.located(place, content))
    names = given.pop("classes", None)
    with suppress(TypeError):  # also of an array without dimensions
        names = names if names is None or isinstance(names, str) else tuple(names)
    if not isinstance(names, tuple | None):
        raise UserError(f"classes should be their names, one for each, not of type {type(names).__name__}")
    splits = {split: _checked_split(pair, split, names) for split, pair in given.items()}
    if not len(splits.get("test", ())):
        raise UserError("there are no test images: give images and labels under train, validation and test, or under "
                        "test alone; the documentation of sparserobust.data says how")
    if len(shapes := {tuple(split.images.shape[1:]) for split in splits.values()}) > 1:
        raise UserError(f"all images should have one shape (c, h, w), not {' and '.join(map(str, sorted(shapes)))}")
    test = splits["test"]
    train = splits.get("train", Split(test.images[:0], test.labels[:0]))
    if "validation" in splits:
        validation = splits["validation"]
    else:
        train, validation = _carved(train, -(-len(train) // 10), outside.counted(name))
    count = 1 + max(int(split.labels.max()) for split in splits.values() if len(split))
    if names is None and count > MOST_CLASSES:
        raise UserError(f"label {count - 1} is none: labels number the classes, counted from 0")
    return Splits(train, validation, test, tuple(map(str, range(count) if names is None else names)))


def _of(found: Any, what: str, name: str) -> Any:
    """An entry or attribute of what is called so, called if it is a method; None if there is none."""
    value = found.get(what) if isinstance(found, Mapping) else getattr(found, what, None)
    return outside.guarded(f"{what} of {name}", value, offered={}) if callable(value) else value


def _read(path: Path) -> dict[str, Any]:
    """Images and labels by split, of a folder of safetensors files or of one."""
    if path.is_dir():
        parts = {split: files.read_tensors(file)[0] for split in outside.SPLITS
                 if (file := path / f"{split}{outside.TENSORS}").exists()}
        tensors = {f"{split}_{name}": t for split, part in parts.items() for name, t in part.items()}
    else:
        tensors = files.read_tensors(path)[0]
    partners = {f"{split}_{one}": f"{split}_{other}" for split in outside.SPLITS
                for one, other in (("images", "labels"), ("labels", "images"))}
    wrong = [name for name in tensors if partners.get(name) not in tensors]
    if wrong:
        raise UserError(f"{quoted(wrong[0])} is unknown, or has no partner: a folder has train, validation and "
                        "test.safetensors with images and labels, a file has train_images, train_labels and so on")
    return {split: (tensors[f"{split}_images"], tensors[f"{split}_labels"]) for split in outside.SPLITS
            if f"{split}_images" in tensors}


def _checked_split(pair: Any, split: str, names: Any) -> Split:
    """Images (n, c, h, w) in [0, 1] and labels (n,) as the library has them: float32, int64, on the CPU."""
    if isinstance(pair, Split):
        pair = pair.images, pair.labels
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UserError(f"{split} should be (images, labels), not of type {type(pair).__name__}")
    try:
        images, labels = (torch.as_tensor(part) if isinstance(part, np.ndarray) else part for part in pair)
    except (TypeError, ValueError) as error:  # such as names in place of numbers
        raise UserError(f"{split}: images and labels should be numbers ({error})") from None
    if getattr(images, "dtype", None) in (torch.float16, torch.bfloat16):
        images = images.float()
    with located(split):
        inputs.check(images, labels, None if names is None else len(names))
    return Split(images.detach().float().cpu(), labels.detach().long().cpu())


def _tensors(images: np.ndarray, labels: np.ndarray, largest: float = 255) -> tuple[Tensor, Tensor]:
    """Pixel values up to `largest` (n, c, h, w) and labels, as tensors."""
    return torch.from_numpy(images.astype(np.float32)).div_(largest), torch.from_numpy(labels.astype(np.int64))


def _digits():
    """1,797 handwritten digits, 8x8, grey values 0 to 16 (Alpaydin & Kaynak 1998). It has no official split: 500 test
    images are drawn with a fixed seed."""
    from importlib.util import find_spec

    package = find_spec("sklearn")
    if package is None:
        raise UserError("the digits come with scikit-learn: pip install 'sparserobust[lab]'")
    # read as `sklearn.datasets.load_digits` does, without the seconds that importing scikit-learn takes
    table = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    images, labels = _tensors(table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1], largest=16)
    order = torch.randperm(len(labels), generator=stream(0, "test split", "digits"))
    test, rest = order[:500], order[500:]
    return (images[rest], labels[rest]), (images[test], labels[test]), [str(d) for d in range(10)]


def _cifar10():
    folder = data_folder() / "cifar-10-batches-bin"
    if not folder.exists():
        def download(root: Path):
            from torchvision.datasets.utils import download_and_extract_archive

            download_and_extract_archive(CIFAR10_URL, str(root), md5=CIFAR10_MD5, remove_finished=True)

        _fetched(lambda: _moved(folder, CIFAR10_FILES, download), "CIFAR-10",
                 f"the six .bin files of the official binary archive into {folder}")
    batches = [np.frombuffer(_checked(folder / f, md5), np.uint8).reshape(-1, 3073) for f, md5 in CIFAR10_FILES.items()]
    train, test = np.concatenate(batches[:5]), batches[5]
    read = lambda rows: _tensors(rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0])  # noqa: E731
    return read(train), read(test), CIFAR10_CLASSES


def _idx(name: str):
    folder = data_folder() / name / "raw"
    if not all((folder / f).exists() for f in IDX_FILES[name]):
        def download(root: Path):
            from torchvision import datasets

            getattr(datasets, name)(root, download=True)

        _fetched(lambda: _moved(folder, IDX_FILES[name], download), name,
                 f"the four unpacked idx files into {folder}")

    def read(images, labels):
        return _tensors(np.frombuffer(_checked(folder / images, IDX_FILES[name][images]), np.uint8, offset=16)
                        .reshape(-1, 1, 28, 28),
                        np.frombuffer(_checked(folder / labels, IDX_FILES[name][labels]), np.uint8, offset=8))

    files = list(IDX_FILES[name])
    return read(*files[:2]), read(*files[2:]), [str(c) for c in range(10)]


def _torchvision(name: str):
    """CIFAR-100 and SVHN, read and md5-checked by torchvision itself."""
    parts = [{"train": True}, {"train": False}] if name == "CIFAR100" else [{"split": "train"}, {"split": "test"}]
    read = []
    for part in parts:
        def fetch(part=part, download=True):
            from torchvision import datasets

            return getattr(datasets, name)(data_folder(), download=download, **part)

        try:
            d = fetch(download=False)
        except (ImportError, RuntimeError, OSError):  # it is not here, or can't be read
            d = _fetched(fetch, name, f"its official files into {data_folder()}, as torchvision lays them out")
        images, labels = np.asarray(d.data), np.asarray(d.targets if name == "CIFAR100" else d.labels)
        read.append(_tensors(images.transpose(0, 3, 1, 2) if name == "CIFAR100" else images, labels))
    classes = d.classes if name == "CIFAR100" else [str(c) for c in range(10)]
    return *read, classes


def _moved(folder: Path, names: Iterable[str], download: Callable[[Path], object]) -> None:
    """Download these files of a folder beside the data sets, then move those there that are not there yet (another
    process may just have done it): what is not whole is never seen."""
    if all((folder / name).exists() for name in names):
        return
    prefix = f".download-{'-'.join(folder.relative_to(data_folder()).parts)}."
    for left_over in data_folder().glob(f"{prefix}*"):  # by a process that was killed; those alive wait for the lock
        rmtree(left_over)
    with TemporaryDirectory(dir=data_folder(), prefix=prefix) as root:
        download(Path(root))
        made = Path(root) / folder.relative_to(data_folder())
        if not folder.exists():
            folder.parent.mkdir(exist_ok=True)
            made.rename(folder)
        for name in names:
            if not (folder / name).exists():
                (made / name).rename(folder / name)


def _fetched(download: Callable[[], Any], name: str, remedy: str) -> Any:
    """Run a download, one process at a time; whatever goes wrong is one line that says what to put where."""
    place = writable(data_folder()) / f".{name}.lock"
    try:
        from filelock import FileLock

        with FileLock(place):
            return download()
    except ImportError:
        raise UserError(f"downloading {name} needs torchvision: pip install 'sparserobust[lab]'") from None
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        why = " ".join(str(getattr(error, "reason", error)).split())
        raise UserError(f"{name} is not here and could not be downloaded ({why}): put {remedy}") from None


def _checked(path: Path, md5: str) -> bytes:
    """The bytes of a file, if they are the official ones."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): put the official file there, or delete its folder to "
                        "download it anew") from None
    if hashlib.md5(content).hexdigest() != md5:
        raise UserError(f"{path} is damaged (its md5 is not the official one) and was not used: "
                        "delete its folder to download it anew")
    return content


_SOURCES = {  # name: how to read it, size of the validation split
    "digits": (_digits, 97),
    "mnist": (lambda: _idx("MNIST"), 5000),
    "fashion_mnist": (lambda: _idx("FashionMNIST"), 5000),
    "cifar10": (_cifar10, 5000),
    "cifar100": (lambda: _torchvision("CIFAR100"), 5000),
    "svhn": (lambda: _torchvision("SVHN"), 5000),
}

# ------------------------------------------------------------------------------------------------- a sample


@dataclass(frozen=True)
class Sample(Split):
    """Images with the names of their classes."""

    classes: tuple[str, ...]


SAMPLE_SHA256 = "d435162b171005a305e4ccd6dc36808363a7af848d4dc98b4cbacf8b63ecbf4d"  # of both files


def sample() -> Sample:
    """A hundred CIFAR-10 test images, ten of each class, that come along (`data/sample`): images (100, 3, 32, 32) and
    labels (100,), on the CPU, the same as `load("cifar10").test.sample(100)`. `UserError` if their files are not here
    or were altered."""
    folder = sample_folder()
    try:
        from PIL import Image

        sheet, table = (folder / "images.png").read_bytes(), (folder / "labels.csv").read_bytes()
    except ImportError:
        raise UserError("reading the sample needs pillow: pip install 'sparserobust[lab]'") from None
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror}): restore it with git checkout") from None
    table = table.replace(b"\r\n", b"\n")
    if hashlib.sha256(sheet + table).hexdigest() != SAMPLE_SHA256:
        raise UserError(f"{folder} is damaged and was not used: restore it with git checkout")
    pixels = np.asarray(Image.open(io.BytesIO(sheet)))  # ten rows of ten images
    tiles = pixels.reshape(10, 32, 10, 32, 3).transpose(0, 2, 4, 1, 3).reshape(100, 3, 32, 32)
    labels = np.array([int(row.split(",")[1]) for row in table.decode().splitlines()[1:]])
    return Sample(*_tensors(tiles, labels), CIFAR10_CLASSES)
