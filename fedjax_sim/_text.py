"""Text from outside: parsed without trusting it, and cleaned of what a terminal would take for a command."""

import json
import tomllib
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """What JSON text stands for.

    Raises:
      ValueError: it is no JSON, nested too deeply, or holds a whole number too long to read; the message is one line.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(_reason(error)) from None


def parse_toml(text: str) -> dict[str, Any]:
    """The table that TOML text stands for.

    Raises:
      ValueError: as in `parse_json`.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(_reason(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "its brackets are nested too deeply"
    if "int_max_str_digits" in str(error):  # of Python, against numbers that take minutes to read
        return "a whole number has too many digits"
    return " ".join(str(error).split())


def whole_characters(text: str) -> str:
    """`text` with the halves of characters that were cut in two replaced, so that it can be written as UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def say(console: Any, text: Any) -> None:
    """Prints lines on a console of rich as they are, but for control characters; nothing in them is markup."""
    lines = "\n".join(map(clean, str(text).split("\n")))
    console.print(lines, highlight=False, markup=False, emoji=False, soft_wrap=True)


def clean(value: Any) -> str:
    """`value` as text without control characters, which neither terminals nor pages should see."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))
