"""The mechanism of all settings: frozen, checked when made, and hashed to be found again.

In plain data (YAML, JSON) a member of a family is written `{kind: pgd, epsilon: 8/255, ...}`.
"""

# Written here: no settings library hashes only what differs from the defaults, which is what keeps old results valid.

import difflib
import hashlib
import inspect
import json
import linecache
import math
import sys
import types
from abc import ABC
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache, cached_property
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    NoReturn,
    Self,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from sparserobust import outside
from sparserobust.errors import UserError, quoted

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """The decorator of all settings: a frozen dataclass whose fields are named in calls."""
    return dataclass(frozen=True, kw_only=True)(cls)


class Checked(ABC):  # noqa: B024
    """Base of what is read from plain data: a dataclass whose fields have the types that they say, or it is a
    `UserError` to make one."""

    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # all members are dataclasses

    def __post_init__(self):
        for name, hint in _hints(type(self)).items():
            object.__setattr__(self, name, _coerced(getattr(self, name), hint, f"{self.label()}: {name}"))
        self.check()

    @classmethod
    def label(cls) -> str:
        """What messages call this class."""
        return cls.__name__

    def check(self) -> None:  # noqa: B027
        """Raise `UserError` if the values make no sense together."""

    def require(self, condition: bool, message: str) -> None:
        """`UserError` with this message, after the name of the settings, unless the condition is met."""
        if not condition:
            raise UserError(f"{self.label()}: {message}")

    def choice(self, name: str, *known: str) -> None:
        """`UserError` unless the setting `name` has one of the known values."""
        value = getattr(self, name)
        self.require(value in known, f"{name} is {', '.join(known[:-1])} or {known[-1]}, not {quoted(value)}")

    @classmethod
    def parse(cls, plain: Mapping) -> Self:
        """From plain data; an unknown key is a `UserError` that names the nearest known one, a missing key one, too."""
        plain = cls._mapping(plain)
        known = {f.name: f for f in fields(cls)}
        for key in plain:
            if key not in known:
                unknown("setting", key, cls.label(), known)
        for key, f in known.items():
            if key not in plain and f.default is MISSING and f.default_factory is MISSING:
                raise UserError(f"{cls.label()}: setting '{key}' is missing")
        return cls(**plain)

    @classmethod
    def _mapping(cls, plain: object) -> dict:
        if not isinstance(plain, Mapping):
            raise UserError(f"{cls.label()}: expected settings such as {{key: value}}, got {quoted(plain)}")
        return dict(plain)


class Settings(Checked):
    """Base of all settings. Equal settings have equal `identity`; a setting at its default does not enter it, so a
    new setting with a default leaves every earlier result valid."""

    kind: ClassVar[str] = ""
    family: ClassVar[dict[str, type["Settings"]]] = {}
    _files: ClassVar[set[str]] = set()  # those that define a class from outside the library,
    _source: ClassVar[str | None] = None  # and the hash of their text when it was made

    def __init_subclass__(cls, kind: str = "", **kwargs):
        super().__init_subclass__(**kwargs)
        if Settings in cls.__bases__:
            cls.family = {}
        if kind:
            cls.kind = kind
            known = cls.family.get(kind, cls)
            if _full_name(known) != _full_name(cls):  # equal: a cell run again, a module reloaded
                raise UserError(
                    f"kind '{kind}' names two classes, {_full_name(known)} and {_full_name(cls)}: "
                    "give one of them another kind, or restart Python if the first is gone")
            cls.family[kind] = cls
        if not _of_the_library(cls):
            cls._files = _files(cls)
            cls._source = _source(cls._files)

    @classmethod
    def label(cls) -> str:
        return f"{cls.__name__} ({cls.kind})" if cls.kind else cls.__name__

    def plain(self) -> dict:
        """JSON-ready: the kind, and every field that differs from its default."""
        return self._differing(lambda within: within.plain())

    def counted(self) -> dict:
        """The same, but what is outside the library, and named in a field (`outside`), is told by its content alone."""
        counted = self._differing(lambda within: within.counted())
        return counted | {name: outside.counted(counted[name]) for name in _outside(type(self)) if name in counted}

    def _differing(self, told: "Callable[[Settings], dict]") -> dict:
        result: dict[str, Any] = {"kind": self.kind} if self.kind else {}
        for f in fields(self):
            value = getattr(self, f.name)
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            if value != default:
                result[f.name] = _plain(value, told)
        return result

    @classmethod
    def parse(cls, plain: Mapping) -> Self:
        """The inverse of `plain`; unknown kinds and keys are `UserError`s that name the nearest known one."""
        plain, member = cls._mapping(plain), cls
        if cls.family and not cls.kind:
            kind = plain.pop("kind", None)
            if kind not in list(cls.family):
                unknown("kind", kind, cls.label(), cls.family)
            member = cls.family[kind]  # type: ignore[assignment]  # hence a subclass
        elif cls.kind and (kind := plain.pop("kind", cls.kind)) != cls.kind:
            raise UserError(f"{cls.label()}: these are settings of kind {quoted(kind)}")
        return super(Settings, member).parse(plain)

    @property
    def _all(self) -> "list[Settings]":
        """These settings and those within."""
        within = (getattr(self, f.name) for f in fields(self))
        return [self, *(each for s in within if isinstance(s, Settings) for each in s._all)]

    @property
    def _classes(self) -> set[type["Settings"]]:
        return {type(s) for s in self._all}

    @property
    def modules(self) -> set[str]:
        """Names of the modules that define these settings and those within."""
        return {cls.__module__ for cls in self._classes}

    @property
    def named_outside(self) -> set[str]:
        """What these settings and those within name that is outside the library, as they name it."""
        return {name for s in self._all for key in _outside(type(s)) if outside.is_pinned(name := getattr(s, key))}

    @cached_property
    def identity(self) -> str:
        """Twelve hexadecimal digits that name these settings. The source of a class from outside
        the library enters, as another formula gives other results; `UserError` if that source
        cannot be read or has changed since it was imported. Of files that are named in a field the
        content enters, not the place."""
        text = json.dumps(self.counted(), sort_keys=True)
        text += "".join(sorted(_definition(cls) for cls in self._classes if not _of_the_library(cls)))
        return hashlib.sha256(f"{type(self).__name__}:{text}".encode()).hexdigest()[:12]


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _of_the_library(cls: type) -> bool:
    return cls.__module__.split(".")[0] == "sparserobust"


def _files(cls: type) -> set[str]:
    """Names of the file or notebook cell that defines a class: of its functions and of its module."""
    written = {getattr(inspect.unwrap(f), "__code__", f.__code__).co_filename
               for f in vars(cls).values() if inspect.isfunction(f)}
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return written if file is None else written | {file}


def _source(files: set[str]) -> str | None:
    """SHA-256 of the whole text of these files, as a formula may stand in a function beside the
    class. Paths and line endings do not enter. None if one of the files has no text; what was
    executed from a string has none, although since Python 3.13 that of `python -c` stands for it."""
    for file in files:
        linecache.checkcache(file)
    texts = {"".join(linecache.getlines(file)) for file in files}
    if not texts or "" in texts or "<string>" in files:
        return None
    return hashlib.sha256("".join(sorted(texts)).encode()).hexdigest()


def _definition(cls: type[Settings]) -> str:
    """Name of a class from outside the library, and the source of it and of its bases from there."""
    if cls.kind and "kind" not in vars(cls):
        raise UserError(
            f"{_full_name(cls)} needs a kind of its own, or it is taken for its base class: "
            f"class {cls.__name__}({cls.__bases__[0].__name__}, kind='...')")
    outside = [c for c in cls.__mro__ if issubclass(c, Settings) and not _of_the_library(c)]
    sources = []
    for c in outside:
        if c._source is None:
            raise UserError(
                f"the source of {_full_name(c)} cannot be read, so that results of a changed "
                "formula could not be told from earlier ones: move the class into a file and "
                "import it from there")
        if c._source != _source(c._files):
            raise UserError(
                f"the file of {_full_name(c)} has changed since it was imported: restart Python, "
                f"or importlib.reload({c.__module__}) and make the settings anew")
        sources.append(c._source)
    return ":".join(["", cls.__name__, *sources])


def unknown(what: str, given: Any, where: str, known: Mapping) -> NoReturn:
    """Raise the `UserError` for a word that is not known, with the nearest known one."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(given), names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"
    raise UserError(f"{where}: unknown {what} {quoted(str(given))}; {hint}")


@contextmanager
def located(where: str) -> Iterator[None]:
    """A `UserError` inside the block also says where in the files it was."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


@cache
def _hints(cls: type) -> dict:
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in fields(cls)}


@cache
def _outside(cls: type) -> list[str]:
    """The fields that may name something outside the library."""
    return [name for name, hint in _hints(cls).items() if get_origin(hint) is Annotated]


def _plain(value: Any, told: Callable[[Settings], dict]) -> Any:
    if isinstance(value, Settings):
        return told(value)
    if isinstance(value, Mapping):
        return {key: _plain(entry, told) for key, entry in value.items()}
    return tuple(_plain(entry, told) for entry in value) if isinstance(value, tuple) else value


def number(text: str) -> float:
    """A number, or a ratio of two, such as `8/255` or `0.5/255`. `ValueError` if it is neither, or not finite."""
    parts = [float(part) for part in text.split("/")]
    if len(parts) > 2 or not all(map(math.isfinite, parts)) or 0 in parts[1:]:
        raise ValueError(f"{quoted(text)} is no number")
    return parts[0] / parts[1] if len(parts) == 2 else parts[0]


def _coerced(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`, where that is safe; `8/255`, `0.5/255` and `1e-6` may be written as text, as YAML
    needs."""
    def wrong() -> UserError:
        return UserError(f"{where} should be {_type_name(hint)}, not {quoted(value)}")

    if hint is Any:
        return value
    if get_origin(hint) is Annotated:
        text = _coerced(value, get_args(hint)[0], where)
        with located(where):
            return get_args(hint)[1](text)
    if get_origin(hint) in (Union, types.UnionType):
        return _first_that_fits(value, get_args(hint), where, wrong)
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise wrong()
        return tuple(_coerced(v, get_args(hint)[0], where) for v in value)
    if get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise wrong()
        of_key, of_value = get_args(hint)
        return {_coerced(k, of_key, where): _coerced(v, of_value, f"{where}: {k}") for k, v in value.items()}
    if isinstance(hint, type) and issubclass(hint, Checked):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            with located(where):
                return hint.parse(value)
        raise wrong()
    if hint is float and not isinstance(value, bool):
        try:
            found = number(value) if isinstance(value, str) else float(value)
        except (ValueError, TypeError, ArithmeticError):
            raise wrong() from None
        if not math.isfinite(found):
            raise wrong()
        return found + 0.0  # minus zero is zero
    if type(value) is not hint or (hint is int and abs(value) >= 2**63):
        raise wrong()
    return value


def _first_that_fits(value: Any, hints: tuple, where: str, wrong: Callable[[], UserError]) -> Any:
    if value is None and types.NoneType in hints:
        return None
    hints = tuple(hint for hint in hints if hint is not types.NoneType)
    if len(hints) == 1:  # its own message says more
        return _coerced(value, hints[0], where)
    for hint in hints:
        try:
            return _coerced(value, hint, where)
        except UserError:
            continue
    raise wrong()


def _type_name(hint: Any) -> str:
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    return names.get(hint) or str(getattr(hint, "__name__", hint)).replace("sparserobust.config.", "")
