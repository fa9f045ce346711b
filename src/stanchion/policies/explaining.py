"""What is wrong with a declaration, in one line that names field, value and what is accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stanchion.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


def explained(cls: type[BaseModel], data: object, error: ValidationError) -> str:
    """Get the text for the mistakes that validation found in the arguments of a policy.

    What was given for a field that the class names in `secret` is not shown.
    """
    secret: frozenset[str] = getattr(cls, "secret", frozenset())
    name = data.get("name") if isinstance(data, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    owner = f"{cls.__name__} {name!r}" if isinstance(name, str) else cls.__name__
    lines: list[str] = []
    for detail in error.errors(include_url=False):
        field = str(detail["loc"][0]) if detail["loc"] else "declaration"
        if detail["type"] == "extra_forbidden":
            accepted = ", ".join(cls.model_fields)
            lines.append(f"{field}: no such field; accepted are {accepted}")
        elif field in secret:
            lines.append(f"{field}: not shown here; {detail['msg']}")
        elif detail["type"] == "missing":
            lines.append(f"{field}: missing")
        else:
            lines.append(str(ConfigError.of(field, detail["input"], detail["msg"])))
    return f"{owner}: " + "; ".join(dict.fromkeys(lines))
