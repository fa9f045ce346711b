"""Personal data is taken out of prompts, secrets are refused, and the model sees what is left.

python examples/redaction.py
"""

from __future__ import annotations

import asyncio

from stanchion import EventBus, Vetoed
from stanchion.events import LLMPromptSent
from stanchion.policies.content import ContentPolicy

CONTENT = ContentPolicy(
    name="content",
    on="llm:prompt",
    fields="prompt",
    secrets=True,
    personal=("email", "phone", "card", "iban"),
    redact=("personal_data",),
    max_chars=10_000,
)
# In two parts, so that no scanner takes it for a real one.
TOKEN = "ghp_" + "16C7e42F292c6912E7710c838347Ae178B4a"


async def main() -> None:
    async with EventBus.from_url("memory://", policies=[CONTENT]) as bus:
        event = LLMPromptSent(
            model="m1", prompt="Reply to jo@example.com, card 4111 1111 1111 1111"
        )
        decision = await bus.check(event)
        print(decision.verdicts[0].detail)
        clean = decision.event or event
        assert isinstance(clean, LLMPromptSent)
        print(clean.prompt)

        # A guarded function is called with what was admitted.
        @bus.guarded(LLMPromptSent, model="m1")
        async def ask(prompt: str) -> str:
            return f"the model saw: {prompt}"

        print(await ask("Call +49 30 901820"))
        try:
            await ask(f"Push it with {TOKEN}")
        except Vetoed as error:
            print(error.decision.reason, "|", error.decision.verdicts[0].detail)


if __name__ == "__main__":
    asyncio.run(main())
