"""The built-in policies, and the protocol of custom ones."""

from stanchion.policies.base import BuiltInPolicy
from stanchion.policies.binding import Binding
from stanchion.policies.change import OnChange
from stanchion.policies.circuit_breaker import CircuitBreaker
from stanchion.policies.concurrency import Concurrency
from stanchion.policies.custom import Closing, Panel, Policy, Punctual, Settling
from stanchion.policies.limited import LimitedPolicy
from stanchion.policies.quota import Overage, Quota, Unsettled
from stanchion.policies.rate_limit import Algorithm, RateLimit
from stanchion.policies.run import Question, Run

__all__ = [
    "Algorithm",
    "Binding",
    "BuiltInPolicy",
    "CircuitBreaker",
    "Closing",
    "Concurrency",
    "LimitedPolicy",
    "OnChange",
    "Overage",
    "Panel",
    "Policy",
    "Punctual",
    "Question",
    "Quota",
    "RateLimit",
    "Run",
    "Settling",
    "Unsettled",
]
