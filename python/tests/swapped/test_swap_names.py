"""The packages in the place of safetensors have its names, with the same parameters and defaults."""

from __future__ import annotations

import importlib
import inspect
import pathlib
import sys
from types import ModuleType
from typing import Any

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from differences import MISSING_MODULES  # noqa: E402
from side_by_side import OURS, real  # noqa: E402

MODULES = ["", ".torch", ".numpy", ".flax"]


@pytest.fixture(autouse=True)
def installed() -> None:
    real()


def module(name: str) -> Any:
    if name.endswith(".flax"):
        pytest.importorskip("jax")
    return importlib.import_module(name)


def names(of: ModuleType) -> set[str]:
    """The names that are the package's own: what it defines, public or not, and what its modules share; not what it imports from elsewhere."""
    found = set()
    for name, value in vars(of).items():
        if name.startswith("__"):
            continue
        defined_in = getattr(value, "__module__", None)
        own = defined_in in ("builtins", None) or str(defined_in).startswith("safetensors")
        if own and not isinstance(value, ModuleType):
            found.add(name)
    return found


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    return {name: one for name, one in inspect.signature(function).parameters.items() if name != "self"}


def has_default(parameter: inspect.Parameter) -> bool:
    return parameter.default is not inspect.Parameter.empty


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("of", MODULES)
def test_every_name_is_there(ours: str, of: str) -> None:
    theirs = module("safetensors" + of)
    assert {name for name in names(theirs) if not hasattr(module(ours + of), name)} == set()


def test_the_compiled_module_has_a_namesake() -> None:
    theirs, ours = module("safetensors._safetensors_rust"), module("tensorhold.safetensors._safetensors_rust")
    for name in names(theirs):
        assert getattr(ours, name) is getattr(module("tensorhold.safetensors"), name)


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("of", MODULES)
def test_parameters_and_defaults_are_the_same(ours: str, of: str) -> None:
    theirs, found = module("safetensors" + of), module(ours + of)
    compared = 0
    for name in sorted(names(theirs)):
        function = getattr(theirs, name)
        if not callable(function) or isinstance(function, type) and issubclass(function, Exception):
            continue
        assert_same_parameters(name, parameters(function), parameters(getattr(found, name)), ours)
        compared += 1
    assert compared >= 5


def assert_same_parameters(name: str, theirs: dict[str, inspect.Parameter], ours: dict[str, inspect.Parameter], package: str) -> None:
    # `tensorhold.safe_open` and its like open for torch when no framework is named.
    may_be_omitted = {"framework"} if package == "tensorhold" else set()
    for parameter in theirs.values():
        other = ours.get(parameter.name)
        if other is None:
            # An option.
            assert parameter.kind is parameter.KEYWORD_ONLY and any(one.kind is one.VAR_KEYWORD for one in ours.values()), (name, parameter)
            continue
        assert other.kind is parameter.kind, (name, parameter)
        assert has_default(other) == has_default(parameter) or parameter.name in may_be_omitted, (name, parameter)
        # `...` is what a compiled function tells of a default that is no literal.
        if has_default(parameter) and parameter.default is not ...:
            assert other.default == parameter.default, (name, parameter)
    positional = [one.name for one in ours.values() if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    expected = [one.name for one in theirs.values() if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    assert positional[: len(expected)] == expected, name
    more = [one for one in ours.values() if one.name not in theirs]
    assert all(has_default(one) or one.kind is one.VAR_KEYWORD for one in more), (name, more)


@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("kind", ["safe_open", "_safe_open_handle", "TensorSpec"])
def test_classes_have_the_same_members(ours: str, kind: str) -> None:
    theirs, found = getattr(module("safetensors"), kind), getattr(module(ours), kind)
    for name, member in vars(theirs).items():
        if name.startswith("__") and name not in ("__enter__", "__exit__"):
            continue
        assert hasattr(found, name), name
        if callable(member) and not name.startswith("__"):
            assert_same_parameters(name, parameters(member), parameters(getattr(found, name)), ours)


def test_slices_have_the_same_members(tmp_path: pathlib.Path) -> None:
    numpy = pytest.importorskip("numpy")
    safetensors = module("safetensors.numpy")
    safetensors.save_file({"a": numpy.ones(2)}, tmp_path / "a.safetensors")
    theirs, *ours = (module(name).safe_open(tmp_path / "a.safetensors", "np").get_slice("a") for name in ("safetensors", *OURS))
    for found in ours:
        assert {name for name in dir(theirs) if not name.startswith("__") or name == "__getitem__"} <= set(dir(found))


def test_types_and_sizes_are_the_same_where_both_have_them() -> None:
    for of, name in ((".torch", "_SIZE"), (".torch", "_TYPES"), (".numpy", "_TYPES")):
        theirs, ours = (getattr(module(package + of), name) for package in ("safetensors", "tensorhold"))
        for key, value in theirs.items():
            if key is not None and value is not None:
                assert ours[key] == value, (of, name, key)


@pytest.mark.parametrize("of", MODULES[1:])
def test_both_modules_have_the_same_names(of: str) -> None:
    short, long = module("tensorhold" + of), module("tensorhold.safetensors" + of)
    for name, value in vars(long).items():
        if name == "__all__" or not name.startswith("__"):
            assert getattr(short, name) is value, name
    assert sys.modules[short.__name__] is short and short.__name__ == "tensorhold" + of


@pytest.mark.parametrize("of", MODULES[1:])
def test_star_gives_the_public_names_and_no_imports(of: str) -> None:
    given: list[dict[str, Any]] = [{}, {}, {}]
    for package, names_of in zip(("safetensors", *OURS), given):
        module(package + of)
        exec(f"from {package}{of} import *", names_of)
    theirs, *ours = ({name for name in found if name != "__builtins__"} for found in given)
    own = {name for name in names(module("safetensors" + of)) if not name.startswith("_")}
    for found in ours:
        assert own & theirs <= found
        assert theirs - found and all(name not in own for name in theirs - found), "the difference is listed in docs/safetensors.md"


def test_the_error_shows_its_other_name() -> None:
    assert [repr(module(name).SafetensorError("x")) for name in ("safetensors", *OURS)] == ["SafetensorError('x')", "Error('x')", "Error('x')"]


def test_versions() -> None:
    assert module("tensorhold.safetensors").__version__ == module("safetensors").__version__


@pytest.mark.parametrize("of", list(MISSING_MODULES))
def test_modules_that_are_missing_on_purpose_are_missing(of: str) -> None:
    theirs = pathlib.Path(module("safetensors").__file__).parent
    assert (theirs / f"{of}.py").exists()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"tensorhold.safetensors.{of}")


def test_every_other_module_is_there() -> None:
    theirs = pathlib.Path(module("safetensors").__file__).parent
    modules = {path.stem for path in theirs.glob("*.py")} - {"__init__"} - set(MISSING_MODULES)
    assert modules == {"torch", "numpy", "flax"}
