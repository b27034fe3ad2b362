"""Parses the command line that training, evaluation and export share, and runs the main functions of commands.

Besides `--config` and `section.key=value`, the flags of the 2022 reports keep working: --arch, --pretrained,
--device_target, --device_id, --device_num, --data_url, --train_url, --run_openi. They are other spellings of
configuration keys, or handled here.
"""

import argparse
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from focal_twins.distributed.launch import launched, leave
from focal_twins.errors import UserError

WEIGHTS = ("auto", "raw", "ema")
SECONDS_BEHIND_MAIN = 5.0
INTERRUPTED = 130  # exit code after Ctrl-C
BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


class Parser(argparse.ArgumentParser):
    """Reports bad flags in one line, like other bad input.

    Without `prog`, it has the name by which the program was called: train.py, or focal-twins train.
    """

    def error(self, message):
        raise UserError(f"{message}; see {self.prog} --help")


def boolean(text: str) -> bool:
    """Parse true or false, in the spellings of the old ports."""
    if text.lower() in BOOLEANS:
        return BOOLEANS[text.lower()]
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser of the flags that training, evaluation and export have."""
    result = Parser(description=description, allow_abbrev=False)
    result.add_argument("overrides", nargs="*", metavar="section.key=value", help="configuration values to replace")
    result.add_argument("--config", help="YAML file, or the name of one under configs/")
    result.add_argument("--arch", metavar="NAME", help="the same, by name")
    result.add_argument("--data_url", metavar="PATH", help="folder that holds train/ and val/ (data.path)")
    result.add_argument("--train_url", metavar="PATH", help="folder of the run (runtime.output)")
    result.add_argument(
        "--run_openi",
        type=boolean,
        default=False,
        metavar="true|false",
        help="copy the data from --data_url to local disk first and, in training, the run to --train_url afterwards",
    )
    result.add_argument("--device_target", help="auto, CPU or Ascend (runtime.device_target)")
    result.add_argument("--device_id", type=int, help="device of this process (runtime.device_id)")
    result.add_argument("--device_num", type=int, help="number of processes expected to have been launched")
    result.add_argument("--debug", action="store_true", help="show tracebacks and MindSpore's own messages")
    return result


def make_inference_parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser of the flags of `make_parser`, and of the choice of a checkpoint and its weights."""
    result = make_parser(description)
    result.add_argument(
        "--checkpoint",
        "--pretrained",
        metavar="FILE|NAME",
        help="a file or the name of published weights; default: the best of the configuration's run",
    )
    result.add_argument("--weights", choices=WEIGHTS, default="auto", help="auto: EMA weights if the file has them")
    return result


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Parse arguments. Values to replace may stand between flags, and --run_openi may stand alone for true."""
    following = [*arguments[1:], ""]
    arguments = [
        "--run_openi=true" if flag == "--run_openi" and value.lower() not in BOOLEANS else flag
        for flag, value in zip(arguments, following, strict=False)
    ]
    return parser.parse_intermixed_args(arguments)


def configuration(options, **extra: object):
    """Load the configuration that parsed options ask for. `extra` maps "section__key" to a value or None (not given).

    Raises:
        UserError: neither --config nor --arch was given, or both were; or load_config raises it.
    """
    from focal_twins.config.load import load_config

    if (options.config is None) == (options.arch is None):
        raise UserError("give one of --config FILE and --arch NAME")
    flags = {
        "data.path": options.data_url,
        "runtime.output": None if options.run_openi else options.train_url,
        "runtime.device_target": options.device_target,
        "runtime.device_id": options.device_id,
        **{key.replace("__", "."): value for key, value in extra.items()},
    }
    given_flags = {key: value for key, value in flags.items() if value is not None}
    return load_config(options.config or options.arch, options.overrides, given_flags)


def with_local_data(config, options):
    """Return the configuration; with --run_openi, copy its data to local disk and return it with that path.

    Raises:
        UserError: see stage_in.
    """
    from focal_twins.data.staging import stage_in

    return config.with_data_path(stage_in(config.data.path)) if options.run_openi else config


def run(main, script: str) -> int:
    """Call an entry point with the command line; return its exit code.

    `main` may return an exit code; None is 0. A UserError becomes one line on stderr and code 1, without a traceback
    unless --debug is given. Other exceptions are defects and print theirs. One of several processes does not return:
    see focal_twins.distributed.launch.leave.
    """
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    # This must be set before MindSpore is imported; therefore entry points import inside their functions. MindSpore
    # logs, over many lines, errors that it also raises.
    os.environ.setdefault("GLOG_v", "3" if debug else "4")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a line with a name that is not UTF-8 must not end a run
        sys.stdout.reconfigure(errors="backslashreplace")
    with _orderly_interrupts(script):
        code = _code_of(main, arguments, script, debug)
    leave(code)
    return code


def _code_of(main, arguments: list[str], script: str, debug: bool) -> int:
    """Call an entry point and print its error; return the exit code."""
    try:
        return main(arguments) or 0
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"{script}: error: {_rank_prefix()}{error}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print(f"{script}: interrupted", file=sys.stderr, flush=True)
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
    return 1


@contextmanager
def _orderly_interrupts(script: str) -> Iterator[None]:
    """End this process at once if Ctrl-C comes while MindSpore is being imported, or after the work.

    Half imported, MindSpore turns the KeyboardInterrupt into other errors, and crashes when Python ends; nothing has
    begun by then. After the work, MindSpore takes a moment to stop its workers in a finalizer, where Python ignores a
    KeyboardInterrupt and prints it. A process whose launcher ignores SIGINT goes on ignoring it.
    """

    def handle(number, frame):
        module = sys.modules.get("mindspore")
        is_importing = module is not None and getattr(module.__spec__, "_initializing", False)
        if is_importing or any(caller.f_code.co_name == "__del__" for caller, _ in traceback.walk_stack(frame)):
            with suppress(OSError):
                os.write(2, f"{script}: interrupted\n".encode())
            os._exit(INTERRUPTED)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _rank_prefix() -> str:
    """Return the prefix that tells this rank's lines from those of others; the main rank has none.

    Other ranks wait first. Most errors happen on all ranks: meanwhile the main rank has printed the error and the
    launcher has ended the others.
    """
    try:
        rank = launched().rank
    except UserError:  # then the broken launch is the error to print
        return ""
    if rank == 0:
        return ""
    time.sleep(SECONDS_BEHIND_MAIN)
    return f"rank {rank}: "
