"""GLUE's classification tasks or one's own: samples, batches, metrics, and a generated `demo` task.

A split is a `datasets.Dataset` of R samples: one or two text columns, and `label` (-1 where
unknown).  Tokenised, it has input_ids and token_type_ids in place of the texts.  A column is read
lazily; split["label"][:] is a list.  Source of tasks and metrics: GLUE (arXiv 1804.07461).
"""

import statistics
from functools import partial
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader

from tools import data as data_files
from tools import demo


class Task(NamedTuple):
    name: str
    folder: str            # in GLUE's download; also the name of the submission file
    text_columns: tuple    # as on the hub (nyu-mll/glue)
    tsv_columns: tuple     # the same columns in the download's header
    tsv_label: str         # the label column there (on the hub it is always `label`)
    labels: tuple          # K names as the download spells them, in the hub's order
    metrics: tuple         # the first one is "the score" everywhere in this project


ACCURACY = ("accuracy",)
WITH_F1 = ("accuracy", "f1")
ENTAILMENT = ("entailment", "not_entailment")
NO_YES = ("0", "1")

ONE_SENTENCE = ("sentence",)
TWO_SENTENCES = ("sentence1", "sentence2")
TWO_QUESTIONS = ("question1", "question2")
QUESTION_SENTENCE = ("question", "sentence")
MRPC_TSV = ("#1 String", "#2 String")
MNLI_HUB = ("premise", "hypothesis")
MNLI_LABELS = ("entailment", "neutral", "contradiction")

GLUE_TASKS = [
    Task("cola", "CoLA", ONE_SENTENCE, ONE_SENTENCE, "label", NO_YES, ("matthews",)),
    Task("sst2", "SST-2", ONE_SENTENCE, ONE_SENTENCE, "label", NO_YES, ACCURACY),
    Task("mrpc", "MRPC", TWO_SENTENCES, MRPC_TSV, "Quality", NO_YES, WITH_F1),
    Task("qqp", "QQP", TWO_QUESTIONS, TWO_QUESTIONS, "is_duplicate", NO_YES, WITH_F1),
    Task("mnli", "MNLI", MNLI_HUB, TWO_SENTENCES, "gold_label", MNLI_LABELS, ACCURACY),
    Task("qnli", "QNLI", QUESTION_SENTENCE, QUESTION_SENTENCE, "label", ENTAILMENT, ACCURACY),
    Task("rte", "RTE", TWO_SENTENCES, TWO_SENTENCES, "label", ENTAILMENT, ACCURACY),
    Task("wnli", "WNLI", TWO_SENTENCES, TWO_SENTENCES, "label", NO_YES, ACCURACY),
    Task("demo", "demo", TWO_SENTENCES, TWO_SENTENCES, "label", ENTAILMENT, ACCURACY),
]
TASKS = {task.name: task for task in GLUE_TASKS}


# -------------------------------------------------------------------------------------- loading

def load_task(name, data, limit_train=None, holdout=None, with_test=False):
    """(task, {"train": Dataset, "dev": Dataset}); MNLI has dev_matched and dev_mismatched.

    name: one of TASKS; for your own data any other name, of letters, digits, - and _.
    data: GLUE's id on the hub, or a folder with GLUE's files; for your own data a file (.csv,
    .tsv, .jsonl, .json, .parquet), or a folder with train, dev and test files of these kinds, with
    one or two text columns and `label`.  limit_train: only the first so many samples of train.
    holdout: the last so many of these become "dev", to choose options by; dev and test are left
    out.  with_test: "test" too (MNLI test_matched and test_mismatched).  Raises InputError.
    """
    if name == "demo":
        task = TASKS[name]
        splits = demo.demo_splits(with_test)
    elif name in TASKS:
        task = TASKS[name]
        splits = data_files.read_glue(task, data, split_names(task, with_test))
    else:
        texts, classes, splits = data_files.read_own(name, data, with_test)
        task = Task(name, name, texts, texts, "label", classes, ("accuracy", "macro_f1"))

    # The rows that stay in train.  If limit_train asks for more, the slice takes what there is.
    train = splits["train"]
    numbers = range(len(train))[:limit_train]

    # Options are chosen on train's own rows, so that dev stays unseen until they are chosen.
    if holdout is not None:
        splits = {"train": train, "dev": train.select(numbers[-holdout:])}
        numbers = numbers[:-holdout]
    splits["train"] = train.select(numbers)
    data_files.check_classes(task, splits["train"])
    return task, splits


def split_names(task, with_test):
    """The names of a GLUE task's splits, train first: MNLI alone has two dev and two test."""
    kinds = [""]
    if task.name == "mnli":
        kinds = ["_matched", "_mismatched"]
    names = ["train"] + ["dev" + kind for kind in kinds]
    if with_test:
        names += ["test" + kind for kind in kinds]
    return names


# ---------------------------------------------------------------------------- tokens and batches

def tokenize(split, tokenizer, max_length):
    """A split of one or two text columns -> one of tokens, each sample cut to max_length tokens.

    Training and prediction both come through here and through `loader`, so that the tokenizer's
    own habits (padding on the left, no token types, no mask) change nothing.  The split may lack
    `label`.  The table keeps all tokens one after the other as int32, in memory; Python lists
    would take ten times as much of it.
    """
    columns = [column for column in split.column_names if column != "label"]

    def tokenize_some(samples):
        texts = [samples[column] for column in columns]
        return tokenizer(
            *texts,
            truncation=True,
            max_length=max_length,
            return_token_type_ids=True,
            return_attention_mask=False,
        )

    return split.map(tokenize_some, batched=True, remove_columns=columns, keep_in_memory=True)


def row_lengths(split):
    """Tokenised split -> (R,) int64, the number of tokens of each sample."""
    return torch.tensor([len(tokens) for tokens in split["input_ids"]])


def loader(split, batches, tokenizer):
    """One batch for each (N,) int64 tensor of sample numbers in `batches`.

    A batch is transformers' BatchEncoding, a dict that has .to(device): (N, L) int64 input_ids,
    attention_mask and token_type_ids, padded on the right to the longest of its samples, and (N,)
    int64 label where the split has it.
    """
    pad = partial(
        tokenizer.pad,
        padding_side="right",
        return_attention_mask=True,
        return_tensors="pt",
    )
    numbers = [samples.tolist() for samples in batches]
    return DataLoader(split, batch_sampler=numbers, collate_fn=pad)


def bucketed_batches(lengths, batch_size, generator, window=50):
    """Shuffled batches of samples of similar length: list of (N,) int64, every sample once.

    On RTE a batch padded to its longest then carries 1.03 times the useful tokens instead of 2,
    and classes stay mixed, which the contrastive loss needs.
    lengths: (R,); generator: a torch.Generator, which alone decides the order.
    """
    # Shuffled, and cut into windows of `window` batches: sorting all of train by length would
    # give nearly the same batches in every epoch.
    order = torch.randperm(len(lengths), generator=generator)
    batches = []
    for chunk in order.split(window * batch_size):
        # Sorted within the window, so that a batch has hardly any padding.
        by_length = lengths[chunk].argsort(stable=True)
        batches += chunk[by_length].split(batch_size)

    # Shuffle the batches, or each window would run from short to long.
    order = torch.randperm(len(batches), generator=generator)
    return [batches[i] for i in order.tolist()]


# -------------------------------------------------------------------------------------- metrics
# predictions and labels are (R,) int64 of classes 0..K-1; points are hundredths.

def accuracy(predictions, labels):
    """Share of equal entries, in points (0 to 100)."""
    return 100 * (predictions == labels).double().mean().item()


def outcomes(predictions, labels):
    """True positives, false positives, false negatives and true negatives of class 1 of two.

    GLUE has metrics of two classes only; more are a ValueError.
    """
    both = torch.cat([predictions, labels])
    if both.numel() and not 0 <= both.min() <= both.max() <= 1:
        raise ValueError("this metric is of the classes 0 and 1; use macro_f1 for more")
    is_true = predictions == labels
    is_positive = predictions == 1
    cells = (is_true & is_positive, ~is_true & is_positive, ~is_true & ~is_positive,
             is_true & ~is_positive)
    return [cell.sum().item() for cell in cells]


def f1(predictions, labels):
    """F1 of class 1 of two, in points: 2 TP / (2 TP + FP + FN); 0 if class 1 never occurs."""
    TP, FP, FN, _ = outcomes(predictions, labels)
    return 200 * TP / max(2 * TP + FP + FN, 1)


def macro_f1(predictions, labels):
    """Mean of each class's F1, in points (0 to 100), over the classes that occur in either."""
    classes = torch.cat([predictions, labels]).unique()
    each = [f1((predictions == k).long(), (labels == k).long()) for k in classes]
    return statistics.mean(each)


def matthews(predictions, labels):
    """Matthews' correlation of two classes, in points (-100 to 100); 0 where either is constant.

    (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN))
    """
    TP, FP, FN, TN = outcomes(predictions, labels)
    # Only integers occur before the root.  Where either is constant, 0 by convention.
    product = (TP + FP) * (TP + FN) * (TN + FP) * (TN + FN)
    return 100 * (TP * TN - FP * FN) / product**0.5 if product else 0.0


METRICS = {"accuracy": accuracy, "f1": f1, "macro_f1": macro_f1, "matthews": matthews}


def score(metrics, logits, labels):
    """{metric: points} of logits (R, K) against labels (R,), in the order of `metrics`."""
    predictions = logits.argmax(dim=-1)
    return {name: METRICS[name](predictions, labels) for name in metrics}


def majority_score(labels, metric):
    """The points of a constant answer, the most frequent class of labels (R,).

    An exit that has learnt nothing scores as much.
    """
    constant = torch.full_like(labels, labels.mode().values.item())
    return METRICS[metric](constant, labels)
