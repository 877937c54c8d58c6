"""A process of a family ends with its supervisor, whatever it had still to say."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

#: Says in a line that it has begun, by which time the supervisor has been told so too.
MEMBER = """\
import asyncio, socket, sys
from tidewheel_workers.serving.family import Member, Place
from tidewheel_workers.serving.service import OpenRequests

async def main():
    talk = socket.socket(fileno=int(sys.argv[1]))
    member = Member(Place(number=0, listening=talk, talk=talk))
    await member.begin(None, OpenRequests(), lambda: None)
    print("begun", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("is_heard", [True, False], ids=["heard", "unheard"])
def test_a_process_ends_when_its_supervisor_is_gone(is_heard):
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-c", MEMBER, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        theirs.close()
        assert process.stdout.readline() == b"begun\n"
        if is_heard:
            assert ours.recv(100) == b'{"say": "up"}\n'
        # what nobody has read makes the end of the talk an error
        ours.close()
        _, said = process.communicate(timeout=20)
        assert process.returncode == 1
        assert b"the supervisor is gone" in said
    finally:
        process.kill()
        process.wait()
