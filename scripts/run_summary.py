"""Print the results of a run in a few lines: python scripts/run_summary.py runs/focalv2_digits"""

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run

    summary = json.loads((run / "summary.json").read_text())
    print(f"\n{run.name}: {summary['epochs']} epochs in {summary['seconds']:.0f} s, compilation included")
    for weights in ("raw", "ema"):
        result = json.loads((run / f"eval_{weights}.json").read_text())
        accuracy = f"top-1 {result['top1']:.2f}%  top-5 {result['top5']:.2f}%"
        print(f"  {weights} weights    {accuracy}  ({result['count']} images, {result['checkpoint']})")
    for label, path in (
        ("checkpoint", run / "checkpoints" / "best.ckpt"),
        ("MINDIR", run / f"{run.name}.mindir"),
        ("configuration", run / "config.yaml"),
        ("report", run / "report.html"),
    ):
        print(f"  {label:14} {path}")
    (prediction,) = json.loads((run / "prediction.json").read_text())
    image, (best, *_) = Path(prediction["image"]), prediction["predictions"]
    print(f"  prediction     {image}: {best['class']} ({best['probability']:.2%}), truth {image.parent.name}")


if __name__ == "__main__":
    main()
