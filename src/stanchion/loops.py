"""Event loops of our own making: uvloop's where that is installed."""

from __future__ import annotations

import asyncio


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Get a new event loop, for a thread or a process that is ours: uvloop's, or else asyncio's.

    Which loop a program of somebody else's runs on is for that program to say.
    """
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
