"""The stubs say what the compiled module has, and the package and what callers write pass a strict type check."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

import tensorhold

HERE = pathlib.Path(__file__).parent


def run(*arguments: str) -> None:
    pytest.importorskip("mypy")
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=HERE.parents[1])
    assert done.returncode == 0, done.stdout + done.stderr


def test_stubs_are_those_of_the_module() -> None:
    run("mypy.stubtest", "tensorhold._core", "--ignore-disjoint-bases", "--mypy-config-file", "pyproject.toml")


def test_the_package_passes_a_strict_check() -> None:
    run("mypy", "--strict", "--package", "tensorhold")


def test_callers_see_types_and_mistakes() -> None:
    # `typed_usage.py`, and the tests.
    run("mypy", "--strict", *map(str, HERE.glob("*.py")))


def test_every_public_name_is_there_and_listed() -> None:
    assert sorted(tensorhold.__all__) == tensorhold.__all__
    for name in tensorhold.__all__:
        assert getattr(tensorhold, name) is not None
    assert (pathlib.Path(tensorhold.__file__).parent / "py.typed").exists()
