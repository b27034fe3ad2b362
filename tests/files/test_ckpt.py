"""MindSpore's checkpoint files: both ways with MindSpore, and no damage goes unseen."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from focal_twins.files import ckpt

TEXTS = {"state.progress": '{"epoch": 1}', "state.classes": '["null", "eins", "\u96f6"]'}


def arrays():
    generator = np.random.default_rng(0)
    return {
        **{f"layers.{i}.weight": generator.standard_normal((5, 7)).astype(np.float32) for i in range(12)},
        "half": generator.standard_normal(3).astype(np.float16),
        "steps": np.array(7, np.int32),
        "table": np.arange(300, dtype=np.int64).reshape(2, 150),
        "mask": np.array([[True], [False]]),
        "zeros": np.zeros((40, 2), np.float32),
    }


def assert_equal(content, expected, texts):
    assert list(content) == [*texts, *expected]
    for name, array in expected.items():
        assert content[name].dtype == array.dtype
        np.testing.assert_array_equal(content[name], array)
    assert {name: content[name] for name in texts} == texts


@pytest.fixture
def path(tmp_path):
    ckpt.write(tmp_path / "file.ckpt", arrays(), TEXTS)
    return tmp_path / "file.ckpt"


def test_mindspore_reads_what_is_written_here(path, monkeypatch):
    for part_bytes in (ckpt.PART_BYTES, 64):  # tensors in one record, and in several
        monkeypatch.setattr(ckpt, "PART_BYTES", part_bytes)
        ckpt.write(path, arrays(), TEXTS)
        assert_equal(ckpt.read(path), arrays(), TEXTS)
        content = ms.load_checkpoint(str(path), crc_check=True)
        assert content.pop(ckpt.CHECKED)
        assert_equal(
            {n: value if isinstance(value, str) else value.asnumpy() for n, value in content.items()}, arrays(), TEXTS
        )
        assert ckpt.read_texts(path) == TEXTS
    cell = ms.nn.Dense(7, 5, has_bias=False)
    cell.weight.name = "layers.3.weight"
    ms.load_param_into_net(cell, ms.load_checkpoint(str(path)))  # the texts do not disturb it
    np.testing.assert_array_equal(cell.weight.asnumpy(), arrays()["layers.3.weight"])


@pytest.mark.parametrize("crc_check", [True, False])
def test_what_mindspore_writes_is_read_here(tmp_path, crc_check):
    entries = [{"name": name, "data": Tensor(array)} for name, array in arrays().items()]
    entries.append({"name": "brain", "data": Tensor([1.5, -2.0], ms.bfloat16)})
    path = tmp_path / "file.ckpt"
    ms.save_checkpoint(entries, str(path), append_dict=dict(TEXTS), crc_check=crc_check)
    content = ckpt.read(path)
    np.testing.assert_array_equal(content.pop("brain"), np.array([1.5, -2.0], np.float32))
    assert_equal({**{name: content[name] for name in TEXTS}, **content}, arrays(), TEXTS)
    assert ckpt.read_texts(path) == TEXTS


def damaged_copies(whole: bytes):
    """(what was done, bytes) of damage of every kind to every part of a file."""
    generator = np.random.default_rng(1)
    end = len(whole) - ckpt.END_BYTES
    records = [at for at in range(end) if whole.startswith(b"\x0a", at)] + [end]
    for at in [*generator.integers(0, end, 150), *range(end, len(whole))]:
        for bit in generator.choice(8, 2, replace=False):
            copy = bytearray(whole)
            copy[at] ^= 1 << bit
            yield f"bit {bit} of byte {at}", copy
            copy[end + generator.integers(len(ckpt.MARK))] ^= 1 << bit
            if copy != whole:
                yield f"bit {bit} of byte {at}, and the mark", copy
    for length in [*generator.integers(0, len(whole), 100), *records, *range(end, len(whole))]:
        yield f"cut to {length} bytes", whole[:length]
    for _ in range(100):
        start, length = generator.integers(0, len(whole)), generator.integers(1, 600)
        copy = whole[:start] + bytes(len(whole[start : start + length])) + whole[start + length :]
        if copy != whole:
            yield f"zeros from {start} to {start + length}", copy
    yield "another byte at the end", whole + b"\0"
    yield "written twice", whole + whole
    yield "its middle left out", whole[: len(whole) // 2] + whole[len(whole) // 2 + 1 :]


def test_no_damage_goes_unseen(path):
    whole = path.read_bytes()
    seen = 0
    for what, copy in damaged_copies(whole):
        path.write_bytes(copy)
        with pytest.raises(ckpt.CkptError):
            ckpt.read(path)
            pytest.fail(what)
        seen += 1
    assert seen > 600
    path.write_bytes(whole)
    assert_equal(ckpt.read(path), arrays(), TEXTS)


def test_texts_are_found_without_looking_at_tensors(path):
    whole = bytearray(path.read_bytes())
    whole[whole.index(b"layers.3.weight") + 40] ^= 1
    path.write_bytes(whole)
    assert ckpt.read_texts(path) == TEXTS
    with pytest.raises(ckpt.CkptError, match="checksum"):
        ckpt.read(path)
