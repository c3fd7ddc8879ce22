"""`import fastsafetensors`, and programs that do it, in this process's children."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

from drop_in import all_goes_back  # noqa: F401
from support import python

import tensorhold

FAKE = "raise RuntimeError('the real one was imported')"
MODULES = [
    "_planner", "allocation", "auto_loader", "common", "config", "ep_slice", "file_buffer", "frameworks", "loader", "parallel_loader",
    "saver", "st_types", "tensor_factory", "threefs_loader",
]  # fmt: skip


def with_path(folder: pathlib.Path) -> dict[str, str]:
    """An environment whose modules are looked for in a folder first."""
    inherited = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), inherited]))}


def real_one(tmp_path: pathlib.Path, text: str = FAKE) -> dict[str, str]:
    """An environment in which another fastsafetensors is installed."""
    package = tmp_path / "site" / "fastsafetensors"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(text)
    (package / "cpp.py").write_text(FAKE)
    return with_path(tmp_path / "site")


def run(*arguments: str, env: dict[str, str] | None = None, cwd: pathlib.Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=env, cwd=cwd)


def test_every_name_and_module_is_the_drop_ins(tmp_path: pathlib.Path) -> None:
    script = f"""
import importlib, importlib.metadata, importlib.util, sys
import tensorhold
tensorhold.install_as_fastsafetensors()
tensorhold.install_as_fastsafetensors()
assert importlib.util.find_spec("fastsafetensors") is not None
import fastsafetensors
import fastsafetensors.parallel_loader as parallel_loader
from fastsafetensors import SafeTensorsFileLoader, SingleGroup
from fastsafetensors.st_types import DType
import tensorhold.fastsafetensors as ours
assert fastsafetensors is ours and fastsafetensors.__version__ == "0.5.0"
assert importlib.metadata.version("fastsafetensors") == "0.5.0"
assert importlib.metadata.version("torch")
for name in {MODULES!r}:
    found = importlib.import_module("fastsafetensors." + name)
    assert found is importlib.import_module("tensorhold.fastsafetensors." + name), name
    assert found.__spec__.name == "tensorhold.fastsafetensors." + name
    assert getattr(fastsafetensors, name) is found
assert importlib.import_module("fastsafetensors.frameworks._torch") is sys.modules["tensorhold.fastsafetensors.frameworks._torch"]
try:
    import fastsafetensors.cpp
except ModuleNotFoundError as error:
    assert error.name == "fastsafetensors.cpp", error
else:
    raise AssertionError("there is no such module")
"""
    done = run("-c", script, env=real_one(tmp_path))
    assert done.returncode == 0, done.stderr


def test_one_that_was_imported_before_is_an_error(tmp_path: pathlib.Path) -> None:
    script = """
import fastsafetensors, tensorhold
try:
    tensorhold.install_as_fastsafetensors()
except ImportError as error:
    assert "before whatever imports it" in str(error) and "site" in str(error), error
else:
    raise AssertionError("it was replaced")
"""
    done = run("-c", script, env=real_one(tmp_path, ""))
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_neither_torch_nor_the_drop_in() -> None:
    python("import sys, tensorhold; assert not {'torch', 'numpy', 'tensorhold.fastsafetensors'} & set(sys.modules)")


def test_a_missing_torch_is_told_when_it_is_needed() -> None:
    python("""
import sys
sys.modules["torch"] = None
import tensorhold.fastsafetensors as fst
assert fst.owned_expert_range(4, 2, 1) == (2, 4)
try:
    fst.SafeTensorsFileLoader(None)
except ImportError as error:
    assert "could not import torch" in str(error), error
else:
    raise AssertionError("there is no torch")
""")


PROGRAM = """
import sys
import multiprocessing
import fastsafetensors

def child(queue):
    import fastsafetensors
    queue.put((fastsafetensors.__name__, fastsafetensors.__version__))

if __name__ == "__main__":
    print("main", fastsafetensors.__name__, sys.argv[1:])
    for method in ("spawn", "fork", "forkserver"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        print(method, *queue.get(timeout=60))
        process.join()
    import subprocess
    print(subprocess.check_output([sys.executable, "-c", "import fastsafetensors as f; print('grandchild', f.__name__)"], text=True))
    sys.exit(3)
"""


def test_a_program_and_its_children_find_the_drop_in(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    script = tmp_path / "script"
    script.write_text("#!/usr/bin/env python3\n" + PROGRAM)
    env = real_one(tmp_path)
    for arguments in (["--", str(program), "a", "--b"], ["-m", "program", "a", "--b"], [str(script), "a", "--b"]):
        in_path = {**env, "PYTHONPATH": os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])}
        done = run("-m", "tensorhold.run", *arguments, env=in_path)
        assert done.returncode == 3, done.stderr
        assert "main tensorhold.fastsafetensors ['a', '--b']" in done.stdout, done.stdout
        for method in ("spawn", "fork", "forkserver"):
            assert f"{method} tensorhold.fastsafetensors 0.5.0" in done.stdout, done.stdout
        assert "grandchild tensorhold.fastsafetensors" in done.stdout


def test_console_scripts_are_found_by_their_names(tmp_path: pathlib.Path) -> None:
    site = tmp_path / "console"
    (site / "engine-1.0.dist-info").mkdir(parents=True)
    (site / "engine-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: engine\nVersion: 1.0\n")
    (site / "engine-1.0.dist-info" / "entry_points.txt").write_text("[console_scripts]\nengine = engine:main\n")
    (site / "engine.py").write_text("import sys, fastsafetensors\ndef main():\n    print(sys.argv, fastsafetensors.__name__)\n    return 4\n")
    done = run("-m", "tensorhold.run", "--", "engine", "serve", "-m", "x", env=with_path(site), cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (4, "['engine', 'serve', '-m', 'x'] tensorhold.fastsafetensors"), done.stderr


def test_an_environments_own_sitecustomize_still_runs(tmp_path: pathlib.Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os.environ['CUSTOMIZED'] = 'yes'")
    program = tmp_path / "program.py"
    program.write_text(
        "import subprocess, sys\n"
        "code = \"import os, sitecustomize, fastsafetensors as f; print(os.environ['CUSTOMIZED'], sitecustomize.__file__, f.__name__)\"\n"
        "print(subprocess.check_output([sys.executable, '-c', code], text=True))"
    )
    done = run("-m", "tensorhold.run", str(program), env=with_path(tmp_path))
    assert done.stdout.split() == ["yes", str(tmp_path / "sitecustomize.py"), "tensorhold.fastsafetensors"], done.stderr


def test_usage_errors_are_told_and_end_with_2(tmp_path: pathlib.Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\x7fELF")
    binary.chmod(0o755)
    for arguments, text in (
        ([], "no program was named"),
        (["--"], "no program was named"),
        (["--", "no-such-program"], "find program 'no-such-program'"),
        (["-m", "no_such_module"], "find module 'no_such_module'"),
        (["-m", "no.such.module"], "find module 'no.such.module'"),
        (["--", str(binary)], "no Python program"),
    ):
        done = run("-m", "tensorhold.run", *arguments)
        assert done.returncode == 2, (arguments, done.stdout, done.stderr)
        assert text in done.stderr and "usage:" in done.stderr
    assert run("-m", "tensorhold.run", "--help").returncode == 0


def test_the_function_is_the_packages() -> None:
    assert callable(tensorhold.install_as_fastsafetensors)
