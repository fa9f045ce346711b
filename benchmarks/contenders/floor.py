"""The least that a shared rate limit can cost: redis-py, one EVALSHA, the smallest GCRA script."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import redis.asyncio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

# One number for each subject; nothing is declared, settled, observed or explained.
GCRA = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local step, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local tat = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now) + step
local over = tat - now - step * burst
if over > 0 then
  return {0, over}
end
redis.call('SET', KEYS[1], string.format('%.0f', tat), 'PX', math.ceil((tat - now) / 1000) + 1)
return {1, 0}
"""

# Two such limits, all or nothing, and the second one gets back what was not used.
RESERVE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local tats = {}
for at = 1, 2 do
  local step, burst, cost = ARGV[at * 3 - 2], ARGV[at * 3 - 1], ARGV[at * 3]
  tats[at] = math.max(tonumber(redis.call('GET', KEYS[at]) or 0), now) + step * cost
  if tats[at] - now > step * burst then
    return 0
  end
end
for at = 1, 2 do
  local ttl = math.ceil((tats[at] - now) / 1000) + 1
  redis.call('SET', KEYS[at], string.format('%.3f', tats[at]), 'PX', ttl)
end
return 1
"""
SETTLE = """
local tat = redis.call('GET', KEYS[1])
if tat then
  redis.call('SET', KEYS[1], string.format('%.3f', tat - ARGV[1] * ARGV[2]), 'KEEPTTL')
end
return 1
"""


@asynccontextmanager
async def scripted(
    url: str, callers: int, *scripts: str
) -> AsyncIterator[Callable[..., Awaitable[object]]]:
    """Get what runs the script of a number: `(number, keys, *arguments)`."""
    async with redis.asyncio.Redis.from_url(url, max_connections=2 * callers) as client:
        digests = [cast("str", await client.script_load(script)) for script in scripts]

        def run(number: int, keys: int, *arguments: str) -> Awaitable[object]:
            return cast("Awaitable[object]", client.evalsha(digests[number], keys, *arguments))

        yield run
