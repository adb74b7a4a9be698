"""What test files share: small models, batches, a tokenizer of words, a command's answer."""

from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModel, BatchEncoding

import exits
import glue
import train

DATA = Path(__file__).parent.parent / "data"  # GLUE's download, where there is one

# A run of two or three seconds; a test adds --max-steps and --output.
DEMO = "--task demo --method acl-cl --limit-train 256 --batch-size 16".split()

WITH_POOLER = ("bert", "roberta", "mpnet", "albert")
WITHOUT_POOLER = ("electra", "distilbert", "deberta-v2", "modernbert")
# (kind, pooling)
ENCODERS = [(kind, "cls") for kind in WITH_POOLER]
ENCODERS += [(kind, "mean") for kind in WITH_POOLER + WITHOUT_POOLER]


# ------------------------------------------------------------------------------ models


def small_encoder(kind="bert", num_layers=3, dropout=0.1):
    """An untrained encoder of one family, by its `model_type`: 40 tokens, d = 16."""
    config = AutoConfig.for_model(
        kind,
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=3,
        cls_token_id=2,
        sep_token_id=3,
    )

    # What one family calls otherwise, or has besides.
    dropouts = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout",
                "attention_dropout", "embedding_dropout", "mlp_dropout")
    for name in dropouts:
        if hasattr(config, name):
            setattr(config, name, dropout)
    others = {"embedding_size": 8, "hidden_dim": 32, "initializer_cutoff_factor": 2.0}
    if kind == "roberta":
        others["type_vocab_size"] = 1
    for name, value in others.items():
        if hasattr(config, name):
            setattr(config, name, value)
    return AutoModel.from_config(config)


def small_model(num_layers=3, exits_at="all", pooling="cls", num_labels=2, kind="bert", seed=0,
                dropout=0.1):
    """A MultiExitBert whose exits differ enough to tell them apart, though none is trained."""
    torch.manual_seed(seed)
    encoder = small_encoder(kind, num_layers, dropout)
    model = exits.MultiExitBert(encoder, num_labels, exits_at, pooling)
    for classifier in model.classifiers:
        torch.nn.init.normal_(classifier.weight, std=0.5)
    return model


def two_losses(g_ce, g_acl, dtype=torch.float32):
    """A parameter of some numbers, and losses over it whose gradients are g_ce and g_acl."""
    w = torch.zeros(len(g_ce), dtype=dtype, requires_grad=True)
    ce_loss = (w * torch.tensor(g_ce, dtype=dtype)).sum()
    acl_loss = (w * torch.tensor(g_acl, dtype=dtype)).sum()
    return w, ce_loss, acl_loss


def gradients_of(model):
    """{name: gradient, or None} of a model's parameters."""
    gradients = {}
    for name, p in model.named_parameters():
        gradients[name] = None if p.grad is None else p.grad.clone()
    return gradients


# ------------------------------------------------------------------------------ batches


def small_batch(samples, length, seed=0, ragged=True):
    """A batch for `small_model`: (N, L) input_ids and attention_mask; the first sample has L."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.full((samples,), length)
    if ragged:
        lengths = torch.randint(2, length + 1, (samples,), generator=generator)
        lengths[0] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    tokens = torch.randint(5, 40, (samples, length), generator=generator)
    return {"input_ids": torch.where(mask.bool(), tokens, 1), "attention_mask": mask}


class Words:
    """A stand-in tokenizer: one token a word, its number the word's length, so that both are
    known."""

    pad_token_id = 0

    def __call__(self, *columns, truncation, max_length, **_):
        ids = []
        for sentences in zip(*columns):
            words = " ".join(sentences).split()
            ids.append([1 + len(word) for word in words][:max_length])
        segments = [[len(columns) - 1] * len(sample) for sample in ids]
        return {"input_ids": ids, "token_type_ids": segments}

    def pad(self, samples, **_):
        columns = {
            "input_ids": [sample["input_ids"] for sample in samples],
            "token_type_ids": [sample["token_type_ids"] for sample in samples],
            "attention_mask": [[1] * len(sample["input_ids"]) for sample in samples],
        }
        batch = {}
        for name, lists in columns.items():
            tensors = [torch.tensor(numbers) for numbers in lists]
            batch[name] = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
        batch["label"] = torch.tensor([sample["label"] for sample in samples])
        return BatchEncoding(batch)

    def save_pretrained(self, folder):
        pass


def words_split(samples=9):
    """A tokenised split of sentences of different lengths, labels 0 and 1 in turn."""
    sentences = []
    for i in range(samples):
        words = ["w" * (1 + (i * j) % 20) for j in range(1 + (5 * i) % 7)]
        sentences.append(" ".join(words))
    labels = [i % 2 for i in range(samples)]
    split = Dataset.from_dict({"sentence": sentences, "label": labels})
    return glue.tokenize(split, Words(), 16)


def one_batch(split, samples, tokenizer):
    """Samples of a tokenised split, by their numbers, as one batch without its labels."""
    [batch] = glue.loader(split, [torch.as_tensor(samples)], tokenizer)
    batch.pop("label")
    return batch


def texts(split):
    """A split's samples as tuples of their texts."""
    columns = [split[column][:] for column in split.column_names if column != "label"]
    return list(zip(*columns))


def labels_of(split):
    """(R,) int64."""
    return torch.tensor(split["label"][:])


# ------------------------------------------------------------------------------ commands


def call_train(argv):
    """`python train.py ARGV` in this process; returns the exit status."""
    return train.main(train.parse_args([str(word) for word in argv]))


def run_main(main, argv, capsys):
    """(exit status, standard error) of a command: `call_train`, or a report's main(argv)."""
    capsys.readouterr()
    try:
        status = main([str(word) for word in argv])
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err
