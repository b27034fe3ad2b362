"""Reads and writes PyTorch's checkpoint files without PyTorch and without running any code that a file asks for.

Files have one of two layouts (torch/serialization.py): the zip archive of PyTorch 1.6 and later, where
<prefix>/data.pkl describes the content and the tensors are views of the storages <prefix>/data/<key>; and the legacy
one, five pickles in a row (magic number, protocol, system, content, storage keys), then each storage after its number
of elements.

Python's unpickler does not see the pickles. Data alone can stop even one that may import nothing: with nested tuples
for a dictionary key, 130 bytes of file keep it hashing for years, and other files overflow its stack. Here the opcodes
that pickletools decodes move data between containers and do nothing else, at a cost that grows with the file.
"""

import io
import math
import mmap
import os
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from focal_twins.errors import UserError
from focal_twins.files.atomic import replacing

MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of the legacy layout

STORAGES = {  # PyTorch's storage class -> element type
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "UntypedStorage": "uint8",  # the last holds types that came later
}  # fmt: skip
NUMPY_TYPES = {name: np.dtype(name) for name in {*STORAGES.values(), "uint16", "uint32", "uint64"} - {"bfloat16"}}
NUMPY_TYPES["bfloat16"] = np.dtype("uint16")  # as stored: the upper half of a float32
MAX_DIMENSIONS = 32  # NumPy 1's

# Calls that describe plain data and are common in checkpoints. They are accepted, and their results left out.
HARMLESS = frozenset(
    [f"{module}.{name}" for module in ("builtins", "__builtin__")
     for name in ("set", "frozenset", "complex", "bytearray", "slice", "range", "xrange")]
    + [f"{module}.{name}" for module in ("pathlib", "pathlib._local")
       for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")]
    + [f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")]
    + [f"numpy.{core}.{name}" for core in ("core", "_core")
       for name in ("multiarray.scalar", "multiarray._reconstruct", "numeric._frombuffer")]
    + ["numpy.dtype", "_codecs.encode", "torch.device", "collections.Counter", "collections.deque"]
    + ["copyreg._reconstructor", "copy_reg._reconstructor"]  # make an object, as NEWOBJ does
)  # fmt: skip

# Opcodes that push the value they carry.
PUSHES = frozenset([
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
])  # fmt: skip
OPERANDS = {
    "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2, "STACK_GLOBAL": 2, "REDUCE": 2, "NEWOBJ": 2,
    "NEWOBJ_EX": 3, "BUILD": 1, "BINPERSID": 1, "POP": 1,
}  # fmt: skip
MARKED = frozenset(["TUPLE", "LIST", "FROZENSET", "DICT", "APPENDS", "ADDITEMS", "SETITEMS", "OBJ", "INST", "POP_MARK"])
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}

# Errors that decoding and rebuilding raise on bytes that are no checkpoint.
DAMAGE = (
    LookupError, TypeError, ValueError, ArithmeticError, AssertionError, MemoryError, NotImplementedError,
    struct.error, zipfile.BadZipFile,
)  # fmt: skip
RETRY = "download or copy it again"

WEIGHTS_KEYS = ("model", "state_dict", "model_state_dict", "module", "net")
AVERAGE_KEYS = ("ema", "model_ema", "state_dict_ema", "ema_state_dict", "ema_model")
WRAPPERS = re.compile(r"((module|_orig_mod)\.)*")  # prefixes that DataParallel and torch.compile add


class PthError(UserError):
    """Says that a checkpoint cannot be read, wants to run code, or cannot be written."""

    def __init__(self, path: Path, problem: str):
        # The problem may quote the file, whose characters must neither break the line nor control the terminal.
        super().__init__(f"checkpoint {path}: " + "".join(c if c.isprintable() else "?" for c in problem))


class Unknown:
    """Stands for an object that this module does not rebuild. It keeps the class's name and drops the state."""

    def __init__(self, name: str):
        self.name = name

    def __repr__(self):
        return f"<{self.name}>"


class _Global(Unknown):
    """Names a class or a function, which is not imported."""


@dataclass(eq=False)
class _Storage:
    """Finds and checks a flat little-endian array in the file."""

    path: Path
    name: str
    dtype: str
    nbytes: int
    data: memoryview | None = None  # a window onto the mapped file, once the storage is found
    crc: int = 0  # 0: the file has no checksum for it

    def bytes(self) -> memoryview:
        assert self.data is not None  # loading finds all storages before any is read
        if self.crc and zlib.crc32(self.data) != self.crc:
            raise PthError(self.path, f"damaged (checksum of {self.name}); {RETRY}")
        self.crc = 0  # one check is enough
        return self.data


@dataclass(eq=False)
class StoredTensor:
    """Describes a tensor that is still in its file: a view of a storage, with strides and offset in elements."""

    dtype: str  # PyTorch's name
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    storage: _Storage

    @property
    def name(self) -> str:
        """The name of the tensor's storage in the file."""
        return self.storage.name

    def numpy(self) -> np.ndarray:
        """Read the values into a new array [*shape]; bfloat16 comes as float32.

        Raises:
            PthError: the storage does not match its checksum.
        """
        dtype = NUMPY_TYPES[self.dtype]
        strides = [stride * dtype.itemsize for stride in self.strides]
        view: np.ndarray = np.ndarray(
            self.shape, dtype.newbyteorder("<"), self.storage.bytes(), self.offset * dtype.itemsize, strides
        )
        if self.dtype == "bfloat16":
            return np.asarray(np.left_shift(view, 16, dtype=np.uint32, order="C")).view(np.float32)
        return view.astype(dtype, order="C")


def load(path: str | Path) -> Any:
    """Load a checkpoint's content: dictionaries, lists (also for sets), tuples, numbers, texts, and StoredTensors.

    A tensor's values are read when its `numpy` is called; the file must stay as it is until then. Objects of other
    kinds are Unknown.

    Raises:
        PthError: no such file, a damaged one, another format, or one that wants to run code.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise PthError(path, "no such file")
        with path.open("rb") as file:
            if not file.seek(0, os.SEEK_END):
                raise PthError(path, f"an empty file; {RETRY}")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise PthError(path, f"cannot be read ({error.strerror})") from error
    try:
        if data[:4] == b"PK\3\4":
            return _load_zip(_Reader(path, data))
        if data[:1] == b"\x80":
            return _load_legacy(_Reader(path, data))
    except DAMAGE as error:
        problem = f"{type(error).__name__}: {str(error)[:80]}"
        raise PthError(path, f"damaged or cut short ({problem}); {RETRY}") from error
    if data[257:262] == b"ustar":
        raise PthError(path, "the tar format of PyTorch before 0.2; load it with PyTorch and save its weights again")
    raise PthError(path, f"not a PyTorch checkpoint (it begins with {data[:16]!r}); {RETRY}")


def state_dicts(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Load the raw and the averaged weights of a checkpoint by name: floating point as float32, integers as they are.

    The file is a bare state dict, or has one under a usual key (WEIGHTS_KEYS, AVERAGE_KEYS). Names come without the
    prefixes of wrappers. Averaged weights without raw ones are returned as the raw ones.

    Raises:
        PthError: as `load`, or the file has no weights.
    """
    content = load(path)
    top = content if isinstance(content, dict) else {}
    average = next(filter(None, (_tensors(top.get(key)) for key in AVERAGE_KEYS)), {})
    # A tensor beside dictionaries, at the top of a training checkpoint, is a random state or the like.
    is_bare = not any(isinstance(value, dict | list) for key, value in top.items() if not _is_extra_state(key))
    raw = _tensors(top if is_bare else {key: top.get(key) for key in WEIGHTS_KEYS})
    if not raw and not average:
        if isinstance(content, dict):  # a pickled module is named by its class
            keys = [f"{_brief(k)} (a {v.name})" if isinstance(v, Unknown) else _brief(k) for k, v in top.items()]
            summary = f"found the keys {', '.join(keys[:10]) or 'none'}"
        else:
            summary = f"it is a {_brief(content)}"
        raise PthError(Path(path), f"no weights in it; {summary}; save them with torch.save(model.state_dict(), ...)")
    return _arrays(raw or average), _arrays(average if raw else {})


def save(path: str | Path, tensors: dict[str, np.ndarray]) -> None:
    """Write {"model": tensors by name} as a zip checkpoint, atomically; torch.load(weights_only=True) reads it.

    Raises:
        PthError: a type of array that PyTorch lacks, no room or no permission; an earlier file is untouched.
    """
    path = Path(path)
    storage_classes = {dtype: name for name, dtype in STORAGES.items() if name != "UntypedStorage"}
    opcodes = []
    for key, (name, array) in enumerate(tensors.items()):
        if array.dtype.name not in storage_classes:
            raise PthError(path, f"{name}: an array of {array.dtype} cannot be written; convert it to float32")
        opcodes.append(_text_opcode(name) + _tensor_opcodes(str(key), storage_classes[array.dtype.name], array.shape))
    model = EMPTY_ORDERED_DICT + pickle.MARK + b"".join(opcodes) + pickle.SETITEMS
    content = pickle.PROTO + b"\2" + pickle.EMPTY_DICT + _text_opcode("model") + model + pickle.SETITEM + pickle.STOP
    try:
        with (
            replacing(path) as temporary,
            zipfile.ZipFile(temporary, "w") as archive,
        ):  # entries made from ZipInfo are stored without compression, and all have one date
            archive.writestr(zipfile.ZipInfo("archive/data.pkl"), content)
            archive.writestr(zipfile.ZipInfo("archive/byteorder"), "little")
            for key, array in enumerate(tensors.values()):
                little = array.astype(array.dtype.newbyteorder("<"), copy=False)
                archive.writestr(zipfile.ZipInfo(f"archive/data/{key}"), little.tobytes())
            archive.writestr(zipfile.ZipInfo("archive/version"), "3\n")
    except OSError as error:
        raise PthError(path, f"cannot be written ({error.strerror})") from error


class _Reader:
    """Rebuilds the data that the pickles of one mapped file describe."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data = path, data
        self.file = cast(IO[bytes], data)  # a mapped file can be read and sought like an open one
        self.storages: dict[str, _Storage] = {}  # by key; their data is looked up when all are known
        self.allowance = 16 * len(data) + 2**20  # more than the file, because tied weights count each time

    def spend(self, amount: int) -> None:
        """Count an amount of data against the allowance, so that a file cannot ask for the same bytes without end."""
        self.allowance -= amount
        if self.allowance < 0:
            raise PthError(self.path, "refused: it claims far more data than the file holds")

    def window(self, start: int, nbytes: int) -> memoryview:
        view = memoryview(self.data)[start : start + nbytes]
        if len(view) != nbytes:
            raise ValueError(f"{nbytes} bytes at {start} reach beyond the end")
        return view

    def read(self, file: IO[bytes]) -> Any:
        """Return the value of the pickle at the file's position, which moves behind it."""
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(file):
            self.step(opcode.name, argument)
        return self.stack.pop()

    def step(self, opcode: str, argument: Any) -> None:
        """Carry out one opcode (pickletools describes them)."""
        stack, items = self.stack, self.operands(opcode)
        match opcode:
            case _ if opcode in PUSHES:
                stack.append(argument)
            case _ if opcode in CONSTANTS:
                stack.append(CONSTANTS[opcode])
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[_checked_key(argument)] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[argument])
            case "DUP":
                stack.append(stack[-1])
            case "MARK":
                self.marks.append(len(stack))
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(items))
            case "EMPTY_LIST" | "LIST" | "EMPTY_SET" | "FROZENSET":
                stack.append(items)
            case "EMPTY_DICT" | "DICT":
                stack.append({})
                self.set_items(items)
            case "SETITEM" | "SETITEMS":
                self.set_items(items)
            case "APPEND" | "APPENDS" | "ADDITEMS":
                if isinstance(_expect(stack[-1], list | Unknown), list):
                    stack[-1].extend(items)
            case "GLOBAL":
                stack.append(_Global(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                self.spend(sum(len(_expect(part, str)) for part in items))
                stack.append(_Global(".".join(items)))
            case "NEWOBJ" | "NEWOBJ_EX":
                stack.append(Unknown(_expect(items[0], _Global).name))
            case "BUILD":  # attributes; of an OrderedDict too (a state dict's versions)
                _expect(stack[-1], dict | Unknown | StoredTensor)
            case "REDUCE":
                stack.append(self.call(*items))
            case "OBJ":
                stack.append(self.call(items[0], tuple(items[1:])))
            case "INST":
                stack.append(self.call(_Global(argument.replace(" ", ".")), tuple(items)))
            case "BINPERSID":
                stack.append(self.storage(*items))
            case "POP" | "POP_MARK" | "PROTO" | "FRAME" | "STOP":
                pass
            case _:  # the extension registry, buffers outside the file, persistent ids as text
                raise PthError(self.path, f"refused: its pickle uses {opcode}, which PyTorch does not write")

    def operands(self, opcode: str) -> list:
        """Take the operands of an opcode from the stack: a number of values, or those above the last mark."""
        start = self.marks.pop() if opcode in MARKED else len(self.stack) - OPERANDS.get(opcode, 0)
        if start < 0:
            raise IndexError("empty stack")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def set_items(self, items: list) -> None:
        """Set keys and values, which `items` lists in turn, in the dictionary on top of the stack."""
        target = _expect(self.stack[-1], dict | Unknown)
        if isinstance(target, dict):
            target.update((_checked_key(key), value) for key, value in zip(items[::2], items[1::2], strict=True))

    def call(self, function: Any, arguments: Any) -> Any:
        """Return the value of a call in the file, if it is one that rebuilds data; nothing is ever called."""
        name = function.name if isinstance(function, _Global) else _brief(function)
        arguments = arguments if isinstance(arguments, tuple) else (arguments,)
        match name, len(arguments):
            case "torch._utils._rebuild_tensor", 4:
                return self.tensor(*arguments)
            # The other arguments are requires_grad, hooks and metadata (of tensors that reading negates or conjugates,
            # which are not supported).
            case "torch._utils._rebuild_tensor_v2", 6 | 7 if not any(arguments[6:]):
                return self.tensor(*arguments[:4])
            case "torch._utils._rebuild_tensor_v3", 7 | 8 if not any(arguments[7:]):
                dtype = _expect(arguments[6], _Global).name.removeprefix("torch.")
                storage, offset, shape, strides = arguments[:4]
                return self.tensor(storage, offset, shape, strides, dtype)
            case "torch._utils._rebuild_parameter", 3:
                return _expect(arguments[0], StoredTensor)
            case "torch._utils._rebuild_parameter_with_state", 4:
                return _expect(arguments[0], StoredTensor)
            case "torch.Size", 1:
                return _expect(arguments[0], tuple)
            case "collections.OrderedDict", 1:  # Python 2's, with its items
                self.spend(len(_expect(arguments[0], list)))
                return {_checked_key(key): value for key, value in arguments[0]}
            case ("collections.OrderedDict", 0) | ("collections.defaultdict", 0 | 1):
                return {}
        if name in HARMLESS:
            return Unknown(name)
        preview = ", ".join(map(_brief, arguments[:8]))
        preview = preview if len(preview) <= 80 else f"{preview[:77]}..."
        raise PthError(
            self.path,
            f"refused: it wants to run {name[:80]}({preview}); if you trust its source, load it with PyTorch and "
            're-save its weights alone with torch.save(checkpoint["model"], ...)',
        )

    def storage(self, identity: Any) -> _Storage | _Global:
        """Return the storage of a persistent id: ("storage", class, key, device, elements).

        Legacy files add None, for a view of the whole storage.
        """
        match _expect(identity, tuple)[:7]:
            case ("module", _Global() as kind, *_):  # a legacy file's class, with its source code
                return kind
            case ("storage", _Global() as kind, str() as key, _, int() as numel, *view) if view in ([], [None]):
                dtype = STORAGES.get(kind.name.rpartition(".")[2])
                if dtype is None:
                    raise PthError(self.path, f"tensors in a {kind.name[:80]} cannot be read; convert them to float32")
                nbytes = numel * NUMPY_TYPES[dtype].itemsize
                storage = self.storages.setdefault(key, _Storage(self.path, key, dtype, nbytes))
                if (storage.dtype, storage.nbytes) != (dtype, nbytes):
                    raise ValueError(f"storage {key[:20]} is described in two ways")
                return storage
        raise ValueError("unknown persistent id")

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, dtype: str | None = None) -> StoredTensor:
        """Make a tensor, a view of a storage, after checking that it lies within the storage."""
        dtype = dtype or _expect(storage, _Storage).dtype
        if dtype not in NUMPY_TYPES:
            raise PthError(self.path, f"tensors of {dtype[:80]} cannot be read; convert them to float32")
        if not len(_expect(shape, tuple | list)) == len(_expect(strides, tuple | list)) <= MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {len(shape)} sizes and {len(strides)} strides")
        if not all(type(n) is int and 0 <= n < 2**62 for n in (offset, *shape, *strides)):
            raise ValueError("a tensor of impossible sizes, strides or offset")
        if 0 in shape:  # such a tensor reads nothing, wherever it points
            offset, strides = 0, [0] * len(shape)
        strides = tuple(stride if n > 1 else 0 for n, stride in zip(shape, strides, strict=True))
        end = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + (0 not in shape)
        if end * NUMPY_TYPES[dtype].itemsize > _expect(storage, _Storage).nbytes:
            raise PthError(self.path, f"refused: a tensor reaches beyond the end of its storage {storage.name[:20]}")
        self.spend(math.prod(max(n, 1) for n in shape) * NUMPY_TYPES[dtype].itemsize)
        return StoredTensor(dtype, tuple(shape), strides, offset, storage)


def _load_zip(reader: _Reader) -> Any:
    with zipfile.ZipFile(reader.file) as archive:
        records = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
    if not pickles:
        raise PthError(reader.path, "a zip archive, but not a PyTorch checkpoint (it has no data.pkl)")
    prefix = min(pickles, key=len).removesuffix("data.pkl")

    def find(storage: _Storage) -> _Storage:
        info = records[storage.name]
        if info.compress_type != zipfile.ZIP_STORED:
            raise PthError(reader.path, f"refused: {info.filename[:80]} is compressed, which PyTorch does not do")
        name_and_extra = struct.unpack_from("<HH", reader.data, info.header_offset + 26)  # lengths
        storage.data = reader.window(info.header_offset + 30 + sum(name_and_extra), info.file_size)
        storage.crc = info.CRC
        if info.file_size < storage.nbytes:
            raise ValueError(f"{info.filename[:40]} has {info.file_size} bytes for {storage.nbytes}")
        return storage

    def record(name: str) -> memoryview:
        return find(_Storage(reader.path, prefix + name, "uint8", 0)).bytes()

    _check_byte_order(reader, f"{prefix}byteorder" not in records or bytes(record("byteorder")) == b"little")
    content = reader.read(io.BytesIO(record("data.pkl")))
    for key, storage in reader.storages.items():
        storage.name = f"{prefix}data/{key}"
        find(storage)
    return content


def _load_legacy(reader: _Reader) -> Any:
    data = reader.file
    if reader.read(data) != MAGIC:
        raise PthError(reader.path, "a pickle, but not a PyTorch checkpoint; save its weights with torch.save")
    reader.read(data)  # version of the layout: there has been one
    _check_byte_order(reader, _expect(reader.read(data), dict).get("little_endian"))
    content = reader.read(data)
    for key in _expect(reader.read(data), list):
        storage = reader.storages[_checked_key(key)]
        (numel,) = struct.unpack("<q", data.read(8))
        if numel * NUMPY_TYPES[storage.dtype].itemsize != storage.nbytes:
            raise ValueError(f"storage {storage.name[:20]} has {numel} elements")
        storage.data = reader.window(data.tell(), storage.nbytes)
        data.seek(storage.nbytes, os.SEEK_CUR)
    if any(storage.data is None for storage in reader.storages.values()):
        raise ValueError("storages are missing")
    return content


def _check_byte_order(reader: _Reader, little: bool) -> None:
    if not little:
        raise PthError(reader.path, "from a big-endian machine; load and save it with PyTorch on a little-endian one")


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} out of place")
    return value


def _checked_key(value: Any) -> Any:
    """Return a dictionary key after checking that its hash costs little.

    Nested tuples are refused, and so are large integers, whose hashes can be made to collide.
    """
    for part in value if isinstance(value, tuple) and len(value) <= 8 else (value,):
        if isinstance(_expect(part, str | bytes | int | float | Unknown | None), int) and abs(part) >= 2**60:
            raise ValueError("a large integer as key")
    return value


def _brief(value: Any) -> str:
    """Describe a value within a message, never the whole of a large one."""
    if isinstance(value, str | bytes):
        return repr(value[:80])
    if isinstance(value, Unknown):
        return value.name[:80]
    short = value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
    return repr(value) if short else type(value).__name__


def _tensors(value: Any, depth: int = 4) -> dict[str, StoredTensor]:
    """Return the state dict that a value is or has under a usual key; empty if there is none."""
    if not isinstance(value, dict) or not depth:
        return {}
    for key in WEIGHTS_KEYS:
        if found := _tensors(value.get(key), depth - 1):
            return found
    return {name: v for name, v in value.items() if isinstance(name, str) and isinstance(v, StoredTensor)}


def _is_extra_state(name: Any) -> bool:
    """Return whether an entry of a state dict is from nn.Module.get_extra_state, which may be anything."""
    return isinstance(name, str) and name.endswith("_extra_state")


def _arrays(tensors: dict[str, StoredTensor]) -> dict[str, np.ndarray]:
    """Read tensors as arrays, by the names that the model itself gives them."""
    # torch.optim.swa_utils adds n_averaged.
    tensors = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}
    common = os.path.commonprefix(list(tensors))  # noqa: RUF071  (of texts, not of paths)
    wrapper = WRAPPERS.match(common)
    start = wrapper.end() if wrapper else 0
    arrays = {name[start:]: tensor.numpy() for name, tensor in tensors.items()}
    return {name: a.astype(np.float32, copy=False) if a.dtype.kind == "f" else a for name, a in arrays.items()}


EMPTY_ORDERED_DICT = pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE


def _text_opcode(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _tuple_opcodes(*items: int | bytes) -> bytes:
    """Return the opcodes of a tuple of integers, or of items given as opcodes."""
    parts = [pickle.LONG1 + b"\x08" + struct.pack("<q", item) if isinstance(item, int) else item for item in items]
    return pickle.MARK + b"".join(parts) + pickle.TUPLE


def _tensor_opcodes(key: str, storage_class: str, shape: tuple[int, ...]) -> bytes:
    """Return the opcodes of a call of torch._utils._rebuild_tensor_v2 for a contiguous tensor and its storage."""
    kind = pickle.GLOBAL + f"torch\n{storage_class}\n".encode()
    identity = (_text_opcode("storage"), kind, _text_opcode(key), _text_opcode("cpu"), math.prod(shape))
    storage = _tuple_opcodes(*identity) + pickle.BINPERSID
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    sizes = _tuple_opcodes(*shape), _tuple_opcodes(*strides)
    view = _tuple_opcodes(storage, 0, *sizes, pickle.NEWFALSE, EMPTY_ORDERED_DICT)
    return pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n" + view + pickle.REDUCE
