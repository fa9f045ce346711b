"""Whether the user may do what a worker does, and how much more than that.

A script can ask what its user may do, so that nothing has to be tried; see `redis.acl_check_cmd`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, cast

from stanchion.store.doctor.findings import Check, Finding, Status
from stanchion.store.doctor.server import NotPermitted, text

if TYPE_CHECKING:
    from stanchion.store.doctor.server import Server
    from stanchion.store.keys import Keyspace

_SCRIPT: Final = """
local found = {}
for place, words in ipairs(cjson.decode(ARGV[1])) do
  local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
  found[place] = (known and allowed) and 1 or 0
end
return found
"""
_DEFAULT: Final = "default"
_KEY, _CHANNEL = "{key}", "{channel}"
#: What a worker runs, each in its shortest form.
_COMMANDS: Final = (
    *("client setname x", f"evalsha x 1 {_KEY}", f"eval x 1 {_KEY}", "time"),
    *(f"hgetall {_KEY}", f"hmget {_KEY} x", f"hget {_KEY} x", f"hset {_KEY} x y", f"hdel {_KEY} x"),
    *(f"zadd {_KEY} 1 x", f"zrem {_KEY} x", f"zscore {_KEY} x", f"zcard {_KEY}"),
    *(f"zcount {_KEY} 0 1", f"zrange {_KEY} 0 1", f"zrevrange {_KEY} 0 1"),
    *(f"zrangebyscore {_KEY} 0 1", f"zremrangebyscore {_KEY} 0 1"),
    *(f"zremrangebyrank {_KEY} 0 1", f"pexpire {_KEY} 1", f"pttl {_KEY}", f"del {_KEY}"),
    *(f"publish {_CHANNEL} x", f"subscribe {_CHANNEL}", "scan 0"),
)
#: What one runs beside that whose quotas wait for replicas.
_WAITING: Final = "wait 1 1"
#: What no worker needs, and what can do harm.
_MORE: Final = (
    *("flushall", "config set x y", "shutdown", "acl setuser x", "script flush", "keys *"),
    *("hset another:key x y", "debug sleep 0", "replicaof x 1"),
)


def _name(command: str) -> str:
    words = command.split()
    return "|".join(words[:2]) if words[0] == "client" else words[0]


#: The fewest commands under which a worker can do everything, as ACL SETUSER names them.
NEEDED: Final = tuple(_name(command) for command in _COMMANDS)


async def rights(
    server: Server, keyspace: Keyspace, user: str | None, *, waits: bool = False
) -> Finding:
    """Judge what the user may do; `user` is who logged in, None where nobody did.

    `waits` says that there are quotas that wait for replicas.
    """
    commands = (*_COMMANDS, _WAITING) if waits else _COMMANDS
    pattern = f"{keyspace.prefix}*"
    name = text(await server.try_asking("ACL", "WHOAMI") or user or _DEFAULT)
    names = {_KEY: keyspace.circuits, _CHANNEL: keyspace.control}
    needed = [[names.get(word, word) for word in command.split()] for command in commands]
    more = [command.split() for command in _MORE]
    asked = [*needed, ["evalsha", "x", "0"], *more]
    try:
        reply = await server.ask("EVAL", _SCRIPT, "0", json.dumps(asked))
    except NotPermitted as error:
        found = f"{name} may not run scripts: {error}"
        remedy = f"ACL SETUSER {name} +eval +evalsha"
        return Finding(Check.RIGHTS, Status.ERROR, found, remedy)
    answers = [answer == 1 for answer in cast("list[Any]", reply)]
    granted = dict(zip(map(_name, commands), answers[: len(needed)], strict=True))
    if missing := _missing(granted, pattern, no_key=answers[len(needed)]):
        found = f"{name} lacks {' '.join(missing)}"
        remedy = f"ACL SETUSER {name} {' '.join(missing)}"
        return Finding(Check.RIGHTS, Status.ERROR, found, remedy)
    idle = [
        _label(words)
        for words, is_allowed in zip(more, answers[-len(more) :], strict=True)
        if is_allowed
    ]
    if not idle:
        return Finding(
            Check.RIGHTS, Status.OK, f"{name} may do what a worker does, and little else"
        )
    who = f"{name} (no login)" if user is None else name
    found = f"{who} may do what a worker does, and {', '.join(idle)}"
    remedy = (
        f"for workers: a user with {pattern} and the {len(NEEDED)} commands of docs/operations.md"
    )
    return Finding(Check.RIGHTS, Status.HINT, found, remedy)


def _missing(granted: dict[str, bool], pattern: str, *, no_key: bool) -> list[str]:
    """Get what is to be given to the user, as ACL SETUSER takes it."""
    given: list[str] = []
    keyed = {_name(command) for command in _COMMANDS if _KEY in command}
    if no_key and not granted["evalsha"]:
        # Without the keys no command on them is allowed, and which of them would be is not told.
        given.append(f"~{pattern}")
        granted |= dict.fromkeys(keyed, True)
    if not (granted["publish"] or granted["subscribe"]):
        given.append(f"&{pattern}")
    return [*given, *(f"+{name}" for name, is_allowed in granted.items() if not is_allowed)]


def _label(words: list[str]) -> str:
    if words[0] == "hset":
        return "any key"
    return " ".join(words[:2] if words[0] in {"config", "acl", "script"} else words[:1]).upper()
