"""What `inspect` finds in fastsafetensors or in the drop-in: run by `test_fst_parity_names.py`. Prints the public names of each module as JSON on the last line.

Arguments: `real` or `drop-in`, and the names of modules.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import json
import sys
import types
import typing
from typing import Any

if sys.argv[1] == "drop-in":
    import tensorhold

    tensorhold.install_as_fastsafetensors()

SPECIAL = ("__call__", "__enter__", "__eq__", "__exit__", "__getitem__", "__hash__", "__iter__", "__len__", "__repr__")


def signature(found: Any) -> Any:
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return None
    return [[of.name, str(of.kind), None if of.default is of.empty else value(of.default)] for of in parameters]


def value(found: Any) -> str:
    if isinstance(found, dict):
        return str(sorted(f"{value(key)}: {value(of)}" for key, of in found.items()))
    return repr(found).replace("tensorhold.fastsafetensors", "fastsafetensors")


def of_class(found: type) -> dict[str, Any]:
    """Bases by their names, the constructor, and the members: each with its kind, signature, and whether it is abstract."""
    members: dict[str, Any] = {}
    for name in dir(found):
        static = inspect.getattr_static(found, name)
        if name.startswith("_") and (name not in SPECIAL or isinstance(static, (types.WrapperDescriptorType, types.MethodDescriptorType))):
            continue
        bound = getattr(found, name)
        if isinstance(static, (types.FunctionType, classmethod, staticmethod)):
            members[name] = [type(static).__name__, signature(bound), bool(getattr(bound, "__isabstractmethod__", False))]
        elif isinstance(static, property):
            members[name] = ["property"]
        else:
            members[name] = ["value", value(static)]
    return {
        "bases": [base.__name__ for base in found.__mro__[1:]],
        "is enum": issubclass(found, enum.Enum),
        "abstract": sorted(getattr(found, "__abstractmethods__", ())),
        "constructor": signature(found),
        "members": members,
    }


def of_module(name: str) -> dict[str, Any]:
    """The names of a module: what it is, and whether the module is where it is from. The package itself exports names of its modules."""
    module = importlib.import_module(name)
    found: dict[str, Any] = {}
    for own, item in vars(module).items():
        if own.startswith("_") and own != "__version__" or isinstance(item, types.ModuleType) or getattr(typing, own, None) is item:
            continue
        home = (getattr(item, "__module__", None) or "").replace("tensorhold.fastsafetensors", "fastsafetensors")
        if inspect.isclass(item) or inspect.isroutine(item):
            is_own = home == name or name == "fastsafetensors" and home.startswith("fastsafetensors")
            found[own] = [is_own, "class", of_class(item)] if inspect.isclass(item) else [is_own, "function", signature(item)]
        else:
            is_own = not own.islower() or isinstance(item, (str, int, float))
            found[own] = [is_own, "value", value(item)]
    return found


print("\n" + json.dumps({name: of_module(name) for name in sys.argv[2:]}))
