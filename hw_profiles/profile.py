"""What every profile file has in common: strictness, a name, and a source for each figure."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

ALL = "all"


def _readable_name(value: str) -> str:
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789.-_")
    if not value or not set(value) <= allowed:
        raise ValueError(f"name {value!r} may hold only lower-case letters, digits, '.', '-' and '_'")
    return value


Name = Annotated[str, AfterValidator(_readable_name)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(gt=0)]
Few = Annotated[int, Field(gt=0, le=10_000)]
"""A number of things that are built one by one."""


class Strict(BaseModel):
    """Frozen, unknown keys refused, no silent conversions between types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


class Profile(Strict):
    """What all profiles have: a version, a name, other names, a title, and the sources of the figures."""

    kind: ClassVar[str]
    """`device`, `link`, `node`, `cluster` or `model`."""
    unsourced: ClassVar[frozenset[str]] = frozenset({"version"})
    """Fields whose numbers are no figures."""

    version: Literal[1]
    name: Name
    title: str
    aliases: list[str] = []
    sources: dict[str, str]

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.name))

    def source_of(self, field: str) -> str:
        """The citation for a figure; '' for a field that holds none."""
        fallback = ""
        for key, text in self.sources.items():
            names = [part.strip() for part in key.split(",")]
            if field in names:
                return text
            if ALL in names and field in self.figures():
                fallback = text
        return fallback

    def figures(self) -> tuple[str, ...]:
        """Names of the fields (as written in the file) that hold numbers, given ones only."""
        fields = type(self).model_fields
        return tuple(
            (fields[name].alias or name)
            for name in fields
            if name in self.model_fields_set
            and name not in self.unsourced
            and _holds_number(getattr(self, name))
        )

    @model_validator(mode="after")
    def _every_figure_has_a_source(self) -> Self:
        figures = set(self.figures())
        named: set[str] = set()
        for key, text in self.sources.items():
            if not text.strip():
                raise ValueError(f"sources: the citation for '{key}' is empty")
            named |= {part.strip() for part in key.split(",")}
        for stranger in sorted(named - figures - {ALL}):
            raise ValueError(f"sources: '{stranger}' is no figure of this profile")
        missing = sorted(figures - named) if ALL not in named else []
        if missing:
            raise ValueError(f"sources: no citation for {', '.join(repr(m) for m in missing)}")
        return self


def _holds_number(value: Any) -> bool:
    """Does this value, or anything inside it, hold a number (truth values aside)?"""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return False
    if isinstance(value, int | float):
        return True
    if isinstance(value, BaseModel):
        return any(_holds_number(getattr(value, name)) for name in value.model_fields_set)
    if isinstance(value, dict):
        return any(_holds_number(item) for item in value.values())
    return any(_holds_number(item) for item in value)
