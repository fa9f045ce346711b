"""`stanchion doctor`: what is wrong with the server that keeps the limits, and how to mend it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.table import Table

from stanchion.cli.output import Exit, cell, complain, console, print_json
from stanchion.cli.places import check_shared, shown
from stanchion.errors import StoreUnavailable
from stanchion.observers.sinks.console import escaped
from stanchion.store.doctor.examination import examine
from stanchion.store.doctor.findings import Check, Finding, Status, worst
from stanchion.store.keys import Keyspace
from stanchion.store.urls import Scheme, parse_url

if TYPE_CHECKING:
    from collections.abc import Sequence

_STYLES: Final = {
    Status.OK: "green",
    Status.HINT: "cyan",
    Status.WARNING: "yellow",
    Status.ERROR: "bold red",
}


async def doctor(
    url: str,
    namespace: str,
    deadline: float,
    *,
    strict: bool,
    as_json: bool,
    replicas: int = 0,
) -> Exit:
    """Print what was found out about a server; how bad it is makes the status.

    `replicas` is how many of them quotas wait for.

    Raises:
        ConfigError: the URL or the namespace cannot work.
    """
    target = parse_url(url)
    # Of all commands only this one is of use with a server that has just been started.
    if target.scheme is not Scheme.EMBEDDED or target.directory is not None:
        check_shared(url)
    keyspace = Keyspace(namespace)
    try:
        examination = await examine(url, keyspace, deadline=deadline, replicas=replicas)
        findings = examination.findings
    except StoreUnavailable as error:
        complain(f"cannot connect to {shown(url)}: {error}")
        if as_json:
            _print_json(url, namespace, [Finding(Check.CONNECTION, Status.ERROR, str(error))])
        return Exit.UNREACHABLE
    if as_json:
        _print_json(url, namespace, findings)
    elif sys.stdout.isatty():
        console().print(_table(findings))
    else:
        sys.stdout.writelines(f"{_line(finding)}\n" for finding in findings)
    bad = {Status.ERROR, Status.WARNING} if strict else {Status.ERROR}
    return Exit.FAILED if worst(findings) in bad else Exit.OK


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("check", "status", "found", "how to mend it"):
        table.add_column(column, overflow="fold")
    for one in findings:
        status = cell(one.status, _STYLES[one.status])
        table.add_row(cell(one.check), status, cell(one.found), cell(one.remedy))
    return table


def _line(finding: Finding) -> str:
    """Get one line, however long: what is piped is searched, not looked at."""
    remedy = f" -> {finding.remedy}" if finding.remedy else ""
    text = f"{finding.check:<12} {finding.status:<8} {finding.found}{remedy}"
    return escaped(text)


def _print_json(url: str, namespace: str, findings: Sequence[Finding]) -> None:
    document: dict[str, Any] = {
        "url": shown(url),
        "namespace": namespace,
        "worst": worst(tuple(findings)),
        "findings": [
            {
                "check": one.check,
                "status": one.status,
                "found": one.found,
                "remedy": one.remedy or None,
            }
            for one in findings
        ],
    }
    print_json(document)
