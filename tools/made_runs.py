"""Finished runs for tests, made in no time: a little encoder that was never trained."""

import csv

import safetensors.torch
import torch
from transformers import BertConfig, BertModel, BertTokenizer, DistilBertConfig, DistilBertModel

import exits
import glue
from tools.files import save_whole, write_json
from tools.models import save_model
from tools.tradeoff import majority_score

WORDS = "anna boris clara david helped thanked warned and never also a fine film bore".split()
ODD = ['he said "no', '"quoted"', "a\ttab", "two\nlines", "a\rreturn", "ends with \\", "o'clock"]


def make_data(folder, columns=("sentence",), classes=("bad", "good"), count=40, odd=True):
    """train.csv and dev.csv, some of dev's texts odd; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, split in enumerate(("train", "dev")):
        texts = [sentence(number * count + i, odd and split == "dev") for i in range(count)]
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerow([*columns, "label"])
            for i, text in enumerate(texts):
                label = i if i < len(classes) else i * i % 7 % len(classes)
                cells = [texts[i - j] for j in range(len(columns))]
                writer.writerow([*cells, classes[label]])
    return folder


def sentence(i, odd):
    """A few words, all different; with odd=True every second has something that files mix up."""
    words = [WORDS[i * j % len(WORDS)] for j in range(1, 3 + i % 5)]
    text = " ".join([*words, f"{i}"])
    return f"{ODD[i % len(ODD)]} {text}" if odd and i % 2 else text


def small_encoder(kind, texts):
    """A BERT of 3 layers, or a DistilBERT, and the tokenizer of its words."""
    words = sorted({word for text in texts for word in text.lower().split()} | set(WORDS))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(tokens)})
    if kind == "distilbert":
        config = DistilBertConfig(
            vocab_size=len(tokens), dim=16, n_layers=3, n_heads=2, hidden_dim=32
        )
        return DistilBertModel(config), tokenizer
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    return BertModel(config), tokenizer


def make_run(folder, data, method="acl-cl", exits_at="all", kind="bert", seed=1, **options):
    """A run's folder as train.py leaves it, from data of make_data.  options: of config.json."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    task, splits = glue.load_task("mine", str(data))
    texts = []
    for name in task.text_columns:
        texts += splits["train"][name]
    encoder, tokenizer = small_encoder(kind, texts)
    model = exits.MultiExitBert(encoder, len(task.labels), exits_at, "mean")

    # What evaluation leaves.
    dev = glue.tokenize(splits["dev"], tokenizer, 32)
    make_varied(model, dev, tokenizer)
    _, logits = exits.all_exits(model, dev, tokenizer, torch.device("cpu"))
    labels = torch.tensor(dev["label"][:])
    stored = {"dev.logits": logits, "dev.labels": labels}
    save_whole(safetensors.torch.save_file, stored, folder / "dev_logits.safetensors")
    save_model(model, tokenizer, folder)

    # The small files.
    has_gate = method in ("acl-grad", "acl-cl")
    run = {"task": task.name, "method": method, "seed": seed, "exit_layers": model.exit_layers}
    write_json({**run, **config_of(task, data, exits_at, has_gate), **options},
               folder / "config.json")
    write_json({**run, **result_of(task, logits, labels, has_gate)}, folder / "result.json")
    angles = (80, 100, 89, 70) if has_gate else ("", "", "", "")
    lines = [f"{i},{1 + i // 2},{angle}\n" for i, angle in enumerate(angles)]
    (folder / "steps.csv").write_text("step,epoch,angle\n" + "".join(lines))
    return folder


def config_of(task, data, exits_at, has_gate):
    return {
        "data": str(data),
        "pooling": "mean",
        "exits": exits_at,
        "weight": 0.1,
        "conflict": "discard" if has_gate else "none",
        "max_length": 32,
        "limit_train": None,
        "holdout": None,
        "num_labels": len(task.labels),
        "labels": list(task.labels),
        "metrics": list(task.metrics),
        "text_columns": list(task.text_columns),
    }


def result_of(task, logits, labels, has_gate):
    metric = task.metrics[0]
    scores = [glue.score([metric], logits_m, labels)[metric] for logits_m in logits]
    return {
        "metric": metric,
        "score": scores[-1],
        "dev": {"dev": {metric: scores[-1]}},
        "majority_score": majority_score(labels, metric),
        "exit_scores": scores,
        "mean_exit_score": sum(scores) / len(scores),
        "steps": 4,
        "conflict_share": 0.25 if has_gate else None,
    }


@torch.no_grad()
def make_varied(model, dev, tokenizer):
    """Weigh the classifiers so that every class is answered and some samples leave early."""
    h, _ = exits.all_exits(model, dev, tokenizer, torch.device("cpu"), keep_h=len(dev))
    for classifier, h_m in zip(model.classifiers, h):  # (R, d)
        torch.nn.init.normal_(classifier.weight)
        spread = (h_m - h_m.mean(dim=0)) @ classifier.weight.T  # (R, K)
        classifier.weight.mul_(2 / spread.std())
        classifier.bias.copy_(-(classifier.weight @ h_m.mean(dim=0)))


def outcome(main, argv, capsys):
    """(exit status, standard output, standard error) of a command's main."""
    capsys.readouterr()
    try:
        status = main([str(argument) for argument in argv])
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err
