"""The functions that load: `load`, `load_file` and `stream`.

A `device` or an option that is None counts as not given.

Options, of these and of `safe_open`:

- `variant`: of a folder, the weights of this variant, such as `fp16` for `model.fp16.safetensors`; those without a variant if it is left out;
- `select`: names, or a rule from a `TensorInfo` to whether it is wanted, asked before any tensor's bytes are read;
- `dtype`: the type that floats are converted to on their way, or a rule from a `TensorInfo` to a type or None;
- `cuts`: a dict from names to a `Cut` or several, or a rule from a `TensorInfo` to them;
- `backend`: how files are read: `auto`, `buffered`, `direct`, `io-uring` or `gds`; `mmap` and `pread`, which `safetensors` has, mean the same as `auto`;
- `memory_budget`: how many bytes of the device's memory the load may take;
- `threads`: how many threads read; `staging_bytes`: how much pinned memory they use;
- `pool`: the memory that tensors are placed in, a `Pool`; a pool of their own if it is left out;
- `parts`, without a pool: whether a tensor's memory goes back to the device with the tensor, though its neighbours live: where the device can, unless it is
  said; True, or it is an error; False, all goes when the last has gone;
- `count_conversions`: whether values out of range are counted for the report;
- `progress`: True for a bar, if `tqdm` is there, or what is called with a `Progress` now and then; if it returns False, the load ends.
"""

from tensorhold import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from typing_extensions import Unpack

    from tensorhold._core import Stream, Weights
    from tensorhold.types import Device, LoadOptions, Options, Path, Paths


def load(paths: "Paths", device: "Device | None" = "cpu", **options: "Unpack[LoadOptions]") -> "Weights":
    """Loads a checkpoint: a folder, an index, a file, or several of these.

    When it returns, each tensor is readable on any stream and from any thread.
    """
    with _Bar(options) as passed:
        return _core.load(paths, device, **passed)


def stream(
    paths: "Paths", device: "Device | None" = "cpu", *, in_file_order: "bool | None" = False, **options: "Unpack[LoadOptions]"
) -> "Stream":
    """Begins to load a checkpoint, and gives each tensor as its bytes land.

    A file that changes during the load may be found out after tensors of it have been given: `finish` says so.
    """
    if options.get("progress") is True:
        raise _core.OptionError(
            "option progress: got True for a stream, expected a function; show what the iteration gives"
        )
    return _core.stream(paths, device, in_file_order=in_file_order, **_plain(options))


def load_file(
    filename: "Paths", device: "Device | None" = "cpu", framework: str = "pt", **options: "Unpack[LoadOptions]"
) -> "dict[str, Any]":
    """Loads a checkpoint into a dict of the framework's tensors: `pt`, `np`, `jax` or `cupy`.

    The tensors own their memory: each keeps its own bytes alive and no others. They may be written to.
    """
    from tensorhold import frameworks

    converter = frameworks.find(framework)
    device = converter.prepare(device)
    weights = load(_core.path_list("argument filename", filename), device, **options)
    return frameworks.hand_over(weights, converter)


def save_file(
    tensors: "Mapping[str, Any]",
    filename: "Path",
    metadata: "Mapping[str, str] | None" = None,
    *,
    synced: "bool | None" = False,
) -> None:
    """Writes a safetensors file of tensors of torch, NumPy, JAX, CuPy or tensorhold, by their names.

    `metadata` are the strings of its header. An empty dict is written as such, and is not the same as None.

    The file is there as a whole or not at all: it gets its name when all has been written, and with `synced` when that is on the disk. Tensors that are on
    a device, or have gaps, are copied to host memory first. Tensors that share memory are each written in full.

    A regular file of that name is replaced. The new file keeps its permissions, and its owner and group where the system allows that. A symbolic link is
    followed: what it leads to is replaced. Of a file with several names (hard links) only this one gets the new content. A directory, a device, a FIFO or
    a socket is a `FileError`, and a file that this user may not write to an `AccessError`; both stay as they are.
    """
    from tensorhold import _arguments, frameworks

    path = _arguments.path("filename", filename)
    strings = _arguments.strings("metadata", metadata)
    items = [frameworks.item(name, tensor) for name, tensor in _arguments.named("tensors", tensors, "tensors")]
    _core.save_file(path, items, strings, _arguments.flag("synced", synced) if synced is not None else False)


def install_as_fastsafetensors() -> None:
    """Makes `import fastsafetensors` resolve to `tensorhold.fastsafetensors` in this process, from now on."""
    from tensorhold import _alias

    _alias.install_as_fastsafetensors()


def _plain(options: "LoadOptions") -> "Options":
    progress = options.get("progress")
    if progress is True or progress is False:
        options = {**options, "progress": None}
    return options  # type: ignore[return-value]


class _Bar:
    """What `progress=True` shows while a load runs: a bar of `tqdm`, or nothing where that is not installed."""

    def __init__(self, options: "LoadOptions") -> None:
        self.options = options
        self.bar: Any = None

    def __enter__(self) -> "Options":
        if self.options.get("progress") is not True:
            return _plain(self.options)
        try:
            from tqdm.auto import tqdm
        except ImportError:
            return _plain(self.options)
        # Scaled here: a bar that scales shows a unit without its prefix while there is little.
        form = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total:.1f} MiB [{elapsed}<{remaining}, {rate_fmt}]"
        self.bar = tqdm(total=0, unit="MiB", bar_format=form, desc="loading")
        return {**self.options, "progress": self.show}

    def show(self, progress: "_core.Progress") -> None:
        self.bar.total = progress.total_bytes / 2**20
        self.bar.update(progress.done_bytes / 2**20 - self.bar.n)

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()
