"""Runs a script with fastsafetensors and with the drop-in, each in a process of its own."""

from __future__ import annotations

import builtins
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

VERSION = "0.5.0"
HERE = pathlib.Path(__file__).parent


def why_no_comparison() -> str | None:
    """Why there is no fastsafetensors to compare with."""
    try:
        found = importlib.metadata.version("fastsafetensors")
    except importlib.metadata.PackageNotFoundError:
        return "fastsafetensors is not installed"
    return None if found == VERSION else f"fastsafetensors {found} is installed, not {VERSION}"


compared = pytest.mark.skipif(bool(why_no_comparison()), reason=why_no_comparison() or "")
"""Of tests that need fastsafetensors."""


def run(package: str, script: str, *arguments: str, env: Mapping[str, str] | None = None, cwd: pathlib.Path | None = None) -> tuple[Any, str]:
    """The JSON on the last line that a script of this folder prints, and the lines before it. Its first argument is the package, `real` or `drop-in`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FASTSAFETENSORS_") and name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, str(HERE / script), package, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**inherited, **(env or {})},
        cwd=cwd,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = done.stdout.rstrip("\n").splitlines()
    return json.loads(lines[-1]), "\n".join(lines[:-1])


def is_same(real: Any, found: Any) -> bool:
    """Whether two calls returned the same, or raised errors that the same `except` catches: fastsafetensors' first class that Python has, where that says
    more than `Exception`."""
    if "returned" in real or "returned" in found:
        return bool(real == found)
    kind = next(name for name in [*real["raised"], "Exception"] if hasattr(builtins, name))
    return kind in found["raised"]
