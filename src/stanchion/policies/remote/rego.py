"""`RegoPolicy`: rules in Rego, decided in this process by OPA's own engine."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, PrivateAttr

from stanchion.errors import ConfigError, PolicyFailed
from stanchion.events import Event
from stanchion.policies.remote.base import RemotePolicy
from stanchion.policies.remote.documents import Filler
from stanchion.policies.remote.evaluator import Evaluator
from stanchion.policies.remote.findings import finding
from stanchion.policies.remote.opa import checked_rule, input_of

if TYPE_CHECKING:
    from stanchion.decisions import Verdict

_log = logging.getLogger("stanchion.policies.rego")


class RegoPolicy(RemotePolicy):
    """Decides events by rules in Rego, with OPA's engine in this process.

    `rego` is the text of a module, or of several; `files` are files, or folders with `*.rego` in
    them. `data` is the rest of the data document, and `path` names the rule, whose value is read
    as an `OpaPolicy` reads it.
    It runs on a thread of its own, one evaluation after the other. An evaluation that does not
    end cannot be interrupted: those after it time out, and the policy fails until it ends.

    Raises:
        ConfigError: a field that cannot work, Rego that does not compile (the text has the line
            and column), or the extra `opa` is not installed.
    """

    path: str
    rego: str | tuple[str, ...] = ()
    files: Path | str | tuple[Path | str, ...] = ()
    data: Mapping[str, Any] = Field(default={}, repr=False)
    input: Mapping[str, Any] | None = Field(default=None)

    _fillers: dict[type[Event], Filler] = PrivateAttr(default_factory=dict[type[Event], Filler])
    _document: str = PrivateAttr(default="")
    _engine: Any = PrivateAttr(default=None)
    _evaluator: Evaluator = PrivateAttr(default_factory=lambda: Evaluator("stanchion-rego"))

    def check(self) -> None:
        """Compile the modules and check what goes beyond single fields; raises ConfigError."""
        self._document = checked_rule(f"{self.owner}: path", self.path).replace("/", ".")
        self._engine = _compiled(self.owner, self._modules(), self.data)
        super().check()

    def check_event(self, event_class: type[Event]) -> None:
        """Check that events of this class have the fields that are named; raises ConfigError."""
        super().check_event(event_class)
        self._filler(event_class)

    async def ask(self, event: Event) -> Verdict:
        """Evaluate the rule for one event.

        Raises:
            PolicyFailed: the evaluation ended with an error, such as two values for one rule.
        """
        given = self._filler(type(event))(event)
        defined, result = await self._evaluator.run(lambda: self._evaluated(given))
        return finding(self.name, f"data.{self._document}", result, defined=defined)

    async def close(self) -> None:
        """Let what is being asked on this loop end, and the thread; it can be asked again."""
        await super().close()
        self._evaluator.close()

    def _modules(self) -> dict[str, str]:
        texts = (self.rego,) if isinstance(self.rego, str) else self.rego
        modules = {f"rego[{number}]": text for number, text in enumerate(texts)}
        for name in self.files if isinstance(self.files, tuple) else (self.files,):
            place = Path(name)
            found = sorted(place.rglob("*.rego")) if place.is_dir() else [place]
            if not found:
                accepted = "a folder without *.rego files"
                raise ConfigError.of(f"{self.owner}: files", str(place), accepted)
            for file in found:
                try:
                    modules[str(file)] = file.read_text(encoding="utf-8")
                except (OSError, UnicodeDecodeError) as error:
                    accepted = f"cannot be read: {error}"
                    raise ConfigError.of(f"{self.owner}: files", str(file), accepted) from None
        if not modules:
            raise ConfigError.of(f"{self.owner}: rego", self.rego, "expected a module, or files")
        return modules

    def _evaluated(self, given: object) -> tuple[bool, object]:
        from opa_bindings import (  # pyright: ignore[reportMissingTypeStubs]
            OpaError,
            OpaUndefinedError,
        )

        try:
            return True, cast("object", self._engine.eval_document(self._document, given))
        except OpaUndefinedError:
            return False, None
        except OpaError as error:
            raise PolicyFailed(f"cannot be evaluated: {error.code}") from None

    def _filler(self, event_class: type[Event]) -> Filler:
        filler = self._fillers.get(event_class)
        if filler is None:
            filler = input_of(self.owner, self.input, event_class)
            self._fillers[event_class] = filler
        return filler


def _compiled(owner: str, modules: dict[str, str], data: Mapping[str, Any]) -> Any:
    try:
        from opa_bindings import OpaEngine, OpaError  # pyright: ignore[reportMissingTypeStubs]
    except ImportError:
        raise ConfigError(
            f"{owner} needs opa-golib-python-bindings: pip install 'stanchion[opa]', and before "
            "Python 3.14 pip install --no-deps --ignore-requires-python opa-golib-python-bindings"
        ) from None
    engine: Any = OpaEngine()
    engine.print_handler = _printed
    try:
        for name, text in modules.items():
            engine.add_policy(name, text)
        if data:
            engine.add_data(json.loads(json.dumps(data)))
        # Modules are compiled together, when something is first asked of them.
        engine.eval_query("true")
    except OpaError as error:
        told = " ".join(error.message.removeprefix("bundle activation failed: ").split())
        raise ConfigError(f"{owner}: rego: {told}") from None
    return engine


def _printed(message: str, location: str) -> None:
    _log.debug("%s: %s", location, message)
