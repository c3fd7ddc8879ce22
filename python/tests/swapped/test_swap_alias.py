"""`import safetensors`, and programs that do it, with and without another safetensors installed."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

FAKE = "raise RuntimeError('another one was imported')"


def with_path(*folders: pathlib.Path) -> dict[str, str]:
    """An environment whose modules are looked for in these folders first."""
    inherited = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [*map(str, folders), inherited]))}


def another(tmp_path: pathlib.Path, text: str = FAKE) -> dict[str, str]:
    """An environment in which other packages of these names are installed."""
    for name in ("safetensors", "fastsafetensors"):
        package = tmp_path / "site" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(text)
        (package / "mlx.py").write_text(FAKE)
    return with_path(tmp_path / "site")


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=env)


def script(text: str, env: dict[str, str] | None = None) -> None:
    done = run("-c", text, env=env)
    assert done.returncode == 0, done.stderr


def test_every_name_and_module_is_the_drop_ins(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("torch")
    script(
        """
import importlib, importlib.metadata, importlib.util, sys
import tensorhold
tensorhold.install_as_safetensors()
tensorhold.install_as_safetensors()
assert "torch" not in sys.modules and "numpy" not in sys.modules
assert importlib.util.find_spec("safetensors") is not None and importlib.util.find_spec("safetensors.torch") is not None
import safetensors
import safetensors.torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
import tensorhold.numpy, tensorhold.torch
import tensorhold.safetensors as ours
assert safetensors is ours and safetensors.__version__ == "0.8.0"
assert safetensors.torch is ours.torch and load_file is ours.numpy.load_file is tensorhold.numpy.load_file
assert safetensors.torch.load_file is tensorhold.torch.load_file
assert importlib.metadata.version("safetensors") == "0.8.0"
assert "safetensors" in importlib.metadata.packages_distributions()["safetensors"]
assert SafetensorError is tensorhold.Error and hasattr(importlib.import_module(SafetensorError.__module__), "SafetensorError")
assert importlib.util.find_spec("fastsafetensors") is None or "tensorhold" not in importlib.util.find_spec("fastsafetensors").origin
try:
    import safetensors.mlx
except ModuleNotFoundError as error:
    assert error.name == "safetensors.mlx", error
else:
    raise AssertionError("there is no such module")
""",
        another(tmp_path),
    )


def test_both_aliases_can_be_installed(tmp_path: pathlib.Path) -> None:
    script(
        """
import tensorhold
tensorhold.install_as_safetensors()
tensorhold.install_as_fastsafetensors()
import safetensors, fastsafetensors
assert (safetensors.__name__, fastsafetensors.__name__) == ("tensorhold.safetensors", "tensorhold.fastsafetensors")
""",
        another(tmp_path),
    )


def test_one_that_was_imported_before_is_an_error(tmp_path: pathlib.Path) -> None:
    script(
        """
import safetensors, tensorhold
try:
    tensorhold.install_as_safetensors()
except ImportError as error:
    assert "install_as_safetensors() before whatever imports it" in str(error) and "site" in str(error), error
else:
    raise AssertionError("it was replaced")
""",
        another(tmp_path, ""),
    )


def test_the_package_itself_imports_no_other_safetensors(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("torch")
    script(
        f"""
import sys, torch
import tensorhold.numpy, tensorhold.torch, tensorhold.fastsafetensors
path = {str(tmp_path / "a.safetensors")!r}
tensorhold.torch.save_file({{"a": torch.ones(2)}}, path)
assert tensorhold.torch.load_file(path)["a"].tolist() == [1, 1]
assert "safetensors" not in sys.modules
""",
        another(tmp_path),
    )


def test_runpy_runs_the_code_of_the_drop_in() -> None:
    pytest.importorskip("numpy")
    script(
        """
import runpy
import tensorhold
tensorhold.install_as_safetensors()
found = runpy.run_module("safetensors.numpy")
assert found["save_file"].__code__.co_filename.endswith("tensorhold/safetensors/numpy.py")
"""
    )


THREADS = """
import importlib, sys, threading
import numpy, torch
import tensorhold
tensorhold.install_as_safetensors()
tensorhold.install_as_fastsafetensors()
sys.setswitchinterval(1e-6)
statements = sys.argv[1:]
barrier, errors = threading.Barrier(4 * len(statements)), []

def work(statement):
    barrier.wait()
    try:
        exec(statement, {})
    except BaseException as error:
        errors.append(f"{statement}: {error!r}")

threads = [threading.Thread(target=work, args=(statement,)) for statement in 4 * statements]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not errors, errors
"""


@pytest.mark.parametrize(
    "statements",
    [
        ["from safetensors.torch import load_file", "from tensorhold.safetensors.torch import _TYPES", "import safetensors.torch as t; t.save"],
        ["from fastsafetensors import ParallelLoader", "from fastsafetensors.parallel_loader import ParallelLoader", "from fastsafetensors import SingleGroup"],
        ["from tensorhold.torch import _find_shared_tensors"],
        ["from tensorhold.numpy import _TYPES", "from tensorhold.numpy import load_file", "from safetensors.numpy import _TYPES"],
    ],
    ids=lambda statements: statements[0],
)
def test_threads_that_import_at_the_same_time_all_get_the_names(statements: list[str]) -> None:
    pytest.importorskip("torch")
    for _ in range(2):
        done = run("-c", THREADS, *statements)
        assert done.returncode == 0, done.stderr


def test_an_alias_leaves_the_module_as_its_own_import_makes_it() -> None:
    pytest.importorskip("numpy")
    script(
        """
import importlib, pickle, sys
import tensorhold
tensorhold.install_as_safetensors()
executed = []
sys.addaudithook(lambda event, found: event == "exec" and found[0].co_filename.endswith("safetensors/numpy.py") and executed.append(found[0].co_name))
import safetensors.numpy
import tensorhold.safetensors.numpy as ours
from tensorhold.safetensors.numpy import load_file
assert executed == ["<module>"], executed
assert sys.modules["safetensors.numpy"] is ours and safetensors.numpy is ours

def assert_whole():
    assert ours.__name__ == ours.__spec__.name == "tensorhold.safetensors.numpy"
    assert ours.__package__ == ours.__spec__.parent == "tensorhold.safetensors"
    assert ours.__loader__ is ours.__spec__.loader and type(ours.__loader__).__name__ == "SourceFileLoader"
    assert ours.__spec__.origin == ours.__file__ and not getattr(ours.__spec__, "_initializing", False)

assert_whole()
assert pickle.loads(pickle.dumps(load_file)) is safetensors.numpy.load_file
assert pickle.loads(b"csafetensors.numpy\\nload_file\\n.") is load_file
assert importlib.reload(safetensors.numpy) is ours
assert_whole()
assert safetensors.numpy.load_file is not load_file
del sys.modules["safetensors.numpy"]
executed.clear()
assert importlib.import_module("safetensors.numpy") is ours and not executed
assert_whole()
"""
    )


PROGRAM = """
import sys
import multiprocessing

def names():
    import fastsafetensors, safetensors.numpy
    return fastsafetensors.__name__, safetensors.numpy.__name__, safetensors.__version__

def child(queue):
    queue.put(names())

if __name__ == "__main__":
    print("main", *names(), sys.argv[1:])
    for method in ("spawn", "fork", "forkserver"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        print(method, *queue.get(timeout=60))
        process.join()
    import subprocess
    code = "import os, fastsafetensors as f, safetensors as s, sitecustomize; print('grandchild', f.__name__, s.__name__, os.environ['CUSTOMIZED'])"
    print(subprocess.check_output([sys.executable, "-c", code], text=True))
    sys.exit(3)
"""


def test_a_program_and_its_children_find_both(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("numpy")
    (tmp_path / "sitecustomize.py").write_text("import os; os.environ['CUSTOMIZED'] = 'yes'")
    (tmp_path / "program.py").write_text(PROGRAM)
    env = another(tmp_path)
    env = {**env, "PYTHONPATH": os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])}
    both = ["--as", "safetensors", "--as=fastsafetensors"]
    for arguments in (["--", str(tmp_path / "program.py"), "-a", "--b"], ["-m", "program", "-a", "--b"]):
        done = run("-m", "tensorhold.run", *both, *arguments, env=env)
        assert done.returncode == 3, done.stderr
        found = "tensorhold.fastsafetensors tensorhold.safetensors.numpy 0.8.0"
        assert f"main {found} ['-a', '--b']" in done.stdout, done.stdout
        for method in ("spawn", "fork", "forkserver"):
            assert f"{method} {found}" in done.stdout, done.stdout
        assert "grandchild tensorhold.fastsafetensors tensorhold.safetensors yes" in done.stdout


def test_only_the_named_package_is_replaced(tmp_path: pathlib.Path) -> None:
    (tmp_path / "program.py").write_text("import safetensors, fastsafetensors; print(safetensors.__name__, fastsafetensors.__name__)")
    env = another(tmp_path, "")
    for arguments, found in (
        ([], ["safetensors", "tensorhold.fastsafetensors"]),
        (["--as", "safetensors"], ["tensorhold.safetensors", "fastsafetensors"]),
        (["--as", "fastsafetensors", "--as", "safetensors"], ["tensorhold.safetensors", "tensorhold.fastsafetensors"]),
    ):
        done = run("-m", "tensorhold.run", *arguments, str(tmp_path / "program.py"), env=env)
        assert done.stdout.split() == found, done.stderr


def test_usage_errors_end_with_2() -> None:
    for arguments, text in (
        (["--as", "nonsense", "--", "program"], "invalid choice: 'nonsense'"),
        (["--as"], "expected one argument"),
        (["--as", "safetensors"], "no program was named"),
        (["-m"], "expected one argument"),
        (["--nonsense", "program"], "unrecognized arguments"),
    ):
        done = run("-m", "tensorhold.run", *arguments)
        assert done.returncode == 2, (arguments, done.stdout, done.stderr)
        assert text in done.stderr and "usage:" in done.stderr


def test_options_behind_a_module_are_the_modules(tmp_path: pathlib.Path) -> None:
    (tmp_path / "program.py").write_text("import sys; print(sys.argv[1:])")
    for arguments in (["-q"], ["--as", "x"], ["-h"], ["-m", "y"], ["a", "-b"]):
        done = run("-m", "tensorhold.run", "-m", "program", *arguments, env=with_path(tmp_path))
        assert done.stdout.strip() == str(arguments), done.stderr
