"""Measure what a save costs training: python scripts/benchmark_saves.py [--repeats 5] [--batch-size 256]

The network has 30 million parameters (four dense layers), as many as Focal Transformer v2 tiny; with moments and
average the state is 458 MiB.

The script saves the run's state in each of the ways below in turn, while updates go on, and after the system has
written everything that the way before left. It prints medians for each way: how long the loop stands still; how long it
takes until the file is there; the number of updates meanwhile, and their time, beside that of updates without a save.

    foreground           ckpt.write in the loop, synced to disk
    background           the project's: a copy in memory, then ckpt.write in a thread
    MindSpore, thread    mindspore.save_checkpoint(async_save="thread"), not synced
    MindSpore, process   mindspore.save_checkpoint(async_save="process"), not synced
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
os.environ.setdefault("GLOG_v", "4")

WIDTH = 2740


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--repeats", type=int, default=5)
    options.add_argument("--batch-size", type=int, default=256)
    options.add_argument("--folder", help="where to write; default: the system's temporary folder")
    options = options.parse_args()

    import mindspore as ms
    import numpy as np
    from mindspore import Tensor, nn

    from focal_twins.config.load import load_config
    from focal_twins.tasks.classification.loss import SoftTargetCrossEntropy
    from focal_twins.training.checkpoint import CheckpointFolder, TrainState
    from focal_twins.training.ema import ExponentialMovingAverage
    from focal_twins.training.optimizer import create_optimizer
    from focal_twins.training.saving import Saver
    from focal_twins.training.train_step import LossScale, TrainStep

    class Dense(nn.Cell):
        """Computes logits [B, WIDTH] of inputs [B, WIDTH]; ignores the regularisation inputs that models take."""

        def __init__(self):
            super().__init__()
            self.layers = nn.SequentialCell(*(nn.Dense(WIDTH, WIDTH) for _ in range(4)))

        def construct(self, x, drop_path=None, dropout_seed=None):
            return self.layers(x)

    ms.set_device("CPU")
    config = load_config("focalv2_digits")  # every save contains it as a text
    model = Dense()
    parameters = model.trainable_params()
    optimizer, scale = create_optimizer(model, config.optimizer), LossScale(1024.0, True, 2000)
    ema = ExponentialMovingAverage(parameters, 0.9999)
    state = TrainState(model, optimizer, scale, ema, config, ("none",))
    step = TrainStep(SoftTargetCrossEntropy(model), parameters, optimizer, scale, ema=ema).set_train()
    generator = np.random.default_rng(0)
    images = Tensor(generator.standard_normal((options.batch_size, WIDTH)).astype(np.float32))
    targets = Tensor(np.full((options.batch_size, WIDTH), 1 / WIDTH, np.float32))

    def update() -> float:
        start = time.perf_counter()
        step(Tensor(1e-5, ms.float32), True, Tensor(0.0, ms.float32), images, targets).asnumpy()
        return time.perf_counter() - start

    def save_by_mindspore(kind: str, path: Path) -> None:
        entries = [{"name": p.name, "data": p} for p in state.parameters()]
        ms.save_checkpoint(entries, str(path), crc_check=True, async_save=kind)

    def is_writing() -> bool:
        threads = [thread.name for thread in threading.enumerate()]
        return "save" in threads or "asyn_save_ckpt" in threads or bool(multiprocessing.active_children())

    for _ in range(3):
        update()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        savers = {
            kind: Saver(CheckpointFolder(Path(folder) / kind, 1), None, None, kind == "background")
            for kind in ("foreground", "background")
        }
        ways = {kind: lambda saver=saver: saver.save_within_epoch(state.snapshot()) for kind, saver in savers.items()}
        for kind in ("thread", "process"):
            ways[f"MindSpore, {kind}"] = lambda kind=kind: save_by_mindspore(kind, Path(folder) / f"{kind}.ckpt")
        figures: dict[str, dict[str, list[float]]] = {
            way: {"stall": [], "written": [], "updates": [], "during": []} for way in ways
        }
        idle = []
        for _ in range(options.repeats):
            for way, save in ways.items():
                os.sync()  # otherwise the next way would have to write what an unsynced way left in the page cache
                idle += [update() for _ in range(3)]
                start = time.perf_counter()
                save()
                stall, during = time.perf_counter() - start, []
                while is_writing():
                    during.append(update())
                times = figures[way]
                times["stall"].append(stall)
                times["written"].append(time.perf_counter() - start)
                times["updates"].append(len(during))
                times["during"] += during
        size = savers["foreground"].folder.last.stat().st_size
    print(f"{size / 2**20:.0f} MiB, update {median(idle):.2f} s without a save")
    for way, times in figures.items():
        spread = f"{min(times['stall']):.2f} to {max(times['stall']):.2f}"
        during = f", updates meanwhile {median(times['during']):.2f} s" if times["during"] else ""
        print(f"{way:20} stands still {median(times['stall']):.2f} s ({spread}), written after "
              f"{median(times['written']):.2f} s, {median(times['updates']):g} updates meanwhile{during}")  # fmt: skip


if __name__ == "__main__":
    main()
