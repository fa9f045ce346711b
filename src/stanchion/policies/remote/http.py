"""`HttpPolicy`: asks an authorizer over HTTP, in AuthZEN or in plain JSON of its own."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field, PrivateAttr

from stanchion.decisions import Verdict
from stanchion.errors import ConfigError, PolicyFailed
from stanchion.events import Event
from stanchion.policies.fields import either
from stanchion.policies.remote.documents import (
    EVENT,
    EVENT_TYPE,
    MISSING,
    Filler,
    checked_path,
    compiled,
    found_at,
)
from stanchion.policies.remote.replies import DENIED, id_of, reason_text, seconds_of
from stanchion.policies.remote.service import ServicePolicy

if TYPE_CHECKING:
    from stanchion.policies.remote.client import Reply

_EVALUATION: Final = "/access/v1/evaluation"
_REQUEST_ID: Final = "x-request-id"


class Dialect(StrEnum):
    """What is spoken with the service."""

    AUTHZEN = "authzen"
    JSON = "json"


class HttpPolicy(ServicePolicy):
    """Asks an authorizer over HTTP about each event.

    With the dialect "authzen", `url` is the decision point, and `subject`, `action`, `resource`
    and `context` make the question of AuthZEN's access evaluation. With "json", `request` is what
    is posted to `url`, and `allow` says where its answer has the decision: true or false, or with
    `allow_values` one of those for yes and anything else for no. Templates are JSON with event
    fields in braces: `"{tenant}"`, `"{metadata.plan}"`, `"{event_type}"`, and `"{event}"` for all
    of it as CloudEvents JSON.

    `reason`, `retry_after` and `decision_id` are paths into the answer as well. A status other
    than 200 is no answer, but for those in `deny_statuses`, which are a denial.

    Raises:
        ConfigError: a field that cannot work, or the extra `http` is not installed.
    """

    dialect: Annotated[Dialect | Literal["authzen", "json"], either(Dialect)] = Dialect.AUTHZEN
    subject: Mapping[str, Any] | None = None
    action: Mapping[str, Any] = Field(default={"name": "{" + EVENT_TYPE + "}"})
    resource: Mapping[str, Any] | None = None
    context: Mapping[str, Any] | None = None
    request: Mapping[str, Any] | str | None = None
    allow: str | None = None
    allow_values: tuple[str | int, ...] = ()
    reason: str | None = None
    retry_after: str | None = None
    decision_id: str | None = None
    deny_statuses: tuple[Annotated[int, Field(ge=400, le=599)], ...] = ()

    _fillers: dict[type[Event], Filler] = PrivateAttr(default_factory=dict[type[Event], Filler])
    _paths: dict[str, tuple[tuple[str, ...], ...]] = PrivateAttr(default={})

    def check(self) -> None:
        """Check what goes beyond single fields; raises ConfigError."""
        zen = self.dialect is Dialect.AUTHZEN
        needed = ("subject", "resource") if zen else ("allow",)
        others = ("request", "allow", "allow_values") if zen else ("subject", "resource", "context")
        for field in needed:
            if getattr(self, field) is None:
                accepted = f"needed with the dialect {str(self.dialect)!r}"
                raise ConfigError.of(f"{self.owner}: {field}", None, accepted)
        for field in others:
            if getattr(self, field) not in (None, ()):
                accepted = f"not with the dialect {str(self.dialect)!r}"
                raise ConfigError.of(f"{self.owner}: {field}", getattr(self, field), accepted)
        declared = {
            "allow": self.allow,
            "reason": self.reason,
            "retry_after": self.retry_after,
            "decision_id": self.decision_id,
        }
        paths: dict[str, tuple[tuple[str, ...], ...]] = {}
        for field, path in declared.items():
            each = (_AUTHZEN_PATHS[field] if zen else ()) if path is None else (path,)
            paths[field] = tuple(checked_path(f"{self.owner}: {field}", one) for one in each)
        self._paths = paths
        super().check()

    def check_event(self, event_class: type[Event]) -> None:
        """Check that events of this class have the fields that are named; raises ConfigError."""
        super().check_event(event_class)
        self._filler(event_class)

    def target(self) -> str:
        """Get the URL that is asked."""
        url = super().target()
        if self.dialect is Dialect.JSON or url.endswith(_EVALUATION):
            return url
        return url + _EVALUATION

    async def ask(self, event: Event) -> Verdict:
        """Ask the authorizer about one event.

        Raises:
            PolicyFailed: it does not answer, or with something that is no answer.
        """
        reply = await self.post(self._filler(type(event))(event), event)
        if reply.status in self.deny_statuses:
            return self._denial(reply)
        if reply.status != 200:
            raise PolicyFailed(f"answered {reply.status}", retry_after=reply.retry_after)
        document = reply.document()
        found = self._found("allow", document)
        if self.allow_values and found is not MISSING:
            allowed = type(found) in {str, int} and found in self.allow_values
        elif isinstance(found, bool):
            allowed = found
        else:
            path = ".".join(self._paths["allow"][0])
            raise PolicyFailed(f"answered without true or false at {path!r}")
        return self._verdict(document, reply, allowed=allowed)

    def _filler(self, event_class: type[Event]) -> Filler:
        filler = self._fillers.get(event_class)
        if filler is None:
            if self.dialect is Dialect.AUTHZEN:
                parts = {"subject": self.subject, "action": self.action, "resource": self.resource}
                template: object = parts | ({"context": self.context} if self.context else {})
                filler = compiled(self.owner, "question", template, event_class)
            else:
                template = "{" + EVENT + "}" if self.request is None else self.request
                filler = compiled(self.owner, "request", template, event_class)
            self._fillers[event_class] = filler
        return filler

    def _denial(self, reply: Reply) -> Verdict:
        try:
            document = reply.document()
        except PolicyFailed:
            document = None
        return self._verdict(document, reply, allowed=False)

    def _verdict(self, document: object, reply: Reply, *, allowed: bool) -> Verdict:
        id = id_of(self._found("decision_id", document)) or reply.headers.get(_REQUEST_ID)
        if allowed:
            return Verdict(self.name, allowed=True, decision_id=id)
        wait = seconds_of(self._found("retry_after", document))
        return Verdict(
            self.name,
            allowed=False,
            reason=reason_text(self._found("reason", document)) or DENIED,
            retry_after=reply.retry_after if wait is None else wait,
            decision_id=id,
        )

    def _found(self, field: str, document: object) -> object:
        for steps in self._paths[field]:
            if (value := found_at(document, steps)) is not MISSING:
                return value
        return MISSING


_AUTHZEN_PATHS: Final[Mapping[str, tuple[str, ...]]] = {
    "allow": ("decision",),
    "reason": ("context.reason", "context.reason_user.en", "context.reason_admin.en"),
    "retry_after": ("context.retry_after",),
    "decision_id": ("context.decision_id",),
}
