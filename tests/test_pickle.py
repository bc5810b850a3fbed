"""The inert pickle interpreter: it reads every opcode, runs nothing, and stays linear."""

import collections
import contextlib
import datetime
import io
import itertools
import os
import pathlib
import pickle
import pickletools
import struct
import sys
import tracemalloc
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convsv.checkpoints import _pickle
from convsv.checkpoints._file import AnonymousFile
from convsv.checkpoints._pickle import _TABLE, MAX_OPCODES, Call, PersistentId, PickledDict, Symbol, interpret
from convsv.errors import CheckpointError, CorruptCheckpointError, UnsafeCheckpointError


def inert(data):
    return interpret(AnonymousFile("test.pkl", data))


def plain(value):
    """The Python value that an inert one stands for, for plain data only."""
    if isinstance(value, PickledDict):
        return {plain(key): plain(item) for key, item in value.pairs}
    if isinstance(value, (list, tuple)):
        return type(value)(plain(item) for item in value)
    if isinstance(value, Call):
        # Protocols 0 to 2 write bytes and sets as calls.
        (name, args) = (value.callee.path, plain(value.args))
        if name == "_codecs.encode":
            return args[0].encode(args[1])
        return args[0] if args else b""
    return value


class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x


class Bag(list):
    pass


class Table(dict):
    pass


class Keyworded:
    def __new__(cls, *, size):
        return super().__new__(cls)

    def __getnewargs_ex__(self):
        return (), {"size": 3}


class Payload:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def test_every_opcode_of_the_language_is_known():
    codes = {opcode.code.encode("latin-1") for opcode in pickletools.opcodes}
    assert set(_TABLE) | {b"."} == codes


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers() | st.binary(), inner)
    ),
    max_leaves=20,
)


@pytest.mark.parametrize("protocol", range(6))
@given(value=VALUES)
def test_plain_data_comes_back_the_same_in_every_protocol(protocol, value):
    assert plain(inert(pickle.dumps(value, protocol)).value) == value


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        -1,
        255,
        65536,
        1 << 31,
        -(1 << 63),
        1 << 3000,
        0.1,
        "é\n'\"",
        "\U0001f600",
        b"\x00\xff",
        "x" * 70000,
        b"y" * 70000,
    ],
)
def test_numbers_and_texts_of_every_size(protocol, value):
    assert plain(inert(pickle.dumps(value, protocol)).value) == value


def test_sets_become_lists_and_frozensets_tuples():
    assert sorted(inert(pickle.dumps({1, 2}, 4)).value) == [1, 2]
    assert inert(pickle.dumps(frozenset({1}), 4)).value == (1,)


def test_a_bytearray_and_big_endian_floats():
    assert inert(pickle.dumps(bytearray(b"ab"), 5)).value == b"ab"
    assert inert(b"G" + struct.pack(">d", -2.5) + b".").value == -2.5


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"S'a\\x41\\n'\n.", "aA\n"),
        (b"S'\\xff'\n.", b"\xff"),
        (b"U\x02hi.", "hi"),
        (b"U\x01\xff.", b"\xff"),
        (b"T\x02\0\0\0hi.", "hi"),
        (b"Vh\\u00e9\n.", "h\u00e9"),
        (b"I01\n.", True),
        (b"I00\n.", False),
        (b"L12L\n.", 12),
        (b"F1.5\n.", 1.5),
        (b"(I1\nI2\nl.", [1, 2]),
        (b"(I1\nI2\nt.", (1, 2)),
        (b"(I1\n0(I2\n1I3\n.", 3),
        (b"I1\n2\x86.", (1, 1)),
    ],
)
def test_opcodes_of_python_2(data, expected):
    assert inert(data).value == expected


@pytest.mark.parametrize("protocol", range(6))
def test_an_object_keeps_its_class_and_its_state(protocol):
    call = inert(pickle.dumps(Point(1, [2]), protocol)).value
    assert isinstance(call, Call)
    symbol = call.args[0] if protocol < 2 else call.callee
    assert symbol.path == f"{__name__}.Point"
    assert plain(call.state) == {"x": 1, "y": [2]}


def test_slots_list_items_dict_pairs_and_keyword_arguments_are_kept():
    assert plain(inert(pickle.dumps(Slotted(5), 2)).value.state) == (None, {"x": 5})
    assert inert(pickle.dumps(Bag([1, 2]), 2)).value.items == [1, 2]
    assert inert(pickle.dumps(Table(a=1), 2)).value.pairs == [("a", 1)]
    assert plain(inert(pickle.dumps(Keyworded(size=3), 4)).value.kwargs) == {"size": 3}


def test_old_style_instances_of_python_2():
    by_inst = inert(b"(I7\nimod\nCls\n}S'x'\nI1\nsb.").value
    by_obj = inert(b"(cmod\nCls\nI7\no}S'x'\nI1\nsb.").value
    for call in (by_inst, by_obj):
        assert (call.callee.path, call.args, plain(call.state)) == ("mod.Cls", (7,), {"x": 1})


def test_ordered_dicts_and_dates_are_calls():
    call = inert(pickle.dumps(collections.OrderedDict(a=1))).value
    assert (call.callee.path, call.pairs) == ("collections.OrderedDict", [("a", 1)])
    assert inert(pickle.dumps(datetime.date(2020, 1, 2))).value.callee.path == "datetime.date"


def test_a_persistent_id_is_kept_in_order():
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", obj.x) if isinstance(obj, Point) else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump([Point(1, 0), Point(2, 0)])
    found = inert(stream.getvalue())
    assert [p.value for p in found.value] == [("storage", 1), ("storage", 2)]
    assert [p.value for p in found.persistent_ids] == [("storage", 1), ("storage", 2)]
    assert isinstance(inert(b"Pname\n.").value, PersistentId)


def test_shared_and_cyclic_objects_stay_shared():
    shared = [1]
    cycle = [shared, shared]
    cycle.append(cycle)
    found = inert(pickle.dumps(cycle)).value
    assert found[0] is found[1]
    assert found[2] is found


def test_pickles_that_follow_each_other_are_read_one_by_one():
    data = pickle.dumps("first") + pickle.dumps([2]) + b"rest"
    file = AnonymousFile("several", data)
    first = interpret(file)
    second = interpret(file, first.end)
    assert (first.value, second.value, data[second.end :]) == ("first", [2], b"rest")
    with pytest.raises(CorruptCheckpointError):
        interpret(file, 0, first.end - 1)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_run_or_imported(protocol, tmp_path):
    target = tmp_path / "touched"
    data = pickle.dumps(
        [Payload(os.system, f"touch {target}"), Payload(eval, "1/0"), Payload(bytearray, 8_600_000_000)], protocol
    )
    data_with_module = data[:-1] + b"cno.such.module\nthing\n\x86."
    found = inert(data_with_module).value
    assert not target.exists()
    assert [call.callee.name for call in found[0]] == ["system", "eval", "bytearray"]
    assert isinstance(found[1], Symbol)
    assert inert(data).payload in ("posix.system", "nt.system")


@pytest.mark.parametrize("protocol", range(6))
def test_honest_calls_are_no_payload(protocol):
    honest = [
        pathlib.PurePosixPath("a/b"),
        {1, 2},
        bytearray(b"x"),
        complex(1, 2),
        range(3),
        Point(1, 2),
        Fraction(1, 3),
    ]
    assert inert(pickle.dumps(honest, protocol)).payload is None
    # A name alone is not called: only calls run.
    assert inert(pickle.dumps([os.system, eval], protocol)).payload is None


def test_unhashable_and_colliding_keys_are_only_pairs():
    key = inert(b"}]K\x01sK\x02K\x03s.").value
    assert [(type(k), v) for k, v in key.pairs] == [(list, 1), (int, 3)]
    prime = (1 << 61) - 1  # all multiples have the hash 0
    collisions = b"".join(b"\x8a\x0c" + (prime * i).to_bytes(12, "little") + b"N" for i in range(200_000))
    assert len(inert(b"}(" + collisions + b"u.").value.pairs) == 200_000


SAMPLE = pickle.dumps({"a": [1, (2.5, None), Point("x", b"bytes")], "long": 1 << 70, "t": "text" * 99}, 4)


def test_every_truncation_is_corrupt():
    for protocol in range(6):
        data = pickle.dumps(pickle.loads(SAMPLE), protocol)
        for length in range(len(data)):
            with pytest.raises(CorruptCheckpointError):
                inert(data[:length])


@given(st.binary(max_size=60))
def test_random_bytes_raise_nothing_but_our_own_errors(data):
    with contextlib.suppress(CheckpointError):
        inert(data)


@given(st.integers(0, len(SAMPLE) - 1), st.integers(1, 255))
def test_changed_bytes_raise_nothing_but_our_own_errors(position, flip):
    changed = bytearray(SAMPLE)
    changed[position] ^= flip
    with contextlib.suppress(CheckpointError):
        inert(bytes(changed))


@pytest.mark.parametrize(
    "data",
    [
        b"X\xff\xff\xff\xffabc",
        b"\x8d" + b"\xff" * 8 + b"abc",
        b"\x8e" + struct.pack("<Q", 8_600_000_000) + b"abc",
        b"\x96" + struct.pack("<Q", 1 << 40) + b"abc",
        b"\x8b\xff\xff\xff\x7fabc",
        b"\x8b\xff\xff\xff\xffabc",
        b"T\xff\xff\xff\xffabc",
        b"T\xfb\xff\xff\xffabc",  # back to where it stands itself
        b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
        b"\x80\x63N.",
        b"L" + b"9" * 100_000 + b"\n.",
        b"Np99999999999999999999\n.",
        b"Np-1\n.",
        b"g5\n.",
        b"]N0a.",
        b"NN\x81.",
        b"NNa.",
        b"N(NNu.",
        b"}(Nu.",
        b"\x85.",
        b"N\x87.",
        b"t.",
        b".",
        b"",
        b"\x97.",
        b"\xff.",
        b"K\x01K\x02\x93.",
        b"cmod\n\xff\n.",
        b"X\x01\0\0\0\xff.",
        b"Sabc\n.",
        b"I\xff\n.",
        b"(o.",
    ],
)
def test_hostile_pickles_are_corrupt_and_cost_nothing(data):
    tracemalloc.start()
    try:
        with pytest.raises(CorruptCheckpointError) as caught:
            inert(data)
        assert tracemalloc.get_traced_memory()[1] < 1 << 21
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"]" * 500_000 + b"a" * 499_999 + b".",
        b")" + b"\x85" * 1_000_000 + b".",
        b"}" + b"K\x01}" * 300_000 + b"s" * 300_000 + b".",
        b"N" + b")R" * 500_000 + b".",
        b"N" + b")R}b" * 300_000 + b".",
        b"]q\x00" + b"0](h\x00h\x00eq\x00" * 200_000 + b".",
    ],
    ids=["lists", "tuples", "dicts", "calls", "states", "doubling references"],
)
def test_deep_nesting_neither_recurses_nor_grows(data):
    value = inert(data).value
    assert isinstance(value, (list, tuple, PickledDict, Call))
    del value  # taking it apart must not recurse either


def test_unclosed_marks_are_corrupt():
    with pytest.raises(CorruptCheckpointError):
        inert(b"(" * 500_000 + b".")


def test_too_many_opcodes_are_refused():
    with pytest.raises(UnsafeCheckpointError, match="too long"):
        inert(b"N0" * (MAX_OPCODES // 2) + b"N.")


# ------------------------------------------------------------------------------------------------- linear in the bytes

GLOBAL = b"cstranger\nNet\n"
SHAPES = {
    "nested lists": lambda n: b"]" * n + b"a" * (n - 1) + b".",
    "nested tuples": lambda n: b")" + b"\x85" * n + b".",
    "nested dicts": lambda n: b"}" + b"K\x01}" * n + b"s" * n + b".",
    "a long tuple": lambda n: b"(" + b"N" * n + b"t.",
    "a long list, item by item": lambda n: b"]" + b"Na" * n + b".",
    "a long list in pieces": lambda n: b"]" + b"(NNe" * n + b".",
    "a long dict, pair by pair": lambda n: b"}" + b"K\x01Ns" * n + b".",
    "one key again and again": lambda n: b"}(" + b"X\x01\0\0\0aN" * n + b"u.",
    "one object fetched again and again": lambda n: b"]q\x00(" + b"h\x00" * n + b"e.",
    "a long object fetched again and again": lambda n: b"(" + b"N" * n + b"tq\x00](" + b"h\x00" * n + b"e.",
    "doubling references": lambda n: b"]q\x00" + b"0](h\x00h\x00eq\x00" * n + b".",
    "memoised in order": lambda n: b"\x80\x04](" + b"]\x94" * n + b"e.",
    "memoised far apart": lambda n: (
        b"](" + b"".join(b"Nr" + struct.pack("<L", 6 * (n - 1 - i)) for i in range(n)) + b"e."
    ),
    "memoised in decimals": lambda n: b"](" + b"".join(b"Np%d\n" % i for i in range(n)) + b"e.",
    "open marks": lambda n: b"N" + b"(" * n + b"1" * n + b".",
    "marks over a long stack": lambda n: b"(" + b"N" * n + b"(1" * n + b"t.",
    "tuples over a long stack": lambda n: b"(" + b"N" * n + b"(t0" * n + b"t.",
    "duplicates": lambda n: b"(N" + b"2" * n + b"t.",
    "taken off again": lambda n: b"N" + b"N0" * n + b".",
    "texts": lambda n: b"](" + b"X\x08\0\0\0abcdefgh" * n + b"e.",
    "one long text": lambda n: b"X" + struct.pack("<L", 8 * n) + b"abcdefgh" * n + b".",
    "globals": lambda n: b"](" + GLOBAL * n + b"e.",
    "calls": lambda n: GLOBAL + b")R" * n + b".",
    "calls with one long argument": lambda n: b"(" + b"N" * n + b"tq\x00](" + (GLOBAL + b"h\x00R") * n + b"e.",
    "states": lambda n: GLOBAL + b")R" + b"}b" * n + b".",
    "items of a call": lambda n: GLOBAL + b")R" + b"Na" * n + b".",
    "pairs of a call": lambda n: GLOBAL + b")R" + b"(K\x01Nu" * n + b".",
    "persistent ids": lambda n: b"](" + b"NQ" * n + b"e.",
    "large integers": lambda n: b"](" + b"\x8a\x08abcdefgh" * n + b"e.",
    "lines of digits": lambda n: b"](" + b"L12345678L\n" * n + b"e.",
    "frames": lambda n: b"\x80\x04](" + (b"\x95" + struct.pack("<Q", 1) + b"N") * n + b"e.",
}


def cost(data):
    """Lines of the interpreter that run, bytes that it asks the file for, and its largest use of memory."""
    lines, bytes_read = itertools.count(), []

    class Counted(AnonymousFile):
        def read(self, offset, count):
            bytes_read.append(count)
            return super().read(offset, count)

    def trace(frame, event, _):
        if frame.f_code.co_filename != _pickle.__file__:
            return None
        if event == "line":
            next(lines)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        interpret(Counted("counted.pkl", data))
    finally:
        sys.settrace(before)
    tracemalloc.start()
    try:
        interpret(AnonymousFile("weighed.pkl", data + b" "))  # other bytes: nothing is known of them yet
        return next(lines), sum(bytes_read), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


SLACK = {"lines": 100, "bytes read": 1 << 18, "memory": 1 << 18}
"""What a window of the file, small objects that Python keeps, and the steps in which lists grow can add."""


@pytest.mark.parametrize("shape", SHAPES)
def test_time_and_memory_are_linear_in_the_bytes(shape):
    """Twice the bytes cost twice as much; of what is quadratic, four times as many cost sixteen times as much."""
    first, second, third = (cost(SHAPES[shape](n)) for n in (4000, 8000, 16_000))
    for (what, slack), one, two, four in zip(SLACK.items(), first, second, third, strict=True):
        assert four - two <= 2.5 * (two - one) + slack, what
        assert four <= 5 * one + slack, what
