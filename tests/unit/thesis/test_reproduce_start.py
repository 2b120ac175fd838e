"""Help of ``reproduce`` and calls that are wrong do not import torch."""

from starting import outcomes

WRONG = ["reproduce", "reproduce table-9.9", "reproduce table-3.4 --protocol fast", "reproduce sweep"]


def test_help_and_wrong_calls_do_not_import_torch(tmp_path):
    helped = {"reproduce --help": [0, False]}
    assert outcomes([*helped, *WRONG], tmp_path) == helped | {call: [2, False] for call in WRONG}
