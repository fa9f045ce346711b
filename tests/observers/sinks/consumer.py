"""Reads a stream as a consumer of a group: takes entries in hand, and is killed before it says so.

consumer.py URL GROUP
"""

from __future__ import annotations

import asyncio
import json
import sys

from stanchion.observers.streams import StreamReader


async def main():
    url, group = sys.argv[1:]
    async with StreamReader(url, group=group, start="0", claim_after="300ms") as reader:
        taken = []
        while True:
            taken += await reader.take(most=10, wait=0.2)
            # The first half is handled, the rest will be in hand for ever.
            if taken:
                await reader.ack(*taken[:5])
                print(json.dumps([delivery.event.id for delivery in taken]), flush=True)
                await asyncio.Event().wait()


asyncio.run(main())
