"""Make the report of a run from its files, at any time: python scripts/report.py runs/NAME

train.py makes it at a run's end; this script makes it for a run that is still training, was interrupted, or whose data
has moved.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from focal_twins.cli import Parser, run


def main(arguments: list[str]) -> None:
    parser = Parser(prog="report.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--output", type=Path, metavar="FILE", help="of the page (RUN/report.html)")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="that holds val, if it is not where the configuration says"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    options = parser.parse_args(arguments)

    from focal_twins.reporting.run_report import write_report

    print(write_report(options.run, options.output, options.data))


if __name__ == "__main__":
    sys.exit(run(main, "report.py"))
