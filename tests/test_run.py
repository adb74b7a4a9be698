"""A run's folder: its files by hand, what a command finds there, stops and resumes.

Runs take a fraction of a second here: the small task's train has 6 steps an epoch, for 2 epochs.
"""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import exits
import glue
import train
from tests.small import answer, call, make_run, small_model, small_task
from tools import demo, models, run
from tools.errors import InputError
from tools.geometry import geometry

torch.set_num_threads(1)  # small tensors: a second thread only waits
ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def acl_cl(tmp_path_factory):
    """Options of train.py, all but --output."""
    return [*small_task(tmp_path_factory.mktemp("task")), "--method", "acl-cl"]


@pytest.fixture(scope="module")
def undisturbed(acl_cl, tmp_path_factory):
    """The folder of a run that nobody stopped."""
    output = tmp_path_factory.mktemp("undisturbed")
    assert call(train.main, *acl_cl, "--predict", "--output", output) == 0
    return output / "mine_acl-cl_1"


def copied(folder, output):
    """The same run in a folder that a test may change."""
    return Path(shutil.copytree(folder, output / folder.name))


def contents(folder):
    """{name: bytes} of a run's files, but for what the clock puts into them and for the options
    that may differ."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    result = json.loads(files["result.json"])
    for name in ("seconds", "examples_per_second"):
        assert result.pop(name) > 0
    files["result.json"] = result
    config = json.loads(files["config.json"])
    files["config.json"] = [item for item in config.items() if item[0] not in run.MAY_DIFFER]
    return files


def check_refused(words, capsys, *argv):
    """train.py ends with status 2 and one line of these words, and trains nothing."""
    status, out, error = answer(capsys, train.main, *argv)
    assert (status, out) == (2, "")
    assert words in error.splitlines()[-1]


# ------------------------------------------------------------------------------ the files


def test_a_runs_files_agree(undisturbed):
    """result.json's and exits.csv's scores are those of the logits, each exit's its own."""
    found = run.read_run(undisturbed)
    assert found.logits.shape == (2, 10, 2)
    assert found.labels.tolist() == [0, 1] * 5  # tests/small.py: "same" and "turned" in turn
    right = found.logits.argmax(dim=-1) == found.labels
    scores = [10 * count for count in right.sum(dim=1).tolist()]  # each exit's accuracy
    assert found.result["exit_scores"] == pytest.approx(scores)
    assert found.exits.epoch.tolist() == [1, 1, 2, 2]
    assert found.exits.exit_layer.tolist() == [1, 2, 1, 2]
    assert found.exits.accuracy.tolist()[2:] == pytest.approx(scores)

    # The geometry is that of each exit's h in the model as it was saved.
    model, tokenizer = models.load_model(undisturbed, found.config)
    _, splits = glue.load_task("mine", found.config["data"])
    dev = glue.tokenize(splits["dev"], tokenizer, max_length=16)
    h, _ = exits.all_exits(model, dev, tokenizer, CPU, keep_h=10)
    for m, row in enumerate(found.exits[-2:].to_dict("records")):
        label_embeddings = model.classifiers[m].weight.detach()
        numbers = geometry(h[m], found.labels, label_embeddings)
        assert {name: row[name] for name in numbers} == pytest.approx(numbers, abs=1e-4)


def test_result_by_hand():
    """The last epoch's scores, the deepest exit's first; NaN is a conflict, no gate is none."""
    rows = [
        (1, "dev_matched", 1, 99.0), (1, "dev_matched", 2, 40.0), (1, "dev_mismatched", 2, 98.0),
        (2, "dev_matched", 1, 75.0), (2, "dev_matched", 2, 50.0),
        (2, "dev_mismatched", 1, 1.0), (2, "dev_mismatched", 2, 2.0),
    ]
    columns = ("epoch", "split", "exit_layer", "accuracy")
    steps = []
    for angle, kept in [(90.0, 1.0), (math.nan, 0.0), (120.0, 0.0), (84.3, 1.0)]:
        steps.append({"angle": angle, "kept": kept})
    logs = {"exits.csv": [dict(zip(columns, row)) for row in rows], "steps.csv": steps}
    dev = {"dev_matched.labels": torch.tensor([2, 1, 2, 2])}
    [args] = train.parse_args("--task mnli --method acl-cl".split())
    result = run.summary(logs, glue.TASKS["mnli"], args, 1, dev, [1, 2], 12)
    assert result == {
        "task": "mnli", "method": "acl-cl", "seed": 1, "metric": "accuracy",
        "score": 50, "exit_layers": [1, 2], "exit_scores": [75, 50], "mean_exit_score": 62.5,
        "dev": {"dev_matched": {"accuracy": 50}, "dev_mismatched": {"accuracy": 2}},
        "steps": 4, "conflict_share": 0.5, "kept": 0.5, "examples": 12, "majority_score": 75,
    }


def test_mnli_has_two_submissions(tmp_path):
    """In GLUE's names and words: what the deepest exit answers."""
    _, tokenizer = demo.demo_encoder()
    model = small_model(num_labels=3)
    tokens = {}
    for name, count in {"train": 3, "test_matched": 9, "test_mismatched": 7}.items():
        tokens[name] = glue.tokenize(demo.demo_samples(count), tokenizer, max_length=16)
    run.write_submission(model, glue.TASKS["mnli"], tokens, tokenizer, CPU, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"MNLI-m.tsv", "MNLI-mm.tsv"}
    for split, name in {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"}.items():
        _, logits = exits.all_exits(model, tokens[split], tokenizer, CPU)
        names = ["entailment", "neutral", "contradiction"]
        lines = ["index\tprediction"]
        lines += [f"{i}\t{names[k]}" for i, k in enumerate(logits[2].argmax(dim=-1).tolist())]
        assert (tmp_path / name).read_text().splitlines() == lines


def test_what_replaces_a_file_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        with run.whole(path) as new:
            new.write_text("ha")
            raise KeyboardInterrupt
    assert path.read_text() == "old"
    with run.whole(path) as new:
        new.write_text("new")
    assert path.read_text() == "new"
    assert not new.exists()


# ------------------------------------------------------------------------- a finished run


def test_a_finished_run_is_shown_again(acl_cl, undisturbed, tmp_path, capsys):
    """Its bytes stay; whoever asks for something else gets a refusal."""
    folder = copied(undisturbed, tmp_path)
    before = contents(folder)
    options = [*acl_cl, "--output", tmp_path]
    for more in ([], ["--resume", "--save-steps", "2"]):
        status, out, _ = answer(capsys, train.main, *options, *more)
        assert status == 0
        assert f"{folder}: accuracy {before['result.json']['score']:.2f} (majority" in out
        assert "finished before" in out and "epoch" not in out
        words = f"{folder} was made with another lr: "
        check_refused(words, capsys, *options, *more, "--lr", "0.1")

    # Predictions may be asked for later; they are those of the run's own model.
    (folder / "mine.tsv").unlink()
    assert call(train.main, *options, "--predict") == 0
    assert contents(folder) == before


def test_more_seeds_join_a_run(acl_cl, undisturbed, tmp_path, capsys):
    """The first is not repeated, the second is what it would be alone."""
    copied(undisturbed, tmp_path)
    alone = tmp_path / "alone"
    assert call(train.main, *acl_cl, "--seeds", "2", "--output", alone) == 0
    options = [*acl_cl, "--seeds", "2", "1", "--output", tmp_path]
    status, out, error = answer(capsys, train.main, *options)
    assert status == 0
    assert contents(tmp_path / "mine_acl-cl_2") == contents(alone / "mine_acl-cl_2")
    assert contents(tmp_path / "mine_acl-cl_1") == contents(undisturbed)
    assert out.count("finished before") == 1


# --------------------------------------------------------------------- config: one run, or two


def test_every_option_but_a_few_makes_another_run(acl_cl, undisturbed, tmp_path):
    config = run.read_json(undisturbed / "config.json")
    args = vars(train.parse_args(acl_cl)[0])
    args["output"] = str(undisturbed.parent)
    args["predict"] = True
    assert {name: config[name] for name in args} == args
    assert config["seed"] == 1
    assert config["versions"]["torch"] == torch.__version__
    for name in config:
        changed = config | {name: "other"}
        if name in run.MAY_DIFFER:
            run.check_same(undisturbed, changed)
            continue
        with pytest.raises(InputError, match=f"made with another {name}: .*, now other; "):
            run.check_same(undisturbed, changed)
    assert set(run.MAY_DIFFER) == {
        "seeds", "output", "resume", "save_steps", "predict", "data", "device_name"
    }


def test_data_elsewhere_and_data_exchanged(acl_cl, undisturbed, tmp_path, capsys, monkeypatch):
    """A relative name, a copy of the data, a run that was moved: the same run.  One word of train
    is another: neither this seed nor the next goes on from it."""
    small_task(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = [*acl_cl, "--data", "my data", "--output", "runs"]
    stop_at(monkeypatch, run.Run, "log_step", 8)
    assert call(train.main, *options) == 130
    monkeypatch.undo()
    (tmp_path / "runs").rename(tmp_path / "moved runs")
    folder = tmp_path / "moved runs" / undisturbed.name
    data = tmp_path / "my data"
    assert run.read_json(folder / "config.json")["data"] == str(data)

    options = [*acl_cl, "--data", data, "--output", folder.parent, "--resume"]
    texts = (data / "train.csv").read_text()
    (data / "train.csv").write_text(texts.replace("anna", "clara", 1))
    check_refused("another data_fingerprint", capsys, *options)
    check_refused("another data_fingerprint", capsys, *options, "--seeds", "2", "1")
    assert not (tmp_path / "moved runs" / "mine_acl-cl_2").exists()

    (data / "train.csv").write_text(texts)
    assert call(train.main, *options, "--predict") == 0
    assert contents(folder) == contents(undisturbed)
    (data / "train.csv").write_text(texts.replace("anna", "clara", 1))
    check_refused("another data_fingerprint", capsys, *options)


# ---------------------------------------------------------------------- stops and resumes


def stop_at(monkeypatch, owner, name, number=1):
    """The `number`-th call of a function stops the program instead, as Ctrl-C does."""
    real = getattr(owner, name)
    calls = itertools.count(1)

    def function(*arguments):
        if next(calls) == number:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(owner, name, function)


def test_stops_and_resumes_are_exact(acl_cl, undisturbed, tmp_path, capsys, monkeypatch):
    """Stopped in the first epoch, in the second, in its evaluation, and three times in the end:
    the same command with --resume leaves the bytes of a run without a stop."""
    options = [*acl_cl, "--predict", "--save-steps", "2", "--resume", "--output", tmp_path]
    checkpoint = tmp_path / undisturbed.name / "checkpoint.pt"
    stops = [
        (run.Run, "log_step", 2, None),
        (run.Run, "log_step", 9, 8),
        (train, "evaluate", 1, 10),
        (models, "save_model", 1, 12),
        (run, "write_json", 2, 12),
        (run, "write_submission", 1, None),
    ]
    for owner, name, number, saved in stops:
        stop_at(monkeypatch, owner, name, number)
        status, _, error = answer(capsys, train.main, *options)
        monkeypatch.undo()
        assert status == 130
        assert error.splitlines()[-1] == "train.py: interrupted"
        assert checkpoint.exists() == (saved is not None)
        if saved:
            assert torch.load(checkpoint)["step"] == saved
    assert call(train.main, *options) == 0
    assert contents(tmp_path / undisturbed.name) == contents(undisturbed)


SLOW = """
import sys, time
import train

real_step = train.training_step

def step(*arguments):
    time.sleep(0.3)
    return real_step(*arguments)

train.training_step = step
train.main(sys.argv[1:])
"""


def test_a_second_process_and_a_kill(acl_cl, undisturbed, tmp_path, capsys):
    """While one process writes, a second one is refused, and told neither to resume nor to
    remove anything; after kill -9 it goes on, to the same bytes."""
    options = [*acl_cl, "--predict", "--output", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-c", SLOW, *options, "--save-steps", "2"]
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL)
    folder = tmp_path / undisturbed.name
    try:
        deadline = time.monotonic() + 60
        while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        words = f"{folder}: another process is writing this run; wait for it or choose another"
        for more in ([], ["--resume"], ["--lr", "1"]):
            check_refused(words, capsys, *options, *more)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert not (folder / "result.json").exists()
    options.append("--resume")
    assert call(train.main, *options) == 0
    assert contents(folder) == contents(undisturbed)


def test_an_unfinished_run(acl_cl, tmp_path, capsys, monkeypatch):
    """Without --resume or with another option nothing happens to it."""
    options = [*acl_cl, "--output", tmp_path]
    stop_at(monkeypatch, run.Run, "log_step", 8)
    assert call(train.main, *options) == 130
    monkeypatch.undo()
    folder = tmp_path / "mine_acl-cl_1"
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    check_refused("is unfinished; use --resume to go on with it", capsys, *options)
    check_refused("with another lr", capsys, *options, "--resume", "--lr", "0.1")
    assert {path: path.read_bytes() for path in folder.iterdir()} == kept


def test_a_folder_that_is_no_run(acl_cl, tmp_path, capsys):
    """It may have been killed before it wrote anything, or be somebody else's."""
    folder = tmp_path / "mine_acl-cl_1"
    folder.mkdir()
    (folder / "config.json").write_text('{"task": "rte"}')
    options = [*acl_cl, "--output", tmp_path, "--resume"]
    check_refused("made with another task: rte, now mine", capsys, *options)
    (folder / "config.json").unlink()
    assert call(train.main, *options) == 0


def test_a_run_that_another_process_finished_meanwhile_is_not_trained_again(tmp_path):
    """Hours may lie between the plan, in which it was new, and its turn."""
    folder = make_run(tmp_path)
    before = (folder / "steps.csv").read_bytes()
    with pytest.raises(InputError, match="finished by another process"):
        run.Run(folder, json.loads((folder / "config.json").read_text()))
    assert (folder / "steps.csv").read_bytes() == before
    run.take_lock(folder).release()  # the lock is free again
