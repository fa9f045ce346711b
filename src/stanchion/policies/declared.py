"""What every policy shares that is declared: its name, its events, and one line about mistakes."""

from __future__ import annotations

from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)

from stanchion.errors import ConfigError
from stanchion.events import Selector, check_selector
from stanchion.policies.explaining import explained
from stanchion.store.keys import check_name


class DeclaredPolicy(BaseModel):
    """A frozen declaration whose mistakes are ConfigErrors, told when it is made."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        arbitrary_types_allowed=True,
        validate_default=True,
        # With the first policy of a class, and not with the import.
        defer_build=True,
    )

    name: str
    on: Selector

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            policy = handler(data)
        except ValidationError as error:
            raise ConfigError(explained(cls, data, error)) from None
        policy.check()
        return policy

    @field_validator("on", mode="before")
    @classmethod
    def _selector(cls, value: object) -> object:
        check_selector(value, field="on")
        return value

    @property
    def owner(self) -> str:
        """What errors call this policy."""
        return f"{type(self).__name__} {self.name!r}"

    def check(self) -> None:
        """Check what goes beyond single fields; raises ConfigError."""
        check_name(f"{type(self).__name__} name", self.name)
