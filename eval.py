"""Evaluate a checkpoint or an exported file: python eval.py --config X [--checkpoint C] (without C, the run's best)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from focal_twins.cli import configuration, inference_parser, parse, run, with_local_data
from focal_twins.distributed.launch import check_device_num


def main(arguments: list[str]) -> None:
    options = inference_parser("eval.py", __doc__)
    options.add_argument(
        "--json", metavar="FILE", help="the report; default: in the run's folder, or beside a lone checkpoint"
    )
    options = parse(options, arguments)

    from focal_twins.distributed.ranks import start
    from focal_twins.inference.evaluate import evaluate_checkpoint

    check_device_num(options.device_num, "eval.py", arguments)
    config = configuration(options)
    dist = start(config)
    evaluate_checkpoint(with_local_data(config, options), dist, options.checkpoint, options.weights, options.json)


if __name__ == "__main__":
    sys.exit(run(main, "eval.py"))
