"""Check that an Ascend 910 computes what a CPU does: python scripts/check_ascend.py [section.key=value ...]

It makes an update of a small network of each kind in float32 and in mixed precision and compares it with figures of a
CPU, looks at overflow, export and speed, and prints a table to send back. Each check runs in a process of its own. On a
CPU everything runs that can. Several ranks (mpirun, msrun) make the checks of collectives alone.
"""

import shlex
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))  # Python puts only scripts/ there

from focal_twins.cli import Parser, parse, run
from focal_twins.device_checks.outcome import FAILED, HEADING, Outcome, summary, write_outcomes
from focal_twins.device_checks.running import command_of_this_script, run_apart, run_here
from focal_twins.distributed.launch import launched
from focal_twins.errors import UserError

CONFIGURATION = "focalv2_digits"  # of which only the section runtime counts here


def chosen(names: list[str], only: list[str], ranks: int, of_ranks: tuple[str, ...]) -> list[str]:
    """Return the names of the checks to run, in order: those that begin with one of `only`, if any is given.

    Raises:
        UserError: nothing begins so.
    """
    names = [name for name in names if ranks == 1 or name in of_ranks]
    for start in only:
        if not any(name.startswith(start) for name in names):
            raise UserError(f"--only {start}: no such check; there are {', '.join(names)}")
    return [name for name in names if not only or name.startswith(tuple(only))]


def main(arguments: list[str]) -> int:
    options = Parser(prog="check_ascend.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as runtime.jit_level=O2")
    options.add_argument("--only", nargs="+", default=[], metavar="CHECK", help="checks whose names begin so")
    options.add_argument("--list", action="store_true", help="print the names of the checks")
    options.add_argument("--seconds", type=float, default=900, help="that a check may take")
    options.add_argument("--output", type=Path, default=Path("check_ascend.json"), metavar="FILE")
    options.add_argument("--figures", type=Path, metavar="FILE", help="of a CPU; default: those of the package")
    options.add_argument("--write-figures", action="store_true", help="compute the figures of a CPU, and end")
    options.add_argument("--in-process", action="store_true", help="run all checks in this process")
    options.add_argument("--debug", action="store_true", help="show tracebacks and MindSpore's own messages")
    options = parse(options, arguments)
    if options.seconds <= 0:
        raise UserError("--seconds must be above 0")

    from focal_twins.config.load import load_config
    from focal_twins.device_checks.checks import CHECKS, OF_RANKS, Device
    from focal_twins.device_checks.figures import CPU_FIGURES, read_figures, write_figures
    from focal_twins.distributed.ranks import Dist, start

    ranks = launched().size
    names = chosen(list(CHECKS), options.only, ranks, OF_RANKS)
    if options.list:
        print("\n".join(names))
        return 0
    config = load_config(CONFIGURATION, options.overrides)
    file = options.figures or CPU_FIGURES
    if options.write_figures:
        if start(config).device_target != "CPU":
            raise UserError("--write-figures: the figures are those of a CPU; add runtime.device_target=CPU")
        write_figures(file, f"python scripts/check_ascend.py {shlex.join(arguments)}")
        return 0

    figures = read_figures(file)
    here = ranks > 1 or options.in_process
    device = Device(start(config) if here else Dist(), figures)
    is_main = device.dist.is_main
    if is_main:
        print(HEADING, flush=True)
    outcomes: dict[str, Outcome] = {}
    for name in names:
        if here:
            outcomes[name] = run_here(partial(CHECKS[name], device))
        else:
            own = [*options.overrides, "--in-process", "--figures", str(file.resolve()), "--only", name, "--output"]
            outcomes[name] = run_apart(name, command_of_this_script(own), options.seconds)
        if is_main:
            print(outcomes[name].row(name), flush=True)
            settings = {"arguments": shlex.join(arguments), "ranks": str(ranks)}
            write_outcomes(options.output, settings, outcomes)  # after each, for what is done if the rest is not
    if is_main:
        print(f"{summary(outcomes)}; send back this table and {options.output}", flush=True)
    return int(any(outcome.result == FAILED for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(run(main, "check_ascend.py"))
