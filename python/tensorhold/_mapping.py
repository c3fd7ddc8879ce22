"""The keys of mappings of this package, which are lists and sets at once."""

from collections.abc import Set

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeVar

    T = TypeVar("T")


class Names(list[str]):
    """Names in their order: a list, with the operations of a dict's `keys()`, which give sets. It equals a list of the same order, and a set of the same names."""

    __slots__ = ()
    __hash__ = None

    def __and__(self, other: "Iterable[Any]") -> "set[str]":
        return set(self).intersection(other)

    __rand__ = __and__

    def __or__(self, other: "Iterable[T]") -> "set[str | T]":
        return set(self).union(other)

    __ror__ = __or__

    def __sub__(self, other: "Iterable[Any]") -> "set[str]":
        return set(self).difference(other)

    def __rsub__(self, other: "Iterable[T]") -> "set[T]":
        return set(other).difference(self)

    def __xor__(self, other: "Iterable[T]") -> "set[str | T]":
        return set(self).symmetric_difference(other)

    __rxor__ = __xor__

    def isdisjoint(self, other: "Iterable[Any]") -> bool:
        return set(self).isdisjoint(other)

    def __eq__(self, other: object) -> bool:
        return set(self) == other if isinstance(other, Set) else list.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __le__(self, other: "Any") -> bool:
        return set(self) <= other if isinstance(other, Set) else list.__le__(self, other)

    def __lt__(self, other: "Any") -> bool:
        return set(self) < other if isinstance(other, Set) else list.__lt__(self, other)

    def __ge__(self, other: "Any") -> bool:
        return set(self) >= other if isinstance(other, Set) else list.__ge__(self, other)

    def __gt__(self, other: "Any") -> bool:
        return set(self) > other if isinstance(other, Set) else list.__gt__(self, other)
