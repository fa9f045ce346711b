"""Faults in how many subjects may have state."""

from __future__ import annotations

from tests.properties.mutations import Mutation

SUBJECTS = "include/subjects"

SUBJECTS_FAULTS = (
    Mutation(
        "subjects count for as long as nobody takes them out",
        "few",
        SUBJECTS,
        "redis.call('ZCOUNT', index.key, '(' .. text(now_us), '+inf')",
        "redis.call('ZCOUNT', index.key, '-inf', '+inf')",
        rare=True,
    ),
    Mutation(
        "who has state is refused for what others have",
        "few",
        SUBJECTS,
        """    if not index or not cell.absent or next(cell.raw) or cell.dirty then
      return nil
    end
    local known = redis.pcall('ZSCORE', index.key, subject)
""",
        "    local known = subject == false\n",
    ),
    Mutation(
        "who is one too many is refused and has state",
        "few",
        SUBJECTS,
        "    local wait_us = room_in(index, total - most)\n",
        "    local wait_us = room_in(index, total - most)\n    cell.dirty = true\n",
    ),
    Mutation(
        "those who travel together are let in together",
        "few",
        SUBJECTS,
        "total = total + (cell.dirty and 1 or 0)",
        "total = total + (cell.dirty and 0 or 0)",
    ),
    Mutation(
        "a subject counts no longer than what it was first admitted for",
        "few",
        SUBJECTS,
        "redis.pcall('ZADD', index.key,\n",
        "redis.pcall('ZADD', index.key, 'NX',\n",
    ),
    Mutation(
        "who was vetoed takes a place among the subjects",
        "few",
        "include/restoring",
        "      subjects.drop(key)\n",
        "",
    ),
    Mutation(
        "who waits is told to come when the last one has gone",
        "few",
        SUBJECTS,
        "'LIMIT', text(over), '1')",
        "'LIMIT', text(over + 1), '1')",
        rare=True,
    ),
)
