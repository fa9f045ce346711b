"""The built-in policies, and the protocol of custom ones."""

from stanchion.policies.base import Binding, BuiltInPolicy
from stanchion.policies.change import OnChange
from stanchion.policies.circuit_breaker import CircuitBreaker
from stanchion.policies.concurrency import Concurrency
from stanchion.policies.custom import Policy, Settling
from stanchion.policies.limited import LimitedPolicy
from stanchion.policies.quota import Overage, Quota, Unsettled
from stanchion.policies.rate_limit import Algorithm, RateLimit

__all__ = [
    "Algorithm",
    "Binding",
    "BuiltInPolicy",
    "CircuitBreaker",
    "Concurrency",
    "LimitedPolicy",
    "OnChange",
    "Overage",
    "Policy",
    "Quota",
    "RateLimit",
    "Settling",
    "Unsettled",
]
