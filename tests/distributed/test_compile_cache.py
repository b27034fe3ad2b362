"""Graphs kept for later processes: taken up again only where all that they were made of is the same."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from focal_twins.config.load import flatten, load_config
from focal_twins.distributed import compile_cache
from focal_twins.distributed.compile_cache import NOT_IN_GRAPHS, CompileCache, graph_key, settings_of_graphs
from focal_twins.distributed.ranks import Dist, start
from focal_twins.errors import UserError
from focal_twins.models.compiled import KernelLayer
from tests.conftest import DIGITS_CONFIG, SMALL_MODEL, SOURCES
from tests.kernels.compiler import needs_compiler
from tests.processes import run, train_command
from tests.training.states import assert_same_state, metrics


class Scaled(nn.Cell):
    """images * a constant + a parameter, or the images alone."""

    def __init__(self, factor=2.0):
        super().__init__()
        self.factor = Tensor(np.full(3, factor, np.float32))
        self.bias = Parameter(Tensor(np.ones(3, np.float32)), name="bias")

    def construct(self, images, scaled=True):
        return images * self.factor + self.bias if scaled else images


ALONE = Dist()
X = Tensor(np.arange(3, dtype=np.float32))


def settings(*overrides, dist=ALONE, **options):
    return settings_of_graphs(load_config(DIGITS_CONFIG, overrides), dist, **options)


def has_read(lines) -> list[bool]:
    """Of each graph that was called, whether it was read; all others were written."""
    assert all("read the graph" in line or "kept the graph" in line for line in lines), lines
    return ["read the graph" in line for line in lines]


# Of every section, what is written into graphs or, most likely, is not.
@pytest.mark.parametrize(
    "override",
    ["ema.decay=0.9", "ema.enabled=false", "optimizer.clip_norm=1.0", "optimizer.weight_decay=0.1", "amp.level=O1",
     "amp.growth_interval=7", "train.batch_size=8", "train.accumulation_steps=2", "train.frozen_stages=1",
     "train.recompute=true", "model.drop_path_rate=0.3", "model.focal_topK=16", "eval.batch_size=7", "runtime.seed=1",
     "runtime.gelu=erf", "augment.mixup=0.5", "schedule.min_lr=1e-6"],
)  # fmt: skip
def test_configuration_is_in_the_key(override):
    assert settings(override) != settings()


def test_all_of_the_configuration_is_in_the_key_but_what_is_listed():
    keys = flatten(load_config(DIGITS_CONFIG).to_dict()).keys()
    assert keys - settings()["configuration"].keys() == NOT_IN_GRAPHS.keys()


def test_what_changes_no_graph_does_not_change_the_key(tmp_path):
    others = ["data.path=elsewhere", "data.workers=3", "train.epochs=30", "train.resume=auto", "train.pretrained=x",
              "train.log_interval=1", "train.stop_after_update=3", "eval.interval=2", f"runtime.output={tmp_path}",
              f"runtime.compile_cache={tmp_path}"]  # fmt: skip
    assert settings(*others) == settings()


def test_sources_are_in_the_key(tmp_path):
    shutil.copytree(compile_cache.SOURCES, tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    before = settings(sources=tmp_path / "src")
    assert before == settings()
    layers = tmp_path / "src" / "models" / "layers.py"
    layers.write_text(layers.read_text().replace("0.02", "0.03"))
    edited = settings(sources=tmp_path / "src")
    layers.rename(layers.with_name("other.py"))
    renamed = settings(sources=tmp_path / "src")
    assert before != edited != renamed != before


def test_versions_devices_ranks_and_environment_are_in_the_key(monkeypatch):
    keys = [
        settings(),
        settings(dist=Dist(1, 2)),
        settings(dist=Dist(0, 2)),
        settings(dist=Dist(device_target="Ascend")),
    ]
    for package in compile_cache.PACKAGES:
        with monkeypatch.context() as patch:
            true = compile_cache.version
            patch.setattr(
                compile_cache, "version", lambda name, true=true, p=package: "0.0" if name == p else true(name)
            )
            keys.append(settings())
    monkeypatch.setenv("MS_DEV_SOMETHING", "1")
    keys.append(settings())
    texts = [json.dumps(key, sort_keys=True) for key in keys]
    assert len(set(texts)) == len(texts)
    monkeypatch.setenv("MS_SCHED_PORT", "12345")
    assert settings() == keys[-1]


def test_constants_shapes_and_arguments_are_in_the_key():
    def key(factor=2.0, arguments=(X, True), training=False, frozen=False):
        model = Scaled(factor).set_train(training)
        model.bias.requires_grad = not frozen
        return graph_key({}, nn.ReLU(), model, arguments)

    wide, whole = Tensor(np.zeros((2, 3), np.float32)), Tensor(np.zeros(3, np.int32))
    others = [key(3.0), key(arguments=(wide, True)), key(arguments=(whole, True)), key(arguments=(X, False)),
              key(arguments=(X, None)), key(training=True), key(frozen=True), key()]  # fmt: skip
    assert len(set(others)) == len(others)
    assert key(arguments=(Tensor(np.ones(3, np.float32)), True)) == key()  # values of tensors are arguments of graphs


def test_key_tables_that_came_with_weights_are_in_the_key():
    config = load_config(DIGITS_CONFIG, SMALL_MODEL)
    model, same = config.build_model("CPU"), config.build_model("CPU")
    before = graph_key({}, model, model, ())
    assert graph_key({}, same, same, ()) == before
    table = next(parameter for name, parameter in model.parameters_and_names() if "topk_cloest_indice" in name)
    table.set_data(Tensor(np.ascontiguousarray(table.asnumpy()[:, ::-1])))
    model.adopt_key_tables()
    assert graph_key({}, model, model, ()) != before


@needs_compiler
def test_the_file_of_the_kernels_is_in_the_key():
    """A graph has its path, and its name has the compiler and the processor."""
    config = load_config(DIGITS_CONFIG, SMALL_MODEL)
    by_kernels, by_operators = config.build_model("CPU"), config.build_model("CPU", kernels="none")
    keys = [graph_key({}, model, model, ()) for model in (by_kernels, by_operators)]
    for _, cell in by_kernels.cells_and_names():
        if isinstance(cell, KernelLayer):
            cell.library = "/another/library.so"
    assert len({*keys, graph_key({}, by_kernels, by_kernels, ())}) == 3


# A process that calls cells as its arguments say, and prints what they return and the cache's lines.
CALLS = """
import sys
import numpy as np
from mindspore import Tensor, nn
from focal_twins.config.load import load_config
from focal_twins.distributed.compile_cache import CompileCache
from focal_twins.distributed.ranks import start
from tests.distributed.test_compile_cache import X, Scaled

config = load_config(sys.argv[1], ["runtime.compile_cache=" + sys.argv[2]])
dist, cell = start(config), Scaled(float(sys.argv[3]))
cell.bias.set_data(Tensor(np.full(3, float(sys.argv[4]), np.float32)))
cache = CompileCache(config, dist, cell, print)
nn.ReLU()(X)  # a graph that is not the cache's
wide = Tensor(np.ones((2, 3), np.float32))
for call in sys.argv[5:]:
    print(cache.call(cell, *{"scaled": (X, True), "plain": (X, False), "wide": (wide, True)}[call]).asnumpy().tolist())
"""


def calls(folder, factor, bias, *names):
    """Results of calls in a process of their own, and whether the graph of each was read."""
    script = folder.with_name("calls.py")  # MindSpore's cache looks for the file
    script.write_text(CALLS)
    arguments = map(str, (script, DIGITS_CONFIG, folder, factor, bias, *names))
    done = run([sys.executable, *arguments], PYTHONPATH=SOURCES)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return [json.loads(line) for line in lines if line[0] == "["], has_read([line for line in lines if line[0] != "["])


def test_graphs_are_read_by_other_processes_that_make_the_same(tmp_path):
    folder = tmp_path / "graphs"
    assert calls(folder, 2, 1, "scaled", "plain") == ([[1, 3, 5], [0, 1, 2]], [False, False])
    # In another order, with other values of parameters.
    assert calls(folder, 2, 5, "plain", "scaled", "plain") == ([[0, 1, 2], [5, 7, 9], [0, 1, 2]], [True, True])
    # Another constant; other shapes.
    assert calls(folder, 3, 1, "scaled", "wide") == ([[1, 4, 7], [[4] * 3] * 2], [False, False])
    # What was compiled does not keep a process from reading the rest.
    assert calls(folder, 3, 1, "plain", "scaled") == ([[0, 1, 2], [1, 4, 7]], [False, True])


class Compiled(nn.Cell):
    """A stand-in for a cell and MindSpore's cache: `compiled` says of each graph, by number, whether it was found."""

    compiled: ClassVar[list[bool]] = []

    def compile(self, *arguments):
        number = len(Compiled.compiled)
        graph = Path(os.environ["MS_COMPILER_CACHE_PATH"]) / "rank_0" / "graph_cache" / f"compile_cache_{number}.mindir"
        Compiled.compiled.append(graph.exists())
        self.compile_cache.add(number)
        if not graph.exists():
            graph.parent.mkdir(parents=True, exist_ok=True)
            graph.write_text("a graph")
        assert graph.read_text() == "a graph"

    def __call__(self, images):
        return images


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """cached(...) calls a cell by a cache as a process of its own would, and returns the cache's lines."""
    monkeypatch.setattr(Compiled, "compiled", [])
    monkeypatch.setattr(CompileCache, "number", 0)

    def call(*overrides, dist=ALONE, times=1):
        lines: list[str] = []
        config = load_config(DIGITS_CONFIG, [f"runtime.compile_cache={tmp_path / 'graphs'}", *overrides])
        cell = Compiled()
        cache = CompileCache(config, dist, cell, lines.append)
        for _ in range(times):
            assert cache.call(cell, X) is X
        return lines

    call.folder = tmp_path / "graphs"
    return call


def test_a_graph_is_compiled_once_and_kept(cached):
    assert has_read(cached(times=3)) == [False]
    assert has_read(cached(times=3)) == [True]
    assert Compiled.compiled == [False, True]


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: b"", lambda content: b"x" + content])
def test_damaged_entries_are_compiled_and_replaced(damage, cached):
    cached()
    (entry,) = cached.folder.iterdir()
    entry.write_bytes(damage(entry.read_bytes()))
    for found in (["damaged", "kept the graph"], ["read the graph"]):
        lines = cached()
        assert all(part in line for part, line in zip(found, lines, strict=True)), lines
    assert Compiled.compiled == [False, False, True]


def test_a_graph_under_another_number_than_expected_is_not_kept(cached):
    Compiled.compiled.append(False)  # a graph that the cache does not know of
    lines = cached()
    assert len(lines) == 1
    assert "off from here on" in lines[0]
    assert not list(cached.folder.iterdir())


def test_a_failed_call_leaves_no_graph_to_the_next(cached, monkeypatch):
    def fail(self, *arguments):
        raise RuntimeError("out of memory")

    cached()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(Compiled, "compile", fail)
        cached()
    assert not list(cached.folder.iterdir())  # which may have been why
    assert has_read(cached()) == [False]


class TwoRanks(Dist):
    """A rank of two. `other` is what the other one adds to each sum; None: the same."""

    def __init__(self, *other, agrees=True):
        super().__init__(size=2)
        object.__setattr__(self, "other", iter(other))
        object.__setattr__(self, "agrees", agrees)

    def sum(self, values):
        other = next(self.other)
        return np.asarray(values, np.float32) + (values if other is None else other)

    def agree(self, values):
        return np.array([self.agrees])


def test_ranks_read_only_what_all_have_from_one_launch(cached):
    launch = np.zeros((2, 1))  # only the main rank gives its number
    assert has_read(cached(dist=TwoRanks(None, launch))) == [False]
    assert has_read(cached(dist=TwoRanks(None))) == [True]
    assert has_read(cached(dist=TwoRanks(None, launch, agrees=False))) == [False]


def test_ranks_of_which_one_could_not_read_stop(cached):
    cached(dist=TwoRanks(None, np.zeros((2, 1))))
    with pytest.raises(UserError, match="not all processes could read"):
        cached(dist=TwoRanks(np.array([0, 1])))
    assert not list(cached.folder.iterdir())  # they compile when they start again


def test_a_full_disk_turns_it_off(cached, monkeypatch):
    monkeypatch.setattr(compile_cache, "NEEDED_BYTES", 2**62)
    lines = cached()
    assert len(lines) == 1
    assert "has no room" in lines[0]
    assert not list(cached.folder.iterdir())


def test_a_folder_that_takes_no_more_is_a_line(cached, monkeypatch):
    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compile_cache, "replace_synced", full)
    (line,) = cached()
    assert "No space left on device" in line
    assert not list(cached.folder.iterdir())


def test_sources_edited_while_a_process_runs_turn_it_off(cached, monkeypatch):
    cached()
    (entry,) = cached.folder.iterdir()
    before = compile_cache._digest_of_files(compile_cache.SOURCES)
    digests = iter([before, "edited", "edited"])
    monkeypatch.setattr(compile_cache, "_digest_of_files", lambda folder: next(digests))
    lines = cached()
    assert len(lines) == 1
    assert "sources changed" in lines[0]
    assert Compiled.compiled == [False, False]
    assert list(cached.folder.iterdir()) == [entry]


@pytest.mark.parametrize("override", ["runtime.mode=pynative", "runtime.jit_level=O1"])
def test_it_is_refused_where_it_does_not_work(override, cached):
    with pytest.raises(UserError, match=r"runtime\.compile_cache: is for graphs on CPU"):
        cached(override)


def test_it_is_refused_on_ascend(cached):
    with pytest.raises(UserError, match=r"runtime\.compile_cache: is for graphs on CPU"):
        cached(dist=Dist(device_target="Ascend"))


def test_a_folder_that_cannot_be_made_is_one_line(cached):
    cached.folder.write_text("a file")
    with pytest.raises(UserError, match=r"runtime\.compile_cache: .*graphs: cannot be written"):
        cached()


@pytest.mark.parametrize(("value", "warns"), [("1", True), ("0", False), (None, False)])
def test_a_cache_of_the_users_own_gets_a_warning(value, warns, monkeypatch, capsys):
    monkeypatch.delenv("MS_COMPILER_CACHE_ENABLE", raising=False)
    if value is not None:
        monkeypatch.setenv("MS_COMPILER_CACHE_ENABLE", value)
    start(load_config(DIGITS_CONFIG))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == warns
    assert all(line.startswith("warning: MS_COMPILER_CACHE_ENABLE=1: ") for line in lines)


def test_a_run_that_reads_its_graphs_has_the_same_bits(digits, tmp_path):
    """Ten updates and an evaluation, with two graphs for an update; without the cache, writing, and reading."""
    for name, cache in (("plain", "null"), ("writes", tmp_path / "graphs"), ("reads", tmp_path / "graphs")):
        done = run(["python", *train_command(digits, tmp_path / name, "train.accumulation_steps=2", "train.epochs=1",
                                             "train.stop_after_update=10", "train.log_interval=1",
                                             f"runtime.compile_cache={cache}")])  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = [line for line in done.stdout.splitlines() if line.startswith("compile cache: ")]
        expected = {"plain": [], "writes": [False] * 3, "reads": [True] * 3}[name]
        assert has_read(found) == expected, done.stdout
    for name in ("writes", "reads"):
        assert_same_state(*(tmp_path / run / "checkpoints" / "last.ckpt" for run in ("plain", name)))
        assert metrics(tmp_path / name) == metrics(tmp_path / "plain")
