"""The demo from beginning to end: a store, an endpoint, workers, an outage, and the count."""

from __future__ import annotations

import asyncio
import secrets
import sys
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from rich.text import Text

from stanchion import CircuitState, EventBus
from stanchion.cli.demo.board import LiveView, PlainView
from stanchion.cli.demo.conclude import Ending, conclude, states
from stanchion.cli.demo.endpoint import Endpoint
from stanchion.cli.demo.fleet import Fleet, WorkerDied
from stanchion.cli.demo.hearing import Ears
from stanchion.cli.demo.interrupts import Interrupts
from stanchion.cli.demo.leftovers import reach
from stanchion.cli.demo.records import Heard, now_us
from stanchion.cli.demo.scene import Scene
from stanchion.cli.demo.setup import Setup, logs_directory
from stanchion.cli.output import Exit, complain, console
from stanchion.cli.places import place_of
from stanchion.errors import StoreUnavailable

if TYPE_CHECKING:
    from pathlib import Path

    from stanchion import PolicyState
    from stanchion.cli.demo.board import View
    from stanchion.cli.demo.setup import Options
    from stanchion.cli.places import Place


async def demo(options: Options) -> Exit:
    """Run the demo; get the status to exit with.

    Raises:
        ConfigError: an option, the trace or the URL cannot work.
        StanchionError: the store, or a worker, did not start or answer.
    """
    setup = Setup.of(options)
    interrupts = Interrupts()
    try:
        with interrupts:
            return await _Demo(options, setup, interrupts).run()
    except asyncio.CancelledError:
        if not interrupts.asked.is_set():
            raise
        complain("interrupted")
        return Exit.INTERRUPTED


class _Demo:
    def __init__(self, options: Options, setup: Setup, interrupts: Interrupts) -> None:
        self._options = options
        self._setup = setup
        self._interrupts = interrupts
        self._namespace = f"demo-{secrets.token_hex(3)}"
        self._console = console(sys.stderr if options.as_json else sys.stdout)
        self._heard: list[Heard] = []
        self._ears = Ears(self._heard.append)
        self._endpoint = Endpoint()
        self._began: tuple[float, int] | None = None
        self._seconds: float | None = None
        self._outage_over = False

    async def run(self) -> Exit:
        options = self._options
        async with AsyncExitStack() as stack:
            home = stack.enter_context(logs_directory(options.logs))
            place = await stack.enter_async_context(place_of(options.url))
            await reach(place.url)
            await stack.enter_async_context(self._endpoint)
            # It has no policies: what it learns, it learns as somebody who takes no part.
            bus = EventBus.from_url(place.url, observers=[self._ears], namespace=self._namespace)
            await stack.enter_async_context(bus)
            self._introduce(place)
            fleet = self._fleet(place, home)
            died = await self._load(fleet, bus)
            assert self._began is not None
            ending = Ending(
                place=place,
                namespace=self._namespace,
                workers=fleet.workers,
                endpoint=self._endpoint,
                heard=self._heard,
                start_us=self._began[1],
                seconds=self._time() if self._seconds is None else self._seconds,
                outage_over=self._outage_over,
                interrupted=self._interrupts.asked.is_set(),
                died=died,
            )
            status = await conclude(options, self._setup, ending, bus, self._console)
            if options.logs is not None:
                self._print(f"The workers' logs are in {home}")
            if options.keep:
                self._print(f"{place.shown} stays until Enter or Ctrl-C:")
                self._hint(place)
                await self._interrupts.enter()
            return status

    def _fleet(self, place: Place, home: Path) -> Fleet:
        return Fleet(
            self._setup.jobs(
                self._options,
                url=place.url,
                namespace=self._namespace,
                endpoint=self._endpoint.url,
                home=home,
            )
        )

    def _introduce(self, place: Place) -> None:
        outage = self._setup.outage
        self._print(
            f"{self._options.workers} workers, one set of limits in {place.shown}; the provider "
            f"of model {outage.model!r} will fail from {outage.start:.1f} s to {outage.end:.1f} s."
        )
        for line in self._setup.story:
            self._print(line)
        self._print("While it runs, try in another terminal:")
        self._hint(place)

    def _hint(self, place: Place) -> None:
        key = f"stanchion:{{{self._namespace}}}:circuit:provider:{self._setup.outage.model}"
        for line in place.hints(self._namespace, key):
            self._print(f"  {line}")

    def _print(self, text: str) -> None:
        # Lines to copy must not be broken.
        self._console.print(Text(text), soft_wrap=True)

    # ------------------------------------------------------------------------------- the load

    async def _load(self, fleet: Fleet, bus: EventBus) -> str | None:
        """Run the load; get how a worker died, if one did."""
        try:
            async with fleet:
                await fleet.go()
                self._began = (asyncio.get_running_loop().time(), now_us())
                self._interrupts.graceful = True
                terminal = self._console.is_terminal and not self._console.is_dumb_terminal
                view = LiveView(self._console) if terminal else PlainView(self._console)
                with view:
                    await self._drive(fleet, bus, view)
        except WorkerDied as error:
            if self._began is None:
                raise
            return str(error)
        return None

    async def _drive(self, fleet: Fleet, bus: EventBus, view: View) -> None:
        beside = [
            asyncio.create_task(self._watch(fleet, bus, view)),
            asyncio.create_task(self._outage()),
        ]
        try:
            await self._wait(fleet)
            self._seconds = self._time()
            await fleet.stop()
            seqs = await _last_changes(bus)
            await self._ears.wait_for(seqs)
            await fleet.finish(seqs)
        finally:
            for task in beside:
                task.cancel()
            ends = await asyncio.gather(*beside, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _wait(self, fleet: Fleet) -> None:
        """Wait until the time is up, the load has ended by itself, or Ctrl-C."""
        idle = asyncio.create_task(fleet.idle())
        told = asyncio.create_task(self._interrupts.asked.wait())
        try:
            await asyncio.wait(
                {idle, told}, timeout=self._setup.ends, return_when=asyncio.FIRST_COMPLETED
            )
            if idle.done():
                idle.result()
        finally:
            for task in (idle, told):
                task.cancel()
            await asyncio.gather(idle, told, return_exceptions=True)

    async def _outage(self) -> None:
        outage = self._setup.outage
        await asyncio.sleep(outage.start - self._time())
        self._endpoint.failing.add(outage.model)
        await asyncio.sleep(outage.end - self._time())
        self._endpoint.failing.discard(outage.model)
        self._outage_over = True

    async def _watch(self, fleet: Fleet, bus: EventBus, view: View) -> None:
        found: list[PolicyState] = []
        while True:
            # What cannot be read for a moment is shown as it was; the workers go on anyway.
            with suppress(StoreUnavailable):
                found = await states(bus)
            scene = Scene(
                elapsed=self._time(),
                seconds=self._setup.seconds,
                failing=next(iter(self._endpoint.failing), None),
                states=found,
                workers=fleet.workers,
                stopping=self._seconds is not None,
            )
            view.show(scene)
            await asyncio.sleep(view.every)

    def _time(self) -> float:
        assert self._began is not None
        return asyncio.get_running_loop().time() - self._began[0]


async def _last_changes(bus: EventBus) -> dict[str, int]:
    """Get the number of each circuit's last change, for those that ever changed."""
    return {
        f"{state.policy} {state.subject}": int(state.values["seq"])
        for state in await states(bus)
        if state.kind == "circuit"
        and (
            state.values.get("state") != CircuitState.CLOSED or state.values.get("closed_at") != "0"
        )
    }
