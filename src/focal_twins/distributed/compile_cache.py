"""Compiled graphs kept from one process for the next (runtime.compile_cache).

MindSpore can write down what the front end of its compiler makes of a cell, and read that in place of compiling. It
reads by number: the n-th graph that a process compiles is the n-th that was written, whatever sources, constants and
shapes it was made of. So its cache is on only while `CompileCache.call` compiles a cell, in a folder of this process
alone, which holds no graph but the one made of exactly what this one is made of, under the number that MindSpore will
look for. Where it looks for another number, it finds nothing and compiles.
"""

import atexit
import base64
import hashlib
import json
import os
import platform
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import distribution, version
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.graph import api

from focal_twins.config.load import Config, flatten
from focal_twins.distributed.ranks import Dist
from focal_twins.errors import UserError
from focal_twins.files.atomic import WRITING, replace_synced
from focal_twins.files.file_digest import sha256

SOURCES = Path(__file__).resolve().parent.parent
# Keys of the configuration that no graph depends on. All others are a part of what a graph is known by, those too that
# most likely change none.
NOT_IN_GRAPHS = {
    "name": "a name",
    "data.path": "where images are",
    "data.workers": "how images are read",
    "data.prefetch": "how images are read",
    "data.numa": "how images are read",
    "data.exif": "how images are read",
    "data.alpha": "how images are read",
    "data.max_pixels": "how images are read",
    "train.epochs": "the learning rate is an argument of the step",
    "train.resume": "weights and moments are parameters; what constants come with weights is hashed by value",
    "train.pretrained": "the same",
    "train.pretrained_head": "the same",
    "train.download": "where weights come from",
    "train.keep_checkpoints": "files of the run",
    "train.save_interval": "files of the run",
    "train.save_minutes": "files of the run",
    "train.async_save": "files of the run",
    "train.max_skipped_updates": "counted outside of the step",
    "train.stall_seconds": "of the watchdog",
    "train.log_interval": "of the log",
    "train.stop_after_epoch": "when the loop ends",
    "train.stop_after_update": "when the loop ends",
    "eval.interval": "when the loop evaluates",
    "runtime.device_id": "which of several devices of a kind",
    "runtime.output": "files of the run",
    "runtime.compile_cache": "where graphs are kept",
}
PACKAGES = ("mindspore", "numpy", "scipy")  # the compiler, and what makes tables of constants
# MindSpore compares hashes of the script, once in a process: one whose first graph is not there would read no other
# either, were it not for this variable. What graphs are made of is in their keys.
WITHOUT_COMPARING = "MS_DEV_FORCE_USE_COMPILE_CACHE"
# MindSpore's variables that tell launches and ranks apart. All others are a part of what a graph is known by.
OF_THE_LAUNCH = (
    "MS_SCHED_HOST",
    "MS_SCHED_PORT",
    "MS_NODE_ID",
    "MS_COMPILER_CACHE_ENABLE",
    "MS_COMPILER_CACHE_PATH",
    WITHOUT_COMPARING,
)
# What compiling leaves in a cell, beside attributes of MindSpore's that begin with an underscore.
LEFT_BY_COMPILING = ("compile_phase", "current_phase", "sequence_modified")
SUFFIX = ".graph"
NUMBER = "{number}"  # in the names of MindSpore's files, where an entry has them
NEEDED_BYTES = 2**28  # of free disk: on a full one MindSpore leaves a part of a file, and does not say so
SECONDS_UNTIL_LEFT = 24 * 3600  # the age at which an unfinished file is that of a killed process


class CompileCache:
    """Calls cells, without compiling those whose graphs an earlier process compiled.

    A graph is known by all that it is made of: see `settings_of_graphs` and `graph_key`. Each is one file in the
    folder, with the hash of its content, written whole and renamed; what cannot be read is compiled. Several processes
    may share the folder: ranks have files of their own, and of those who write the same graph the last one's stays.

    Args:
        model: the network whose constants the graphs hold, beside those of the cell that is called. Index tables that
            come with weights are among them: load weights before the first call.
        announce: gets a line on the main rank for each graph that was read or written, or could not be.

    Raises:
        UserError: the configuration asks for it where it does not work, or in a folder that cannot be written.
    """

    number = 0  # that MindSpore gives the next graph of this process, counted while its cache is on

    def __init__(self, config: Config, dist: Dist, model: nn.Cell, announce: Callable[[str], None]):
        self.dist, self.model = dist, model
        self.announce = announce if dist.is_main else lambda line: None
        self.called: set[tuple] = set()
        self.folder = Path(config.runtime.compile_cache).resolve() if config.runtime.compile_cache else None
        if self.folder is None:
            return
        if dist.device_target != "CPU" or config.runtime.mode != "graph" or config.runtime.jit_level == "O1":
            raise config.error("runtime.compile_cache", "is for graphs on CPU, of jit_level auto or O0; use null here")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if dist.is_main:
                _remove_left(self.folder)
            self.own = _own_folder()
        except OSError as error:
            problem = f"{self.folder}: cannot be written ({error.strerror}); name another folder, or null"
            raise config.error("runtime.compile_cache", problem) from error
        self.settings = settings_of_graphs(config, dist)

    def call(self, cell: nn.Cell, *arguments):
        """What a cell returns. All ranks call the same cells in the same order.

        Raises:
            UserError: some ranks could read their graph and others not: the collectives in them might not match.
        """
        if self.folder is not None:
            call = (id(cell), cell.training, _content(arguments))
            if call not in self.called:
                self.called.add(call)
                self._compile(self.folder, cell, arguments)
        return cell(*arguments)

    def _compile(self, folder: Path, cell: nn.Cell, arguments: tuple) -> None:
        """Have MindSpore read the graph of a cell if all ranks have it from one launch, or else compile and keep it."""
        name, path = type(cell).__name__, folder / (graph_key(self.settings, cell, self.model, arguments) + SUFFIX)
        self._remove_graphs()  # of a call that failed
        launch = self._place(path) if self._are_sources_as_begun() else 0
        is_placed = bool(self.dist.agree(np.array([launch])).all()) and launch > 0
        if not is_placed:
            self._remove_graphs()
        compiled = len(cell.compile_cache)
        ms.set_context(enable_compile_cache=True)
        try:
            cell.compile(*arguments)
        except Exception:
            if is_placed:  # which may be why
                path.unlink(missing_ok=True)
            raise
        finally:
            ms.set_context(enable_compile_cache=False)
        compiled = len(cell.compile_cache) - compiled
        graphs = [graph for graph in self.own.rglob("*.mindir") if graph.stat().st_mtime > 0]
        has_read = is_placed and compiled == 1 and not graphs
        has_written = compiled == 1 and [graph.name.endswith(f"_{self.number}.mindir") for graph in graphs] == [True]
        is_sound = self._are_sources_as_begun() and shutil.disk_usage(self.own).free >= NEEDED_BYTES
        readers, writers = self.dist.sum(np.array([has_read, has_written and is_sound], np.float32))
        if readers == self.dist.size:
            self.announce(f"compile cache: read the graph of {name} from {folder}")
        elif readers:
            path.unlink(missing_ok=True)
            raise UserError(f"runtime.compile_cache: {folder}: not all processes could read their graphs; start again")
        elif writers == self.dist.size:
            self._keep(path, name)
        else:
            self.folder = None
            self.announce(f"compile cache: off from here on: sources changed while this ran, or {self.own} has no room")
        self._remove_graphs()
        CompileCache.number += compiled

    def _are_sources_as_begun(self) -> bool:
        """Whether no file changed since this process began: MindSpore parses a cell's sources when it compiles it."""
        return _digest_of_files(SOURCES) == self.settings["sources"]

    def _place(self, path: Path) -> int:
        """Put an entry's files where MindSpore looks for them; returns the launch that wrote it, 0 if there is none."""
        try:
            digest, _, content = path.read_bytes().partition(b"\n")
            if hashlib.sha256(content).hexdigest().encode() != digest:
                self.announce(f"compile cache: {path}: damaged; compiled anew")
                return 0
            entry = json.loads(content)
            for name, text in entry["files"].items():
                file = self.own / name.replace(NUMBER, str(self.number))
                if not file.exists():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(text))
                    os.utime(file, (0, 0))  # tells it from what MindSpore writes
        except FileNotFoundError:
            return 0
        except OSError as error:
            self.announce(f"compile cache: {path} cannot be copied to {self.own} ({error.strerror}); compiled anew")
            return 0
        return entry["launch"]

    def _keep(self, path: Path, name: str) -> None:
        """Make an entry of what MindSpore wrote."""
        launch = self.dist.sum_counts(np.array([1 + secrets.randbelow(2**40) if self.dist.is_main else 0]))
        files = {
            str(file.relative_to(self.own)).replace(f"_{self.number}.mindir", f"_{NUMBER}.mindir"): (
                base64.b64encode(file.read_bytes()).decode()
            )
            for file in self.own.rglob("*")
            if file.is_file()
        }
        content = json.dumps({"launch": int(launch[0]), "files": files}).encode()
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}{WRITING}")
        try:
            unfinished.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
            replace_synced(unfinished, path)
            self.announce(f"compile cache: kept the graph of {name} in {path.parent}")
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            self.announce(f"compile cache: {path}: cannot be written ({error.strerror}); the run goes on without")

    def _remove_graphs(self) -> None:
        """Leave no graph that MindSpore could read."""
        for graph in self.own.rglob("*.mindir"):
            graph.unlink()


def settings_of_graphs(config: Config, dist: Dist, sources: Path = SOURCES) -> dict[str, object]:
    """What is the same for all graphs of a process, by name.

    That is the content of all files in `sources` and of the script that runs, the versions of Python and of packages,
    the kind of machine and device, the number of ranks and this one's, MindSpore's environment variables, and the
    configuration but for NOT_IN_GRAPHS.
    """
    script = Path(sys.argv[0])
    return {
        "sources": _digest_of_files(sources),
        "script": hashlib.sha256(script.read_bytes()).hexdigest() if script.is_file() else None,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "compiler": hashlib.sha256((distribution("mindspore").read_text("RECORD") or "").encode()).hexdigest(),
        "machine": platform.machine(),
        "device": dist.device_target,
        "ranks": (dist.size, dist.rank),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith("MS_") and name not in OF_THE_LAUNCH
        },
        "configuration": {key: value for key, value in flatten(config.to_dict()).items() if key not in NOT_IN_GRAPHS},
    }


@cache
def _own_folder() -> Path:
    """Where MindSpore reads and writes in this process; it takes note of it once."""
    folder = tempfile.mkdtemp(prefix="compile_cache_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    # MindSpore opens the script to list what it imports, and makes each of these modules anew: an `import sys` puts
    # back the standard streams that the process began with. A process started by `python -c`, or a notebook's, has no
    # script. Sources are a part of the key here, so that a file without imports will do.
    api.entry_script_path = str(SOURCES / "__init__.py")
    os.environ |= {"MS_COMPILER_CACHE_PATH": folder, WITHOUT_COMPARING: "1"}
    return Path(folder)


def _remove_left(folder: Path) -> None:
    """Remove what killed processes left of files they were writing; not what a process may be writing now."""
    for path in folder.glob(f".*{WRITING}"):
        if time.time() - path.stat().st_mtime > SECONDS_UNTIL_LEFT:
            path.unlink(missing_ok=True)


def graph_key(settings: dict[str, object], cell: nn.Cell, model: nn.Cell, arguments: tuple) -> str:
    """What a graph is known by: a hash of `settings_of_graphs`, of the constants and the parameters' shapes in the cell
    and in the model, and of the shapes and types of tensors, and the values of all else, among the arguments."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(repr(_content(arguments)).encode())
    for root in (cell, model):
        for line in _constants(root):
            digest.update(line.encode())
    return digest.hexdigest()


def _constants(root: nn.Cell) -> Iterator[str]:
    """Lines that tell a cell and those in it from others, in what they hold beside the values of parameters."""
    of_mindspore = {*vars(nn.Cell()), *LEFT_BY_COMPILING}
    for name, cell in root.cells_and_names():
        yield f"{name} {type(cell).__module__}.{type(cell).__qualname__} training={cell.training}\n"
        for parameter in cell.get_parameters(expand=False):
            yield f"{parameter.name} {_content(parameter)} requires_grad={parameter.requires_grad}\n"
        for attribute, value in sorted(vars(cell).items()):
            if attribute not in of_mindspore and not attribute.startswith("_"):
                yield f"{attribute} {_content(value, by_value=True)}\n"


def _content(value: object, by_value: bool = False) -> tuple:
    """A value as a tuple that equals another's only if they are the same in a graph.

    Args:
        by_value: tensors are constants, and not arguments whose values a graph does not hold.
    """
    match value:
        case Tensor() if isinstance(value, Parameter) or not by_value:
            return ("tensor", str(value.dtype), tuple(value.shape))
        case Tensor():
            return ("constant", str(value.dtype), _content(value.asnumpy(), by_value))
        case np.ndarray():
            content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
            return ("array", str(value.dtype), value.shape, content)
        case tuple() | list():
            return (type(value).__name__, *(_content(item, by_value) for item in value))
        case None | bool() | int() | float() | str():
            return (type(value).__name__, repr(value))
    if not by_value:
        raise TypeError(f"an argument of a graph is a tensor, a number, a text, None or a tuple of these: {value!r}")
    return ("other", type(value).__qualname__)  # cells, operators, functions: made of sources and configuration


def _digest_of_files(folder: Path) -> str:
    """A hash of the names and contents of all files below a folder, but for Python's own compiled ones."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(folder)}\n{sha256(path)}\n".encode())
    return digest.hexdigest()
