"""Every name of fastsafetensors 0.5.0 is the drop-in's, too, with its signature, defaults, bases and members; but for those listed here."""

from __future__ import annotations

from typing import Any

import pytest
from drop_in import all_goes_back  # noqa: F401
from parity import compared, run

MODULES = [
    "fastsafetensors",
    *(
        f"fastsafetensors.{name}"
        for name in (
            "_planner", "allocation", "auto_loader", "common", "config", "ep_slice", "file_buffer", "frameworks", "frameworks._torch", "loader",
            "parallel_loader", "saver", "st_types", "tensor_factory", "threefs_loader",
        )
    ),
]  # fmt: skip

READS = "it is about how fastsafetensors reads and keeps its buffers: tensorhold does that below Python"
WANTED = {
    "allocation.SharedDeviceAllocation": READS,
    "common.ODIRECT_HINT": READS,
    "common.is_odirect_enabled": READS,
    "loader.CopierConstructFunc": READS,
    "loader.gl_set_numa": READS,
    "loader.loaded_library": READS,
    "threefs_loader.loaded_library": READS,
    "parallel_loader.FileBatch": READS,
    "tensor_factory.LazyTensorFactory": READS,
}


def differences(real: Any, found: Any, at: str) -> list[str]:
    """Where the drop-in lacks what fastsafetensors has, or has it otherwise."""
    if isinstance(real, dict) and isinstance(found, dict):
        return [text for name, of in real.items() for text in (differences(of, found[name], f"{at}.{name}") if name in found else [f"{at}.{name}: is missing"])]
    return [] if real == found else [f"{at}: {real} but {found}"]


def of_names(real: Any, found: Any, at: str) -> list[str]:
    """The same for one name of a module."""
    if found is None:
        return [f"{at}: is missing"]
    (_, kind, theirs), (_, our_kind, ours) = real, found
    if kind != "class" or our_kind != "class":
        return differences([kind, theirs], [our_kind, ours], at)
    # The drop-in may have bases in between, and members besides.
    bases = iter(ours["bases"])
    wrong = [f"{at}: has no base {base} there" for base in theirs["bases"] if base not in bases]
    if theirs["is enum"] and list(theirs["members"]) != list(ours["members"]):
        wrong.append(f"{at}: has other members")
    return wrong + differences({**theirs, "bases": None}, {**ours, "bases": None}, at)


@pytest.fixture(scope="module")
def names() -> tuple[Any, Any]:
    real, found = (run(package, "parity_names.py", *MODULES)[0] for package in ("real", "drop-in"))
    return real, found


@compared
def test_every_name_is_there_with_its_signature_and_members_but_for_those_that_are_wanted(names: tuple[Any, Any]) -> None:
    real, found = names
    assert len([name for name, item in real["fastsafetensors"].items() if item[0]]) == 19
    wrong = {}
    for module, of in real.items():
        for name, item in of.items():
            at = f"{module}.{name}".removeprefix("fastsafetensors.")
            problems = of_names(item, found[module].get(name), at)
            # What a module imports of another is the other's.
            if problems and item[0]:
                wrong[at] = problems
    unexpected = [problem for at, problems in wrong.items() if at not in WANTED for problem in problems]
    assert not unexpected, "\n".join(unexpected)
    # Each difference is there.
    assert sorted(wrong) == sorted(WANTED)


@compared
def test_abstract_classes_have_no_more_to_define_than_there(names: tuple[Any, Any]) -> None:
    for name in ("TensorBase", "ProcessGroupBase", "FrameworkOpBase"):
        theirs, ours = (of["fastsafetensors.frameworks"][name][2] for of in names)
        assert theirs["abstract"] == ours["abstract"]
        assert list(theirs["members"]) == list(ours["members"])
        assert theirs["bases"] == ours["bases"]


def test_the_modules_about_reading_are_not_there() -> None:
    # Their names are not to be taken for something that works.
    for name in ("cpp", "copier", "dlpack"):
        with pytest.raises(ModuleNotFoundError):
            __import__(f"tensorhold.fastsafetensors.{name}")
