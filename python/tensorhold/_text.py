"""Text of other origin, as error messages show it."""

SHOWN = 200


def quoted(value: object) -> str:
    """The value's repr, of a string that is longer than 200 characters its first 200 and its length."""
    if isinstance(value, str) and len(value) > SHOWN:
        return f"{value[:SHOWN]!r}... ({len(value)} characters)"
    return repr(value)
