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
from tools import data, machine, models, tradeoff
from tools.errors import InputError, Parser, one_line_errors, reading
from tools.report import write_table
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
    # Tokens and padding are made as in training, whatever the tokenizer's own habits are.
    config = run.finished.config
    table = pandas.DataFrame(texts, columns=config["text_columns"])
    tokens = glue.tokenize(Dataset.from_pandas(table), run.tokenizer, config["max_length"])
    batches = torch.arange(len(table)).split(batch_size)
    loader = glue.loader(tokens, batches, run.tokenizer)

    device = next(run.model.parameters()).device
    predictions = []
    for batch in tqdm(loader, "batches", leave=False, disable=len(batches) == 1 or None):
        batch = batch.to(device)
        if rule is None:
            logits = run.model(batch)[1][-1]  # (N, K)
            exit_layers = torch.full((len(logits),), run.model.exit_layers[-1])
        else:
            logits, exit_layers = exits.early_exit(run.model, batch, rule)  # (N, K), (N,)
        confidences, classes = logits.float().softmax(dim=-1).max(dim=-1)  # (N,), (N,)
        labels = [config["labels"][k] for k in classes]
        predictions += map(Prediction, labels, confidences.tolist(), exit_layers.tolist())
    return predictions


# ------------------------------------------------------------------------------------ the command


def answer(args):
    """Write the answers to a file's rows, or print those to the lines of standard input."""
    finished = read_run(args.run)
    setting = setting_of(args, finished)
    machine.pick_threads(finished.config["task"])
    run = load(args.run)
    rule = None  # the full model answers
    if setting:
        print(tradeoff.setting_text(setting), file=sys.stderr)
        rule = tradeoff.make_rule(**setting)
    if args.file == "-":
        answer_lines(run, rule)
    else:
        answer_file(run, rule, Path(args.file), args.output)


def setting_of(args, finished):
    """The setting given, or the one next above 2x on dev; {} without a rule.  Raises InputError."""
    numbers = {"threshold": args.threshold, "patience": args.patience}
    numbers = {name: number for name, number in numbers.items() if number is not None}
    if not numbers:
        return tradeoff.setting_at_2x(finished, args.rule) if args.rule else {}
    rule = args.rule or "entropy"
    names = tradeoff.EXIT_RULES[rule]
    if set(numbers) != set(names):
        raise InputError(f"rule {rule} needs a {' and a '.join(names)}, and no other setting")
    # A rule of your own may have a threshold of another scale.
    is_share = rule in ("entropy", "confidence", "pcee")
    if is_share and not 0 <= args.threshold <= 1:
        raise InputError(f"the threshold of rule {rule} must be from 0 to 1, not {args.threshold}")
    if numbers.get("patience", 1) < 1:
        raise InputError(f"the patience of rule {rule} must be 1 or more, not {args.patience}")
    return {"rule": rule, **numbers}


def answer_file(run, rule, path, output):
    """A row of answers for each row of the file, and a summary."""
    output = Path(output or path.with_name(f"{path.stem}_predictions.tsv"))
    if output.exists() or not output.parent.is_dir():
        raise InputError(f"{output} exists, or has no folder; choose another --output")
    texts = read_texts(path, run.finished.config["text_columns"])
    predictions = predict(run, texts, rule)
    table = pandas.DataFrame(predictions).rename(columns={"label": "prediction"})
    write_table(table.round(4), output, texts)
    mean = table.exit_layer.mean()
    deepest = run.model.exit_layers[-1]
    print(f"{len(table)} samples, mean exit layer {mean:.2f} of {deepest} ({deepest / mean:.2f}x)")
    print(table.prediction.value_counts().to_string(header=False))


def read_texts(path, names):
    """FILE -> a DataFrame of strings with the run's text columns.  Raises InputError."""
    table = data.read_table(path)
    if not set(names) <= set(table):
        raise InputError(f"{path} must have the text columns of the run, {', '.join(names)}; its "
                         f"columns are {', '.join(table)}")
    for name in names:
        is_text = table[name].map(lambda cell: isinstance(cell, str))
        data.check(path, table[name], is_text, "is missing or no text")
    return table[names]


def answer_lines(run, rule):
    """A line of output for each line of standard input, at once: its answer, or what it lacks."""
    names = run.finished.config["text_columns"]
    what = ", a tab, ".join(names)
    print(f"A line is {what}; Ctrl-C ends.", file=sys.stderr)
    for line in typed_lines():
        texts = line.removesuffix("\n").removesuffix("\r").split("\t")
        if len(texts) == len(names) and all(texts):
            [[label, confidence, layer]] = predict(run, [texts], rule)
            print(f"{label}   confidence {confidence:.2f}   layer {layer}", flush=True)
        else:
            print(f"a line must hold {what}", flush=True)


def typed_lines():
    """The lines of standard input, which is UTF-8; a lone carriage return ends none."""
    if sys.stdin is None:
        raise InputError("standard input is closed; type or pipe lines, or name a file")
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
    add("--output", metavar="FILE", help="a .csv, or else tab-separated (FILE_predictions.tsv)")
    args = p.parse_args(argv)
    if args.file == "-" and args.output:
        p.error("--output is for the answers to a FILE; those to lines go to the screen, or > FILE")
    return args


def main(argv=None):
    args = parse_args(argv)
    with one_line_errors("tools.predict"):
        answer(args)


if __name__ == "__main__":
    main()
