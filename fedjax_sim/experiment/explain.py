"""Words for what is wrong with a configuration: one line with the setting, the value and the fix."""

import difflib
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from fedjax_sim._validate import InputError, shown

_KINDS = {int: "a whole number", float: "a number", str: "a text in quotes", bool: "true or false"}
_LIMITS = {"gt": "over", "ge": "of at least", "lt": "below", "le": "of at most"}


def settings(config: type[BaseModel]) -> dict[str, FieldInfo]:
    """Every setting of a configuration of sections, by its path such as "training.rounds"."""
    return {
        f"{section}.{key}": field for section in config.model_fields for key, field in _keys(config, section).items()
    }


def _keys(config: type[BaseModel], section: str) -> dict[str, FieldInfo]:
    holder = config.model_fields[section].annotation
    assert isinstance(holder, type)
    assert issubclass(holder, BaseModel)
    return holder.model_fields


def explain(error: ValidationError, config: type[BaseModel]) -> str:
    """The first of pydantic's errors, in one line."""
    first = error.errors(include_url=False)[0]
    if isinstance(cause := first.get("ctx", {}).get("error"), InputError):
        return str(cause)
    location, given = first["loc"], first["input"]
    path = ".".join(str(part) for part in location[:2])
    if first["type"] == "extra_forbidden":
        return f"{path}: unknown {'key' if len(location) > 1 else 'section'}; {_meant(path, config)}"
    if len(location) < 2:
        where, table = path or "configuration", path or "section"
        return f"{where}: {shown(given, 60)} is not a table; write [{table}] and its keys below it"
    return f"{path}: {shown(given, 60)} is not allowed; give {allowed(settings(config)[path])}"


def nearest(word: str, choices: Iterable[str]) -> str:
    """Which choice `word` may have meant, or else what the choices are."""
    choices = list(choices)
    found = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean {found[0]}?" if found else f"choose one of {', '.join(choices)}"


def _meant(path: str, config: type[BaseModel]) -> str:
    section, _, key = path.partition(".")
    known = settings(config)
    if section not in config.model_fields:
        same_key = [p for p in known if p.partition(".")[2] == (key or section)]
        return f"did you mean {same_key[0]}?" if same_key else nearest(section, config.model_fields)
    keys = list(_keys(config, section))
    elsewhere = [p for p in known if p.partition(".")[2] == key]
    if elsewhere and not difflib.get_close_matches(key, keys, n=1):
        return f"did you mean {elsewhere[0]}?"
    return nearest(key, keys)


def allowed(field: FieldInfo) -> str:
    """What a setting may be, in words."""
    return f"{' or '.join(_kinds(field.annotation, field.metadata))} ({field.description})"


def says(annotation: Any) -> str:
    """What a type allows, in words."""
    return " or ".join(dict.fromkeys(_kinds(annotation))) or getattr(annotation, "__name__", str(annotation))


def _kinds(annotation: Any, metadata: Iterable[Any] = ()) -> Iterator[str]:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _kinds(args[0], [m for extra in args[1:] for m in extra.metadata])
    elif origin is Literal:
        yield " or ".join(f'"{choice}"' for choice in args)
    elif origin is tuple:
        yield f"a list, each {next(_kinds(args[0]))}"
    elif annotation in _KINDS:
        bounds = [
            f"{words} {getattr(m, name)}" for m in metadata for name, words in _LIMITS.items() if hasattr(m, name)
        ]
        yield " ".join([_KINDS[annotation], " and ".join(bounds)]).rstrip()
    else:  # a union; None stands for a setting left out, which TOML cannot write
        for kind in args:
            if kind is not type(None):
                yield from _kinds(kind, metadata)
