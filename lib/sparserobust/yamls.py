"""YAML files that people write. Whatever YAML would take in silence and read as something else than its writer meant
(a key given twice, `on` as a key, 010 as 8), and whatever would take a machine's memory, is one line here."""

import math
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sparserobust.errors import UserError

LARGEST = 1_000_000  # bytes
DEEPEST = 50  # lists and mappings, one in another
MOST = 100_000  # values, when each alias is replaced by what it stands for
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first reads the same seven times as fast
_TAG = "tag:yaml.org,2002:"


def text(path: Path) -> str:
    """The text of a YAML file; `UserError` if it cannot be read, is no UTF-8 or has more than `LARGEST` bytes."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        _checked_size(content, path.name)
        return content.decode()
    except OSError as error:
        raise UserError(f"{path.name} cannot be read ({error.strerror}): {path}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} cannot be read: byte {error.start} is no UTF-8, save it as UTF-8") from None


def parsed(text: str, where: str) -> Any:
    """What a YAML document says, as `yaml.safe_load` reads it: mappings, lists, text, finite numbers, true, false and
    None. Keys are text or numbers. `UserError`, which begins with `where`, for anything else, for a key or an anchor
    that is given twice, and for what is larger than the limits above."""
    try:
        _checked_size(text.encode(), where)
        return _Reader(text).document()
    except _Problem as problem:
        event, what = problem.args
        raise UserError(f"{where}, line {event.start_mark.line + 1}: {what}") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: not valid YAML, {error.problem or error.context}") from None
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        raise UserError(f"{where}: not valid YAML, {' '.join(str(error).split())}") from None


def _checked_size(content: bytes, where: str) -> None:
    if len(content) > LARGEST:
        raise UserError(f"{where}: more than {LARGEST:,} bytes of YAML")


class _Problem(Exception):
    """An event of the parser, and what is wrong there."""


class _Reader:
    """Builds the one document of a text from the parser's events, so that every limit holds before memory is used."""

    def __init__(self, text: str):
        self.loader = _Loader(text)
        self.anchors: dict[str, tuple[Any, int] | None] = {}  # a value and its size; None while it is being read

    def document(self) -> Any:
        next_event = self.loader.get_event
        next_event()  # the stream begins
        event = next_event()
        if isinstance(event, yaml.StreamEndEvent):
            return None
        value, _ = self.value(next_event(), 0)
        next_event()  # the document ends
        event = next_event()
        if not isinstance(event, yaml.StreamEndEvent):
            raise _Problem(event, "a second document begins, only one is read")
        return value

    def value(self, event: yaml.Event, depth: int) -> tuple[Any, int]:
        """The value that begins with this event, and how many values it holds."""
        if isinstance(event, yaml.AliasEvent):
            found = self.anchors.get(event.anchor)
            if found is None:
                inside = event.anchor in self.anchors
                raise _Problem(event, f"alias {event.anchor!r} " + ("stands inside itself" if inside else "is unknown"))
            return found
        if event.tag is not None:
            raise _Problem(event, f"tags such as {event.tag!r} are not read")
        if event.anchor is not None:
            if event.anchor in self.anchors:
                raise _Problem(event, f"anchor {event.anchor!r} is given twice")
            self.anchors[event.anchor] = None
        if depth > DEEPEST:
            raise _Problem(event, f"more than {DEEPEST} lists and mappings, one in another")
        if isinstance(event, yaml.ScalarEvent):
            result = self.scalar(event), 1
        elif isinstance(event, yaml.SequenceStartEvent):
            result = self.sequence(event, depth)
        else:
            result = self.mapping(event, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = result
        return result

    def sequence(self, start: yaml.Event, depth: int) -> tuple[list, int]:
        result, size = [], 1
        for event in self.until(yaml.SequenceEndEvent):
            value, more = self.value(event, depth + 1)
            size = _added(size, more, start)
            result.append(value)
        return result, size

    def mapping(self, start: yaml.Event, depth: int) -> tuple[dict, int]:
        own: dict[Any, Any] = {}
        inherited: dict[Any, Any] | None = None  # by `<<`
        size = 1
        for event in self.until(yaml.MappingEndEvent):
            merge = isinstance(event, yaml.ScalarEvent) and event.implicit[0] and event.value == "<<"
            key = None if merge else self.key(event)
            if key in own or (merge and inherited is not None):
                raise _Problem(event, f"key {reprlib.repr('<<' if merge else key)} is given twice")
            value, more = self.value(self.loader.get_event(), depth + 1)
            size = _added(size, more, start)
            if merge:
                inherited = {}
                for mapping in reversed(value if isinstance(value, list) else [value]):
                    if not isinstance(mapping, dict):
                        raise _Problem(event, "<< needs a mapping, or a list of them")
                    inherited.update(mapping)
            else:
                own[key] = value
        return (inherited or {}) | own, size

    def key(self, event: yaml.Event) -> str | int | float:
        key = self.value(event, 0)[0] if isinstance(event, yaml.ScalarEvent | yaml.AliasEvent) else None
        if isinstance(key, bool) or not isinstance(key, str | int | float):
            shown = event.value if isinstance(event, yaml.ScalarEvent) else "of this kind"
            raise _Problem(event, f"key {reprlib.repr(shown)} is read as {reprlib.repr(key)}: keys are text (write it "
                                  "in quotes) or numbers")
        if isinstance(key, str) and not key.isprintable():
            raise _Problem(event, f"key {reprlib.repr(key)} has more in it than letters")
        return key

    def scalar(self, event: yaml.ScalarEvent) -> Any:
        given = event.value
        tag = self.loader.resolve(yaml.ScalarNode, given, event.implicit)
        if tag == f"{_TAG}str":
            return given
        if tag not in [f"{_TAG}{name}" for name in ("int", "float", "bool", "null")]:
            raise _Problem(event, f"{reprlib.repr(given)} is neither text nor a number: if it is text, write it in "
                                  "quotes")
        try:
            value = self.loader.construct_object(yaml.ScalarNode(tag, given))
            finite = value is None or math.isfinite(value)
        except (ValueError, OverflowError):  # thousands of digits
            finite = False
        if not finite:
            raise _Problem(event, f"{reprlib.repr(given)} is no finite number")
        if isinstance(value, int | float) and re.match(r"[-+]?0[\d_]*[1-9]|.*:", given):
            raise _Problem(event, f"{reprlib.repr(given)} is read as the number {value}: write that, or text in quotes")
        return value

    def until(self, end: type[yaml.Event]) -> Iterator[yaml.Event]:
        while not isinstance(event := self.loader.get_event(), end):
            yield event


def _added(size: int, more: int, event: yaml.Event) -> int:
    if size + more > MOST:
        raise _Problem(event, f"more than {MOST:,} values, each alias counted as what it stands for")
    return size + more
