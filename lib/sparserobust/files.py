"""Reading and writing files so that a crash leaves either the old file or the new one, never half of one."""

import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path

from torch import Tensor

from sparserobust.errors import UserError


class Corrupt(Exception):
    """A file is there but is not what was once written."""


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
    """Write aside, then rename. A full disk or a read-only folder is one clear line; the old file, if any, stays."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with one_line(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise


def six_digits(value: float) -> float:
    """The value with six significant digits, as long lists of numbers are stored."""
    return float(f"{value:.6g}")


def write_json(path: Path, content) -> None:
    """As `write`, keys in alphabetical order."""
    write(path, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def read_json(path: Path):
    """Parsed content; `Corrupt` if it is no JSON."""
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise Corrupt(f"{path} is not valid JSON") from None


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """As safetensors: nothing is ever pickled."""
    write(path, packed(tensors, metadata))


def packed(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """The content of a safetensors file."""
    from safetensors.torch import save

    return save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata)


def load_tensors(path: Path, device="cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata; `Corrupt` if the file was cut or altered."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise Corrupt(f"{path} cannot be read ({error})") from None


def sha256(path: Path) -> str:
    """Of the content, in hexadecimal digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
