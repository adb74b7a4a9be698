"""The report of finished runs: scores, speed-ups by early exit, angles between both gradients.

    python -m tools.report runs/rte_acl-cl_1               one run at a glance
    python -m tools.report runs/rte_*                      methods side by side, mean±sd over seeds
    python -m tools.report runs/rte_acl-cl_1 --all         every rule, and each rule's best settings
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
from tools.run import read_run, whole
from tools.tradeoff import EXIT_RULES, SPEEDS, at_speedup, make_rule

# The papers' order; a method of your own comes after them.
METHODS = ("ce", "scl", "acl-embed", "acl-grad", "acl-cl", "kd")

# What two seeds of one setting need not share: the seed, the machine, the files, and what
# config.json says twice (exits is again in exit_layers, precision in bf16).
NOT_THE_SETTING = {
    "seed", "seeds", "device", "device_name", "versions", "data", "output", "resume",
    "save_steps", "predict", "exits", "precision", "num_labels", "labels", "metrics",
    "text_columns", "data_fingerprint",
}

# What methods beside each other should share.  A rate, a weight each may have of its own.
TRAINED_ALIKE = ("model", "pooling", "epochs", "max_steps", "limit_train", "batch_size")


def report(args):
    """Print the tables of all runs, then write the files that were asked for."""
    runs, left_out = [], []
    for folder in args.runs:
        try:
            runs.append(read_run(folder))
        except InputError as error:
            left_out.append(str(error))
    if not runs:
        raise InputError("; ".join(left_out))
    jobs = jobs_of(args, runs)
    device = machine.pick_device(args.device)

    # Scores can be compared where they are of the same dev samples.
    comparable = {}
    for run in runs:
        samples = run.labels.numpy().tobytes()
        comparable.setdefault((run.config["task"], samples), []).append(run)
    for some in comparable.values():
        frame = runs_frame(some)
        is_again = frame.duplicated(["setting", "seed"])
        for run in frame.run[is_again]:
            left_out.append(f"{run.folder} has the options and the seed of another run")
        frame = frame[~is_again]
        rules = rules_of(args, frame.num_labels.iloc[0])
        if len(frame) > 1:
            print_several(frame, rules)
        for run in frame.run:
            if len(frame) == 1 or args.all:
                print_one(run, rules, args.all)
    if left_out:
        print("\nLeft out:", "\n          ".join(left_out))

    for run, setting in jobs:
        print(f"\n{run.folder}: rule {setting['rule']}, {tradeoff.setting_text(setting)}")
        if args.examples:
            write_examples(run, setting)
        if args.clock:
            write_clock(run, setting, device)


def rules_of(args, num_labels):
    """The rules to show.  Of two classes confidence and entropy say the same."""
    if not args.all:
        return [args.rule or "entropy"]
    return [rule for rule in EXIT_RULES if rule != "confidence" or num_labels > 2]


# ------------------------------------------------------------------------------ the frame of runs


def runs_frame(runs):
    """FinishedRuns of one task -> a DataFrame, a row a run, in the papers' order of methods.

    Columns: every key of config.json and of result.json; `run`, the FinishedRun; `setting`, the
    same for runs that differ in their seed alone.
    """
    rows = [{**run.config, **run.result, "run": run} for run in runs]
    frame = pandas.DataFrame(rows, dtype=object)
    frame["setting"] = settings(pandas.DataFrame([run.config for run in runs], dtype=object))
    place = {method: number for number, method in enumerate(METHODS)}
    return frame.sort_values("method", key=lambda names: names.map(place), kind="stable")


def settings(configs):
    """What runs that differ in their seed alone share: 'acl-cl', or 'acl-cl, weight 0.5'.

    configs: a DataFrame, a row a run of one task, with the columns of config.json or some of
    them; `method` is one.  All but NOT_THE_SETTING make the setting.  Returns a Series of names:
    the method and, where it has several settings, the options in which they differ.
    """
    options = configs[[name for name in configs if name not in NOT_THE_SETTING]]
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


# ------------------------------------------------------------------------------------- the tables


def print_several(frame, rules):
    """Methods as columns, mean±sd over their seeds."""
    print(f"\n{title(frame.run.iloc[0])}; mean±sd over seeds (x3: of three)")
    frame = frame.assign(setting=short_names(frame))
    print()
    counts = frame.groupby("setting").setting.transform("size")
    frame["setting"] += counts.map(" x{}".format)
    scores = []
    for run in frame.run:
        lines = at_a_glance(run, tradeoff.trade_off_of(run), rules)
        scores.append({name: row.get("score") for name, row in lines.items()})
    print_blocks(frame, {"score": pandas.DataFrame(scores, frame.index), **blocks_of(frame)})
    print("\nAt 2x samples leave so early that half the layers are run.  A dash: never that fast, "
          "no such\nexit, or nobody looked at the gradients (--conflict observe does).")


def short_names(frame):
    """'acl-cl (2)' in place of 'acl-cl, weight 0.5', and a line that says so.

    Also prints in which other options methods differ that should be trained alike.
    """
    kinds = frame.drop_duplicates("setting")
    numbers = kinds.groupby("method").cumcount() + 1
    short = {}
    for setting, method, number in zip(kinds.setting, kinds.method, numbers):
        short[setting] = method
        if setting != method:
            short[setting] = f"{method} ({number})"
            print(f"{short[setting]} is {setting}")
    names = frame.setting.map(short)

    for option in TRAINED_ALIKE:
        values = names.groupby(frame[option].map(str).replace("None", "not set")).unique()
        if len(values) > 1:
            words = [f"{value} ({', '.join(some)})" for value, some in values.items()]
            print(f"Not trained alike, {option}: {'; '.join(words)}")
    return names


def title(run):
    """'rte, accuracy on 277 dev samples, majority class 52.7'"""
    task, metric = run.config["task"], run.result["metric"]
    majority = run.result["majority_score"]
    return f"{task}, {metric} on {len(run.labels)} dev samples, majority class {majority:.1f}"


def at_a_glance(run, rows, rules):
    """{"full model": {"score": 71.3, ..}, "entropy at 2x": a row of the trade-off, or {}, ..}"""
    deepest = run.config["exit_layers"][-1]
    full = {"score": run.result["score"], "mean_exit_layer": deepest, "speedup": 1}
    lines = {"full model": full}
    for rule in rules:
        for speed in SPEEDS:
            row = at_speedup(rows, rule, speed)
            lines[f"{rule} at {speed:g}x"] = {} if row is None else row.to_dict()
    return lines


def blocks_of(frame):
    """{title: DataFrame with a row a run}: scores by exit, and how often the gradients conflict."""
    by_exit = [dict(zip(run.config["exit_layers"], run.result["exit_scores"])) for run in frame.run]
    scores = pandas.DataFrame(by_exit, frame.index).sort_index(axis=1).add_prefix("layer ")
    scores["mean"] = scores.mean(axis=1, skipna=False)  # of all exits, or none

    gradients = []
    for run in frame.run:
        row = {}
        if run.result["conflict_share"] is not None:  # the gate looked
            shares = 100 * is_conflict(run.steps)
            row = {"mean angle": run.steps.angle.mean(), "% conflicts": shares.mean()}
            for epoch, share in shares.groupby(run.steps.epoch).mean().items():
                row[f"in epoch {epoch}"] = share
        gradients.append(row)
    return {"exit at": scores, "gradients": pandas.DataFrame(gradients, frame.index)}


def is_conflict(steps):
    """Over 90 degrees.  A gradient that is not finite has no angle, and counts as a conflict."""
    return ~(steps.angle <= 90)


def print_blocks(frame, blocks):
    """blocks: {title: DataFrame with a row a run}; printed with a column a setting."""
    table = pandas.concat(blocks, axis=1).groupby(frame.setting, sort=False).agg(mean_sd)
    print(table.rename_axis(None).T.to_string(line_width=100))


# ---------------------------------------------------------------------------------------- one run


def print_one(run, rules, has_front):
    """A run at a glance, by exit, and what its gate saw."""
    rows = tradeoff.trade_off_of(run)
    lines = pandas.DataFrame(at_a_glance(run, rows, rules)).T.dropna(how="all")
    print(f"\n{run.folder}: {run.config['method']} on {title(run)}\n")
    print_settings(lines)

    # How to read it, by its own numbers.
    name = f"{rules[0]} at 2x"
    if name in lines.index:
        twice, full = lines.loc[name], lines.loc["full model"]
        print("\nTwice as fast, counted in layers (by the clock: --clock): samples leave after "
              f"layer\n{twice.mean_exit_layer:.1f} of {full.mean_exit_layer:.0f} on average, and "
              f"the score is {twice.score:.1f} instead of the full model's {full.score:.1f}.")
    if len(run.logits) == 1:
        print("\nWith one exit no sample leaves early; --exits all trains more of them.")
    if has_front:
        front = rows[(rows.pareto == 1) & rows.rule.isin(rules)]
        print("\nPareto front: what no other setting of the rule beats in score and speed (picked "
              "on dev)\n")
        print_settings(front.drop_duplicates(["rule", "speedup"]).set_index("rule"))

    print()
    frame = runs_frame([run])
    print_blocks(frame, blocks_of(frame))
    if run.result["conflict_share"] is not None:
        print_histogram(run)


def print_settings(rows):
    """Rows of the trade-off, without the columns that are empty."""
    formats = {
        "score": "{:.1f}".format,
        "mean_exit_layer": "{:.2f}".format,
        "speedup": "{:.2f}x".format,
        "threshold": "{:.4g}".format,
        "patience": "{:.0f}".format,
    }
    table = rows.reindex(columns=list(formats)).astype(float).dropna(axis=1, how="all")
    print(table.rename_axis(index=None).to_string(formatters=formats, na_rep=""))


def print_histogram(run):
    """The angles between both gradients: a summary, a bar for each 10 degrees, a sentence."""
    angles = run.steps.angle.dropna()
    summary = angles.describe(percentiles=[0.05, 0.5, 0.95]).drop("count").to_frame().T
    print(f"\nAngle between both gradients at {len(run.steps)} steps, in degrees\n")
    print(summary.to_string(index=False, float_format="{:.1f}".format))
    print()
    ends = range(10, 190, 10)
    bins = pandas.cut(angles, [0, *ends], labels=ends, include_lowest=True)
    counts = bins.value_counts(sort=False)
    for end, count in counts[counts > 0].items():
        print(f"{end - 10:4} to {end:3}  {count:6}  {'#' * math.ceil(50 * count / counts.max())}")
    print(f"\nIn {is_conflict(run.steps).sum()} steps the second gradient pointed against "
          "cross-entropy's (over 90 degrees,\nor not finite).  The gate was --conflict "
          f"{run.config['conflict']} --conflict-at {run.config['conflict_at']}.")


# -------------------------------------------------------------------------------------- the files


def jobs_of(args, runs):
    """[(run, the rule's setting) ..] for --examples and --clock.  Raises InputError."""
    if not (args.examples or args.clock):
        return []
    several = [run for run in runs if len(run.logits) > 1]
    if not several:
        raise InputError("no run here has several exits (--exits all), so no sample leaves early")
    given = args.rule or "entropy", args.threshold, args.patience
    return [(run, tradeoff.choose(run, *given)) for run in several]


def write_examples(run, setting):
    """examples.tsv: where each dev sample left, how sure the exit was, what it said, what is so."""
    texts = tradeoff.dev_split(run).remove_columns("label").to_pandas()
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
    write_table(with_texts(table, texts), run.folder / "examples.tsv")


def with_texts(table, texts):
    """Both tables side by side; a text column whose name is taken gets _text behind it."""
    taken = {name: f"{name}_text" for name in table}
    return pandas.concat([table, texts.rename(columns=taken)], axis=1)


def write_clock(run, setting, device):
    """clock.csv: the speed-up counted and by the clock, at batch size 1 and 32."""
    machine.pick_threads(run.config["task"])
    model, tokenizer = models.load_model(run.folder, run.config)
    split = glue.tokenize(tradeoff.dev_split(run), tokenizer, run.config["max_length"])
    rows = []
    for batch_size in (1, 32):
        full, early, counted = tradeoff.clock(
            model.to(device), split, tokenizer, make_rule(**setting), batch_size, device
        )
        rows.append({
            **setting,
            "device": machine.device_name(device),
            "batch_size": batch_size,
            "counted": round(counted, 4),
            "clocked": round(full / early, 4),
            "full_ms_per_sample": round(1000 * full / len(split), 4),
        })
    table = pandas.DataFrame(rows)
    print(table.iloc[:, 3:].to_string(index=False))
    write_table(table, run.folder / "clock.csv")


def write_table(table, path):
    """A .csv, or else a .tsv.  Texts are quoted, so that any tab, quote or line end survives."""
    separator = "," if path.suffix == ".csv" else "\t"
    with whole(path) as new:
        table.to_csv(new, sep=separator, index=False, quoting=csv.QUOTE_NONNUMERIC)
    print(f"wrote {path}")


def parse_args(argv):
    p = Parser("tools.report", description=__doc__)
    add = p.add_argument
    add("runs", nargs="+", metavar="RUN", help="folder of a finished run")
    add("--all", action="store_true", help="every rule (of two classes confidence leaves where "
        "entropy does), its best settings, every run's histogram")
    add("--rule", choices=EXIT_RULES, help="who leaves when (entropy)")
    add("--examples", action="store_true", help="write RUN/examples.tsv")
    add("--clock", action="store_true", help="measure the speed-up, write RUN/clock.csv")
    add("--threshold", type=float, help="of the rule, for both (the setting next above 2x)")
    add("--patience", type=int, help="of the rule, for both, 1 or more exits")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="cpu",
        help="of --clock (%(default)s)")
    args = p.parse_args(argv)
    has_setting = args.threshold is not None or args.patience is not None
    if has_setting and not (args.examples or args.clock):
        p.error("--threshold and --patience are for --examples and --clock; the tables try all "
                "settings, so leave them out")
    return args


def main(argv=None):
    args = parse_args(argv)
    with one_line_errors("tools.report"):
        machine.quiet_libraries()
        report(args)


if __name__ == "__main__":
    main()
