"""The demo task needs no download: it generates sentence pairs and a little untrained BERT."""

import random

import torch
from datasets import Dataset
from transformers import BertConfig, BertModel, BertTokenizer

PEOPLE = "anna boris clara david emma felix grace henry irene jacob laura martin".split()
VERBS = "thanked helped called followed warned visited".split()

# How sentence 2 differs from sentence 1; None means that it says the same.  The changes take turns,
# so that every part of the data holds the same shares.
CHANGES = [None, "never", None, "verb", None, "person", None, "roles", None, "roles"]


def demo_samples(count):
    """English sentence pairs that we made up: all different, the two labels taking turns.

    Sentence 1 tells who did what to whom, actively or passively.  Sentence 2 tells it again in
    either voice (entailment), or changes it (not_entailment) in one of these ways:

        never    anna was never helped by boris    a word gives it away: 1 in 5
        verb     boris warned anna                 a word must be compared: 1 in 5
        person   boris helped clara                likewise: 1 in 5
        roles    anna helped boris                 only order and voice tell: 2 in 5

    So a majority guess is right in 50 %, a bag of words in about 60 %, and whoever compares words
    without their order in about 80 %.  count: the number of samples, at most 6,000.  Returns a
    Dataset.
    """
    draw = random.Random(0)
    labels = {}
    while len(labels) < count:
        # What sentence 1 says, and two words that it does not hold.
        who, whom, somebody = draw.sample(PEOPLE, 3)
        verb, other_verb = draw.sample(VERBS, 2)
        sentence1 = tell(draw, who, verb, whom)

        # What sentence 2 says.
        change = CHANGES[len(labels) % len(CHANGES)]
        if change == "never":
            verb = f"never {verb}"
        elif change == "verb":
            verb = other_verb
        elif change == "person":
            who, whom = draw.choice([(who, somebody), (somebody, whom)])
        elif change == "roles":
            who, whom = whom, who
        label = 0 if change is None else 1

        # A pair drawn before finds its label there, the same, and the next turn tries again.
        labels[sentence1, tell(draw, who, verb, whom)] = label

    samples = []
    for (sentence1, sentence2), label in labels.items():
        samples.append({"sentence1": sentence1, "sentence2": sentence2, "label": label})
    return Dataset.from_list(samples)


def demo_splits(with_test):
    """The demo's 4000 samples of train, 500 of dev, and perhaps 500 of test."""
    samples = demo_samples(5000)
    splits = {"train": samples.take(4000), "dev": samples.skip(4000).take(500)}
    if with_test:
        splits["test"] = samples.skip(4500)
    return splits


def tell(draw, who, verb, whom):
    """`anna helped boris` or `boris was helped by anna`, which say the same."""
    return draw.choice([f"{who} {verb} {whom}", f"{whom} was {verb} by {who}"])


def demo_encoder():
    """The demo's untrained BERT of 3 layers, and a tokenizer of the demo's words alone.

    BERT's own start, N(0, 0.02), is made for long training; here half a minute must do.  So
    weights start larger, and attention in the last two layers starts where trained attention
    arrives: a token looks at the same word elsewhere.  The first layer's does not, so that the
    first exit can tell little more than `never`.  We chose this start, the same for all methods.
    """
    # Every word of the demo, behind BERT's own five tokens.
    words = {*PEOPLE, *VERBS, "was", "by", "never"}
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)]
    vocabulary = {token: number for number, token in enumerate(tokens)}

    # No dropout: a model this small has nothing to spare.
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=128,
        initializer_range=0.1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    encoder = BertModel(config)
    encoder.pooler_is_new = True  # for --pooling cls

    with torch.no_grad():
        # At the start a token is mostly its word, and less where it stands.
        encoder.embeddings.position_embeddings.weight.mul_(0.5)
        encoder.embeddings.token_type_embeddings.weight.mul_(0.3)

        # Equal query and key: two equal words score a squared length, the most there is.  Twice
        # as long, so that they stand out: at 1 the score stays at 60 % for epochs.
        for layer in encoder.encoder.layer[1:]:
            attention = layer.attention.self
            attention.query.weight.mul_(2)
            attention.key.weight.copy_(attention.query.weight)
    return encoder, BertTokenizer(vocab=vocabulary)
