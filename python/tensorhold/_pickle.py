"""How exceptions and open checkpoints go through pickle."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tensorhold.opened import safe_open

OF_BUILT_IN = ["errno", "strerror", "filename", "filename2", "name"]
"""What `OSError` and `ImportError` keep outside of `__dict__`."""


def reduce_error(error: BaseException) -> "tuple[Any, ...]":
    """An exception as its class, its arguments and all of its attributes."""
    state = dict(error.__dict__)
    for name in OF_BUILT_IN:
        value = getattr(error, name, None)
        if value is not None:
            state[name] = value
    return type(error), error.args, state or None


def reopen(kind: "type[safe_open]", filename: "list[str]", framework: str, device: "Any", options: "dict[str, Any]") -> "safe_open":
    """Opens a checkpoint as it was opened where it was pickled."""
    return kind(filename, framework, device, **options)


def check_options(options: "dict[str, Any]") -> None:
    """Refuses options that cannot be pickled, by their names."""
    import pickle

    for name, value in options.items():
        try:
            pickle.dumps(value)
        except Exception as error:
            raise TypeError(
                f"pickle safe_open: its option {name} is a {type(value).__name__} that cannot be pickled; open the checkpoint in the other process"
            ) from error
