"""What all tables of settings have in common."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from fedjax_sim._validate import InputError, shown, single

MOST = 1_000_000_000  # of anything that is counted

LARGEST = 3e38  # of any other number: float32 has none beyond, and products of two are finite in float64

Count = Annotated[int, Field(ge=1, le=MOST)]
Natural = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[float, Field(gt=0, le=LARGEST)]
NotNegative = Annotated[float, Field(ge=0, le=LARGEST)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Dial = Annotated[float, Field(ge=0, le=1)]
READ = "read"  # marks settings that name a file or folder whose content a result depends on


class Section(BaseModel):
    """A frozen table of settings; unknown keys, wrong types, NaN and infinities are refused, and texts that can be
    neither the name of a file nor written into one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def names(self) -> list[str]:
        """Of the settings."""
        return [*type(self).model_fields, *(self.model_extra or {})]

    @model_validator(mode="after")
    def _texts_can_be_written(self) -> Self:
        for name in self.names():
            text = value_of(self, name)
            if isinstance(text, str) and ("\0" in text or any("\ud800" <= c <= "\udfff" for c in text)):
                raise InputError(
                    f"{type(self).__name__.lower()}.{name}: {shown(text)} holds NUL or what is not UTF-8; leave "
                    "that out"
                )
        return self

    @model_validator(mode="after")
    def _numbers_fit_float32(self) -> Self:
        for name in self.names():
            value, field = value_of(self, name), type(self).model_fields.get(name)
            if isinstance(value, float):
                fraction = field is not None and any(getattr(limit, "lt", None) == 1 for limit in _limits(field))
                single(f"{type(self).__name__.lower()}.{name}", value, below_one=fraction)
        return self


class Open(Section):
    """A table whose further settings are options of what its `name` stands for; who looks that up checks them."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _lists_are_frozen(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        own = {k: tuple(v) for k, v in given.items() if k not in cls.model_fields and isinstance(v, list)}
        return {**given, **own}

    @model_validator(mode="after")
    def _options_are_plain(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            each = value if isinstance(value, tuple) else [value]
            if not all(isinstance(one, (bool, int, float, str, type(None))) for one in each):
                raise InputError(
                    f"{type(self).__name__.lower()}.{name}: {shown(value, 60)} is no number, text, true, false or list "
                    "of these; give one"
                )
            for one in each:
                if isinstance(one, float) and not math.isfinite(one):
                    raise InputError(f"{type(self).__name__.lower()}.{name}: {one} is not finite; give a number")
        return self


def value_of(section: Section, name: str) -> Any:
    """The value of a setting, None where it was left out."""
    return getattr(section, name) if name in type(section).model_fields else (section.model_extra or {}).get(name)


def _limits(field: FieldInfo) -> Iterator[Any]:
    """The bounds of a setting, of one that may be left out as well."""
    yield from field.metadata
    for choice in get_args(field.annotation):
        for part in getattr(choice, "__metadata__", ()):
            yield from getattr(part, "metadata", [part])
