"""train.py end to end: one run and its files, what a command finds there, stops and resumes.

The losses and the surgery themselves are tested in test_acl.py, one step, the optimizer and its
schedule in tools/test_steps.py.  Runs here take a fraction of a second (tools/small_runs.py).
"""

import builtins
import errno
import itertools
import math
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import datasets
import filelock
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModel, BertModel

import acl
import exits
import glue
import train
from tools import command_line, files, machine, models, progress, runs, submission
from tools.geometry import geometry
from tools.small_runs import (
    answer,
    call,
    read_logits,
    read_run,
    read_steps,
    small_task,
    start,
)
from tools.testing import Words, labels_of, small_model, words_split

torch.set_num_threads(1)  # small tensors: a second thread only waits
ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
on_posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX files")


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    """Options of train.py for the small task."""
    return small_task(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="session")
def whole(task, tmp_path_factory):
    """A run that nobody disturbed."""
    output = tmp_path_factory.mktemp("whole")
    assert call(*task, "--method", "acl-cl", "--output", output, "--predict") == 0
    return output / "mine_acl-cl_1"


def copied(run, output):
    """A run's folder that a test may change."""
    return Path(shutil.copytree(run, output / run.name))


def stop_at_step(monkeypatch, number, error=KeyboardInterrupt):
    """The optimizer's `number`-th step, from 1, raises the error instead."""
    real_step = torch.optim.AdamW.step
    steps = itertools.count(1)

    def step(*arguments, **options):
        if next(steps) == number:
            raise error
        return real_step(*arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)


# ------------------------------------------------------------------------------ precision


def test_precision(monkeypatch):
    """fp32 and bf16 as asked for; auto means bf16 where the processor computes in it."""
    assert machine.use_bf16("bf16", CPU) is True
    assert machine.use_bf16("fp32", CPU) is False
    for name in ("avx512_bf16", "amx_bf16"):
        for has_it in (True, False):
            monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {name: has_it})
            assert machine.use_bf16("auto", CPU) is has_it
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    assert machine.use_bf16("auto", CPU) is False


# --------------------------------------------------------------------------- a run's files


def test_the_files_of_a_run_agree(whole, capsys):
    result = files.read_json(whole / "result.json")
    config = files.read_json(whole / "config.json")
    assert result["steps"] == 12
    assert result["exit_layers"] == config["exit_layers"] == [1, 2]
    assert config["seed"] == 1
    assert config["weight"] == 0.1
    assert config["versions"]["torch"] == torch.__version__

    steps = read_steps(whole)
    assert [int(row["step"]) for row in steps] == list(range(1, 13))
    assert [row["epoch"] for row in steps] == ["1"] * 6 + ["2"] * 6
    for row in steps:
        cosine = float(row["cosine"])
        angle = math.degrees(math.acos(cosine))
        assert float(row["angle"]) == pytest.approx(angle, abs=1e-2)
        assert float(row["kept"]) == (cosine >= 0)
    assert result["kept"] == pytest.approx(1 - result["conflict_share"])

    # Warm-up over a tenth of the steps, then down to 0.
    lrs = [float(row["lr"]) for row in steps]
    assert lrs[0] == 0
    assert max(lrs) == lrs[1] == 1e-3
    assert lrs[1:] == sorted(lrs[1:], reverse=True)
    assert lrs[-1] == pytest.approx(1e-3 / 11, rel=1e-3)

    rows = [row for row in files.read_csv(whole / "exits.csv") if row["epoch"] == "2"]
    assert [float(row["accuracy"]) for row in rows] == pytest.approx(result["exit_scores"])
    predictions = files.read_csv(whole / "mine.tsv")
    assert len(predictions) == 5
    assert list(predictions[0]) == ["index\tprediction"]


def test_every_method_with_every_gate(task, tmp_path):
    """No combination fails, and steps.csv has an angle where a gate looked."""
    everything = itertools.product(train.METHODS, train.GATES, ("parameters", "features"))
    run = 0
    for method, rule, at in everything:
        options = [*task, "--method", method, "--conflict", rule, "--conflict-at", at]
        try:
            train.parse_args(options)
        except SystemExit:  # a combination that makes no sense
            continue
        # The other methods differ from acl-cl in the loss alone, so one rule will do.
        if method != "acl-cl" and rule not in ("none", "discard"):
            continue
        run += 1
        output = tmp_path / str(run)
        assert call(*options, "--max-steps", "2", "--output", output) == 0
        steps = read_steps(output / f"mine_{method}_1")
        assert len(steps) == 2
        assert all((row["kept"] == "") == (rule == "none") for row in steps)
        assert (float(steps[0]["acl_loss"]) > 0) == (method != "ce")
    assert run == 1 + 3 * 3 + 8 + 2  # ce; scl, acl-embed, acl-grad; acl-cl; kd


@pytest.mark.parametrize("threads", [1, 2])
def test_same_command_same_bytes(threads, task, tmp_path):
    options = [*task, "--method", "acl-cl", "--max-steps", "2", "--output"]
    torch.set_num_threads(threads)
    try:
        for output in ("a", "b"):
            assert call(*options, tmp_path / output) == 0
    finally:
        torch.set_num_threads(1)
    a, b = (read_run(tmp_path / output / "mine_acl-cl_1") for output in ("a", "b"))
    assert a == b


def test_stored_logits_are_the_models(task, whole):
    run = models.load_run(whole)
    args = train.parse_args([*task, "--method", "acl-cl"])
    _, splits = glue.load_task(args.task, args.data)
    split = glue.tokenize(splits["dev"], run.tokenizer, run.config["max_length"])
    _, logits = exits.all_exits(run.model, split, run.tokenizer, CPU)
    stored = read_logits(whole)
    assert torch.equal(stored["dev.logits"], logits)
    assert torch.equal(stored["dev.labels"], labels_of(split))


def test_model_folder_is_the_trained_encoder(task, whole, tmp_path, capsys):
    """As the library reads it, weight by weight; and --model takes it for another task."""
    trained = AutoModel.from_pretrained(whole / "model").state_dict()
    ours = models.load_run(whole).model.encoder.state_dict()
    args = train.parse_args([*task, "--method", "ce"])
    before = AutoModel.from_pretrained(args.model).state_dict()
    assert list(trained) == list(ours) == list(before)
    moved = 0
    for name, weight in trained.items():
        assert torch.equal(weight, ours[name])
        moved += not torch.equal(weight, before[name])
    assert moved > 20

    # The next run starts from these weights: at a learning rate of next to nothing it ends there.
    options = [*task, "--method", "ce", "--model", whole / "model"]
    assert call(*options, "--lr", "1e-12", "--output", tmp_path) == 0
    after = AutoModel.from_pretrained(tmp_path / "mine_ce_1" / "model").state_dict()
    for name, weight in after.items():
        torch.testing.assert_close(weight, trained[name], atol=1e-6, rtol=0)

    # The early form of a model folder: all weights have another name, so all would be random.
    old = Path(shutil.copytree(whole / "model", tmp_path / "old"))
    weights = {f"encoder.{name}": weight for name, weight in trained.items()}
    weights["classifiers.0.weight"] = torch.zeros(2, 16)
    safetensors.torch.save_file(weights, old / "model.safetensors")
    status, error = answer(capsys, *task, "--method", "ce", "--model", old)
    assert status == 2
    assert "lacks weights" in error.splitlines()[-1]


@on_posix
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_of_the_umask(umask, task, tmp_path):
    before = os.umask(umask)
    try:
        call(*task, "--method", "acl-cl", "--max-steps", "1", "--predict", "--output", tmp_path)
        # A checkpoint is there only while the run is unfinished.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs.Run, "finish", lambda *arguments: None)
            call(*task, "--method", "ce", "--max-steps", "1", "--output", tmp_path)
    finally:
        os.umask(before)
    names = set()
    for path in tmp_path.rglob("*"):
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        if path.name == ".lock":
            wanted &= 0o644  # nobody else shall hold it
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
        names.add(path.name)
    assert {"checkpoint.pt", "model.safetensors", "dev_logits.safetensors", "mine.tsv",
            "tokenizer.json", "classifiers.safetensors", "steps.csv"} < names


def test_finish_by_hand(tmp_path):
    """MNLI, two exits: result.json from handmade logs, submissions from the deepest exit."""
    args = train.parse_args("--task mnli --method acl-cl --exits 1,2 --batch-size 2".split())
    mnli = glue.TASKS["mnli"]
    model = small_model(num_layers=2, num_labels=3)
    run = runs.Run(tmp_path, {"task": "mnli"})
    (tmp_path / "checkpoint.pt").write_bytes(b"")

    scores = [
        (1, "dev_matched", 1, 99.0), (1, "dev_matched", 2, 40.0),
        (2, "dev_matched", 1, 75.0), (2, "dev_matched", 2, 60.0), (2, "dev_mismatched", 2, 98.0),
        (3, "dev_matched", 1, 75.0), (3, "dev_matched", 2, 50.0),
        (3, "dev_mismatched", 1, 1.0), (3, "dev_mismatched", 2, 2.0),
    ]
    columns = ("epoch", "split", "exit_layer", "accuracy")
    run.log_exits([dict(zip(columns, row)) for row in scores])
    angles = [(0.0, 90.0, 1.0), (math.nan, math.nan, 0.0), (-0.5, 120.0, 0.0), (0.1, 84.261, 1.0)]
    for cosine, angle, kept in [*angles, (None, None, None)]:
        run.log_step({"step": 1, "cosine": cosine, "angle": angle, "kept": kept})
    run.seconds = 3.0

    logits = F.one_hot(torch.tensor([[0, 1, 2, 1], [0, 1, 1, 1]]), 3).float()  # (2, 4, 3)
    result = runs.summary(run, mnli, args, 1, [1, 2], examples=12)
    labels = torch.tensor([2, 1, 2, 2])
    dev = {"dev_matched.logits": logits, "dev_matched.labels": labels}
    run.finish(model, Words(), dev, result)
    result = files.read_json(tmp_path / "result.json")
    assert not (tmp_path / "checkpoint.pt").exists()
    assert result["score"] == 50
    assert result["exit_scores"] == [75, 50]
    assert result["mean_exit_score"] == 62.5
    assert result["majority_score"] == 75
    assert result["dev"] == {"dev_matched": {"accuracy": 50}, "dev_mismatched": {"accuracy": 2}}
    assert result["best_epoch_picked_on_dev"] == {"epoch": 2, "score": 60}
    assert result["conflict_share"] == 0.5
    assert result["non_finite"] == 1
    assert result["kept"] == 0.5
    assert result["examples_per_second"] == 4
    cells = [tuple(row.values()) for row in read_steps(tmp_path)]
    assert cells[1:3] == [("1", "nan", "nan", "0.0000"), ("1", "-0.500000", "120.000", "0.0000")]
    assert cells[4] == ("1", "", "", "")

    # The submission: GLUE's file names, the task's own words, the deepest exit's opinion.
    splits = {"test_matched": words_split(4), "test_mismatched": words_split(5)}
    submission.write(model, mnli, splits, Words(), CPU, tmp_path)
    for name, file in {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"}.items():
        _, said = exits.all_exits(model, splits[name], Words(), CPU)
        predictions = said.argmax(-1).tolist()
        assert predictions[0] != predictions[1]  # the seed shows which exit answers
        lines = [f"{i}\t{mnli.labels[k]}\n" for i, k in enumerate(predictions[1])]
        assert (tmp_path / file).read_text() == "index\tprediction\n" + "".join(lines)


def test_geometry_is_each_exits_own():
    model, split = small_model(), words_split()
    splits = {"dev": split, "train": split}
    dev, rows = train.evaluate(model, glue.TASKS["rte"], splits, Words(), CPU)
    h, logits = exits.all_exits(model, split, Words(), CPU, keep_h=9)
    labels = labels_of(split)
    assert list(dev) == ["dev.logits", "dev.labels"]
    assert torch.equal(dev["dev.logits"], logits)
    assert torch.equal(dev["dev.labels"], labels)
    for m, row in enumerate(rows):
        label_embeddings = model.classifiers[m].weight.detach()
        wanted = {"split": "dev", "exit_layer": m + 1}
        wanted["accuracy"] = glue.accuracy(logits[m].argmax(-1), labels)
        assert row == wanted | geometry(h[m], labels, label_embeddings)


def test_a_steps_row_holds_numbers(task, tmp_path, monkeypatch):
    """Whoever adds a line to send it elsewhere gets numbers, None where no gate looked."""
    rows = []
    monkeypatch.setattr(runs.Run, "log_step", lambda run, row: rows.append(dict(row)))
    result = {"metric": "accuracy", "dev": {"dev": {}}, "examples": 1}
    monkeypatch.setattr(runs, "summary", lambda *arguments: dict(result))
    for method in ("acl-cl", "ce"):
        call(*task, "--method", method, "--max-steps", "2", "--output", tmp_path)
    names = ["step", "epoch", "ce_loss", "acl_loss", "cosine", "angle", "kept", "lr"]
    assert all(list(row) == names for row in rows)
    for row in rows[:2]:
        assert all(type(number) in (int, float) for number in row.values())
    assert rows[2]["cosine"] is None
    assert type(rows[2]["ce_loss"]) is float


def test_seeds_epochs_and_steps(task, tmp_path, monkeypatch, capsys):
    """Each epoch and seed has an order, each seed a start, each step a dropout mask and gradient
    of its own, and that gradient is clipped."""
    batches, norms, clipped = [], [], []
    real_step, real_clip = train.training_step, torch.nn.utils.clip_grad_norm_

    def watch_step(args, model, batch, weight, bf16):
        tokens = batch["input_ids"].tolist()
        start = model.classifiers[0].weight.detach().clone()
        batches.append((tokens, model.training, start, torch.initial_seed()))
        return real_step(args, model, batch, weight, bf16)

    def watch_clip(parameters, limit):
        parameters = list(parameters)
        norms.append(real_clip(parameters, limit))
        gradients = [p.grad.norm() for p in parameters if p.grad is not None]
        clipped.append(torch.stack(gradients).norm().item())
        return norms[-1]

    monkeypatch.setattr(train, "training_step", watch_step)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", watch_clip)
    options = "--method scl --seeds 1 2 --batch-size 24 --lr 1e-9 --temperature 0.01 --weight 0.9"
    assert call(*task, *options.split(), "--output", tmp_path) == 0

    orders = [tokens for tokens, _, _, _ in batches]
    assert len(orders) == 4
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert all(sorted(order) == sorted(orders[0]) for order in orders)
    assert all(training for _, training, _, _ in batches)
    assert len({seed for _, _, _, seed in batches}) == 4
    assert not torch.equal(batches[0][2], batches[2][2])
    assert min(norms) > 1
    assert clipped == pytest.approx([1] * 4, rel=1e-3)

    results = [files.read_json(tmp_path / f"mine_scl_{seed}" / "result.json") for seed in (1, 2)]
    a, b = (result["score"] for result in results)
    closing = f"accuracy {(a + b) / 2:.2f}, sd {abs(a - b) / 2**0.5:.2f} (2 seeds)"
    assert capsys.readouterr().out.splitlines()[-1] == closing


# ------------------------------------------------------------- what a command finds already


def test_a_finished_run(task, whole, tmp_path, capsys):
    """The same command shows it; another option is another run; --predict and more seeds go on
    from it; the folder's bytes stay."""
    run = copied(whole, tmp_path)
    before = read_run(run)
    options = [*task, "--method", "acl-cl", "--output", tmp_path]
    for again in (options, [*options, "--resume"], [*options, "--save-steps", "2"]):
        assert answer(capsys, *again) == (0, "")
        assert read_run(run) == before
    assert call(*options) == 0
    shown = capsys.readouterr().out
    assert "finished before" in shown
    assert str(run) in shown
    for option, value in {"lr": "0.1", "precision": "bf16", "holdout": "3"}.items():
        status, error = answer(capsys, *options, "--resume", f"--{option}", value)
        assert status == 2
        assert f"another {option}" in error
        assert read_run(run) == before

    # Predictions may be asked for later; they are those of the run's own model.
    (run / "mine.tsv").unlink()
    assert call(*options, "--predict") == 0
    assert read_run(run) == before

    # So may seeds: nothing is trained twice.
    assert call(*options, "--seeds", "2", "1") == 0
    assert read_run(run) == before
    alone = tmp_path / "alone"
    assert call(*task, "--method", "acl-cl", "--seeds", "2", "--output", alone) == 0
    assert read_run(tmp_path / "mine_acl-cl_2") == read_run(alone / "mine_acl-cl_2")


def test_an_option_that_only_one_side_knows(task, whole, tmp_path, capsys):
    run = copied(whole, tmp_path)
    options = [*task, "--method", "acl-cl", "--output", tmp_path, "--resume"]
    config = files.read_json(run / "config.json")
    files.write_json(config | {"an_older_option": 3}, run / "config.json")
    status, error = answer(capsys, *options)
    assert status == 2
    assert "another an_older_option: 3, now None" in error

    del config["exit_weights"]
    files.write_json(config, run / "config.json")
    status, error = answer(capsys, *options)
    assert status == 2
    assert "another exit_weights: None, now depth" in error


def test_another_machine_finishes_no_run_but_may_use_one(task, whole, tmp_path, capsys):
    """A run that goes on must end with the bytes of one without a break.  A finished one may be
    shown, predicted from and joined by seeds wherever it was made."""
    run = copied(whole, tmp_path)
    config = files.read_json(run / "config.json")
    elsewhere = {"versions": {"torch": "1"}, "device": "cuda", "processes": 8}
    files.write_json(config | elsewhere, run / "config.json")
    options = [*task, "--method", "acl-cl", "--output", tmp_path, "--resume"]
    assert call(*options) == 0
    assert call(*options, "--predict") == 0
    assert call(*options, "--seeds", "1", "2", "--max-steps", "12") == 2
    (run / "result.json").rename(run / "checkpoint.pt")
    status, error = answer(capsys, *options)
    assert status == 2
    assert "another device" in error


def unfinished(task, output, monkeypatch, step=8):
    """A run with a checkpoint after its first epoch of 6 steps, stopped in the second."""
    with monkeypatch.context() as patch:
        stop_at_step(patch, step)
        assert call(*task, "--method", "acl-cl", "--output", output) == 130
    run = output / "mine_acl-cl_1"
    assert torch.load(run / "checkpoint.pt")["step"] == 6
    return run


def test_cross_entropy_has_no_weight_to_compare(tmp_path, capsys):
    """The demo's, whose config.json names no encoder that it does not have."""
    ce = ["--task", "demo", "--method", "ce", "--limit-train", "64", "--max-steps", "1",
          "--output", tmp_path]
    assert call(*ce, "--weight", "0.5", "--temperature", "1") == 0
    assert answer(capsys, *ce) == (0, "")
    status, error = answer(capsys, *ce, "--lr", "0.1")
    assert status == 2
    assert "another lr" in error
    assert files.read_json(tmp_path / "demo_ce_1" / "config.json")["model"] == "demo"


def test_an_unfinished_run(task, whole, tmp_path, capsys, monkeypatch):
    run = unfinished(task, tmp_path, monkeypatch)
    options = [*task, "--method", "acl-cl", "--output", tmp_path]
    kept = {path.name: path.read_bytes() for path in run.iterdir()}

    # Without --resume, with another option, under another process's lock: nothing happens to it.
    status, error = answer(capsys, *options)
    assert status == 2
    assert "--resume" in error
    status, error = answer(capsys, *options, "--resume", "--lr", "0.1")
    assert status == 2
    assert "another lr" in error
    with filelock.FileLock(run / ".lock"):
        status, error = answer(capsys, *options, "--resume")
    assert status == 2
    assert "another process" in error
    assert {path.name: path.read_bytes() for path in run.iterdir()} == kept

    # A folder without a checkpoint yet asks for --resume, too.
    begun = tmp_path / "begun" / run.name
    begun.mkdir(parents=True)
    again = [*task, "--method", "acl-cl", "--output", begun.parent]
    status, error = answer(capsys, *again)
    assert status == 2
    assert "--resume" in error
    assert call(*again, "--resume") == 0

    assert call(*options, "--resume") == 0
    wanted = read_run(whole)
    del wanted["mine.tsv"]
    assert read_run(run) == wanted == read_run(begun)


@pytest.mark.parametrize("state", ["unfinished", "finished"])
def test_data_exchanged_meanwhile(state, whole, tmp_path, capsys, monkeypatch):
    """The rows of train have the same number and labels, but one word is another."""
    task = small_task(tmp_path)
    options = [*task, "--method", "acl-cl", "--output", tmp_path, "--resume"]
    if state == "unfinished":
        run = unfinished(task, tmp_path, monkeypatch)
    else:
        assert call(*options) == 0
    train_csv = tmp_path / "my data" / "train.csv"
    text = train_csv.read_text()
    train_csv.write_text(text.replace("anna", "clara", 1))

    # Where seed 1 is there, neither it nor seed 2 goes on, and nothing new is written.
    for seeds in (["1"], ["2", "1"]):
        more = ["--predict"] if state == "finished" else []
        status, error = answer(capsys, *options, "--seeds", *seeds, *more)
        assert status == 2
        assert "another data_fingerprint" in error
        assert not (tmp_path / "mine_acl-cl_2").exists()
    train_csv.write_text(text)
    assert call(*options) == 0
    if state == "unfinished":
        wanted = read_run(whole)
        assert read_run(run)["model/model.safetensors"] == wanted["model/model.safetensors"]


def test_auto_precision_that_means_another_thing_now(tmp_path, capsys, monkeypatch):
    task = small_task(tmp_path)
    task[task.index("fp32")] = "auto"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    run = unfinished(task, tmp_path, monkeypatch)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    status, error = answer(capsys, *task, "--method", "acl-cl", "--output", tmp_path, "--resume")
    assert status == 2
    assert "another bf16: False, now True" in error.splitlines()[-1]
    assert files.read_json(run / "config.json")["bf16"] is False


def test_runs_and_data_found_from_other_folders(whole, tmp_path, monkeypatch, capsys):
    """--data, --model and --output relative, the run moved, the command given from elsewhere."""
    small_task(tmp_path)
    monkeypatch.chdir(tmp_path)
    task = small_task(Path("."))
    options = [*task, "--method", "acl-cl"]
    run = unfinished(task, Path("runs"), monkeypatch)
    config = files.read_json(run / "config.json")
    assert config["data"] == str(tmp_path / "my data")
    assert config["model"] == str(tmp_path / "my model")

    (tmp_path / "a b" / "c").mkdir(parents=True)
    run.parent.rename(tmp_path / "a b" / "runs")
    monkeypatch.chdir(tmp_path / "a b" / "c")
    task = small_task(Path("../.."))
    assert call(*task, "--method", "acl-cl", "--output", "../runs", "--resume") == 0
    found = read_run(Path("../runs/mine_acl-cl_1"))
    assert found["model/model.safetensors"] == read_run(whole)["model/model.safetensors"]
    assert options != task


def test_runs_absolute(tmp_path, monkeypatch):
    """A path, a link too, as it is found from anywhere; a hub's id stays what it is."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    Path("link").symlink_to("data")
    assert runs.absolute("data") == runs.absolute("link") == str(tmp_path / "data")
    assert runs.absolute("nyu-mll/glue") == "nyu-mll/glue"


def test_a_run_that_another_process_finished_meanwhile(task, whole, tmp_path, capsys, monkeypatch):
    """Between this process's look at the folder and its lock."""
    real_load = models.load_encoder

    def slow_load(name):
        copied(whole, tmp_path)
        return real_load(name)

    monkeypatch.setattr(models, "load_encoder", slow_load)
    status, error = answer(capsys, *task, "--method", "acl-cl", "--output", tmp_path)
    assert status == 2
    assert "another process" in error
    assert read_run(tmp_path / whole.name) == read_run(whole)


def test_a_run_holds_its_lock(task, tmp_path, monkeypatch):
    real_step, tried = train.training_step, []

    def second_process(*arguments):
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(tmp_path / "mine_ce_1" / ".lock").acquire(blocking=False)
        tried.append(True)
        return real_step(*arguments)

    monkeypatch.setattr(train, "training_step", second_process)
    options = [*task, "--method", "ce", "--max-steps", "2", "--output", tmp_path]
    assert call(*options) == 0
    assert len(tried) == 2

    # A stop gives it free, too, even while somebody looks at the error.
    monkeypatch.undo()
    stop_at_step(monkeypatch, 1)
    args = train.parse_args([*task, "--method", "scl", "--output", str(tmp_path)])
    with pytest.raises(KeyboardInterrupt) as caught:
        train.train_all(args)
    with filelock.FileLock(tmp_path / "mine_scl_1" / ".lock").acquire(blocking=False):
        assert caught.traceback


# ------------------------------------------------------------------- what cannot be gone on


def test_bad_checkpoints(task, tmp_path, capsys, monkeypatch):
    """Only what cannot be read is called torn, and only then is its removal advised."""
    run = unfinished(task, tmp_path, monkeypatch)
    options = [*task, "--method", "acl-cl", "--output", tmp_path, "--resume"]
    checkpoint = run / "checkpoint.pt"
    content = checkpoint.read_bytes()
    middle = len(content) // 2
    flipped = bytes([content[middle] ^ 255])
    torn = [b"", content[:100], content[:-1], content[:middle] + flipped + content[middle + 1:]]
    for bad in torn:
        checkpoint.write_bytes(bad)
        status, error = answer(capsys, *options)
        assert status == 2
        assert f"{checkpoint} is torn" in error
        assert "remove that file" in error
        assert checkpoint.read_bytes() == bad

    # Whole, but another program's, an early version's, or of more steps than this run has.
    checkpoint.write_bytes(content)
    state = torch.load(checkpoint)
    foreign = {
        "another program": [{"step": 6}, {"step": 6, "logs": None}, [1, 2], "text"],
        "not this run's": [state | {"step": 13}, state | {"step": 5}, state | {"step": 0}],
        "does not fit this model":
            [state | {"model": {}}, state | {"optimizer": {}}, state | {"seconds": None}],
    }
    for words, contents in foreign.items():
        for bad in contents:
            torch.save(bad, checkpoint)
            status, error = answer(capsys, *options)
            assert status == 2
            assert words in error
            assert "torn" not in error
            assert "remove" not in error


def test_files_that_cannot_be_read(task, whole, tmp_path, capsys, monkeypatch):
    """Another user's files, a folder in a file's place: not torn, and nothing to remove."""
    run = unfinished(task, tmp_path, monkeypatch)
    options = [*task, "--method", "acl-cl", "--output", tmp_path, "--resume"]
    real_open = builtins.open

    def forbid(name):
        def open_others(file, *arguments, **options):
            if Path(str(file)).name == name:
                raise PermissionError(errno.EACCES, "Permission denied", str(file))
            return real_open(file, *arguments, **options)
        return open_others

    for name in ("checkpoint.pt", "config.json"):
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "open", forbid(name))
            patch.setattr("io.open", forbid(name))
            status, error = answer(capsys, *options)
        assert status == 2
        assert f"{run / name} cannot be read: Permission denied" in error
        (run / name).rename(tmp_path / name)
        (run / name).mkdir()
        status, error = answer(capsys, *options)
        assert status == 2
        assert f"{run / name} cannot be read: Is a directory" in error
        (run / name).rmdir()
        (tmp_path / name).rename(run / name)

    # A finished run's result that is torn, missing its score, or without a config.json.
    done = copied(whole, tmp_path / "done")
    again = [*task, "--method", "acl-cl", "--output", done.parent]
    for text, words in {"{": "torn", "{}": "no run's result", "[1]": "no run's"}.items():
        (done / "result.json").write_text(text)
        status, error = answer(capsys, *again)
        assert status == 2
        assert words in error
    shutil.copy(whole / "result.json", done)
    (done / "config.json").unlink()
    status, error = answer(capsys, *again)
    assert status == 2
    assert "config.json is missing" in error


def test_a_gpus_checkpoint_goes_on_without_a_gpu(task, whole, tmp_path, monkeypatch):
    """Its tensors are labelled as a GPU's; here there is none."""
    run = unfinished(task, tmp_path, monkeypatch)
    state = torch.load(run / "checkpoint.pt")
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(state, run / "checkpoint.pt")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(run / "checkpoint.pt")
    assert call(*task, "--method", "acl-cl", "--output", tmp_path, "--resume") == 0
    found = read_run(run)
    assert found["model/model.safetensors"] == read_run(whole)["model/model.safetensors"]


# ------------------------------------------------------------------------ stops and resumes


def test_stops_and_resumes_are_exact(task, whole, tmp_path, monkeypatch):
    """Stopped in the first epoch, in the second, in its evaluation, and between the last epoch
    and the end; the command with --resume ends with the bytes of a run without a break."""
    options = [*task, "--method", "acl-cl", "--output", tmp_path, "--predict", "--resume"]
    options += ["--save-steps", "2"]
    run, stood_at = tmp_path / "mine_acl-cl_1", []

    def call_and_stop(patch):
        assert call(*options) == 130
        patch.undo()
        state = torch.load(run / "checkpoint.pt") if (run / "checkpoint.pt").exists() else {}
        stood_at.append(state.get("step", 0))

    for step in (2, 6, 3):  # counted from where the last stop left it
        stop_at_step(monkeypatch, step)
        call_and_stop(monkeypatch)
    for module, name in ((train, "evaluate"), (submission, "write"), (runs, "save_model")):
        def stop(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(module, name, stop)
        call_and_stop(monkeypatch)
    assert stood_at == [0, 4, 6, 10, 12, 12]
    assert call(*options) == 0
    assert read_run(run) == read_run(whole)


class KilledAtWrites:
    """Kills its process when Python opens a file of the run for writing, or gives it its final
    name, for the first time in all the processes: those before left their names in `done`."""

    def __init__(self, run, done):
        self.run, self.done = run, done

    def __call__(self):
        self.known = set(self.done.read_text().splitlines())
        sys.addaudithook(self.look)

    def look(self, event, arguments):
        if event not in ("open", "os.rename"):
            return
        is_write = event == "os.rename" or arguments[2] & (os.O_WRONLY | os.O_RDWR)
        path = Path(str(arguments[0]))
        name = f"{event} {path.name}"
        if is_write and self.run in path.parents and name not in self.known:
            self.known.add(name)
            with open(self.done, "a") as file:
                file.write(f"{name}\n")
            os.kill(os.getpid(), signal.SIGKILL)


@on_posix
def test_killed_at_every_write(task, whole, tmp_path):
    """kill -9 at the first write, at the next one of the command that goes on, and so on until
    one comes to its end: with the bytes of a run that nobody killed."""
    options = [*task, "--method", "acl-cl", "--output", tmp_path, "--predict", "--resume"]
    run, errors = tmp_path / "mine_acl-cl_1", tmp_path / "errors"
    done = tmp_path / "done"
    done.touch()
    while not (run / "result.json").exists():
        before = done.read_text()
        process = start(options, errors, prepare=KilledAtWrites(run, done))
        process.join(timeout=120)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL, errors.read_text()
        assert done.read_text() != before
    events = done.read_text().splitlines()
    for name in ALL_FILES:
        if name not in ("steps.csv", "model"):
            assert f"os.rename {name}.new" in events
    assert {"open steps.csv", "open checkpoint.pt.new", "open tokenizer_config.json"} < set(events)
    assert read_run(run) == read_run(whole)


def test_killed_after_the_result(task, whole, tmp_path):
    """Its checkpoint is still there, but it is finished."""
    run = copied(whole, tmp_path)
    (run / "checkpoint.pt").write_bytes(b"")
    assert call(*task, "--method", "acl-cl", "--output", tmp_path) == 0


@on_posix
def test_interrupt(task, whole, tmp_path):
    """Ctrl-C: one line, status 130, a whole checkpoint, and the same command goes on from it."""
    options = [*task, "--method", "acl-cl", "--output", tmp_path, "--resume", "--predict"]
    options += ["--save-steps", "1"]
    run, errors = tmp_path / "mine_acl-cl_1", tmp_path / "errors"
    process = start(options, errors, prepare=slow_steps)
    while not (run / "checkpoint.pt").exists() and process.is_alive():
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGINT)
    process.join(timeout=60)
    last = errors.read_text().splitlines()[-1]
    assert process.exitcode == 130
    assert last == "train.py: interrupted; the same command with --resume goes on"
    assert 0 < torch.load(run / "checkpoint.pt")["step"] < 12
    assert call(*options) == 0
    assert read_run(run) == read_run(whole)


def slow_steps():
    # A command that was started in the background may have been told to ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    real_step = train.training_step

    def step(*arguments):
        time.sleep(0.05)
        return real_step(*arguments)

    train.training_step = step


def test_non_finite(task, tmp_path, capsys, monkeypatch):
    """A NaN loss stops with the step and a hint; a NaN of the second loss alone is dropped by the
    gate, counted, and training goes on."""
    options = [*task, "--method", "acl-cl", "--output"]
    rates = ["--lr", "1e30", "--head-lr", "1e30"]
    status, error = answer(capsys, *options, tmp_path / "diverged", *rates)
    assert status == 1
    assert "train.py: step" in error
    assert "--lr" in error
    assert not (tmp_path / "diverged" / "mine_acl-cl_1" / "result.json").exists()

    real_loss, calls = acl.acl_embed_loss, itertools.count()

    def loss(*arguments):
        factor = math.nan if next(calls) == 3 else 1
        return factor * real_loss(*arguments)

    monkeypatch.setattr(acl, "acl_embed_loss", loss)
    assert call(*options, tmp_path / "nan", "--max-steps", "4") == 0
    run = tmp_path / "nan" / "mine_acl-cl_1"
    steps = read_steps(run)
    assert files.read_json(run / "result.json")["non_finite"] == 1
    assert [row["cosine"] == "nan" for row in steps] == [False, True, False, False]
    assert steps[1]["kept"] == "0.0000"
    assert math.isfinite(float(steps[3]["ce_loss"]))


@on_posix
@pytest.mark.parametrize("what", ["deleted", "read-only"])
def test_folder_deleted_or_read_only_meanwhile(what, task, tmp_path, capsys, monkeypatch):
    run, me = tmp_path / "mine_acl-cl_1", os.geteuid()
    real_evaluate = train.evaluate

    def break_then_evaluate(*arguments):
        if what == "deleted":
            shutil.rmtree(run)
        elif me == 0:
            os.seteuid(65534)  # root may write anywhere, so be nobody
        else:
            run.chmod(0o500)
        return real_evaluate(*arguments)

    monkeypatch.setattr(train, "evaluate", break_then_evaluate)
    options = [*task, "--method", "acl-cl", "--max-steps", "4", "--save-steps", "3"]
    try:
        status, error = answer(capsys, *options, "--output", tmp_path)
    finally:
        os.seteuid(me)
    last = error.splitlines()[-1]
    assert status == 1
    assert last.startswith(f"train.py: cannot write {run / 'exits.csv'}: ")
    if what == "read-only":
        run.chmod(0o700)
        assert torch.load(run / "checkpoint.pt")["step"] == 3
        assert not (run / "result.json").exists()


ALL_FILES = ["config.json", "steps.csv", "exits.csv", "checkpoint.pt", "mine.tsv",
             "dev_logits.safetensors", "model", "classifiers.safetensors", "result.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_at_every_file(task, whole, tmp_path, capsys):
    """One line that names the file, status 1, nothing half; once there is room it goes on."""
    options = [*task, "--method", "acl-cl", "--output", tmp_path, "--predict", "--resume"]
    run = tmp_path / "mine_acl-cl_1"
    run.mkdir()
    for name in ALL_FILES:
        with pytest.MonkeyPatch.context() as patch:
            fill_disk(patch, run, name)
            status, error = answer(capsys, *options)
        last = error.splitlines()[-1]
        assert status == 1, name
        assert last.startswith(f"train.py: cannot write {run / name}: ")
        assert "No space left" in last
        assert last.endswith("; the same command with --resume goes on")
        assert not (run / "result.json").exists()
        assert not list(run.glob("*.new"))
        if name == "steps.csv":
            (run / name).unlink()
    assert call(*options) == 0
    assert read_run(run) == read_run(whole)


def fill_disk(patch, run, name):
    """Let there be no room for one file.  The safetensors library makes files of its own, so it
    is made to say what it says of a full disk."""
    real_save = safetensors.torch.save_file
    full = safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    def save_file(tensors, path):
        if Path(path).name == f"{name}.new":
            raise full
        real_save(tensors, path)

    def save_pretrained(*arguments, **options):
        raise full

    if name == "model":
        patch.setattr(BertModel, "save_pretrained", save_pretrained)
    elif name.endswith("safetensors"):
        patch.setattr(safetensors.torch, "save_file", save_file)
    elif name == "steps.csv":
        (run / name).symlink_to("/dev/full")
    else:
        (run / f"{name}.new").symlink_to("/dev/full")


def out_of_memory_errors():
    """As torch, the CPU's allocator, Python and the GPUs' libraries say it."""
    try:
        torch.empty(2**60, dtype=torch.uint8)
    except RuntimeError as error:
        yield error
    yield MemoryError()
    yield torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nSee")
    yield RuntimeError("MPS backend out of memory (MPS allocated: 18 GB)")
    yield RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`")


def test_out_of_memory(task, tmp_path, capsys, monkeypatch):
    """Wherever it happens: in a step, in an evaluation, in reading or writing a checkpoint."""
    errors = list(out_of_memory_errors())
    assert len(errors) == 5
    places = [(train, "training_step"), (train, "evaluate"), (torch, "save"), (torch, "load"),
              (models.AutoModel, "from_pretrained")]
    options = [*task, "--method", "acl-cl", "--output", tmp_path, "--resume"]
    for error, (module, name) in zip(errors, places):
        unfinished(task, tmp_path, monkeypatch)

        def fail(*arguments, **options):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            status, text = answer(capsys, *options)
        last = text.splitlines()[-1]
        assert status == 1, name
        assert last.startswith("train.py: out of memory (")
        assert "--batch-size" in last
        shutil.rmtree(tmp_path / "mine_acl-cl_1")


def test_other_errors_are_not_hidden(task, tmp_path, monkeypatch):
    """A fault of the program itself keeps its traceback."""
    stop_at_step(monkeypatch, 1, RuntimeError("a fault"))
    with pytest.raises(RuntimeError, match="a fault"):
        call(*task, "--method", "ce", "--output", tmp_path)


# ---------------------------------------------------------------------- what it says, and where


def test_progress_in_a_file(task, tmp_path, monkeypatch, capsys):
    """No terminal: a line now and then; and steps.csv grows step by step."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    lengths, real_note = [], progress.Progress.note

    def note(bar, text):
        lengths.append(len(read_steps(tmp_path / "mine_ce_1")))
        real_note(bar, text)

    monkeypatch.setattr(progress.Progress, "note", note)
    assert call(*task, "--method", "ce", "--output", tmp_path) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if ", step " in line]
    assert len(lines) == 12
    assert lines[0].startswith("epoch 1/2, step 1/6: ce_loss ")
    assert lengths == list(range(1, 13))


def test_waiting_says_what_for(capsys):
    with progress.waiting("thinking", after=0):
        time.sleep(0.2)
    with progress.waiting("nothing", after=9):
        pass
    assert capsys.readouterr().err == "thinking ..\n"


def test_waiting_needs_no_thread(monkeypatch):
    """Where a limit of memory or processes forbids one, the work goes on without the sign."""
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with progress.waiting("thinking", after=0):
        done = True
    assert done


@on_posix
def test_an_output_whose_name_is_not_utf8(task, tmp_path, capsys):
    """Refused before the training: the model could not be written after it."""
    output = tmp_path / os.fsdecode(b"a\xffb")
    status, text = answer(capsys, *task, "--method", "ce", "--output", output)
    assert status == 2
    assert "is not UTF-8; choose another --output" in text.splitlines()[-1]
    assert not output.exists()


def python(*argv, env, **options):
    """A command of its own, from the project's folder, with env added to the environment."""
    environment = {**os.environ, **env}
    environment.pop("PYTHONUNBUFFERED", None)  # then output fails later, where users meet it
    options = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    options["env"] = environment
    return subprocess.run([sys.executable, *map(str, argv)], text=True, timeout=300, **options)


def seconds_of_commands():
    """Processor time of the commands that have ended; a busy machine does not count."""
    times = os.times()
    return times.children_user + times.children_system


def default_in(text, option, task, method):
    """The default that --help gives in brackets, such as (0.5; demo: 0.05; kd: 2); the last name
    that fits counts."""
    meaning = text.split(f" --{option} ")[-1]
    value, *others = re.search(r"\(([^()]+)\)", meaning).group(1).split("; ")
    for other in others:
        names, special = other.split(": ")
        if {task, method} & set(names.split(", ")):
            value = special
    return value


def test_help_tells_every_default(capsys):
    with pytest.raises(SystemExit):
        train.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for option, value in {"max-length": 128, "output": "runs"}.items():
        assert default_in(text, option, "", "") == str(value)

    depend = (
        "pooling", "exits", "weight", "temperature", "conflict", "epochs", "batch_size", "lr"
    )
    for task, method in itertools.product([*glue.TASKS, "mine"], train.METHODS):
        args = train.parse_args(["--task", task, "--method", method])
        for option in depend:
            said = default_in(text, option.replace("_", "-"), task, method)
            value = getattr(args, option)
            assert value == type(value)(said), (task, method, option)
        said = default_in(text, "head-lr", task, method)
        assert args.head_lr == {"20 times --lr": 20 * args.lr, "--lr": args.lr}[said]


def test_help_and_wrong_options_do_not_wait_for_torch(tmp_path):
    """torch is not there, and they answer all the same."""
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not wanted here')\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    began = seconds_of_commands()
    helped = python("train.py", "--help", env=environment)
    assert helped.returncode == 0
    assert "acl-embed, whose gradient is dropped" in helped.stdout
    reports = [python(name, "--help", env=environment) for name in ("exits.py", "grad_surgery.py")]
    assert [report.returncode for report in reports] == [0, 0], reports
    wrong = python("train.py", "--task", "demo", "--method", "cee", env=environment)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert "cee" in wrong.stderr
    assert seconds_of_commands() - began < 4  # of four commands

    # Ctrl-C while it is being loaded.
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt\n")
    stopped = python("train.py", "--task", "demo", "--method", "ce", env=environment)
    assert stopped.returncode in (130, -signal.SIGINT)
    assert stopped.stderr.splitlines()[1:] == ["train.py: interrupted"]

    # And --help into a pipe that nobody reads: no traceback, no other status.
    reader, writer = os.pipe()
    os.close(reader)
    helped = python("train.py", "--help", env=environment, stdout=writer)
    os.close(writer)
    assert helped.returncode == 0
    assert helped.stderr == ""


def test_standard_output_that_closes_stops_no_training(task, tmp_path):
    """`| head -1` with a narrow encoding and a folder's name beyond it: the run is whole."""
    output = tmp_path / "läufe ✓"
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    reader, writer = os.pipe()
    os.close(reader)
    options = [*task, "--method", "acl-cl", "--output", output, "--seeds", "1", "2"]
    done = python("train.py", *options, "--max-steps", "2", env=environment, stdout=writer)
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    for seed in (1, 2):
        assert (output / f"mine_acl-cl_{seed}" / "result.json").exists()


class Broken:
    """A text stream whose file fails after the first line."""

    def __init__(self, error, file):
        self.error, self.file, self.lines = error, file, []

    def write(self, text):
        if self.lines:
            raise self.error
        self.lines.append(text)

    def flush(self):
        if self.lines:
            raise self.error

    def fileno(self):
        return self.file


@on_posix
def test_forgiving_streams(tmp_path, monkeypatch):
    """A reader that went, a terminal that went, a full disk, a stream that never was."""
    for number in (errno.EPIPE, errno.EIO, errno.ENOSPC):
        with open(tmp_path / "file", "w") as file:
            stream = Broken(OSError(number, "no more"), file.fileno())
            monkeypatch.setattr(sys, "stdout", stream)
            command_line.let_output_close()
            command_line.let_output_close()
            assert sys.stdout.stream is stream  # wrapped once
            print("one", end="")
            print("two", flush=True)
            assert stream.lines == ["one"]
            os.write(file.fileno(), b"nowhere now")
        assert (tmp_path / "file").read_text() == ""
    for name in ("stdout", "stderr"):  # closed from the start: 2>&-
        monkeypatch.setattr(sys, name, None)
        command_line.let_output_close()
        stream = getattr(sys, name)
        print("to nobody", file=stream, flush=True)
        assert not stream.isatty()


def check_loud():
    """Ends its process with status 7 if the libraries still speak as they do by themselves."""
    is_loud = transformers.logging.get_verbosity() == transformers.logging.WARNING
    is_loud = is_loud and not datasets.utils.logging.get_verbosity() > datasets.logging.WARNING
    os._exit(7 if is_loud else 8)


def test_an_import_quiets_no_library(tmp_path):
    """Only a command does; the new process has everything imported and no command called."""
    process = start([], tmp_path / "errors", prepare=check_loud)
    process.join(timeout=120)
    assert process.exitcode == 7
