"""Messages arrive as they were sent, and what is no message is the other side's error in one line."""

import io
import struct
import subprocess
import sys

import pytest
import torch

from dfkd import paths
from dfkd.engine.channel import Broken, Channel, Closed


def sent(*message: object) -> bytes:
    stream = io.BytesIO()
    Channel(io.BytesIO(), stream).send(*message)
    return stream.getvalue()


def received(content: bytes) -> tuple:
    return Channel(io.BytesIO(content), io.BytesIO()).receive()


def test_a_message_arrives():
    weights = {"a": torch.arange(6.0).view(2, 3).t(), "flag": torch.tensor(True), "b": torch.ones(2).bfloat16()}
    kind, values, tensors = received(sent("student", {"step": 3}, weights))
    assert (kind, values) == ("student", {"step": 3})
    assert all(
        torch.equal(tensors[name], weights[name]) and tensors[name].dtype == weights[name].dtype for name in weights
    )


@pytest.mark.parametrize("length", range(1, 20))
def test_a_torn_message_is_told(length: int):
    with pytest.raises(Closed, match="gone"):
        received(sent("x", {"step": 3})[:-length])


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<HIQ", 1, 2, 0) + b"x[]",
        struct.pack("<HIQ", 1, 2, 0) + b"x{!",
        struct.pack("<HIQ", 1, 2, 3) + b"x{}abc",
        struct.pack("<HIQ", 1, 2, 2**60),
        struct.pack("<HIQ", 1, 2**31, 0),
        struct.pack("<HIQ", 2, 2, 0) + b"\xff\xff{}",
        struct.pack("<HIQ", 1, 4000000, 0) + b"x" + b"[" * 4000000,
        struct.pack("<HIQ", 1, 2, 11) + b"x{}" + b"cos\nsystem\n.",  # a pickle
    ],
)
def test_what_is_no_message_is_told_in_one_line(content: bytes):
    with pytest.raises(Broken) as told:
        received(content)
    assert "\n" not in str(told.value) and len(str(told.value)) < 300


def test_what_is_printed_in_the_worker_does_not_reach_the_channel():
    code = """
import os, subprocess
from dfkd.engine.channel import of_worker
channel = of_worker()
print("printed", flush=True); os.write(1, b"by the system "); subprocess.run(["echo", "by a child"])
assert input.__call__ and os.read(0, 1) == b""
channel.send("done", {"got": channel.receive()[1]})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], input=sent("begin", {"n": 1}), capture_output=True, cwd=paths.ROOT, timeout=60
    )
    assert received(done.stdout)[:2] == ("done", {"got": {"n": 1}}), done.stderr
    assert all(words in done.stderr for words in (b"printed", b"by the system", b"by a child"))
