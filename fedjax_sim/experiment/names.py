"""What the names in settings stand for, and the options of what they name.

A name is one of a registry of this package, one that another package has declared as an entry point, or
`package.module:attribute` of any code that can be imported.
"""

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import jax
from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from fedjax_sim._validate import InputError, shown
from fedjax_sim.experiment.explain import nearest, says
from fedjax_sim.experiment.section import Section, value_of

GROUPS = "fedjax_sim."  # in front of a kind, it is the group of entry points: "fedjax_sim.algorithms"
_NOT_OPTIONS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_PLAIN = (bool, int, float, str, type(None))  # what a configuration can hold, and lists of these


def look_up(path: str, name: str, table: Mapping[str, Any], kind: str = "") -> Any:
    """What `name` stands for.

    Args:
      path: the setting that holds the name.
      name: as it was given.
      table: the registry.
      kind: "algorithms", "models", "sources", "partitions", "compressors" or "causes", of which other packages and
        the user's own code may have more; none of the rest.

    Raises:
      InputError: there is nothing of that name, or it cannot be imported; the message names the setting.
    """
    if name in table:
        return table[name]
    if not kind:
        raise InputError(f"{path}: {name!r} is unknown; {nearest(name, table)}")
    if (target := _target(name, kind)) is not None:
        return _imported(path, name, target)
    known = nearest(name, [*table, *(entry.name for entry in entry_points(group=GROUPS + kind))])
    raise InputError(f"{path}: {name!r} is unknown; {known}; your own is package.module:attribute")


def function(path: str, name: str, table: Mapping[str, Any], kind: str) -> Callable[..., Any]:
    """As `look_up`, of what is called.

    Raises:
      InputError: as `look_up` does, or it is no function.
    """
    found = look_up(path, name, table, kind)
    if not callable(found):
        raise InputError(f"{path}: {name} is a {type(found).__name__}; give a function that makes one of the {kind}")
    return found


def of_kind(path: str, name: str, found: Any, kinds: type | tuple[type, ...]) -> Any:
    """`found`, which the thing of this name gave.

    Raises:
      InputError: it is of another type.
    """
    if not isinstance(found, kinds):
        wanted = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise InputError(f"{path}: {name} gives a {type(found).__name__}; it has to give {wanted}")
    return found


def source_file(path: str, name: str, kind: str) -> Path | None:
    """The file with the code that a name of the user's own stands for; None for the registries' names.

    Raises:
      InputError: it cannot be imported.
    """
    if (target := _target(name, kind)) is None:
        return None
    _imported(path, name, target)
    found = getattr(sys.modules[target.partition(":")[0]], "__file__", None)
    return None if found is None else Path(found)


def option_names(factory: Callable[..., Any], given: Iterable[str], skip: int = 0) -> list[str]:
    """Parameters of a function that are options: all but the first `skip` and those of the names in `given`."""
    parameters = list(inspect.signature(factory).parameters.values())[skip:]
    return [p.name for p in parameters if p.name not in given and p.kind not in _NOT_OPTIONS]


def options_of(
    section: Section, path: str, factory: Callable[..., Any], given: Iterable[str] = (), *, skip: int = 0
) -> dict[str, Any]:
    """The options of a factory by name: as they are set, else its own defaults.

    Args:
      section: the table with the settings.
      path: its name.
      factory: whose signature counts.
      given: parameters that the caller fills in.
      skip: leading parameters that the caller fills in.

    Raises:
      InputError: an option that is of another type, or is missing.
    """
    parameters, hints, found = inspect.signature(factory).parameters, _hints(factory), dict[str, Any]()
    declared = type(section).model_fields
    for name in option_names(factory, given, skip):
        value, default = value_of(section, name), parameters[name].default
        if value is not None:
            found[name] = value if name in declared else _fitted(f"{path}.{name}", value, hints.get(name), default)
        elif default is not inspect.Parameter.empty:
            found[name] = default
        else:
            raise InputError(f"{path}.{name}: missing, and {value_of(section, 'name')} needs it; set it")
    return found


def refuse_unknown(section: Section, path: str, known: Iterable[str], whose: str = "") -> None:
    """Nothing is set that would be ignored.

    Args:
      section: the table with the settings.
      path: its name.
      known: settings that are used.
      whose: options they are, by default those of what `name` stands for.

    Raises:
      InputError: a setting that has a value and is not among `known`.
    """
    known, declared = set(known), type(section).model_fields
    for name in section.names():
        if value_of(section, name) is not None and name not in known:
            fix = "leave it out" if name in declared else nearest(name, sorted(known))
            raise InputError(f"{path}.{name}: {whose or value_of(section, 'name')} has no such option; {fix}")


def recordable(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options whose values a configuration can hold."""
    frozen = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    return {k: v for k, v in frozen.items() if all(type(x) in _PLAIN for x in (v if isinstance(v, tuple) else (v,)))}


def traceable(factory: Callable[..., Any]) -> set[str]:
    """Options that may be traced, which their annotations say: `float | jax.Array`."""
    return {name for name, hint in _hints(factory).items() if jax.Array in get_args(hint)}


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function's parameters, none where they name what is not there."""
    try:
        return get_type_hints(factory, include_extras=True)
    except (NameError, AttributeError, TypeError):
        return {}


def _fitted(path: str, value: Any, hint: Any, default: Any) -> Any:
    """A setting that nobody declared, as a factory's annotation or default says that it is to be."""
    if hint is None and type(default) in (bool, int, float, str):
        hint = type(default)
    union = get_origin(hint) in (Union, UnionType)
    kinds = [kind for kind in (get_args(hint) if union else (hint,)) if kind not in (None, type(None), jax.Array)]
    if not kinds:
        return value
    strict = not isinstance(value, tuple)  # which TOML has one kind of
    for kind in kinds:
        try:
            return TypeAdapter(kind).validate_python(value, strict=strict)
        except ValidationError:
            continue
        except PydanticSchemaGenerationError:  # a type of the user's own, which only the factory can check
            return value
    raise InputError(f"{path}: {shown(value, 60)} is not allowed; give {' or '.join(map(says, kinds))}")


def _target(name: str, kind: str) -> str | None:
    """The `module:attribute` that a name is, or that another package has declared it to be."""
    if ":" in name:
        return name
    return next((entry.value for entry in entry_points(group=GROUPS + kind) if entry.name == name), None)


def _imported(path: str, name: str, target: str) -> Any:
    """What `module:attribute` is; attributes may be nested."""
    module, _, attribute = target.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise InputError(
            f"{path}: {shown(name)} is no package.module:attribute; write mine:function for one of mine.py"
        )
    if module.endswith(".py"):
        raise InputError(f"{path}: {shown(name)} names a file; write {module.removesuffix('.py')}:{attribute}")
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        missing = isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}.")
        said = missing or isinstance(error, SyntaxError)  # where it went wrong
        at = "" if said else f", {Path(where.filename).name} line {where.lineno}"
        fix = "it is looked for in the current folder and among the installed packages" if missing else "mend it there"
        raise InputError(f"{path}: {module} cannot be imported ({type(error).__name__}: {error}{at}); {fix}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [each for each in vars(found) if not each.startswith("_")]
            raise InputError(f"{path}: {module} has no {attribute}; {nearest(part, names) if names else 'add it'}")
        found = getattr(found, part)
    return found
