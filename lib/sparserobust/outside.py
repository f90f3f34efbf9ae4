"""What is outside the library and is named in settings: a file, a folder, or a function or class of yours.

    my_net.py:build                  a function, class or network in a file; with arguments my_net.py:build(width=8)
    torchvision.models:resnet18      the same in a package
    my_weights.pt, my_images/        a file or a folder

Settings add a hash of the content, as in `my_weights.pt@2c26b46b68ffc68f`: it enters their identity, the place does
not, and another content under the same name is refused. The content of code is the text of its file and of the files of
yours that this imports from its own folder or package; not what it reads, nor installed packages.
"""

import ast
import hashlib
import importlib
import inspect
import linecache
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NamedTuple

from torch import nn

from sparserobust import paths
from sparserobust.errors import UserError, quoted
from sparserobust.inputs import copied
from sparserobust.seeding import global_seed

SPLITS = ("train", "validation", "test")
TENSORS = ".safetensors"


class Name(NamedTuple):
    """What a name says: a file, folder or module; what of it; and the hash of its content, if that is given."""

    place: str
    part: str
    content: str


def parsed(name: str) -> Name:
    """The parts of a name, empty where it has none. `UserError` if it is empty."""
    found = re.fullmatch(r"(.+?)(?::([A-Za-z_][\w.-]*(?:\(.*\))?))?(?:@([0-9a-f]{16}))?", name, re.DOTALL)
    if found is None:
        raise UserError("a name is empty: give that of a file, or my_file.py:name")
    return Name(*(part or "" for part in found.groups()))


def is_pinned(name: str) -> bool:
    """Whether a hash of the content is part of the name."""
    return bool(name) and parsed(name).content != ""


def is_own_data(name: str) -> bool:
    """Whether this names a data set outside the library: code, a folder (which has a slash), or a safetensors file."""
    return is_pinned(name) or any(sign in name for sign in (":", "/", os.sep)) or name.endswith((TENSORS, ".py"))


def counted(name: str) -> str:
    """What of a name enters an identity: all but the place, once the content is known."""
    _, part, content = parsed(name) if name else Name("", "", "")
    return f"{part}@{content}" if content else name


def pinned_code(name: str) -> str:
    """The name of code with the hash of its content, unless it has that already. `UserError` if it is not there."""
    place, part, content = parsed(name)
    path, arguments = _call(name)
    part = path + (f"({', '.join(map(ast.unparse, [*arguments.args, *arguments.keywords]))})" if arguments else "")
    if not content:
        content = digest(located(place) if place.endswith(".py") else _file(_object(place, path), place))
    return f"{place}:{part}@{content}"


def pinned_file(name: str) -> str:
    """The same of a file or folder, or a part of a file."""
    place, part, content = parsed(name)
    return f"{place}{part and f':{part}'}@{content or digest(located(place))}"


def pinned_data(name: str) -> str:
    """The same of a data set; those of the library have no hash."""
    if not is_own_data(name):
        return name
    place, part, _ = parsed(name)
    return pinned_code(name) if part or place.endswith(".py") else pinned_file(name)


Code = Annotated[str, pinned_code]
File = Annotated[str, pinned_file]
DataSet = Annotated[str, pinned_data]


def located(place: str, content: str = "") -> Path:
    """Where a file or folder lies: in the working folder, along Python's path, or in the project; the first that has
    this content, if one is given. `UserError` if it is not there, or has another content."""
    folders = [Path.cwd(), *map(Path, sys.path), paths.PROJECT]
    # workers of a cluster have files without their folders
    candidates = dict.fromkeys(folder / name for name in (place, Path(place).name) for folder in folders)
    found = [path for path in candidates if os.path.exists(path)]  # noqa: PTH110  (false for a name that is too long)
    if not found:
        raise UserError(f"{quoted(place)} is not here: give its path, from {Path.cwd()} or from the root")
    for path in found:
        if not content or digest(path) == content:
            return path
    raise UserError(f"{place} has changed since it was named in these settings: make them anew, or restore it")


def digest(path: Path) -> str:
    """Sixteen hexadecimal digits of the content of a file, of code, or of a folder of tensors."""
    try:
        if path.suffix == ".py":
            texts = {file.read_text(encoding="utf-8-sig").rstrip() for file in _sources(path, set())}
            return hashlib.sha256("\0".join(sorted(texts)).encode()).hexdigest()[:16]
        inside = [path / f"{split}{TENSORS}" for split in SPLITS] if path.is_dir() else [path]
        whole = hashlib.sha256()
        for file in inside:
            if file.exists():
                with file.open("rb") as stream:
                    whole.update(file.stem.encode() if path.is_dir() else b"")
                    whole.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from None
    except (SyntaxError, ValueError, IndexError) as error:
        raise UserError(f"{path} is no Python: {quoted(str(error))}") from None
    return whole.hexdigest()[:16]


def files(name: str) -> set[Path]:
    """The files that a name stands for; none of a folder, and of what is in a package."""
    place, part, content = parsed(name)
    if part and not place.endswith(".py") and not os.path.exists(place):  # noqa: PTH110
        return set()
    path = located(place, content)
    return set() if path.is_dir() else _sources(path, set()) if path.suffix == ".py" else {path}


def _sources(path: Path, found: set[Path]) -> set[Path]:
    """A file of code and those that it imports from its own folder or package, and these in turn, added to `found`.
    Of an installed package only the file itself."""
    found.add(path)
    root = path.parent
    while (root / "__init__.py").exists():
        root = root.parent
    for imported in [] if "site-packages" in path.parts else _imported(path, root):
        for file in (imported.with_name(f"{imported.name}.py"), imported / "__init__.py"):
            if file not in found and file.is_file():
                _sources(file, found)
    return found


def _imported(path: Path, root: Path) -> Iterator[Path]:
    """Where the modules would lie that a file imports, if they were beside it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8-sig"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield root.joinpath(*alias.name.split("."))
        if isinstance(node, ast.ImportFrom):
            module = (path.parents[node.level - 1] if node.level else root).joinpath(*(node.module or "").split("."))
            yield module
            yield from (module / alias.name for alias in node.names)


def called(name: str, ready: type[nn.Module] | tuple[()] = (), **offered: Any) -> Any:
    """What the code of this name returns: called with the arguments that the name gives, and those on offer that it has
    a parameter for; a copy of it, where it is a `ready` network itself. `UserError` if it is not there, has changed, or
    raises anything."""
    place, part, content = parsed(name)
    path, arguments = _call(name)
    found = _object(place, path, content)
    if isinstance(found, ready):
        if arguments:
            raise UserError(f"{place}:{path} is ready, and takes no arguments: name it without ({part})")
        return copied(found)
    if not callable(found):
        raise UserError(f"{place}:{path} cannot be called, being of type {type(found).__name__}")
    given = [ast.literal_eval(value) for value in arguments.args] if arguments else []
    named = {str(k.arg): ast.literal_eval(k.value) for k in arguments.keywords} if arguments else {}
    return guarded(f"{place}:{part}", found, *given, offered=offered, **named)


def guarded(label: str, function: Any, *given: Any, offered: dict[str, Any], **named: Any) -> Any:
    """The same of a function or class at hand."""
    try:
        takes = list(inspect.signature(function).parameters)[len(given):]
    except (ValueError, TypeError):  # some that are not written in Python
        takes = []
    try:
        return function(*given, **{k: v for k, v in offered.items() if k in takes} | named)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever the code of somebody else does
        raise UserError(f"{label} raised {type(error).__name__}: {quoted(str(error))}") from error


def _call(name: str) -> tuple[str, ast.Call | None]:
    """The function that is named, and the arguments it is given, all of them literals."""
    part = parsed(name).part
    if not part:
        raise UserError(f"{quoted(name)} names no code: write my_file.py:name, or package.module:name, with arguments "
                        "in plain values if any")
    try:
        node = ast.parse(part, mode="eval").body
        call = node if isinstance(node, ast.Call) else None
        for value in [*call.args, *(k.value for k in call.keywords if k.arg)] if call else []:
            ast.literal_eval(value)
        if call and not all(keyword.arg for keyword in call.keywords):
            raise ValueError
        return ast.unparse(call.func if call else node), call
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UserError(f"{quoted(part)} should be a name, with arguments in plain values if any, such as "
                        "build(width=8)") from None


def _object(place: str, path: str, content: str = "") -> Any:
    """The function, class or thing that is called `path` in a file or module."""
    if place.endswith(".py"):
        file = located(place, content)
        with global_seed(0, "own code"):  # whether it has been executed before makes no difference to what follows
            module = _executed(file, digest(file))
    else:
        try:
            with global_seed(0, "own code"):
                module = importlib.import_module(place)
        except (Exception, SystemExit) as error:  # whatever the code of somebody else does
            raise UserError(f"there is no module {quoted(place)} to import ({type(error).__name__}: "
                            f"{quoted(str(error))}); a file is named with its ending, as in my_file.py:name") from error
    found: Any = module
    for word in path.split("."):
        if not hasattr(found, word):
            near = [name for name in vars(module) if not name.startswith("_")]
            raise UserError(f"{place} has no {quoted(path)}; it has {', '.join(near)[:200]}")
        found = getattr(found, word)
    if content and not place.endswith(".py") and digest(_file(found, place)) != content:
        raise UserError(f"{place} has changed since it was named in these settings: make them anew, or restore it")
    return found


def _file(thing: Any, place: str) -> Path:
    """The file that defines a thing found in a module."""
    try:
        file = inspect.getsourcefile(inspect.unwrap(thing))
    except TypeError:  # it is no function or class
        file = getattr(sys.modules[place], "__file__", None)
    if file is None:
        raise UserError(f"the source of {place} cannot be read, so that a changed one could not be told from it: wrap "
                        "it in a function in a file of yours")
    return Path(file)


@cache
def _executed(path: Path, content: str) -> ModuleType:
    """A file of code, executed once for each content; with what it imports from beside it as that is now."""
    beside = {str(file) for file in _sources(path, set()) - {path}}
    for name in [name for name, module in sys.modules.items() if getattr(module, "__file__", None) in beside]:
        del sys.modules[name]
    module, folder = ModuleType(f"{path.stem}_{content}"), str(path.parent)
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where `inspect`, dataclasses and pickle look
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # or a change within a second is not seen
    sys.path.insert(0, folder)
    text, name = path.read_text(encoding="utf-8-sig"), f"{path}@{content}"
    linecache.cache[name] = len(text), None, text.splitlines(keepends=True), name  # what is executed, not what follows
    try:
        exec(compile(text, name, "exec"), vars(module))
    except (Exception, SystemExit) as error:  # whatever the code of somebody else does
        del sys.modules[module.__name__]
        raise UserError(f"{path.name} cannot be executed: {type(error).__name__}: {quoted(str(error))}") from error
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(folder)
    if folder not in sys.path:  # for what it imports later
        sys.path.append(folder)
    return module
