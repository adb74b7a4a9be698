"""GLUE's classification tasks: files, labels, batches, metrics, and a generated `demo` task that needs no download.

A task's rows become a `Split`: texts, labels and, once tokenised, all tokens in one flat array, from which a batch is cut
and padded to its own longest row.  Source of tasks, columns and metrics: GLUE (arXiv 1804.07461) and its download.
"""

import csv
import random
import sys
from pathlib import Path
from typing import NamedTuple

import torch


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


class Split:
    """The rows of one split.  texts: list of 1 or 2 lists of R strings; labels: (R,) int64, -1 where unknown."""

    def __init__(self, texts, labels):
        self.texts, self.labels = texts, torch.tensor(labels)
        self.tokens = None

    def __len__(self):
        return len(self.labels)

    def part(self, start, end):
        """Rows start to end as a split of their own, Python's slice rules."""
        return Split([column[start:end] for column in self.texts], self.labels[start:end].tolist())

    def tokenize(self, tokenizer, max_length):
        """Tokenise once.  All rows lie one behind the other in two flat arrays (MNLI's 393,000 rows: some 80 MB; Python lists
        would take many times that).  Row r is tokens[starts[r]:starts[r + 1]]."""
        tokens, types, lengths = [], [], []
        for start in range(0, len(self), 1000):
            out = tokenizer(*(column[start:start + 1000] for column in self.texts), truncation=True, max_length=max_length,
                            return_token_type_ids=True, return_attention_mask=False)
            lengths += [len(row) for row in out["input_ids"]]
            tokens.append(torch.tensor([t for row in out["input_ids"] for t in row], dtype=torch.int32))
            types.append(torch.tensor([t for row in out["token_type_ids"] for t in row], dtype=torch.int8))
        self.tokens, self.types = torch.cat(tokens), torch.cat(types)                       # (all tokens,)
        self.lengths = torch.tensor(lengths)                                                # (R,)
        self.starts = torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths.cumsum(0)])   # (R + 1,)
        self.pad = tokenizer.pad_token_id

    def batch(self, rows, device="cpu"):
        """rows (N,) int64 -> dict of (N, L) input_ids, attention_mask, token_type_ids; L the longest of these rows."""
        lengths = self.lengths[rows]
        position = torch.arange(int(lengths.max()))                                         # (L,)
        mask = position < lengths[:, None]                                                  # (N, L)
        index = torch.where(mask, self.starts[rows][:, None] + position, 0)                 # (N, L) into the flat arrays
        batch = {"input_ids": torch.where(mask, self.tokens[index].long(), self.pad), "attention_mask": mask.long(),
                 "token_type_ids": torch.where(mask, self.types[index].long(), 0)}
        return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


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
    """Generated English entailment rows (sentence1, sentence2, label), all different, both labels in turn; our own.

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
    return [(*sentences, label) for sentences, label in labels.items()]


def load_task(task, data, limit_train=None, holdout=None):
    """{"train": Split, "dev": Split, "test": Split} (MNLI: dev_matched, dev_mismatched, test_matched, test_mismatched).

    data: the hub's id, a local copy of it (`rte/train-*.parquet`), or GLUE's download (`RTE/train.tsv`).
    limit_train: only the first so many rows of train.  holdout: its last so many rows become "dev", and GLUE's dev and test
    are left out: to choose options by them.  Raises InputError.
    """
    splits = _load_splits(task, data)
    splits["train"] = train = splits["train"].part(0, limit_train)
    if holdout is not None:
        splits = {"train": train.part(0, -holdout), "dev": train.part(-holdout, None)}
    for number, label in enumerate(TASKS[task].labels):
        if not (splits["train"].labels == number).any():
            raise InputError(f"{task}: no row of train has the label {label}, and it takes all classes to train; look at the "
                             "data, --limit-train and --holdout")
    return splits


def _load_splits(task, data):
    if task == "stsb":
        raise InputError("task stsb (STS-B) is regression: it has no classes, so no label embeddings to align with")
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}; choose one of {', '.join(TASKS)}")
    if task == "demo":
        *texts, labels = map(list, zip(*demo_rows(5000)))
        whole = Split(texts, labels)
        return {"train": whole.part(0, 4000), "dev": whole.part(4000, 4500), "test": whole.part(4500, 5000)}
    kinds = ("_matched", "_mismatched") if task == "mnli" else ("",)
    names = ["train"] + [split + kind for split in ("dev", "test") for kind in kinds]
    folder = Path(data) / TASKS[task].folder
    splits = ({name: _read_tsv(task, folder / f"{name}.tsv", name) for name in names} if folder.is_dir() else
              _read_hub(task, data, names))
    for name, split in splits.items():
        if len(split) == 0:
            raise InputError(f"{task}: the {name} split in {data} has no rows")
    return splits


def _read_hub(task, data, names):
    """The hub's nyu-mll/glue or a local copy of it.  There the dev split is called validation, unknown labels are -1."""
    import datasets                                    # takes seconds to import and only this function needs it
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)    # what it logs comes back below, as one line
    spec, here = TASKS[task], Path(data) / task
    hub_names = {name: name.replace("dev", "validation") for name in names}
    if not here.is_dir() and (Path(data).exists() or data.startswith((".", "/"))):
        raise InputError(f"--data {data} holds neither {spec.folder}/train.tsv (GLUE's download) nor "
                         f"{task}/train-*.parquet (a copy of the hub's nyu-mll/glue)")
    try:
        files = {hub: str(here / f"{hub}-*.parquet") for hub in hub_names.values()}
        tables = datasets.load_dataset("parquet", data_files=files) if here.is_dir() else datasets.load_dataset(data, task)
        splits = {name: Split([list(tables[hub][column]) for column in spec.hub_columns], list(tables[hub]["label"]))
                  for name, hub in hub_names.items()}
    except Exception as error:                         # offline, no such id, a torn file: the library's errors have many names
        raise InputError(f"cannot load {task} from {data} ({reason(error)}); without network use --data FOLDER with GLUE's "
                         "files, or --task demo") from None
    for name, split in splits.items():
        if not all(isinstance(text, str) for column in split.texts for text in column):
            raise InputError(f"{data}: {name} of {task} has texts that are none")
        if not name.startswith("test") and (split.labels.dtype != torch.int64 or
                                            not all(0 <= y < len(spec.labels) for y in split.labels.tolist())):
            raise InputError(f"{data}: {name} of {task} has labels outside 0..{len(spec.labels) - 1}")
    return splits


def _read_tsv(task, path, name):
    """A file of GLUE's download.  Tabs separate, newlines end a row, quotes are plain characters."""
    spec, is_labelled = TASKS[task], not name.startswith("test")
    csv.field_size_limit(2**31 - 1)                                             # its own limit is 131,072 characters a cell
    columns, rows, skipped = [*spec.tsv_columns, *[spec.tsv_label] * is_labelled], [], 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:              # -sig: MRPC starts with a byte-order mark
            reader = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            # CoLA's train and dev have no header and four columns: source, label, the linguist's mark, sentence.
            header = ["source", "label", "mark", "sentence"] if task == "cola" and is_labelled else next(reader, [])
            for column in columns:
                if column not in header:
                    raise InputError(f"{path}, line 1: no column {column!r} in the header; found {', '.join(header)[:80]!r}")
            for cells in reader:
                if task == "qqp" and name == "train" and len(cells) < len(header):     # known faults of the download
                    skipped += 1
                    continue
                if len(cells) != len(header):
                    raise InputError(f"{path}, line {reader.line_num}: {len(cells)} columns where the header has {len(header)}")
                row = dict(zip(header, cells))
                label = row[spec.tsv_label] if is_labelled else None
                if is_labelled and label not in spec.labels:
                    raise InputError(f"{path}, line {reader.line_num}: label {label[:40]!r} is not {' or '.join(spec.labels)}")
                rows.append((*(row[column] for column in spec.tsv_columns), spec.labels.index(label) if is_labelled else -1))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; --data needs {spec.folder}/ with {name}.tsv in it") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if skipped:
        print(f"{path}: {skipped} short rows skipped", file=sys.stderr)
    *texts, labels = map(list, zip(*rows)) if rows else ([] for _ in range(len(spec.tsv_columns) + 1))
    return Split(texts, labels)


def write_predictions(path, task, predictions):
    """GLUE's submission file: index and prediction, labels spelt as the download spells them.  predictions: (R,)."""
    rows = [f"{i}\t{TASKS[task].labels[p]}" for i, p in enumerate(predictions.tolist())]
    Path(path).write_text("\n".join(["index\tprediction"] + rows) + "\n", encoding="utf-8")
