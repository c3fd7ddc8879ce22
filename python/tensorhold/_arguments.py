"""What the functions that save take: errors name the argument, and the key in it."""

import os

from tensorhold._core import OptionError
from tensorhold._text import kind, quoted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def path(argument: str, given: "Any") -> str:
    """A path as text."""
    try:
        text = os.fsdecode(given)
        os.fsencode(text)
    except TypeError as error:
        remedy = "pass the name of the file, and close it first" if hasattr(given, "write") or isinstance(given, int) else "name a file"
        what = "an open file" if hasattr(given, "write") else kind(given)
        raise TypeError(f"argument {argument}: got {what}, expected a path, a str or an os.PathLike; {remedy}") from error
    except UnicodeEncodeError as error:
        raise OptionError(f"argument {argument}: got {quoted(given)}, which no file name can be; name another file") from error
    return text


def named(argument: str, given: "Any", of: str) -> "list[tuple[str, Any]]":
    """The pairs of a dict with strings as keys."""
    if not callable(getattr(given, "items", None)):
        remedy = "call dict() on the pairs" if isinstance(given, (list, tuple)) else "name each"
        raise TypeError(f"argument {argument}: got {kind(given)}, expected a dict from names to {of}; {remedy}")
    pairs = list(given.items())
    for key, _ in pairs:
        if not isinstance(key, str):
            raise TypeError(f"argument {argument}: got the key {quoted(key)} of type {kind(key)}, expected a str; convert it with str()")
    return pairs


def strings(argument: str, given: "Mapping[str, str] | None") -> "list[tuple[str, str]] | None":
    """The pairs of a dict of strings; None for None."""
    if given is None:
        return None
    pairs = named(argument, given, "strings")
    for key, value in pairs:
        if not isinstance(value, str):
            raise TypeError(
                f"argument {argument}: got {kind(value)} for the key {quoted(key)}, expected a str; convert it with str() or json.dumps()"
            )
    return pairs


def flag(argument: str, given: "Any") -> bool:
    """True or False."""
    if not isinstance(given, bool):
        raise TypeError(f"argument {argument}: got {kind(given)}, expected True or False; pass one of them")
    return given
