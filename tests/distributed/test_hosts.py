"""Two hosts, each a network namespace: training across addresses gives the weights of the inline runtime."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from distributed.processes import finish
from locallearn.bench import wire
from locallearn.cli.main import main
from locallearn.training.checkpoint import CheckpointFolder, load

REASON = wire.why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

TRAIN = ["train", "dgl", "--model", "tiny-resnet", "--depth", "2", "--train.epochs", "2", "--train.batch-size", "32"]
TRAIN += ["--data.train-limit", "96", "--data.test-limit", "32", "--train.precision", "fp32", "--train.threads", "1"]
TRAIN += ["--train.device", "cpu", "--run"]


def weights(folder):
    path = CheckpointFolder(folder / "checkpoints", 1).paths()[-1]
    return load(path).tensors


def namespaces():
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout


def test_two_hosts_give_the_weights_of_one_process(tmp_path):
    with wire.Hosts() as hosts:
        hosts.set(0.002, None)
        crew = [start_on(name, rank, tmp_path) for rank, name in enumerate(hosts.names)]
        assert main([*TRAIN, str(tmp_path / "inline")]) == 0
        for code, _, errors in finish(crew):
            assert code == 0, errors
        assert hosts.names[0] in namespaces()
    assert hosts.names[0] not in namespaces()
    expected, found = weights(tmp_path / "inline"), weights(tmp_path / "hosts")
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def start_on(namespace, rank, folder):
    """What a user starts on every host."""
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1"]
    torchrun += ["--master-addr", wire.address(0), "--master-port", "29500"]
    train = [*TRAIN, str(folder / "hosts"), "--runtime", "distributed", "--mesh.depth", "2", "--mesh.timeout", "60"]
    command = ["ip", "netns", "exec", namespace, sys.executable, *torchrun, "-m", "--", "locallearn", *train]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": wire.INTERFACE, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


ANSWER = """
import socket, sys
with socket.create_server((sys.argv[1], 5000)) as server:
    print("ready", flush=True)
    for _ in range(2):
        with server.accept()[0] as connection:
            connection.sendall(connection.recv(16))
"""
ASK = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 5000), timeout=20) as connection:
    began = time.monotonic()
    connection.sendall(sys.argv[2].encode())
    print(connection.recv(16).decode(), time.monotonic() - began)
"""


def test_every_host_reaches_every_other_over_a_cable_of_that_length():
    with wire.Hosts(3) as hosts:
        hosts.set(0.05, None)
        on = [["ip", "netns", "exec", name, sys.executable, "-c"] for name in hosts.names]
        with subprocess.Popen([*on[1], ANSWER, wire.address(1)], stdout=subprocess.PIPE, text=True) as answering:
            assert answering.stdout is not None
            assert answering.stdout.readline() == "ready\n"
            for host in (0, 2):
                asked = [*on[host], ASK, wire.address(1), f"host {host}"]
                *word, seconds = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
                assert word == ["host", str(host)]
                assert float(seconds) >= 0.1  # there and back
            assert answering.wait(20) == 0


MAKER = """
import time
from locallearn.bench.wire import Hosts
with Hosts() as hosts:
    print(hosts.names[0], flush=True)
    time.sleep(60)
"""


def test_namespaces_go_when_the_process_that_made_them_is_killed():
    maker = subprocess.Popen([sys.executable, "-c", MAKER], stdout=subprocess.PIPE, text=True)
    name = maker.stdout.readline().strip()
    assert name in namespaces()
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    end = time.monotonic() + 20
    while name in namespaces() and time.monotonic() < end:
        time.sleep(0.05)
    assert name not in namespaces()
