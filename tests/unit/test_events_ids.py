from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid

import pytest

from stanchion.events import Event, ids


def test_an_id_is_a_uuid_of_version_7_that_holds_the_time():
    before = time.time_ns() // 1_000_000
    # A maker of its own: where a test has moved the clock, the others' ids are ahead of it.
    text = ids._Ids().make()
    after = time.time_ns() // 1_000_000
    read = uuid.UUID(text)
    assert str(read) == text
    assert read.version == 7
    assert read.variant == uuid.RFC_4122
    assert before <= read.int >> 80 <= after


def test_ids_rise_within_a_thread():
    made = [ids.uuid7() for _ in range(20_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_ids_of_several_threads_are_unique_and_rise_in_each():
    made: dict[int, list[str]] = {}
    together = threading.Barrier(8)

    def make(worker: int) -> None:
        together.wait(timeout=10)
        made[worker] = [ids.uuid7() for _ in range(3_000)]

    threads = [threading.Thread(target=make, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert all(own == sorted(own) for own in made.values())
    assert len({text for own in made.values() for text in own}) == 8 * 3_000


def test_ids_rise_while_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch):
    maker = ids._Ids()
    now = 1_800_000_000_000_000_000
    moments = iter([now, now - 5_000_000_000, now, now - 1, now + 1_000_000])
    monkeypatch.setattr(time, "time_ns", lambda: next(moments))
    made = [maker.make() for _ in range(5)]
    assert made == sorted(set(made))
    assert [uuid.UUID(text).int >> 80 for text in made] == [now // 1_000_000] * 4 + [
        now // 1_000_000 + 1
    ]


def test_the_counter_carries_from_one_group_of_digits_into_the_next(
    monkeypatch: pytest.MonkeyPatch,
):
    maker = ids._Ids()
    monkeypatch.setattr(time, "time_ns", lambda: 1_800_000_000_000_000_000)
    maker.make()
    for carry in (16, 30):
        maker._counter = (1 << carry) - 2
        maker._write_head()
        made = [uuid.UUID(maker.make()).int for _ in range(3)]
        counters = [(n >> 64 & 0xFFF) << 30 | (n >> 32 & 0x3FFFFFFF) for n in made]
        assert counters == [(1 << carry) - 1, 1 << carry, (1 << carry) + 1]
        assert made == sorted(made)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_makes_other_ids_than_its_parent():
    script = """
import os
from stanchion.events import ids
ids.uuid7()
child = os.fork()
tails = [ids.uuid7()[-8:] for _ in range(200)]
if child:
    os.waitpid(child, 0)
os.write(1, (" ".join(tails) + "\\n").encode())
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True
    )
    one, two = (set(line.split()) for line in done.stdout.splitlines())
    # 32 random bits each: by chance two would be equal once in 100,000 runs.
    assert not one & two


def test_an_event_has_a_fresh_id():
    class Fresh(Event, type="test_ids:fresh"):
        pass

    assert Fresh().id < Fresh().id
