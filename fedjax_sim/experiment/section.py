"""What all tables of settings have in common."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedjax_sim._validate import InputError, shown

MOST = 1_000_000_000  # of anything that is counted

Count = Annotated[int, Field(ge=1, le=MOST)]
Natural = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
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
