"""glue.py without files: metrics, batches, fingerprints, the demo's honesty."""

import hashlib
import math
import random
import struct

import datasets
import pytest
import torch
import torch.nn.functional as F
from transformers import BertTokenizer

import glue
from tools import data_files, demo
from tools.testing import DATA, Words, labels_of, texts


def test_metrics_by_hand():
    """Of class 1: 2 true positives, 1 false positive, 2 false negatives, 3 true negatives."""
    predictions = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0])
    labels = torch.tensor([1, 0, 0, 1, 1, 0, 0, 1])
    nothing = torch.zeros(8, dtype=torch.int64)
    assert glue.accuracy(predictions, labels) == 62.5
    assert glue.f1(predictions, labels) == pytest.approx(100 * 2 * 2 / (4 + 1 + 2))
    # Class 0 has 3 right, 1 missed, 2 too many.
    assert glue.macro_f1(predictions, labels) == pytest.approx(100 * (4 / 7 + 6 / 9) / 2)
    root = math.sqrt(3 * 4 * 4 * 5)
    assert glue.matthews(predictions, labels) == pytest.approx(100 * (2 * 3 - 1 * 2) / root)
    assert glue.matthews(labels, labels) == 100
    assert glue.matthews(1 - labels, labels) == -100
    assert glue.matthews(nothing, labels) == 0
    assert glue.f1(nothing, labels) == 0
    assert glue.matthews(nothing, nothing) == 0
    assert glue.macro_f1(nothing, nothing) == 100


def test_metrics_of_three_classes_by_hand():
    """Table of predictions (lines) and labels (columns): 2 1 0 / 0 1 1 / 1 0 2, 5 of 8 right.

    F1: class 0 2*2/(3+3), class 1 2*1/(2+2), class 2 2*2/(3+3).
    R_3: (5*8 - (3*3 + 2*2 + 3*3)) / sqrt((64 - 22) (64 - 22)) = 18 / 42.
    """
    predictions = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    labels = torch.tensor([0, 0, 1, 1, 2, 0, 2, 2])
    assert glue.accuracy(predictions, labels) == 62.5
    expected = 100 * (2 / 3 + 1 / 2 + 2 / 3) / 3
    assert glue.macro_f1(predictions, labels) == pytest.approx(expected)
    assert glue.matthews(predictions, labels) == pytest.approx(100 * 18 / 42)


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
    pair = torch.tensor(predictions), torch.tensor(labels)
    values = [glue.accuracy(*pair), glue.macro_f1(*pair), glue.matthews(*pair)]
    assert values == pytest.approx(expected, rel=1e-12)


def test_matthews_of_two_classes_is_their_own_formula_to_the_bit():
    draw = random.Random(0)
    for _ in range(2000):
        highest = draw.choice([2, 30, 500])
        tp, fp, fn, tn = (draw.randrange(highest) for _ in range(4))
        predictions = torch.tensor([1] * (tp + fp) + [0] * (fn + tn), dtype=torch.int64)
        labels = torch.tensor([1] * tp + [0] * fp + [1] * fn + [0] * tn, dtype=torch.int64)
        product = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
        if product:
            expected = 100 * (tp * tn - fp * fn) / product**0.5
            assert glue.matthews(predictions, labels) == expected


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


ODD_TOKENIZERS = [{}, {"padding_side": "left"}, {"model_input_names": ["input_ids"]}]


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("odd", ODD_TOKENIZERS)
def test_batches_hold_their_samples_padded_to_the_longest(padding, odd):
    """With the library's tokenizer, whatever it would pad with, where, and what it returns."""
    words = ["[UNK]", "[CLS]", "[SEP]", "a", "b", "c"]
    words.insert(padding, "[PAD]")
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = BertTokenizer(vocab=vocabulary, **odd)
    samples = {"sentence1": ["a", "a b c", ""], "sentence2": ["b", "c a", "c"], "label": [0, 1, 1]}
    split = glue.tokenize(datasets.Dataset.from_dict(samples), tokenizer, max_length=7)
    assert glue.row_lengths(split).tolist() == [5, 7, 4]
    # A table: MNLI must not become Python lists.
    assert split.features["input_ids"].feature.dtype == "int32"

    numbers = [torch.tensor([1, 2, 0]), torch.tensor([2])]
    one, two = glue.loader(split, numbers, tokenizer)
    sentences = [
        "[CLS] a b [SEP] c a [SEP]",
        "[CLS] [SEP] c [SEP] [PAD] [PAD] [PAD]",
        "[CLS] a [SEP] b [SEP] [PAD] [PAD]",
    ]
    expected = [[vocabulary[word] for word in sentence.split()] for sentence in sentences]
    assert one["input_ids"].tolist() == expected
    assert two["input_ids"].tolist() == [expected[1][:4]]
    assert one["attention_mask"].tolist() == [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
    ]
    assert one["token_type_ids"].tolist() == [
        [0, 0, 0, 0, 1, 1, 1],
        [0, 0, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0, 0],
    ]
    assert one["label"].tolist() == [1, 1, 0]
    for batch in (one, two):
        assert {tokens.dtype for tokens in batch.values()} == {torch.int64}


def padding_share(lengths, batches):
    """Tokens with padding over tokens without."""
    padded = sum(len(samples) * int(lengths[samples].max()) for samples in batches)
    return padded / int(lengths.sum())


def test_bucketed_batches_carry_every_sample_once_and_hardly_any_padding():
    lengths = torch.randint(10, 120, (2490,), generator=torch.Generator().manual_seed(0))

    def batches_of(seed):
        return glue.bucketed_batches(lengths, 32, torch.Generator().manual_seed(seed))

    batches, order = batches_of(7), torch.cat(batches_of(7))
    assert order.sort().values.tolist() == list(range(2490))
    assert len(batches) == math.ceil(2490 / 32)
    assert torch.equal(order, torch.cat(batches))
    assert not torch.equal(order, torch.cat(batches_of(8)))
    shuffled = torch.randperm(2490, generator=torch.Generator().manual_seed(7)).split(32)
    assert padding_share(lengths, batches) <= 1.10
    assert padding_share(lengths, shuffled) > 1.5


@pytest.mark.skipif(not (DATA / "RTE").is_dir(), reason="no GLUE download in data/")
def test_bucketed_batches_of_rte_are_mixed(capsys):
    """Both classes in every whole batch, which the contrastive loss needs."""
    _, splits = glue.load_task("rte", str(DATA))
    split = glue.tokenize(splits["train"], Words(), 128)
    lengths, labels = glue.row_lengths(split), labels_of(split)
    batches = glue.bucketed_batches(lengths, 32, torch.Generator().manual_seed(7))
    shuffled = torch.randperm(2490, generator=torch.Generator().manual_seed(7)).split(32)
    share, plain = padding_share(lengths, batches), padding_share(lengths, shuffled)
    with capsys.disabled():
        print(f"\nRTE's words: bucketed batches carry {share:.3f} times the useful tokens, "
              f"plainly shuffled ones {plain:.2f}")
    assert share <= 1.10
    for samples in batches:
        assert len(samples) < 32 or len(labels[samples].unique()) == 2


def test_bucketed_batches_are_shuffled_within_windows_and_among_themselves():
    lengths = torch.arange(4000)  # no ties: sorting alone would leave no choice
    pairs = []
    for seed in (1, 2):
        batches = glue.bucketed_batches(lengths, 2, torch.Generator().manual_seed(seed))
        pairs.append([tuple(samples.tolist()) for samples in batches])
    assert len(set(pairs[0]) & set(pairs[1])) < 1000  # other neighbours
    firsts = [pair[0] for pair in pairs[0]][:50]
    assert firsts != sorted(firsts)  # not from short to long


def test_bucketed_batches_repeat_the_committed_runs():
    """Their order is part of every committed number; these come from the first release's code."""
    lengths = torch.tensor([5, 3, 9, 1, 7, 7, 2, 8, 4, 6])
    batches = glue.bucketed_batches(lengths, 2, torch.Generator().manual_seed(3), window=2)
    assert [samples.tolist() for samples in batches] == [[4, 2], [9, 5], [1, 8], [3, 6], [0, 7]]


def slow_fingerprint(samples, labels):
    """Of three lists of numbers: lengths, tokens, labels; 8 bytes each, little end first."""
    lengths = [len(sample) for sample in samples]
    tokens = [token for sample in samples for token in sample]
    digests = b""
    for numbers in (lengths, tokens, labels):
        packed = struct.pack(f"<{len(numbers)}q", *numbers)
        digests += hashlib.sha256(packed).digest()
    return hashlib.sha256(digests).hexdigest()[:16]


def tokenised(samples, labels):
    return datasets.Dataset.from_dict({"input_ids": samples, "label": labels})


def test_fingerprint_is_of_tokens_and_labels_alone():
    samples, labels = [[1, 2, 3], [], [4, 70_000], [5]], [0, 1, 1, 0]
    split = tokenised(samples, labels)
    expected = "fb0be9a9d035d4d3"
    assert data_files.fingerprint(split) == slow_fingerprint(samples, labels) == expected

    # Other chunks, indices instead of a table, other columns and widths: the same.
    parts = [split.select([i]) for i in range(4)]
    assert data_files.fingerprint(datasets.concatenate_datasets(parts)) == expected
    turned = tokenised(samples[::-1], labels[::-1])
    assert data_files.fingerprint(turned.select([3, 2, 1, 0])) == expected
    assert data_files.fingerprint(split.add_column("token_type_ids", samples)) == expected
    narrow = datasets.Features({
        "input_ids": datasets.List(datasets.Value("int32")),
        "label": datasets.Value("int8"),
    })
    assert data_files.fingerprint(split.cast(narrow)) == expected

    # Other tokens, ends, order, labels, number: another.
    others = [
        ([[1, 2, 3], [], [4, 70_001], [5]], labels),
        ([[1, 2], [3], [4, 70_000], [5]], labels),
        (samples[::-1], labels[::-1]),
        (samples, [0, 1, 1, 1]),
        (samples[:3], labels[:3]),
    ]
    for other in others:
        assert data_files.fingerprint(tokenised(*other)) == slow_fingerprint(*other) != expected


def test_fingerprint_of_many_samples():
    """More than one piece of the table."""
    samples = [[i % 300] * (i % 5) for i in range(25_000)]
    labels = [i % 3 for i in range(25_000)]
    split = tokenised(samples, labels)
    assert data_files.fingerprint(split) == slow_fingerprint(samples, labels)


def bags_of_words(split, vocabulary):
    """(R, 2 V + 1) counts of both sentences' words, and a 1 for the bias."""
    counts = torch.zeros(len(split), 2 * len(vocabulary) + 1)
    counts[:, -1] = 1
    for i, sentences in enumerate(texts(split)):
        for j, sentence in enumerate(sentences):
            for word in sentence.split():
                counts[i, j * len(vocabulary) + vocabulary[word]] += 1
    return counts


def test_the_demo_is_honest():
    """No dev sample in train, classes level, every word known; and a bag of words, by logistic
    regression, is better than a guess and far from enough."""
    _, splits = glue.load_task("demo", "unused", with_test=True)
    assert not set(texts(splits["train"])) & set(texts(splits["dev"]))
    for split in splits.values():
        assert sum(split["label"][:]) == len(split) / 2
    _, tokenizer = demo.demo_encoder()
    for sample in texts(splits["dev"])[:100]:
        assert tokenizer.unk_token_id not in tokenizer(*sample)["input_ids"]

    vocabulary = tokenizer.get_vocab()
    train_bags = bags_of_words(splits["train"], vocabulary)
    train_labels = labels_of(splits["train"])
    weights = torch.zeros(train_bags.shape[1], 2, requires_grad=True)
    optimizer = torch.optim.Adam([weights], 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(train_bags @ weights, train_labels).backward()
        optimizer.step()
    predictions = (train_bags @ weights).argmax(dim=-1)
    assert glue.accuracy(predictions, train_labels) > 55
    predictions = (bags_of_words(splits["dev"], vocabulary) @ weights).argmax(dim=-1)
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
