"""URLs: every mistake is found before connecting, and no password is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from stanchion import ConfigError, EventBus
from stanchion.store.urls import Scheme, parse_url

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "scheme", "expected"),
    [
        ("memory://", Scheme.MEMORY, {}),
        ("embedded://", Scheme.EMBEDDED, {"directory": None}),
        ("embedded:///var/lib/x%20y", Scheme.EMBEDDED, {"directory": Path("/var/lib/x y")}),
        ("redis://h", Scheme.REDIS, {"hosts": (("h", 6379),), "database": 0}),
        ("redis://h:1234/3", Scheme.REDIS, {"hosts": (("h", 1234),), "database": 3}),
        ("redis://[::1]:1234", Scheme.REDIS, {"hosts": (("::1", 1234),)}),
        ("redis://u:p%40ss@h", Scheme.REDIS, {"username": "u", "password": "p@ss"}),
        ("rediss://h:6380/0", Scheme.REDISS, {"hosts": (("h", 6380),)}),
        ("unix:///run/redis.sock?db=2", Scheme.UNIX, {}),
        ("redis+cluster://a:1,b:2", Scheme.CLUSTER, {"hosts": (("a", 1), ("b", 2))}),
        ("redis+cluster://a:1/0", Scheme.CLUSTER, {"hosts": (("a", 1),)}),
        ("redis+cluster://a:1", Scheme.CLUSTER, {"tls": False}),
        ("rediss+cluster://a:1", Scheme.CLUSTER, {"tls": True, "tls_sentinels": False}),
        ("redis+cluster://a:1?ssl=true", Scheme.CLUSTER, {"tls": True, "options": ()}),
        ("rediss+sentinel://a/s", Scheme.SENTINEL, {"tls": True, "tls_sentinels": True}),
        ("redis+sentinel://a/s?ssl=yes", Scheme.SENTINEL, {"tls": True, "tls_sentinels": False}),
        ("rediss+cluster://a?ssl_ciphers=x", Scheme.CLUSTER, {"options": (("ssl_ciphers", "x"),)}),
        (
            "redis+sentinel://a,b:2/mymaster/4",
            Scheme.SENTINEL,
            {"hosts": (("a", 26379), ("b", 2)), "service": "mymaster", "database": 4},
        ),
    ],
)
def test_a_url_names_a_place(url, scheme, expected):
    target = parse_url(url)
    assert target.scheme is scheme
    assert {name: getattr(target, name) for name in expected} == expected


BAD = [
    ("http://h", r"url scheme='http': expected memory://.*redis\+sentinel://"),
    ("Redis://h", r"url scheme='Redis'"),
    ("redis", r"url: expected memory://"),
    ("", r"url: expected memory://"),
    (None, r"url: expected memory://"),
    (b"redis://h", r"url: expected memory://"),
    ("memory://h", r"memory:// takes no host"),
    ("memory://?x=1", r"memory:// takes no host"),
    (
        "embedded://relative/dir",
        r"url='embedded://relative/dir': expected embedded:///absolute/dir|",
    ),
    ("redis://", r"redis:// names no host"),
    ("redis://:6379", r"url host=':6379': expected host or host:port"),
    ("redis://h:port", r"url port: expected a number from 1 to 65535"),
    ("redis://h:0", r"url port='0'"),
    ("redis://h:65536", r"url port='65536'"),
    ("redis://h/one", r"url database: expected a number"),
    ("redis://h/1/2", r"url database: expected a number"),
    ("redis://h/-1", r"url database: expected a number"),
    ("redis://a,b", r"redis:// takes one host; several need redis\+cluster://"),
    ("unix://", r"unix:// needs the socket's path"),
    ("redis+cluster://a/1", r"url database='1': a cluster has only database 0"),
    ("redis+sentinel://a", r"redis\+sentinel:// needs a service"),
    ("rediss+sentinel://a", r"needs a service"),
    ("rediss://a?ssl_certfile=x&ssl_certfile=y", r"an option is given twice"),
    ("rediss+unix:///a", r"url scheme='rediss\+unix'"),
]


@pytest.mark.parametrize(("url", "text"), BAD, ids=[repr(url) for url, _ in BAD])
def test_a_url_that_cannot_work_is_refused_before_connecting(url, text):
    with pytest.raises(ConfigError, match=text):
        EventBus.from_url(url)


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@h",
        f"redis://user:{SECRET}@h:port",
        f"redis://user:{SECRET}@h/one",
        f"redis://user:{SECRET}@",
        f"redis+cluster://user:{SECRET}@a/1",
        f"redis+sentinel://user:{SECRET}@a",
        f"embedded://user:{SECRET}@h",
        f"memory://user:{SECRET}@h",
        f"redis:/user:{SECRET}@h",
    ],
)
def test_no_error_shows_a_password(url):
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    assert SECRET not in str(caught.value)


def test_no_target_shows_a_password():
    target = parse_url(f"redis://user:{SECRET}@h:1")
    assert target.password == SECRET
    assert SECRET not in repr(target)
