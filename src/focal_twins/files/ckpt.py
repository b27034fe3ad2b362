"""Writes and reads MindSpore's checkpoint files without MindSpore.

`mindspore.load_checkpoint` reads the files written here, and `read` those of `mindspore.save_checkpoint`. The project
uses neither of MindSpore's functions, for three reasons: MindSpore's reader accepts a file without its checksum (one
that was cut at the end of a record loads with what is left), a thread must be able to write while the device trains,
and a run that resumes looks at the texts of several files without reading gigabytes of tensors.

A file consists of records of the protocol buffer `Checkpoint` (mindspore/train/checkpoint_pb2.py) and an end:

    record   0A length { 0A length name, 12 length tensor }
    tensor   { 08 dimension, ..., 12 length type, 1A length content }
    end      "crc_num" and the CRC-32 of all records, 10 bytes, big-endian

Lengths and dimensions are varints; the content of a text is UTF-32; large tensors come as several records of one name.
The first record of a file written here says that the file has an end: without that end, or with another checksum, the
file is damaged. Other files may have no end.
"""

import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from focal_twins.files.atomic import replacing

CHECKED = "state.checked"  # name of the first record
MARK = b"crc_num"
END_BYTES = len(MARK) + 10
PART_BYTES = 512 * 2**20  # bytes of a tensor in one record: MindSpore's own limit
BLOCK_BYTES = 2**20  # bytes written at a time, so that other threads have their turn

# Keys of the fields: number and wire type.
RECORD, NAME, TENSOR = 0x0A, 0x0A, 0x12
DIMENSION, TYPE, CONTENT = 0x08, 0x12, 0x1A

TEXT = "str"  # type of a text; its dimensions are [0]
NAMES_TO_DTYPES = {
    "Float16": np.float16, "Float32": np.float32, "Float64": np.float64, "Bool": np.bool_, "Int8": np.int8,
    "Int16": np.int16, "Int32": np.int32, "Int64": np.int64, "UInt8": np.uint8, "UInt16": np.uint16,
    "UInt32": np.uint32, "UInt64": np.uint64,
}  # fmt: skip
DTYPES_TO_NAMES = {np.dtype(dtype): name for name, dtype in NAMES_TO_DTYPES.items()}


class CkptError(ValueError):
    """Says that a file is damaged or is no MindSpore checkpoint; the message says what is wrong with it."""


def write(path: Path, tensors: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> None:
    """Write a checkpoint atomically, texts first, without calling MindSpore.

    Raises:
        OSError: no room, no permission; an earlier file is untouched.
    """
    checksum = 0
    with replacing(path) as temporary, open(temporary, "wb") as file:
        values: dict[str, np.ndarray | str] = {CHECKED: "crc_num", **texts, **tensors}
        for name, value in values.items():
            for header, content in _encode_records(name, value):
                for start in range(0, max(len(content), 1), BLOCK_BYTES):
                    block = content[start : start + BLOCK_BYTES]
                    checksum = zlib.crc32(block, zlib.crc32(header, checksum))
                    file.write(header)
                    file.write(block)
                    header = b""
        file.write(MARK + checksum.to_bytes(END_BYTES - len(MARK), "big"))


def read(path: Path) -> dict[str, np.ndarray | str]:
    """Read a checkpoint and return all its values by name: tensors as arrays (bfloat16 as float32), and texts.

    Raises:
        CkptError: the file is damaged, or no MindSpore checkpoint.
        OSError: the file cannot be read.
    """
    parts: dict[str, list[np.ndarray]] = {}
    types: dict[str, tuple[str, tuple[int, ...]]] = {}
    with open(path, "rb") as file:
        stream = _Stream(file)
        for record in _read_headers(stream):
            parts.setdefault(record.name, []).append(stream.content(record.length))
            types[record.name] = record.type, record.dimensions
        stream.check_end(required=next(iter(types), None) == CHECKED)
    types.pop(CHECKED, None)
    return {name: _decode_value(parts.pop(name), *types[name]) for name in types}


def read_texts(path: Path) -> dict[str, str]:
    """Read only the texts of a checkpoint, by name.

    It skips the tensors and does not check the checksum: a damaged file may seem whole.

    Raises:
        CkptError, OSError: as `read`, for the parts that it reads.
    """
    texts = {}
    with open(path, "rb") as file:
        stream = _Stream(file)
        for record in _read_headers(stream):
            if record.type == TEXT:
                texts[record.name] = _decode_text(stream.content(record.length))
            else:
                stream.skip(record.length)
    texts.pop(CHECKED, None)
    return texts


def _encode_records(name: str, value: np.ndarray | str) -> Iterator[tuple[bytes, memoryview]]:
    """Encode a value as records, each as a pair: the bytes before the content, and the content."""
    if isinstance(value, str):
        kind, dimensions, content = TEXT, (0,), memoryview(value.encode("utf-32-le"))
    else:
        array = np.ascontiguousarray(value)
        kind, dimensions = DTYPES_TO_NAMES[array.dtype], np.shape(value)
        content = array.reshape(-1).view(np.uint8).data
    encoded = name.encode()
    shape = b"".join(bytes([DIMENSION]) + _varint(dimension) for dimension in dimensions)
    size = len(content) if kind == TEXT else PART_BYTES  # MindSpore takes a text from one record
    for start in range(0, max(len(content), 1), size or 1):
        part = content[start : start + size]
        tensor_start = shape + _field_start(TYPE, len(kind)) + kind.encode() + _field_start(CONTENT, len(part))
        tag = _field_start(NAME, len(encoded)) + encoded + _field_start(TENSOR, len(tensor_start) + len(part))
        yield _field_start(RECORD, len(tag) + len(tensor_start) + len(part)) + tag + tensor_start, part


def _field_start(field: int, length: int) -> bytes:
    return bytes([field]) + _varint(length)


def _varint(number: int) -> bytes:
    """Encode a number with seven bits to a byte, the lowest first; the eighth bit says that more bytes follow."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


@dataclass(frozen=True)
class _Header:
    """Holds the fields of a record before its content, which comes next in the stream."""

    name: str
    type: str
    dimensions: tuple[int, ...]
    length: int


class _Stream:
    """Reads the bytes of an open file up to its end mark, and keeps their checksum so far."""

    def __init__(self, file):
        self.file, self.checksum = file, 0
        size = os.fstat(file.fileno()).st_size
        file.seek(max(size - END_BYTES, 0))
        end = file.read()
        self.expected = int.from_bytes(end[len(MARK) :], "big") if end.startswith(MARK) else None
        self.remaining = size if self.expected is None else size - END_BYTES
        file.seek(0)
        if not self.remaining:
            raise CkptError("empty")

    def take(self, count: int) -> bytes:
        """Read the next bytes."""
        self._claim(count)
        block = self.file.read(count)
        self.checksum = zlib.crc32(block, self.checksum)
        return block

    def content(self, count: int) -> np.ndarray:
        """Read the next bytes into a new array."""
        self._claim(count)
        array = np.empty(count, np.uint8)
        if self.file.readinto(array) != count:
            raise CkptError("cut short while it was read")
        self.checksum = zlib.crc32(array.data, self.checksum)
        return array

    def skip(self, count: int) -> None:
        """Go past the next bytes; the checksum is no longer valid from here on."""
        self._claim(count)
        self.file.seek(count, os.SEEK_CUR)

    def varint(self) -> int:
        """Read the next number."""
        number = 0
        for shift in range(0, 64, 7):
            byte = self.take(1)[0]
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise CkptError("not a MindSpore checkpoint, or damaged (a number without an end)")

    def length(self, field: int) -> int:
        """Read the start of a field, which must be the given one, and return the field's length."""
        if self.varint() != field:
            raise CkptError("not a MindSpore checkpoint, or damaged (another field than expected)")
        return self.varint()

    def text(self, count: int) -> str:
        """Read the next bytes as a short text."""
        try:
            return self.take(count).decode()
        except UnicodeDecodeError as error:
            raise CkptError("not a MindSpore checkpoint, or damaged (a name that is no text)") from error

    def check_end(self, required: bool) -> None:
        """Compare the checksum of the bytes that were read with the file's."""
        if self.expected is None and required:
            raise CkptError("damaged or cut short (no checksum at its end)")
        if self.expected is not None and self.checksum != self.expected:
            raise CkptError("damaged (its checksum is another)")

    def _claim(self, count: int) -> None:
        if count > self.remaining:
            raise CkptError("damaged or cut short (a record ends after the file)")
        self.remaining -= count


def _read_headers(stream: _Stream) -> Iterator[_Header]:
    """Yield the header of each record; the caller must read or skip its content before the next."""
    while stream.remaining:
        length = stream.length(RECORD)
        record_end = stream.remaining - length
        name = stream.text(stream.length(NAME))
        length = stream.length(TENSOR)
        tensor_end = stream.remaining - length
        dimensions = []
        while (field := stream.varint()) == DIMENSION:
            dimensions.append(stream.varint())
        if field != TYPE:
            raise CkptError("not a MindSpore checkpoint, or damaged (a tensor without a type)")
        kind = stream.text(stream.varint())
        length = stream.length(CONTENT)
        if stream.remaining - length != tensor_end or tensor_end != record_end:
            raise CkptError("not a MindSpore checkpoint, or damaged (lengths that contradict each other)")
        yield _Header(name, kind, tuple(dimensions), length)


def _decode_text(content: np.ndarray) -> str:
    """Decode a text from the content of its record.

    Raises:
        CkptError: it is not a text.
    """
    try:
        return content.tobytes().decode("utf-32-le")
    except UnicodeDecodeError as error:
        raise CkptError("damaged (a text that is none)") from error


def _decode_value(parts: list[np.ndarray], kind: str, dimensions: tuple[int, ...]) -> np.ndarray | str:
    """Decode a tensor or a text from the contents of its records."""
    content = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if kind == TEXT:
        return _decode_text(content)
    try:
        shape = () if dimensions == (0,) and len(content) else dimensions  # MindSpore's scalars
        if kind == "BFloat16":  # the upper half of a float32
            return (content.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(shape)
        return content.view(NAMES_TO_DTYPES[kind]).reshape(shape)
    except KeyError as error:
        raise CkptError(f"holds values of a type that is not read here ({kind})") from error
    except ValueError as error:
        raise CkptError("damaged (a value of another size than it says)") from error
