"""Text of other origin, as error messages show it."""

SHOWN = 200


def quoted(value: object) -> str:
    """The value's repr, and a string in double quotes, as the core's messages have it: of one that is longer than 200 characters its first 200 and its length."""
    if not isinstance(value, str):
        return repr(value)
    shown = "".join(_escaped(character) for character in value[:SHOWN])
    return f'"{shown}"' if len(value) <= SHOWN else f'"{shown}"... ({len(value)} characters)'


def _escaped(character: str) -> str:
    if character == '"':
        return '\\"'
    return character if character.isprintable() and character != "\\" else repr(character)[1:-1]


def kind(value: object) -> str:
    """The name of the value's type; None for None, as the core's messages have it."""
    return "None" if value is None else type(value).__name__
