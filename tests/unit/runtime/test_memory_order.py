"""What stages send each other has the memory that it has where it is sent from: operators may round by it."""

import pytest
import torch

from locallearn.runtime.messages import Header, flat, without_gaps

TOKENS = torch.arange(24.0).view(2, 3, 4)


@pytest.mark.parametrize(
    ("x", "kept"),
    [
        (TOKENS, True),
        (TOKENS.transpose(1, 2), True),  # as transformers over channels hand on their tokens
        (TOKENS.view(2, 3, 2, 2).contiguous(memory_format=torch.channels_last), True),
        (TOKENS[:1].permute(2, 0, 1), True),
        (TOKENS[:, ::2], False),
        (TOKENS[:, :, :1].expand(2, 3, 4), False),
    ],
)
def test_memory_is_sent_as_it_lies(x, kept):
    sent = without_gaps(x)
    header = Header(0, 0, False, x.dtype, x.dtype, tuple(sent.shape), sent.stride())
    found = Header.unpack(header.pack())
    arrived = flat(sent).clone().as_strided(found.shape, found.stride)
    assert torch.equal(arrived, x)
    assert (arrived.stride() == x.stride()) == kept
