"""`ContentPolicy`: what is found in texts, what is made of it, and how long that takes."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import pytest
from pydantic import BaseModel, Field

from stanchion import ConfigError, Event, EventBus, Reason, Verdict
from stanchion.events import LLMPromptSent, LLMResponseReceived
from stanchion.policies.content import ContentPolicy, Kind, Personal

# Made up; in parts, so that no scanner takes this file for a leak.
GITHUB = "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a"
SLACK = "xoxb-" + "123456789012-1234567890123-AbCdEfGhIjKlMnOpQrStUvWx"
KEY = (
    "-----BEGIN RSA "
    "PRIVATE KEY-----\n" + "MIIEpAIBAAKCAQEA7bq1Zn0Yl8V2nYx1Q2w3e4r5t6y7u8i9o0p1a2s3d4f5g6h7\n" * 2
)
PEM = KEY + "-----END RSA " + "PRIVATE KEY-----"


class Part(BaseModel):
    text: str
    role: str = "user"


class Chat(Event, type="content_test:chat"):
    parts: tuple[Part, ...] = ()
    short: str = Field(default="", max_length=5)


def content(**fields: Any) -> ContentPolicy:
    return ContentPolicy(**{"name": "content", "on": LLMPromptSent, "fields": "prompt", **fields})


def prompt(text: str | None) -> LLMPromptSent:
    return LLMPromptSent(model="m1", prompt=text)


async def cleaned(text: str, **fields: Any) -> str:
    """Get a text as a policy that redacts all lets it pass."""
    verdict = await content(redact=list(Kind), **fields).evaluate(prompt(text))
    assert verdict.allowed
    assert verdict.event is None or isinstance(verdict.event, LLMPromptSent)
    return text if verdict.event is None else verdict.event.prompt or ""


# ---- terms and patterns


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("about Project Falcon, then", "about [term], then"),
        ("PROJECT\n   falcon", "[term]"),
        ("project falconry and subproject falcon", None),
        ("die ÜBUNG, übung.", "die [term], [term]."),
        ("c++ is not c", "[term] is not c"),
        ("a+b", None),
    ],
)
async def test_terms_are_whole_words_in_any_case(text, left):
    terms = ["project falcon", "project", "Übung", "c++"]
    if text.startswith("project falconry"):
        terms = ["project falcon"]
    assert await cleaned(text, terms=terms) == (text if left is None else left)


async def test_a_term_is_a_veto_that_does_not_repeat_it():
    verdict = await content(terms=["falcon"]).evaluate(prompt("the falcon flies, falcon"))
    assert (verdict.allowed, verdict.reason) == (False, "term")
    assert verdict.detail == "prompt: 2 x term"


async def test_patterns_have_labels():
    patterns = {"ticket": r"\bTCK-\d+", "codename": "(?i)blue ?bird"}
    assert await cleaned("TCK-77 on BlueBird", patterns=patterns) == "[ticket] on [codename]"


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|aa)+$", r"(.*?,){20}x", r"(x+x+)+y"])
async def test_a_pattern_that_runs_away_elsewhere_takes_linear_time(pattern):
    policy = content(patterns={"evil": pattern})
    began = time.perf_counter()
    await policy.evaluate(prompt("a" * 50_000 + "!" + "x" * 40_000 + ",a" * 4000))
    assert time.perf_counter() - began < 2


# ---- secrets


@pytest.mark.parametrize(
    ("secret", "label"),
    [
        (GITHUB, "secret:github-pat"),
        (SLACK, "secret:slack-bot-token"),
        (PEM, "secret:private-key"),
    ],
)
async def test_secrets_are_found_where_they_stand(secret, label):
    assert await cleaned(f"use {secret} now", secrets=True) == f"use [{label}] now"
    assert await cleaned(f"ü€😀 {secret} 😀", secrets=True) == f"ü€😀 [{label}] 😀"


async def test_a_secret_among_zero_bytes_does_not_get_through():
    text = "\x00".join(f"x {GITHUB} y")
    for odd in (text, f"\ufeff{GITHUB}", f"\x00 {GITHUB}", f"{GITHUB}\x00"):
        verdict = await content(secrets=True, redact=["secret"]).evaluate(prompt(odd))
        left = getattr(verdict.event, "prompt", odd)
        assert GITHUB not in left


async def test_a_secret_is_neither_in_the_verdict_nor_in_what_observers_are_told():
    from stanchion.events import PolicyVetoed
    from stanchion.observers import Recorder

    recorder = Recorder(on=PolicyVetoed)
    policies = [content(secrets=True)]
    async with EventBus.from_url("memory://", policies=policies, observers=[recorder]) as bus:
        decision = await bus.check(prompt(f"x {GITHUB}"))
        assert (decision.reason, decision.verdicts[0].detail) == (
            "secret",
            "prompt: secret:github-pat",
        )
        told = await recorder.wait_for(PolicyVetoed)
        assert GITHUB not in repr(decision) + repr(told) + str(told.to_cloudevent())


async def test_plain_talk_has_no_secrets():
    text = "Write a poem about the sea. My password should be strong; the key is under the mat."
    assert await cleaned(text, secrets="low") == text


# ---- personal data

FOUND = [
    ("email", "jo.doe+x@mail.example.com", "jo.doe@localhost"),
    ("email", "ünï@exämple.org", "@example.org"),
    ("phone", "+49 30 901820", "+49 1"),
    ("phone", "(415) 555-2671", "12345678"),
    ("card", "4111 1111 1111 1111", "4111 1111 1111 1112"),
    ("card", "378282246310005", "378282246310006"),
    ("card", "5555-5555-5555-4444", "550e8400-e29b-41d4-a716-446655440000"),
    ("iban", "DE89 3704 0044 0532 0130 00", "DE88 3704 0044 0532 0130 00"),
    ("iban", "GB33BUKB20201555555555", "GB33BUKB20201555555554"),
    ("us_ssn", "536-90-4399", "000-90-4399"),
    ("ip_address", "10.1.2.3", "10.1.2.256"),
    ("ip_address", "2001:db8::1", "12:30:45"),
]


@pytest.mark.parametrize(("kind", "real", "other"), FOUND, ids=lambda value: value[:12])
async def test_personal_data_is_what_passes_its_own_check(kind, real, other):
    fields = {"personal": [kind], "phone_region": "US"}
    assert await cleaned(f"it is {real}, yes", **fields) == f"it is [{kind}], yes"
    assert await cleaned(f"it is {other}, yes", **fields) == f"it is {other}, yes"


async def test_a_number_is_found_between_other_numbers():
    text = "12 4111 1111 1111 1111 12/26; IBAN DE89 3704 0044 0532 0130 00 OK THEN; 7 415-555-2671"
    personal = ["card", "iban", "phone"]
    left = await cleaned(text, personal=personal, phone_region="US")
    assert left == "12 [card] 12/26; IBAN [iban] OK THEN; 7 [phone]"


async def test_only_the_kinds_that_were_asked_for_are_looked_for():
    text = "jo@example.com 4111111111111111 +49 30 901820"
    assert await cleaned(text, personal=["card"]) == "jo@example.com [card] +49 30 901820"
    assert await cleaned(text, personal=["phone"]) == "jo@example.com 4111111111111111 [phone]"


@pytest.mark.parametrize("text", ["1 ", "12 ", "+1 415 ", "(1)-", "a@", "DE89 ", "1:", "1111 " * 4])
async def test_nothing_but_candidates_takes_linear_time(text):
    policy = content(personal=list(Personal), phone_region="US")
    full = (text * 10_000)[:10_000]
    began = time.perf_counter()
    await policy.evaluate(prompt(full))
    assert time.perf_counter() - began < 2


# ---- where texts are


async def test_every_text_below_a_field_is_looked_at_and_the_rest_stays():
    event = Chat(
        parts=(Part(text="mail jo@example.com"), Part(text="hi", role="system")),
        metadata={"notes": ["jo@example.com", 5, {"jo@example.com": None}], "other": "jo@x.org"},
        tenant="acme",
    )
    policy = content(
        on=Chat, fields=["parts", "metadata.notes"], personal=["email"], redact=["personal_data"]
    )
    verdict = await policy.evaluate(event)
    clean = verdict.event
    assert isinstance(clean, Chat)
    assert clean.parts == (Part(text="mail [email]"), Part(text="hi", role="system"))
    assert clean.metadata == {"notes": ["[email]", 5, {"[email]": None}], "other": "jo@x.org"}
    assert (clean.id, clean.timestamp, clean.tenant) == (event.id, event.timestamp, "acme")
    assert verdict.detail == "parts: email; metadata.notes: 2 x email"
    assert event.parts[0].text == "mail jo@example.com", (
        "the event that was asked about is as it was"
    )


async def test_an_event_of_an_unknown_type_is_looked_at_all_the_same():
    document = {
        "specversion": "1.0",
        "id": "1",
        "source": "/elsewhere",
        "type": "content_unseen:thing",
        "extra": "kept",
        "data": {"prompt": "jo@example.com", "n": 1},
    }
    policy = content(on="content_unseen:*", personal=["email"], redact=["personal_data"])
    verdict = await policy.evaluate(Event.from_cloudevent(document))
    assert verdict.event is not None
    assert verdict.event.to_cloudevent() == {**document, "data": {"prompt": "[email]", "n": 1}}
    verdict = await policy.evaluate(Event.from_cloudevent({**document, "data": {"text": "x"}}))
    assert (verdict.allowed, verdict.reason) == (False, "field_missing")


async def test_no_text_is_no_veto():
    assert (await content(terms=["x"]).evaluate(prompt(None))).allowed


async def test_a_response_is_looked_at_like_a_prompt():
    policy = content(on="llm:*", fields=("prompt", "response"), terms=["falcon"])
    for event in (
        prompt("a falcon"),
        LLMResponseReceived(model="m1", response="a falcon", duration=1.0),
    ):
        assert (await policy.evaluate(event)).reason == "term"


@pytest.mark.parametrize("kind", [LLMPromptSent, LLMResponseReceived])
async def test_prompts_and_responses_need_not_be_named(kind):
    policy = ContentPolicy(name="content", on=kind, terms=["falcon"])
    named: dict[str, Any] = {"prompt": "a falcon"}
    if kind is LLMResponseReceived:
        named = {"response": "a falcon", "duration": 1.0}
    assert (await policy.evaluate(kind(model="m1", **named))).reason == "term"


async def test_a_redacted_text_that_the_event_cannot_hold_is_a_veto():
    policy = content(on=Chat, fields="short", terms=["abc"], redact=["term"], on_outage="admit")
    async with EventBus.from_url("memory://", policies=[policy]) as bus:
        decision = await bus.check(Chat(short="abc"))
        assert (decision.allowed, decision.reason) == (False, "redaction_refused")
        assert "abc" not in repr(decision)


# ---- sizes, kinds and modes


async def test_too_much_text_is_a_veto_before_it_is_searched():
    policy = content(max_chars=10, terms=["x"])
    assert (await policy.evaluate(prompt("y" * 10))).allowed
    verdict = await policy.evaluate(prompt("y" * 11))
    assert (verdict.reason, verdict.detail) == ("too_long", "11 characters, 10 may pass")


async def test_one_kind_can_be_redacted_and_another_be_a_veto():
    policy = content(secrets=True, personal=["email"], redact=["personal_data"])
    verdict = await policy.evaluate(prompt("jo@example.com"))
    assert (verdict.allowed, verdict.reason) == (True, "redacted")
    verdict = await policy.evaluate(prompt(f"jo@example.com {GITHUB}"))
    assert (verdict.allowed, verdict.reason, verdict.event) == (False, "secret", None)


async def test_in_shadow_nothing_is_vetoed_and_nothing_rewritten():
    policy = content(personal=["email"], terms=["falcon"], redact=["personal_data"], mode="shadow")
    verdict = await policy.evaluate(prompt("jo@example.com"))
    assert (verdict.allowed, verdict.reason, verdict.event) == (True, "redacted", None)
    verdict = await policy.evaluate(prompt("falcon"))
    assert (verdict.allowed, verdict.enforced) == (False, False)


async def test_a_long_text_does_not_hold_up_the_loop():
    policy = content(personal=list(Personal), phone_region="US", secrets=True)
    text = "call 415-555-2671 or write to jo@example.com, please. " * 1500
    longest = last = 0.0
    done = asyncio.create_task(policy.evaluate(prompt(text)))
    last = time.perf_counter()
    while not done.done():
        await asyncio.sleep(0)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    assert not done.result().allowed
    assert longest < 0.2, longest


# ---- judges


@pytest.mark.parametrize(
    ("answer", "allowed", "reason"),
    [
        (None, True, "ok"),
        (True, True, "ok"),
        (False, False, "judge"),
        ("off topic", False, "off topic"),
        (Verdict("x", allowed=False, reason="toxic", retry_after=3.0), False, "toxic"),
    ],
)
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
async def test_a_judge_has_the_last_word(answer, allowed, reason, is_async):
    async def judge(event):
        return answer

    policy = content(judge=judge if is_async else lambda event: answer)
    verdict = await policy.evaluate(prompt("x"))
    assert (verdict.policy, verdict.allowed, verdict.reason) == ("content", allowed, reason)


async def test_a_judge_sees_the_redacted_event_and_is_not_asked_after_a_veto():
    seen: list[Any] = []

    class Judge:
        async def __call__(self, event):
            seen.append(event.prompt)

    policy = content(judge=Judge(), personal=["email"], terms=["falcon"], redact=["personal_data"])
    verdict = await policy.evaluate(prompt("jo@example.com"))
    assert verdict.event is not None
    await policy.evaluate(prompt("falcon"))
    assert seen == ["[email]"]


@pytest.mark.parametrize("outage", ["veto", "admit"])
async def test_a_judge_that_fails_hangs_or_babbles_is_as_on_outage_says(outage):
    async def hangs(event):
        await asyncio.Event().wait()

    for judge in (hangs, lambda event: 1 / 0, lambda event: 42):
        policy = content(judge=judge, on_outage=outage)
        async with EventBus.from_url("memory://", policies=[policy], deadline=0.2) as bus:
            decision = await bus.check(prompt("x"))
            assert decision.allowed is (outage == "admit")
            assert decision.verdicts[0].reason == Reason.POLICY_FAILED


# ---- declared


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"patterns": {"p": "(a"}}, "patterns['p']='(a': no expression of RE2: missing )"),
        ({"patterns": {"p": "(?=a)"}}, "patterns['p']"),
        ({"patterns": {"p": "a*"}}, "it matches nothing at all, and so everywhere"),
        ({"terms": ["a", " "]}, "terms[1]=' '"),
        ({"terms": ["a"], "fields": "promt"}, "fields"),
        ({"terms": ["a"], "fields": ["prompt", "promt"]}, "fields='promt': not a field of"),
        ({"personal": ["emial"]}, "personal='emial'"),
        ({"personal": ["phone"], "phone_region": "USA"}, "phone_region='USA'"),
        ({"secrets": "certain"}, "secrets='certain'"),
        ({"redact": ["secrets"]}, "redact='secrets'"),
        ({"max_chars": 0}, "max_chars=0"),
        ({"max_chars": None}, "give at least one of"),
        ({"judge": 5}, "judge=5"),
        ({"term": "x"}, "term: no such field"),
    ],
)
def test_what_cannot_work_is_refused_by_name(fields, told):
    with pytest.raises(ConfigError) as caught:
        content(**fields)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("package", "fields"),
    [
        ("re2", {"terms": ["a"]}),
        ("kingfisher_sdk", {"secrets": "low"}),
        ("phonenumbers", {"personal": ["phone"]}),
        ("stdnum", {"personal": ["iban"]}),
    ],
)
def test_a_missing_package_says_which_extra_to_install(monkeypatch, package, fields):
    from stanchion.policies.content.credentials import _scanner

    _scanner.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r'pip install "stanchion\[content\]"'):
        content(**fields)
