"""The sender never waits for the receiver, and either may go and come back."""

import tempfile
import time
from multiprocessing.connection import Client
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from locallearn.runtime.boundary import BoundaryError, BoundaryReceiver, BoundarySender, Message
from locallearn.runtime.replay import ReplayBuffer

LINK = "between modules 1 and 2"


def message(step, shape=(4, 2, 3, 3), final=False, dtype=torch.float32):
    return Message(torch.full(shape, float(step), dtype=dtype), 5, step, 9, final)


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory(prefix="ll-") as folder:  # a socket's path is short
        yield Path(folder) / "2"


def receiver(path, size=4, max_reuse=0):
    return BoundaryReceiver(path, ReplayBuffer(size, max_reuse), (2, 3, 3), LINK)


def until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_message_survives_bit_for_bit(dtype):
    features = torch.randn(4, 2, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    back = Message.decode(Message(features, 7, 3, 11, True).encode(), (2, 3, 3), LINK)
    assert torch.equal(back.features, features)
    assert back.features.dtype == dtype
    assert (back.epoch, back.step, back.clock, back.final) == (7, 3, 11, True)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (message(0, (4, 2, 3, 4)).encode(), r"\(4, 2, 3, 4\) of torch.float32 came; expected \(B, 2, 3, 3\)"),
        (message(0, dtype=torch.float64).encode(), "torch.float64 came"),
        (b"no safetensors", "the message is damaged"),
        (save({"features": torch.zeros(4, 2, 3, 3)}), "the message is damaged"),
        (save({"features": torch.zeros(4, 2, 3, 3), "position": torch.zeros(2)}), "the message is damaged"),
    ],
)
def test_what_is_not_expected_is_an_error_that_names_both_nodes(path, document, text):
    with pytest.raises(BoundaryError, match=f"{LINK}: .*{text}"):
        Message.decode(document, (2, 3, 3), LINK)
    end = receiver(path)
    with Client(str(path), "AF_UNIX") as connection:
        connection.send_bytes(document)
        with pytest.raises(BoundaryError, match=text):
            end.take(20)
    end.close()


def test_messages_arrive_and_nothing_is_an_answer(path):
    end, sender = receiver(path), BoundarySender(path)
    assert end.take(0.01) is None
    sender.put(message(1))
    assert torch.equal(end.take(20).item.features, message(1).features)
    assert end.take(0.01) is None
    sender.close()
    end.close()


def test_without_a_receiver_the_newest_wait_and_putting_never_does(path):
    sender = BoundarySender(path, waiting=2)
    for step in range(100):
        sender.put(message(step))
    end = receiver(path)
    until(lambda: end.buffer.arrived == 2)
    assert {end.take(1).item.step, end.take(1).item.step} == {98, 99}
    sender.close()
    end.close()


def test_a_slow_receiver_keeps_the_newest(path):
    end, sender = receiver(path, size=3), BoundarySender(path, waiting=50)
    for step in range(20):
        sender.put(message(step))
    until(lambda: end.buffer.arrived == 20)
    assert [end.take(1).item.step for _ in range(3)] == [19, 18, 17]
    assert end.buffer.dropped == 17
    sender.close()
    end.close()


def test_a_receiver_that_comes_back_is_found_again(path):
    first, sender = receiver(path), BoundarySender(path)
    sender.put(message(1))
    assert first.take(20).item.step == 1
    first.close()
    second = receiver(path)
    found = None
    for step in range(2, 2000):  # what was on the way to the first one is lost
        sender.put(message(step))
        found = second.take(0.02)
        if found:
            break
    assert found
    assert found.item.step >= 2
    sender.close()
    second.close()


def test_a_sender_that_dies_within_a_message_can_be_followed_by_another(path):
    end = receiver(path)
    with Client(str(path), "AF_UNIX") as connection:
        document = message(1).encode()
        connection.send_bytes(document)
        connection._send(len(document).to_bytes(4, "big") + document[:50])  # and dies
    sender = BoundarySender(path)
    sender.put(message(2))
    until(lambda: end.buffer.arrived == 2)
    assert {end.take(1).item.step, end.take(1).item.step} == {1, 2}
    sender.close()
    end.close()


def test_a_finished_sender_goes_at_the_receivers_pace(path):
    end, sender = receiver(path, size=4), BoundarySender(path, waiting=2)
    sent = taken = 0
    while taken < 12:
        if sender.wait_for_room(0):
            sender.put(message(sent, (8192, 2, 3, 3), final=True))  # more than a socket holds
            sent += 1
        elif end.take(0.05):
            taken += 1
    assert end.buffer.dropped == 0
    assert sent <= taken + 8  # waiting at the sender, on the way, and in the buffer
    sender.close()
    end.close()
