"""What a type checker must refuse, each line by the rule that it names; never run.

That a comment asks for what is no error would be an error itself.
"""

from __future__ import annotations

from stanchion import Event, EventBus, Permit, RateLimit


class ModelCall(Event, type="typing:call"):
    model: str
    tokens: int = 1


ModelCall(model=1)  # pyright: ignore[reportArgumentType]
ModelCall(model="m1", token=1)  # pyright: ignore[reportCallIssue]
ModelCall()  # pyright: ignore[reportCallIssue]
ModelCall(model="m1").tokens = 2  # pyright: ignore[reportAttributeAccessIssue]
RateLimit(name="calls", on=ModelCall, limit="many", per="1s")  # pyright: ignore[reportArgumentType]
RateLimit(name="calls", on=ModelCall, limit=1, per="1s", brust=2)  # pyright: ignore[reportCallIssue]


async def mistaken(bus: EventBus, permit: Permit) -> None:
    with bus.guard(ModelCall(model="m1")):  # pyright: ignore[reportGeneralTypeIssues]
        pass
    decision = bus.check(ModelCall(model="m1"))
    assert decision.allowed  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    (await decision).allowed = True  # pyright: ignore[reportAttributeAccessIssue]
    permit.charge(tokens="9")  # pyright: ignore[reportArgumentType]
    await bus.check("llm:call")  # pyright: ignore[reportArgumentType]

    @bus.guarded(ModelCall)
    async def ask(model: str) -> int:
        return len(model)

    await ask(2)  # pyright: ignore[reportArgumentType]
    await ask("m1", prompt="hello")  # pyright: ignore[reportCallIssue]
    text: str = await ask("m1")  # pyright: ignore[reportAssignmentType]
    assert text
