"""Policies that ask a service: OPA, an authorizer over HTTP, or one of your own."""

from stanchion.policies.remote.base import RemotePolicy
from stanchion.policies.remote.function import remote_policy
from stanchion.policies.remote.http import HttpPolicy
from stanchion.policies.remote.opa import OpaPolicy
from stanchion.policies.remote.rego import RegoPolicy
from stanchion.policies.stats import PolicyStats

__all__ = [
    "HttpPolicy",
    "OpaPolicy",
    "PolicyStats",
    "RegoPolicy",
    "RemotePolicy",
    "remote_policy",
]
