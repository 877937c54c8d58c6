"""Everything here runs on uvloop, which serves in production, and on the standard library's loop."""

from __future__ import annotations

import asyncio

import uvloop


def pytest_asyncio_loop_factories():
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
