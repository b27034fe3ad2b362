"""Matching of proposals with objects, and sampling by keys, in tables."""

import numpy as np
from mindspore import Tensor

from focal_twins.models.detectors.sampling import RoISampler


def boxes(*intervals):
    """Boxes [n, 4] on a line, whose overlaps are those of intervals (left, right)."""
    return np.array([[left, 0, right, 10] for left, right in intervals], np.float32)


def sample(sampler, proposals, truth, keys, is_proposal=None, is_truth=None):
    """One image's sample: edges of the boxes, matches, whether there is one, whether it is an object's own."""
    is_proposal = np.ones(len(proposals)) if is_proposal is None else is_proposal
    is_truth = np.ones(len(truth)) if is_truth is None else is_truth
    arrays = sampler(*(Tensor(np.float32(a)[None]) for a in (proposals, is_proposal, truth, is_truth, keys)))
    edges, matched, is_sample, is_own = (array.asnumpy()[0] for array in arrays)
    return [tuple(box[[0, 2]]) for box in edges], *(array.tolist() for array in (matched, is_sample, is_own))


def first_comes_first(count):
    return np.arange(count)[::-1]


def test_a_proposal_has_the_object_that_it_overlaps_enough():
    """Overlaps with the objects are 0.5 and 0, 0.25 and 0, 0 and 0.82, 0 and 0."""
    proposals = boxes((0, 20), (5, 20), (121, 131), (60, 70))
    edges, matched, is_sample, is_own = sample(
        RoISampler(6, 4, 0.5, False), proposals, boxes((0, 10), (120, 130)), first_comes_first(6)
    )
    assert edges == [(0, 10), (120, 130), (0, 20), (121, 131), (5, 20), (60, 70)]
    assert matched == [0, 1, 0, 1, -1, -1]
    assert is_own == [1, 1, 0, 0, 0, 0]
    assert is_sample == [1] * 6
    matched = sample(RoISampler(6, 4, 0.6, False), proposals, boxes((0, 10), (120, 130)), first_comes_first(6))[1]
    assert matched == [0, 1, 1, -1, -1, -1]


def test_the_best_proposal_of_an_object_has_that_object():
    """(0, 12) overlaps the second object more, but none overlaps the first object more than it does."""
    given = boxes((0, 12), (0, 14)), boxes((0, 10), (0, 14)), first_comes_first(4)
    assert sample(RoISampler(4, 4, 0.5, False), *given)[1] == [0, 1, 1, 1]
    assert sample(RoISampler(4, 4, 0.5, True), *given)[1] == [0, 1, 0, 1]
    assert sample(RoISampler(4, 4, 0.85, True), *given)[1] == [0, 1, 1, 1]  # it overlaps by 0.83


def test_positives_are_limited_and_the_rest_is_background():
    """Positives in excess are no samples: they are neither of the two."""
    proposals, truth = boxes((0, 9), (1, 10), (0, 11), (50, 60), (70, 80)), boxes((0, 10))
    keys = [0, 3, 1, 5, 2, 4]  # the object itself has the lowest
    edges, matched, is_sample, is_own = sample(RoISampler(6, 2, 0.5, False), proposals, truth, keys)
    assert edges[:4] == [(0, 11), (0, 9), (70, 80), (50, 60)]
    assert matched == [0, 0, -1, -1, -1, -1]
    assert is_sample == [1, 1, 1, 1, 0, 0]
    assert is_own[:4] == [0] * 4
    edges, matched, is_sample, _ = sample(RoISampler(3, 2, 0.5, False), proposals, truth, keys)
    assert (edges, matched, is_sample) == ([(0, 11), (0, 9), (70, 80)], [0, 0, -1], [1, 1, 1])


def test_what_is_not_there_is_not_sampled():
    """Padding of objects and proposals; an image without an object; more samples than candidates."""
    proposals, truth = boxes((0, 10), (50, 60), (0, 0)), boxes((0, 10), (0, 0))
    sampler = RoISampler(8, 2, 0.5, True)
    edges, matched, is_sample, _ = sample(sampler, proposals, truth, first_comes_first(5), [1, 1, 0], [1, 0])
    assert edges[:3] == [(0, 10), (0, 10), (50, 60)]
    assert (matched, is_sample) == ([0, 0, -1, -1, -1], [1, 1, 1, 0, 0])
    edges, matched, is_sample, _ = sample(sampler, proposals, truth, first_comes_first(5), [1, 1, 0], [0, 0])
    assert edges[:2] == [(0, 10), (50, 60)]
    assert (matched, is_sample) == ([-1] * 5, [1, 1, 0, 0, 0])


def test_a_sample_depends_on_its_own_image_alone():
    """Every candidate is as likely as another, and a batch samples as its images do one by one."""
    generator, sampler = np.random.default_rng(0), RoISampler(8, 3, 0.5, True)
    left = generator.uniform(0, 40, (4, 30))
    proposals = np.stack([left, left * 0, left + 10, left * 0 + 10], 2).astype(np.float32)
    truth = proposals[:, :2] + np.float32([1, 0, 1, 0])
    keys = np.stack([generator.permutation(50) for _ in range(4)]).astype(np.float32)  # more than there are candidates
    exists = np.ones((4, 30), np.float32), np.ones((4, 2), np.float32)
    together = sampler(*map(Tensor, (proposals, exists[0], truth, exists[1], keys)))
    for i in range(4):
        alone = sampler(*(Tensor(a[i : i + 1]) for a in (proposals, exists[0], truth, exists[1], keys)))
        for one, all_of_them in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one.asnumpy()[0], all_of_them.asnumpy()[i])
