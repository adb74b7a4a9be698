"""Classify texts of your own with a finished run.

    python -m tools.predict runs/rte_acl-cl_1 new.csv                  the full model answers
    python -m tools.predict runs/rte_acl-cl_1 new.csv --rule entropy   samples leave early
    python -m tools.predict runs/rte_acl-cl_1 -                        answers the lines you type

FILE has the text columns that the run was trained on; the answers to new.csv are written to
new_predictions.tsv.  What is typed or piped is a sample a line, with a tab between two texts.
From Python:

    run = load("runs/rte_acl-cl_1")
    label, confidence, exit_layer = predict(run, [("It rains.", "The street is wet.")])[0]
"""

import sys
from pathlib import Path
from typing import NamedTuple

import pandas
import torch
from datasets import Dataset
from tqdm import tqdm

import exits
import glue
from tools import data, encoders, machine, models, tradeoff
from tools.errors import InputError, Parser, one_line_errors, reading
from tools.report import beside, write_table
from tools.run import FinishedRun, read_run


class LoadedRun(NamedTuple):
    """A finished run whose model is ready to answer."""

    finished: FinishedRun
    model: exits.MultiExitBert
    tokenizer: object


class Prediction(NamedTuple):
    """What an exit said of one sample."""

    label: str
    confidence: float  # max p, 0 to 1
    exit_layer: int  # from 1


def load(folder, device="cpu"):
    """A finished run's folder -> LoadedRun, its model in evaluation mode.  Raises InputError."""
    machine.quiet_libraries()
    finished = read_run(folder)
    model, tokenizer = models.load_model(finished.folder, finished.config)
    return LoadedRun(finished, model.to(device), tokenizer)


@torch.no_grad()
def predict(run, texts, rule=None, batch_size=32):
    """R strings, or R pairs of strings where the run has two text columns -> R Predictions.

    rule: as for exits.early_exit, which raises InputError for an encoder that it cannot walk;
    without one the full model answers, of any encoder.
    """
    if isinstance(texts, str):
        raise TypeError(f"texts must be a list, not the one text {texts!r:.60}")

    # Tokens and padding are made as in training, whatever the tokenizer's own habits are.
    config = run.finished.config
    samples = [(text,) if isinstance(text, str) else tuple(text) for text in texts]
    if not samples:
        return []
    columns = pandas.DataFrame(samples, columns=config["text_columns"]).to_dict("list")
    tokens = glue.tokenize(Dataset.from_dict(columns), run.tokenizer, config["max_length"])
    batches = torch.arange(len(samples)).split(batch_size)
    loader = glue.loader(tokens, batches, run.tokenizer)

    device = next(run.model.parameters()).device
    predictions = []
    for batch in tqdm(loader, "batches", leave=False, disable=len(batches) == 1 or None):
        logits, exit_layers = answer_batch(run.model, batch.to(device), rule)
        confidences, classes = logits.float().softmax(dim=-1).max(dim=-1)  # (N,), (N,)
        for k, p, layer in zip(classes.tolist(), confidences.tolist(), exit_layers.tolist()):
            predictions.append(Prediction(config["labels"][k], p, layer))
    return predictions


def answer_batch(model, batch, rule):
    """Logits (N, K) and exit layers (N,)."""
    if rule is not None:
        return exits.early_exit(model, batch, rule)
    with encoders.evaluating(model):
        _, logits = model(batch)  # (M, N, K)
    return logits[-1], torch.full((logits.shape[1],), model.exit_layers[-1])


# ------------------------------------------------------------------------------------ the command


def answer(args):
    """Write the answers to a file's rows, or print those to the lines of standard input."""
    finished = read_run(args.run)
    rule = rule_of(args, finished)
    machine.pick_threads(finished.config["task"])
    if args.file == "-":
        answer_lines(load(args.run), rule)
    else:
        path = Path(args.file)
        output = Path(args.output or path.with_name(f"{path.stem}_predictions.tsv"))
        if output.exists():
            raise InputError(f"{output} exists; remove it or choose another --output")
        texts = read_texts(path, finished.config)  # before the model's long wait
        answer_file(load(args.run), texts, rule, output)


def rule_of(args, finished):
    """The rule that the options ask for, said on standard error; None for the full model."""
    if args.rule is None and args.threshold is None and args.patience is None:
        print("the full model answers; with --rule entropy samples leave early", file=sys.stderr)
        return None
    setting = tradeoff.choose(finished, args.rule or "entropy", args.threshold, args.patience)
    print(tradeoff.setting_text(setting), file=sys.stderr)
    return tradeoff.make_rule(**setting)


def read_texts(path, config):
    """FILE -> a DataFrame of strings with the run's text columns.  Raises InputError."""
    names = config["text_columns"]
    table = data.read_table(path)
    if not set(names) <= set(table):
        raise InputError(f"{path} must have the text columns of the run, {', '.join(names)}; its "
                         f"columns are {', '.join(table)}")
    is_text = table[names].map(lambda cell: isinstance(cell, str)).all(axis=1)
    if not is_text.all():
        raise InputError(f"{path}, sample {is_text.idxmin() + 1}: a cell is missing or no text")
    return table[names].reset_index(drop=True)


def answer_file(run, texts, rule, output):
    """A row of answers for each row of the file, and a summary."""
    predictions = predict(run, texts.values.tolist(), rule)
    table = pandas.DataFrame(predictions).rename(columns={"label": "prediction"})
    write_table(beside(table.round({"confidence": 4}), texts), output)
    mean = table.exit_layer.mean()
    deepest = run.model.exit_layers[-1]
    print(f"{len(table)} samples, mean exit layer {mean:.2f} of {deepest} ({deepest / mean:.2f}x)")
    print(table.prediction.value_counts().to_string(header=False))


def answer_lines(run, rule):
    """Answer each line at once.  Somebody who types may err; of piped lines all must be right."""
    if sys.stdin is None:
        raise InputError("standard input is closed; type or pipe lines, or name a file")
    names = run.finished.config["text_columns"]
    what = ", a tab, ".join(names)
    print(f"A line is {what}; Ctrl-C ends.", file=sys.stderr)
    for number, line in enumerate(typed_lines(), start=1):
        texts = line.removesuffix("\n").removesuffix("\r").split("\t")
        if len(texts) == len(names) and all(texts):
            [[label, confidence, layer]] = predict(run, [texts], rule)
            print(f"{label}   confidence {confidence:.2f}   layer {layer}", flush=True)
        elif sys.stdin.isatty():
            print(f"a line must hold {what}", file=sys.stderr)
        else:
            raise InputError(f"standard input, line {number} must hold {what}")


def typed_lines():
    """The lines of standard input, which is UTF-8; a lone carriage return ends none."""
    sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict", newline="\n")
    with reading("standard input"):
        yield from sys.stdin


def parse_args(argv):
    p = Parser("tools.predict", description=__doc__)
    add = p.add_argument
    add("run", metavar="RUN", help="folder of a finished run")
    add("file", metavar="FILE", help=".csv, .tsv, .jsonl, .json or .parquet; - reads lines")
    add("--rule", choices=tradeoff.EXIT_RULES, help="who leaves when (nobody leaves early)")
    add("--threshold", type=float, help="of the rule (the setting next above 2x on dev)")
    add("--patience", type=int, help="of the rule, 1 or more exits")
    add("--output", metavar="FILE", help="a .csv, or a .tsv (FILE_predictions.tsv)")
    return p.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with one_line_errors("tools.predict"):
        answer(args)


if __name__ == "__main__":
    main()
