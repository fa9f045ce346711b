"""`ContentPolicy`: what prompts and responses may say."""

from stanchion.policies.content.findings import Finding, Kind
from stanchion.policies.content.personal import Personal
from stanchion.policies.content.policy import ContentPolicy

__all__ = ["ContentPolicy", "Finding", "Kind", "Personal"]
