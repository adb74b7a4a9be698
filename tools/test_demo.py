"""The demo: its labels say what its sentences say, its encoder's start, its one thread.

That a bag of words does not solve it is in test_batches.py, that it learns in ../test_acl.py.
"""

import collections

import pytest
import torch

from tools import demo, machine
from tools.testing import texts


def told(sentence):
    """A sentence, read word by word -> (who, verb, whom); `never` stays with the verb."""
    words = sentence.split()
    first, last = words[0], words[-1]
    if "by" not in words:
        return first, " ".join(words[1:-1]), last
    assert words[1] == "was" and words[-2] == "by"
    return last, " ".join(words[2:-2]), first


def difference(one, two):
    """What two told sentences differ in: a name, or None."""
    if one == two:
        return None
    if two == (one[0], f"never {one[1]}", one[2]):
        return "never"
    if two == (one[2], one[1], one[0]):
        return "roles"
    [place] = [i for i in range(3) if one[i] != two[i]]
    return ["person", "verb", "person"][place]


def test_labels_say_what_the_sentences_say():
    samples = demo.demo_samples(5000)
    found = collections.Counter()
    for sample in samples:
        change = difference(told(sample["sentence1"]), told(sample["sentence2"]))
        assert sample["label"] == (change is not None)
        found[change] += 1
    assert found == {None: 2500, "never": 500, "verb": 500, "person": 500, "roles": 1000}
    assert len(set(texts(samples))) == 5000


def test_words_without_their_order_are_not_enough():
    """Whoever compares the words of both sentences, but not their order, is right in 4 of 5."""
    right = 0
    splits = demo.demo_splits(with_test=True)
    for sample in splits["dev"]:
        one = set(sample["sentence1"].split()) - {"was", "by"}
        two = set(sample["sentence2"].split()) - {"was", "by"}
        right += sample["label"] == (one != two)
    assert right == 0.8 * len(splits["dev"])


def test_splits_share_no_sample_and_are_drawn_alike():
    splits = demo.demo_splits(with_test=True)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 4000,
        "dev": 500,
        "test": 500,
    }
    everything = set()
    for split in splits.values():
        everything.update(texts(split))
    assert len(everything) == 5000
    again = demo.demo_splits(with_test=False)
    assert list(again) == ["train", "dev"]
    assert texts(again["dev"]) == texts(splits["dev"])


def test_the_tokenizer_knows_every_word_and_the_encoder_every_token():
    encoder, tokenizer = demo.demo_encoder()
    assert encoder.config.vocab_size == len(tokenizer)
    for one, two in texts(demo.demo_splits(with_test=False)["dev"]):
        tokens = tokenizer(one, two)["input_ids"]
        assert tokenizer.unk_token_id not in tokens
        assert len(tokens) == len(one.split()) + len(two.split()) + 3


@pytest.mark.parametrize("layer, looks", [(0, False), (1, True), (2, True)])
def test_a_word_looks_at_the_same_word_in_the_last_two_layers(layer, looks):
    """A word's score with itself, against its scores with the others."""
    torch.manual_seed(0)
    encoder, _ = demo.demo_encoder()
    words = encoder.embeddings.word_embeddings.weight.detach()[5:]  # behind the special tokens
    attention = encoder.encoder.layer[layer].attention.self
    query = words @ attention.query.weight.detach().T
    key = words @ attention.key.weight.detach().T
    heads = range(attention.num_attention_heads)
    size = attention.attention_head_size
    for head in heads:
        columns = slice(head * size, (head + 1) * size)
        scores = query[:, columns] @ key[:, columns].T  # (V, V)
        stands_out = scores.diagonal().mean() > 2 * scores.abs().mean()
        assert stands_out == looks


@pytest.mark.parametrize("task, variable, threads", [
    ("demo", None, 1),  # small: one thread
    ("demo", "OMP_NUM_THREADS", 2),  # the user's own choice stands
    ("demo", "MKL_NUM_THREADS", 2),
    ("rte", None, 2),  # not small: torch's own number
])
def test_the_demo_takes_one_thread_unless_the_user_chose(monkeypatch, task, variable, threads):
    for name in machine.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, "2")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        machine.pick_threads(task)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
