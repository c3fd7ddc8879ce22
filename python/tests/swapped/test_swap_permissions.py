"""Files that a user may not read or write to: differences that root does not see."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from side_by_side import OURS, real  # noqa: E402

AS_NOBODY = """
import importlib, os, pathlib, sys
package, *paths = sys.argv[1:]
root, module = importlib.import_module(package), importlib.import_module(package + ".numpy")
import numpy
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
for call in (lambda: root.safe_open(paths[0], "np"), lambda: module.save_file({"a": numpy.ones(3)}, paths[1])):
    try:
        call()
        print("nothing")
    except OSError as error:
        print(next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"))
"""


def test_what_may_not_be_read_or_written_is_a_permission_error(tmp_path: pathlib.Path) -> None:
    real()
    for parent in [tmp_path, *tmp_path.parents][:3] if os.geteuid() == 0 else []:
        parent.chmod(0o777)
    secret, fixed = tmp_path / "secret.safetensors", tmp_path / "fixed.safetensors"
    for package in ("safetensors", *OURS):
        for file, mode in ((secret, 0o000), (fixed, 0o444)):
            file.unlink(missing_ok=True)
            file.write_bytes(b"")
            file.chmod(mode)
        done = subprocess.run([sys.executable, "-c", AS_NOBODY, package, secret, fixed], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        expected = ["FileNotFoundError", "nothing"] if package == "safetensors" else ["PermissionError", "PermissionError"]
        assert done.stdout.split() == expected, package
