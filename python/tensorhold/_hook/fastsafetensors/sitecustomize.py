"""Found first on the path of processes that `python -m tensorhold.run` starts: installs an alias, and gives way to the next `sitecustomize`."""

import importlib.util
import os


def _customize() -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    alias = os.path.join(os.path.dirname(os.path.dirname(here)), "_alias.py")
    spec = importlib.util.spec_from_file_location("tensorhold._alias", alias)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.customize(here)


_customize()
