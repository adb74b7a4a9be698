"""Bad input of every kind: one line that names what is wrong, exit status 2, nothing written."""

import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import BertTokenizer, ElectraConfig, ElectraModel

import glue
from tools import angles_command, command_line, demo
from tools.small_runs import answer, small_task

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    """Options of train.py for a small task of one's own."""
    return small_task(tmp_path_factory.mktemp("task"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to write input to, and the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    """Whoever asks for an address fails the test."""
    def refuse(*arguments, **options):
        raise AssertionError(f"the network was asked for {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def check_refused(word, capsys, *argv):
    """`python train.py ARGV` ends as bad input must."""
    folder = Path.cwd()
    before = content_of(folder)
    status, error = answer(capsys, *argv)
    lines = error.splitlines()
    assert status == 2
    assert word in lines[-1]
    assert lines[-1].startswith("train.py: ")
    others = [line for line in lines[:-1] if not is_a_note(line)]
    assert others == []
    assert content_of(folder) == before


def is_a_note(line):
    """What a user is told on standard error besides: what is waited for, what was chosen."""
    return line.endswith(" ..") or line.startswith("mine: ")


def content_of(folder):
    """{path: its bytes, or None of a folder or a link}."""
    content = {}
    for path in sorted(folder.rglob("*")):
        is_file = path.is_file() and not path.is_symlink()
        content[str(path)] = path.read_bytes() if is_file else None
    return content


# ------------------------------------------------------------------------------- options

# name: options after the small task's own, and a word that the line must have.
OPTIONS = {
    "unknown method": ("--method cee", "cee"),
    "unknown option": ("--method ce --epoch-count 3", "--epoch-count"),
    "misspelt option": ("--methd ce", "no option --methd; did you mean --method?"),
    "misspelt option with =": ("--method ce --seed=3", "no option --seed; did you mean --seeds?"),
    "batch size 0": ("--method ce --batch-size 0", "--batch-size"),
    "steps 0": ("--method ce --max-steps 0", "--max-steps"),
    "epochs -1": ("--method ce --epochs -1", "--epochs"),
    "epochs 1.5": ("--method ce --epochs 1.5", "--epochs"),
    "temperature 0": ("--method scl --temperature 0", "--temperature"),
    "temperature nan": ("--method scl --temperature nan", "--temperature"),
    "weight below 0": ("--method scl --weight -1", "--weight"),
    "weight nan": ("--method kd --weight nan", "--weight"),
    "weight above 1 for scl": ("--method scl --weight 2", "--weight"),
    "lr inf": ("--method ce --lr inf", "--lr"),
    "head lr 0": ("--method ce --head-lr 0", "--head-lr"),
    "save steps 0": ("--method ce --save-steps 0", "--save-steps"),
    "limit 0": ("--method ce --limit-train 0", "--limit-train"),
    "max length 2": ("--method ce --max-length 2", "--max-length"),
    "max length beyond the positions": ("--method ce --max-length 33", "32 positions"),
    "equal seeds": ("--method ce --seeds 1 1", "--seeds"),
    "huge seed": (f"--method ce --seeds {2**40}", "--seeds"),
    "seed below 0": ("--method ce --seeds -1", "--seeds"),
    "conflict without a second loss": ("--method ce --conflict discard", "--conflict"),
    "project at the features":
        ("--method acl-cl --conflict project --conflict-at features", "--conflict-at"),
    "distillation at the features":
        ("--method kd --conflict discard --conflict-at features", "--conflict-at"),
    "prediction without a test split": ("--method ce --predict --holdout 2", "--predict"),
    "exits the model lacks": ("--method ce --exits 1,9", "exits"),
    "exits without the last": ("--method ce --exits 1", "2"),
    "exits as words": ("--method ce --exits first", "first"),
    "one exit for acl-cl": ("--method acl-cl --exits last", "students"),
    "one exit for kd": ("--method kd --exits last", "students"),
    "holdout of everything": ("--method ce --holdout 24", "--holdout"),
    "gpu absent": ("--method ce --device cuda", "--device"),
    "unknown task on the hub": ("--method ce --task rtee --data nyu-mll/glue", "rtee"),
    "regression": ("--method ce --task stsb --data nyu-mll/glue", "regression"),
    "task with a slash": ("--method ce --task ../mine", "--task"),
    "missing data": ("--method ce --task rte --data ./nowhere", "nowhere"),
    "mistyped data": ("--method ce --task rte --data dta", "--data dta"),
    "mistyped own file": ("--method ce --data mine.cvs", "mine.cvs"),
    "mistyped model": ("--method ce --model minlm", "--model minlm"),
    "missing model": ("--method ce --model models/small/v2", "models/small/v2"),
    "data for the demo": ("--method ce --task demo --data mine.csv", "its own data"),
    "a model for the demo": ("--method ce --task demo --data nyu-mll/glue", "its own model"),
    "model of no name": ("--method ce --model", "--model"),
    "output cannot be made": ("--method ce --output /dev/null/runs", "--output"),
    "output on a file system that takes none": ("--method ce --output /proc/runs", "--output"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, task, here, capsys, no_network):
    options, word = OPTIONS[name]
    if name == "gpu absent" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    check_refused(word, capsys, *task, *options.split())


def test_no_task(here, capsys):
    check_refused("--task", capsys, "--method", "ce")


def test_the_first_of_several_processes_speaks(task, capsys, monkeypatch):
    """All read the same wrong option; a RANK that is left over silences nobody."""
    wrong = [*task, "--method", "ce", "--epochs", "0"]
    monkeypatch.setenv("RANK", "1")
    assert "--epochs" in answer(capsys, *wrong)[1]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert answer(capsys, *wrong) == (2, "")
    monkeypatch.setenv("RANK", "0")
    assert "--epochs" in answer(capsys, *wrong)[1]


COMMANDS = {
    "train.py": "--task demo --method ce",
    "exits.py": "runs/x",
    "grad_surgery.py": "runs/x",
}


@pytest.mark.parametrize("program", COMMANDS)
def test_a_missing_package(program, tmp_path):
    """Before `pip install -r requirements.txt`: what to do, instead of a traceback."""
    text = "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
    (tmp_path / "torch.py").write_text(text)
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, root / program, *COMMANDS[program].split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line == f"{program}: No module named 'torch': pip install -r requirements.txt"
    assert "Traceback" not in done.stderr


def test_a_package_that_is_too_old():
    text = "No module named 'transformers.masking_utils'"
    old = ModuleNotFoundError(text, name="transformers.masking_utils")
    assert command_line.is_missing_package(old)

    # A slip in one's own change keeps its traceback.
    slips = [ModuleNotFoundError("no acll", name="acll"), ImportError("no foo", name="torch")]
    for slip in (*slips, ValueError("torch")):
        assert not command_line.is_missing_package(slip)


# ----------------------------------------------------------------------------- GLUE's files

HEADER = "index\tsentence1\tsentence2\tlabel\n"
ROW = HEADER + "0\tA\tB\t"
BOTH = ROW + "entailment\n1\tC\tD\tnot_entailment\n"

# name: train.tsv of an RTE download, and a word that the line must have.
TRAIN_FILES = {
    "empty file": ("", "train.tsv, line 1"),
    "header only": (HEADER, "no rows"),
    "wrong header": ("a\tb\tc\td\n0\tA\tB\tentailment\n", "line 1"),
    "short row": (ROW + "entailment\n1\tA\tB\n", "line 3"),
    "long row": (ROW + "entailment\tx\n", "line 2"),
    "empty line in the middle": (ROW + "entailment\n\n1\tA\tB\tentailment\n", "line 3"),
    "foreign label": (ROW + "neutral\n", "neutral"),
    "label as a float": (ROW + "1.0\n", "1.0"),
    "empty label": (ROW + "\n", "line 2"),
    "random bytes": (random.Random(0).randbytes(3000), "train.tsv"),
    "invalid utf-8": (ROW.encode() + b"entailment\n1\t\xff\xfe\tB\tentailment\n", "train.tsv"),
    "NUL bytes": (b"\0" * 500, "line 1"),
    "a million columns": (ROW + "entailment\n" + "x\t" * 10**6 + "\n", "1000001 columns"),
    "a class absent from train": (ROW + "entailment\n", "not_entailment"),
}


def write_rte(folder, text=BOTH):
    """GLUE's download of RTE; returns options that train on it."""
    rte = folder / "data" / "RTE"
    rte.mkdir(parents=True)
    for name in ("dev.tsv", "test.tsv"):
        (rte / name).write_text(BOTH)
    content = text.encode() if isinstance(text, str) else text
    (rte / "train.tsv").write_bytes(content)
    return ["--task", "rte", "--method", "ce", "--data", str(folder / "data")]


@pytest.mark.parametrize("name", TRAIN_FILES)
def test_train_files(name, here, capsys, no_network):
    text, word = TRAIN_FILES[name]
    check_refused(word, capsys, *write_rte(here, text))


def test_a_class_only_in_the_held_out_end(here, capsys):
    options = write_rte(here, BOTH)
    check_refused("not_entailment", capsys, *options, "--holdout", "1")


def test_missing_files(here, capsys, no_network):
    """No file at all, one that is missing, a folder in its place."""
    options = write_rte(here)
    (here / "data" / "RTE" / "dev.tsv").unlink()
    check_refused("dev.tsv", capsys, *options, "--resume")
    (here / "data" / "RTE" / "dev.tsv").mkdir()
    check_refused("dev.tsv", capsys, *options)
    shutil.rmtree(here / "data" / "RTE")
    check_refused("RTE/train.tsv", capsys, *options)
    (here / "data" / "RTE" / "train.tsv").mkdir(parents=True)
    check_refused("train.tsv", capsys, *options)


def test_torn_parquet(here, capsys, no_network):
    folder = here / "data" / "rte"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        (folder / f"{split}-00000-of-00001.parquet").write_bytes(b"PAR1")
    check_refused("cannot load", capsys, "--task", "rte", "--method", "ce", "--data", here / "data")


@pytest.mark.parametrize("text", [
    ROW + "entailment\n1\t" + "word " * 100_000 + "\tB\tnot_entailment\n",
    ROW + "entailment\n1\t\0\0\tB\tnot_entailment\n",
    ROW + "entailment\n1\t\t\tnot_entailment",
])
def test_odd_but_valid_rows_are_read(text, here):
    options = write_rte(here, text)
    _, splits = glue.load_task("rte", options[-1])
    split = glue.tokenize(splits["train"], demo.demo_encoder()[1], 64)
    assert split["label"][:] == [0, 1]
    assert glue.row_lengths(split).max() <= 64


# ------------------------------------------------------------------- models, links, folders


def test_models(here, task, capsys, no_network):
    """A folder that is no model, one whose config.json is torn, an encoder without a pooler, a
    file, one without weights."""
    options = [*task, "--method", "ce", "--model"]
    model = here / "model"
    model.mkdir()
    check_refused("config.json", capsys, *options, model)
    (model / "config.json").write_text("{")
    check_refused("cannot load model", capsys, *options, model)

    small = Path(task[task.index("--model") + 1])
    file = shutil.copy(small / "config.json", model)
    check_refused("cannot load model", capsys, *options, model)
    check_refused("no model folder", capsys, *options, file)

    # Weights that are cut off, and a tokenizer that is missing.
    content = (small / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:1000])
    check_refused("cannot load model", capsys, *options, model)
    (model / "model.safetensors").write_bytes(content)
    check_refused("tokenizer", capsys, *options, model)

    electra = ElectraModel(ElectraConfig(
        vocab_size=40,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    ))
    electra.save_pretrained(here / "electra")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]
    BertTokenizer(vocab={w: i for i, w in enumerate(tokens)}).save_pretrained(here / "electra")
    check_refused("--pooling mean", capsys, *options, here / "electra")


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_links_that_point_nowhere(here, task, capsys, no_network):
    for option in ("--data", "--model"):
        link = here / "link"
        link.symlink_to(here / "gone")
        check_refused(f"{option} {link}", capsys, *task, "--method", "ce", option, link)
        link.unlink()


def test_outputs(here, task, capsys):
    """A file in the place of the folder, a link that points nowhere, a run's name taken by a
    file, another program's folder."""
    options = [*task, "--method", "ce", "--output"]
    (here / "file").write_text("")
    check_refused("file", capsys, *options, here / "file")
    (here / "mine_ce_1").write_text("")
    check_refused("mine_ce_1", capsys, *options, here)
    check_refused("mine_ce_1", capsys, *options, here, "--resume")
    (here / "runs" / "mine_ce_1").mkdir(parents=True)
    (here / "runs" / "mine_ce_1" / "result.json").write_text("[]")
    check_refused("config.json is missing", capsys, *options, here / "runs")
    (here / "runs" / "mine_ce_1" / "config.json").write_text("[]")
    check_refused("another task", capsys, *options, here / "runs")


# ---------------------------------------------------------------------------- no network


def test_no_network_names_the_ways_out(here, capsys, monkeypatch):
    """For the model, and for the data."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "cache"))
    options = write_rte(here)
    calls = {"--model": options, "--data": ["--task", "rte", "--method", "ce"]}
    for word, argv in calls.items():
        status, error = answer(capsys, *argv, "--output", here / "runs")
        line = error.splitlines()[-1]
        assert status == 2
        assert word in line
        assert "--task demo" in line
        assert not (here / "runs").exists()


# ----------------------------------------------------------------------- angles of runs


def test_angles_of_what_is_no_run(here, capsys):
    (here / "steps.csv").write_text("step,epoch,angle\n1,1,\n")
    for folder, word in {"nothing": "steps.csv", ".": "--conflict"}.items():
        assert angles_command.main([str(here / folder)]) == 2
        error = capsys.readouterr().err
        assert word in error
        assert error.count("\n") == 1
