"""A training that stands still is reported once, with the rank that the others wait for."""

import threading
import time

from focal_twins.distributed.ranks import Dist
from focal_twins.training.watchdog import Position, Watchdog, stall_line

READING, TRAINING, EVALUATING = 0, 1, 2


def line(*positions, own=(17, TRAINING, 0.0)):
    return stall_line(list(positions), own, 300)


def test_the_rank_behind_is_named_with_what_it_does():
    waiting = Position(17, TRAINING, 300, "host a, process 1")
    behind = Position(17, READING, 305, "host b, process 2")
    assert line(waiting, behind, waiting) == (
        "nothing has moved for 300 s: ranks 0, 2 wait for rank 1, reading images for update 17 for 305 s "
        "(host b, process 2)"
    )
    assert "rank 0 waits for rank 1, evaluating after update 16" in line(
        waiting, Position(16, EVALUATING, 9, "host b, process 2")
    )


def test_a_silent_rank_is_named_before_all_others():
    text = line(Position(17, TRAINING), None, Position(17, READING))
    assert text.startswith("nothing has moved for 300 s: rank 1 gives no sign")
    assert text.endswith("ranks 0, 2 are in update 17")


def test_where_all_are_equal_there_is_nobody_to_blame():
    assert line(Position(17, TRAINING), Position(17, TRAINING)).endswith("every rank is in update 17")
    assert line(Position(17, TRAINING)).endswith("this process is in update 17")


def test_ranks_tell_each_other_and_the_main_one_tells_the_user(tmp_path):
    lines = {0: [], 1: []}
    told = threading.Event()

    def announcer(rank):
        return lambda text: (lines[rank].append(text), told.set())

    folder = tmp_path / "stalled"
    with (
        Watchdog(folder, Dist(1, 2), 2.0, announcer(1)) as other,
        Watchdog(folder, Dist(0, 2), 2.0, announcer(0)) as main,
    ):
        other.at("reading images for", 5)
        main.at("in", 5)
        assert told.wait(30)
        told.clear()
        main.at("reading images for", 6)
        assert told.wait(30)
        other.at("in", 5)
    assert not lines[1]
    assert "rank 0 waits for rank 1, reading images for update 5" in lines[0][0]
    assert lines[0][1].startswith("training moves again after")
    assert not folder.exists()


def test_nothing_is_said_while_training_moves(tmp_path):
    lines = []
    with Watchdog(tmp_path / "stalled", Dist(), 3.0, lines.append) as watchdog:
        for update in range(1, 9):
            watchdog.at("in", update)
            time.sleep(0.5)
    assert lines == []
    assert not (tmp_path / "stalled").exists()


def test_what_a_killed_run_said_is_not_believed(tmp_path):
    (tmp_path / "rank_1.json").write_text('{"update": 3, "stage": 1, "seconds": 300, "process": "of then"}')
    with Watchdog(tmp_path, Dist(1, 2), 300.0):
        assert not (tmp_path / "rank_1.json").exists()
