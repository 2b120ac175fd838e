"""Hosts on one machine: network namespaces whose cables are this program, so that they can be as long as is wanted.

A process of its own makes a namespace for each host and one for what is between them. Each host has one end of a veth
pair (``eth0``) and an address of its own; the other ends are in the middle, where this program passes every frame on
after a delay, to the host that it is for. It takes all of them away once its standard input is closed, so also when
the process that started it is killed. The delay is kept here because not every kernel has ``tc``'s netem; a limit of
the rate is ``tc``'s tbf at every host.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence

from locallearn.errors import LocalLearnError

MOST = 64
"""Hosts of one machine."""
INTERFACE = "eth0"

_CLONE_NEWNET = 0x40000000
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23  # linux/if_packet.h
_HEADER = 10  # virtio_net_hdr, before the Ethernet frame
_ADDRESS = 6  # bytes of an Ethernet address: first the receiver's, then the sender's
_FRAME = 2**17
_BUFFER = 2**26


def why_not() -> str | None:
    """Why hosts cannot be made here; None where they can."""
    if not sys.platform.startswith("linux") or not hasattr(os, "geteuid"):
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        return f"{missing[0]} is missing (iproute2)"
    name = f"locallearn-{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"this machine allows no network namespaces ({made.stderr.strip()})"
    _call("netns", "del", name)
    return None


def address(host: int) -> str:
    """The address of the host of this number, from 0 on."""
    return f"10.213.77.{1 + host}"


class Hosts:
    """Hosts and the cables between them, while it is entered.

    Args:
        count: how many, 2 to ``MOST``.

    Attributes:
        names: of their network namespaces; ``ip netns exec NAME`` runs a command there.

    Raises:
        LocalLearnError: this machine cannot have them.
    """

    def __init__(self, count: int = 2) -> None:
        self._stem = f"locallearn-{os.getpid()}"
        self.names = _names(self._stem, count)

    def __enter__(self) -> Hosts:
        reason = why_not()
        if reason:
            raise LocalLearnError(f"hosts on this machine: {reason}")
        command = [sys.executable, "-m", "locallearn.bench.wire", self._stem, str(len(self.names))]
        self._wire = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._await_answer()
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._wire.stdin is not None
        assert self._wire.stdout is not None
        self._wire.stdin.close()
        self._wire.wait()
        self._wire.stdout.close()

    def set(self, latency: float, bandwidth: float | None) -> None:
        """Make cables so long that a frame takes ``latency`` [s] to any host, and limit what each sends [bytes/s]."""
        assert self._wire.stdin is not None
        self._wire.stdin.write(f"{latency}\n")
        self._wire.stdin.flush()
        self._await_answer()
        for name in self.names:
            where = ("-n", name, "qdisc")
            with contextlib.suppress(subprocess.CalledProcessError):  # there was no limit
                subprocess.run(["tc", *where, "del", "dev", INTERFACE, "root"], check=True, capture_output=True)
            if bandwidth:
                limit = ["rate", f"{round(8 * bandwidth)}bit", "burst", "128kb", "latency", "100ms"]
                subprocess.run(["tc", *where, "add", "dev", INTERFACE, "root", "tbf", *limit], check=True)

    def _await_answer(self) -> None:
        assert self._wire.stdout is not None
        if self._wire.stdout.readline() != "ok\n":
            raise LocalLearnError("hosts on this machine: the cables between them failed")


def _names(stem: str, count: int) -> list[str]:
    return [f"{stem}-{host}" for host in range(count)]


def _call(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


# --- the cable -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _namespaces(stem: str, count: int) -> Iterator[str]:
    """Make the hosts and the place between them; take them away at the end."""
    hosts, middle = _names(stem, count), f"{stem}-wire"
    try:
        for name in (*hosts, middle):
            _call("netns", "add", name)
        for host, name in enumerate(hosts):
            end = _end(host)
            _call("link", "add", INTERFACE, "netns", name, "type", "veth", "peer", "name", end, "netns", middle)
            _call("-n", name, "address", "add", f"{address(host)}/24", "dev", INTERFACE)
            for device in (INTERFACE, "lo"):
                _call("-n", name, "link", "set", "dev", device, "up")
            _call("-n", middle, "link", "set", "dev", end, "up")
        yield middle
    finally:
        for name in (*hosts, middle):
            with contextlib.suppress(subprocess.CalledProcessError):  # it was not made
                _call("netns", "del", name)


def _end(host: int) -> str:
    """The interface in the middle that a host's cable ends at."""
    return f"end{host}"


def _enter(namespace: str) -> None:
    """Move this thread into a network namespace."""
    with open(f"/run/netns/{namespace}", "rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


def _end_of_cable(interface: str) -> socket.socket:
    """Raw frames that arrive at an interface, with what they leave to be done by hardware (checksums, segments)."""
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    end.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    end.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    end.setsockopt(socket.SOL_SOCKET, 33, _BUFFER)  # SO_RCVBUFFORCE
    end.setsockopt(socket.SOL_SOCKET, 32, _BUFFER)  # SO_SNDBUFFORCE
    end.bind((interface, 0))
    return end


class _Switch:
    """Which cables a frame goes on: its receiver's once that one has sent something, else all but its sender's."""

    def __init__(self, ends: Sequence[socket.socket]) -> None:
        self._ends = list(ends)
        self._known: dict[bytes, socket.socket] = {}

    def cables(self, frame: bytes, came: socket.socket) -> list[socket.socket]:
        """Where a frame that came on one cable goes on."""
        receiver, sender = frame[_HEADER:][:_ADDRESS], frame[_HEADER + _ADDRESS :][:_ADDRESS]
        self._known[sender] = came
        known = self._known.get(receiver)
        return [known] if known is not None else [end for end in self._ends if end is not came]


def _forward(ends: Sequence[socket.socket]) -> None:
    """Pass frames on until the standard input is closed; a line on it is a new delay [s]."""
    delay, held, switch = 0.0, deque[tuple[float, socket.socket, bytes]](), _Switch(ends)
    while True:
        timeout = max(0.0, held[0][0] - time.monotonic()) if held else None
        for ready in select.select([*ends, sys.stdin.fileno()], [], [], timeout)[0]:
            if isinstance(ready, socket.socket):
                frame = ready.recv(_FRAME)
                due = time.monotonic() + delay
                held.extend((due, to, frame) for to in switch.cables(frame, ready))
                continue
            line = os.read(ready, 64).decode()
            if not line:
                return
            delay, held = float(line), deque((0.0, to, frame) for _, to, frame in held)
            print("ok", flush=True)
        while held and held[0][0] <= time.monotonic():
            _, to, frame = held.popleft()
            with contextlib.suppress(OSError):  # as a cable does: what does not fit is lost
                to.send(frame)


def main() -> None:
    """The cables; the arguments are what the namespaces' names begin with, and how many hosts there are."""
    stem, count = sys.argv[1], int(sys.argv[2])
    with _namespaces(stem, count) as middle:
        _enter(middle)
        ends = [_end_of_cable(_end(host)) for host in range(count)]
        print("ok", flush=True)
        _forward(ends)


if __name__ == "__main__":
    main()
