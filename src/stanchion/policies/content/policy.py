"""`ContentPolicy`: vetoes what texts say, or redacts it and lets the event pass."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, cast

from pydantic import AfterValidator, Field, PrivateAttr

from stanchion.decisions import Verdict
from stanchion.errors import ConfigError
from stanchion.events import Event
from stanchion.policies.base import classes_of
from stanchion.policies.content.credentials import Credentials
from stanchion.policies.content.findings import Detector, Finding, Kind, counted, redacted
from stanchion.policies.content.patterns import Patterns, Terms, all_of
from stanchion.policies.content.personal import Personal, PersonalData
from stanchion.policies.content.texts import rewritten, texts_of
from stanchion.policies.deciding import LocalPolicy
from stanchion.policies.fields import as_tuple, either

TOO_LONG: Final = "too_long"
NO_TEXT: Final = "field_missing"
REDACTED: Final = "redacted"
REFUSED: Final = "redaction_refused"
JUDGED: Final = "judge"
_LONG: Final = 20_000  # characters from which on texts are searched in a thread

#: What a judge answers: None or true to let pass, false or a reason to veto, or a whole verdict.
Judgement = Verdict | bool | str | None
Judge = Callable[[Event], Judgement | Awaitable[Judgement]]
Texts = Annotated[Sequence[str], AfterValidator(as_tuple)]
AnyKind = Annotated[Kind | Literal["term", "pattern", "secret", "personal_data"], either(Kind)]
AnyPersonal = Annotated[
    Personal | Literal["email", "phone", "card", "iban", "us_ssn", "ip_address"], either(Personal)
]


class ContentPolicy(LocalPolicy):
    """Vetoes events for what their texts say, or redacts that and lets the event pass.

    `fields` are the event fields to look at, dotted into models and mappings; all the texts below
    each are looked at. `terms` are words and phrases; `patterns` are regular expressions of RE2, by
    labels; `secrets` are keys and tokens ("low", "medium" or "high" says how sure it has to be, and
    True is "medium"); `personal` are kinds of personal data, and `phone_region` the country whose
    phone numbers are known without "+". More than `max_chars` characters in all are a veto.

    What is of a kind in `redact` is replaced by its label in brackets, in `Decision.event`, which
    policies asked later see; everything else is a veto, whose reason is the kind. An event that has
    none of the fields is vetoed as well. `judge`, async or not, gets what is left, redacted, and
    answers None or true, false or a reason, or a `Verdict`.

    Raises:
        ConfigError: a field that cannot work, or the extra `content` is not installed.
    """

    priority: int = 200
    fields: Texts | str = ("prompt", "response")
    terms: Texts = ()
    patterns: Mapping[str, str] = Field(default={})
    secrets: bool | Literal["low", "medium", "high"] = False
    personal: Annotated[Sequence[AnyPersonal], AfterValidator(as_tuple)] = ()
    phone_region: str | None = None
    redact: Annotated[Sequence[AnyKind], AfterValidator(as_tuple)] = ()
    max_chars: Annotated[int, Field(strict=True, ge=1)] | None = 100_000
    judge: Judge | None = None

    _paths: tuple[str, ...] = PrivateAttr(default=())
    _detectors: tuple[Detector, ...] = PrivateAttr(default=())

    def check(self) -> None:
        """Load the detectors; raises ConfigError."""
        super().check()
        self._paths = (self.fields,) if isinstance(self.fields, str) else tuple(self.fields)
        self._check_paths()
        detectors: list[Detector] = []
        if self.terms:
            detectors.append(Terms(f"{self.owner}: terms", self.terms))
        if self.patterns:
            detectors.append(Patterns(f"{self.owner}: patterns", self.patterns))
        if self.secrets:
            detectors.append(Credentials("medium" if self.secrets is True else self.secrets))
        if self.personal:
            kinds = [Personal(kind) for kind in self.personal]
            detectors.append(PersonalData(f"{self.owner}: personal", kinds, self.phone_region))
        if not detectors and self.judge is None and self.max_chars is None:
            raise ConfigError(
                f"{self.owner}: give at least one of terms, patterns, secrets, personal, max_chars "
                "and judge"
            )
        self._detectors = tuple(detectors)

    def _check_paths(self) -> None:
        classes = classes_of(self.on)
        firsts = [path.partition(".")[0] for path in self._paths]
        for event_class in classes:
            if not event_class.model_fields.keys() & set(firsts):
                raise ConfigError.of(
                    f"{self.owner}: fields", self._paths, f"{event_class.__name__} has none of them"
                )
        if "fields" not in self.model_fields_set:
            return
        known = {name for event_class in classes for name in event_class.model_fields}
        for path, first in zip(self._paths, firsts, strict=True):
            if classes and first not in known:
                names = ", ".join(one.__name__ for one in classes)
                raise ConfigError.of(f"{self.owner}: fields", path, f"not a field of {names}")

    async def decide(self, event: Event) -> Verdict:
        """Get whether an event's texts may pass, and the redacted event where some is taken out."""
        texts = texts_of(event, self._paths)
        if texts is None:
            return self.refuses(
                NO_TEXT, detail=f"{event.event_type} has no field {' or '.join(self._paths)}"
            )
        size = sum(len(text) for each in texts.values() for text in each)
        if self.max_chars is not None and size > self.max_chars:
            return self.refuses(TOO_LONG, detail=f"{size} characters, {self.max_chars} may pass")
        each = list(dict.fromkeys(text for texts in texts.values() for text in texts))
        if size < _LONG:
            found = self._search(each)
        else:
            found = await asyncio.to_thread(self._search, each)
        verdict = self._verdict(event, texts, found)
        if not verdict.allowed or self.judge is None:
            return verdict
        return await self._judged(verdict.event or event, verdict)

    def _search(self, texts: Sequence[str]) -> dict[str, list[Finding]]:
        found = ((text, all_of(self._detectors, text)) for text in texts)
        return {text: findings for text, findings in found if findings}

    def _verdict(
        self, event: Event, texts: dict[str, list[str]], found: dict[str, list[Finding]]
    ) -> Verdict:
        if not found:
            return self.admits()
        refused = [
            one for findings in found.values() for one in findings if one.kind not in self.redact
        ]
        detail = "; ".join(
            f"{path}: {counted(here)}"
            for path, each in texts.items()
            if (here := [one for text in each for one in found.get(text, ())])
        )
        if refused:
            return self.refuses(refused[0].kind, detail=detail)
        passed = replace(self.admits(), reason=REDACTED, detail=detail)
        if not self.enforced:
            return passed
        clean = {text: redacted(text, findings) for text, findings in found.items()}
        try:
            return replace(passed, event=rewritten(event, self._paths, clean))
        except ValueError:  # pydantic's, whose text would show the value
            return self.refuses(REFUSED, detail=f"{event.event_type} cannot hold it: {detail}")

    async def _judged(self, event: Event, passed: Verdict) -> Verdict:
        judge = cast("Callable[[Event], Any]", self.judge)
        if inspect.iscoroutinefunction(judge) or inspect.iscoroutinefunction(
            getattr(judge, "__call__", None)  # noqa: B004 - an object with an async __call__
        ):
            answer: Any = await judge(event)
        else:
            answer = await asyncio.to_thread(judge, event)
            if inspect.isawaitable(answer):
                answer = await answer
        verdict = self.judged(answer, JUDGED)
        if not verdict.allowed:
            return verdict
        if isinstance(answer, Verdict):
            return replace(verdict, event=verdict.event or passed.event)
        return passed
