"""What test files share: small models and batches, a small task to train on, a command's answer."""

import pandas
import torch
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, BertTokenizer

import exits
import train

WORDS = "anna boris clara david thanked helped was by never".split()


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
    others = dict.fromkeys(dropouts, dropout)
    others |= {"embedding_size": 8, "hidden_dim": 32, "initializer_cutoff_factor": 2.0}
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


def gradients_of(model):
    """{name: gradient, or None} of a model's parameters."""
    gradients = {}
    for name, p in model.named_parameters():
        gradients[name] = None if p.grad is None else p.grad.clone()
    return gradients


# ------------------------------------------------------------------------------ a small task


def small_task(folder, samples=24, dropout=0.1):
    """Write a task's data and an encoder into folders with a space in their names; returns
    options for train.py.  24 samples are 6 steps an epoch."""
    data = folder / "my data"
    if not data.exists():
        write_data(data, {"train": samples, "dev": 10, "test": 5})
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


def write_data(folder, sizes):
    """train.csv, dev.csv and test.csv: two texts of words, and whether they are in one order."""
    folder.mkdir(parents=True)
    start = 0
    for name, size in sizes.items():
        rows = [sample(number) for number in range(start, start + size)]
        pandas.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
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


def write_encoder(folder, dropout=0.1):
    """A BERT of two layers with random weights, and the tokenizer of its words."""
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


def make_run(folder, method="acl-cl", *options, seed=1):
    """Train on the small task; returns the folder of the finished run, made in a moment."""
    argv = small_task(folder) + ["--method", method, "--seeds", str(seed), *map(str, options)]
    output = folder / "runs"
    assert call(train.main, *argv, "--output", output) == 0
    return output / f"mine_{method}_{seed}"


# ------------------------------------------------------------------------------ commands


def call(main, *argv):
    """The exit status of a command's main(argv), called in this process."""
    try:
        main([str(word) for word in argv])
    except SystemExit as stop:
        return stop.code
    return 0


def answer(capsys, main, *argv):
    """(exit status, standard output, standard error) of a command's main(argv)."""
    capsys.readouterr()
    status = call(main, *argv)
    printed = capsys.readouterr()
    return status, printed.out, printed.err
