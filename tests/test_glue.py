"""glue.py without files: metrics, tokens, batches, --limit-train and --holdout; and the demo."""

import random

import datasets
import numpy
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

import glue
from tools import data, demo

datasets.disable_progress_bars()


def texts(split):
    """A split's samples as tuples of their texts."""
    columns = [split[column][:] for column in split.column_names if column != "label"]
    return list(zip(*columns))


# ------------------------------------------------------------------------------ metrics


def slow_metrics(predictions, labels):
    """Macro-F1 and Matthews' correlation in points, by their definitions."""
    f1s = []
    for k in set(predictions) | set(labels):
        right = sum(p == y == k for p, y in zip(predictions, labels))
        f1s.append(2 * right / (predictions.count(k) + labels.count(k)))

    return 100 * numpy.mean(f1s), 100 * numpy.corrcoef(predictions, labels)[0, 1]


@pytest.mark.parametrize("classes", [2, 3, 7, 150])
def test_metrics_are_their_slow_forms(classes):
    draw = random.Random(classes)
    labels = [draw.randrange(classes) for _ in range(40)]
    predictions = [y if draw.random() < 0.5 else draw.randrange(classes) for y in labels]
    pair = torch.tensor(predictions), torch.tensor(labels)
    macro_f1, matthews = slow_metrics(predictions, labels)
    assert glue.macro_f1(*pair) == pytest.approx(macro_f1)
    if classes <= 2:
        assert glue.matthews(*pair) == pytest.approx(matthews)


def test_metrics_by_hand():
    """Of class 1: 2 true positives, 1 false positive, 2 false negatives; 5 of 8 are right."""
    predictions = torch.tensor([1, 1, 0, 0, 1, 0, 0, 0])
    labels = torch.tensor([1, 0, 0, 1, 1, 0, 0, 1])
    assert glue.accuracy(predictions, labels) == 62.5
    assert glue.f1(predictions, labels) == 200 * 2 / (2 * 2 + 1 + 2)
    assert glue.f1(0 * labels, labels) == 0
    assert glue.matthews(0 * labels, labels) == 0
    with pytest.raises(ValueError, match="macro_f1"):
        glue.f1(predictions, 2 * labels)


def test_score_and_majority_score():
    logits = torch.tensor([[0.0, 1], [1, 0]])
    labels = torch.tensor([1, 1])
    assert glue.score(("accuracy", "f1"), logits, labels) == {"accuracy": 50, "f1": 200 / 3}

    # Class 1 is the most frequent: always answering it is right in 3 of 5.
    labels = torch.tensor([1, 0, 1, 2, 1])
    assert glue.majority_score(labels, "accuracy") == 60


# ------------------------------------------------------------------------------ tokens


VOCABULARY = {word: i for i, word in enumerate("[PAD] [UNK] [CLS] [SEP] a b c".split())}
SAMPLES = {"sentence1": ["a", "a b c", ""], "sentence2": ["b", "c a", "c"]}


def plain_tokenizer(**habits):
    """A tokenizer of no family: no special tokens, and no token types unless one asks."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", **habits)


def bert_tokenizer(**habits):
    return BertTokenizer(vocab=VOCABULARY, **habits)


HABITS = [{}, {"padding_side": "left"}, {"model_input_names": ["input_ids"]}]
# tokenizer: samples 1, 2 and 0 in a batch, cut to 7 tokens, and their token types.
BATCHES = {
    bert_tokenizer: (
        "[CLS] a b [SEP] c a [SEP]",
        "[CLS] [SEP] c [SEP] [PAD] [PAD] [PAD]",
        "[CLS] a [SEP] b [SEP] [PAD] [PAD]",
        "0000111 0011000 0001100",
    ),
    plain_tokenizer: (
        "a b c c a",
        "c [PAD] [PAD] [PAD] [PAD]",
        "a b [PAD] [PAD] [PAD]",
        "00011 10000 01000",
    ),
}


@pytest.mark.parametrize("habits", HABITS)
@pytest.mark.parametrize("tokenizer", BATCHES)
@pytest.mark.parametrize("labels", [{"label": [0, 1, 1]}, {}])
def test_batches_hold_their_samples_padded_to_the_longest(tokenizer, habits, labels):
    """Whatever the tokenizer's habits, and with labels or without, as in prediction."""
    *sentences, types = BATCHES[tokenizer]
    ids = [[VOCABULARY[word] for word in sentence.split()] for sentence in sentences]
    types = [list(map(int, row)) for row in types.split()]
    expected = {"input_ids": ids, "token_type_ids": types}
    expected["attention_mask"] = [[int(number > 0) for number in row] for row in ids]
    if labels:
        expected["label"] = [1, 1, 0]

    tokenizer = tokenizer(**habits)
    split = datasets.Dataset.from_dict(SAMPLES | labels)
    split = glue.tokenize(split, tokenizer, max_length=7)
    assert split.features["input_ids"].feature.dtype == "int32"
    numbers = torch.tensor([1, 2, 0])
    [batch] = glue.loader(split, [numbers], tokenizer)
    assert {name: tokens.tolist() for name, tokens in batch.items()} == expected
    assert {tokens.dtype for tokens in batch.values()} == {torch.int64}
    assert torch.equal(glue.row_lengths(split)[numbers], batch["attention_mask"].sum(dim=1))


# ------------------------------------------------------------------------------ batches


def bucketed(lengths, batch_size, seed, **options):
    generator = torch.Generator().manual_seed(seed)
    return glue.bucketed_batches(lengths, batch_size, generator, **options)


def test_bucketed_batches_carry_every_sample_once_and_hardly_any_padding():
    lengths = torch.randint(10, 120, (2490,), generator=torch.Generator().manual_seed(0))
    batches = bucketed(lengths, 32, seed=7)
    order = torch.cat(batches)
    assert order.sort().values.tolist() == list(range(2490))
    assert not torch.equal(order, torch.cat(bucketed(lengths, 32, seed=8)))
    padded = sum(len(samples) * lengths[samples].max() for samples in batches)
    assert padded <= 1.1 * lengths.sum()


def test_bucketed_batches_repeat_the_committed_runs():
    """Their order is part of every committed number; these come from the first release's code."""
    lengths = torch.tensor([5, 3, 9, 1, 7, 7, 2, 8, 4, 6])
    batches = bucketed(lengths, 2, seed=3, window=2)
    assert [samples.tolist() for samples in batches] == [[4, 2], [9, 5], [1, 8], [3, 6], [0, 7]]


# ------------------------------------------------------------------------------ the demo


def test_the_demo_is_the_same_everywhere():
    """Its bytes are part of the README's numbers, and of every run that is resumed."""
    _, splits = glue.load_task("demo", "unused", with_test=True)
    assert texts(splits["train"])[:2] == [
        ("martin was called by grace", "martin was called by grace"),
        ("emma warned henry", "henry was never warned by emma"),
    ]
    _, tokenizer = demo.demo_encoder()
    fingerprints = {}
    for name, split in splits.items():
        fingerprints[name] = data.fingerprint(glue.tokenize(split, tokenizer, 128))
    assert fingerprints == {
        "train": "8ce7a46831bb9595",
        "dev": "a006d035fda13f42",
        "test": "8dc7826447fe72f7",
    }


def test_limit_train_and_holdout():
    whole = texts(glue.load_task("demo", "unused")[1]["train"])
    for limit in (300, 9999):
        _, splits = glue.load_task("demo", "unused", limit)
        assert texts(splits["train"]) == whole[:limit]
    _, held = glue.load_task("demo", "unused", 300, holdout=100, with_test=True)
    assert list(held) == ["train", "dev"]
    assert texts(held["train"]) == whole[:200]
    assert texts(held["dev"]) == whole[200:300]
