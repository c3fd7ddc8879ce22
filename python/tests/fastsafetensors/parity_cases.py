"""The calls that are made of fastsafetensors and of the drop-in: run by `test_fst_parity_calls.py`, once with each.

Arguments: `real` or `drop-in`, a folder to work in, and the files. Prints what each call returned or raised, as JSON, on the last line.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from parity_base import plain  # isort: skip

import parity_files
import parity_objects
import parity_pipelines


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return {"returned": plain(call())}
    except Exception as error:
        return {"raised": [kind.__name__ for kind in type(error).__mro__[:-2]], "text": str(error)[:300]}


def main() -> None:
    os.chdir(sys.argv[2])
    found = {}
    # Files first: fastsafetensors keeps the memory of buffers that are dropped, and not closed, and that memory is counted there.
    for name, call in itertools.chain(parity_files.cases(), parity_pipelines.cases(), parity_objects.cases()):
        assert name not in found, name
        found[name] = outcome(call)
    print("\n" + json.dumps(found))


if __name__ == "__main__":
    main()
