"""The tables behind `python exits.py RUN ..`: one run at a glance, several methods side by side.

A report takes the runs it is given, shows what each of them has, and says in a line what it
leaves out and why.
"""

import shlex
from pathlib import Path

import torch

import glue
from exits import exit_indices
from tools import comparison, encoders, machine, tradeoff
from tools.command_line import InputError
from tools.files import mean_sd, write_table
from tools.models import load_run as load_model
from tools.progress import waiting
from tools.tradeoff import NO_LOGITS, SPEEDS, at_speedup, make_rule

ONE_EXIT = "of the speed-ups alone: one exit (train it with --exits all)"

# Methods beside each other in the table of exits; more of them start another table.
COLUMNS = 6


class Shown:
    """A finished run, and its trade-off as far as its files give one."""

    def __init__(self, folder):
        """Raises InputError."""
        self.folder = Path(folder)
        run = tradeoff.load_run(folder)
        self.config, self.result, self.logits, self.labels = run
        self.layers = self.config["exit_layers"]
        self.metric = self.result["metric"]
        self.rows = []  # of trade_off; empty where nothing can leave early
        self.is_computed = False
        if len(self.layers) == 1:
            return

        path = self.folder / "tradeoff.csv"
        if self.logits is not None:
            self.rows = tradeoff.trade_off(self.logits, self.labels, self.layers, self.metric)
            self.is_computed = True
        elif path.exists():
            self.rows = tradeoff.read_tradeoff(path)

    def majority(self):
        """The majority class's score, None where the labels are not there."""
        if self.labels is None:
            return self.result.get("majority_score")
        return tradeoff.majority_score(self.labels, self.metric)

    def dev_data(self):
        """What only runs of one table share: the task and its dev labels; without labels what
        decides which samples they are."""
        task = self.config["task"]
        if self.labels is not None:
            return task, self.metric, tuple(self.labels.tolist())
        held_out = self.config.get("holdout")
        limit = self.config.get("limit_train") if held_out else None
        return task, self.metric, (held_out, limit)


def report(args):
    """Everything but --predict.  Raises InputError before anything is printed or written."""
    has_setting = args.threshold is not None or args.patience is not None
    if has_setting:
        make_rule(args.rule or "entropy", args.threshold, args.patience)
    runs, left_out = load_all(args.runs)
    device = machine.pick_device(args.device)
    jobs = []
    if args.examples or args.clock:
        jobs = all_jobs(args, runs, left_out)

    # Tables.
    tables = {}
    for run in runs:
        tables.setdefault(run.dev_data(), []).append(run)
    for number, some in enumerate(tables.values()):
        if number:
            print()
        print_runs(args, some, left_out)
    comparison.print_left_out(left_out)
    if not jobs:
        print_next(args, runs)

    # Files.
    for run in runs:
        if run.is_computed:
            write_tradeoff(run)
    for job in jobs:
        print(f"\n{job.run.folder}: {job.text}")
        if args.examples:
            write_examples(job)
        if args.clock:
            print_clock(job, device)


def load_all(folders):
    """([Shown ..], [(folder, why it is left out) ..]); InputError where none can be shown."""
    runs, left_out = [], []
    for folder in map(Path, folders):
        try:
            with waiting(f"reading {folder}"):
                runs.append(Shown(folder))
        except InputError as error:
            left_out.append((folder, str(error).removeprefix(f"{folder} ")))
            problem = error
    if not runs:
        message = str(problem)
        if len(folders) > 1:
            message += f" (and there is nothing to show of the other {len(folders) - 1})"
        raise InputError(message)
    return runs, left_out


def all_jobs(args, runs, left_out):
    """A Job for each run that can have one; InputError where none can."""
    jobs = []
    for run in runs:
        try:
            jobs.append(Job(args, run))
        except InputError as error:
            problem = error
            left_out.append((run.folder, str(error).removeprefix(f"{run.folder}: ")))
    if not jobs:
        raise problem
    return jobs


# ------------------------------------------------------------------------- tables


def print_runs(args, runs, left_out):
    """Runs of one task and the same dev samples."""
    # What is left out, and why.
    settings, repeated = comparison.settings_of(runs)
    for run, earlier in repeated:
        left_out.append((run.folder, f"the same options and seed as {earlier.folder}"))
    for run in runs:
        if run.labels is None:
            left_out.append((run.folder, NO_LOGITS))
        elif len(run.layers) == 1:
            left_out.append((run.folder, ONE_EXIT))

    # At a glance, then exit by exit, then what only --all shows.
    rules = rules_to_show(args, runs[0])
    if len(runs) == 1:
        print_one(runs[0], rules)
    else:
        print_several(runs, settings, rules)
    for start in range(0, len(settings), COLUMNS):
        print_by_exit(settings[start:start + COLUMNS])
    comparison.print_differences(settings)
    if args.all and len(runs) == 1 and runs[0].rows:
        print_front(runs[0].rows, rules)
    if args.all and "confidence" not in rules:
        print("\nWith two classes confidence leaves where entropy does, so it is not repeated.")


def rules_to_show(args, run):
    """The one asked for; with --all every one that says something of its own."""
    if not args.all:
        return [args.rule or "entropy"]
    rules = list(tradeoff.EXIT_RULES)
    if run.config["num_labels"] == 2:
        rules.remove("confidence")
    return rules


def print_one(run, rules):
    """A run at a glance: the full model, a rule at each speed, the majority class."""
    print(f"{run.folder}: {run.config['method']} on {dev_text(run)}\n")
    print(f"{'':18}{'score':>8}{'mean exit layer':>18}{'speed-up':>11}")
    print_row("full model", run.result["score"], run.layers[-1], 1)
    for rule in rules:
        for speed in SPEEDS:
            row = at_speedup(run.rows, rule, speed)
            if row:
                name = f"{rule} at {speed:g}x"
                print_row(name, row["score"], row["mean_exit_layer"], row["speedup"])
    print_row("majority class", run.majority())

    # How to read it, by its own numbers.
    twice = at_speedup(run.rows, rules[0], 2)
    if twice:
        layer = f"{twice['mean_exit_layer']:.1f} of {run.layers[-1]}"
        full = f"{run.result['score']:.1f}"
        print("\nTwice as fast, counted in layers (by the clock: --clock): samples leave after "
              f"layer\n{layer} on average, and the score is {twice['score']:.1f} instead of the "
              f"full model's {full}.")


def print_row(name, score, layer=None, speedup=None):
    layer = "" if layer is None else f"{layer:.2f}"
    speedup = "" if speedup is None else f"{speedup:.2f}x"
    print(f"{name:18}{points(score):>8}{layer:>18}{speedup:>11}".rstrip())


def points(score):
    return "-" if score is None else f"{score:.1f}"


def dev_text(run):
    """'rte, accuracy on 277 dev samples'"""
    count = "" if run.labels is None else f"{len(run.labels)} "
    return f"{run.config['task']}, {run.metric} on {count}dev samples"


def print_several(runs, settings, rules):
    """Methods as rows, mean±sd over their seeds, at counted speed-ups."""
    print(f"{dev_text(runs[0])}; mean±sd over runs\n")
    names = [setting.label for setting in settings]
    width = 2 + max(map(len, [*names, "majority class"]))
    rule_width = max(len(rule) for rule in rules) + 2
    speeds = [f"at {speed:g}x" for speed in SPEEDS]
    heads = "".join(f"{text:>11}" for text in speeds)
    print(f"{'method':{width}}{'runs':>4}{'full model':>13}  {'rule':{rule_width}}{heads}")
    for setting in settings:
        for rule in shown_rules(setting, rules):
            cells = "".join(f"{at_speed(setting, rule, speed):>11}" for speed in SPEEDS)
            full = mean_sd(run.result["score"] for run in setting.runs)
            print(f"{setting.label:{width}}{len(setting.runs):>4}{full:>13}  "
                  f"{rule:{rule_width}}{cells}")
    print(f"{'majority class':{width}}{'':4}{points(runs[0].majority()):>13}")
    print("\nA rule at 2x: its score where samples leave so early that half the layers are run.  "
          "-: it is never\nthat fast, or the method has one exit.")


def shown_rules(setting, rules):
    """One line is enough for a method of one exit."""
    has_early_exit = any(run.rows for run in setting.runs)
    return rules if has_early_exit else rules[:1]


def at_speed(setting, rule, speed):
    """'84.0±1.2', a dash where one of the runs is never that fast."""
    scores = []
    for run in setting.runs:
        row = at_speedup(run.rows, rule, speed)
        scores.append(None if row is None else row["score"])
    return mean_sd(scores)


def print_by_exit(settings):
    """Exits as rows, methods as columns."""
    layers = set()
    for setting in settings:
        layers.update(setting.runs[0].layers)
    widths = [max(11, len(setting.label) + 2) for setting in settings]
    print(f"\n{'exit at layer':16}" + cells_of(widths, [setting.label for setting in settings]))
    for layer in sorted(layers):
        scores = [mean_sd(scores_at(setting, layer)) for setting in settings]
        print(f"{layer:<16}" + cells_of(widths, scores))
    # Not the mean of other exits: see mean_of_exits.
    means = [mean_of_exits(setting, layers) for setting in settings]
    print(f"{'mean':16}" + cells_of(widths, means))
    majority = points(settings[0].runs[0].majority())
    print(f"{'majority class':16}" + cells_of(widths, [majority] * len(settings)))


def mean_of_exits(setting, layers):
    """A dash where the method lacks some of the exits, whose mean would be of other exits."""
    if set(setting.runs[0].layers) != layers:
        return "-"
    return mean_sd(run.result["mean_exit_score"] for run in setting.runs)


def cells_of(widths, cells):
    return "".join(f"{cell:>{width}}" for width, cell in zip(widths, cells))


def scores_at(setting, layer):
    """The exit's score in each run, None where there is no such exit."""
    for run in setting.runs:
        if layer in run.layers:
            yield run.result["exit_scores"][run.layers.index(layer)]
        else:
            yield None


def print_front(rows, rules):
    """The settings that no other setting of the same rule beats in both score and speed."""
    print("\nPareto front: what no other setting of the rule beats in score and speed "
          "(picked on dev)\n")
    print(f"{'rule':12}{'threshold':>11}{'patience':>10}{'score':>8}{'mean exit layer':>18}"
          f"{'speed-up':>11}")
    for rule in rules:
        # Equal rows once.
        front = {row["speedup"]: row for row in rows if row["pareto"] and row["rule"] == rule}
        for speedup in sorted(front):
            row = front[speedup]
            threshold = "" if row["threshold"] is None else f"{row['threshold']:.6g}"
            print(f"{rule:12}{threshold:>11}{row['patience'] or '':>10}{row['score']:8.1f}"
                  f"{row['mean_exit_layer']:18.2f}{speedup:10.2f}x")


def print_next(args, runs):
    """What to type now."""
    # Of several runs one whose samples can leave early: a single exit has little more to show.
    shown = ([run for run in runs if run.rows] or runs)[-1]
    folder = shlex.quote(str(shown.folder))
    lines = [(f"python exits.py {folder} --predict -", "classify the sentences you type")]
    if len(runs) > 1:
        lines = [(f"python exits.py {folder}", "one run")]
    if not args.all and len(runs) == 1 and runs[0].rows:
        lines.insert(0, (f"python exits.py {folder} --all", "every rule, every setting"))
    if not (runs[-1].folder / "model").is_dir() and len(runs) == 1:
        lines.pop()
    width = max((len(command) for command, _ in lines), default=0)
    print()
    for number, (command, meaning) in enumerate(lines):
        print(f"{'Next: ' if number == 0 else '      '}{command:{width}}   {meaning}")


# ------------------------------------------------------------------------- files


def write_tradeoff(run):
    """tradeoff.csv, which figures and tables read; a run that is not one's own stays as it is."""
    rows = [without_none(row) for row in run.rows]
    try:
        write_table(rows, run.folder / "tradeoff.csv")
    except PermissionError as error:
        print(error)


def without_none(row):
    """Empty cells instead of None, else pandas would write patience as 2.0."""
    return {name: "" if value is None else value for name, value in row.items()}


class Job:
    """What --examples and --clock do with a run, all checked before anything is written."""

    def __init__(self, args, run):
        """Raises InputError."""
        self.run = run
        if run.logits is None:
            raise InputError(f"{run.folder}: {NO_LOGITS}, so --examples and --clock have nothing "
                             "to work on")
        setting = choose(args, run)
        self.setting = setting
        self.rule = make_rule(**setting)
        tradeoff.check_early(self.rule, len(run.layers))
        self.text = setting_text(setting)
        self.split = tradeoff.dev_split(run.folder, run.config, run.result, run.labels)
        self.loaded = None
        if args.clock:
            with waiting(f"loading the model of {run.folder}"):
                self.loaded = load_model(run.folder)
            encoders.check_layers(self.loaded.model)


def choose(args, run):
    """The rule's setting: the one given, else the slowest that is at least twice as fast."""
    rule = args.rule or "entropy"
    if args.threshold is not None or args.patience is not None:
        make_rule(rule, args.threshold, args.patience)
        return {"rule": rule, "threshold": args.threshold, "patience": args.patience}
    row = at_speedup(run.rows, rule, 2)
    if row is None:
        raise InputError(f"{run.folder}: {rule} never reaches 2x; give --threshold or --patience")
    return {name: row[name] for name in ("rule", "threshold", "patience")}


def setting_text(setting):
    """'rule entropy, threshold 0.3'"""
    given = [f"{name} {value}" for name, value in setting.items() if value is not None]
    return ", ".join(given)


def write_examples(job):
    """examples.tsv: where each dev sample left, how sure the exit was, what it said, what is
    right."""
    run = job.run
    names, _ = tradeoff.task_of(run.config)
    index = exit_indices(run.logits, job.rule)  # (R,)
    answers = run.logits[index, torch.arange(len(index))]  # (R, K)
    confidences, classes = answers.float().softmax(dim=-1).max(dim=-1)

    rows = []
    for i, sample in enumerate(job.split):
        label = sample.pop("label")
        row = {
            "exit_layer": run.layers[index[i]],
            "confidence": confidences[i].item(),
            "prediction": names[classes[i]],
            "label": names[label],
        }
        rows.append(with_texts(row, sample))
    write_anew(rows, run.folder / "examples.tsv", sep="\t", float_format="%.4f")


def with_texts(row, texts):
    """The row and its texts; a text column whose name is taken gets _text behind it."""
    row = dict(row)
    for name, text in texts.items():
        row[f"{name}_text" if name in row else name] = text
    return row


def write_anew(rows, path, **options):
    """Write a table, and say so."""
    was_there = ", in place of the earlier one" if path.exists() else ""
    write_table(rows, path, **options)
    print(f"wrote {path}{was_there}")


def print_clock(job, device):
    """Print the speed-up counted and by the clock, at batch 1 and 32; write clock.csv."""
    run, loaded = job.run, job.loaded
    machine.pick_threads(run.config["task"])
    model = loaded.model.to(device)
    split = glue.tokenize(job.split, loaded.tokenizer, run.config["max_length"])
    where = machine.device_name(device)
    print(f"{where}, fp32, length-sorted batches, median of 5 rounds")
    print(f"{'batch':>6}{'counted':>10}{'clocked':>10}{'full, ms/sample':>18}"
          f"{'exits, ms/sample':>18}")

    rows = []
    for batch_size in (1, 32):
        full, early, counted = tradeoff.clock(
            model, split, loaded.tokenizer, job.rule, batch_size, device
        )
        full_ms, early_ms = 1000 * full / len(split), 1000 * early / len(split)
        print(f"{batch_size:>6}{counted:9.2f}x{full / early:9.2f}x{full_ms:18.2f}{early_ms:18.2f}",
              flush=True)
        rows.append({
            **without_none(job.setting),
            "device": where,
            "batch_size": batch_size,
            "counted": f"{counted:.4f}",
            "clocked": f"{full / early:.4f}",
            "full_ms_per_sample": f"{full_ms:.4f}",
        })
    write_anew(rows, run.folder / "clock.csv")
