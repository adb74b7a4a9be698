"""Classify one's own texts with a finished run: `python exits.py RUN --predict FILE` or `-`.

    python exits.py runs/rte_acl-cl_1 --predict new.tsv --rule entropy --threshold 0.3
    python exits.py runs/rte_acl-cl_1 --predict - --rule patience --patience 2

FILE has the text columns that the run was trained on; a .txt has a sample a line, two texts
separated by a tab.  Without a rule the full model answers.  From Python: tools.models.predict.
"""

import os
import sys
import time
from collections import Counter
from pathlib import Path

import glue
from tools import data_files, encoders, machine
from tools.command_line import InputError
from tools.exits_report import Shown, choose, setting_text, with_texts
from tools.files import write_table
from tools.models import load_run, predict
from tools.progress import Progress, waiting
from tools.tradeoff import check_early, make_rule


def run(args):
    """args: from exits_command.parse_args.  Raises InputError before anything is written."""
    folder = args.runs[0]
    from_terminal = args.predict == "-"
    if not from_terminal:
        path = Path(args.predict)
        output = output_path(path, args.output)  # before the long waits

    # The model, on its device, and whether it can do what the rule asks.
    rule, text = rule_of(args)
    device = machine.pick_device(args.device)
    with waiting(f"loading the model of {folder}"):
        loaded = load_run(folder)
    machine.pick_threads(loaded.config["task"])
    loaded.model.to(device)
    if rule is not None:
        check_early(rule, len(loaded.model.exit_layers))
    check_walk(loaded.model, rule)
    print(f"{folder}: {text}", file=sys.stderr)

    if from_terminal:
        answer_lines(loaded, rule, sys.stdin)
    else:
        samples = read_samples(path, loaded.config)
        classify_file(loaded, rule, samples, args.batch_size or 1, output)


def output_path(path, wanted):
    """Where the answers go; InputError where something is there already, or FILE is not."""
    if not path.is_file():
        raise InputError(f"--predict {path} is no file")
    if path.suffix.lower() not in (".txt", *data_files.READERS):
        kinds = ", ".join((".txt", *data_files.READERS))
        raise InputError(f"--predict {path} is none of {kinds}")
    output = Path(wanted) if wanted else path.with_name(f"{path.stem}_predictions.tsv")
    if output.exists():
        raise InputError(f"{output} exists; remove it or choose another --output")
    if not output.parent.is_dir():
        raise InputError(f"--output: there is no folder {output.parent}")
    if not os.access(output.parent, os.W_OK):
        raise InputError(f"--output: the folder {output.parent} may not be written")
    if output.suffix.lower() not in (".tsv", ".csv"):
        raise InputError(f"--output {output} must end with .tsv or .csv")
    return output


def rule_of(args):
    """(the rule or None, what to say of it).  A rule without settings takes the one that is
    twice as fast on dev, for which the run's dev logits are needed."""
    if args.rule is None and args.threshold is None and args.patience is None:
        return None, "the full model answers; with --rule entropy samples leave early"
    if args.threshold is None and args.patience is None:
        shown = Shown(args.runs[0])
        setting = choose(args, shown)
    else:
        setting = {
            "rule": args.rule or "entropy",
            "threshold": args.threshold,
            "patience": args.patience,
        }
    return make_rule(**setting), setting_text(setting)


def check_walk(model, rule):
    """InputError where the rule wants what this encoder cannot do."""
    if rule is None:
        return
    try:
        encoders.check_layers(model)
    except InputError as error:
        raise InputError(f"{error}; without --rule the full model answers") from None


# ------------------------------------------------------------------------- a file


def read_samples(path, config):
    """FILE -> R tuples of strings, one for each text column of the run.  Raises InputError."""
    names = config["text_columns"]
    if path.suffix.lower() == ".txt":
        return read_lines(path, names)

    # GLUE's own files call their columns otherwise than the hub, which named the run's.
    table = data_files.read_table(path)
    candidates = [names]
    if config["task"] in glue.TASKS:
        candidates.append(glue.TASKS[config["task"]].tsv_columns)
    for wanted in candidates:
        if all(name in table.columns for name in wanted):
            samples = list(zip(*(table.columns[name] for name in wanted)))
            check_texts(path, samples, table.places)
            return samples
    raise InputError(f"{path} must have the text columns of the run, {' and '.join(names)}; its "
                     f"columns are {', '.join(table.columns)} (a .txt needs no header)")


def read_lines(path, names):
    """A .txt: a sample a line, two texts separated by a tab; empty lines are passed over."""
    samples = []
    with data_files.one_line_errors(path):
        text = path.read_text(encoding="utf-8-sig")
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        sample = split_line(line, names)
        if sample is None:
            raise InputError(f"{path}, line {number}: {wanted_line(names)}")
        samples.append(sample)
    if not samples:
        raise InputError(f"{path} has no lines")
    return samples


def split_line(line, names):
    """A line -> its texts, or None where their number is not the run's."""
    texts = (line,) if len(names) == 1 else tuple(line.split("\t"))
    return texts if len(texts) == len(names) else None


def wanted_line(names):
    return f"a line must have {len(names)} texts with a tab between: {', a tab, '.join(names)}"


def check_texts(path, samples, places):
    """InputError for a text that is missing or no string."""
    for sample, place in zip(samples, places):
        for text in sample:
            if not isinstance(text, str):
                raise InputError(f"{path}, {place}: {text!r} is no text")
            data_files.check_characters(path, place, text)


def classify_file(loaded, rule, samples, batch_size, output):
    """Write prediction, confidence, exit layer, milliseconds and the texts of each sample."""
    names = loaded.config["text_columns"]
    answer(loaded, rule, samples[:batch_size])  # warm-up, or the first would look slow
    rows = []
    starts = range(0, len(samples), batch_size)
    for start in (bar := Progress(starts, "predicting")):
        some = samples[start:start + batch_size]
        predictions, milliseconds = answer(loaded, rule, some)
        for sample, prediction in zip(some, predictions):
            row = row_of(prediction, milliseconds / len(some))
            rows.append(with_texts(row, dict(zip(names, sample))))
        bar.note(f"{milliseconds / len(some):.1f} ms a sample")

    separator = "\t" if output.suffix.lower() == ".tsv" else ","
    write_table(rows, output, sep=separator, float_format="%.4f")
    print_summary(loaded, rows, has_rule=rule is not None)
    print(f"wrote {output}")


def answer(loaded, rule, samples):
    """Predictions of some samples, at once, and the milliseconds it took, tokens and all."""
    start = time.perf_counter()
    predictions = predict(loaded, samples, rule, batch_size=len(samples))
    return predictions, 1000 * (time.perf_counter() - start)


def row_of(prediction, milliseconds):
    return {
        "prediction": prediction.label,
        "confidence": prediction.confidence,
        "exit_layer": prediction.exit_layer,
        "milliseconds": milliseconds,
    }


def print_summary(loaded, rows, has_rule):
    """What came out, in two lines, and a third where a rule let nobody leave."""
    layers = [row["exit_layer"] for row in rows]
    mean = sum(layers) / len(layers)
    deepest = loaded.model.exit_layers[-1]
    milliseconds = sum(row["milliseconds"] for row in rows) / len(rows)
    print(f"{len(rows)} samples, mean exit layer {mean:.2f} of {deepest} ({deepest / mean:.2f}x "
          f"counted), {milliseconds:.2f} ms each")
    counts = Counter(row["prediction"] for row in rows).most_common()
    shown = ", ".join(f"{label} {count}" for label, count in counts[:8])
    print(shown + (", .." if len(counts) > 8 else ""))
    if has_rule and mean == deepest:
        print("no sample left early; without --threshold and --patience the rule takes the setting "
              "next above 2x on dev")


# ------------------------------------------------------------------------- the terminal


def answer_lines(loaded, rule, lines):
    """Answer each line at once; an empty line or the end of the input ends it."""
    names = loaded.config["text_columns"]
    deepest = loaded.model.exit_layers[-1]
    if hasattr(lines, "reconfigure"):
        lines.reconfigure(errors="replace")
    say(f"type {', a tab, '.join(names)} and Enter; an empty line ends")
    warm_up = tuple("a" for _ in names)
    answer(loaded, rule, [warm_up])

    while line := lines.readline():
        line = line.rstrip("\r\n")
        if not line.strip():
            return
        sample = split_line(line, names)
        if sample is None:
            say(wanted_line(names))
            continue
        (prediction,), milliseconds = answer(loaded, rule, [sample])
        print(f"{prediction.label}   confidence {prediction.confidence:.2f}   layer "
              f"{prediction.exit_layer} of {deepest}   {milliseconds:.1f} ms", flush=True)


def say(text):
    """For the person who types; standard output holds answers alone."""
    print(text, file=sys.stderr, flush=True)
