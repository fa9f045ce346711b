"""From what a configuration says to the objects that it means: modules, factories, observers."""

from __future__ import annotations

import importlib
import inspect
import os
import re
from typing import TYPE_CHECKING, Any, Final, cast

from stanchion.errors import ConfigError, shown
from stanchion.observers import ObserverManager
from stanchion.observers.registration import Registration
from stanchion.observers.retry import Quarantine, Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stanchion.observers import AnyObserver

_SINKS: Final = "stanchion.observers.sinks"
OBSERVERS: Final[Mapping[str, str]] = {
    "console": f"{_SINKS}.console:ConsoleSink",
    "dogstatsd": f"{_SINKS}.dogstatsd:DogStatsdSink",
    "eventbridge": f"{_SINKS}.eventbridge:EventBridgeSink",
    "eventgrid": f"{_SINKS}.eventgrid:EventGridSink",
    "jsonl": f"{_SINKS}.jsonl:JsonlSink",
    "kafka": f"{_SINKS}.kafka:KafkaSink",
    "otlp": f"{_SINKS}.otlp:OtlpSink",
    "pagerduty": f"{_SINKS}.pagerduty:PagerDutySink",
    "parquet": f"{_SINKS}.parquet:ParquetSink",
    "prometheus": f"{_SINKS}.prometheus:PrometheusSink",
    "pulsar": f"{_SINKS}.pulsar:PulsarSink",
    "redis_pubsub": "stanchion.observers.pubsub:RedisPublisher",
    "redis_stream": f"{_SINKS}.redis_stream:RedisStreamSink",
    "slack": f"{_SINKS}.slack:SlackSink",
    "webhook": f"{_SINKS}.webhook:WebhookSink",
}
# `$${` stands for `${` itself.
_VARIABLE: Final = re.compile(r"\$(\$\{|\{(?P<name>[^{}]*)\})")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TERMS: Final = tuple(
    name
    for name in inspect.signature(ObserverManager.register).parameters
    if name not in {"self", "observer"}
)
_SELECTORS: Final = ("on", "priority")
_GRADED: Final = {"retry": Retry, "quarantine": Quarantine}
_SHORT: Final = 4  # characters: what is shorter is no secret, and may be part of any word
_CUT: Final = 8  # characters that are looked for where an error shows the beginning of a value


def mapping(value: object, where: str, known: Sequence[str]) -> dict[str, Any]:
    """Get a mapping that has no other fields than the known ones.

    Raises:
        ConfigError: it is none, or it has.
    """
    if not isinstance(value, dict):
        raise ConfigError.of(where, value, f"expected a mapping with {list(known)}")
    found = cast("dict[Any, Any]", value)
    for name in found:
        if name not in known:
            raise ConfigError(f"{where}: unknown field {shown(name)}: expected {list(known)}")
    return dict(found)


def imported(where: str, module: object) -> object:
    """Get a module.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        return importlib.import_module(str(module))
    except ImportError as error:
        raise ConfigError.of(where, module, f"cannot be imported: {error}") from error


def named(where: str, name: object) -> Callable[..., object]:
    """Get the class or function that "module:Name" names.

    Raises:
        ConfigError: it names none.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[\w.]+:\w+", name):
        raise ConfigError.of(where, name, 'expected "module:Name"')
    module, _, attribute = name.partition(":")
    found: object = getattr(imported(where, module), attribute, None)
    if not callable(found):
        raise ConfigError.of(where, name, f"{module} has no such class or function")
    return found


def built(where: str, entry: object) -> object:
    """Get what a `factory` makes of its `options`.

    Raises:
        ConfigError: there is no such factory, or it raised.
    """
    fields = mapping(entry, where, ("factory", "options"))
    make = named(f"{where}: factory", fields.get("factory"))
    options: Any = fields.get("options") or {}
    if not isinstance(options, dict):
        raise ConfigError.of(f"{where}: options", fields["options"], "expected a mapping")
    return _called(f"{where}: {fields['factory']}", make, cast("dict[str, Any]", options))


def observers_of(
    where: str, entries: Sequence[object], environ: Mapping[str, str] | None = None
) -> tuple[Registration, ...]:
    """Get the observers that a list describes, each checked together with its terms.

    An entry has a `kind` and the arguments of its class, or a `factory` and its `options`; and
    `terms`, which are those of `ObserverManager.register`. `${NAME}` in any text stands for the
    environment's variable of that name.

    Raises:
        ConfigError: an entry cannot work; values of variables are not in the text.
    """
    environ = os.environ if environ is None else environ
    trial = ObserverManager()
    found: list[Registration] = []
    for index, entry in enumerate(entries):
        place = f"{where}[{index}]"
        secrets: dict[str, str] = {}
        filled = with_variables(place, entry, environ, secrets)
        try:
            registration = _observer(place, filled)
            _register(place, trial, registration)
        except ConfigError as error:
            if not secrets:
                raise
            # Nor in the chain of causes, which a traceback shows.
            raise ConfigError(_without(str(error), secrets)) from None
        found.append(registration)
    return tuple(found)


def _observer(where: str, entry: object) -> Registration:
    fields = dict(cast("dict[str, Any]", entry)) if isinstance(entry, dict) else {}
    if ("kind" in fields) == ("factory" in fields):
        accepted = f"expected a mapping with either factory, or kind: one of {sorted(OBSERVERS)}"
        raise ConfigError(f"{where}: {accepted}")
    terms = _terms(f"{where}: terms", fields.pop("terms", None))
    if "factory" in fields:
        return Registration.of(cast("AnyObserver", built(where, fields)), **terms)
    kind = fields.pop("kind")
    if not isinstance(kind, str) or kind not in OBSERVERS:
        raise ConfigError.of(f"{where}: kind", kind, f"expected one of {sorted(OBSERVERS)}")
    make = named(f"{where}: kind", OBSERVERS[kind])
    place = f"{where}: {kind}"
    parameters = inspect.signature(make).parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    for name in fields:
        if not takes_any and name not in parameters:
            raise ConfigError(f"{place}: unknown field {name!r}: expected {list(parameters)}")
    if isinstance(fields.get("on"), list):
        fields["on"] = tuple(fields["on"])
    return Registration.of(cast("AnyObserver", _called(place, make, fields)), **terms)


def _terms(where: str, value: object) -> dict[str, Any]:
    if value is None:
        return {}
    terms = mapping(value, where, _TERMS)
    for name in _SELECTORS:
        if isinstance(terms.get(name), list):
            terms[name] = tuple(terms[name])
    for name, make in _GRADED.items():
        if isinstance(terms.get(name), dict):
            terms[name] = _called(f"{where}: {name}", make, terms[name])
    return terms


def _register(where: str, trial: ObserverManager, registration: Registration) -> None:
    try:
        trial.register(registration.observer, **registration.terms)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _called(where: str, make: Callable[..., object], options: Mapping[Any, Any]) -> object:
    try:
        return make(**{str(name): value for name, value in options.items()})
    # Somebody else's code: whatever it raises, the place in the file is what helps.
    except Exception as error:
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        raise ConfigError(f"{where}: {kind}{error}") from error


def with_variables(
    where: str, value: object, environ: Mapping[str, str], secrets: dict[str, str]
) -> object:
    """Get a copy with the variables filled in; `secrets` gets their names by their values.

    Raises:
        ConfigError: the environment has no such variable.
    """
    if isinstance(value, dict):
        items = cast("dict[Any, object]", value).items()
        return {
            name: with_variables(f"{where}: {name}", item, environ, secrets) for name, item in items
        }
    if isinstance(value, list):
        entries = enumerate(cast("list[object]", value))
        return [
            with_variables(f"{where}[{index}]", one, environ, secrets) for index, one in entries
        ]
    if not isinstance(value, str):
        return value

    def fill(found: re.Match[str]) -> str:
        name = found["name"]
        if name is None:
            return "${"
        if not _NAME.fullmatch(name):
            raise ConfigError.of(where, found[0], "expected the name of a variable, as in ${NAME}")
        if name not in environ:
            raise ConfigError(f"{where}: the environment has no variable {name}")
        secrets[environ[name]] = name
        return environ[name]

    return _VARIABLE.sub(fill, value)


def _without(text: str, secrets: Mapping[str, str]) -> str:
    """Get a text in which the values of variables are their names, also where they are cut."""
    for value, name in sorted(secrets.items(), key=lambda item: -len(item[0])):
        for form in dict.fromkeys((value, repr(value)[1:-1])):
            for length in range(len(form), min(len(form), _CUT) - 1, -1):
                if length >= _SHORT:
                    text = text.replace(form[:length], f"${{{name}}}")
    return text
