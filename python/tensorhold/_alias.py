"""Makes `import fastsafetensors` resolve to `tensorhold.fastsafetensors`.

This file is also run by itself, at the start of child processes (`_hook/sitecustomize.py`): it imports nothing of tensorhold before
`fastsafetensors` is asked for.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import importlib.machinery
    import importlib.metadata
    from collections.abc import Iterable, Sequence
    from types import ModuleType
    from typing import Any

ALIAS = "fastsafetensors"
TARGET = "tensorhold.fastsafetensors"

VERSION = "0.5.0"
"""The version of fastsafetensors whose names and behaviour the drop-in has."""


def _target(name: str) -> str:
    return TARGET + name[len(ALIAS) :]


class Finder:
    """Finds the alias and its submodules. Each is the very module of the target, under a second name."""

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "importlib.machinery.ModuleSpec | None":
        if fullname != ALIAS and not fullname.startswith(ALIAS + "."):
            return None
        import importlib.machinery
        import importlib.util

        try:
            found = importlib.util.find_spec(_target(fullname))
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

    def create_module(self, spec: "importlib.machinery.ModuleSpec") -> None:
        return None

    def exec_module(self, module: "ModuleType") -> None:
        import importlib

        # The import system takes what is under the name afterwards.
        sys.modules[module.__name__] = importlib.import_module(_target(module.__name__))

    def find_distributions(self, context: "Any" = None) -> "Iterable[importlib.metadata.Distribution]":
        if context is None or context.name is None or context.name.replace("_", "-").lower() == ALIAS:
            yield _distribution()


def _distribution() -> "importlib.metadata.Distribution":
    """What `importlib.metadata` is told: name and version."""
    # Not at the top: it takes longer to import than all else here.
    import importlib.metadata

    class Alias(importlib.metadata.Distribution):
        def read_text(self, filename: str) -> "str | None":
            if filename == "METADATA":
                return f"Metadata-Version: 2.1\nName: {ALIAS}\nVersion: {VERSION}\n"
            return None

        def locate_file(self, path: "Any") -> "Any":
            raise FileNotFoundError(f"find {path} of {ALIAS}: it is an alias of {TARGET}, which has no files of its own")

    return Alias()


def install_as_fastsafetensors() -> None:
    """Makes `import fastsafetensors`, and imports of its submodules, give the drop-in, in this process: also where fastsafetensors is installed.

    Call it before the first of these imports. A second call does nothing.

    Raises `ImportError` if another fastsafetensors has been imported already: what holds its classes would go on to use them.
    """
    # Found by name: this file may have been run by itself before.
    if any(type(finder).__module__ in (__name__, "tensorhold._alias") and type(finder).__name__ == "Finder" for finder in sys.meta_path):
        return
    imported = sys.modules.get(ALIAS)
    if imported is not None and getattr(imported, "__name__", None) != TARGET:
        where = getattr(imported, "__file__", None) or "an unknown place"
        raise ImportError(
            f"install as {ALIAS}: {ALIAS} has been imported from {where}, expected no import of it yet; "
            "call install_as_fastsafetensors() before whatever imports it",
            name=ALIAS,
        )
    sys.meta_path.insert(0, Finder())
