"""PyTorch's checkpoint files: what is read, what is refused, what is written."""

import io
import os
import pickle
import re
import struct
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from focal_twins.files.pth import PthError, StoredTensor, Unknown, load, save, state_dicts
from tests.reference import FOLDER

FIXTURES = FOLDER / "pth"
LEGACY = FIXTURES / "focalv2_nano_112_legacy_format.pth"
TRAINING = FIXTURES / "focalv2_nano_112_training_checkpoint_cut.pth"
MARKER = "UNSAFE_PICKLE_WAS_EXECUTED"
SHELL = f"touch {MARKER}"


def texts(value) -> str:
    """Names a case by what it expects, not by bytes of a pickle."""
    return value if isinstance(value, str) else ""


class Opcodes(bytes):
    """Part of a pickle."""


def opcodes(value) -> bytes:
    """A value as protocol 2 opcodes, with parts that are already."""
    match value:
        case Opcodes():
            return value
        case str():
            return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(opcodes, value)) + b"t"
        case dict():
            return b"}(" + b"".join(opcodes(k) + opcodes(v) for k, v in value.items()) + b"u"
        case _:
            return pickle.dumps(value, 2)[2:-1]


def name(text: str) -> Opcodes:
    """A global by its dotted name."""
    return Opcodes(b"c" + "\n".join(text.rsplit(".", 1)).encode() + b"\n")


def call(function: str, *arguments) -> Opcodes:
    return Opcodes(name(function) + opcodes(arguments) + b"R")


def storage(key="0", numel=6, kind="torch.FloatStorage", *view) -> Opcodes:
    return Opcodes(opcodes(("storage", name(kind), key, "cpu", numel, *view)) + b"Q")


def tensor(stored=None, offset=0, shape=(2, 3), strides=(3, 1)) -> Opcodes:
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", stored or storage(), offset, shape, strides, False, hooks)


def write(path, content, order="little", compression=zipfile.ZIP_STORED):
    """A zip checkpoint of a whole pickle, or of a value; its one storage holds 0, 1, ... 5."""
    pickled = content if type(content) is bytes else b"\x80\2" + opcodes(content) + b"."
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("any/data.pkl", pickled)
        archive.writestr("any/byteorder", order)
        archive.writestr("any/data/0", np.arange(6, dtype="<f4").tobytes())
    return path


def refusal(path) -> str:
    """The one line that says why a file is not read."""
    with pytest.raises(PthError) as error:
        state_dicts(path)
    text = str(error.value)
    assert text.startswith(f"checkpoint {path}: ")
    assert text.isprintable()
    return text.removeprefix(f"checkpoint {path}: ")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    """Code that a file smuggles in would leave its mark here."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / MARKER).exists()


def test_layouts_and_prefixes_hold_the_same_weights():
    weights, averaged = state_dicts(LEGACY)
    assert len(weights) == 124
    assert averaged == {}
    assert weights["patch_embed.proj.weight"].dtype == np.float32
    assert weights["layers.0.blocks.0.attn.topk_cloest_indice_0"].dtype == np.int64
    half = load(FIXTURES / "focalv2_nano_112_half.pth")
    assert half["model"]["head.bias"].dtype == "float16"
    widened, _ = state_dicts(FIXTURES / "focalv2_nano_112_half.pth")
    assert list(widened) == list(weights)
    for key, array in weights.items():
        expected = array.astype(np.float16).astype(np.float32) if array.dtype == np.float32 else array
        np.testing.assert_array_equal(widened[key], expected, strict=True)
    for file in (TRAINING, FIXTURES / "focalv2_nano_112_module_prefix_cut.pth"):
        cut, averaged = state_dicts(file)
        assert len(cut) == 6
        assert averaged == {}
        for key, array in cut.items():
            np.testing.assert_array_equal(array, weights[key], strict=True)
    weights, _ = state_dicts(FIXTURES / "focal_nano_112_bare_state_dict.pth")
    assert len(weights) == 92


def test_a_training_checkpoint_is_read_around_its_objects():
    content = load(TRAINING)
    assert list(content) == ["model", "optimizer", "lr_scheduler", "max_accuracy", "epoch", "config"]
    assert content["epoch"] == 299
    assert content["max_accuracy"] == 83.6
    assert isinstance(content["config"], Unknown)
    assert content["config"].name == "yacs.config.CfgNode"
    moment = next(iter(content["optimizer"]["state"].values()))["exp_avg"]
    assert isinstance(moment, StoredTensor)
    assert moment.numpy().shape == moment.shape


def test_only_what_is_asked_for_is_read(tmp_path):
    """Bytes of the optimizer may be damaged; those of the weights are checked."""
    content = load(TRAINING)
    moment = next(iter(content["optimizer"]["state"].values()))["exp_avg"].name
    for record, damaged in ((moment, False), (content["model"]["head.weight"].name, True)):
        data = bytearray(TRAINING.read_bytes())
        with zipfile.ZipFile(TRAINING) as archive, archive.open(record) as file:
            data[data.index(file.read(), archive.getinfo(record).header_offset)] ^= 1
        path = tmp_path / "flipped.pth"
        path.write_bytes(data)
        if damaged:
            assert f"checksum of {record}" in refusal(path)
        else:
            assert len(state_dicts(path)[0]) == 6


def test_views_and_types():
    """A file by torch.save of views of arange(24) as [2, 3, 4], and of conversions."""
    base = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    bits = (base / np.float32(7)).view(np.uint32).astype(np.int64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)  # half to even
    expected = {
        "transposed": base.transpose(2, 0, 1), "sliced": base[:, 1:, ::2], "row": base[1, 2], "base": base,
        "bfloat16": rounded, "bfloat16_transposed": rounded[0].T, "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float32), "expanded": np.array([[1, 2]] * 3, np.float32), "parameter": base[0],
        "float64": base[0].astype(np.float64) / 3, "int64": base[0].astype(np.int64), "uint8": base[0].astype(np.uint8),
        "bool": base[0] > 5, "uint16": base[0].astype(np.uint16),
    }  # fmt: skip
    content = load(FIXTURES / "views_and_types.pth")
    assert list(content) == list(expected)
    for key, array in expected.items():
        found = content[key].numpy()
        np.testing.assert_array_equal(found, array, err_msg=key, strict=True)
        assert content[key].shape == array.shape
        assert found.flags.c_contiguous
        assert found.flags.writeable
    assert content["bfloat16"].dtype == "bfloat16"
    assert state_dicts(FIXTURES / "views_and_types.pth")[0]["float64"].dtype == np.float32


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "int64", "bool", "uint8"])
def test_what_is_saved_is_read_back_bit_for_bit(tmp_path, dtype):
    values = np.random.default_rng(0).standard_normal((3, 4, 5)) * 100
    arrays = {
        "weight": values.astype(dtype), "transposed": values.astype(dtype).T, "scalar": values[0, 0, 0].astype(dtype),
        "empty": np.zeros((0, 3), dtype), "none": np.zeros(0, dtype), "naïve": values[0].astype(dtype),
        "big": values.astype(np.dtype(dtype).newbyteorder(">")),
    }  # fmt: skip
    path = tmp_path / "folder" / "x.pth"
    save(path, arrays)
    content = load(path)
    assert list(content) == ["model"]
    assert list(content["model"]) == list(arrays)
    for key, stored in content["model"].items():
        np.testing.assert_array_equal(stored.numpy(), arrays[key], strict=key != "big")
        assert stored.numpy().dtype == dtype
    assert [p.name for p in path.parent.iterdir()] == ["x.pth"]


def test_the_written_archive_has_the_records_of_torch_save(tmp_path):
    save(tmp_path / "x.pth", {"a": np.ones(2, np.float32), "b": np.zeros(3, np.int64)})
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        names = [f"archive/{record}" for record in ("data.pkl", "byteorder", "data/0", "data/1", "version")]
        assert archive.namelist() == names
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read("archive/byteorder") == b"little"
        assert archive.read("archive/version") == b"3\n"
        assert archive.read("archive/data/0") == np.ones(2, "<f4").tobytes()


def test_a_save_that_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "x.pth"
    save(path, {"a": np.ones(2, np.float32)})
    before = path.read_bytes()
    with pytest.raises(PthError, match="b: an array of <U1 cannot be written"):
        save(path, {"b": np.array(["x"])})
    assert path.read_bytes() == before
    with pytest.raises(PthError, match="cannot be written"):
        save(path / "below a file.pth", {"a": np.ones(2, np.float32)})


W = {"a.weight": tensor(), "a.bias": tensor()}
MODULE = Opcodes(name("models.ViT") + b")\x81}b")
OPTIMIZER = {"state": {0: {"exp_avg": tensor()}}, "param_groups": ()}


@pytest.mark.parametrize(
    ("content", "averaged"),
    [
        (W, False),
        (W | {"a._extra_state": {"version": 1}}, False),
        *[({key: W, "optimizer": OPTIMIZER}, False)
          for key in ("model", "state_dict", "model_state_dict", "module", "net")],
        *[({"model": W, key: W, "rng": tensor()}, True)
          for key in ("ema", "model_ema", "state_dict_ema", "ema_state_dict", "ema_model")],
        ({"state_dict": {"model": W}, "ema": {"decay": 0.9, "state_dict": W}}, True),
        ({"model_ema": W, "optimizer": OPTIMIZER, "rng": tensor()}, False),
        ({"module._orig_mod.module." + key: value for key, value in W.items()}, False),
        ({"model": W, "model_ema": {"n_averaged": tensor()} | {f"module.{k}": v for k, v in W.items()}}, True),
        ({"model": W, "ema": None, 3: "three"}, False),
    ],
)  # fmt: skip
def test_weights_are_found_by_their_usual_keys(tmp_path, content, averaged):
    raw, average = state_dicts(write(tmp_path / "x.pth", content))
    assert list(raw) == ["a.weight", "a.bias"]
    assert list(average) == (["a.weight", "a.bias"] if averaged else [])
    np.testing.assert_array_equal(raw["a.bias"], np.arange(6, dtype=np.float32).reshape(2, 3), strict=True)


def test_a_prefix_stays_where_only_some_names_have_it(tmp_path):
    raw, _ = state_dicts(write(tmp_path / "x.pth", {"module.a": tensor(), "modules.b": tensor()}))
    assert list(raw) == ["module.a", "modules.b"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"optimizer": OPTIMIZER, "epoch": 3, "rng": tensor()}, "found the keys 'optimizer', 'epoch', 'rng'"),
        (OPTIMIZER, "found the keys 'state', 'param_groups'"),
        ({"model": MODULE, "epoch": 3}, "found the keys 'model' (a models.ViT), 'epoch'"),
        (MODULE, "it is a models.ViT"),
        ({}, "found the keys none"),
    ],
    ids=texts,
)
def test_a_file_without_weights_says_what_it_holds(tmp_path, content, found):
    assert refusal(write(tmp_path / "x.pth", content)).startswith(f"no weights in it; {found}; save")


def test_objects_of_unknown_classes_are_left_out(tmp_path):
    """As protocols 2 to 5 make them; with items, attributes and as keys."""
    kind = name("some.Config")
    made = Opcodes(kind + b")\x81" + b"(" + opcodes("k") + opcodes("v") + b"u" + b"(K\1K\2e" + opcodes({"a": 1}) + b"b")
    content = {
        "model": W, "kind": kind, "new": made, "new_ex": Opcodes(kind + b")}\x92"), made: "as key",
        "size": call("torch.Size", (2, 3)), "counts": call("collections.defaultdict", name("builtins.list")),
        "pairs": Opcodes(name("collections.OrderedDict") + b"(((" + opcodes("k") + b"K\1lltR"),
        "set": Opcodes(b"\x8f(K\1K\2\x90"), "frozenset": Opcodes(b"(K\1\x91"),
        "object": call("copyreg._reconstructor", kind, name("builtins.object"), None),
        "text": np.float64(3), "array": np.arange(3), "dtype": np.dtype("float32"), "ordered": OrderedDict(a=1),
    }  # fmt: skip
    content = load(write(tmp_path / "x.pth", content))
    assert [type(content[key]) for key in ("new", "new_ex", "object", "text", "array", "dtype")] == [Unknown] * 6
    assert content["new"].name == content["new_ex"].name == content["kind"].name == "some.Config"
    plain = {key: content[key] for key in ("size", "counts", "pairs", "set", "frozenset", "ordered")}
    assert plain == {
        "size": (2, 3), "counts": {}, "pairs": {"k": 1}, "set": [1, 2], "frozenset": [1], "ordered": {"a": 1},
    }  # fmt: skip
    assert "as key" in content.values()


class Runs:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_the_hostile_fixture_is_refused():
    text = refusal(FIXTURES / "hostile_pickle.pth")
    assert text.startswith(f"refused: it wants to run posix.system('{SHELL}'); if you trust its source")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (Runs(os.system, SHELL), rf"(posix|nt)\.system\('{SHELL}'\)"),
        (Runs(eval, f"__import__('os').system('{SHELL}')"), r"(builtins|__builtin__)\.eval\(\"__import__\('os'\)"),
        (
            Runs(getattr, Unknown, "name"),
            r"(builtins|__builtin__)\.getattr\(focal_twins\.files\.pth\.Unknown, 'name'\)",
        ),
        (Runs(pickle.loads, pickle.dumps(Runs(os.system, SHELL))), r"_?pickle\.loads\("),
    ],
    ids=["system", "eval", "getattr", "pickle"],
)
def test_calls_are_refused_in_every_protocol(tmp_path, attack, named, protocol):
    content = pickle.dumps({"model": {"a": [attack]}}, protocol)
    assert re.match(f"refused: it wants to run {named}", refusal(write(tmp_path / "x.pth", content)))


TOUCH = opcodes(SHELL)
CHAIN = call("builtins.getattr", name("os.path"), "os")


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (b"\x80\2(" + TOUCH + b"ios\nsystem\n.", f"it wants to run os.system('{SHELL}')"),
        (b"\x80\2(" + name("os.system") + TOUCH + b"o.", f"it wants to run os.system('{SHELL}')"),
        (b"(S'" + SHELL.encode() + b"'\nios\nsystem\n.", f"it wants to run os.system('{SHELL}')"),
        (b"\x80\4\x8c\2os\x8c\x0epath.os.system\x93" + TOUCH + b"\x85R.", "it wants to run os.path.os.system("),
        (b"\x80\2" + CHAIN + TOUCH + b"\x85R.", "it wants to run builtins.getattr(os.path, 'os')"),
        (b"\x80\2" + name("os.system") + b")\x81" + TOUCH + b"\x85R.", "it wants to run os.system("),  # an instance
        (b"\x80\2" + name("os.system") + TOUCH + b"R.", "it wants to run os.system("),  # arguments that are no tuple
        (b"\x80\2" + opcodes("builtins.set") + b")R.", "it wants to run 'builtins.set'()"),
        (b"\x80\2" + name("torch._utils._rebuild_tensor_v2") + b")R.", "it wants to run torch._utils._rebuild"),
        (b"\x80\2]" + opcodes({"__class__": 1}) + b"b.", "list out of place"),  # BUILD on a list
        (b"\x80\2" + opcodes("no class") + b")\x81.", "str out of place"),
        (b"\x80\2\x82\1.", "its pickle uses EXT1"),
        (b"\x80\5\x97.", "its pickle uses NEXT_BUFFER"),
        (b"Pstorage\n.", "its pickle uses PERSID"),
    ],
    ids=texts,
)
def test_other_ways_to_a_call_are_refused(tmp_path, attack, named):
    assert named in refusal(write(tmp_path / "x.pth", bytes(attack)))


def test_state_that_would_become_a_method_is_dropped(tmp_path):
    """Python's unpickler would take os.system from the first state and call it with the second."""
    for target in (name("some.Class"), name("some.Class") + b")\x81", call("collections.OrderedDict")):
        attack = Opcodes(target + opcodes({"__setstate__": name("os.system")}) + b"b" + TOUCH + b"b")
        content = load(write(tmp_path / "x.pth", {"a": attack}))
        assert isinstance(content["a"], Unknown | dict)
        assert not hasattr(content["a"], "__setstate__")


def test_a_refusal_is_one_short_line(tmp_path):
    nested = [1]
    for _ in range(100):
        nested = [nested, nested]  # its repr would fill the memory
    attack = call("os.system\r", "a\nb\x1b[2J" * 100, Opcodes(pickle.dumps(nested, 2)[2:-1]), 10**5000, b"\0")
    text = refusal(write(tmp_path / "x.pth", attack))
    assert text.startswith("refused: it wants to run os.system?('a\\nb\\x1b[2J")
    assert len(text) < 320


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (tensor(offset=1), "reaches beyond the end of its storage"),
        (tensor(strides=(4, 1)), "reaches beyond the end of its storage"),
        (tensor(shape=(2**61, 3)), "reaches beyond the end of its storage"),
        (tensor(shape=(2**40,), strides=(0,)), "claims far more data"),
        (tensor(shape=(0, 2**60)), "claims far more data"),
        (tuple(tensor(shape=(60000,), strides=(0,)) for _ in range(9)), "claims far more data"),
        (tensor(strides=(-3, 1)), "impossible"),
        (tensor(offset=-1), "impossible"),
        (tensor(offset="0"), "impossible"),
        (tensor(shape=(2.0, 3)), "impossible"),
        (tensor(shape=(6,)), "1 sizes and 2 strides"),
        (tensor(shape=(1,) * 33, strides=(1,) * 33), "33 sizes"),
        (tensor(stored="storage"), "str out of place"),
        (tensor(storage(numel=2**40)), "any/data/0 has 24 bytes for 4398046511104"),
        (tensor(storage(numel=10**6000)), "damaged"),
        (tensor(storage(numel=-1)), "beyond the end"),
        (tensor(storage("1")), "damaged or cut short (KeyError: 'any/data/1')"),
        (tensor(storage("../../../etc/passwd")), "damaged or cut short (KeyError"),
        ((tensor(), tensor(storage(kind="torch.HalfStorage"))), "described in two ways"),
        (tensor(storage("0", 6, "torch.FloatStorage", ("1", 2, 3))), "unknown persistent id"),
        (tensor(storage(kind="torch.QInt8Storage")), "tensors in a torch.QInt8Storage cannot be read"),
        (Opcodes(opcodes(("storage",)) + b"Q"), "unknown persistent id"),
        (Opcodes(b"K\1Q"), "int out of place"),
        (Opcodes(b")Q"), "unknown persistent id"),
    ],
    ids=texts,
)
def test_tensors_that_are_none_are_refused(tmp_path, content, problem):
    assert problem in refusal(write(tmp_path / "x.pth", {"model": {"a": content}}))


@pytest.mark.parametrize(
    "content",
    [
        b")K\1" + b"2\x86" * 60,  # would be hashed 2**60 times
        b")" + b"\x85" * 10**5,  # would overflow the stack
        b"]",
        b"}",
        opcodes(2**61 - 1),  # hashes as 0
    ],
    ids=["wide", "deep", "list", "dictionary", "large"],
)
def test_keys_that_are_none_are_refused(tmp_path, content):
    assert "damaged" in refusal(write(tmp_path / "x.pth", b"\x80\2}" + content + b"K\1s."))


def test_deep_and_endless_content_is_no_trouble(tmp_path):
    deep = write(tmp_path / "deep.pth", b"\x80\2" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".")
    assert "no weights" in refusal(deep)
    endless = write(tmp_path / "endless.pth", b"\x80\2}q\0" + opcodes("model") + b"h\0s.")
    assert "no weights" in refusal(endless)


@pytest.mark.parametrize("broken", [b"", b".", b"h\7.", b"t.", b"R.", b"X\xff\xff\xff\x7f.", b"\xff."])
def test_broken_pickles_are_damage(tmp_path, broken):
    assert refusal(write(tmp_path / "x.pth", b"\x80\2" + broken)).startswith("damaged or cut short (")


def test_archives_that_pytorch_does_not_write_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    assert "is compressed" in refusal(write(path, W, compression=zipfile.ZIP_DEFLATED))
    assert "big-endian machine" in refusal(write(path, W, order="big"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any/data.pkl", b"\x80\2" + opcodes(W) + b".")
        archive.writestr("any/data/0", bytes(2**20), zipfile.ZIP_DEFLATED)
    assert "any/data/0 is compressed" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.txt", "")
    assert "has no data.pkl" in refusal(path)


def write_legacy(path, content, keys=("0",), numel=6, little=True):
    """A checkpoint in the layout before PyTorch 1.6."""
    header = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": little})]
    pickled = b"\x80\2" + opcodes(content) + b"." + b"\x80\2](" + b"".join(map(opcodes, keys)) + b"e."
    path.write_bytes(b"".join(header) + pickled + struct.pack("<q", numel) + np.arange(6, dtype="<f4").tobytes())
    return path


def test_legacy_files_are_checked_alike(tmp_path):
    path = tmp_path / "x.pth"
    content = {"model": {"a": tensor(storage("0", 6, "torch.cuda.FloatStorage", None))}}
    np.testing.assert_array_equal(state_dicts(write_legacy(path, content))[0]["a"].ravel(), np.arange(6))
    assert "storages are missing" in refusal(write_legacy(path, content, keys=()))
    assert "damaged" in refusal(write_legacy(path, content, keys=("0", "1")))
    assert "damaged" in refusal(write_legacy(path, content, keys=(Opcodes(b")" + b"2\x86" * 60),)))
    assert "has 7 elements" in refusal(write_legacy(path, content, numel=7))
    assert "big-endian machine" in refusal(write_legacy(path, content, little=False))
    assert "it wants to run os.system(" in refusal(write_legacy(path, {"a": call("os.system", SHELL)}))
    whole = Opcodes(opcodes(("module", name("models.ViT"), "models.py", "import os")) + b"Q)\x81")
    assert "it is a models.ViT" in refusal(write_legacy(path, whole, keys=()))


@pytest.mark.parametrize("file", ["focalv2_nano_112_half.pth", LEGACY.name])
def test_cut_files_are_one_line(tmp_path, file):
    data = (FIXTURES / file).read_bytes()
    for length in (5, 100, 5000, len(data) // 2, len(data) - 1):
        path = tmp_path / f"{length}.pth"
        path.write_bytes(data[:length])
        assert refusal(path).startswith("damaged or cut short (")
    assert refusal(FIXTURES / "truncated.pth").endswith("download or copy it again")


def test_other_files_are_one_line(tmp_path):
    path = tmp_path / "x.pth"
    assert refusal(path) == "no such file"
    assert refusal(tmp_path) == "no such file"
    for data, problem in (
        (b"", "an empty file; download or copy it again"),
        (b"<!DOCTYPE html>\n<html>", "not a PyTorch checkpoint (it begins with b'<!DOCTYPE html>"),
        (pickle.dumps({"a": 1}), "a pickle, but not a PyTorch checkpoint"),
    ):
        path.write_bytes(data)
        assert problem in refusal(path)
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())
    assert refusal(path).startswith("the tar format of PyTorch before 0.2; load it with PyTorch")
