"""What the server's own figures and settings mean for limits that are kept on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from stanchion.store.doctor.findings import Check, Finding, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

#: What `replication` and `persistence` want to know beside INFO.
SETTINGS: Final = ("appendfsync", "save", "min-replicas-to-write", "min-replicas-max-lag")
_WRITTEN: Final = {
    "aof_last_write_status": "append-only file",
    "rdb_last_bgsave_status": "snapshot",
}
_FULL, _FILLING = 0.95, 0.8
_LATE = 10  # seconds since a replica was last heard of
_BEHIND = 1 << 20  # bytes
_MEBIBYTE = 1 << 20


def eviction(info: Mapping[str, Any]) -> Finding:
    """Judge whether the server may forget limits when its memory is full."""
    policy, limit = str(info.get("maxmemory_policy", "")), _number(info, "maxmemory")
    remedy = "CONFIG SET maxmemory-policy noeviction, and the same in the server's configuration"
    if policy == "noeviction":
        return Finding(Check.EVICTION, Status.OK, policy)
    if not policy:
        return Finding(Check.EVICTION, Status.HINT, "the server does not tell its policy")
    if limit:
        found = f"{policy}: when its memory is full, limits are forgotten and start anew"
        return Finding(Check.EVICTION, Status.ERROR, found, remedy)
    found = f"{policy}, which does nothing as long as there is no maxmemory"
    return Finding(Check.EVICTION, Status.HINT, found, remedy)


def memory(info: Mapping[str, Any]) -> Finding:
    """Judge how much memory is left before writes are refused, or the server is killed."""
    used, limit = _number(info, "used_memory"), _number(info, "maxmemory")
    machine = _number(info, "total_system_memory")
    if not limit:
        share = used / machine if machine else 0.0
        found = f"{_size(used)} used; no maxmemory"
        status = Status.WARNING if share >= _FILLING else Status.HINT
        remedy = "set maxmemory, so that a full server refuses writes rather than is killed"
        return Finding(Check.MEMORY, status, found, remedy)
    share = used / limit
    found = f"{_size(used)} of {_size(limit)} used ({share:.0%})"
    remedy = "raise maxmemory: a full server refuses writes, and every decision is a veto"
    if share >= _FILLING:
        status = Status.ERROR if share >= _FULL else Status.WARNING
        return Finding(Check.MEMORY, status, found, remedy)
    return Finding(Check.MEMORY, Status.OK, found)


def persistence(info: Mapping[str, Any], settings: Mapping[str, str]) -> Finding:
    """Judge what a restart of the server would forget."""
    if _number(info, "loading"):
        return _kept(Status.ERROR, "it is still loading its data", "wait until it has")
    for name, what in _WRITTEN.items():
        if str(info.get(name, "ok")) != "ok":
            found = f"the last {what} was not written; the server may refuse writes for it"
            return _kept(Status.ERROR, found, "see the server's log: most often its disk is full")
    return _logged(settings) if _number(info, "aof_enabled") else _unlogged(settings)


def _logged(settings: Mapping[str, str]) -> Finding:
    fsync = settings.get("appendfsync", "")
    found = f"append-only file{f', fsync {fsync}' if fsync else ''}"
    if fsync != "no":
        return _kept(Status.OK, found)
    found = f"{found}: a crash of the machine loses what the kernel had not written"
    return _kept(Status.HINT, found, "appendfsync everysec")


def _unlogged(settings: Mapping[str, str]) -> Finding:
    remedy = "appendonly yes, with appendfsync everysec"
    if settings.get("save"):
        found = "snapshots only: a restart forgets what was used since the last one"
        return _kept(Status.HINT, found, remedy)
    if "save" in settings:
        found = "none: a restart forgets what every limit has counted"
        return _kept(Status.WARNING, found, remedy)
    found = "no append-only file; whether there are snapshots is not known (CONFIG GET)"
    return _kept(Status.HINT, found, remedy)


def replication(
    info: Mapping[str, Any], settings: Mapping[str, str], *, fails_over: bool, awaited: int = 0
) -> Finding:
    """Judge whether writes are taken, and what a failover would cost.

    `fails_over` says that something is there to make a replica the primary, and `awaited` how many
    of them quotas wait for.
    """
    if info.get("role") == "slave":
        return replica()
    wanted = _number(settings, "min-replicas-to-write")
    # INFO tells these only where some are wanted.
    enough = info.get("min_slaves_good_slaves")
    if enough is not None and int(enough) < wanted:
        found = f"{enough} good replicas, and min-replicas-to-write {wanted}: writes are refused"
        return _copied(Status.ERROR, found, "bring replicas back, or lower that setting")
    replicas = [cast("Mapping[str, Any]", info[name]) for name in info if _names_replica(name)]
    online = sum(one.get("state") == "online" for one in replicas)
    if online < awaited:
        found = f"{online} replicas online, and quotas with replicas={awaited}: they admit nothing"
        return _copied(Status.ERROR, found, "bring replicas back, or lower that field")
    if not replicas:
        return _alone(fails_over=fails_over)
    return _followed(info, settings, replicas)


def _alone(*, fails_over: bool) -> Finding:
    if fails_over:
        found = "a primary without a replica: nothing can take over"
        return _copied(Status.WARNING, found, "add a replica")
    found = "a primary without a replica: while it is away, so is every decision"
    return _copied(Status.HINT, found, "for failover: Sentinel or Cluster, with a replica")


def _followed(
    info: Mapping[str, Any], settings: Mapping[str, str], replicas: list[Mapping[str, Any]]
) -> Finding:
    good = [one for one in replicas if one.get("state") == "online"]
    found = f"a primary, {len(good)} of {len(replicas)} replicas online"
    if len(good) < len(replicas):
        return _copied(Status.WARNING, found, "see the log of the replica that is not")
    offset = _number(info, "master_repl_offset")
    behind = max(offset - _number(one, "offset") for one in good)
    late = max(_number(one, "lag") for one in good)
    found = f"{found}, {behind} bytes behind, last heard of {late} s ago"
    if behind > _BEHIND or late > _LATE:
        remedy = "see the network between them: a failover loses what is behind"
        return _copied(Status.WARNING, found, remedy)
    wanted = settings.get("min-replicas-to-write")
    if wanted == "0":
        found = f"{found}; min-replicas-to-write 0: one that is cut off goes on, for nothing"
        remedy = "min-replicas-to-write 1, min-replicas-max-lag 10"
        return _copied(Status.HINT, found, remedy)
    return _copied(Status.OK, f"{found}{f', min-replicas-to-write {wanted}' if wanted else ''}")


def replica() -> Finding:
    """Say that it is a replica."""
    found = "a replica, which takes no writes: every decision is a veto"
    return _copied(Status.ERROR, found, "name the primary in the URL, or use redis+sentinel://")


def _names_replica(name: str) -> bool:
    return name.startswith("slave") and name.removeprefix("slave").isdecimal()


def _kept(status: Status, found: str, remedy: str = "") -> Finding:
    return Finding(Check.PERSISTENCE, status, found, remedy)


def _copied(status: Status, found: str, remedy: str = "") -> Finding:
    return Finding(Check.REPLICATION, status, found, remedy)


def _number(values: Mapping[str, Any], name: str) -> int:
    try:
        return int(values.get(name, 0))
    except (TypeError, ValueError):
        return 0


def _size(count: int) -> str:
    return f"{count / _MEBIBYTE:,.1f} MiB"
