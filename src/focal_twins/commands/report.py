"""Make the report of a run from its files, at any time: %(prog)s runs/NAME

Training makes it at a run's end; this makes it for a run that is still training, was interrupted, or whose data has
moved.
"""

from pathlib import Path

from focal_twins.cli import Parser


def main(arguments: list[str]) -> None:
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="of the page (RUN/report.html)")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="that holds val, if it is not where the configuration says"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(arguments)

    from focal_twins.reporting.run_report import write_report

    print(write_report(options.run, options.output, options.data))
