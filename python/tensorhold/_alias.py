"""Makes `import fastsafetensors` resolve to `tensorhold.fastsafetensors`, and `import safetensors` to `tensorhold.safetensors`.

This file is also run by itself, at the start of child processes (`_hook/`): it imports nothing of tensorhold before an alias is imported.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import importlib.machinery
    import importlib.metadata
    from collections.abc import Iterable, Sequence
    from types import CodeType, ModuleType
    from typing import Any


class DropIn:
    """A package of tensorhold that programs import under the name of another."""

    def __init__(self, alias: str, version: str) -> None:
        self.alias = alias
        self.target = f"tensorhold.{alias}"
        self.version = version
        """The version whose names and behaviour it has."""


DROP_INS = {one.alias: one for one in (DropIn("fastsafetensors", "0.5.0"), DropIn("safetensors", "0.8.0"))}


class Finder:
    """Finds one alias and its submodules. Each is the very module of the target, under a second name."""

    def __init__(self, drop_in: DropIn) -> None:
        self.drop_in = drop_in
        self._specs: "dict[str, importlib.machinery.ModuleSpec]" = {}

    def _target(self, name: str) -> str:
        return self.drop_in.target + name[len(self.drop_in.alias) :]

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "importlib.machinery.ModuleSpec | None":
        alias = self.drop_in.alias
        if fullname != alias and not fullname.startswith(alias + "."):
            return None
        import importlib.machinery
        import importlib.util

        try:
            found = importlib.util.find_spec(self._target(fullname))
        except ModuleNotFoundError:
            found = None
        if found is None:
            return None
        is_package = found.submodule_search_locations is not None
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=found.origin, is_package=is_package)  # type: ignore[arg-type]
        if is_package:
            # Nothing lies there: submodules are found here, or not at all.
            spec.submodule_search_locations = []
        return spec

    def create_module(self, spec: "importlib.machinery.ModuleSpec") -> "ModuleType":
        """The module of the target, imported: so threads that wait for the alias never see another module under it."""
        import importlib

        target = self._target(spec.name)
        module = importlib.import_module(target)
        if module.__spec__ is not None and module.__spec__.name == target:
            self._specs[target] = module.__spec__
        return module

    def exec_module(self, module: "ModuleType") -> None:
        # The target has been executed. The import system has set its spec to that of the alias.
        spec = self._specs.get(module.__name__)
        if spec is not None:
            module.__spec__ = spec

    def get_code(self, fullname: str) -> "CodeType | None":
        """The code of the target, which `runpy` and `python -m` run."""
        import importlib.util

        target = self._target(fullname)
        found = importlib.util.find_spec(target)
        if found is None or found.loader is None:
            raise ModuleNotFoundError(f"No module named {target!r}", name=target)
        code: "CodeType | None" = found.loader.get_code(target)  # type: ignore[attr-defined]
        return code

    def find_distributions(self, context: "Any" = None) -> "Iterable[importlib.metadata.Distribution]":
        if context is None or context.name is None or context.name.replace("_", "-").lower() == self.drop_in.alias:
            yield _distribution(self.drop_in)


def _distribution(drop_in: DropIn) -> "importlib.metadata.Distribution":
    """What `importlib.metadata` finds: name, version, and the name to import."""
    # Not at the top: it takes longer to import than all else here.
    import importlib.metadata

    texts = {
        "METADATA": f"Metadata-Version: 2.1\nName: {drop_in.alias}\nVersion: {drop_in.version}\n",
        "top_level.txt": f"{drop_in.alias}\n",
    }

    class Alias(importlib.metadata.Distribution):
        def read_text(self, filename: str) -> "str | None":
            return texts.get(filename)

        def locate_file(self, path: "Any") -> "Any":
            raise FileNotFoundError(f"find {path} of {drop_in.alias}: it is an alias of {drop_in.target}, which has no files of its own")

    return Alias()


def install(alias: str) -> None:
    """Makes imports of `alias` and its submodules give the drop-in of that name, in this process: also where the package of that name is installed.

    A second call does nothing.

    Raises `ImportError` if another package of that name has been imported already: what holds its classes would go on to use them.
    """
    drop_in = DROP_INS[alias]
    # Found by name: this file may have been run by itself before.
    for finder in sys.meta_path:
        kind = type(finder)
        if (kind.__module__, kind.__name__) == ("tensorhold._alias", "Finder"):
            found: Any = finder
            if found.drop_in.alias == alias:
                return
    imported = sys.modules.get(alias)
    if imported is not None and getattr(imported, "__name__", None) != drop_in.target:
        where = getattr(imported, "__file__", None) or "an unknown place"
        raise ImportError(
            f"install as {alias}: {alias} has been imported from {where}, expected no import of it yet; "
            f"call install_as_{alias}() before whatever imports it",
            name=alias,
        )
    sys.meta_path.insert(0, Finder(drop_in))


def customize(folder: str) -> None:
    """What the `sitecustomize` in a folder of `_hook/` does: installs the alias that the folder is named after, and runs the `sitecustomize` that is next on
    the path, if there is one."""
    import importlib
    import os

    install(os.path.basename(folder))
    ours = sys.modules.pop("sitecustomize", None)
    path = sys.path[:]
    sys.path[:] = [entry for entry in path if os.path.abspath(entry) != folder]
    try:
        importlib.import_module("sitecustomize")
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
        if ours is not None:
            sys.modules["sitecustomize"] = ours
    finally:
        sys.path[:] = path
