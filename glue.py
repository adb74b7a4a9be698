"""GLUE's classification tasks: files, labels, batches, metrics, and a generated `demo` task that needs no download.

A split is a `datasets.Dataset` of R rows: the task's text columns, named as on the hub, and `label` (-1 where unknown).  Once
tokenised it has input_ids and token_type_ids in place of the texts.  A column is read lazily; split["label"][:] is a list.
Source of tasks and metrics: GLUE (arXiv 1804.07461).
"""

import random
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import datasets
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

datasets.disable_progress_bars()
datasets.logging.set_verbosity(datasets.logging.CRITICAL)       # what it has to say comes back below, as one line


class InputError(Exception):
    """The user's input is wrong.  Its text is one line that says what and what to do; train.py exits with status 2."""


def reason(error):
    """A library's error in one line: its class, and the first line of its text."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


class Task(NamedTuple):
    folder: str           # in GLUE's download, also the name of the submission file
    hub_columns: tuple    # the text columns on the hub (nyu-mll/glue)
    tsv_columns: tuple    # the text columns in the download's header
    tsv_label: str        # the label column in the download's header (on the hub it is always `label`)
    labels: tuple         # the labels as the download and the submission spell them; their order is the hub's numbering
    metrics: tuple = ("accuracy",)    # the first one is "the score" everywhere in this project


TWO = ("sentence1", "sentence2")
WORDS = ("entailment", "not_entailment")
TASKS = {
    "cola": Task("CoLA", ("sentence",), ("sentence",), "label", ("0", "1"), ("matthews",)),
    "sst2": Task("SST-2", ("sentence",), ("sentence",), "label", ("0", "1")),
    "mrpc": Task("MRPC", TWO, ("#1 String", "#2 String"), "Quality", ("0", "1"), ("accuracy", "f1")),
    "qqp": Task("QQP", ("question1", "question2"), ("question1", "question2"), "is_duplicate", ("0", "1"), ("accuracy", "f1")),
    "mnli": Task("MNLI", ("premise", "hypothesis"), TWO, "gold_label", ("entailment", "neutral", "contradiction")),
    "qnli": Task("QNLI", ("question", "sentence"), ("question", "sentence"), "label", WORDS),
    "rte": Task("RTE", TWO, TWO, "label", WORDS),
    "wnli": Task("WNLI", TWO, TWO, "label", ("0", "1")),
    "demo": Task("demo", TWO, TWO, "label", WORDS),
}


def tokenize(split, tokenizer, max_length):
    """Tokenise once.  The table keeps all tokens one behind the other as int32; Python lists would take ten times that."""
    texts = [column for column in split.column_names if column != "label"]
    return split.map(lambda rows: tokenizer(*(rows[column] for column in texts), truncation=True, max_length=max_length,
                                            return_token_type_ids=True, return_attention_mask=False),
                     batched=True, remove_columns=texts, keep_in_memory=True)


def row_lengths(split):
    """Tokenised split -> (R,) int64, the number of tokens of each row."""
    return torch.tensor([len(tokens) for tokens in split["input_ids"]])


def loader(split, batches, tokenizer):
    """One batch for each (N,) int64 of row numbers in `batches`: a dict of (N, L) int64 input_ids, attention_mask and
    token_type_ids, padded on the right to the longest of these rows, and (N,) int64 label."""
    pad = partial(tokenizer.pad, padding_side="right", return_attention_mask=True, return_tensors="pt")
    return DataLoader(split, batch_sampler=[rows.tolist() for rows in batches], collate_fn=pad)


def bucketed_batches(lengths, batch_size, generator, window=50):
    """Shuffled batches of rows of similar length: list of (N,) int64, every row exactly once.

    Shuffle, cut into windows of `window` batches, sort each window by length, cut into batches, shuffle the batches.  On
    RTE a batch padded to its longest then carries 1.03 times the useful tokens instead of 2, and classes stay mixed, which
    the contrastive loss needs.  lengths (R,); generator: a torch.Generator, which alone decides the order.
    """
    batches = []
    for chunk in torch.randperm(len(lengths), generator=generator).split(window * batch_size):
        batches += chunk[lengths[chunk].argsort(stable=True)].split(batch_size)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


# ----------------------------------------------------------------------------------------------------------------- metrics
def accuracy(predictions, labels):
    """Share of equal entries, in points (0 to 100).  predictions, labels: (R,)."""
    return 100 * (predictions == labels).double().mean().item()


def f1(predictions, labels):
    """F1 of class 1 of two, in points: 2 TP / (2 TP + FP + FN); 0 where nothing is or was called 1."""
    return 200 * (predictions * labels).sum().item() / max((predictions + labels).sum().item(), 1)


def matthews(predictions, labels):
    """Matthews' correlation of two classes, in points (-100 to 100); 0 where one row or column of the table is empty."""
    tp, fp, fn, tn = (((predictions == p) & (labels == y)).sum().item() for p, y in ((1, 1), (1, 0), (0, 1), (0, 0)))
    product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)                    # of Python integers, which cannot overflow
    return 100 * (tp * tn - fp * fn) / product**0.5 if product else 0.0


METRICS = {"accuracy": accuracy, "f1": f1, "matthews": matthews}


def score(task, logits, labels):
    """{metric: points} of logits (R, K) against labels (R,), in the task's order: the first one is "the score"."""
    return {name: METRICS[name](logits.argmax(dim=-1), labels) for name in TASKS[task].metrics}


# -------------------------------------------------------------------------------------------------------------------- data
def demo_rows(count):
    """A split of generated English entailment rows, all different, both labels in turn; our own.

    Sentence 1 tells who did what to whom.  Sentence 2 repeats it, actively or passively (entailment), or says `never` (easy),
    names another verb (harder: two words must be compared), or reverses the roles (hard: only the order tells).  So a
    majority guess gets half, a bag of words less than 65 %, and a first layer less than the fourth.
    """
    people = "anna boris clara david emma felix grace henry irene jacob laura martin nora oscar paula simon".split()
    verbs = "thanked helped called followed warned visited invited trusted".split()
    draw, labels = random.Random(0), {}
    while len(labels) < count:
        (who, whom), (verb, other), label = draw.sample(people, 2), draw.sample(verbs, 2), len(labels) % 2
        sentence1 = f"{who} {verb} {whom}"
        if label == 1:
            wrong = draw.choice(["never", "verb", "roles", "roles", "roles"])
            verb = {"never": f"never {verb}", "verb": other}.get(wrong, verb)
            who, whom = (whom, who) if wrong == "roles" else (who, whom)
        labels[sentence1, draw.choice([f"{who} {verb} {whom}", f"{whom} was {verb} by {who}"])] = label
    return Dataset.from_list([{"sentence1": one, "sentence2": two, "label": label} for (one, two), label in labels.items()])


def load_task(task, data, limit_train=None, holdout=None):
    """{"train": Dataset, "dev": Dataset, "test": Dataset} (MNLI: dev_matched, dev_mismatched, test_matched, test_mismatched).

    data: the hub's id, a local copy of it (`rte/train-*.parquet`), or GLUE's download (`RTE/train.tsv`).
    limit_train: only the first so many rows of train.  holdout: the last so many of these become "dev", and GLUE's dev and
    test are left out: to choose options by them.  Raises InputError.
    """
    if task not in TASKS:
        why = "STS-B is regression: no classes, so no label embeddings to align with; " * (task == "stsb")
        raise InputError(f"unknown task {task!r}; {why}choose one of {', '.join(TASKS)}")
    kinds = ("_matched", "_mismatched") if task == "mnli" else ("",)
    names = ["train"] + [split + kind for split in ("dev", "test") for kind in kinds]
    folder = Path(data) / TASKS[task].folder
    if task == "demo":
        rows = demo_rows(5000)
        splits = {"train": rows.take(4000), "dev": rows.skip(4000).take(500), "test": rows.skip(4500)}
    elif folder.is_dir():
        splits = {name: _read_tsv(task, folder / f"{name}.tsv") for name in names}
    else:
        splits = _read_hub(task, data, names)
    for name, split in splits.items():
        if len(split) == 0:
            raise InputError(f"{task}: the {name} split in {data} has no rows")

    rows = range(len(splits["train"]))[:limit_train]
    if holdout is not None:
        splits = {"train": splits["train"], "dev": splits["train"].select(rows[-holdout:])}
    splits["train"] = splits["train"].select(rows[:-holdout] if holdout else rows)
    for number, label in enumerate(TASKS[task].labels):
        if number not in splits["train"]["label"][:]:
            raise InputError(f"{task}: no row of train has the label {label}, and it takes all classes to train; look at the "
                             "data, --limit-train and --holdout")
    return splits


def _read_hub(task, data, names):
    """The hub's nyu-mll/glue or a local copy of it.  There the dev split is called validation, unknown labels are -1."""
    spec, here = TASKS[task], Path(data) / task
    hub_names = {name: name.replace("dev", "validation") for name in names}
    if not here.is_dir() and (Path(data).exists() or data.startswith((".", "/"))):
        raise InputError(f"--data {data} holds neither {spec.folder}/train.tsv (GLUE's download) nor "
                         f"{task}/train-*.parquet (a copy of the hub's nyu-mll/glue)")
    try:
        files = {hub: str(here / f"{hub}-*.parquet") for hub in hub_names.values()}
        tables = datasets.load_dataset("parquet", data_files=files) if here.is_dir() else datasets.load_dataset(data, task)
        splits = {name: tables[hub].select_columns([*spec.hub_columns, "label"]) for name, hub in hub_names.items()}
    except Exception as error:                         # offline, no such id, a torn file: the library's errors have many names
        raise InputError(f"cannot load {task} from {data} ({reason(error)}); without network use --data FOLDER with GLUE's "
                         "files, or --task demo") from None
    for name, split in splits.items():
        if not all(isinstance(text, str) for column in spec.hub_columns for text in split[column]):
            raise InputError(f"{data}: {name} of {task} has a text that is missing or no string")
        allowed = range(-1 if name.startswith("test") else 0, len(spec.labels))
        if not all(type(label) is int and label in allowed for label in split["label"]):
            raise InputError(f"{data}: {name} of {task} has labels outside {allowed[0]}..{allowed[-1]}")
    return splits


def _read_tsv(task, path):
    """A file of GLUE's download.  Tabs separate, newlines end a row, quotes are plain characters."""
    spec, is_labelled = TASKS[task], not path.name.startswith("test")
    rows, skipped = [], 0
    try:
        with open(path, encoding="utf-8-sig") as file:                          # -sig: MRPC starts with a byte-order mark
            lines = enumerate((line.rstrip("\n").split("\t") for line in file), start=1)
            # CoLA's train and dev have no header and four columns: source, label, the linguist's mark, sentence.
            header = ["source", "label", "mark", "sentence"] if task == "cola" and is_labelled else next(lines, (1, []))[1]
            for column in (*spec.tsv_columns, *[spec.tsv_label] * is_labelled):
                if column not in header:
                    raise InputError(f"{path}, line 1: no column {column!r} in the header; found {', '.join(header)[:80]!r}")
            for number, cells in lines:
                if task == "qqp" and path.name == "train.tsv" and len(cells) < len(header):     # known faults of the download
                    skipped += 1
                    continue
                if len(cells) != len(header):
                    raise InputError(f"{path}, line {number}: {len(cells)} columns where the header has {len(header)}")
                row = dict(zip(header, cells))
                label = row[spec.tsv_label] if is_labelled else None
                if is_labelled and label not in spec.labels:
                    raise InputError(f"{path}, line {number}: label {label[:40]!r} is not {' or '.join(spec.labels)}")
                texts = {hub: row[tsv] for hub, tsv in zip(spec.hub_columns, spec.tsv_columns)}
                rows.append(texts | {"label": spec.labels.index(label) if is_labelled else -1})
    except FileNotFoundError:
        raise InputError(f"{path} is missing; --data needs {spec.folder}/ with {path.name} in it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if skipped:
        print(f"{path}: {skipped} short rows skipped", file=sys.stderr)
    return Dataset.from_list(rows)
