"""Several processes that share each batch: the numbers of one, one view of the folders, one line
where something goes wrong.

Here they are forked, with the variables that torchrun would set; one test calls torchrun itself.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import train
from tools import encoders, machine, processes
from tools.small_runs import answer, call, read_logits, read_run, read_steps, small_task, start
from tools.testing import Words, one_batch, small_model, words_split

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parent.parent
can_fork = os.name == "posix" and dist.is_gloo_available()
pytestmark = pytest.mark.skipif(not can_fork, reason="needs POSIX processes and gloo")


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    """25 samples: the last batch of an epoch has one, fewer than there are processes.  The
    encoder has no dropout, since each process would draw its own."""
    return small_task(tmp_path_factory.mktemp("task"), samples=25, dropout=0.0)


@pytest.fixture(scope="session")
def noisy_task(tmp_path_factory):
    """With dropout everywhere."""
    return small_task(tmp_path_factory.mktemp("task"))


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def together(options, folder, prepare=None):
    """Two processes train; returns their exit statuses and what they wrote on standard error.

    prepare: called in each before it trains.
    """
    port, started = str(free_port()), []
    errors = [folder / f"errors of {rank}" for rank in (0, 1)]
    for rank in (0, 1):
        errors[rank].unlink(missing_ok=True)
        variables = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started.append(start(options, errors[rank], prepare, variables))
    for process in started:
        process.join(timeout=120)
    statuses = [process.exitcode for process in started]
    return statuses, [path.read_text().splitlines() for path in errors]


def lines_of_train(errors):
    """The lines that train.py itself wrote, of all processes together."""
    return [line for line in sum(errors, []) if line.startswith("train.py: ")]


# --------------------------------------------------------------------- the numbers of one


class KeepGradients:
    """Store the first step's gradients in a file of each process, before they are clipped; and
    let there be dropout before the classifiers, where all processes draw the same masks."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self):
        encoders.dropout_of = lambda config: 0.3
        real_clip = torch.nn.utils.clip_grad_norm_

        def clip(parameters, limit):
            parameters = list(parameters)
            path = self.folder / f"gradients of {processes.rank()}"
            if not path.exists():
                torch.save([p.grad for p in parameters], path)
            return real_clip(parameters, limit)

        torch.nn.utils.clip_grad_norm_ = clip


@pytest.mark.parametrize("method, at", [
    ("acl-cl", "parameters"),
    ("acl-cl", "features"),
    ("scl", "parameters"),
])
def test_two_processes_are_one(method, at, task, tmp_path, monkeypatch):
    """Half batches on two: losses, gradients, decisions, steps and dev logits of one process."""
    options = [*task, "--method", method]
    if at == "features":
        options += ["--conflict-at", "features"]
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    statuses, errors = together([*options, "--output", two], two, KeepGradients(two))
    assert statuses == [0, 0], errors
    for module, name in ((encoders, "dropout_of"), (torch.nn.utils, "clip_grad_norm_")):
        monkeypatch.setattr(module, name, getattr(module, name))  # and so put back afterwards
    KeepGradients(one)()
    assert call(*options, "--output", one) == 0

    wanted = torch.load(one / "gradients of 0")
    for rank in (0, 1):
        gradients = torch.load(two / f"gradients of {rank}")
        for gradient, expected in zip(gradients, wanted, strict=True):
            assert (gradient is None) == (expected is None)
            if gradient is not None:
                torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)

    one, two = (folder / f"mine_{method}_1" for folder in (one, two))
    assert len(read_steps(one)) == 14
    for a, b in zip(read_steps(one), read_steps(two), strict=True):
        assert a["kept"] == b["kept"]
        assert a["lr"] == b["lr"]
        for column in ("ce_loss", "acl_loss", "cosine"):
            if a[column] != b[column]:
                assert float(a[column]) == pytest.approx(float(b[column]), abs=5e-4)
    logits, expected = read_logits(two)["dev.logits"], read_logits(one)["dev.logits"]
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)


def test_processes_have_dropout_of_their_own(monkeypatch):
    """In the encoder; below the classifiers they have one mask for all."""
    model = small_model(dropout=0.3).train()
    batch = one_batch(words_split(), [3, 3, 3, 3], Words())
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes.dist, "all_reduce", lambda tensor: None)
    parts, states = [], []
    for rank in (0, 1):
        monkeypatch.setattr(processes, "rank", lambda: rank)
        torch.manual_seed(7)
        parts.append(processes.encode_together(model.encode, batch))  # (M, N, d)
        states.append(torch.get_rng_state())
    assert not parts[0][:, 1::2].any()
    assert not parts[1][:, 0::2].any()
    assert not torch.allclose(parts[0][:, 0::2], parts[1][:, 1::2])
    assert torch.equal(*states)


# ------------------------------------------------------------------ one view of the folders


class Disturb:
    """Lets a process be late at random wherever it waits for the others, the second one much
    later before it looks at a folder; and the first one stop at a step, if asked to."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at

    def __call__(self):
        rank = int(os.environ["RANK"])
        draw = random.Random(rank)

        def late(module, name, seconds):
            real = getattr(module, name)

            def function(*arguments, **options):
                time.sleep(seconds())
                return real(*arguments, **options)

            setattr(module, name, function)

        late(dist, "all_reduce", lambda: draw.choice([0, 0, 0.002]))
        late(dist, "broadcast_object_list", lambda: draw.uniform(0, 0.05))
        late(dist, "barrier", lambda: draw.uniform(0, 0.05))
        late(train.runs, "plan", lambda: 0.5 * rank)
        late(train.runs, "Run", lambda: 0.3 * rank)
        late(train.submission, "write", lambda: 0.2 * rank)

        real_step, steps = train.training_step, []

        def step(*arguments):
            steps.append(rank)
            if rank == 0 and len(steps) == self.stop_at:
                raise KeyboardInterrupt
            return real_step(*arguments)

        train.training_step = step


def test_late_processes_act_on_one_view(noisy_task, tmp_path):
    """Two seeds, stopped in the first, gone on with --resume and --predict by processes that are
    late at random: the bytes of two processes that nobody disturbed."""
    options = [*noisy_task, "--method", "acl-cl", "--seeds", "1", "2", "--predict", "--resume"]
    assert together([*options, "--output", tmp_path / "calm"], tmp_path)[0] == [0, 0]

    options += ["--output", tmp_path / "late"]
    statuses, errors = together(options, tmp_path, Disturb(stop_at=8))
    assert statuses == [130, 1]
    lines = lines_of_train(errors)
    assert lines[0] == "train.py: interrupted; the same command with --resume goes on"
    assert lines[1].startswith("train.py: another of the processes has ended (")
    assert len(lines) == 2

    statuses, errors = together(options, tmp_path, Disturb())
    assert statuses == [0, 0], errors
    for seed in (1, 2):
        calm, late = (tmp_path / name / f"mine_acl-cl_{seed}" for name in ("calm", "late"))
        assert read_run(calm) == read_run(late)

    # Both are finished: predictions are asked for again, and a third seed joins them.
    (tmp_path / "late" / "mine_acl-cl_1" / "mine.tsv").unlink()
    statuses, errors = together([*options, "--seeds", "3", "2", "1"], tmp_path, Disturb())
    assert statuses == [0, 0], errors
    calm, late = (tmp_path / name / "mine_acl-cl_1" for name in ("calm", "late"))
    assert read_run(calm) == read_run(late)
    assert len(read_steps(tmp_path / "late" / "mine_acl-cl_3")) == 12


# ------------------------------------------------------------------- where it goes wrong


def test_bad_input_ends_all_processes(noisy_task, tmp_path):
    """Found by the first process alone: one line in all, status 2 of all, and nobody waits."""
    options = [*noisy_task, "--method", "ce", "--output", tmp_path]
    run = tmp_path / "mine_ce_1"

    run.mkdir()
    statuses, errors = together(options, tmp_path)
    assert statuses == [2, 2]
    [line] = lines_of_train(errors)
    assert "use --resume" in line

    # Found by every process for itself.
    for option in ("--data", "--model"):
        statuses, errors = together([*options, "--resume", option, tmp_path / "gone"], tmp_path)
        assert statuses == [2, 2]
        [line] = lines_of_train(errors)
        assert f"{option} " in line

    # So are numbers that are not finite, which all have alike.
    statuses, errors = together([*options, "--resume", "--lr", "1e30"], tmp_path)
    assert statuses == [1, 1]
    [line] = lines_of_train(errors)
    assert "smaller --lr" in line

    # In the midst: a checkpoint that is torn, and options that are those of this very run.
    shutil.rmtree(run)
    statuses, errors = together([*options, "--resume"], tmp_path, Disturb(stop_at=8))
    assert statuses == [130, 1]
    (run / "checkpoint.pt").write_bytes(b"torn")
    statuses, errors = together([*options, "--resume"], tmp_path)
    assert statuses == [2, 2]
    [line] = lines_of_train(errors)
    assert "is torn" in line


class Die:
    """The second process is killed, or runs out of memory, at its third step."""

    def __init__(self, how):
        self.how = how

    def __call__(self):
        real_step, steps = train.training_step, []

        def step(*arguments):
            steps.append(1)
            if len(steps) == 3 and os.environ["RANK"] == "1":
                if self.how == "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise MemoryError
            return real_step(*arguments)

        train.training_step = step


@pytest.mark.parametrize("how", ["killed", "out of memory"])
def test_a_process_that_dies(how, noisy_task, tmp_path):
    """The others end with one line and a status of their own, and the command may go on."""
    options = [*noisy_task, "--method", "acl-cl", "--output", tmp_path, "--resume"]
    statuses, errors = together(options, tmp_path, Die(how))
    lines = lines_of_train(errors)
    assert statuses == [1, -signal.SIGKILL if how == "killed" else 1]
    assert lines[0].startswith("train.py: another of the processes has ended (")
    assert lines[0].endswith("; the same command with --resume goes on")
    if how == "out of memory":
        assert lines[1].startswith("train.py: out of memory (")
    assert not any("Traceback" in line for line in sum(errors, []))


@pytest.mark.parametrize("variables, words", [
    ({"WORLD_SIZE": "2"}, "RANK is not"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT is not"),
    ({"WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "two"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "no"}, "no"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "taken"}, "join"),
])
def test_variables_without_torchrun(variables, words, noisy_task, tmp_path, capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        if variables.get("MASTER_PORT") == "taken":
            variables = variables | {"MASTER_PORT": str(taken.getsockname()[1])}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        output = tmp_path / "runs"
        status, error = answer(capsys, *noisy_task, "--method", "ce", "--output", output)
    assert status == 2
    assert words in error
    assert "torchrun" in error
    assert error.count("\n") == 1
    assert not output.exists()


def test_more_processes_than_gpus(noisy_task, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    status, error = answer(capsys, *noisy_task, "--method", "ce", "--device", "cuda")
    assert status == 2
    assert "--nproc-per-node 1" in error
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert machine.number_of_gpu() == 0


def test_torchrun(noisy_task, tmp_path):
    """The command of the README."""
    options = [*noisy_task, "--method", "acl-cl", "--output", tmp_path, "--max-steps", "2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, "--standalone", "train.py", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 2  dev ") == 1  # said once, not by each of them
    assert len(read_steps(tmp_path / "mine_acl-cl_1")) == 2
