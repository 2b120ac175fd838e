"""Help of ``reproduce`` and a call without a table do not import torch."""

from starting import outcomes


def test_help_and_a_missing_table_do_not_import_torch(tmp_path):
    assert outcomes(["reproduce --help", "reproduce"], tmp_path) == {
        "reproduce --help": [0, False],
        "reproduce": [2, False],
    }
