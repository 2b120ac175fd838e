"""Processes of one machine meet where other machines cannot reach them."""

import socket
import sys

import pytest
from torch.distributed import TCPStore

from locallearn.runtime.launch import open_store

# Linux alone takes all of 127.0.0.0/8 for its own
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs a second address of this machine")


def reachable(address, port):
    try:
        socket.create_connection((address, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


@linux
def test_the_store_listens_at_127_0_0_1_alone():
    store = open_store()
    assert reachable("127.0.0.1", store.port)
    assert not reachable("127.0.0.2", store.port)
    client = TCPStore("127.0.0.1", store.port, is_master=False)
    client.set("name", "value")
    assert store.get("name") == b"value"


@linux
def test_torchs_own_would_be_reachable():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert reachable("127.0.0.2", store.port)
