"""Compare runs: %(prog)s runs/A runs/B ... [--output compare.html]

It prints the results of each run and the configuration's keys in which they differ, and writes a page that lays their
curves over each other. Runs that still train, or were interrupted, are compared as far as they are.
"""

from pathlib import Path

from focal_twins.cli import Parser


def main(arguments: list[str]) -> None:
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--output", type=Path, default=Path("compare.html"), metavar="FILE", help="(compare.html)")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_intermixed_args(arguments)

    from focal_twins.files.atomic import write_text
    from focal_twins.reporting.comparison import Comparison

    comparison = Comparison.of(options.runs)
    print(comparison.text())
    write_text(options.output, comparison.page())
    print(f"\ncurves: {options.output}", flush=True)
