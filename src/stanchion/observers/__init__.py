"""The observability tier: `ObserverManager`, and what can be registered with it."""

from stanchion.observers.control import ControlListener, ControlStats, Resync
from stanchion.observers.delivery import Undelivered
from stanchion.observers.inbox import Overflow
from stanchion.observers.log import LoggingObserver
from stanchion.observers.manager import ObserverManager
from stanchion.observers.pubsub import (
    EventStream,
    NeedsChannel,
    RedisPublisher,
    StreamStats,
    listen,
)
from stanchion.observers.recorder import Recorder
from stanchion.observers.registration import Registration
from stanchion.observers.retry import Quarantine, Retry
from stanchion.observers.stats import ObserverState, ObserverStats, Unfinished
from stanchion.observers.target import AnyObserver, BatchObserver, Observer

__all__ = [
    "AnyObserver",
    "BatchObserver",
    "ControlListener",
    "ControlStats",
    "EventStream",
    "LoggingObserver",
    "NeedsChannel",
    "Observer",
    "ObserverManager",
    "ObserverState",
    "ObserverStats",
    "Overflow",
    "Quarantine",
    "Recorder",
    "RedisPublisher",
    "Registration",
    "Resync",
    "Retry",
    "StreamStats",
    "Undelivered",
    "Unfinished",
    "listen",
]
