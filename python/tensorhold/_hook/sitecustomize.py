"""Found first on the path of processes that `python -m tensorhold.run` starts: installs the alias, and gives way to the next `sitecustomize`."""

import importlib
import importlib.util
import os
import sys


def _install() -> None:
    alias = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "_alias.py")
    spec = importlib.util.spec_from_file_location("tensorhold._alias", alias)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.install_as_fastsafetensors()


def _give_way() -> None:
    """Runs the `sitecustomize` that this one stands before, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    ours = sys.modules.pop("sitecustomize", None)
    path = sys.path[:]
    sys.path[:] = [entry for entry in path if os.path.abspath(entry) != here]
    try:
        importlib.import_module("sitecustomize")
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
        if ours is not None:
            sys.modules["sitecustomize"] = ours
    finally:
        sys.path[:] = path


_install()
_give_way()
