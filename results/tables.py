"""The result tables of README.md and results/README.md, from the small files of finished runs under results/runs.

    python results/tables.py                      # all tables there are
    python results/tables.py --block multi        # some of them
    python results/tables.py --block vanilla multi --write README.md    # between <!-- results --> and <!-- /results -->

A run lies in results/runs/<block>/<task>_<method>_<seed>/, under tune, tries and ablate in <block>/<setting>/..; what
is not there is left out.  Scores are in points, the last epoch's on dev (tune, tries, few: on held-out rows of train).
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import tradeoff
from glue import TASKS
from tradeoff import SPEEDS, at_speedup, read_csv
from train import METHODS

GEOMETRY = ("label_cosine", "alignment", "uniformity")          # columns of exits.csv, see acl.geometry

BEGIN, END = "<!-- results -->\n", "<!-- /results -->\n"
# 97.5 % quantiles of Student's t for 1, 2, .. 9 degrees of freedom: half a 95 % interval in standard errors.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def read_runs(root):
    """{block: [run, ..]}; a run is its result.json with config, setting (tune, ablate), shallow and tradeoff added."""
    blocks = {}
    for path in sorted(Path(root).rglob("result.json")):
        block, *setting = path.parent.parent.relative_to(root).parts
        run = json.loads(path.read_text(encoding="utf-8"))
        run["config"] = json.loads(path.with_name("config.json").read_text(encoding="utf-8"))
        run["setting"] = "/".join(setting)
        run["shallow"] = statistics.mean(run["exit_scores"][:max(1, len(run["exit_scores"]) // 2)])
        curve = path.with_name("tradeoff.csv")                          # not there for a single exit
        run["tradeoff"] = read_tradeoff(curve) if curve.is_file() else []
        twice = at_speedup(run["tradeoff"], "entropy", 2)
        run["twice"] = twice and twice["score"]
        run["exits"] = read_csv(path.with_name("exits.csv"))
        clock = path.with_name("clock.csv")                             # exits.py --clock
        run["clock"] = read_csv(clock) if clock.is_file() else []
        blocks.setdefault(block, []).append(run)
    return blocks


def read_tradeoff(path):
    """The rows of a tradeoff.csv, its numbers parsed as far as at_speedup needs them."""
    return [row | {"score": float(row["score"]), "speedup": float(row["speedup"])} for row in read_csv(path)]


def select(runs, **wanted):
    """The runs with these entries, by seed."""
    return sorted((run for run in runs if all(run[k] == v for k, v in wanted.items())), key=lambda run: run["seed"])


def present(runs, name, order):
    """The values of `name` that occur, in the order of the modules."""
    return [value for value in order if select(runs, **{name: value})]


# ---------------------------------------------------------------------------------------------------------------- cells

def mean_sd(values):
    """'71.3±0.8'; one value has no ±, none or an undefined one (None) leaves the cell empty."""
    return tradeoff.mean_sd(values) if values and None not in values else ""


def difference(runs, baseline, name):
    """'+0.42 [-0.10, 0.94]': mean paired difference over the common seeds, and its 95 % t-interval."""
    theirs = {run["seed"]: run[name] for run in baseline}
    paired = [run[name] - theirs[run["seed"]] for run in runs if run["seed"] in theirs]
    if not paired or runs == baseline:
        return ""
    mean, n = statistics.mean(paired), len(paired)
    cell = f"{mean:+.2f}"
    if n > 1:
        half = T[min(n - 2, len(T) - 1)] * statistics.stdev(paired) / math.sqrt(n)      # n > 10: a bit too wide
        cell += f" [{mean - half:.2f}, {mean + half:.2f}]"
    return cell + (f" ({n} common)" if n < len(runs) else "")


def percent(runs, name):
    """'18 %': mean share over the runs that measured it."""
    shares = [run[name] for run in runs if run[name] is not None]
    return f"{100 * statistics.mean(shares):.0f} %" if shares else ""


def at_speed(runs, rule, speed):
    """Score at the slowest setting at least that fast, and that setting's own speed-up where it is over 5 % more."""
    found = [at_speedup(run["tradeoff"], rule, speed) for run in runs]
    if None in found:
        return "-"
    actual = statistics.mean(row["speedup"] for row in found)
    return mean_sd([row["score"] for row in found]) + (f" ({actual:.2f}x)" if actual > 1.05 * speed else "")


def kept_at(runs, rule, speed):
    """Percent of the full model's score.  A full model at 0 or below (Matthews' correlation) has no share to keep."""
    found = [(at_speedup(run["tradeoff"], rule, speed), run["score"]) for run in runs]
    return mean_sd([100 * row["score"] / full if row and full > 0 else None for row, full in found])


def clocked(runs, rule):
    """'1.95x': the clock's speed-up over the full model at batch 32, from clock.csv (python exits.py RUN --clock)."""
    found = [float(row["clocked"]) for run in runs for row in run["clock"] if row["rule"] == rule and row["batch_size"] == "32"]
    return f"{statistics.mean(found):.2f}x" if found else ""


# --------------------------------------------------------------------------------------------------------------- tables

def table(caption, header, rows):
    """Caption and Markdown table; rows of empty cells are left out, and all of it if none is left."""
    rows = [row for row in rows if any(row[1:])]
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, ["---"] + ["---:"] * (len(header) - 1), *rows)]
    return [caption, "", *lines, ""] if rows else []


def tasks_table(caption, runs, cells):
    """Methods as rows, tasks as columns.  cells: {column name: function of a method's runs and ce's}."""
    tasks = present(runs, "task", TASKS)
    rows = [[method] + [cell(select(runs, task=task, method=method), select(runs, task=task, method="ce"))
                        for task in tasks for cell in cells.values()] for method in present(runs, "method", METHODS)]
    return table(caption, ["method"] + [f"{task} {name}" for task in tasks for name in cells], rows)


def conflicts_table(runs):
    caption = "Where it was measured: steps in conflict (angle over 90 degrees), and share kept of the second gradient."
    return tasks_table(caption, runs, {"conflicts": lambda some, ce: percent(some, "conflict_share"),
                                       "kept": lambda some, ce: percent(some, "kept")})


def vanilla(runs):
    cells = {"score": lambda some, ce: mean_sd([run["score"] for run in some]) + (f" ({len(some)})" if some else ""),
             "Δ": lambda some, ce: difference(some, ce, "score")}
    caption = "Accuracy (cola: Matthews' correlation), mean±sd (seeds); Δ: paired difference to ce, 95 % t-interval."
    return ["### Vanilla: one exit", "", *tasks_table(caption, runs, cells), *conflicts_table(runs)]


def averaged(runs):
    """A stand-in run per method and seed, its scores the means over all tasks, as GLUE averages; where no task is missing."""
    tasks, stand_ins = present(runs, "task", TASKS), []
    for method, seed in dict.fromkeys((run["method"], run["seed"]) for run in runs):
        some = select(runs, method=method, seed=seed)
        if len(some) == len(tasks) > 1:
            means = {name: statistics.mean(run[name] for run in some) for name in ("mean_exit_score", "shallow")}
            twice = [run["twice"] for run in some]
            stand_ins.append(means | {"task": "all", "method": method, "seed": seed,
                                      "exit_scores": list(map(statistics.mean, zip(*(run["exit_scores"] for run in some)))),
                                      "twice": None if None in twice else statistics.mean(twice)})
    return stand_ins


def exits_table(caption, runs):
    """All tasks in one table: each exit, means, differences, and early exit at 2x by entropy; first, the mean over tasks."""
    rows, runs = [], runs + averaged(runs)
    for task in present(runs, "task", ["all", *TASKS]):
        ce = select(runs, task=task, method="ce")
        for method in present(runs, "method", METHODS):
            some = select(runs, task=task, method=method)
            scores = zip(*(run["exit_scores"] + [run["mean_exit_score"], run["shallow"]] for run in some))
            against = [difference(some, ce, name) for name in ("mean_exit_score", "shallow")]
            rows.append([f"{task}, {method}", len(some) or "", *map(mean_sd, scores), *against,
                         mean_sd([run["twice"] for run in some]), difference(some, ce, "twice")])
    header = ["task, method", "seeds", *(f"exit {layer}" for layer in runs[0]["exit_layers"]), "mean", "shallow", "Δ mean",
              "Δ shallow", "at 2x", "Δ at 2x"]
    return table(caption, header, rows)


def multi(runs):
    caption = ("Accuracy (cola: Matthews' correlation) of each exit by itself, mean±sd; shallow: mean over the lower half of "
               "the exits; Δ: paired difference to ce, 95 % t-interval; at 2x: entropy's slowest setting that is at least "
               "twice as fast, counted; all: mean over the tasks, seed by seed.")
    return ["### Multi-exit: one model, an exit at every layer", "", *exits_table(caption, runs), *conflicts_table(runs)]


def lower_rate(runs):
    caption = ("The multi-exit table before the tuning above, which ablations stand beside: learning rate 1e-4 on every task, scl and "
               "acl-grad with weight 0.5, temperature 0.1.")
    return ["### At 1e-4", "", *exits_table(caption, runs)]


def geometry(runs):
    """Label cosine, alignment and uniformity after the last epoch, at the first and the deepest exit, from exits.csv."""
    rows = []
    for task in present(runs, "task", TASKS):
        for method in present(runs, "method", METHODS):
            some = select(runs, task=task, method=method)
            last = [run["exits"][-len(run["exit_layers"]):] for run in some]
            cells = [statistics.mean(float(exit_rows[m][name]) for exit_rows in last)
                     for name in GEOMETRY for m in (0, -1)] if some else []
            rows.append([f"{task}, {method}", *(f"{cell:.2f}" for cell in cells)])
    caption = ("Mean over seeds; label cosine: between each class's mean and its label embedding; alignment: mean squared distance "
               "within a class; uniformity: log mean exp(-2 squared distance) over all pairs, 0 where all are one point "
               "(acl.geometry).")
    columns = [f"{name.replace('_', ' ')}, {exit}" for name in GEOMETRY for exit in ("exit 1", "deepest")]
    return ["### Did it align?", "", *table(caption, ["task, method", *columns], rows)]


def few(runs):
    caption = "1,000 rows of SST-2's train split, 6 epochs, scored on the 2,000 rows after them; acl-grad with weight 0.1, temperature 0.5."
    return ["### Few rows", "", *exits_table(caption, runs)]


def speeds(runs):
    """Every rule: score at counted speed-ups, share kept at 2x, and the clock's speed-up where it was measured."""
    rows = []
    for task in present(runs, "task", TASKS):
        for rule in tradeoff.RULES:
            for method in present(runs, "method", METHODS):
                some = select(runs, task=task, method=method)
                if some and not (rule == "confidence" and some[0]["config"]["num_labels"] == 2):
                    cells = [at_speed(some, rule, speed) for speed in SPEEDS]
                    rows.append([f"{task}, {rule}, {method}", len(some), *cells, kept_at(some, rule, 2), clocked(some, rule)])
    caption = ("The slowest setting at least that fast (counted), in brackets its own speed-up where over 5 % more; -: not "
               "in every run; % of full: of the full model's score, at 2x; clocked: the clock's speed-up at that setting, batch "
               "32, mean of the runs it was measured on.  With two classes confidence leaves where entropy does.")
    header = ["task, rule, method", "seeds", *(f"{speed}x" for speed in SPEEDS), "% of full", "clocked"]
    return ["### Early exit, every rule", "", *table(caption, header, rows)]


def tune(runs, title="Tuning", what="Mean over exits"):
    tasks, rows = present(runs, "task", TASKS), []
    for method in present(runs, "method", METHODS):
        settings = {}                                                   # (lr, weight, temperature) -> {task: run}
        for run in select(runs, method=method):
            key = tuple(run["config"][name] for name in ("lr", "weight", "temperature"))
            settings.setdefault(key, {})[run["task"]] = run
        columns = []                                                    # per task, then their mean: {setting: score}
        for task in tasks:
            columns.append({key: found[task]["mean_exit_score"] for key, found in settings.items() if task in found})
        own_tasks = [column for column in columns if column]
        columns.append({key: statistics.mean(column[key] for column in own_tasks) for key in settings
                        if all(key in column for column in own_tasks)})
        at_first = {key: value for key, value in columns[-1].items() if key[0] == 1e-4}
        setting = max(at_first, key=at_first.get, default=())[1:]       # first the setting, for all tasks, at 1e-4
        rates = [{key: value for key, value in column.items() if key[1:] == setting} for column in columns[:-1]]
        chosen = {(max(rate, key=rate.get), i) for i, rate in enumerate(rates) if rate}         # then each task's rate with it
        chosen |= {((1e-4, *setting), len(tasks))} if len({key[1:] for key in settings}) > 1 else set()
        for key in sorted(settings):
            lr, *own = (f"{value:g}" for value in key)
            cells = ["" if key not in column else f"**{column[key]:.2f}**" if (key, i) in chosen else f"{column[key]:.2f}"
                     for i, column in enumerate(columns)]
            rows.append([method, lr, *(["", ""] if method == "ce" else own), *cells])
    slices = ", ".join(f"{task} {select(runs, task=task)[0]['config']['holdout']}" for task in tasks)
    caption = f"{what} on the last rows of train, held out of it ({slices} rows), seed 1; all: mean over the tasks; bold: what was chosen."
    return [f"### {title}", "", *table(caption, ["method", "lr", "weight", "temperature", *tasks, "all"], rows)]


def tries(runs):
    rows = []
    for task in present(runs, "task", TASKS):
        kinds = sorted({(run["setting"], run["method"]) for run in runs if run["task"] == task},
                       key=lambda kind: (kind[0].split("_"), list(METHODS).index(kind[1])))
        ce = select(runs, task=task, method="ce", setting="depth")
        for setting, method in kinds:
            some = select(runs, task=task, method=method, setting=setting)
            scores = zip(*(run["exit_scores"] + [run["mean_exit_score"], run["shallow"]] for run in some))
            against = [difference(some, ce, name) for name in ("mean_exit_score", "shallow")]
            rows.append([f"{task}, {method}, {setting.replace('_', ', ')}", len(some), *map(mean_sd, scores), *against])
    header = ["task, method, exit weights and change", "seeds", *(f"exit {m}" for m in runs[0]["exit_layers"]), "mean", "shallow",
              "Δ mean", "Δ shallow"]
    caption = ("What might help ACL-CL at the shallow exits, on slices of train (acl-cl weight 0.5, temperature 0.5; acl-grad "
               "0.5, 0.1; without gate); Δ: paired difference to ce with depth weights.")
    return ["### Tries", "", *table(caption, header, rows)]


def ablate(runs, main_runs):
    rows = []
    kinds = dict.fromkeys((run["setting"], run["task"], run["method"]) for run in runs)
    for setting, task, method in sorted(kinds, key=lambda k: (list(TASKS).index(k[1]), list(METHODS).index(k[2]), k[0])):
        some = select(runs, setting=setting, task=task, method=method)
        means = [mean_sd([run[name] for run in some]) for name in ("mean_exit_score", "shallow", "score")]
        against = [difference(some, select(main_runs, task=task, method=other), "mean_exit_score") for other in (method, "ce")]
        shares = [percent(some, name) for name in ("conflict_share", "kept")]
        rows.append([f"{task}, {method}, {setting.replace('_', ', ')}", len(some), *means, *against, *shares])
    header = ["task, method, change", "seeds", "mean", "shallow", "deepest", "Δ itself", "Δ ce", "conflicts", "kept"]
    caption = ("Mean over exits, over their lower half, deepest exit; Δ: paired difference of the mean over exits to the same "
               "method in the table at 1e-4, and to ce there, 95 % t-interval; none: no gate, a plain sum.")
    return ["### Ablations", "", *table(caption, header, rows)]


def main(argv=None):
    p = argparse.ArgumentParser(prog="tables.py", description="Result tables in Markdown from finished runs.")
    p.error = lambda message: p.exit(2, f"tables.py: {message}; see python results/tables.py --help\n")
    p.add_argument("--block", nargs="+", choices=("vanilla", "multi", "speeds", "geometry", "ablate", "few", "tries", "tune",
                                                  "tune_vanilla", "multi_lr1e-4"), help="only these")
    p.add_argument("--runs", default=ROOT / "results" / "runs", help="folder of the blocks (results/runs)")
    p.add_argument("--write", metavar="FILE", help="replace all between <!-- results --> and <!-- /results --> in it")
    args = p.parse_args(argv)
    blocks = read_runs(args.runs)
    blocks["speeds"] = blocks["geometry"] = blocks.get("multi", [])
    make = {"vanilla": vanilla, "multi": multi, "speeds": speeds, "geometry": geometry,
            "ablate": lambda runs: ablate(runs, blocks.get("multi_lr1e-4", [])), "few": few, "tries": tries, "tune": tune,
            "tune_vanilla": lambda runs: tune(runs, "Tuning, one exit", "Score"),
            "multi_lr1e-4": lower_rate}
    wanted = [name for name in make if blocks.get(name) and name in (args.block or make)]
    if not wanted:
        p.error(f"no finished run of {' or '.join(args.block or ['any block'])} under {args.runs}")
    text = "\n".join(line for name in wanted for line in make[name](blocks[name])).strip() + "\n"
    if not args.write:
        print(text, end="")
        return 0
    try:
        before, rest = Path(args.write).read_text(encoding="utf-8").split(BEGIN)
        _, after = rest.split(END)
    except (OSError, ValueError) as error:
        wanted = f"needs one line {BEGIN.strip()} and below it one line {END.strip()}"
        print(f"tables.py: {args.write} {wanted} ({error})", file=sys.stderr)
        return 2
    Path(args.write).write_text(before + BEGIN + text + END + after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
