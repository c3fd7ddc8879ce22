"""Forked children: what they drop does nothing, what belongs to the parent is refused, and no one waits for a thread that a child does not have."""

from __future__ import annotations

import pathlib

import pytest
from support import import_for, python, write_sparse

# What every script begins with. A child that hangs is ended by its alarm.
PREAMBLE = """
import gc, os, signal, sys, threading, tensorhold
file, other = sys.argv[1:]
def child(use, leave=os._exit):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            use()
            gc.collect()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        leave(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, code
def refuses(use):
    try:
        use()
    except tensorhold.ForkError as error:
        assert "forked from" in str(error), error
    else:
        raise AssertionError("it was not refused")
def fresh():
    assert len(tensorhold.load_file(file, framework="np")) == 5
    assert len(list(tensorhold.stream(file))) == 5
    with tensorhold.safe_open(file, "np") as f:
        assert f.get_tensor("ids").shape == (7,)
    assert sum(len(weights) for weights in tensorhold._core.batches(file)) == 5
# Holds the threads of loads for as long as the parent wants.
go = threading.Event()
def hold(progress):
    if progress.done_bytes:
        go.wait()
"""

STEPS = {
    "a loaded file": """
made = tensorhold.load_file(file, framework="np")
def use():
    global made
    assert made["ids"].shape == (7,)
    del made
    fresh()
""",
    "a stream in the middle": """
made = tensorhold.stream(other, threads=1, progress=hold)
next(made)
def use():
    global made
    refuses(lambda: next(made))
    refuses(made.finish)
    made.close()
    del made
    fresh()
""",
    "a stream in the middle, in a with": """
made = tensorhold.stream(other, threads=1, progress=hold)
next(made)
def use():
    global made
    with made:
        pass
    del made
""",
    "batches in the middle": """
made = tensorhold._core.batches(other, threads=1, max_batch_bytes=1 << 22, ahead=2, progress=hold)
def use():
    global made
    refuses(lambda: next(made))
    made.close()
    del made
    fresh()
""",
    "an open file": """
made = tensorhold.safe_open(file, "np")
part = made.get_slice("matrix")
made.get_tensor("matrix")
def use():
    global made, part
    refuses(lambda: made.get_tensor("ids"))
    refuses(lambda: part[:, 1:2])
    refuses(made.load)
    refuses(lambda: list(made))
    assert len(made.keys()) == 5
    with made:
        pass
    assert made.closed
    del made, part
    fresh()
""",
    "a pool": """
made = tensorhold.Pool()
weights = tensorhold.load(file, pool=made)
def use():
    global made, weights
    refuses(made.trim)
    refuses(made.stats)
    refuses(weights.close)
    refuses(lambda: tensorhold.load(file, pool=made))
    del made, weights
    fresh()
""",
    "DLPack's capsules and arrays": """
weights = tensorhold.load(file)
made = [weights["matrix"].__dlpack__(), weights["matrix"].numpy(), weights["ids"].numpy()]
def use():
    global made, weights
    assert made[1].shape == (3, 5)
    del made, weights
""",
    "a draft of a file": """
plans = tensorhold._core.plan_shards([("t", "U8", [3])], [other + ".saved"], metadata={}, first_metadata={}, shard_metadata=None, header_align=8, shard_set=None)
made = tensorhold._core._Draft(plans)
def use():
    global made
    refuses(made.commit)
    made.close()
    del made
def after():
    assert os.path.exists(made.paths[0])
    made.commit()
""",
    "a draft that a child drops": """
plans = tensorhold._core.plan_shards([("t", "U8", [3])], [other + ".saved"], metadata={}, first_metadata={}, shard_metadata=None, header_align=8, shard_set=None)
made = tensorhold._core._Draft(plans)
def use():
    global made
    del made
def after():
    assert os.path.exists(made.paths[0])
""",
    "the drop-in's loader in the middle": """
import tensorhold.fastsafetensors as drop_in
made = drop_in.ParallelLoader(None, [other], use_tqdm_on_load=False, framework="pytorch", max_batch_bytes=1 << 22).iterate_weights()
next(made)
def use():
    global made
    made.close()
    del made
    again = drop_in.ParallelLoader(None, [file], use_tqdm_on_load=False, framework="pytorch")
    assert len(list(again.iterate_weights())) == 5
    again.close()
    fresh()
""",
    "threads that load": """
def work():
    while not go.is_set():
        tensorhold.load_file(file, framework="np")
        list(tensorhold.stream(file))
        with tensorhold.safe_open(file, "np") as f:
            for name in f.keys():
                f.get_tensor(name)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
opened = tensorhold.safe_open(file, "np")
made = [tensorhold.stream(file), opened, tensorhold._core.batches(file), tensorhold.load(file)]
def use():
    global made, opened
    opened.close()
    del made, opened
    fresh()
def after():
    go.set()
    for thread in threads:
        thread.join()
""",
}


@pytest.mark.parametrize("step", STEPS)
def test_a_child_drops_closes_and_exits_and_loads_on_its_own(
    checkpoint: pathlib.Path, tmp_path: pathlib.Path, step: str
) -> None:
    import_for("numpy", "cpu")
    if "drop-in" in step:
        import_for("torch", "cpu")
    other = write_sparse(tmp_path / "other.safetensors", 8, 1 << 20)
    # By exit handlers, at the end of the interpreter, and without either.
    ends = """
after = globals().get("after", lambda: None)
child(use)
child(use, sys.exit)
child(lambda: None)
child(lambda: None, sys.exit)
after()
go.set()
fresh()
"""
    python(PREAMBLE + STEPS[step] + ends, str(checkpoint), str(other))
