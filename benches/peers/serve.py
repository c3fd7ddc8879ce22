#!/usr/bin/env python3
"""Loads of peers.py in fresh processes, without importing torch, which takes seconds, for each of them.

The server, `serve.py --serve`, imports torch alone: no loader, no context of a device, no thread. For each request, a
line of JSON, it forks; the child imports its loader, makes its own context, loads and checks. What came of it is one
line of JSON again. Server is the near end of that.
"""

import gc
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import traceback

HERE = pathlib.Path(__file__).resolve().parent
START_SECONDS = 180  # torch may have to be read from a slow disk
GRACE_SECONDS = 15  # in which the server ends a child that is over the limit


def outcome(printed, complaints, code):
    """What a load came to: the last JSON that its process printed, or an error."""
    for line in reversed(printed.splitlines()):
        try:
            if line.startswith("{"):
                return json.loads(line)
        except ValueError:
            pass
    ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    said = [line.strip() for line in complaints.splitlines() if line.strip() and not line.startswith("note: ")]
    return {"error": (said or [ended])[-1][:300]}


def hung(limit):
    return {"error": f"took longer than {limit:.0f} s", "hung": True}


def process(command, environment, limit):
    """Runs a program of its own, for at most `limit` seconds if there is one, and returns what it came to."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
    except subprocess.TimeoutExpired:
        return hung(limit)
    except OSError as error:
        return {"error": str(error)}
    return outcome(done.stdout, done.stderr, done.returncode)


class Server:
    """Starts the server when the first load is asked for, and again when it has died."""

    def __init__(self, limit, environment):
        self.limit = limit
        self.environment = environment
        self.process = None
        self.complaints = None
        self.unusable = None  # why it does not start, once it did not

    def load(self, entry, folder, device):
        """The result of one load; None when there is no server to be had."""
        if self.process is None and not self.start():
            return None
        answer = self.ask({"entry": entry, "folder": str(folder), "device": device}, self.limit + GRACE_SECONDS)
        if answer is None:
            answer = {"error": f"the server died: {self.close()}"[:300]}
        return answer

    def start(self):
        if self.unusable is None:
            self.complaints = tempfile.TemporaryFile("w+")
            command = [sys.executable, str(HERE / "serve.py"), "--serve", str(self.limit)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.complaints}
            self.process = subprocess.Popen(command, **pipes, text=True, env=self.environment)
            if self.ask({}, START_SECONDS) is None:
                self.unusable = self.close()
                print(f"no server, each load starts Python: {self.unusable}", file=sys.stderr)
        return self.unusable is None

    def ask(self, request, seconds):
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            if select.select([self.process.stdout], [], [], seconds)[0]:
                return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):  # it is gone; the caller closes it
            pass
        return None

    def close(self):
        """Ends the server, and returns the last that it had to say."""
        if self.process is None:
            return None
        try:
            self.process.stdin.close()  # at which it ends, and its child with it
        except OSError:
            pass
        try:
            code = self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.complaints.seek(0)
        said = outcome("", self.complaints.read(), code)["error"]
        self.process = None
        return said


def serve(limit):
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's would start threads as soon as it is imported
    import torch

    sys.dont_write_bytecode = True  # of the file beside this one; the loaders' is kept
    import peers

    sys.dont_write_bytecode = False
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1 or torch.cuda.is_initialized() or "safetensors" in sys.modules:
        sys.exit(f"torch is not alone: {threads} threads, its context made: {torch.cuda.is_initialized()}")
    os.close(os.pidfd_open(os.getpid()))  # where the kernel has none, it says so now
    gc.freeze()  # so that no collection in a child copies what is here
    for line in sys.stdin:
        request = json.loads(line)
        answer = forked(peers.load, request, limit) if request else {}
        print(json.dumps(answer), flush=True)


def forked(load, request, limit):
    """What load(**request) returns in a child, which is ended with all its kind after the limit."""
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as complaints:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setsid()
                for file, number in [(open(os.devnull), 0), (printed, 1), (complaints, 2)]:
                    os.dup2(file.fileno(), number)
                print(json.dumps(load(**request)))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)  # some loaders' threads do not end by themselves
        try:
            watched = os.pidfd_open(child)
            # There is more to read only when the near end is gone: it awaits each answer.
            ended = watched in select.select([watched, sys.stdin], [], [], limit)[0]
            os.close(watched)
        finally:
            for end in (os.killpg, os.kill):  # the group, unless the child has not made it yet
                try:
                    end(child, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if not ended:
            return hung(limit)
        printed.seek(0)
        complaints.seek(0)
        return outcome(printed.read(), complaints.read(), code)


if __name__ == "__main__":
    if sys.argv[1:2] != ["--serve"]:
        sys.exit(__doc__)
    serve(float(sys.argv[2]))
