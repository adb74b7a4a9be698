"""A task and an encoder so small that a whole run takes a fraction of a second; for the tests.

    argv = small_task(tmp_path)                       # options of train.py, all but --method
    status = call(*argv, "--method", "ce")            # as `python train.py ..` would end
"""

import json
import multiprocessing
import os
import sys

import safetensors.torch
import torch
from transformers import BertConfig, BertModel, BertTokenizer

import train
from tools.files import read_csv, write_table

WORDS = "anna boris clara david thanked helped was by never".split()


def small_task(folder, samples=24, dropout=0.1):
    """Write a task's data and an encoder into folders with a space in their names; returns
    options for train.py.  24 samples are 6 steps an epoch."""
    data = folder / "my data"
    if not data.exists():
        write_data(data, samples)
        write_encoder(folder / "my model", dropout)
    return [
        "--task", "mine",
        "--data", str(data),
        "--model", str(folder / "my model"),
        "--exits", "all",
        "--batch-size", "4",
        "--epochs", "2",
        "--max-length", "16",
        "--lr", "1e-3",
        "--precision", "fp32",
    ]


def write_data(folder, samples):
    """train.csv, dev.csv and test.csv: two texts of words, and whether they are in one order."""
    folder.mkdir()
    sizes = {"train": samples, "dev": 10, "test": 5}
    start = 0
    for name, size in sizes.items():
        rows = [sample(number) for number in range(start, start + size)]
        write_table(rows, folder / f"{name}.csv")
        start += size


def sample(number):
    """Texts of different lengths; the label can be learned."""
    generator = torch.Generator().manual_seed(number)
    length = 2 + number % 5
    chosen = torch.randint(len(WORDS), (length,), generator=generator).tolist()
    words = [WORDS[i] for i in chosen]
    label = "same" if number % 2 == 0 else "turned"
    second = words if label == "same" else words[::-1] + ["never"]
    return {"first": " ".join(words), "second": " ".join(second), "label": label}


def write_encoder(folder, dropout):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocabulary = {word: number for number, word in enumerate(tokens)}
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)


# ------------------------------------------------------------------------------ commands


def call(*argv):
    """The exit status of `python train.py ARGV`, in this process."""
    try:
        return train.main(train.parse_args([str(word) for word in argv]))
    except SystemExit as stop:
        return stop.code


def answer(capsys, *argv):
    """(exit status, standard error) of `python train.py ARGV`, in this process."""
    capsys.readouterr()
    status = call(*argv)
    return status, capsys.readouterr().err


def read_run(folder):
    """{name: content} of a run, without what the clock and the folder's name put into it."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name != ".lock":
            files[name] = path.read_bytes()
    result = json.loads(files["result.json"])
    for clock in ("seconds", "examples_per_second"):
        result.pop(clock)
    files["result.json"] = result
    return files


def read_steps(folder):
    return read_csv(folder / "steps.csv")


def read_logits(folder):
    return safetensors.torch.load_file(folder / "dev_logits.safetensors")


# ----------------------------------------------------------------------------- processes

# Processes are forked from one that has the modules loaded, so they start in no time.
multiprocessing.set_forkserver_preload(["tools.small_runs"])
methods = multiprocessing.get_all_start_methods()
context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def start(argv, errors, prepare=None, variables=None):
    """A training process of its own.  errors: a file for its standard error; prepare: called in
    it before the training; variables: of its environment."""
    argv = [str(word) for word in argv]
    process = context.Process(target=child, args=(argv, errors, prepare, variables))
    process.start()
    return process


def child(argv, errors, prepare, variables):
    # pytest's own standard output and error end where the process that started this one does.
    sys.stdout = open(os.devnull, "w")
    sys.stderr = open(errors, "a", buffering=1)
    torch.set_num_threads(1)
    os.environ.update(variables or {})
    if prepare is not None:
        prepare()
    os._exit(call(*argv))
