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
      - factory: stanchion.observers:LoggingObserver

`STANCHION_URL`, `STANCHION_NAMESPACE`, `STANCHION_DEADLINE` and `STANCHION_PROCESSES` come before
what the file says, and so does `STANCHION_POLICY_CALLS__LIMIT=1200` for the limit of the policy
`calls`: letters in capitals, and every other character of the name but digits an underscore.
"""

from __future__ import annotations

import importlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stanchion.errors import ConfigError, shown
from stanchion.policies import CircuitBreaker, Concurrency, Quota, RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stanchion.chain import AnyPolicy
    from stanchion.observers import AnyObserver

_BUILT_IN = {
    "rate_limit": RateLimit,
    "quota": Quota,
    "circuit_breaker": CircuitBreaker,
    "concurrency": Concurrency,
}
_CUSTOM = "custom"
_KINDS = [*_BUILT_IN, _CUSTOM]
_SINGLE = ("url", "namespace", "deadline", "processes")
_LISTS = ("imports", "policies", "observers")
_POLICY = "STANCHION_POLICY_"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a file and the environment say together, in the terms of `EventBus.from_url`."""

    url: str
    namespace: str = "default"
    deadline: float | str = 1.0
    processes: int | None = None
    policies: tuple[AnyPolicy, ...] = ()
    observers: tuple[AnyObserver, ...] = ()


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
    document = _mapping(_yaml(text, str(file)), str(file), (*_SINGLE, *_LISTS))
    for name in _SINGLE:
        variable = f"STANCHION_{name.upper()}"
        if variable in environ:
            value = environ[variable]
            document[name] = value if name in {"url", "namespace"} else _yaml(value, variable)
    if not isinstance(document.get("url"), str):
        raise ConfigError.of(f"{file}: url", document.get("url"), 'expected "redis://..."')
    if not isinstance(document.get("namespace", ""), str):
        raise ConfigError.of(f"{file}: namespace", document["namespace"], "expected text")
    for index, module in enumerate(_list(document, "imports", file)):
        _import(f"{file}: imports[{index}]", module)
    overrides = {name: value for name, value in environ.items() if name.startswith(_POLICY)}
    policies = tuple(
        _policy(f"{file}: policies[{index}]", entry, overrides)
        for index, entry in enumerate(_list(document, "policies", file))
    )
    if overrides:
        raise ConfigError.of(
            next(iter(overrides)),
            next(iter(overrides.values())),
            f"{file} has no such policy; expected {_POLICY}<NAME>__<FIELD>",
        )
    observers = tuple(
        cast("AnyObserver", _made(f"{file}: observers[{index}]", entry))
        for index, entry in enumerate(_list(document, "observers", file))
    )
    single = {name: document[name] for name in _SINGLE if document.get(name) is not None}
    return Settings(**single, policies=policies, observers=observers)


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


def _mapping(value: object, where: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError.of(where, value, f"expected a mapping with {list(known)}")
    mapping = cast("dict[Any, Any]", value)
    for name in mapping:
        if name not in known:
            raise ConfigError(f"{where}: unknown field {shown(name)}: expected {list(known)}")
    return dict(mapping)


def _list(document: Mapping[str, Any], name: str, file: Path) -> list[Any]:
    value: object = document.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConfigError.of(f"{file}: {name}", value, "expected a list")
    return cast("list[Any]", value)


def _policy(where: str, entry: object, overrides: dict[str, str]) -> AnyPolicy:
    fields = dict(cast("dict[str, Any]", entry)) if isinstance(entry, dict) else {}
    if "kind" not in fields:
        raise ConfigError.of(
            where, cast("object", entry), f"expected a mapping with kind, one of {_KINDS}"
        )
    kind = fields.pop("kind")
    if kind == _CUSTOM:
        return cast("AnyPolicy", _made(where, fields))
    if kind not in _BUILT_IN:
        raise ConfigError.of(f"{where}: kind", kind, f"expected one of {_KINDS}")
    fields |= _overridden(str(fields.get("name", "")), overrides)
    for name in ("on", "warn_at"):
        if isinstance(fields.get(name), list):
            fields[name] = tuple(fields[name])
    if "failures" in fields:
        names = fields["failures"]
        each = cast("list[object]", names) if isinstance(names, list) else [names]
        fields["failures"] = tuple(_named(f"{where}: failures", name) for name in each)
    make = cast("Callable[..., AnyPolicy]", _BUILT_IN[kind])
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


def _made(where: str, entry: object) -> object:
    """Get what a `factory` makes of its `options`."""
    fields = _mapping(entry, where, ("factory", "options"))
    make = _named(f"{where}: factory", fields.get("factory"))
    options: Any = fields.get("options") or {}
    if not isinstance(options, dict):
        raise ConfigError.of(f"{where}: options", fields["options"], "expected a mapping")
    try:
        return make(**cast("dict[str, Any]", options))
    # Somebody else's code: whatever it raises, the place in the file is what helps.
    except Exception as error:
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        raise ConfigError(f"{where}: {fields['factory']}: {kind}{error}") from error


def _named(where: str, name: object) -> Callable[..., object]:
    if not isinstance(name, str) or not re.fullmatch(r"[\w.]+:\w+", name):
        raise ConfigError.of(where, name, 'expected "module:Name"')
    module, _, attribute = name.partition(":")
    found: object = getattr(_import(where, module), attribute, None)
    if not callable(found):
        raise ConfigError.of(where, name, f"{module} has no such class or function")
    return found


def _import(where: str, module: object) -> object:
    try:
        return importlib.import_module(str(module))
    except ImportError as error:
        raise ConfigError.of(where, module, f"cannot be imported: {error}") from error
