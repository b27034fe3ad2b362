"""Train a model: %(prog)s --config focalv2_digits [section.key=value ...]"""

import sys

from focal_twins.cli import configuration, make_parser, parse, with_local_data
from focal_twins.distributed.launch import check_device_num, command_again


def main(arguments: list[str]) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--pretrained", metavar="FILE|NAME", help="weights to start from (train.pretrained)")
    options = parse(parser, arguments)

    from focal_twins.data.staging import stage_out
    from focal_twins.distributed.ranks import start
    from focal_twins.reporting.run_report import report_or_warn
    from focal_twins.training.interruption import STOPPED, Stopped
    from focal_twins.training.run_folder import held
    from focal_twins.training.trainer import Trainer

    check_device_num(options.device_num, parser.prog, arguments)
    config = configuration(options, train__pretrained=options.pretrained)
    dist = start(config)
    trainer, code = None, 0
    try:
        with held(config.output, dist):
            trainer = Trainer(with_local_data(config, options), dist)
            trainer.run()
            if dist.is_main:
                report_or_warn(config.output)
        dist.barrier()  # launchers may end the others when one is done
    except Stopped as stop:
        if dist.is_main:
            command = command_again("train.resume=auto")
            print(f"{parser.prog}: {stop}; go on with:\n{command}", file=sys.stderr, flush=True)
        code = STOPPED
    finally:  # a failed run's checkpoints are worth as much
        if trainer is not None and options.run_openi and options.train_url and dist.is_main:
            stage_out(config.output, options.train_url)
    if code == STOPPED:  # for which a launcher ends the other processes at once
        dist.barrier()
    return code
