"""What several processes must have in common, checked in each of them.

tests/distributed/test_ranks.py starts it. Each check that holds is a line; the first that does not ends the process.
"""

import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # for tests.X
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import mindspore as ms
import numpy as np

from focal_twins.config.load import load_config
from focal_twins.device_checks.checks import Device, check_collectives
from focal_twins.distributed import ranks
from focal_twins.distributed.launch import leave
from focal_twins.errors import UserError
from focal_twins.files.folder_lock import LOCK
from focal_twins.models.batch_norm import synchronise_batch_norms
from focal_twins.training.run_folder import held
from tests.models import test_batch_norm as batch_norm
from tests.tasks.detection import small_detection
from tests.tasks.segmentation import small_step
from tests.training import counted_losses as toy

DTYPES = ("int64", "uint8", "bool", "float16", "float32", "float64", "<U7", "i4, f8", ">i2")


def of_rank(rank, dtype, rows):
    """Any bits, NaN and numbers too small to be normal among them; a text or a pair of numbers as well."""
    generator = np.random.default_rng([rank, rows])
    if dtype == "<U7":
        return np.array([f"é{number}" for number in generator.integers(0, 10**5, rows)], dtype)
    if dtype == "bool":
        return generator.random((rows, 3)) < 0.5
    size = np.dtype(dtype).itemsize
    return generator.integers(0, 256, rows * 3 * size).astype(np.uint8).view(dtype).reshape(rows, 3)


def gather_brings_every_bit_in_the_order_of_ranks(dist):
    ranks.GATHERED_VALUES = 128 * dist.size  # several pieces
    for dtype in DTYPES:
        for rows in ([5 * rank for rank in range(dist.size)], [0] * dist.size, [200, *range(1, dist.size)]):
            gathered = dist.gather(of_rank(dist.rank, dtype, rows[dist.rank]))
            if not dist.is_main:
                assert gathered is None
                continue
            assert len(gathered) == dist.size
            for rank, array in enumerate(gathered):
                sent = of_rank(rank, dtype, rows[rank])
                assert (array.dtype, array.shape) == (sent.dtype, sent.shape)
                assert array.tobytes() == sent.tobytes()
    scalars = dist.gather(np.float64(dist.rank + 0.5))
    assert not dist.is_main or [array.item() for array in scalars] == [rank + 0.5 for rank in range(dist.size)]


def counted_losses_are_those_of_one_process(dist):
    for in_graph in (False, True):
        weights, losses = toy.reference(in_graph)
        assert np.abs(toy.reference(in_graph, means_of=dist.size)[0] - weights).max() > 1e-2
        for batches in (1, 2):
            network = toy.Network()
            reducer = dist.gradient_reducer(network.trainable_params())
            network, step = toy.build(
                in_graph, network=network, accumulation_steps=batches, reducer=reducer, ranks=dist.size
            )
            for update, loss in enumerate(losses):
                rows = toy.split(toy.rows_of(update), dist.size)[dist.rank]
                outcome = toy.make_update(step, toy.split(rows, batches))
                np.testing.assert_allclose(outcome[5:], loss, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(toy.weights_of(network), weights, rtol=1e-5, atol=1e-6)


def one_overflow_skips_the_update_of_all(dist):
    network = toy.Network()
    reducer = dist.gradient_reducer(network.trainable_params())
    network, step = toy.build(network=network, reducer=reducer, ranks=dist.size)
    x, y, chosen = toy.split(toy.rows_of(0), dist.size)[dist.rank]
    spoiled = y + np.float32(np.inf) if dist.rank == dist.size - 1 else y
    assert not toy.make_update(step, [(x, spoiled, 0 * chosen + 1)])[2]
    assert not toy.weights_of(network).any()
    assert toy.make_update(step, [(x, y, chosen)])[2]
    assert toy.weights_of(network).any()


def batch_norm_is_that_of_the_whole_batch(dist):
    x, factors = batch_norm.tokens((12, batch_norm.CHANNELS))
    reference = batch_norm.expected(x, factors)
    batch_norm.assert_equal(batch_norm.measured(batch_norm.build(), x, factors), reference)  # by this process alone
    layer = batch_norm.build()
    synchronise_batch_norms(layer, dist.size)
    rows = np.split(np.arange(12), dist.size)[dist.rank]
    out, by_tokens, by_weight, by_bias, *running = batch_norm.measured(layer, x[rows], factors[rows])
    by_weight, by_bias = dist.sum(by_weight), dist.sum(by_bias)
    whole = [reference[0][rows], reference[1][rows], *reference[2:]]
    batch_norm.assert_equal([out, by_tokens, by_weight, by_bias, *running], whole)


def a_folder_that_the_main_rank_cannot_have_ends_all(dist):
    with tempfile.NamedTemporaryFile() as file, tempfile.TemporaryDirectory() as folder:
        try:
            with held(Path(file.name), dist):
                raise AssertionError("a file is no folder")
        except UserError as error:
            assert ("File exists" if dist.is_main else "see the main process's line") in str(error)
        with held(Path(folder) / "run", dist):  # the folders of this check differ from rank to rank
            assert (Path(folder) / "run" / LOCK).exists() == dist.is_main


def is_that_of_one_process(dist, outcome_of_run, **options):
    """The parameters and losses after some updates are those that a process comes to alone."""
    ms.set_context(mode=ms.PYNATIVE_MODE, pynative_synchronize=True)  # as in tests/conftest.py
    expected, losses = outcome_of_run(**options)
    found, losses_of_ranks = outcome_of_run(dist.rank, dist.size, dist.gradient_reducer, **options)
    ms.set_context(mode=ms.GRAPH_MODE)
    np.testing.assert_allclose(losses_of_ranks, losses, rtol=1e-5)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-4 * np.abs(value).max(), err_msg=name)


def segmentation_is_that_of_one_process(dist):
    """Weights and running statistics: images of a rank have other shares of pixels without a class."""
    is_that_of_one_process(dist, small_step.outcome_of_run)


def detection_is_that_of_one_process(dist):
    """One stage and two: images have other numbers of objects, and the images of a rank as well."""
    for section in (None, small_detection.MASK_RCNN):
        is_that_of_one_process(dist, small_detection.outcome_of_run, section=section)


def collectives_pass_the_check_of_devices(dist):
    outcome = check_collectives(Device(dist, {}))
    assert outcome.result == "passed", outcome.found
    alike = replace(dist, rank=0)  # so that no rank adds what another does not
    assert "a sum of 1 values is wrong" in check_collectives(Device(alike, {})).found


CHECKS = (
    collectives_pass_the_check_of_devices,
    a_folder_that_the_main_rank_cannot_have_ends_all,
    gather_brings_every_bit_in_the_order_of_ranks,
    counted_losses_are_those_of_one_process,
    one_overflow_skips_the_update_of_all,
    batch_norm_is_that_of_the_whole_batch,
    segmentation_is_that_of_one_process,
    detection_is_that_of_one_process,
)


def main():
    dist = ranks.start(load_config("focalv2_digits"))
    for check in CHECKS:
        check(dist)
        print(f"rank {dist.rank} of {dist.size}: {check.__name__}", flush=True)
    dist.barrier()


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        leave(1)
        raise
    leave(0)
