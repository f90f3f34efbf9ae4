"""Data sets against their published formats, and augmentation against every crop there is."""

import hashlib
import os
import shutil
import subprocess
import sys
import urllib.error
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparserobust import Data, data, paths
from sparserobust.data import Split

OFFICIAL = {"cifar10": (45000, 5000, 10000, (3, 32, 32)), "mnist": (55000, 5000, 10000, (1, 28, 28))}


@pytest.fixture
def fresh():
    """No data set is remembered, before and after."""
    data._held.clear()
    yield
    data._held.clear()


def records(*splits, largest=255) -> list[bytes]:
    """Pixels and label of every image as bytes, sorted."""
    found = []
    for split in splits:
        pixels = split.images.mul(largest).round().byte().flatten(1).numpy()
        found += [row.tobytes() + bytes([label]) for row, label in zip(pixels, split.labels.tolist(), strict=True)]
    return sorted(found)


# ---------------------------------------------------------------------------------------------- digits


def test_digits():
    from sklearn.datasets import load_digits

    splits = data.load("digits")
    parts = (splits.train, splits.validation, splits.test)
    assert [len(p) for p in parts] == [1200, 97, 500]
    assert splits.image_shape == (1, 8, 8)
    assert splits.classes == tuple("0123456789")
    for part in parts:
        assert part.images.shape == (len(part), 1, 8, 8)
        assert (part.images.dtype, part.labels.dtype) == (torch.float32, torch.int64)
        assert (part.images.min(), part.images.max()) == (0, 1)
        assert part.labels.bincount(minlength=10).min() >= len(part) // 25
    raw = load_digits()  # every image once, with its label: so the three parts are disjoint
    assert records(*parts, largest=16) == sorted(
        row.tobytes() + bytes([label]) for row, label in zip(raw.data.astype(np.uint8), raw.target, strict=True))


@pytest.mark.parametrize("write", [
    lambda split: split.images.mul_(0.5), lambda split: split.images[3, 0, 2].fill_(0.3),
    lambda split: split.images.copy_(split.images.flip(3)), lambda split: split.labels.__setitem__(0, 3),
    lambda split: np.multiply(split.images.numpy(), 0.5, out=split.images.numpy())],
    ids=["scaled", "one row", "mirrored", "label", "numpy"])
@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_images_that_somebody_wrote_into_are_read_anew(write, part):
    data._held.clear()
    before = getattr(data.load("digits"), part)
    kept = before.images.clone(), before.labels.clone()
    assert getattr(data.load("digits"), part).images.data_ptr() == before.images.data_ptr()  # read once
    write(before)
    after = getattr(data.load("digits"), part)
    assert torch.equal(after.images, kept[0]) and torch.equal(after.labels, kept[1])


def test_splits_are_fixed_and_train_images_takes_the_first(fresh):
    torch.manual_seed(1)
    one = data.load("digits")
    data._held.clear()
    torch.manual_seed(2)
    other, few = data.load(Data()), data.load(Data(train_images=50))
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(one, part).images, getattr(other, part).images)
        assert torch.equal(getattr(one, part).labels, getattr(other, part).labels)
        if part != "train":
            assert torch.equal(getattr(few, part).images, getattr(one, part).images)
    assert len(few.train) == 50
    assert torch.equal(few.train.images, one.train.images[:50])
    assert torch.equal(few.train.labels, one.train.labels[:50])
    # the parts are drawn, not cut: the source's own order is nearly gone
    assert sum((one.test.labels[1:] - one.test.labels[:-1]) % 10 == 1) < 100


def test_what_is_not_there_is_refused(refusal):
    assert "digits, mnist" in refusal(data.load, "digit")
    assert "1200" in refusal(data.load, Data(train_images=1201))


@pytest.mark.parametrize("classes", [10, "ab", 2.5])
def test_classes_of_ones_own_are_names(classes, refusal):
    split = data.load("digits").test
    assert "classes are their names" in refusal(data.Splits, split, split, split, classes)
    assert data.Splits(split, split, split, np.arange(10)).classes == tuple("0123456789")
    assert data.Splits(split, split, split, None).classes == ()


# --------------------------------------------------------------------------------------------- some classes


@pytest.mark.parametrize("classes", [(1, 7), (7, 1), (9, 0, 4)])
def test_only_the_chosen_classes_renumbered_as_they_were_given(classes):
    whole, some = data.load("digits"), data.load(Data(classes=classes))
    assert some.classes == tuple(str(c) for c in classes) and some.image_shape == whole.image_shape
    for part in ("train", "validation", "test"):
        of_whole, of_some = getattr(whole, part), getattr(some, part)
        kept = [i for i, label in enumerate(of_whole.labels.tolist()) if label in classes]
        assert torch.equal(of_some.images, of_whole.images[kept])  # in the order they had
        assert [classes[label] for label in of_some.labels.tolist()] == of_whole.labels[kept].tolist()
        assert of_some.labels.dtype == torch.int64


def test_classes_are_chosen_before_training_images_are_counted(refusal):
    whole, few = data.load(Data(classes=(3, 8))), data.load(Data(classes=(3, 8), train_images=50))
    assert len(few.train) == 50 and torch.equal(few.train.images, whole.train.images[:50])
    assert len(few.test) == len(whole.test)
    assert f"only {len(whole.train)} training images" in refusal(data.load, Data(classes=(3, 8), train_images=300))


@pytest.mark.parametrize("classes", [(4,), (4, 4), (1, 7, 1)])
def test_one_class_or_one_twice_is_no_task(classes, refusal):
    assert "two different ones at least" in refusal(Data, classes=classes)


@pytest.mark.parametrize("classes", [(1, 10), (-1, 3)])
def test_a_class_that_is_not_there_is_refused(classes, refusal):
    assert "digits has those from 0 to 9" in refusal(data.load, Data(classes=classes))


@pytest.mark.parametrize("settings", [Data(), Data(classes=(3, 8)), Data(classes=(9, 0, 4))])
def test_the_number_of_classes_is_known_without_the_files(settings):
    assert data.classes(settings) == len(data.load(settings).classes)
    assert {name: data.classes(Data(name=name)) for name in data._SOURCES} == dict.fromkeys(data._SOURCES, 10) | {
        "cifar100": 100}


def test_all_classes_are_the_default_and_leave_the_identity():
    assert Data().plain() == {} and Data(classes=()).identity == Data().identity
    assert Data().identity == "38ec5f7d16e7"  # as of commit 3bd9911, which knows no classes
    assert len({Data().identity, Data(classes=(1, 7)).identity, Data(classes=(7, 1)).identity}) == 3
    assert Data.parse({"name": "digits", "classes": [1, 7]}) == Data(classes=(1, 7))


# ---------------------------------------------------------------------------------------------- samples

SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=12)  # of classes


def numbered(sizes: list[int], seed: int = 0) -> Split:
    """So many images of each class, in random order; the only pixel of an image is its number."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    return Split(torch.arange(len(labels)).view(-1, 1, 1, 1), labels)


def numbers(sample: Split) -> list[int]:
    return sample.images.flatten().tolist()


@given(SIZES, st.integers(0, 9), st.data())
def test_the_sample_of_fewer_images_is_the_beginning_of_that_of_more(sizes, seed, draw):
    split = numbered(sizes, seed)
    fewer, more = sorted(draw.draw(st.lists(st.integers(1, len(split)), min_size=2, max_size=2)))
    assert len(split.sample(fewer)) == fewer and len(split.sample(more)) == more
    assert numbers(split.sample(fewer)) == numbers(split.sample(more))[:fewer]


@given(SIZES, st.integers(0, 9), st.data())
def test_no_image_is_drawn_twice_and_each_keeps_its_label(sizes, seed, draw):
    split = numbered(sizes, seed)
    sample = split.sample(draw.draw(st.integers(1, len(split))))
    assert len(set(numbers(sample))) == len(sample)
    assert torch.equal(sample.labels, split.labels[sample.images.flatten()])
    assert sample.images.shape[1:] == split.images.shape[1:] and sample.images.dtype == split.images.dtype
    for everything in (None, len(split), len(split) + 5):
        assert sorted(numbers(split.sample(everything))) == list(range(len(split)))


def furthest(split: Split, sizes: list[int]) -> list[float]:
    """By class, the largest difference of its count among the first n images that are drawn from n times its share,
    over all n."""
    labels, counts, worst = split.sample(None).labels.tolist(), [0] * len(sizes), [0.0] * len(sizes)
    for n, label in enumerate(labels, 1):
        counts[label] += 1
        worst = [max(w, abs(count - n * size / len(labels))) for w, count, size in zip(worst, counts, sizes,
                                                                                       strict=True)]
    return worst


@given(SIZES, st.integers(0, 9))
def test_any_number_of_images_has_of_each_class_its_share(sizes, seed):
    for size, distance in zip(sizes, furthest(numbered(sizes, seed), sizes), strict=True):
        assert distance <= 1 + size / sum(sizes) * (len(sizes) - 2) + 1e-9


@given(st.integers(2, 12), st.integers(1, 60))
def test_classes_of_equal_size_have_their_shares_to_within_two(classes, size):
    sizes = [size] * classes
    assert max(furthest(numbered(sizes), sizes)) < 2


@pytest.mark.parametrize("classes", [(), (1, 7), (9, 0, 4)])
def test_digits_are_drawn_with_the_shares_of_their_classes(classes):
    splits = data.load(Data(classes=classes))
    for split in (splits.test, splits.validation):
        assert max(furthest(split, split.labels.bincount().tolist())) < 2


def test_what_is_drawn_is_always_the_same_whatever_was_drawn_before():
    expected = {n: numbers(numbered([30, 20, 50]).sample(n)) for n in (7, 60, None)}
    for order in ((7, 60, None), (None, 60, 7), (60, 7, 7, None)):
        split = numbered([30, 20, 50])
        torch.manual_seed(len(order))
        before = torch.get_rng_state()
        assert all(numbers(split.sample(n)) == expected[n] for n in order)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="there is no GPU"))])
def test_what_is_drawn_does_not_depend_on_the_device_nor_on_the_pixels(where):
    split = numbered([30, 20, 50])
    moved = split.to(where).sample(40)
    assert moved.images.device.type == moved.labels.device.type == where
    assert numbers(moved) == numbers(split.sample(40))
    other = Split(torch.rand(100, 3, 2, 2), split.labels)
    assert torch.equal(other.sample(40).images, other.images[numbers(split.sample(40))])


def test_what_is_drawn_comes_from_everywhere_and_not_from_the_beginning():
    """Places of the first ten of many test sets of one class and of two, as shares of their sizes: uniform."""
    for sizes in ([1], [1, 1]):
        places = torch.cat([numbered([n * k for k in sizes]).sample(10).images.flatten() / (n * len(sizes))
                            for n in range(100, 400)])
        deciles = torch.histc(places, 10, 0, 1)
        assert deciles.min() > 240 and deciles.max() < 360  # 300 each, give or take 16
    assert data.load("digits").test.sample(60).labels.tolist() != data.load("digits").test.labels[:60].tolist()


def test_data_sets_whose_test_images_are_in_order_are_known():
    assert set(data.ORDERED) <= set(data._SOURCES) and "mnist" in data.ORDERED and "cifar10" not in data.ORDERED


# ---------------------------------------------------------------------------------------- augmentation


def crops(images, pad: int, flip: bool) -> dict:
    """All crops of padded (and flipped) images, by row, column and flip."""
    n, c, height, width = images.shape
    padded = torch.zeros(n, c, height + 2 * pad, width + 2 * pad)
    padded[:, :, pad:pad + height, pad:pad + width] = images
    found = {}
    for row, column, turned in product(range(2 * pad + 1), range(2 * pad + 1), {False, flip}):
        crop = padded[:, :, row:row + height, column:column + width]
        found[row, column, turned] = crop.flip(3) if turned else crop
    return found


def batch(n: int):
    return torch.rand(n, 2, 4, 5, generator=torch.Generator().manual_seed(0)) + 0.1


def augmented(images, seed=0, **settings):
    return data.augmented(images, Data(**settings), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("pad", "flip"), [(2, True), (2, False), (1, True), (0, True)])
def test_each_image_is_a_crop_of_itself_and_every_crop_occurs(pad, flip):
    images = batch(900)
    result = augmented(images, crop_padding=pad, flip=flip)
    hits = {how: (crop == result).flatten(1).all(1) for how, crop in crops(images, pad, flip).items()}
    found = torch.stack(list(hits.values()))
    assert (found.sum(0) == 1).all()
    expected = 900 / len(hits)
    assert (found.sum(1) > expected / 3).all()
    assert (found.sum(1) < expected * 2).all()


def test_same_generator_same_images_and_not_another():
    images = batch(50)
    one, same, other = (augmented(images, seed, crop_padding=2, flip=True) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(images, batch(50))


def test_no_settings_no_change_and_no_chance_is_drawn():
    images, generator = batch(5), torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert data.augmented(images, Data(), generator) is images
    assert torch.equal(generator.get_state(), before)


def test_result_is_channels_last():
    result = augmented(batch(5), crop_padding=2, flip=True)
    assert result.shape == (5, 2, 4, 5)
    assert result.is_contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------------------------------ CIFAR-10 and idx files


@pytest.fixture
def write(fresh, tmp_path, monkeypatch):
    """Put files of a data set into an empty data folder, as the official ones."""
    monkeypatch.setenv("SPARSEROBUST_DATA", str(tmp_path))

    def write(folder, sums: dict, contents: list) -> dict:
        (tmp_path / folder).mkdir(parents=True)
        for name, content in zip(list(sums), contents, strict=True):
            (tmp_path / folder / name).write_bytes(content)
            monkeypatch.setitem(sums, name, hashlib.md5(content).hexdigest())
        return {name: tmp_path / folder / name for name in sums}

    return write


@pytest.fixture
def cifar10(write, monkeypatch) -> dict:
    """Six files of 20 records whose first two bytes tell label and number."""
    monkeypatch.setitem(data._SOURCES, "cifar10", (data._cifar10, 30))
    chance = np.random.default_rng(0)
    content = chance.integers(0, 256, (6, 20, 3073), np.uint8)
    content[:, :, 0] = chance.integers(0, 10, (6, 20))
    content[:, :, 1] = np.arange(120).reshape(6, 20)
    return write("cifar-10-batches-bin", data.CIFAR10_FILES, [c.tobytes() for c in content])


@pytest.fixture
def idx(write, monkeypatch):
    """The four files of MNIST or FashionMNIST, 40 and 20 images, whose first pixel tells the number."""
    def idx(name) -> dict:
        monkeypatch.setitem(data._SOURCES, name.lower(), (lambda: data._idx(name), 10))
        chance, contents = np.random.default_rng(0), []
        for n in (40, 20):
            images, labels = chance.integers(0, 256, (n, 28, 28), np.uint8), chance.integers(0, 10, n, np.uint8)
            images[:, 0, 0] = np.arange(n)
            contents += [bytes([0, 0, 8, 3, 0, 0, 0, n, 0, 0, 0, 28, 0, 0, 0, 28]) + images.tobytes(),
                         bytes([0, 0, 8, 1, 0, 0, 0, n]) + labels.tobytes()]
        return write(f"{name}/raw", data.IDX_FILES[name], contents)

    return idx


def assert_decoded(split, record) -> list[int]:
    """Each image is that of `record(number)` (label, and pixels as bytes in file order); returns the numbers."""
    numbers = []
    for image, label in zip(split.images, split.labels, strict=True):
        number = round(float(image[0, 0, 0]) * 255)
        expected_label, pixels = record(number)
        assert label == expected_label
        expected = torch.tensor(list(pixels[:image.numel()])).view(image.shape) / 255  # planes, then rows
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-7)
        numbers.append(number)
    return numbers


def test_cifar10_is_decoded_pixel_by_pixel(cifar10):
    raw = [path.read_bytes() for path in cifar10.values()]

    def record(number):
        content = raw[number // 20][number % 20 * 3073:][:3073]
        return content[0], content[1:]

    splits = data.load("cifar10")
    train, validation, test = (assert_decoded(s, record) for s in (splits.train, splits.validation, splits.test))
    assert sorted(train + validation) == list(range(100))
    assert len(validation) == 30
    assert test == list(range(100, 120))
    assert validation != sorted(validation)
    assert splits.image_shape == (3, 32, 32)
    assert 0 <= splits.train.images.min() < 0.01 < 0.99 < splits.train.images.max() <= 1
    assert splits.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_idx_files_are_decoded_pixel_by_pixel(name, idx):
    raw = [path.read_bytes() for path in idx(name).values()]
    train, test = (lambda n, images=raw[i], labels=raw[i + 1]: (labels[8 + n], images[16 + n * 784:]) for i in (0, 2))
    splits = data.load(name.lower())
    assert sorted(assert_decoded(splits.train, train) + assert_decoded(splits.validation, train)) == list(range(40))
    assert len(splits.validation) == 10
    assert assert_decoded(splits.test, test) == list(range(20))


def test_idx_files_are_read_without_a_warning(idx):
    idx("MNIST")
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            data.load("mnist")
    finally:
        torch.set_warn_always(False)


@pytest.mark.parametrize("which", range(6))
def test_a_flipped_byte_is_named_and_refused(which, cifar10, refusal):
    path = list(cifar10.values())[which]
    content = bytearray(path.read_bytes())
    content[3072 * which] ^= 1
    path.write_bytes(content)
    assert str(path) in refusal(data.load, "cifar10")
    assert path.exists()


def test_files_that_changed_places_are_refused(cifar10, refusal):
    one, other = list(cifar10.values())[:2]
    one.rename(one.with_suffix(".x"))
    other.rename(one)
    one.with_suffix(".x").rename(other)
    assert one.name in refusal(data.load, "cifar10")


def test_a_missing_file_is_named(cifar10, refusal):
    cifar10["data_batch_3.bin"].unlink()
    assert str(cifar10["data_batch_3.bin"]) in refusal(data.load, "cifar10")


def test_a_damaged_idx_file_is_named(idx, refusal):
    path = idx("MNIST")["t10k-labels-idx1-ubyte"]
    path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in refusal(data.load, "mnist")


@pytest.mark.parametrize("error", [urllib.error.URLError("no network\nhere"), OSError(28, "No space left on device"),
                                   RuntimeError("File not found or corrupted.")])
@pytest.mark.parametrize(("name", "patched", "folder"), [
    ("cifar10", "torchvision.datasets.utils.download_and_extract_archive", "cifar-10-batches-bin"),
    ("mnist", "torchvision.datasets.mnist.download_and_extract_archive", "MNIST/raw"),
])  # fmt: skip
def test_no_network_is_one_line_that_names_the_folder(name, patched, folder, error, fresh, tmp_path, monkeypatch,
                                                      refusal):
    def unreachable(*args, **kwargs):
        raise error

    monkeypatch.setenv("SPARSEROBUST_DATA", str(tmp_path))
    monkeypatch.setattr(patched, unreachable)
    message = refusal(data.load, name)
    assert str(tmp_path / folder) in message
    assert str(getattr(error, "reason", error)).split()[0] in message


UNPACKS = """
import sys, time
from pathlib import Path
from torchvision.datasets import utils

def slowly(url, root, md5, remove_finished):
    with open(sys.argv[1], "a") as downloads:
        downloads.write("one\\n")
    folder = Path(root) / "cifar-10-batches-bin"
    folder.mkdir()
    for path in sorted(Path(sys.argv[2]).iterdir()):
        time.sleep(0.3)
        (folder / path.name).write_bytes(path.read_bytes())

utils.download_and_extract_archive = slowly
from sparserobust import data
data.CIFAR10_FILES = eval(sys.argv[3])
data._SOURCES["cifar10"] = (data._cifar10, 30)
print(len(data.load("cifar10").train))
"""


def test_of_two_processes_that_want_the_same_data_set_one_downloads_and_the_other_waits(cifar10, tmp_path):
    """Neither sees files that are still being written."""
    made = next(iter(cifar10.values())).parent
    words = [sys.executable, "-c", UNPACKS, str(tmp_path / "downloads"), str(made), repr(data.CIFAR10_FILES)]
    where = os.environ | {"SPARSEROBUST_DATA": str(tmp_path / "elsewhere")}
    both = [subprocess.Popen(words, env=where, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)]
    told = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert (tmp_path / "downloads").read_text() == "one\n"
    assert not list((tmp_path / "elsewhere").glob(".download*"))


def test_files_that_are_here_stay_when_others_are_downloaded(idx, monkeypatch, refusal):
    folder = next(iter(idx("MNIST").values())).parent
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / min(content)).unlink()

    def download(root, download):
        made = root / "MNIST" / "raw"
        made.mkdir(parents=True)
        for name, bytes_ in content.items():
            (made / name).write_bytes(bytes_)

    monkeypatch.setattr("torchvision.datasets.MNIST", download)
    killed, alive = (folder.parents[1] / f".download-{name}-raw.x" for name in ("MNIST", "FashionMNIST"))
    for left_over in (killed, alive):  # of this data set, by a process that was killed; of another
        (left_over / "MNIST/raw").mkdir(parents=True)
    assert len(data.load("mnist").test)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
    assert not killed.exists() and alive.exists()


def test_an_unwritable_data_folder_is_named_before_any_download(fresh, tmp_path, monkeypatch, refusal):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPARSEROBUST_DATA", str(tmp_path / "file" / "data"))
    assert str(tmp_path / "file" / "data") in refusal(data.load, "cifar10")


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_real_files(name, fresh, monkeypatch):
    folder = {"cifar10": "cifar-10-batches-bin", "mnist": "MNIST/raw"}[name]
    if not (paths.PROJECT / "data" / folder).exists():
        pytest.skip(f"{name} is not in {paths.PROJECT / 'data'}")
    monkeypatch.setenv("SPARSEROBUST_DATA", str(paths.PROJECT / "data"))
    splits = data.load(name)
    parts = (splits.train, splits.validation, splits.test)
    assert (*map(len, parts), splits.image_shape) == OFFICIAL[name]
    for part in parts:
        counts = part.labels.bincount(minlength=10) / len(part)
        assert 0.08 < counts.min() <= counts.max() < 0.13
    assert max(furthest(splits.test, splits.test.labels.bincount().tolist())) < 2
    assert data.classes(Data(name=name)) == len(splits.classes) == 10
    if name == "cifar10":
        raw = [(paths.PROJECT / "data" / folder / f).read_bytes() for f in list(data.CIFAR10_FILES)[:5]]
        assert records(splits.train, splits.validation) == sorted(
            r[i + 1:i + 3073] + r[i:i + 1] for r in raw for i in range(0, len(r), 3073))


# -------------------------------------------------------------------------------------- the sample that comes along


def test_the_sample_is_the_one_that_the_official_test_images_give():
    if not (paths.data_folder() / "cifar-10-batches-bin").exists():
        pytest.skip("CIFAR-10 is not here")
    sample, drawn = data.sample(), data.load("cifar10").test.sample(100)
    assert torch.equal(sample.images, drawn.images) and torch.equal(sample.labels, drawn.labels)


def test_the_sample_has_ten_images_of_each_class_and_its_table_names_them():
    sample = data.sample()
    assert sample.images.shape == (100, 3, 32, 32) and (sample.images.dtype, sample.labels.dtype) == (torch.float32,
                                                                                                     torch.int64)
    assert (sample.images.min(), sample.images.max()) == (0, 1) and sample.labels.bincount().tolist() == [10] * 10
    table = [row.split(",") for row in (paths.sample_folder() / "labels.csv").read_text().splitlines()[1:]]
    assert [name for _, _, name in table] == [sample.classes[label] for label in sample.labels]
    assert len({number for number, _, _ in table}) == 100


@pytest.mark.parametrize("name", ["images.png", "labels.csv"])
def test_a_sample_that_was_altered_or_is_gone_is_not_used(name, tmp_path, monkeypatch, refusal):
    copied = shutil.copytree(paths.sample_folder(), tmp_path / "sample")
    monkeypatch.setattr(data, "sample_folder", lambda: copied)
    assert len(data.sample()) == 100
    content = bytearray((copied / name).read_bytes())
    content[-10] ^= 1
    (copied / name).write_bytes(content)
    assert "damaged" in refusal(data.sample)
    (copied / name).unlink()
    assert name in refusal(data.sample)
