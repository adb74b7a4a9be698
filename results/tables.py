"""The result tables of README.md and results/README.md, from the small files of finished runs.

    python results/tables.py                            # all tables there are
    python results/tables.py --block multi              # some of them
    python results/tables.py --block summary --write README.md     # between its two markers
    python results/tables.py --runs runs                # of your own runs
    python results/tables.py --majority data            # write results/majority.csv

A run lies in results/runs/<block>/<task>_<method>_<seed>/, or in <block>/<setting>/..; a run of
your own in runs/.  What is not there is left out.  Scores are the last epoch's, in points.  No
table has more than eight columns.
"""

import math
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import safetensors.torch
import torch

import glue
from tools.command_line import InputError, Parser, run_command
from tools.files import mean_sd, read_csv, read_json, write_table
from tools.tradeoff import EXIT_RULES, SPEEDS, at_speedup, majority_score, read_tradeoff
from train import METHODS

MAJORITY = ROOT / "results" / "majority.csv"
BEGIN, END = "<!-- results -->\n", "<!-- /results -->\n"
GEOMETRY = ("label_cosine", "alignment", "uniformity")  # columns of exits.csv

# Columns of a table beside its first one.
WIDEST = 7

# 97.5 % quantiles of Student's t for 1, 2, .. 9 degrees of freedom: half a 95 % interval in
# standard errors.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


# ------------------------------------------------------------------------------- the runs


def read_runs(root):
    """{block: [run, ..]}, a run being its result.json and what `read_run` adds.  A run that lies
    in root itself is of the block "".  Raises InputError."""
    root = Path(root)
    majority = read_majority()
    blocks = {}
    for path in sorted(root.rglob("result.json")):
        places = path.parent.relative_to(root).parts[:-1]  # block, setting
        run = read_run(path.parent, majority)
        run["setting"] = "/".join(places[1:])
        blocks.setdefault("".join(places[:1]), []).append(run)
    return blocks


def read_run(folder, majority):
    """A finished run as a dict.  Raises InputError."""
    try:
        run = read_json(folder / "result.json")
        run["config"] = read_json(folder / "config.json")
        run["exits"] = read_csv(folder / "exits.csv")
        run["tradeoff"] = if_there(read_tradeoff, folder / "tradeoff.csv")
        run["clock"] = if_there(read_csv, folder / "clock.csv")
        scores = run["exit_scores"]
        run["shallow"] = statistics.mean(scores[:max(1, len(scores) // 2)])  # the lower half
        run["encoder"] = Path(run["config"]["model"]).name
        twice = at_speedup(run["tradeoff"], "entropy", 2)
        run["twice"] = twice["score"] if twice else None
        run["majority"] = majority_of(folder, run, majority)
    except (OSError, KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise InputError(f"{folder} is no whole run ({problem})") from None
    return run


def if_there(read, path):
    return read(path) if path.is_file() else []


def select(runs, **wanted):
    """The runs with these entries, by seed."""
    for name, value in wanted.items():
        runs = [run for run in runs if run[name] == value]
    return sorted(runs, key=lambda run: run["seed"])


def tasks_of(runs):
    """The tasks that occur: "all", GLUE's in the modules' order, then one's own."""
    there = {run["task"]: None for run in runs}
    order = ["all", *glue.TASKS, *there]
    return [task for task in dict.fromkeys(order) if task in there]


def methods_of(runs):
    """The methods that occur, in the modules' order."""
    return [method for method in METHODS if select(runs, method=method)]


def averaged(runs):
    """Stand-in runs of the task "all", one for a method and seed that has every task: its scores
    are means over the tasks, as GLUE averages."""
    tasks = tasks_of(runs)
    stand_ins = []
    for method, seed in dict.fromkeys((run["method"], run["seed"]) for run in runs):
        some = select(runs, method=method, seed=seed)
        if len(some) != len(tasks) or len(tasks) == 1:
            continue
        stand_in = {"task": "all", "method": method, "seed": seed}
        for name in ("mean_exit_score", "shallow", "twice", "majority"):
            stand_in[name] = mean_or_none([run[name] for run in some])
        by_exit = zip(*(run["exit_scores"] for run in some))
        stand_in["exit_scores"] = [statistics.mean(scores) for scores in by_exit]
        stand_in["exit_layers"] = some[0]["exit_layers"]
        stand_ins.append(stand_in)
    return stand_ins


def mean_or_none(values):
    return None if None in values else statistics.mean(values)


# --------------------------------------------------------------------- the majority class


def dev_of(config):
    """What a run's dev split depends on, as it stands in majority.csv."""
    return (config["task"], str(config["limit_train"] or ""), str(config["holdout"] or ""))


def read_majority():
    rows = if_there(read_csv, MAJORITY)
    return {(r["task"], r["limit_train"], r["holdout"]): float(r["score"]) for r in rows}


def majority_of(folder, run, majority):
    """From the run's own dev labels, else from majority.csv, else None."""
    stored = folder / "dev_logits.safetensors"
    if not stored.is_file():
        return majority.get(dev_of(run["config"]))
    split = next(iter(run["dev"]))
    try:
        labels = safetensors.torch.load_file(stored)[f"{split}.labels"]
    except safetensors.SafetensorError as error:
        raise ValueError(f"dev_logits.safetensors: {error}") from None
    return majority_score(labels, run["metric"])


def write_majority(blocks, data):
    """results/majority.csv for every dev split that the runs were scored on."""
    all_runs = [run for runs in blocks.values() for run in runs]
    configs = {dev_of(run["config"]): run["config"] for run in all_runs}
    rows = []
    for key in sorted(configs):
        config = configs[key]
        task, splits = glue.load_task(key[0], data, config["limit_train"], config["holdout"])
        dev = next(name for name in splits if name.startswith("dev"))
        labels = torch.tensor(splits[dev]["label"][:])
        metric = task.metrics[0]
        score = majority_score(labels, metric)
        row = dict(zip(("task", "limit_train", "holdout"), key))
        rows.append({**row, "samples": len(labels), "metric": metric, "score": f"{score:.4f}"})
    write_table(rows, MAJORITY)


# ------------------------------------------------------------------------------- the cells


def show(values):
    """'71.3±0.8'; empty without runs, a dash where one of them has no such value."""
    values = list(values)
    return mean_sd(values) if values else ""


def difference(runs, baseline, name):
    """'+0.42 [-0.10, 0.94]': mean paired difference over the common seeds, 95 % t-interval."""
    theirs = {run["seed"]: run[name] for run in baseline}
    pairs = [(run[name], theirs[run["seed"]]) for run in runs if run["seed"] in theirs]
    paired = [ours - other for ours, other in pairs if None not in (ours, other)]
    if not paired or runs == baseline:
        return ""
    n = len(paired)
    mean = statistics.mean(paired)
    cell = f"{mean:+.2f}"
    if n > 1:
        t = T[min(n - 2, len(T) - 1)]  # n > 10: a bit too wide
        half = t * statistics.stdev(paired) / math.sqrt(n)
        cell += f" [{mean - half:.2f}, {mean + half:.2f}]"
    if n < len(runs):
        cell += f" ({n} common)"
    return cell


def percent(runs, name):
    """'18 %': mean share over the runs that measured it."""
    shares = [run[name] for run in runs if run[name] is not None]
    return f"{100 * statistics.mean(shares):.0f} %" if shares else ""


def conflicts(runs):
    """'2 % (98 %)': steps in conflict, and what was kept of the second gradient."""
    share, kept = percent(runs, "conflict_share"), percent(runs, "kept")
    return f"{share} ({kept})" if share else ""


def at_speed(runs, rule, speed):
    """The score at a speed-up, and the setting's own speed-up where that is over 5 % more."""
    found = [at_speedup(run["tradeoff"], rule, speed) for run in runs]
    if None in found:
        return "-"
    actual = statistics.mean(row["speedup"] for row in found)
    more = f" ({actual:.2f}x)" if actual > 1.05 * speed else ""
    return show(row["score"] for row in found) + more


def kept_at(runs, rule, speed):
    """Percent of the full model's score.  A full model at 0 or below has no share to keep."""
    shares = []
    for run in runs:
        row = at_speedup(run["tradeoff"], rule, speed)
        has_share = row is not None and run["score"] > 0
        shares.append(100 * row["score"] / run["score"] if has_share else None)
    return show(shares)


def clocked(runs, rule):
    """'1.95x': the clock's speed-up over the full model at batch 32, from clock.csv."""
    rows = [row for run in runs for row in run["clock"]]
    rows = [row for row in rows if row["rule"] == rule]
    found = [float(row["clocked"]) for row in rows if row["batch_size"] == "32"]
    return f"{statistics.mean(found):.2f}x" if found else ""


# ---------------------------------------------------------------------------- table shapes


def table(caption, header, rows):
    """Caption and Markdown table; without rows whose cells are empty, and [] if none is left."""
    rows = [row for row in rows if any(row[1:])]
    if not rows:
        return []
    rule = ["---"] + ["---:"] * (len(header) - 1)
    lines = [f"| {' | '.join(map(str, row))} |" for row in (header, rule, *rows)]
    return [caption, "", *lines, ""]


def method_of(run):
    return run["method"]


def method_and_setting(run):
    """'acl-cl, depth, center': the name of a kind of run under <block>/<setting>/."""
    setting = run["setting"].split("_") if run["setting"] else []
    return ", ".join([run["method"], *setting])


def kinds_of(runs, name_of=method_of):
    """[(name, runs that differ in seed alone)], by task, the modules' order of methods, name."""
    kinds = {}
    for task in tasks_of(runs):
        for method in methods_of(runs):
            some = select(runs, task=task, method=method)
            for run in sorted(some, key=name_of):
                kinds.setdefault((task, name_of(run)), []).append(run)
    return [(name, some) for (_, name), some in kinds.items()]


def seeds_of(runs):
    """'5 seeds', or '2 to 5 seeds' where the kinds of run differ in it."""
    counts = [len(some) for _, some in kinds_of(runs)]
    low, high = min(counts), max(counts)
    if low < high:
        return f"{low} to {high} seeds"
    return "1 seed" if low == 1 else f"{low} seeds"


def exit_tables(runs, name_of=method_of):
    """For every task each exit's score and their mean, majority class first; 12 exits take two
    tables."""
    lines = []
    for task in tasks_of(runs):
        some = select(runs, task=task)
        kinds = kinds_of(some, name_of)
        layers = some[0]["exit_layers"]
        rows = []
        for name, kind in kinds:
            scores = [run["exit_scores"] + [run["mean_exit_score"]] for run in kind]
            cells = [show(column) for column in zip(*scores)]
            rows.append([f"{name} ({len(kind)})", *cells])
        if some[0]["majority"] is not None:
            constant = show([some[0]["majority"]])
            rows.insert(0, ["majority class"] + [constant] * (len(layers) + 1))
        header = ["", *(f"exit {layer}" for layer in layers), "mean"]

        first = f"**{task}** (seeds)"
        for start in range(1, len(header), WIDEST):
            columns = slice(start, start + WIDEST)
            part = [[row[0], *row[columns]] for row in rows]
            lines += table(first, [header[0], *header[columns]], part)
            first = f"**{task}**, its deeper exits"
    return lines


MEASURES = {
    "mean_exit_score": "Mean over exits",
    "shallow": "Mean over the lower half of the exits",
    "twice": "Score at twice the speed, counted, entropy",
}


def difference_tables(runs, baseline, to="ce", measures=MEASURES):
    """Tasks as columns: paired differences to the baseline's runs of one method (to="ce"), or to
    its runs of the same method (to="itself").  A single task takes one table for all measures."""
    tasks = tasks_of(runs)
    baseline_name = "`ce`" if to == "ce" else "the same method there"

    def cell(method, task, measure):
        ours = select(runs, task=task, method=method)
        theirs = select(baseline, task=task, method="ce" if to == "ce" else method)
        return difference(ours, theirs, measure)

    if len(tasks) == 1:
        rows = []
        for method in methods_of(runs):
            rows.append([method, *(cell(method, tasks[0], measure) for measure in measures)])
        titles = [title.lower() for title in measures.values()]
        return table(f"Difference to {baseline_name}:", ["", *titles], rows)
    lines = []
    for measure, title in measures.items():
        rows = []
        for method in methods_of(runs):
            rows.append([method, *(cell(method, task, measure) for task in tasks)])
        lines += table(f"{title}, difference to {baseline_name}:", ["", *tasks], rows)
    return lines


def task_table(caption, runs, cell):
    """Methods as rows, tasks as columns; cell: a method's runs on a task -> text."""
    tasks = tasks_of(runs)
    rows = []
    for method in methods_of(runs):
        cells = [cell(select(runs, task=task, method=method)) for task in tasks]
        rows.append([method, *cells])
    return table(caption, ["", *tasks], rows)


def conflict_table(runs):
    caption = ("Steps in conflict (over 90 degrees), in brackets the share kept of the second "
               "gradient, where it was measured:")
    return task_table(caption, runs, conflicts)


# ------------------------------------------------------------------------------ the blocks


def summary(blocks):
    """The one table of README.md: each encoder's mean over its tasks, a column each."""
    columns = {"vanilla": "one exit", "multi": "six exits", "mpnet": "MPNet, 12 exits"}
    means = {}
    for block in columns:
        whole = with_most_seeds(blocks.get(block, []))
        means[block] = averaged(whole) or whole  # of a single task there is no average

    # What a guess and cross-entropy score, and how far the others are from it.
    ce = {block: select(runs, method="ce") for block, runs in means.items()}
    rows = [
        ["majority class", *(show(run["majority"] for run in runs[:1]) for runs in ce.values())],
        ["ce", *(show(run["mean_exit_score"] for run in runs) for runs in ce.values())],
    ]
    for method in ("scl", "acl-embed", "acl-grad", "acl-cl", "kd"):
        cells = []
        for block, runs in means.items():
            cells.append(difference(select(runs, method=method), ce[block], "mean_exit_score"))
        rows.append([method, *cells])
    caption = ("Accuracy (cola: Matthews' correlation) on dev, mean over tasks and exits.  ce: "
               "mean±sd over seeds.  The others: paired difference to ce, 95 % t-interval.  "
               "Empty: not run, or it needs several exits.")
    return table(caption, ["", *columns.values()], rows)


def with_most_seeds(runs):
    """The runs of those tasks that have the most: a task of one seed would leave all others one."""
    seeds = {}
    for run in select(runs, method="ce"):
        seeds.setdefault(run["task"], set()).add(run["seed"])
    most = max(map(len, seeds.values()), default=0)
    return [run for run in runs if len(seeds.get(run["task"], ())) == most]


def majorities(runs, tasks):
    cells = []
    for task in tasks:
        found = [run["majority"] for run in select(runs, task=task)]
        cells.append("" if None in found else show(found[:1]))
    return cells


def vanilla(runs):
    means = averaged(runs)
    caption = f"Score, {seeds_of(runs)}:"
    scores = task_table(caption, runs, lambda some: show(run["score"] for run in some))
    if scores:
        row = ["majority class", *majorities(runs, tasks_of(runs))]
        scores.insert(4, f"| {' | '.join(row)} |")
    only_score = {"mean_exit_score": "Score"}
    return [*scores, *difference_tables(means + runs, means + runs, measures=only_score),
            *conflict_table(runs)]


def multi(runs):
    """Each exit, the differences to ce, and how often the gate closed."""
    runs_and_means = averaged(with_most_seeds(runs)) + runs
    return [*exit_tables(runs_and_means), *difference_tables(runs_and_means, runs_and_means),
            *task_table("Score at twice the speed, counted, entropy:", runs_and_means,
                        lambda some: show(run["twice"] for run in some)),
            *conflict_table(runs)]


def beside(runs, main_runs):
    """A block of one change beside the block it changes."""
    tasks = tasks_of(runs)
    others = [run for run in main_runs if run["task"] in tasks]
    runs = averaged(runs) + runs
    others = averaged(others) + others
    measures = MEASURES
    if len(runs[0]["exit_layers"]) == 1:
        measures = {"mean_exit_score": "Score"}
    return [*exit_tables(runs), *difference_tables(runs, others, measures=measures),
            *difference_tables(runs, others, to="itself", measures=measures)]


def speeds(runs):
    """Every rule: score at counted speed-ups, share kept at 2x, the clock's speed-up."""
    header = ["", *(f"{speed}x" for speed in SPEEDS), "% of full, 2x", "clocked"]
    lines = []
    for task in tasks_of(runs):
        of_task = select(runs, task=task)
        rules = list(EXIT_RULES)
        if of_task[0]["config"]["num_labels"] == 2:
            rules.remove("confidence")
        rows = []
        for rule in rules:
            for method, some in kinds_of(of_task):
                cells = [at_speed(some, rule, speed) for speed in SPEEDS]
                row = [f"{rule}, {method}", *cells, kept_at(some, rule, 2), clocked(some, rule)]
                rows.append(row)
        lines += table(f"**{task}**, {seeds_of(of_task)}", header, rows)
    return lines


def geometry(runs):
    """Label cosine, alignment, uniformity at the first and the deepest exit, last epoch."""
    rows = []
    for method, some in kinds_of(runs):
        last_epochs = [run["exits"][-len(run["exit_layers"]):] for run in some]
        cells = []
        for name in GEOMETRY:
            for m in (0, -1):
                values = [float(rows_by_exit[m][name]) for rows_by_exit in last_epochs]
                cells.append(f"{statistics.mean(values):.2f}")
        rows.append([f"{some[0]['task']}, {method}", *cells])
    columns = []
    for name in GEOMETRY:
        words = name.replace("_", " ")
        columns += [f"{words}, exit 1", f"{words}, deepest"]
    return table("Mean over seeds:", ["", *columns], rows)


def ablate(runs, main_runs):
    """One change at a time, beside the unchanged method."""
    header = ["", "seeds", "mean", "shallow", "deepest", "to itself", "to ce", "conflicts (kept)"]
    lines = []
    for task in tasks_of(runs):
        rows = []
        for name, some in kinds_of(select(runs, task=task), method_and_setting):
            method = some[0]["method"]
            row = [name, len(some)]
            for measure in ("mean_exit_score", "shallow", "score"):
                row.append(show(run[measure] for run in some))
            for other in (method, "ce"):
                theirs = select(main_runs, task=task, method=other)
                row.append(difference(some, theirs, "mean_exit_score"))
            rows.append([*row, conflicts(some)])
        lines += table(f"**{task}**", header, rows)
    return lines


def place_of(name):
    """Sorts names of `method_and_setting` by the modules' order of methods."""
    method = name.split(",")[0]
    return (list(METHODS).index(method), name)


def tries(runs):
    """Changes on slices of train, each exit, and the differences to ce with depth weights."""
    tasks = tasks_of(runs)
    cells = {}
    for name, some in kinds_of(runs, method_and_setting):
        task = some[0]["task"]
        ce = select(runs, task=task, method="ce", setting="depth")
        for measure in ("mean_exit_score", "shallow"):
            cells.setdefault(name, {})[task, measure] = difference(some, ce, measure)
    columns = [(task, measure) for measure in ("mean_exit_score", "shallow") for task in tasks]
    rows = []
    for name in sorted(cells, key=place_of):
        rows.append([name, *(cells[name].get(column, "") for column in columns)])
    words = {"mean_exit_score": "mean", "shallow": "shallow"}
    header = ["", *(f"{task}, {words[measure]}" for task, measure in columns)]
    caption = "Differences to `ce` with depth weights, mean over exits and over their lower half:"
    return [*table(caption, header, rows), *exit_tables(runs, method_and_setting)]


def gate(runs):
    """What each rule does: score, difference to the plain sum, how often it acted."""
    header = ["", "seeds", "score", "over epochs", "to the plain sum", "to ce", "conflicts", "kept"]
    lines = []
    for run in runs:
        run["over_epochs"] = over_epochs(run)
    for task in tasks_of(runs):
        rows = []
        for name, some in kinds_of(select(runs, task=task), method_and_setting):
            method = some[0]["method"]
            plain = select(runs, task=task, method=method, setting="observe")
            layers = some[0]["exit_layers"]
            ce = select(runs, task=task, method="ce", exit_layers=layers)
            row = [name, len(some), show(run["score"] for run in some)]
            row.append(show(run["over_epochs"] for run in some))
            for others in (plain, ce):
                is_itself = others and others[0] in some
                row.append("" if is_itself else difference(some, others, "over_epochs"))
            rows.append([*row, percent(some, "conflict_share"), percent(some, "kept")])
        lines += table(f"**{task}**", header, rows)
    return lines


def over_epochs(run):
    """Mean over the epochs of the deepest exit's score: how early a run learns."""
    split = next(iter(run["dev"]))
    deepest = str(run["exit_layers"][-1])
    rows = [row for row in run["exits"] if row["split"] == split and row["exit_layer"] == deepest]
    return statistics.mean(float(row[run["metric"]]) for row in rows)


def few(runs):
    return [*exit_tables(runs), *difference_tables(runs, runs)]


def settings(runs):
    """Settings tried on a slice of train with one seed: each exit."""
    return exit_tables(runs, method_and_setting)


def tune(runs):
    """Mean over exits of every setting; bold: what was chosen."""
    tasks = tasks_of(runs)
    common = [task for task in tasks if tuned_by_all(runs, task)]
    rows = []
    for method in methods_of(runs):
        scores = tuning_scores(select(runs, method=method), common)
        chosen = choose(scores, tasks)
        for setting in sorted(scores):
            rate, weight, temperature = (f"{value:g}" for value in setting)
            own = "" if method == "ce" else f"{weight}, {temperature}"
            cells = []
            for column in [*tasks, "all"]:
                value = scores[setting].get(column)
                cell = "" if value is None else f"{value:.2f}"
                cells.append(f"**{cell}**" if (setting, column) in chosen else cell)
            rows.append([method, rate, own, *cells])
    return table("Bold: what was chosen.", ["", "lr", "weight, temperature", *tasks, "all"], rows)


def tuning_scores(runs, tasks):
    """{(lr, weight, temperature): {task: score}} of one method; "all", the mean over `tasks`,
    where none is missing."""
    scores = {}
    for run in runs:
        setting = tuple(run["config"][name] for name in ("lr", "weight", "temperature"))
        scores.setdefault(setting, {})[run["task"]] = run["mean_exit_score"]
    for by_task in scores.values():
        if all(task in by_task for task in tasks):
            by_task["all"] = statistics.mean(by_task[task] for task in tasks)
    return scores


def tuned_by_all(runs, task):
    """Whether every method has runs of this task: of other tasks no common mean is taken."""
    return set(methods_of(select(runs, task=task))) == set(methods_of(runs))


def choose(scores, tasks):
    """{(setting, column)}: first the weight and temperature by the mean over tasks at 1e-4, then
    with them each task's learning rate."""
    at_first = {}
    for setting, by_task in scores.items():
        if setting[0] == 1e-4 and "all" in by_task:
            at_first[setting] = by_task["all"]
    if not at_first:
        return set()
    best = max(at_first, key=at_first.get)
    chosen = set()
    if len({setting[1:] for setting in scores}) > 1:
        chosen.add((best, "all"))
    for task in tasks:
        rates = {}
        for setting, by_task in scores.items():
            if setting[1:] == best[1:] and task in by_task:
                rates[setting] = by_task[task]
        if rates:
            chosen.add((max(rates, key=rates.get), task))
    return chosen


def own_runs(runs):
    """Tables of one's own runs, an encoder and set of exits at a time."""
    lines = []
    kinds = dict.fromkeys((run["encoder"], tuple(run["exit_layers"])) for run in runs)
    for encoder, layers in kinds:
        some = [run for run in select(runs, encoder=encoder)
                if tuple(run["exit_layers"]) == layers]
        lines += [f"#### {encoder}, exits {', '.join(map(str, layers))}", ""]
        lines += exit_tables(some, method_and_setting)
        measures = MEASURES if len(layers) > 1 else {"mean_exit_score": "Score"}
        lines += [*difference_tables(some, some, measures=measures), *conflict_table(some)]
    return lines


# ----------------------------------------------------------------------------- the command

ON_DEV = "GLUE's dev split; accuracy, on cola Matthews' correlation; mean±sd over seeds."
BESIDE_TABLE = "Beside the table of one exit, from which the differences are taken."
BESIDE_TABLES = "Beside the multi-exit tables, from which the differences are taken."
ON_SLICES = "On slices of train, held out of it."

# Block: its title, what stands below it, and the function that makes its tables.
BLOCKS = {
    "vanilla": ("One exit", ON_DEV, vanilla),
    "multi": ("An exit at every layer",
              ON_DEV + "  all: mean over the tasks, seed by seed.", multi),
    "mpnet": ("A base-size encoder, an exit at every layer",
              ON_DEV + "  MPNet, 12 layers; on a GPU.", multi),
    "mpnet_cpu": ("The same on a CPU, as far as it went",
                  ON_DEV + "  Independent of the table above: a seed draws other dropout masks "
                  "there.", multi),
    "vanilla_nt-xent": ("NT-Xent instead of SupCon, one exit",
                        BESIDE_TABLE, beside),
    "multi_nt-xent": ("NT-Xent instead of SupCon, an exit at every layer",
                      BESIDE_TABLES, beside),
    "multi_best-teacher": ("The teacher chosen by its loss",
                           BESIDE_TABLES, beside),
    "pilot_temperature0.1": ("The pilot's runs",
                             "RTE's dev split, one exit, weight 0.5, temperature 0.1.", vanilla),
    "speeds": ("Early exit, every rule",
               "The slowest setting at least that fast (counted), in brackets its own speed-up "
               "where over 5 % more; -: not in every run; clocked: the clock's speed-up at 2x's "
               "setting, batch 32, seed 3 alone.  With two classes confidence leaves "
               "where entropy does.", speeds),
    "geometry": ("Did it align?",
                 "label cosine: between each class's mean and its label embedding; alignment: mean "
                 "squared distance within a class; uniformity: log mean exp(-2 squared distance) "
                 "over all pairs, 0 where all are one point (tools/geometry.py).  Six exits, the "
                 "block multi.", geometry),
    "ablate": ("Ablations",
               "At learning rate 1e-4.  Mean over exits, over their lower half, deepest exit; "
               "differences of the mean over exits to the same method and to ce, both in the "
               "tables at 1e-4; none: no gate, a plain sum.", ablate),
    "gate": ("What the gate does where gradients conflict",
             "Score of the deepest exit on dev, at the end and its mean over the epochs (who "
             "learns earlier has more), of which the differences are; observe: the plain sum; "
             "conflicts: steps over 90 degrees; kept: mean length of what was added over that of "
             "the gradient.  The demo: weight 0.1, temperature 0.07, 8 epochs, batches of 32; RTE: "
             "one epoch, one exit, weight 0.5, temperature 0.1.", gate),
    "few": ("Few samples",
            "1,000 samples of SST-2's train split, 6 epochs, scored on the 2,000 after them; "
            "acl-grad with weight 0.1, temperature 0.5.", few),
    "tries": ("Tries",
              "What might help ACL-CL at the shallow exits, on slices of train (acl-cl weight 0.5, "
              "temperature 0.5; acl-grad 0.5, 0.1; without gate).", tries),
    "tune": ("Tuning", ON_SLICES + "  Seed 1, mean over exits; all: mean over the tasks that every "
             "method has.", tune),
    "tune_vanilla": ("Tuning, one exit", ON_SLICES + "  Seed 1; all: mean over the tasks.", tune),
    "tune_nt-xent": ("Tuning NT-Xent's weight", ON_SLICES + "  Seed 1.", settings),
    "mpnet_head_lr": ("The base-size encoder: rate of the classifiers",
                      ON_SLICES + "  Encoder 5e-5, classifiers 1, 10, 20 times that; seed 1.",
                      settings),
    "mpnet_tune": ("The base-size encoder: learning rate", ON_SLICES + "  Seed 1.", settings),
    "multi_lr1e-4": ("At 1e-4",
                     "The multi-exit tables before the tuning, which ablations stand beside: "
                     "learning rate 1e-4 on every task, scl and acl-grad with weight 0.5, "
                     "temperature 0.1.", multi),
    "": ("Your runs", "", own_runs),
}

# The block that another is read beside, and the block whose runs another looks at.
BESIDE = {"vanilla_nt-xent": "vanilla", "multi_nt-xent": "multi", "multi_best-teacher": "multi",
          "ablate": "multi_lr1e-4"}
SAME_RUNS = {"speeds": "multi", "geometry": "multi"}


def lines_of(name, blocks):
    """The lines of a block: title, what it is, tables; [] where it has no run."""
    if name == "summary":
        return summary(blocks)
    title, what, make = BLOCKS.get(name, (name, "", own_runs))
    runs = blocks.get(SAME_RUNS.get(name, name))
    if not runs:
        return []
    if name in BESIDE:
        tables = make(runs, blocks.get(BESIDE[name], []))
    else:
        tables = make(runs)
    if not tables:
        return []
    introduction = [what, ""] if what else []
    return [f"### {title}", "", *introduction, *tables]


def write_between_markers(text, path):
    """Replace what stands between the two marker lines of a file.  Raises InputError."""
    path = Path(path)
    try:
        before, rest = path.read_text(encoding="utf-8").split(BEGIN)
        _, after = rest.split(END)
    except (OSError, ValueError) as error:
        wanted = f"one line {BEGIN.strip()} and below it one line {END.strip()}"
        raise InputError(f"{path} needs {wanted} ({error})") from None
    path.write_text(before + BEGIN + text + END + after, encoding="utf-8")


def report(args):
    if not Path(args.runs).is_dir():
        raise InputError(f"--runs {args.runs}: there is no such folder")
    blocks = read_runs(args.runs)
    if args.majority:
        return write_majority(blocks, args.majority)
    lines = []
    for name in args.block or dict.fromkeys([*BLOCKS, *blocks]):
        lines += lines_of(name, blocks)
    if not lines:
        wanted = " or ".join(args.block or ["any block"])
        raise InputError(f"no finished run of {wanted} under {args.runs}")
    text = "\n".join(lines).strip() + "\n"
    if args.write:
        write_between_markers(text, args.write)
    else:
        print(text, end="")


def main(argv=None):
    p = Parser("results/tables.py", description="Result tables in Markdown from finished runs.")
    names = ["summary", *(name for name in BLOCKS if name)]
    p.add_argument("--block", nargs="+", choices=names, metavar="BLOCK",
                   help=f"only these, of {', '.join(names)}")
    p.add_argument("--runs", default=ROOT / "results" / "runs", help="folder of the runs")
    p.add_argument("--write", metavar="FILE", help="replace what stands between its markers "
                   f"{BEGIN.strip()} and {END.strip()}")
    p.add_argument("--majority", metavar="DATA", help="write results/majority.csv, from GLUE there")
    args = p.parse_args(argv)
    return run_command("results/tables.py", lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
