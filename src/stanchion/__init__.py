"""stanchion: one shared set of limits for many workers, checked atomically in Redis."""

from stanchion.bus import EventBus
from stanchion.decisions import (
    CircuitState,
    ColdStart,
    Decision,
    Mode,
    OnOutage,
    Outcome,
    Reason,
    Signal,
    Verdict,
)
from stanchion.errors import (
    CircuitOpen,
    ConcurrencyLimited,
    ConfigError,
    PolicyFailed,
    QuotaExceeded,
    RateLimited,
    StanchionError,
    StoreUnavailable,
    Vetoed,
)
from stanchion.events import Event
from stanchion.headers import response_headers
from stanchion.observers import ObserverManager
from stanchion.permit import Permit
from stanchion.policies import (
    Algorithm,
    CircuitBreaker,
    Concurrency,
    OnChange,
    Overage,
    Policy,
    Quota,
    RateLimit,
    Unsettled,
)
from stanchion.providers import ProviderLimit, ProviderLimits, parse_limits
from stanchion.settling import Settlement
from stanchion.states import PolicyState

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "CircuitBreaker",
    "CircuitOpen",
    "CircuitState",
    "ColdStart",
    "Concurrency",
    "ConcurrencyLimited",
    "ConfigError",
    "Decision",
    "Event",
    "EventBus",
    "Mode",
    "ObserverManager",
    "OnChange",
    "OnOutage",
    "Outcome",
    "Overage",
    "Permit",
    "Policy",
    "PolicyFailed",
    "PolicyState",
    "ProviderLimit",
    "ProviderLimits",
    "Quota",
    "QuotaExceeded",
    "RateLimit",
    "RateLimited",
    "Reason",
    "Settlement",
    "Signal",
    "StanchionError",
    "StoreUnavailable",
    "Unsettled",
    "Verdict",
    "Vetoed",
    "__version__",
    "parse_limits",
    "response_headers",
]
