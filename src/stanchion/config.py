"""A bus as a YAML file says: where the store is, which policies there are, and who is told.

    url: redis://localhost:6379/0
    imports: [myapp.events]
    policies:
      - kind: rate_limit
        name: calls
        on: llm:call
        by: [tenant, model]
        limit: 600
        per: 1m
      - kind: custom
        factory: myapp.policies:NoSecrets
        options: {terms: [secret]}
    observers:
      - kind: jsonl
        path: /var/log/agents/events.jsonl
      - kind: slack
        url: ${SLACK_URL}
        on: "policy:*"
        terms: {queue: 10_000, timeout: 10s}
      - factory: stanchion.observers:LoggingObserver
    redact: [prompt, metadata.api_key]
    shard_by: [tenant, model]

`STANCHION_URL`, `STANCHION_NAMESPACE`, `STANCHION_DEADLINE`, `STANCHION_PROCESSES`,
`STANCHION_SHARDS` and `STANCHION_CACHE_DENIALS` come before what the file says, and so does
`STANCHION_POLICY_CALLS__LIMIT=1200` for the limit of the policy `calls`: letters in capitals, and
every other character of the name but digits an underscore. In any text of an observer, and in what
a policy keeps secret, such as `bearer` and `headers`, `${NAME}` stands for the environment's
variable of that name.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stanchion.errors import ConfigError
from stanchion.policies import CircuitBreaker, Concurrency, Quota, RateLimit
from stanchion.wiring import built, imported, mapping, named, observers_of, with_variables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stanchion.chain import AnyPolicy
    from stanchion.observers.registration import Registration

_BUILT_IN = {
    "rate_limit": RateLimit,
    "quota": Quota,
    "circuit_breaker": CircuitBreaker,
    "concurrency": Concurrency,
}
# Each is imported where a file names it: what it needs may be an extra.
_OTHERS = {
    "opa": "stanchion.policies.remote:OpaPolicy",
    "rego": "stanchion.policies.remote:RegoPolicy",
    "http": "stanchion.policies.remote:HttpPolicy",
    "rules": "stanchion.policies.rules:RulePolicy",
    "content": "stanchion.policies.content:ContentPolicy",
    "window": "stanchion.policies.window:WindowPolicy",
    "kill_switch": "stanchion.policies.kill_switch:KillSwitch",
}
_CUSTOM = "custom"
_KINDS = [*_BUILT_IN, *_OTHERS, _CUSTOM]
_SINGLE = ("url", "namespace", "deadline", "processes", "cache_denials", "shards")
_LISTS = ("imports", "policies", "observers", "redact", "shard_by")
_POLICY = "STANCHION_POLICY_"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a file and the environment say together, in the terms of `EventBus.from_url`."""

    url: str
    namespace: str = "default"
    deadline: float | str = 1.0
    processes: int | None = None
    policies: tuple[AnyPolicy, ...] = ()
    observers: tuple[Registration, ...] = ()
    redact: tuple[str, ...] = ()
    cache_denials: bool = True
    shard_by: tuple[str, ...] = ()
    shards: int | None = None


def read_settings(
    path: str | os.PathLike[str], environ: Mapping[str, str] | None = None
) -> Settings:
    """Get the settings of a YAML file; `environ` is the process's environment by default.

    Raises:
        ConfigError: the file cannot be read or is no such YAML, a field is unknown or cannot work,
            a variable overrides what is not there, or the extra `config` is not installed.
    """
    file = Path(path)
    environ = os.environ if environ is None else environ
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    document = mapping(_yaml(text, str(file)), str(file), (*_SINGLE, *_LISTS))
    for name in _SINGLE:
        variable = f"STANCHION_{name.upper()}"
        if variable in environ:
            value = environ[variable]
            document[name] = value if name in {"url", "namespace"} else _yaml(value, variable)
    if not isinstance(document.get("url"), str):
        raise ConfigError.of(f"{file}: url", document.get("url"), 'expected "redis://..."')
    if not isinstance(document.get("namespace", ""), str):
        raise ConfigError.of(f"{file}: namespace", document["namespace"], "expected text")
    if not isinstance(document.get("cache_denials", True), bool):
        raise ConfigError.of(
            f"{file}: cache_denials", document["cache_denials"], "expected true or false"
        )
    for index, module in enumerate(_list(document, "imports", file)):
        imported(f"{file}: imports[{index}]", module)
    overrides = {name: value for name, value in environ.items() if name.startswith(_POLICY)}
    policies = tuple(
        _policy(f"{file}: policies[{index}]", entry, overrides, environ)
        for index, entry in enumerate(_list(document, "policies", file))
    )
    if overrides:
        raise ConfigError.of(
            next(iter(overrides)),
            next(iter(overrides.values())),
            f"{file} has no such policy; expected {_POLICY}<NAME>__<FIELD>",
        )
    observers = observers_of(f"{file}: observers", _list(document, "observers", file), environ)
    single = {name: document[name] for name in _SINGLE if document.get(name) is not None}
    lists: dict[str, Any] = {
        name: tuple(_list(document, name, file)) for name in ("redact", "shard_by")
    }
    return Settings(**single, **lists, policies=policies, observers=observers)


def _yaml(text: str, where: str) -> object:
    try:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import YAMLError
    except ImportError:
        raise ConfigError(
            'reading a YAML file needs ruamel.yaml: pip install "stanchion[config]"'
        ) from None
    try:
        # YAML 1.2: `on` is a word here, and not true. A key that comes twice is an error.
        return cast("Any", YAML(typ="safe", pure=True)).load(text)
    except YAMLError as error:
        words = " ".join(str(error).partition("To suppress this check")[0].split())
        raise ConfigError(f"{where}: no YAML that can be read: {words}") from error


def _list(document: Mapping[str, Any], name: str, file: Path) -> list[Any]:
    value: object = document.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConfigError.of(f"{file}: {name}", value, "expected a list")
    return cast("list[Any]", value)


def _policy(
    where: str, entry: object, overrides: dict[str, str], environ: Mapping[str, str]
) -> AnyPolicy:
    fields = dict(cast("dict[str, Any]", entry)) if isinstance(entry, dict) else {}
    if "kind" not in fields:
        raise ConfigError.of(
            where, cast("object", entry), f"expected a mapping with kind, one of {_KINDS}"
        )
    kind = fields.pop("kind")
    if kind == _CUSTOM:
        return cast("AnyPolicy", built(where, fields))
    if kind not in _KINDS:
        raise ConfigError.of(f"{where}: kind", kind, f"expected one of {_KINDS}")
    fields |= _overridden(str(fields.get("name", "")), overrides)
    for name in ("on", "warn_at"):
        if isinstance(fields.get(name), list):
            fields[name] = tuple(fields[name])
    if "failures" in fields:
        names = fields["failures"]
        each = cast("list[object]", names) if isinstance(names, list) else [names]
        fields["failures"] = tuple(named(f"{where}: failures", name) for name in each)
    if "judge" in fields:
        fields["judge"] = named(f"{where}: judge", fields["judge"])
    made = _BUILT_IN[kind] if kind in _BUILT_IN else named(where, _OTHERS[kind])
    secret: frozenset[str] = getattr(made, "secret", frozenset())
    for name in secret & fields.keys():
        fields[name] = with_variables(f"{where}: {name}", fields[name], environ, {})
    make = cast("Callable[..., AnyPolicy]", made)
    try:
        return make(**{str(name): value for name, value in fields.items()})
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _overridden(name: str, overrides: dict[str, str]) -> dict[str, Any]:
    """Take out of `overrides` what is for the policy of this name."""
    prefix = f"{_POLICY}{re.sub('[^A-Z0-9]', '_', name.upper())}__"
    mine = [variable for variable in overrides if variable.startswith(prefix)]
    return {
        variable.removeprefix(prefix).lower(): _yaml(overrides.pop(variable), variable)
        for variable in mine
    }
