"""What all tables of settings have in common."""

from collections.abc import Iterator
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

    @model_validator(mode="after")
    def _texts_can_be_written(self) -> Self:
        for name in type(self).model_fields:
            text = getattr(self, name)
            if isinstance(text, str) and ("\0" in text or any("\ud800" <= c <= "\udfff" for c in text)):
                raise InputError(
                    f"{type(self).__name__.lower()}.{name}: {shown(text)} holds NUL or what is not UTF-8; leave "
                    "that out"
                )
        return self

    @model_validator(mode="after")
    def _numbers_fit_float32(self) -> Self:
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, float):
                fraction = any(getattr(limit, "lt", None) == 1 for limit in _limits(field))
                single(f"{type(self).__name__.lower()}.{name}", value, below_one=fraction)
        return self


def _limits(field: FieldInfo) -> Iterator[Any]:
    """The bounds of a setting, of one that may be left out as well."""
    yield from field.metadata
    for choice in get_args(field.annotation):
        for part in getattr(choice, "__metadata__", ()):
            yield from getattr(part, "metadata", [part])
