"""Report the speed of a short training run in the lines of the Ascend PyTorch reports.

python scripts/performance_report.py RUN --ranks N --seconds S --output FOLDER

prints the result and writes FOLDER/<case>.log (and the losses to FOLDER/train_<case>_loss.txt) with the fields of the
reports' scripts (Ascend ModelZoo-PyTorch, FocalTransformer/test/train_performance_8p.sh). TrainingTime is milliseconds
of one update on all devices; theirs divides one device's batch by the rate of all.
"""

import json
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from focal_twins.cli import Parser, run

LAST_UPDATE = 20  # the line of this update covers updates 11 to 20; compilation and warming up come before


def main(arguments: list[str]) -> None:
    import yaml

    from focal_twins.errors import UserError
    from focal_twins.files.atomic import write_text

    options = Parser(prog="performance_report.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("run", type=Path, metavar="RUN", help="folder of a run with train.log_interval=10")
    options.add_argument("--ranks", type=int, required=True)
    options.add_argument("--seconds", type=int, required=True, help="the whole command's")
    options.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    options = options.parse_args(arguments)

    metrics = options.run / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        config = yaml.safe_load((options.run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{options.run}: not a finished run ({error})") from error
    updates = {line["update"]: line for line in lines if "loss_scale" in line}
    if LAST_UPDATE not in updates:
        raise UserError(f"{metrics}: has no line of update {LAST_UPDATE}; was the run shorter?")
    accuracies = [line["top1"] for line in lines if "top1" in line]
    rate = updates[LAST_UPDATE]["images_per_second"]
    batch_size = config["train"]["batch_size"]
    network = config["model"]["name"]
    case = f"{network}_bs{batch_size}_{options.ranks}p_perf"
    accuracy = f"{max(accuracies):.3f}" if accuracies else "none"
    global_batch = batch_size * config["train"]["accumulation_steps"] * options.ranks
    fields = {
        "Network": network,
        "RankSize": options.ranks,
        "BatchSize": batch_size,
        "DeviceType": platform.machine(),
        "CaseName": case,
        "ActualFPS": f"{rate:.2f}",
        "TrainingTime": f"{global_batch * 1000 / rate:.2f}",
        "TrainAccuracy": accuracy,
        "ActualLoss": f"{updates[LAST_UPDATE]['loss']:.4f}",
        "E2ETrainingTime": options.seconds,
    }
    write_text(options.output / f"{case}.log", "".join(f"{name} = {value}\n" for name, value in fields.items()))
    losses = "".join(f"{line['loss']:.4f}\n" for line in updates.values())
    write_text(options.output / f"train_{case}_loss.txt", losses)
    print("------------------ Final result ------------------")
    print(f"Final Performance images/sec : {rate:.2f}")
    print(f"Final Train Accuracy : {accuracy}")
    print(f"E2E Training Duration sec : {options.seconds}")


if __name__ == "__main__":
    sys.exit(run(main, "performance_report.py"))
