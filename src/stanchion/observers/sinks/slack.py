"""Alerts to a Slack channel, through an incoming webhook."""

from __future__ import annotations

import logging
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Final

from stanchion.durations import seconds
from stanchion.observers.arguments import count, delay
from stanchion.observers.sinks import declaring
from stanchion.observers.sinks.alertbook import AlertBook
from stanchion.observers.sinks.alerting import (
    DEFAULT_RULES,
    AlertAction,
    Severity,
    checked_rules,
    interests,
)
from stanchion.observers.sinks.http import Address, require, trusted
from stanchion.observers.sinks.outbox import Outbox
from stanchion.observers.sinks.refusal import Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import timedelta
    from pathlib import Path

    from aiohttp import ClientSession
    from slack_sdk.models.blocks import SectionBlock
    from slack_sdk.webhook.async_client import AsyncWebhookClient

    from stanchion.events import Event, Selector
    from stanchion.observers.sinks.alerting import Alert, AlertRule

_ALERTS: Final = 45  # in a message, which has at most 50 blocks
_BLOCK: Final = 3000  # characters
_LINES: Final = 20  # alerts of one rule that are told one by one
_LINE: Final = 600  # characters
_SIGNS: Final = {
    Severity.CRITICAL: ":rotating_light:",
    Severity.ERROR: ":red_circle:",
    Severity.WARNING: ":warning:",
    Severity.INFO: ":information_source:",
}
_RESOLVED: Final = ":white_check_mark:"


class SlackSink:
    """Posts alerts to the channel that a Slack incoming webhook belongs to.

    The alerts of one call are one message: a block for each rule, with a line for each group.
    After a lost answer an alert may be posted twice.
    """

    idempotent: ClassVar[bool] = True

    def __init__(
        self,
        *,
        url: str,
        rules: Sequence[AlertRule | Mapping[str, Any]] = DEFAULT_RULES,
        on: Selector | None = None,
        ca_file: str | Path | None = None,
        deadline: timedelta | float | str = 4.0,
        batch_size: int = 100,
        batch_delay: timedelta | float | str = 1.0,
    ) -> None:
        """Choose where to post which alerts.

        Args:
            url: of the incoming webhook; it is a secret, and never shown but for its origin.
            rules: when to post (see `AlertRule`); by default when a circuit opens and closes, when
                a quota crosses a threshold, and when a policy could not be asked.
            on: the events to look at, by default those that the rules are about.
            ca_file: certificates to trust in place of the system's.
            deadline: seconds that one batch may take.
            batch_size: the most events that are looked at together.
            batch_delay: seconds that events may wait for others, to be told of in one message.

        Raises:
            ConfigError: an argument cannot work, or slack-sdk is missing.
        """
        for package, name in (("slack_sdk", "slack-sdk"), ("aiohttp", "aiohttp")):
            require(package, name, extra="slack", owner="SlackSink")
        self._address = Address.of(url, private=True)
        self._trust = trusted(ca_file)
        self._deadline = seconds(deadline, field="deadline")
        self.batch_size = count("batch_size", batch_size)
        self.batch_delay = delay("batch_delay", batch_delay)
        checked = checked_rules(rules)
        self.on: Selector = declaring.selection(on, interests(checked))
        self._session: ClientSession | None = None
        self._client: AsyncWebhookClient | None = None
        self._outbox = Outbox(
            AlertBook(checked),
            self._post,
            name=repr(self),
            most=_ALERTS,
            deadline=self._deadline,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._address!r})"

    async def start(self) -> None:
        """Make the pool of connections; none is opened yet."""
        from aiohttp import ClientSession, DummyCookieJar
        from slack_sdk.webhook.async_client import AsyncWebhookClient

        if self._client is not None:
            return
        self._session = ClientSession(cookie_jar=DummyCookieJar())
        self._client = AsyncWebhookClient(
            self._address.url,
            ssl=self._trust,
            session=self._session,
            # It would log the URL, which is the secret; a level in the tree of loggers could be
            # changed by the application.
            logger=logging.Logger("silent", logging.CRITICAL + 1),  # noqa: LOG001 - not of the tree
            retry_handlers=[],  # the manager sends again, and knows when
        )
        self._outbox.start()

    async def close(self) -> None:
        """Close the connections."""
        await self._outbox.close()
        self._client = None
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def handle_batch(self, events: Sequence[Event]) -> None:
        """Post the alerts that follow from the events.

        Raises:
            Undelivered: some were not taken.
        """
        await self._outbox.deliver(events)

    async def _post(self, alerts: Sequence[Alert]) -> None:
        if self._client is None:
            raise declaring.not_started(self)
        from aiohttp import ClientError

        try:
            answer = await self._client.send(
                text=_summary(alerts), blocks=_blocks(alerts), unfurl_links=False
            )
        # ValueError: a body that is no text.
        except (ClientError, OSError, ValueError) as error:
            # Without the error itself, whose text may have the URL.
            raise Refused(f"{self._address.origin}: {type(error).__name__}") from None
        if answer.status_code != 200:
            retry_after: str | None = answer.headers.get("Retry-After")
            raise Refused.by_status(self._address.origin, answer.status_code, retry_after)
        if answer.body.strip() != "ok":
            raise Refused(f"{self._address.origin} answered 200, but not as Slack does")


def _summary(alerts: Sequence[Alert]) -> str:
    """Get what notifications show."""
    first = alerts[0]
    rest = f" and {len(alerts) - 1} more" if len(alerts) > 1 else ""
    resolved = "Resolved: " if first.action is AlertAction.RESOLVE else ""
    return f"{resolved}{_escaped(first.text, _LINE)}{rest}"


def _blocks(alerts: Sequence[Alert]) -> Sequence[SectionBlock]:
    from slack_sdk.models.blocks import MarkdownTextObject, SectionBlock

    # Those of a rule stand together as far as the order of opening and closing allows.
    runs = groupby(alerts, key=lambda alert: (alert.rule, alert.action))
    return [
        # verbatim: names of channels and people in an event's text call nobody.
        SectionBlock(text=MarkdownTextObject(text=_section(rule, action, run), verbatim=True))
        for (rule, action), run in runs
    ]


def _section(rule: AlertRule, action: AlertAction, run: Iterable[Alert]) -> str:
    alerts = list(run)
    if action is AlertAction.RESOLVE:
        lines = [f"{_RESOLVED} *{rule.name}* is resolved"]
    else:
        severity = Severity(rule.severity)
        lines = [f"{_SIGNS[severity]} *{rule.name}* ({severity})"]
    room = _BLOCK - len(lines[0])
    for told, alert in enumerate(alerts):
        line = f"• {_escaped(alert.text, _LINE)}{_more(alert)}"
        rest = f"_and {len(alerts) - told} more_"
        room -= len(line) + 1
        if told == _LINES or room < len(rest) + 1:
            lines.append(rest)
            break
        lines.append(line)
    return "\n".join(lines)


def _more(alert: Alert) -> str:
    if not alert.more:
        return ""
    return f" _and {alert.more} more since {alert.since:%Y-%m-%d %H:%M:%S} UTC_"


def _escaped(text: str, most: int) -> str:
    """Get text in which Slack sees no markup of links and mentions, within `most` characters."""
    cut = "…"
    parts: list[str] = []
    room = most - len(cut)
    for character in text:
        written = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}.get(character, character)
        room -= len(written)
        if room < 0:
            parts.append(cut)
            break
        parts.append(written)
    return "".join(parts)
