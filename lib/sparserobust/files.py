"""Reading and writing files so that a crash leaves either the old file or the new one, never half of one."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import platform
import shutil
from pathlib import Path

import torch
from torch import Tensor

from sparserobust.errors import UserError


class Corrupt(UserError):
    """A file that should be there is not, or is not what was once written."""


@contextlib.contextmanager
def one_line(path: Path):
    """What the disk refuses inside the block, where `path` is written, is a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left for {path}: free some and start again, finished work is kept") from None
        raise UserError(f"cannot write {path} ({error.strerror}): finished work is kept") from None


def write(path: Path, content: bytes) -> None:
    """Write aside, then rename. A full disk or a read-only folder is one clear line; the old file, if any, stays. What
    earlier writes of this file left aside, since they were killed, is removed."""
    beside = f".{path.name}.{platform.node()}."
    aside = path.with_name(f"{beside}{os.getpid()}")
    with one_line(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f"{glob.escape(beside)}*"):
                if not _alive(left.name.removeprefix(beside)):
                    left.unlink(missing_ok=True)
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise


def _alive(process: str) -> bool:
    """Whether a process of this number may be running here."""
    if os.name != "posix" or not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def six_digits(value: float) -> float:
    """The value with six significant digits, as long lists of numbers are stored."""
    return float(f"{value:.6g}")


def write_json(path: Path, content) -> None:
    """As `write`, keys in alphabetical order. `UserError` for a number that is not finite, which JSON does not know."""
    write(path, (_json(content, path, indent=1) + "\n").encode())


def read_json(path: Path):
    """Parsed content; `Corrupt` if there is no such file or it is no JSON."""
    try:
        return json.loads(_content(path), parse_constant=_not_json)
    except (ValueError, RecursionError):
        raise Corrupt(f"{path} is not valid JSON") from None


def sealed(content: dict, what: object) -> dict:
    """JSON-ready content with the hash of all of it under `sha256`, so that `check_seal` sees any change. `UserError`
    for a number that is not finite in it, that is in `what`."""
    content = json.loads(_json(content, what))
    return content | {"sha256": _digest(content)}


def check_seal(content: object, what: object) -> dict:
    """The content if it is as it was sealed; `Corrupt` otherwise, also if it never was."""
    if not isinstance(content, dict) or content.get("sha256") != _digest(
            {key: value for key, value in content.items() if key != "sha256"}):
        raise Corrupt(f"{what} is not what was once written")
    return content


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _json(content, what: object, indent: int | None = None) -> str:
    try:
        return json.dumps(content, indent=indent, sort_keys=True, allow_nan=False)
    except ValueError:
        raise UserError(f"{what}: one of its numbers is not finite, so that it is not stored") from None
    except TypeError as error:  # such as a tensor in place of a number
        raise UserError(f"{what} cannot be stored as JSON: {error}") from None


def _not_json(name: str):
    raise ValueError(f"{name} is no number of JSON")


def short_hash(content: object) -> str:
    """Sixteen hexadecimal digits that name plain data, by what its `repr` says."""
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def tensor_bytes(tensor: Tensor) -> bytes:
    """The values of a dense tensor, as they lie in memory in the order of its shape."""
    return tensor.detach().resolve_neg().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """As safetensors: nothing is ever pickled. With metadata also a hash of all is written."""
    write(path, packed(tensors, metadata and metadata | {"sha256": _hash(tensors, metadata)}))


def packed(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The content of a safetensors file."""
    from safetensors.torch import save

    found, places = {}, set()
    for name, t in tensors.items():
        t = t.detach().cpu().contiguous()
        place = t.untyped_storage().data_ptr()
        found[name] = t.clone() if place in places else t  # tied weights are written under each of their names
        places.add(place)
    return save(found, metadata)


def load_tensors(path: Path, device="cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata; `Corrupt` if the file was cut, or if it has metadata and anything in it was altered."""
    tensors, metadata = read_tensors(path, device)
    if metadata and metadata.pop("sha256", None) != _hash(tensors, metadata):
        raise Corrupt(f"{path} is not what was once written")
    return tensors, metadata


def read_tensors(path: Path, device="cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The same of a safetensors file that anybody has written, without a hash."""
    from safetensors import SafetensorError, safe_open

    _content(path, 0)
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise Corrupt(f"{path} cannot be read ({error})") from None


def _hash(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Of tensors with their names, and of metadata."""
    return hashlib.sha256(packed(tensors) + json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Of the content, in hexadecimal digits; `Corrupt` if there is no such file."""
    return hashlib.sha256(_content(path)).hexdigest()


def _content(path: Path, size: int = -1) -> bytes:
    """The first bytes of a file, or all. `Corrupt` if it is none, `UserError` if it is not for this user to read."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise Corrupt(f"{path} is not there, or is no file") from None
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): mend that, or name another folder") from None


def discard(path: Path) -> None:
    """Remove a file or a whole folder, if it is there."""
    with one_line(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
