"""Two processes that share each batch: the numbers of one, and only the first one writes.

They get the variables that torchrun sets, and are forked from one that has everything imported.
"""

import multiprocessing
import os
import socket
import sys

import pytest
import torch

import train
from tests.small import call, small_task
from tools import encoders
from tools.run import read_run

torch.set_num_threads(1)  # small tensors: a second thread only waits
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs processes that fork")


def some_dropout(config):
    """Before the classifiers, where all processes draw the same masks."""
    return 0.3


def child(rank, port, argv, errors):
    """One of the two processes: `python train.py ARGV`."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    sys.stdout = open(os.devnull, "w")
    sys.stderr = open(errors, "w", buffering=1)
    torch.set_num_threads(1)
    encoders.dropout_of = some_dropout
    os._exit(call(train.main, *argv))


def together(argv, folder):
    """Two processes train; returns their exit statuses and what they wrote on standard error."""
    multiprocessing.set_forkserver_preload(["tests.test_processes"])
    context = multiprocessing.get_context("forkserver")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    pair = []
    for rank in (0, 1):
        errors = folder / f"errors of {rank}"
        process = context.Process(target=child, args=(rank, port, argv, errors))
        process.start()
        pair.append(process)
    for process in pair:
        process.join(timeout=120)
    errors = [path.read_text() for path in folder.glob("errors of *")]
    return [process.exitcode for process in pair], errors


@pytest.mark.parametrize("gate", [
    ["--method", "acl-cl"],
    ["--method", "scl", "--conflict", "discard", "--conflict-at", "features"],
])
def test_two_processes_are_one(gate, tmp_path, monkeypatch):
    """Losses, decisions, logits, predictions.  Of 25 samples the epoch's last batch has one, fewer
    than there are processes.  The encoder's dropout, which each draws for itself, is off."""
    monkeypatch.setattr(encoders, "dropout_of", some_dropout)
    options = [*small_task(tmp_path, samples=25, dropout=0.0), *gate, "--predict"]
    assert together([*options, "--output", str(tmp_path / "two")], tmp_path)[0] == [0, 0]
    assert call(train.main, *options, "--output", tmp_path / "one") == 0
    name = f"mine_{gate[1]}_1"
    one, two = (read_run(tmp_path / output / name) for output in ("one", "two"))
    assert len(one.steps) == 14
    for column, tolerance in {"ce_loss": 5e-4, "acl_loss": 5e-4, "cosine": 2e-3, "kept": 0}.items():
        expected = one.steps[column].tolist()
        assert two.steps[column].tolist() == pytest.approx(expected, abs=tolerance)
    torch.testing.assert_close(two.logits, one.logits, atol=1e-3, rtol=0)
    assert (two.folder / "mine.tsv").read_text() == (one.folder / "mine.tsv").read_text()


def test_bad_input_ends_both(tmp_path):
    """The first alone looks at the folder; nobody waits for the other."""
    options = [*small_task(tmp_path), "--method", "ce", "--output", str(tmp_path)]
    (tmp_path / "mine_ce_1").mkdir()
    statuses, errors = together(options, tmp_path)
    assert statuses == [2, 2]
    assert all("is unfinished; use --resume" in text for text in errors)
