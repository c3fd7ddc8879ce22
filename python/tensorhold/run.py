"""Runs a program with tensorhold in the place of fastsafetensors, or of safetensors: `python -m tensorhold.run -- vllm serve ...`.

`--as` names the package, and may be given several times. The program is a console script, a file, or with `-m` a module. It runs in this process. Processes
that it starts find tensorhold there, too, as far
as they read `PYTHONPATH` (not those started with `-I`, `-E` or `-S`).
"""

import argparse
import importlib.metadata
import importlib.util
import os
import runpy
import shutil
import sys

from tensorhold import _alias

HOOKS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_hook")
"""One folder for each alias, which child processes search first."""


def main(arguments: "list[str] | None" = None) -> object:
    """Runs what the arguments say."""
    parser = argparse.ArgumentParser(
        prog="python -m tensorhold.run",
        usage="%(prog)s [-h] [--as PACKAGE] [-m MODULE] [--] PROGRAM [ARGUMENT ...]",
        description="Runs a program with tensorhold in the place of fastsafetensors or safetensors, in its child processes, too.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--as",
        dest="aliases",
        metavar="PACKAGE",
        action="append",
        choices=list(_alias.DROP_INS),
        help=f"the package that tensorhold stands in for: {' or '.join(_alias.DROP_INS)}; may be given several times (default: fastsafetensors)",
    )
    parser.add_argument("-m", dest="module", metavar="MODULE", help="run a module, as python -m does; all that follows is its arguments")
    parser.epilog = "PROGRAM is a console script such as vllm, or a file. What follows it is its arguments."
    own, rest = _divide(sys.argv[1:] if arguments is None else arguments)
    found = parser.parse_args(own)
    if found.module is None and not rest:
        parser.error("no program was named: got no argument, expected a console script, a file, or -m MODULE, such as: -- vllm serve MODEL")
    for alias in found.aliases or ["fastsafetensors"]:
        _alias.install(alias)
        _reach_children(alias)
    if found.module is not None:
        try:
            there = importlib.util.find_spec(found.module)
        except ModuleNotFoundError:
            there = None
        if there is None:
            parser.error(f"find module {found.module!r}: there is none of that name; install it, or check the name")
        sys.argv = [found.module, *rest]
        return runpy.run_module(found.module, run_name="__main__", alter_sys=True)
    return _run(parser, rest[0], rest)


def _divide(arguments: "list[str]") -> "tuple[list[str], list[str]]":
    """The arguments of `tensorhold.run`, and those of the program, whose options `argparse` would take for its own."""
    end = 0
    while end < len(arguments) and arguments[end].startswith("-") and arguments[end] != "--":
        option = arguments[end]
        end += 2 if option in ("-m", "--as") else 1
        if option.startswith("-m"):
            break
    rest = arguments[end:]
    return arguments[:end], rest[1:] if rest[:1] == ["--"] else rest


def _reach_children(alias: str) -> None:
    """Puts the hook of an alias first on the path of processes that this one starts."""
    hook = os.path.join(HOOKS, alias)
    path = os.environ.get("PYTHONPATH", "")
    entries = [entry for entry in path.split(os.pathsep) if entry]
    if hook not in entries:
        os.environ["PYTHONPATH"] = os.pathsep.join([hook, *entries])


def _run(parser: argparse.ArgumentParser, program: str, argv: "list[str]") -> object:
    is_name = os.path.basename(program) == program
    if is_name and not os.path.isfile(program):
        for entry in _console_scripts():
            if entry.name == program:
                sys.argv = argv
                return sys.exit(entry.load()())
    file = program if os.path.isfile(program) else shutil.which(program)
    if file is None:
        parser.error(f"find program {program!r}: it is no console script, no file and not on the path; install it, or name its file")
    if not _is_python(file):
        parser.error(f"run {file!r}: it is no Python program, and another cannot be run in this process; name a Python script, or use -m")
    sys.argv = [file, *argv[1:]]
    # As the interpreter does for a script.
    sys.path.insert(0, os.path.dirname(os.path.abspath(file)))
    return runpy.run_path(file, run_name="__main__")


def _console_scripts() -> "list[importlib.metadata.EntryPoint]":
    found = importlib.metadata.entry_points()
    if hasattr(found, "select"):
        return list(found.select(group="console_scripts"))
    return list(found.get("console_scripts", []))  # Python 3.9


def _is_python(file: str) -> bool:
    if file.endswith((".py", ".pyz", ".pyc")):
        return True
    with open(file, "rb") as opened:
        first = opened.readline(256)
    return first.startswith(b"#!") and b"python" in first


if __name__ == "__main__":
    main()
