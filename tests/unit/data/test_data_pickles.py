"""The reader of pickles gives plain values and arrays of numbers, and carries out nothing else."""

import os
import pickle
import resource

import numpy as np
import pytest
from data_files import python2_pickle

from locallearn.data.pickles import load_pickle
from locallearn.errors import DataError


def refused(data, why="and was refused"):
    """The one line that says so."""
    with pytest.raises(DataError, match=why) as error:
        load_pickle(data, "x.pkl")
    assert str(error.value).startswith("x.pkl is not a pickle of plain arrays, and was refused: ")
    assert len(str(error.value)) < 300
    assert "\n" not in str(error.value)


class _Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_command_in_a_pickle_does_not_run(tmp_path, protocol):
    target = tmp_path / "owned"
    data = pickle.dumps({"data": _Payload(target)}, protocol=protocol)
    with pytest.raises(DataError, match=r"bad\.pkl .*refused: it wants (posix|nt)\.system$"):
        load_pickle(data, "bad.pkl")
    assert not target.exists()
    # The sibling: a plain unpickler runs the command, so this test could have failed.
    pickle.loads(data)
    assert target.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"cbuiltins\neval\n(S'1+1'\ntR.",
        b"cnumpy\nload\n(S'x.npy'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(S'/etc/hostname'\ntR.",
        b"c_codecs\ndecode\n(S'x'\ntR.",
        b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.",
    ],
)
def test_other_functions_are_refused(code):
    with pytest.raises(DataError, match="and was refused"):
        load_pickle(code, "bad.pkl")


@pytest.mark.parametrize("data", [b"", b"hello", b"\x80\x02}q\x00(", b"\x80\x63.", b"\xff" * 50])
def test_damaged_pickles_are_one_line(data):
    with pytest.raises(DataError, match=r"^x: is|^x is not a pickle of plain arrays") as error:
        load_pickle(data, "x")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_protocol_are_read(protocol):
    array = np.arange(300, dtype=np.int64).reshape(3, 100)
    value = {"data": array, "labels": [1, 2], "name": "ü", "raw": b"\x00\xff", "none": None}
    found = load_pickle(pickle.dumps(value, protocol=protocol), "x")
    assert np.array_equal(found.pop("data"), value.pop("data"))
    assert found == value


def test_python_2_wrote_other_pickles():
    pixels = np.arange(512, dtype=np.uint8).reshape(2, 256)
    data = python2_pickle({"data": pixels, "labels": [3, -1]})
    assert b"numpy.core.multiarray" in data
    found = load_pickle(data, "x")
    assert found["data"].dtype == np.uint8
    assert np.array_equal(found["data"], pixels)
    assert found["labels"] == [3, -1]


def dtype(code, state=b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"):
    return b"cnumpy\ndtype\n(U" + bytes([len(code)]) + code + b"K\x00K\x01tR" + state


EMPTY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
BUFFER = b"cnumpy.core.numeric\n_frombuffer\n"


def array(kind, shape=b"K\x02\x85", data=b"U\x02ab", before=EMPTY):
    """An array of two bytes, if nothing is changed."""
    return b"\x80\x02" + before + b"(K\x01" + shape + kind + b"\x89" + data + b"tb."


def test_what_the_hostile_arrays_below_are_made_of_is_read():
    assert load_pickle(array(dtype(b"u1")), "x").tolist() == [97, 98]
    assert load_pickle(array(dtype(b"u2"), b"K\x01\x85"), "x").tolist() == [97 + 256 * 98]
    big = dtype(b"u2", b"(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")
    assert load_pickle(array(big, b"K\x01\x85"), "x").tolist() == [97 * 256 + 98]
    found = load_pickle(
        b"\x80\x04" + BUFFER + b"(C\x02ab" + dtype(b"i1") + b"K\x01K\x02\x86X\x01\x00\x00\x00FtR.", "x"
    )
    assert found.tolist() == [[97, 98]]


@pytest.mark.parametrize(
    "code", [b"O", b"O8", b"V2", b"S2", b"U2", b"M8", b"m8", b"c8", b"u1,u1", b"2u1", b"object", b"f16"]
)
def test_arrays_of_anything_but_numbers_are_refused(code):
    refused(array(dtype(code)), "something else than numbers")


@pytest.mark.parametrize(
    "state",
    [
        b"(K\x03U\x01|N(U\x01at}U\x01a(cnumpy\ndtype\n(U\x01OK\x00K\x01tRK\x00tsK\x08K\x01K\x3ftb",  # fields
        b"(K\x03U\x01|(cnumpy\ndtype\n(U\x01OK\x00K\x01tRK\x02\x85tNNK\x08K\x01K\x3ftb",  # a sub-array
        b"(K\x03U\x01|N(U\x01atNK\x08K\x01K\x3ftb",  # names
        b"(K\x03U\x03abcNNNK\x08K\x01K\x3ftb",  # no order of bytes
        b"(K\x03)NNNK\x08K\x01K\x3ftb",
        b"}b",
        b"K\x01b",
        b")b",
    ],
)
def test_states_of_other_types_are_refused(state):
    refused(array(dtype(b"u1", state)))


@pytest.mark.parametrize("flags", [0, 1, 0x3F, 255])
def test_size_alignment_and_flags_of_a_state_change_nothing(flags):
    """A state that calls its elements pointers, or of another size, leaves the array one of bytes."""
    state = b"(K\x03U\x01|NNNK\x08K\x08K" + bytes([flags]) + b"tb"
    found = load_pickle(array(dtype(b"u1", state)), "x")
    assert found.dtype == np.dtype("u1")
    assert not found.dtype.hasobject
    assert found.tolist() == [97, 98]


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        (b"K\x03\x85", b"U\x02ab"),  # more than there is
        (b"K\x01\x85", b"U\x02ab"),  # less
        (b"J\xff\xff\xff\xff\x85", b"U\x02ab"),
        (b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86", b"U\x02ab"),
        (b"K\x00\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x87", b"U\x00"),
        (b"(" + b"K\x01" * 33 + b"t", b"U\x01a"),
        (b"K\x02", b"U\x02ab"),
        (b"\x88\x85", b"U\x01a"),
        (b"N", b"U\x02ab"),
        (b"K\x02\x85", b"](K\x01K\x02e"),
        (b"K\x02\x85", b"K\x02"),
        (b"K\x02\x85", b"\x96\x02\x00\x00\x00\x00\x00\x00\x00ab"),  # a bytearray could change later
    ],
)
def test_bytes_must_be_as_many_as_the_shape_needs(shape, data):
    refused(array(dtype(b"u1"), shape, data))


@pytest.mark.parametrize(
    "code",
    [
        b"cnumpy\nndarray\n(K\x01K\x02\x86cnumpy\ndtype\n(U\x02u1tRtR.",  # memory that nobody has written
        EMPTY + b"(K\x01K\x02\x85" + dtype(b"u1") + b"\x89U\x02abtb(K\x01K\x01\x85" + dtype(b"u1") + b"\x89U\x01atb.",
        b"c_codecs\nencode\n}U\x08__code__Nsb.",  # attributes of a function
        b"c_codecs\nencode\n(N}U\x0c__defaults__)stb.",
        b"cnumpy\ndtype\n(N}U\x01aK\x01stb.",
        b"(U\x01aK\x01i_codecs\nencode\n.",
        b"(c_codecs\nencode\nU\x01ao.",
        b"c_codecs\nencode\nU\x01a\x85\x81.",
        b"c_codecs\nencode\nU\x01a\x85}\x92.",
        b"\x82\x01.",
        b"U\x01aQ.",
        b"Pa\n.",
        b"\x97.",
        b"\x8f.",
        b"(K\x01\x91.",
        b"K\x01K\x02R.",
        b"](K\x01eK\x02\x85R.",
        b"]K\x01b.",
        b"cnumpy.core.multiarray\nscalar\n(NNtR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\nK\x00\x85U\x01btR.",
        b"c__builtin__\ngetattr\n.",
        b"ccollections\nOrderedDict\n)R.",
        b"\x8c\x05numpyK\x01\x93.",
        b"\x88N\x93.",
        b"cnumpy\n\xff\n.",
        b"K\x01",
        b"2.",
        b"0.",
        b"t.",
        b"(.",
        b"(0.",
        b"h\x05.",
        b"jaaaa.",
        b"g7\n.",
        b"q\x00.",
        b"K\x01a.",
        b"]e.",
        b"}K\x01s.",
        b"}(K\x01u.",
        b"K\x01K\x02K\x03s.",
        b"I" + b"9" * 5000 + b"\n.",
        b"Ixyz\n.",
        b"Fxyz\n.",
        b"Sabc\n.",
        b"S'a\n.",
        b"\x8b\xff\xff\xff\xff.",
        b"T\xff\xff\xff\xff.",
        b"\x8a\x09a.",
        b"\x8c\x01\xff.",
        b"G\x00.",
    ],
)
def test_whatever_else_a_pickle_asks_for_is_refused(code):
    refused(code)


def test_nothing_that_a_pickle_looks_up_is_changed():
    for target in (b"c_codecs\nencode\n", b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", BUFFER):
        refused(target + b"}U\x05owned\x88sb.")
        refused(target + b"(N}U\x05owned\x88stb.")
    assert not hasattr(np.empty(1).__reduce_ex__(5)[0], "owned")


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize(
    "code",
    [
        b"]r\xff\xff\xff\x7f.",  # a place of the memo: a table of 2**31 would be made
        b"B\xff\xff\xff\xff.",
        b"X\xff\xff\xff\xff.",
        b"\x8e" + b"\xff" * 7 + b"\x00.",
        b"\x96" + b"\xff" * 7 + b"\x00.",
        b"\x8d" + b"\xff" * 8 + b".",
        b"\x95" + b"\xff" * 8 + b"]",
        # text of a million letters, encoded a thousand times
        b"](X\x40\x42\x0f\x00" + b"a" * 1_000_000 + b"q\x000" + b"c_codecs\nencode\nh\x00\x85R" * 1000 + b"e.",
        b"](B\x40\x42\x0f\x00"
        + b"a" * 1_000_000
        + b"q\x000"
        + (
            EMPTY
            + b"(K\x01J\x20\xa1\x07\x00\x85"
            + dtype(b"u2", b"(K\x03U\x01>NNNK\x00K\x00K\x00tb")
            + b"\x89h\x00tb"
        )
        * 1000
        + b"e.",
    ],
)
def test_a_few_bytes_do_not_take_much_memory(code):
    before = peak()
    if code.startswith(b"]r"):
        assert load_pickle(code, "x") == []
    else:
        refused(code)
    assert peak() - before < 200e6


def test_tuples_nested_deeper_than_the_stack_are_harmless():
    deep = b")" + b"\x85" * 300_000
    for code in (
        b"}" + deep + b"Ns.",
        deep + b")R.",
        b"c_codecs\nencode\n" + deep + b"R.",
        b"c_codecs\nencode\n" + deep + b"b.",
    ):
        refused(code)
    for code in (
        b"cnumpy\ndtype\n" + deep + b"\x85R.",
        array(dtype(b"u1", b"(K\x03" + deep + b"NNNtb")),
        array(dtype(b"u1"), deep),
    ):
        refused(code)
