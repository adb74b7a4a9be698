"""The report of finished runs: scores, speed-ups by early exit, angles between both gradients.

    python -m tools.report runs/rte_acl-cl_1               one run at a glance
    python -m tools.report runs/rte_*                      methods side by side, mean±sd over seeds
    python -m tools.report runs/rte_acl-cl_1 --all         every rule, every run's histogram
    python -m tools.report runs/rte_acl-cl_1 --examples    which dev sample left at which layer
    python -m tools.report runs/rte_acl-cl_1 --clock       the speed-up by the clock

The runs of one task become one pandas frame with a row for each run; a table is a groupby of it.
"""

import csv
import math
import statistics

import pandas
import torch

import exits
import glue
from tools import machine, models, tradeoff
from tools.errors import InputError, Parser, one_line_errors
from tools.run import in_conflict, read_run, run_folders, whole
from tools.tradeoff import EXIT_RULES, SPEEDS, at_speedup, make_rule

# The papers' order; a method of your own comes after them.
METHODS = ("ce", "scl", "acl-embed", "acl-grad", "acl-cl", "kd")

# What two seeds of one setting need not share: the seed, the machine, the files, and what
# config.json says twice (exits is again in exit_layers, precision in bf16).
NOT_THE_SETTING = [
    "seed", "seeds", "device", "device_name", "versions", "data", "output", "resume",
    "save_steps", "predict", "exits", "precision", "num_labels", "labels", "metrics",
    "text_columns", "data_fingerprint",
]

# What methods beside each other should share.  A rate, a weight each may have of its own.
TRAINED_ALIKE = ["model", "pooling", "epochs", "max_steps", "limit_train", "batch_size"]

AT_2X = """
At 2x samples leave so early that half the layers are run; --clock measures the time."""


def report(args):
    """Print the tables of all runs, then write the files that were asked for."""
    runs = []
    for folder in run_folders(args.runs):
        try:
            runs.append(read_run(folder))
        except InputError as error:
            print(f"Left out: {error}")
    if not runs:
        raise InputError("there is no finished run to report")
    runs.sort(key=lambda run: (*METHODS, run.config["method"]).index(run.config["method"]))

    # Scores can be compared where they are of the same dev samples.
    comparable = {}
    for run in runs:
        samples = run.labels.numpy().tobytes()
        comparable.setdefault((run.config["task"], samples), []).append(run)
    for some in comparable.values():
        print_tables(some, args)

    device = machine.pick_device(args.device)
    for run in runs:
        # From a single exit no sample leaves early.
        if (args.examples or args.clock) and len(run.logits) > 1:
            setting = tradeoff.setting_at_2x(run, args.rule)
            print(f"\n{run.folder}: {tradeoff.setting_text(setting)}")
            if args.examples:
                write_examples(run, setting)
            if args.clock:
                write_clock(run, setting, device)


def print_tables(runs, args):
    """Runs that can be compared: side by side, a single one at a glance; with --all both."""
    configs = pandas.DataFrame([run.config for run in runs], dtype=object)
    frame = configs.assign(run=runs, setting=settings(configs))
    again = frame.duplicated(["setting", "seed"])
    for run in frame.run[again]:
        print(f"Left out: {run.folder} has the options and the seed of another run")
    frame = frame[~again]
    rules = EXIT_RULES if args.all else [args.rule]
    if len(frame) > 1:
        print_several(frame, rules)
    for run in frame.run:
        if len(frame) == 1 or args.all:
            print_one(run, rules)


# -------------------------------------------------------------------------------- what is shown


def settings(configs):
    """What runs that differ in their seed alone share: 'acl-cl', or 'acl-cl, weight 0.5'.

    configs: a DataFrame, a row a run of one task, with the columns of config.json or some of
    them; `method` is one.  All but NOT_THE_SETTING make the setting.  Returns a Series of names:
    the method and, where it has several settings, the options in which they differ.
    """
    options = configs.drop(columns=NOT_THE_SETTING, errors="ignore")
    options = options.astype(object).where(options.notna(), "not set").astype(str)
    names = options.method.copy()
    for _, some in options.groupby("method"):
        for option in some.columns[some.nunique() > 1]:
            names[some.index] += f", {option} " + some[option]
    return names


def mean_sd(values):
    """'71.3±0.8'; one value has no ±, and where one is missing there is a dash."""
    values = list(values)
    if not values or any(pandas.isna(value) for value in values):
        return "-"
    mean = f"{statistics.mean(values):.1f}"
    if len(values) == 1:
        return mean
    return f"{mean}±{statistics.stdev(values):.1f}"


def title(run):
    """'rte, accuracy on 277 dev samples, majority class 52.7'"""
    task, metric = run.config["task"], run.result["metric"]
    majority = run.result["majority_score"]
    return f"{task}, {metric} on {len(run.labels)} dev samples, majority class {majority:.1f}"


def at_speeds(run, rules):
    """A DataFrame with a row of the trade-off for the full model, entropy at 2x, and so on; a row
    of NaN where the rule is never that fast."""
    deepest = run.config["exit_layers"][-1]
    full = {"score": run.result["score"], "mean_exit_layer": deepest, "speedup": 1}
    lines = {"full model": pandas.Series(full)}
    rows = tradeoff.trade_off_of(run)
    for rule in rules:
        for speed in SPEEDS:
            lines[f"{rule} at {speed:g}x"] = at_speedup(rows, rule, speed)
    return pandas.DataFrame(lines).T


def print_measures(runs, names, blocks):
    """A column for each name of a setting: scores by exit, how often the gradients conflict.

    blocks: what stands above them, {title: a row for each run}.
    """
    by_exit = [dict(zip(run.config["exit_layers"], run.result["exit_scores"])) for run in runs]
    scores = pandas.DataFrame(by_exit).sort_index(axis=1).add_prefix("layer ")
    scores["mean"] = scores.mean(axis=1, skipna=False)  # of all exits, or none

    gradients = []
    for run in runs:
        row = {}
        if run.result["conflict_share"] is not None:  # the gate looked
            shares = 100 * in_conflict(run.steps)
            row = {"mean angle": run.steps.angle.mean(), "% conflicts": shares.mean()}
            row |= shares.groupby(run.steps.epoch).mean().add_prefix("in epoch ")
        gradients.append(row)
    blocks = {**blocks, "exit at": scores, "gradients": gradients}
    frames = {block: pandas.DataFrame(rows) for block, rows in blocks.items()}
    table = pandas.concat(frames, axis=1).groupby(list(names), sort=False).agg(mean_sd)
    print(table.T.to_string(line_width=100))


# ------------------------------------------------------------------------------------- the tables


def print_several(frame, rules):
    """Methods as columns, mean±sd over their seeds."""
    print(f"\n{title(frame.run.iloc[0])}; mean±sd over seeds (x3: of three)\n")
    counts = frame.setting.map(frame.setting.value_counts())
    frame = frame.assign(setting=frame.setting + counts.map(" x{}".format))

    kinds = frame.drop_duplicates("setting").set_index("setting")[TRAINED_ALIKE].astype(str)
    for option, values in kinds.items():
        if values.nunique() > 1:
            words = [f"{value} ({setting})" for setting, value in values.items()]
            print(f"Not trained alike, {option}: {'; '.join(words)}")

    scores = [dict(at_speeds(run, rules).score) for run in frame.run]
    print_measures(frame.run, frame.setting, {"score": scores})
    print(f"{AT_2X}  A dash:\nnever that fast, no such exit, or nobody looked at the gradients "
          "(--conflict observe does).")


def print_one(run, rules):
    """A run at a glance, by exit, and what its gate saw."""
    print(f"\n{run.folder}: {run.config['method']} on {title(run)}\n")
    formats = {
        "score": "{:.1f}".format,
        "mean_exit_layer": "{:.2f}".format,
        "speedup": "{:.2f}x".format,
        "threshold": "{:.4g}".format,
        "patience": "{:.0f}".format,
    }
    # Without the columns that are empty, and without speeds that the run never has.
    table = at_speeds(run, rules).reindex(columns=list(formats)).apply(pandas.to_numeric)
    table = table.dropna(how="all").dropna(how="all", axis=1)
    print(table.to_string(formatters=formats, na_rep=""))
    if len(run.logits) == 1:
        print("\nWith one exit no sample leaves early; --exits all trains more of them.\n")
    else:
        print(f"{AT_2X}\n")
    print_measures([run], [run.config["method"]], {})
    if run.result["conflict_share"] is not None:
        print_histogram(run)


def print_histogram(run):
    """The angles between both gradients: a bar for each 10 degrees."""
    print(f"\nAngle between both gradients at {len(run.steps)} steps, in degrees; over 90, or not "
          f"finite, is a conflict\n(--conflict {run.config['conflict']} --conflict-at "
          f"{run.config['conflict_at']})\n")
    bins = pandas.cut(run.steps.angle, range(0, 190, 10), include_lowest=True)
    counts = bins.value_counts(sort=False)
    for bin, count in counts[counts > 0].items():
        bar = "#" * math.ceil(50 * count / counts.max())
        print(f"{bin.right - 10:4.0f} to {bin.right:3.0f}  {count:6}  {bar}")


# -------------------------------------------------------------------------------------- the files


def write_examples(run, setting):
    """examples.tsv: where each dev sample left, how sure the exit was, what it said, what is so."""
    texts, _ = tradeoff.dev_split(run)
    index = exits.exit_indices(run.logits, make_rule(**setting))  # (R,)
    answers = run.logits[index, torch.arange(len(index))]  # (R, K)
    confidences, classes = answers.softmax(dim=-1).max(dim=-1)
    names = run.config["labels"]
    table = pandas.DataFrame({
        "exit_layer": torch.tensor(run.config["exit_layers"])[index],
        "confidence": confidences.double().numpy().round(4),
        "prediction": [names[k] for k in classes],
        "label": [names[k] for k in run.labels],
    })
    texts = texts.remove_columns("label").to_pandas()
    write_table(table, run.folder / "examples.tsv", texts)


def write_clock(run, setting, device):
    """clock.csv: the speed-up counted and by the clock, at batch size 1 and 32."""
    machine.pick_threads(run.config["task"])
    model, tokenizer = models.load_model(run.folder, run.config)
    _, split = tradeoff.dev_split(run)
    by_length = glue.row_lengths(split).argsort(stable=True)
    rows = []
    for batch_size in (1, 32):
        loader = glue.loader(split, by_length.split(batch_size), tokenizer)
        batches = [batch.to(device) for batch in loader]
        full, early, counted = tradeoff.clock(model.to(device), batches, make_rule(**setting))
        rows.append({
            "rule": setting["rule"],
            "threshold": setting.get("threshold"),
            "patience": setting.get("patience"),
            "device": machine.device_name(device),
            "batch_size": batch_size,
            "counted": counted,
            "clocked": full / early,
            "full_ms_per_sample": 1000 * full / len(split),
        })
    table = pandas.DataFrame(rows)
    print(table.iloc[:, 3:].round(4).to_string(index=False))
    write_table(table, run.folder / "clock.csv")


def write_table(table, path, texts=None):
    """A .csv, or else a .tsv, with the columns of `texts` behind those of `table`.

    A text column whose name is taken gets _text behind it.  Texts are quoted, so that any tab,
    quote or line end survives.
    """
    if texts is not None:
        table = table.merge(texts, left_index=True, right_index=True, suffixes=("", "_text"))
    separator = "," if path.suffix == ".csv" else "\t"
    with whole(path) as new:
        table.to_csv(new, sep=separator, index=False, quoting=csv.QUOTE_NONNUMERIC)
    print(f"wrote {path}")


def parse_args(argv):
    p = Parser("tools.report", description=__doc__)
    add = p.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of a run, or one that holds several")
    add("--all", action="store_true", help="every rule (of two classes confidence leaves where "
        "entropy does), every run's histogram")
    add("--rule", choices=EXIT_RULES, default="entropy", help="who leaves when (%(default)s)")
    add("--examples", action="store_true", help="write RUN/examples.tsv, of the rule at 2x")
    add("--clock", action="store_true", help="measure the speed-up at 2x, write RUN/clock.csv")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="cpu",
        help="of --clock (%(default)s)")
    return p.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with one_line_errors("tools.report"):
        machine.quiet_libraries()
        report(args)


if __name__ == "__main__":
    main()
