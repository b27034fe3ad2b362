"""What training shows: a bar on a terminal, of which the loss stays, and plain lines elsewhere."""

import sys

import pytest

from focal_twins.training.progress import ProgressLog


@pytest.mark.parametrize("terminal", [True, False])
def test_the_loss_of_an_epochs_last_update_stays(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    log = ProgressLog(epochs=2, updates_per_epoch=3, first_update=0, log_interval=1, enabled=True)
    log.start_epoch(1)
    for update in (1, 2, 3):
        log.advance(update, lambda: None)
        log.show(update, 8, 1 / update, 1e-3)
    log.end_epoch()
    log.line("epoch 1/2  raw top-1 50.00%")
    lines = capsys.readouterr().out.replace("\r", "\n").splitlines()
    last = [line for line in lines if line.startswith("epoch 1/2  update 3/3  loss 0.3333  lr 1.000e-03")]
    assert len(last) == 1 and lines.index(last[0]) < lines.index("epoch 1/2  raw top-1 50.00%")
    assert len([line for line in lines if "update 1/3  loss 1.0000" in line]) == (0 if terminal else 1)
