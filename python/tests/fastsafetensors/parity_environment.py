"""What fastsafetensors and the drop-in read of the environment: run by `test_fst_parity_environment.py`. Prints outcomes as JSON on the last line.

Arguments: `real` or `drop-in`, and a list of settings as JSON: the variables, what to do, the folder to do it in, and files. Each is tried in a process of its
own, forked from this one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import sys
from typing import Any

if sys.argv[1] == "drop-in":
    import tensorhold

    tensorhold.install_as_fastsafetensors()

from fastsafetensors import ParallelLoader, expert_parallel_filter_from_env, load_config  # noqa: E402
from fastsafetensors.frameworks import get_framework_op  # noqa: E402

get_framework_op("pytorch")


def read(what: str, files: list[str]) -> Any:
    if what == "configuration":
        return dataclasses.asdict(load_config())
    if what == "experts":
        keep = expert_parallel_filter_from_env()
        return None if keep is None else [keep(f"l.experts.{number}.w") for number in range(9)]
    loader = ParallelLoader(None, files, use_tqdm_on_load=False, nogds=True, queue_size=-1)
    weights = loader.iterate_weights()
    names = [next(weights)[0]]
    if what == "closed early":
        weights.close()
    else:
        names += [name for name, _ in weights]
    loader.close()
    return [loader.print_log, loader.log_prefix, names]


def outcome(env: dict[str, str], what: str, folder: str, files: list[str]) -> Any:
    os.environ.update(env)
    os.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            found: dict[str, Any] = {"returned": read(what, files)}
        except Exception as error:
            found = {"raised": [kind.__name__ for kind in type(error).__mro__[:-2]], "text": str(error)}
    return [found, printed.getvalue()]


def forked(setting: Any) -> Any:
    to_read, to_write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(to_read)
        with os.fdopen(to_write, "w") as pipe:
            json.dump(outcome(*setting), pipe)
        os._exit(0)
    os.close(to_write)
    with os.fdopen(to_read) as pipe:
        text = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(text)


print("\n" + json.dumps([forked(setting) for setting in json.loads(sys.argv[2])]))
