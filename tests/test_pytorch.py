"""The PyTorch reader: equal to torch.load bit for bit on honest files, quick and clear on hostile ones."""

import contextlib
import copy
import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from convsv.checkpoints import open_checkpoint
from convsv.checkpoints._file import RegularFile
from convsv.checkpoints.pytorch import PyTorch
from convsv.errors import CheckpointError, CorruptCheckpointError, UnknownFormatError, UnsafeCheckpointError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "checkpoints"
DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
    torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
]  # fmt: skip
UNTYPED = {t for t in DTYPES if str(t).startswith("torch.float8") or t in (torch.uint16, torch.uint32, torch.uint64)}
VARIANTS = {
    "zip": {},
    "zip, protocol 1": {"pickle_protocol": 1},
    "zip, protocol 4": {"pickle_protocol": 4},
    "zip, protocol 5": {"pickle_protocol": 5},
    "legacy": {"_use_new_zipfile_serialization": False},
    "legacy, protocol 1": {"_use_new_zipfile_serialization": False, "pickle_protocol": 1},
    "legacy, protocol 4": {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=(2, 1), padding="valid", dilation=2, groups=2, padding_mode="circular")
        self.up = nn.ConvTranspose1d(4, 3, 5, stride=2, output_padding=1, bias=False)
        self.register_buffer("scale", torch.arange(3.0))
        self.note = {"free": "text"}
        self.hidden = [nn.Conv1d(1, 1, 3, padding=1)]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv3d(1, 2, 3, padding=(1, 0, 2))
        self.blocks = nn.Sequential(Block(), Block())
        self.empty = None


class Payload:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def saved(tmp_path):
    def save(obj, **options):
        path = tmp_path / "model.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(obj, path, **options)
        return path

    return save


def bits(array):
    """Values as bytes, through torch or numpy alike."""
    if isinstance(array, torch.Tensor):
        array = array.detach().contiguous()
        return array.view(torch.uint8).numpy().tobytes() if array.numel() and array.ndim else _scalar_bits(array)
    return np.ascontiguousarray(array).tobytes()


def _scalar_bits(tensor):
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(stored, tensor):
    assert stored.problem is None
    assert stored.shape == tuple(tensor.shape)
    assert stored.dtype == str(tensor.dtype).removeprefix("torch.")
    values = stored.read()
    assert (values.shape, values.dtype.name) == (stored.shape, stored.dtype)
    assert values.flags.c_contiguous
    assert bits(values) == bits(tensor.resolve_conj().resolve_neg())


def named(checkpoint, *container):
    return {t.key: t for t in checkpoint.tensors if t.container == container}


def assert_equals_state(checkpoint, state, *container):
    found = named(checkpoint, *container)
    assert list(found) == list(state)
    for key, tensor in state.items():
        assert_same(found[key], tensor)


# ------------------------------------------------------------------------------------------------------ honest files


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_a_state_dict_equals_torch_load_in_every_variant_of_the_format(saved, options):
    path = saved(Net().state_dict(), **options)
    checkpoint = open_checkpoint(path)
    assert (checkpoint.format, checkpoint.problems, checkpoint.modules) == ("pytorch", (), ())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about protocols other than its own
        assert_equals_state(checkpoint, torch.load(path, weights_only=False))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_dtype_equals_torch_load(saved, dtype, legacy):
    values = torch.randint(0, 255, (6, 2, 3, 16), dtype=torch.uint8)
    tensor = (values % 2).to(torch.bool) if dtype is torch.bool else values.view(dtype)
    path = saved({"w": tensor}, _use_new_zipfile_serialization=not legacy)
    assert_equals_state(open_checkpoint(path), {"w": tensor})
    if not legacy or dtype not in UNTYPED:  # torch writes those, and cannot read them back
        assert_equals_state(open_checkpoint(path), torch.load(path))


BASE = torch.arange(4 * 6 * 5 * 5, dtype=torch.float32).reshape(4, 6, 5, 5)
VIEWS = {
    "contiguous": BASE,
    "channels_last": BASE.to(memory_format=torch.channels_last),
    "transposed": BASE.transpose(0, 1),
    "a slice": BASE[1:3, ::2, 1:],
    "one element": BASE[2, 3, 1, 1],
    "a scalar": torch.tensor(3.5),
    "zero size": torch.empty(0, 3, 3, 3),
    "zero size within a storage": BASE[:, 6:],
    "1x1 kernel": BASE[:, :, :1, :1],
    "conjugate": torch.view_as_complex(BASE.reshape(-1, 2)).conj(),
    "negative imaginary part": torch.view_as_complex(BASE.reshape(-1, 2)).conj().imag,
    "parameter": nn.Parameter(BASE[1]),
    "buffer": nn.Buffer(BASE[1]),
    "without grad": nn.Parameter(BASE, requires_grad=False),
}


@pytest.mark.parametrize("tensor", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_honest_view_equals_torch_load(saved, tensor, legacy):
    path = saved({"w": tensor}, _use_new_zipfile_serialization=not legacy)
    assert_same(open_checkpoint(path).tensors[0], torch.load(path)["w"])


def test_ties_have_one_identity_and_other_views_another(saved):
    other = BASE.clone()
    path = saved(
        {"a": BASE, "b": BASE, "c": BASE[0], "d": BASE.transpose(0, 1), "e": other, "f": BASE[0].view(6, 5, 5)}
    )
    found = named(open_checkpoint(path))
    identity = {key: tensor.identity for key, tensor in found.items()}
    assert identity["a"] == identity["b"]
    assert identity["c"] == identity["f"]
    assert len({identity[key] for key in "acde"}) == 4


def test_a_thin_view_of_a_large_storage_is_read_in_little_memory(saved):
    large = torch.arange(48 * (1 << 20), dtype=torch.float32).reshape(48, 1 << 20)
    path = saved({"w": large[:, 5:7]})
    stored = open_checkpoint(path).tensors[0]
    tracemalloc.start()
    try:
        values = stored.read()
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()
    assert values.tobytes() == large[:, 5:7].contiguous().numpy().tobytes()


WRAPPED = {
    "state_dict": (lambda s: {"state_dict": s, "best_prec1": 91.7}, ("state_dict",)),
    "model": (lambda s: {"model": s, "args": {"lr": 0.1}}, ("model",)),
    "model_state_dict": (lambda s: {"epoch": 3, "model_state_dict": s}, ("model_state_dict",)),
    "two wrappers": (lambda s: {"checkpoint": {"ema": s}}, ("checkpoint", "ema")),
    "an unknown name": (lambda s: {"my network": s}, ("my network",)),
    "an unknown name around a wrapper": (lambda s: {"mine": {"model": s}}, ("mine", "model")),
    "a list of dicts": (lambda s: [{"x": 1}, s], ("1",)),
    "a tuple in a dict": (lambda s: {"nets": ({}, s)}, ("nets", "1")),
    "an integer key": (lambda s: {7: s}, ("7",)),
    "an OrderedDict": (OrderedDict, ()),
    "a defaultdict": (lambda s: defaultdict(list, s), ()),
}


@pytest.mark.parametrize(("wrap", "container"), WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_wrapped_state_dict_keeps_its_keys_and_tells_its_container(saved, wrap, container, legacy):
    state = dict(Net().state_dict())
    path = saved(wrap(state), _use_new_zipfile_serialization=not legacy)
    assert_equals_state(open_checkpoint(path), state, *container)


def test_parts_nested_in_dicts_join_their_keys(saved):
    path = saved(
        {"conv1": {"weight": BASE, "bias": BASE[0]}, "head": {"fc": {"weight": BASE}}, "step": torch.tensor(1)}
    )
    tensors = open_checkpoint(path).tensors
    assert [(t.container, t.key) for t in tensors] == [
        ((), "conv1.weight"),
        ((), "conv1.bias"),
        ((), "head.fc.weight"),
        ((), "step"),
    ]


def test_a_tensor_alone_and_a_list_of_tensors_have_keys(saved):
    assert [t.key for t in open_checkpoint(saved(BASE)).tensors] == ["tensor"]
    assert [(t.container, t.key) for t in open_checkpoint(saved([BASE, {"w": BASE}])).tensors] == [
        ((), "0"),
        (("1",), "w"),
    ]


def test_a_lightning_like_checkpoint_keeps_optimizer_states_apart(saved):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 1, 3))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 1, 8, 8)).sum().backward()
    optimizer.step()
    whole = {"epoch": 1, "state_dict": net.state_dict(), "optimizer_states": [optimizer.state_dict()], "loops": None}
    checkpoint = open_checkpoint(saved(whole))
    assert_equals_state(checkpoint, net.state_dict(), "state_dict")
    moments = named(checkpoint, "optimizer_states", "0", "state", "2")
    assert list(moments) == ["step", "exp_avg", "exp_avg_sq"]
    assert_same(moments["exp_avg"], optimizer.state_dict()["state"][2]["exp_avg"])
    assert {t.container[0] for t in checkpoint.tensors} == {"state_dict", "optimizer_states"}


def test_odd_names_are_kept_as_they_are(saved):
    names = ["", "a/b", "line\nbreak", "\u202eright", "ünïcode \U0001f600", "..", "x" * 5000, "\x00", "esc\x1b[0m"]
    path = saved({name: torch.tensor([float(i)]) for i, name in enumerate(names)})
    assert [t.key for t in open_checkpoint(path).tensors] == names


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap", [lambda n: n, lambda n: {"epoch": 5, "model": n}, lambda n: [n]], ids=["bare", "dict", "list"]
)
def test_a_pickled_module_has_the_keys_of_its_state_dict_and_its_geometry(saved, wrap, legacy):
    net = Net()
    checkpoint = open_checkpoint(saved(wrap(net), _use_new_zipfile_serialization=not legacy))
    container = checkpoint.modules[0].container
    assert container == {Net: (), dict: ("model",), list: ("0",)}[type(wrap(net))]
    found = named(checkpoint, *container)
    for key, tensor in net.state_dict().items():
        assert_same(found.pop(key), tensor)
    assert sorted(found) == [f"blocks.{i}.hidden.0.{part}" for i in (0, 1) for part in ("bias", "weight")]
    facts = {m.path: m for m in checkpoint.modules}
    assert set(dict(net.named_modules())) | {"blocks.0.hidden.0", "blocks.1.hidden.0"} == set(facts)
    assert [facts[path].class_name for path in ("", "stem", "blocks", "blocks.1")] == [
        "Net",
        "Conv3d",
        "Sequential",
        "Block",
    ]
    conv, up = facts["blocks.1.conv"].geometry, facts["blocks.1.up"].geometry
    assert (conv.stride, conv.padding, conv.dilation, conv.groups) == ((2, 1), "valid", (2, 2), 2)
    assert (conv.padding_mode, conv.transposed, conv.size) == ("circular", False, None)
    assert (up.stride, up.transposed, up.output_padding, up.padding) == ((2,), True, (1,), (0,))
    assert facts["stem"].geometry.padding == (1, 0, 2)
    assert facts["blocks"].geometry.stride is None


def test_parametrised_modules_show_their_originals(saved):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(net[0])
        nn.utils.spectral_norm(net[1])
    expected = net.state_dict()
    found = named(open_checkpoint(saved(net)))
    assert set(found) == set(expected)
    for key, tensor in expected.items():
        assert_same(found[key], tensor)


def test_parametrisations_of_a_state_dict_are_indexed(saved):
    conv = parametrizations.weight_norm(nn.Conv2d(2, 3, 3))
    assert_equals_state(open_checkpoint(saved(conv.state_dict())), conv.state_dict())


def test_a_module_of_a_class_that_cannot_be_imported_is_read(tmp_path):
    (tmp_path / "gone_module.py").write_text(
        "from torch import nn\n"
        "class Gone(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = nn.Conv2d(1, 2, 3, stride=2)\n"
    )
    for name, legacy in (("zip.pt", False), ("legacy.pt", True)):
        program = (
            "import torch, gone_module\n"
            f"torch.save({{'model': gone_module.Gone()}}, {name!r}, _use_new_zipfile_serialization={not legacy})"
        )
        subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
    (tmp_path / "gone_module.py").unlink()
    for name in ("zip.pt", "legacy.pt"):
        checkpoint = open_checkpoint(tmp_path / name)
        assert list(named(checkpoint, "model")) == ["conv.weight", "conv.bias"]
        facts = {m.path: (m.class_name, m.geometry.stride) for m in checkpoint.modules}
        assert facts == {"": ("Gone", None), "conv": ("Conv2d", (2, 2))}
    assert "gone_module" not in sys.modules


def test_shared_and_cyclic_objects_are_walked_once(saved):
    net = nn.Sequential(nn.Conv2d(1, 1, 3))
    net.myself = [net]
    state = {"w.x": BASE}
    cycle = {"model": net, "a": state, "b": state}
    cycle["self"] = cycle
    tensors = open_checkpoint(saved(cycle)).tensors
    assert [(t.container, t.key) for t in tensors] == [
        (("model",), "0.weight"),
        (("model",), "0.bias"),
        (("a",), "w.x"),
    ]


def test_geometry_that_is_not_sane_is_not_stated(saved):
    conv = nn.Conv2d(1, 1, 3)
    conv.stride, conv.padding, conv.groups, conv.dilation = (0, 1), "half", True, (1, 2, 3, 4)
    conv.padding_mode, conv.transposed, conv.output_padding = "mirror", 1, (-1, 0)
    geometry = open_checkpoint(saved(conv)).modules[0].geometry
    assert all(value is None for value in vars(geometry).values())


def test_a_dict_without_tensors_is_an_empty_checkpoint(saved):
    checkpoint = open_checkpoint(saved({"epoch": 1, "nothing": [None, {}]}))
    assert (checkpoint.tensors[:], checkpoint.modules, checkpoint.problems) == ([], (), ())


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("code", ["<f8", ">f4", "<f2", "|b1", "<i8", "<c16"])
def test_numpy_arrays_inside_are_tensors(saved, protocol, code):
    array = (np.arange(24).reshape(2, 3, 4) * 1.5).astype(code)
    path = saved(
        {"c": array, "f": np.asfortranarray(array), "s": array[0, 0, 0], "o": np.array([None])},
        pickle_protocol=protocol,
    )
    found = named(open_checkpoint(path))
    assert set(found) == {"c", "f"}
    for stored in found.values():
        assert (stored.shape, stored.dtype) == ((2, 3, 4), array.dtype.name)
        assert np.array_equal(stored.read(), array)


def test_checksums_that_were_left_out_are_not_missed(saved):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(Net().state_dict())
    finally:
        torch.serialization.set_crc32_options(before)
    assert_equals_state(open_checkpoint(path), torch.load(path))


def rewritten(path, change):
    """The same archive with the entries that ``change(name, data)`` returns, stored."""
    with zipfile.ZipFile(path) as z:
        entries = {info.filename: z.read(info) for info in z.infolist()}
    with zipfile.ZipFile(path, "w") as z:
        for name, data in entries.items():
            new = change(name, data)
            if new is not None:
                z.writestr(name, new)
    return path


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64, torch.int16, torch.uint8], ids=str
)
def test_a_big_endian_archive_equals_torch_load(saved, dtype):
    tensor = torch.arange(24).reshape(2, 3, 2, 2).to(dtype)
    unit = dtype.itemsize // (2 if dtype.is_complex else 1)

    def swap(name, data):
        if name.endswith("/byteorder"):
            return b"big"
        return np.frombuffer(data, f"u{unit}").byteswap().tobytes() if "/data/" in name else data

    path = rewritten(saved({"w": tensor, "v": tensor.transpose(0, 1)[1:]}), swap)
    assert_equals_state(open_checkpoint(path), torch.load(path))


def test_archives_without_a_byte_order_or_with_another_name_are_read(saved):
    path = saved({"w": BASE})
    path = rewritten(path, lambda name, data: None if name.endswith(("byteorder", "version")) else data)
    assert_equals_state(open_checkpoint(path), {"w": BASE})
    bare = path.with_name("bare.pt")
    with zipfile.ZipFile(path) as z, zipfile.ZipFile(bare, "w") as out:
        for name in z.namelist():
            out.writestr(name.split("/", 1)[1], z.read(name))
    assert_equals_state(open_checkpoint(bare), {"w": BASE})


def test_torchscript_is_read_as_data(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2), nn.Sequential(nn.Conv2d(2, 2, 1)))
    path = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(net, torch.zeros(1, 1, 9, 9)), path)
    checkpoint = open_checkpoint(path)
    assert_equals_state(checkpoint, net.state_dict())
    assert checkpoint.problems == ()
    assert {m.path: m.geometry.stride for m in checkpoint.modules if m.class_name == "Conv2d"} == {
        "0": (2, 2),
        "1.0": (1, 1),
    }


def test_opening_reads_no_tensor_data_and_imports_no_torch(saved):
    path = saved({"w": torch.zeros(1 << 20), "v": torch.zeros(1 << 20)}, _use_new_zipfile_serialization=False)
    program = (
        "import sys; from convsv.checkpoints import open_checkpoint; from convsv.checkpoints._file import RegularFile\n"
        "count = 0; read = RegularFile.read\n"
        "def counted(self, offset, size):\n"
        "    global count; count += size; return read(self, offset, size)\n"
        "RegularFile.read = counted\n"
        f"open_checkpoint({str(path)!r}); print(count, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    count, has_torch = result.stdout.split()
    assert int(count) < 1 << 20
    assert has_torch == "False"


@pytest.mark.parametrize(
    "name",
    [
        "resnet20-cifar10.th",
        "ultraface-rfb320.pth",
        "burn-mnist.pt",
        "beattrack-tcn.ckpt",
        "meshnet3d.pth",
        "taesana-encoder-fp16.pth",
    ],
)
def test_public_checkpoints_equal_torch_load(name):
    path = SHARED / name
    if not path.is_file():
        pytest.skip("needs the folder of public checkpoints")
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    checkpoint = open_checkpoint(path)
    container = ("state_dict",) if "state_dict" in loaded else ()
    state = loaded["state_dict"] if container else loaded
    assert_equals_state(checkpoint, state, *container)
    if "optimizer_states" in loaded:
        for number, moments in loaded["optimizer_states"][0]["state"].items():
            found = named(checkpoint, "optimizer_states", "0", "state", str(number))
            for key, stored in found.items():
                assert_same(stored, moments[key])
            assert set(found) == {key for key, value in moments.items() if isinstance(value, torch.Tensor)}


@pytest.mark.filterwarnings("ignore:source code of class")
def test_a_whole_module_of_2017_is_read():
    path = SHARED / "vdsr-whole.pth"
    if not path.is_file():
        pytest.skip("needs the folder of public checkpoints")
    checkpoint = open_checkpoint(path)
    found = named(checkpoint, "model")
    assert len(found) == len(checkpoint.tensors) == 20
    assert found["residual_layer.17.conv.weight"].shape == (64, 64, 3, 3)
    facts = {m.path: m for m in checkpoint.modules}["residual_layer.17.conv"]
    assert (facts.class_name, facts.geometry.padding, facts.geometry.stride) == ("Conv2d", (1, 1), (1, 1))

    class Inert:
        dump_patches = False

        def __init__(self, *args):
            pass

        def __setstate__(self, state):
            self.state = state

    class Finder(pickle.Unpickler):
        def find_class(self, module, name):
            return (
                super().find_class(module, name)
                if module in ("torch._utils", "torch", "collections", "torch.nn.parameter") or "Storage" in name
                else Inert
            )

    shim = type(sys)("shim")
    shim.Unpickler, shim.load, shim.dump, shim.Pickler = Finder, pickle.load, pickle.dump, pickle.Pickler
    oracle = torch.load(path, map_location="cpu", weights_only=False, pickle_module=shim)
    for i in (0, 17):
        block = oracle["model"].state["_modules"]["residual_layer"].state["_modules"][str(i)]
        weight = block.state["_modules"]["conv"].state["_parameters"]["weight"]
        assert_same(found[f"residual_layer.{i}.conv.weight"], weight)


# ------------------------------------------------------------------------------------------- tensors with a problem


class Storage:
    """Stands for a storage in a hand-made pickle."""

    def __init__(self, kind, key, numel):
        self.id = ("storage", kind, key, "cpu", numel)


def crafted(tmp_path, obj, storages=(("0", bytes(64)),)):
    """An archive with a hand-made object, in which Storage objects become persistent ids."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.id if isinstance(obj, Storage) else None

    stream = io.BytesIO()
    Pickler(stream, 2).dump(obj)
    path = tmp_path / "crafted.pt"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("m/data.pkl", stream.getvalue())
        for key, data in storages:
            z.writestr(f"m/data/{key}", data)
    return path


def view(offset, shape, strides, numel=16, kind=torch.FloatStorage):
    arguments = (Storage(kind, "0", numel), offset, shape, strides, False, OrderedDict())
    return Payload(torch._utils._rebuild_tensor_v2, *arguments)


def test_a_later_value_of_one_key_replaces_the_earlier_as_in_python(tmp_path):
    pairs = [("w", view(0, (2,), (1,))), ("v", view(0, (1,), (1,))), ("w", view(0, (3,), (1,)))]
    checkpoint = open_checkpoint(crafted(tmp_path, Payload(OrderedDict, pairs)))
    assert [(t.key, t.shape) for t in checkpoint.tensors] == [("w", (3,)), ("v", (1,))]


def test_a_part_of_a_storage_in_the_oldest_files_is_read_from_its_place(saved):
    path = saved({"w": torch.arange(10.0)}, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    # The persistent id ends with (..., numel 10, None): put the view ("v", 4, 5) in the place of None. Then a tensor
    # of 5 elements, as the id of a view has a storage of its own size.
    assert data.count(b"K\x0aN") == 1
    data = data.replace(b"K\x0aN", b"K\x0aX\x01\0\0\0vK\x04K\x05\x87", 1).replace(b"K\x0a\x85", b"K\x05\x85", 1)
    path.write_bytes(data)
    assert open_checkpoint(path).tensors[0].read().tolist() == [4, 5, 6, 7, 8]


REFUSED_VIEWS = {
    "out of bounds": (view(0, (4, 5), (5, 1)), "beyond its storage"),
    "an offset out of bounds": (view(16, (1,), (1,)), "beyond its storage"),
    "a huge shape": (view(0, (1 << 40, 1 << 40), (1, 1)), "too large"),
    "a huge expanded shape": (view(0, (1 << 40,), (0,)), "expanded"),
    "a huge zero size": (view(0, (1 << 62, 1 << 62, 0), (1, 1, 1)), "too large"),
    "a negative offset": (view(-1, (2,), (1,)), "offset"),
    "a negative size": (view(0, (-2, 2), (1, 1)), "negative"),
    "a negative stride": (view(8, (2, 2), (-2, 1)), "negative"),
    "an expanded view": (view(0, (3, 4), (0, 1)), "expanded"),
    "overlapping strides": (view(0, (3, 3), (1, 1)), "overlap"),
    "too many strides": (view(0, (3,), (1, 1)), "do not fit"),
    "a huge rank": (view(0, (1,) * 100, (1,) * 100), "do not fit"),
    "sizes that are no integers": (view(0, (1.5,), (1,)), "malformed"),
    "sizes beyond 64 bits": (view(0, (1 << 4000,), (1,)), "malformed"),
    "no arguments": (Payload(torch._utils._rebuild_tensor_v2), "malformed"),
    "no storage": (Payload(torch._utils._rebuild_tensor_v2, 1, 2, 3, 4, 5, 6), "malformed"),
}


@pytest.mark.parametrize(("tensor", "problem"), REFUSED_VIEWS.values(), ids=REFUSED_VIEWS)
def test_a_dishonest_view_gets_a_problem_and_no_memory(tmp_path, tensor, problem):
    path = crafted(tmp_path, {"bad": tensor, "good": view(4, (2, 2), (2, 1))})
    tracemalloc.start()
    try:
        found = named(open_checkpoint(path))
        assert problem in found["bad"].problem
        with pytest.raises(CheckpointError, match="bad"):
            found["bad"].read()
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()
    assert found["good"].read().tolist() == [[0, 0], [0, 0]]


def test_expanded_views_that_torch_saved_are_refused(saved):
    assert "expanded" in open_checkpoint(saved({"w": torch.ones(1).expand(5)})).tensors[0].problem


UNREADABLE = {
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8), (2, 3)),
    "sparse": (lambda: torch.eye(3).to_sparse(), (3, 3)),
    "sparse compressed": (lambda: torch.eye(3).to_sparse_csr(), (3, 3)),
    "meta": (lambda: torch.ones(3, 2, device="meta"), (3, 2)),
    "lazy": (nn.UninitializedParameter, ()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "shape"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_strided_array_is_named_and_not_read(saved, make, shape):
    stored = open_checkpoint(saved({"w": make(), "v": BASE})).tensors
    assert [t.key for t in stored] == ["w", "v"]
    assert stored[0].problem
    assert stored[0].shape == shape
    assert_same(stored[1], BASE)


# ------------------------------------------------------------------------------------------------------ hostile files


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("function", [os.system, eval, subprocess.Popen], ids=lambda f: f.__name__)
def test_a_file_with_a_payload_is_unsafe_and_the_payload_never_runs(tmp_path, saved, function, options):
    target = tmp_path / "touched"
    text = f"open({str(target)!r}, 'w')" if function is eval else f"touch {target}"
    path = saved({"w": BASE, "x": [{"y": Payload(function, text)}]}, **options)
    with pytest.raises(UnsafeCheckpointError, match="payload") as caught:
        open_checkpoint(path)
    assert function.__name__ in str(caught.value)
    assert str(caught.value).isprintable()
    assert not target.exists()


def test_other_calls_are_never_made_and_the_tensors_beside_them_are_read(saved):
    for options in VARIANTS.values():
        path = saved({"w": BASE, "y": Payload(bytearray, 8_600_000_000), "z": Payload(getattr, "a", "b")}, **options)
        tracemalloc.start()
        try:
            assert_equals_state(open_checkpoint(path), {"w": BASE})
            assert tracemalloc.get_traced_memory()[1] < 1 << 24
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_truncation_is_corrupt_in_one_line(saved, legacy):
    path = saved(nn.Conv2d(1, 2, 3).state_dict(), _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    for length in [*range(64, len(data), 7), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(CorruptCheckpointError) as caught:
            open_checkpoint(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_changed_bytes_raise_nothing_but_our_own_errors(saved, legacy):
    path = saved({"model": nn.Conv2d(1, 2, 3), "w": BASE[0, 0]}, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(data)
        for position in random.integers(0, len(data), 3):
            changed[position] = random.integers(256)
        path.write_bytes(changed)
        with contextlib.suppress(CheckpointError):
            for tensor in open_checkpoint(path).tensors:
                assert tensor.problem or tensor.read().shape == tensor.shape


def test_damaged_data_are_refused_when_they_are_read(saved):
    path = saved({"w": BASE, "v": BASE[1:, :, 2:]})
    data = bytearray(path.read_bytes())
    at = data.index(BASE.numpy().tobytes())
    data[at + 3] ^= 1
    path.write_bytes(data)
    for stored in open_checkpoint(path).tensors:
        with pytest.raises(CorruptCheckpointError, match=f"model.pt: {stored.key}: wrong checksum"):
            stored.read()


def test_a_damaged_pickle_is_refused_when_the_file_is_opened(saved):
    path = saved({"weight": BASE})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"weight", b"wEight", 1))
    with pytest.raises(CorruptCheckpointError, match="wrong checksum"):
        open_checkpoint(path)


def test_a_storage_that_is_missing_or_too_short_is_corrupt(tmp_path):
    with pytest.raises(CorruptCheckpointError, match="lacks the data"):
        open_checkpoint(crafted(tmp_path, {"w": view(0, (2,), (1,))}, []))
    with pytest.raises(CorruptCheckpointError, match="lacks the data"):
        open_checkpoint(crafted(tmp_path, {"w": view(0, (2,), (1,), numel=1 << 40)}))


def test_a_legacy_storage_beyond_the_file_is_corrupt(saved):
    path = saved({"w": torch.arange(5.0)}, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    count = struct.pack("<q", 5) + torch.arange(5.0).numpy().tobytes()
    assert data.endswith(count)
    path.write_bytes(data[: -len(count)] + struct.pack("<q", 1 << 60) + count[8:])
    with pytest.raises(CorruptCheckpointError, match="ends before its own data"):
        open_checkpoint(path)


def test_a_compressed_or_duplicated_archive_is_unsafe(saved):
    path = saved({"w": torch.zeros(1000)})
    with zipfile.ZipFile(path) as z:
        entries = [(info.filename, z.read(info)) for info in z.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, data in entries:
            z.writestr(name, data)
    with pytest.raises(UnsafeCheckpointError, match="compressed"):
        open_checkpoint(path)
    with zipfile.ZipFile(path, "w") as z, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in [*entries, entries[0]]:
            z.writestr(name, data)
    with pytest.raises(CheckpointError):
        open_checkpoint(path)


def test_deep_nesting_is_reported_and_not_searched(saved, tmp_path):
    nested = b"]" * 100_000 + b"a" * 99_999 + b"."
    path = rewritten(saved({"w": BASE}), lambda name, data: nested if name.endswith("data.pkl") else data)
    checkpoint = open_checkpoint(path)
    assert len(checkpoint.tensors) == 0
    assert "deeper than" in checkpoint.problems[0]
    deep = inner = {}
    for _ in range(100):
        inner["x"] = inner = {}
    inner["w"] = BASE
    assert open_checkpoint(saved(copy.copy(deep))).tensors[0].key == ".".join(["x"] * 100 + ["w"])


def test_references_that_double_at_every_level_take_linear_time(saved):
    doubling = b"]q\x00" + b"0](h\x00h\x00eq\x00" * 100 + b"."
    path = rewritten(saved({"w": BASE}), lambda name, data: doubling if name.endswith("data.pkl") else data)
    assert open_checkpoint(path).tensors[:] == []


def test_names_of_unbounded_total_length_are_unsafe(tmp_path):
    name = "n" * (1 << 20)
    label = {f"{name}{i}": 0 for i in range(1)}
    tensor = view(0, (1,), (1,))
    obj = tensor
    for _ in range(100):
        obj = {next(iter(label)): obj}
    with pytest.raises(UnsafeCheckpointError, match="length"):
        open_checkpoint(crafted(tmp_path, obj))


def test_more_tensors_than_any_network_are_unsafe(tmp_path):
    tensor = view(0, (1,), (1,))
    with pytest.raises(UnsafeCheckpointError, match="more tensors"):
        open_checkpoint(crafted(tmp_path, [tensor] * 300_000))


def test_ten_thousand_layers_are_no_problem(saved):
    state = {f"layers.{i}.weight": BASE[:, :, :1, :1] for i in range(10_000)}
    tensors = open_checkpoint(saved(state)).tensors
    assert [t.key for t in tensors] == list(state)


# ------------------------------------------------------------------------------------------------------ other formats


def test_what_is_no_torch_file_is_not_recognised(tmp_path):
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as z:
        z.writestr("x", "1")
    for name, data in {
        "bare.pt": pickle.dumps({"w": [1.0, 2.0]}),
        "empty.pt": b"",
        "text.pt": b"hello",
        "zeros.pt": bytes(100),
        "zip.pt": other.getvalue(),
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert not PyTorch().recognises(RegularFile(path))
        with pytest.raises(UnknownFormatError):
            open_checkpoint(path)


def test_the_tar_of_the_first_releases_is_refused_by_name(tmp_path):
    head = bytearray(1024)
    head[:8] = b"sys_info"
    head[257:262] = b"ustar"
    path = tmp_path / "old.pt"
    path.write_bytes(head)
    with pytest.raises(CheckpointError, match="tar checkpoint of PyTorch"):
        open_checkpoint(path)


def test_early_torch_export_and_torch_package_are_refused_by_name(tmp_path):
    exported = tmp_path / "model.pt2"
    with zipfile.ZipFile(exported, "w") as archive:
        for name in ("version", "serialized_exported_program.json", "serialized_state_dict.pt"):
            archive.writestr(name, b"1")
    with pytest.raises(CheckpointError, match=r"torch\.export archive of PyTorch before 2\.8"):
        open_checkpoint(exported)
    packaged = tmp_path / "package.pt"
    with torch.package.PackageExporter(packaged) as exporter:
        exporter.save_pickle("model", "model.pkl", {"a": 1})
    with pytest.raises(CheckpointError, match=r"torch\.package"):
        open_checkpoint(packaged)
