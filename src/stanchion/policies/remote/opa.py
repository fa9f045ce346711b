"""`OpaPolicy`: asks an Open Policy Agent over its REST data API."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, cast

from pydantic import Field, PrivateAttr

from stanchion.errors import ConfigError, PolicyFailed
from stanchion.events import Event
from stanchion.policies.remote.documents import EVENT_TYPE, Filler, compiled
from stanchion.policies.remote.findings import finding
from stanchion.policies.remote.replies import id_of
from stanchion.policies.remote.service import ServicePolicy

if TYPE_CHECKING:
    from stanchion.decisions import Verdict

_RULE: Final = re.compile(r"[A-Za-z_][\w-]*(?:[./][A-Za-z_][\w-]*)*")


def checked_rule(field: str, path: str) -> str:
    """Get the path of a rule with slashes: `"stanchion/allow"`, also written with dots.

    Raises:
        ConfigError: it is no such path.
    """
    text = path.removeprefix("data.").strip("/")
    if not _RULE.fullmatch(text):
        raise ConfigError.of(field, path, 'expected the path of a rule, such as "stanchion/allow"')
    return text.replace(".", "/")


def input_of(owner: str, template: Mapping[str, Any] | None, event_class: type[Event]) -> Filler:
    """Get a function that makes the input of events of one class.

    Raises:
        ConfigError: the class has not a field that the template names.
    """
    if template is not None:
        return compiled(owner, "input", template, event_class)
    return lambda event: {EVENT_TYPE: event.event_type, **event.model_dump(mode="json")}


class OpaPolicy(ServicePolicy):
    """Asks an Open Policy Agent about each event: `POST url/v1/data/path`.

    The rule at `path` may be true or false; an object with `allow`, and `reason` and
    `retry_after` where it is false; or a set of denials, which admits when it is empty. Undefined
    is a veto, and so is anything else. The input is the event's fields and `event_type`, or what
    the template `input` makes of them. Where OPA logs decisions, a verdict has the `decision_id`
    under which it did, and the log has the event's `id` with the input.

    Raises:
        ConfigError: a field that cannot work, or the extra `opa` is not installed.
    """

    extra_name: ClassVar[str] = "opa"

    path: str
    input: Mapping[str, Any] | None = Field(default=None)

    _fillers: dict[type[Event], Filler] = PrivateAttr(default_factory=dict[type[Event], Filler])
    _rule: str = PrivateAttr(default="")

    def check(self) -> None:
        """Check what goes beyond single fields; raises ConfigError."""
        self._rule = checked_rule(f"{self.owner}: path", self.path)
        super().check()

    def check_event(self, event_class: type[Event]) -> None:
        """Check that events of this class have the fields that are named; raises ConfigError."""
        super().check_event(event_class)
        self._filler(event_class)

    def target(self) -> str:
        """Get the URL that is asked."""
        return f"{super().target()}/v1/data/{self._rule}"

    async def ask(self, event: Event) -> Verdict:
        """Ask OPA about one event.

        Raises:
            PolicyFailed: it does not answer, or with an error.
        """
        reply = await self.post({"input": self._filler(type(event))(event)}, event)
        if reply.status != 200:
            told = _complaint(reply.body)
            raise PolicyFailed(f"answered {reply.status}{told}", retry_after=reply.retry_after)
        document = reply.document()
        if not isinstance(document, dict):
            raise PolicyFailed("answered with no object")
        answer = cast("dict[str, Any]", document)
        return finding(
            self.name,
            "data." + self._rule.replace("/", "."),
            answer.get("result"),
            defined="result" in answer,
            decision_id=id_of(answer.get("decision_id")),
        )

    def _filler(self, event_class: type[Event]) -> Filler:
        filler = self._fillers.get(event_class)
        if filler is None:
            filler = input_of(self.owner, self.input, event_class)
            self._fillers[event_class] = filler
        return filler


def _complaint(body: bytes) -> str:
    """Get the code of OPA's error; its message may quote the input."""
    found = re.search(rb'"code"\s*:\s*"([a-z_]{1,40})"', body[:4096])
    return f": {found[1].decode()}" if found else ""
