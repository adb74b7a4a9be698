"""Tests of glue.py without files: metrics, batches, the demo.  To be merged into test_acl.py."""

import hashlib
import math
import random
import struct
from pathlib import Path

import datasets
import pytest
import torch
import torch.nn.functional as F
from transformers import BertTokenizer

import glue

REAL = Path(__file__).parent / "data"

datasets.disable_progress_bars()


# In test_acl.py already: Words (its __call__ alone is used here), texts, labels_of.
class Words:
    """A stand-in tokenizer: one token a word, so that lengths are known."""

    def __call__(self, *columns, truncation, max_length, **_):
        ids = []
        for texts in zip(*columns):
            words = " ".join(texts).split()
            ids.append([1 + len(word) for word in words][:max_length])
        return {"input_ids": ids, "token_type_ids": [[0] * len(row) for row in ids]}


def texts(split):
    """A split's samples as tuples of their texts."""
    columns = [column for column in split.column_names if column != "label"]
    return list(zip(*(split[column][:] for column in columns)))


def labels_of(split):
    return torch.tensor(split["label"][:])


# ------------------------------------------------------------------------------ glue: metrics

def test_metrics_by_hand():
    # TP 2, FP 1, FN 2, TN 3
    p, y = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]), torch.tensor([1, 0, 0, 1, 1, 0, 0, 1])
    nothing = torch.zeros(8, dtype=torch.int64)
    assert glue.accuracy(p, y) == 62.5
    assert glue.f1(p, y) == pytest.approx(100 * 2 * 2 / (4 + 1 + 2))
    # Class 0 has 3 right, 1 missed, 2 too many.
    assert glue.macro_f1(p, y) == pytest.approx(100 * (4 / 7 + 6 / 9) / 2)
    assert glue.matthews(p, y) == pytest.approx(100 * (2 * 3 - 1 * 2) / math.sqrt(3 * 4 * 4 * 5))
    assert glue.matthews(y, y) == 100 and glue.matthews(1 - y, y) == -100
    assert glue.matthews(nothing, y) == 0 and glue.f1(nothing, y) == 0
    assert glue.matthews(nothing, nothing) == 0 and glue.macro_f1(nothing, nothing) == 100


def test_metrics_of_three_classes_by_hand():
    """Table of predictions (rows) and labels (columns): 2 1 0 / 0 1 1 / 1 0 2, so 5 of 8 right.

    F1: class 0 2*2/(3+3), class 1 2*1/(2+2), class 2 2*2/(3+3).
    R_3: (5*8 - (3*3 + 2*2 + 3*3)) / sqrt((64 - 22) (64 - 22)) = 18 / 42.
    """
    p, y = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2]), torch.tensor([0, 0, 1, 1, 2, 0, 2, 2])
    assert glue.accuracy(p, y) == 62.5
    assert glue.macro_f1(p, y) == pytest.approx(100 * (2 / 3 + 1 / 2 + 2 / 3) / 3)
    assert glue.matthews(p, y) == pytest.approx(100 * 18 / 42)


# Predictions, labels, and what scikit-learn 1.9.1 says in points: accuracy_score,
# f1_score(average="macro"), matthews_corrcoef.
SKLEARN = {
    "five classes": ([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 0, 1, 4, 2],
                     [0, 1, 2, 3, 4, 1, 1, 2, 0, 4, 0, 2, 1, 3, 2],
                     73.33333333333333, 71.71428571428571, 67.23271143745335),
    "two of five right": ([0, 1, 2, 3, 4], [0, 1, 3, 4, 2], 40.0, 40.0, 25.0),
    "all of five right": ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], 100.0, 100.0, 100.0),
    "a class never predicted": ([0, 0, 1, 1, 0, 1], [0, 2, 1, 1, 0, 2],
                                66.66666666666666, 53.333333333333336, 57.735026918962575),
    "a class never there": ([0, 3, 1, 1, 0, 2], [0, 2, 1, 1, 0, 2],
                            83.33333333333334, 66.66666666666666, 80.06407690254356),
    "one prediction for all": ([1, 1, 1, 1, 1, 1], [0, 1, 2, 0, 1, 2],
                               33.33333333333333, 16.666666666666664, 0.0),
    "always another class": ([1, 2, 0, 1, 2, 0], [0, 1, 2, 0, 1, 2], 0.0, 0.0, -50.0),
    "two classes": ([1, 1, 0, 0, 1, 0, 0, 0], [1, 0, 0, 1, 1, 0, 0, 1],
                    62.5, 61.904761904761905, 25.81988897471611),
    "150 classes": ([(7 * x * x + 3 * x) % 150 for x in range(600)],
                    [(7 * x * x + 3 * x + (x % 3 == 0) * (x % 11)) % 150 for x in range(600)],
                    69.83333333333334, 13.257321993841623, 68.61993422584919),
}


@pytest.mark.parametrize("name", SKLEARN)
def test_metrics_are_scikit_learns(name):
    predictions, labels, *expected = SKLEARN[name]
    p, y = torch.tensor(predictions), torch.tensor(labels)
    values = [glue.accuracy(p, y), glue.macro_f1(p, y), glue.matthews(p, y)]
    assert values == pytest.approx(expected, rel=1e-12)


def test_matthews_of_two_classes_is_their_own_formula_to_the_bit():
    draw = random.Random(0)
    tables = [[draw.randrange(draw.choice([2, 30, 500])) for _ in range(4)] for _ in range(2000)]
    # Here the general formula as it is printed differs in the last bit.
    tables += [[17, 9, 57, 42], [41, 29, 71, 64], [24, 5, 76, 10], [32, 73, 4, 38]]
    for tp, fp, fn, tn in tables:
        p = torch.tensor([1] * tp + [1] * fp + [0] * fn + [0] * tn, dtype=torch.int64)
        y = torch.tensor([1] * tp + [0] * fp + [1] * fn + [0] * tn, dtype=torch.int64)
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        if product:
            assert glue.matthews(p, y) == 100 * (tp * tn - fp * fn) / product**0.5


def test_f1_is_of_two_classes():
    with pytest.raises(ValueError, match="macro_f1"):
        glue.f1(torch.arange(5), torch.arange(5))
    with pytest.raises(ValueError, match="macro_f1"):
        glue.score(("accuracy", "f1"), torch.eye(5)[:2], torch.tensor([0, 1]))


def test_score_names_and_order():
    logits, labels = torch.tensor([[0.0, 1], [1, 0]]), torch.tensor([1, 1])
    assert glue.score(("accuracy", "f1"), logits, labels) == {"accuracy": 50, "f1": 200 / 3}
    scores = glue.score(("macro_f1", "accuracy"), torch.eye(150), torch.arange(150))
    assert list(scores.items()) == [("macro_f1", 100), ("accuracy", 100)]
    assert glue.TASKS["cola"].metrics == ("matthews",)
    for name, task in glue.TASKS.items():
        assert task.name == name
        assert set(task.metrics) <= set(glue.METRICS)
        assert name == "cola" or task.metrics[0] == "accuracy"


# ------------------------------------------------------------------------------ glue: batches

@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("odd", [
    {}, {"padding_side": "left"}, {"model_input_names": ["input_ids"]}])
def test_batches_hold_their_rows_padded_to_the_longest(padding, odd):
    """With the library's tokenizer, whatever it would pad with, where, and what it returns."""
    words = ["[UNK]", "[CLS]", "[SEP]", "a", "b", "c"]
    words.insert(padding, "[PAD]")
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)}, **odd)
    pad, cls, sep, a, b, c = (words.index(w) for w in ("[PAD]", "[CLS]", "[SEP]", "a", "b", "c"))
    samples = {"sentence1": ["a", "a b c", ""], "sentence2": ["b", "c a", "c"], "label": [0, 1, 1]}
    split = glue.tokenize(datasets.Dataset.from_dict(samples), tokenizer, max_length=7)
    assert glue.row_lengths(split).tolist() == [5, 7, 4]
    one, two = glue.loader(split, [torch.tensor([1, 2, 0]), torch.tensor([2])], tokenizer)
    assert one["input_ids"].tolist() == [[cls, a, b, sep, c, a, sep],
                                         [cls, sep, c, sep, pad, pad, pad],
                                         [cls, a, sep, b, sep, pad, pad]]
    assert one["attention_mask"].tolist() == [[1] * 7, [1] * 4 + [0] * 3, [1] * 5 + [0] * 2]
    assert one["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0, 0],
                                              [0, 0, 0, 1, 1, 0, 0]]
    assert one["label"].tolist() == [1, 1, 0] and two["input_ids"].tolist() == [[cls, sep, c, sep]]
    assert {batch[name].dtype for batch in (one, two) for name in batch} == {torch.int64}
    # A table: MNLI must not become Python lists.
    assert split.features["input_ids"].feature.dtype == "int32"


def padding_share(lengths, batches):
    return sum(len(rows) * int(lengths[rows].max()) for rows in batches) / int(lengths.sum())


def test_bucketed_batches_carry_every_row_once_mixed_and_hardly_padded(capsys):
    lengths = torch.randint(10, 120, (2490,), generator=torch.Generator().manual_seed(0))
    labels = (lengths > 60).long()
    source = "made-up lengths"
    if (REAL / "RTE").is_dir():
        _, splits = glue.load_task("rte", str(REAL))
        split = glue.tokenize(splits["train"], Words(), 128)
        lengths, labels, source = glue.row_lengths(split), labels_of(split), "RTE's words"
    batches, again, other = (
        glue.bucketed_batches(lengths, 32, torch.Generator().manual_seed(seed))
        for seed in (7, 7, 8))
    assert torch.cat(batches).sort().values.tolist() == list(range(2490))
    assert len(batches) == math.ceil(2490 / 32)
    assert all(torch.equal(a, b) for a, b in zip(batches, again))
    assert not torch.equal(torch.cat(batches), torch.cat(other))
    shuffled = torch.randperm(2490, generator=torch.Generator().manual_seed(7)).split(32)
    share, plain = padding_share(lengths, batches), padding_share(lengths, shuffled)
    with capsys.disabled():
        print(f"\n{source}: bucketed batches carry {share:.3f} times the useful tokens, "
              f"plainly shuffled ones {plain:.2f}")
    assert share <= 1.10
    if source == "RTE's words":
        assert all(len(labels[rows].unique()) == 2 for rows in batches if len(rows) == 32)


def test_bucketed_batches_are_shuffled_within_windows_and_among_themselves():
    lengths = torch.arange(4000)            # no ties: sorting alone would leave no choice
    one, two = (
        glue.bucketed_batches(lengths, 2, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    # Other neighbours.
    assert len({tuple(b.tolist()) for b in one} & {tuple(b.tolist()) for b in two}) < 1000
    # Not from short to long.
    firsts = [int(batch[0]) for batch in one]
    assert firsts[:50] != sorted(firsts[:50])


def test_bucketed_batches_repeat_the_committed_runs():
    """Their order is part of every committed number; these come from the first release's code."""
    lengths = torch.tensor([5, 3, 9, 1, 7, 7, 2, 8, 4, 6])
    batches = glue.bucketed_batches(lengths, 2, torch.Generator().manual_seed(3), window=2)
    assert [rows.tolist() for rows in batches] == [[4, 2], [9, 5], [1, 8], [3, 6], [0, 7]]


def slow_fingerprint(rows, labels):
    """Three lists of numbers, 8 bytes each, little end first."""
    lists = [len(row) for row in rows], [token for row in rows for token in row], labels
    digests = [hashlib.sha256(struct.pack(f"<{len(x)}q", *x)).digest() for x in lists]
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def test_fingerprint_is_of_tokens_and_labels_alone():
    rows, labels = [[1, 2, 3], [], [4, 70_000], [5]], [0, 1, 1, 0]
    plain = {"input_ids": rows, "label": labels}
    split = datasets.Dataset.from_dict(plain)
    expected = "fb0be9a9d035d4d3"
    assert glue.fingerprint(split) == slow_fingerprint(rows, labels) == expected
    # Other chunks, indices instead of a table, other columns and widths: the same.
    parts = [split.select([i]) for i in range(4)]
    assert glue.fingerprint(datasets.concatenate_datasets(parts)) == expected
    turned = datasets.Dataset.from_dict({"input_ids": rows[::-1], "label": labels[::-1]})
    assert glue.fingerprint(turned.select([3, 2, 1, 0])) == expected
    assert glue.fingerprint(split.add_column("token_type_ids", rows)) == expected
    narrow = datasets.Features({"input_ids": datasets.List(datasets.Value("int32")),
                                "label": datasets.Value("int8")})
    assert glue.fingerprint(split.cast(narrow)) == expected
    # Other tokens, ends, order, labels: another.
    others = [([[1, 2, 3], [], [4, 70_001], [5]], labels),
              ([[1, 2], [3], [4, 70_000], [5]], labels),
              (rows[::-1], labels[::-1]), (rows, [0, 1, 1, 1]), (rows[:3], labels[:3])]
    for rows, labels in others:
        other = datasets.Dataset.from_dict({"input_ids": rows, "label": labels})
        assert glue.fingerprint(other) == slow_fingerprint(rows, labels) != expected


def test_fingerprint_of_many_samples():
    """More than one piece of the table."""
    rows, labels = [[i % 300] * (i % 5) for i in range(25_000)], [i % 3 for i in range(25_000)]
    split = datasets.Dataset.from_dict({"input_ids": rows, "label": labels})
    assert glue.fingerprint(split) == slow_fingerprint(rows, labels)


# --------------------------------------------------------------------------------- glue: demo

def test_demo_task_is_honest():
    _, splits = glue.load_task("demo", "unused", with_test=True)
    assert not set(texts(splits["train"])) & set(texts(splits["dev"]))
    for split in splits.values():
        assert sum(split["label"][:]) == len(split) / 2
    # In test_acl.py the vocabulary is exits.demo_encoder()'s, and holds every word.
    names = {word for row in texts(splits["train"]) for text in row for word in text.split()}
    vocabulary = {word: i for i, word in enumerate(sorted(names))}

    # A bag of words, by logistic regression on the counts of both sentences' words: better than
    # a guess, far from enough.
    def bags(split):
        counts = torch.zeros(len(split), 2 * len(vocabulary) + 1)
        counts[:, -1] = 1
        for i, sentences in enumerate(texts(split)):
            for j, sentence in enumerate(sentences):
                for word in sentence.split():
                    counts[i, j * len(vocabulary) + vocabulary[word]] += 1
        return counts

    x = bags(splits["train"])
    weights = torch.zeros(x.shape[1], 2, requires_grad=True)
    optimizer = torch.optim.Adam([weights], 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(x @ weights, labels_of(splits["train"])).backward()
        optimizer.step()
    assert glue.accuracy((x @ weights).argmax(-1), labels_of(splits["train"])) > 55
    predictions = (bags(splits["dev"]) @ weights).argmax(-1)
    assert glue.accuracy(predictions, labels_of(splits["dev"])) < 65


def test_limit_train_and_holdout():
    def load(**options):
        return glue.load_task("demo", "unused", **options)[1]

    whole = load()["train"]
    limited = load(limit_train=300, with_test=True)
    assert list(limited) == ["train", "dev", "test"]
    assert list(load()) == ["train", "dev"]
    assert texts(limited["train"]) == texts(whole)[:300]
    for with_test in (False, True):
        held = load(limit_train=300, holdout=100, with_test=with_test)
        assert list(held) == ["train", "dev"] and texts(held["train"]) == texts(whole)[:200]
        assert texts(held["dev"]) == texts(whole)[200:300]
        assert held["dev"]["label"][:] == whole["label"][200:300]
    assert texts(load(limit_train=9999)["train"]) == texts(whole)
