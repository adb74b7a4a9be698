"""The README's result tables in Markdown, from the small files of finished runs under results/runs.

    python results/tables.py                      # all blocks there are: vanilla, multi, tune, ablate
    python results/tables.py --block multi        # one of them
    python results/tables.py --write README.md    # put them between the lines <!-- results --> and <!-- /results -->

A run is results/runs/<block>/<task>_<method>_<seed>/, or <block>/<setting>/.. under tune and ablate; what is not there is not
in the tables.  Every score is the last epoch's on dev (tune: on the held-out slice of train), in points.
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import exits
from glue import TASKS, InputError
from train import METHODS, read_csv

BEGIN, END = "<!-- results -->\n", "<!-- /results -->\n"
# 97.5 % quantiles of Student's t for 1, 2, .. 9 degrees of freedom: the half width of a 95 % interval in standard errors.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


# -------------------------------------------------------------------------------------------------------------------- runs

def read_runs(root):
    """{block: [run, ..]}; a run is its result.json with `config`, `setting` (under tune, ablate) and `folder` added."""
    blocks = {}
    for path in sorted(Path(root).rglob("result.json")):
        block, *setting = path.parent.parent.relative_to(root).parts
        run = json.loads(path.read_text(encoding="utf-8"))
        run |= {"config": json.loads((path.parent / "config.json").read_text(encoding="utf-8")),
                "setting": "/".join(setting), "folder": path.parent,
                "shallow": statistics.mean(run["exit_scores"][:max(1, len(run["exit_scores"]) // 2)])}
        blocks.setdefault(block, []).append(run)
    return blocks


def read_tradeoff(path):
    """The rows of a tradeoff.csv with the numbers that exits.at_speedup looks at parsed."""
    return [row | {"score": float(row["score"]), "speedup": float(row["speedup"])} for row in read_csv(path)]


def select(runs, **wanted):
    """The runs whose entries are the wanted ones, by seed."""
    chosen = [run for run in runs if all(run[name] == value for name, value in wanted.items())]
    return sorted(chosen, key=lambda run: run["seed"])


def present(runs, name, order):
    """The values of `name` that occur, in the order the modules list them."""
    return [value for value in order if any(run[name] == value for run in runs)]


# ------------------------------------------------------------------------------------------------------------------- cells

def mean_sd(values):
    """'71.3±0.8'; one value has no ±, none or an undefined one (None) gives an empty cell."""
    if not values or None in values:
        return ""
    return f"{statistics.mean(values):.1f}" + (f"±{statistics.stdev(values):.1f}" if len(values) > 1 else "")


def difference(runs, baseline, value):
    """'+0.42 [-0.10, 0.94]': mean paired difference over the common seeds and its 95 % t-interval."""
    theirs = {run["seed"]: value(run) for run in baseline}
    paired = [value(run) - theirs[run["seed"]] for run in runs if run["seed"] in theirs]
    if not paired:
        return ""
    cell, n = f"{statistics.mean(paired):+.2f}", len(paired)
    if n > 1:
        half = T[min(n - 2, len(T) - 1)] * statistics.stdev(paired) / math.sqrt(n)    # beyond 10 seeds: a little too wide
        cell += f" [{statistics.mean(paired) - half:.2f}, {statistics.mean(paired) + half:.2f}]"
    return cell + (f" ({n} common)" if n < len(runs) else "")


def percent(runs, name):
    """Mean share over the runs that measured it: '18 %'."""
    shares = [run[name] for run in runs if run[name] is not None]
    return f"{100 * statistics.mean(shares):.0f} %" if shares else ""


def table(header, rows):
    """Markdown lines and an empty one.  Rows without any number behind their first cell are left out."""
    rows = [row for row in rows if any(row[1:])]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines] + [""] if rows else []


def options(runs):
    """One line: the options the runs were trained with, and what is the method's own."""
    def values(name, some=runs):
        return " or ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in dict.fromkeys(r["config"][name] for r in some))
    words = [f"{name} {values(name)}" for name in ("epochs", "lr", "head_lr", "batch_size", "exit_weights", "limit_train")]
    for method in present(runs, "method", METHODS):
        some = select(runs, method=method)
        if method != "ce":
            words.append(f"{method}: weight {values('weight', some)}, temperature {values('temperature', some)}, "
                         f"conflict {values('conflict', some)}")
    return ["Options: " + "; ".join(words) + ".", ""]


# ------------------------------------------------------------------------------------------------------------------ tables

def vanilla(runs):
    """One exit: score, difference to ce, conflicts; methods as rows, tasks as columns."""
    tasks, methods = present(runs, "task", TASKS), present(runs, "method", METHODS)
    header = ["method"] + [f"{task}, {TASKS[task].metrics[0]}" for task in tasks]

    def score(some):
        return f"{mean_sd([run['score'] for run in some])} ({len(some)})" if some else ""

    def rows(cell):
        return [[method] + [cell(select(runs, task=task, method=method), task) for task in tasks] for method in methods]

    def to_ce(some, task):
        return difference(some, select(runs, task=task, method="ce"), lambda run: run["score"])

    lines = ["### Vanilla: one exit", "", "Mean±sd (seeds).", ""] + table(header, rows(lambda some, task: score(some)))
    against = table(header, [row for row in rows(to_ce) if row[0] != "ce"])
    lines += ["Paired difference to ce over the common seeds, 95 % t-interval.", "", *against] if against else []
    return lines + conflicts(runs, tasks, methods) + options(runs)


def conflicts(runs, tasks, methods):
    """Share of steps in conflict and share of the contrastive gradient's length that was kept, where they were measured."""
    rows = [[method] + [percent(select(runs, task=task, method=method), name) for task in tasks
                        for name in ("conflict_share", "kept")] for method in methods]
    lines = table(["method"] + [f"{task} {what}" for task in tasks for what in ("conflicts", "kept")], rows)
    return ["Steps in conflict (angle over 90 degrees), and mean share of the contrastive gradient kept.", "", *lines] if lines else []


def multi(runs):
    """An exit at every layer: a table of exits and a table of speeds for each task."""
    lines = ["### Multi-exit: one model, an exit at every layer", ""]
    tasks, methods = present(runs, "task", TASKS), present(runs, "method", METHODS)
    for task in tasks:
        some = select(runs, task=task)
        lines += [f"#### {task}, {some[0]['metric']}", "",
                  "Each exit alone, mean±sd; shallow: mean over the lower half of the exits; Δ: paired difference to ce, "
                  "95 % t-interval.", "", *exit_table(some, methods)]
        speeds = speed_table(some, methods)
        lines += ["Early exit: score at a counted speed-up, the slowest setting at least that fast (its own speed where that is "
                  "over 5 % more); kept: share of the full model's score at 2x.", "", *speeds] if speeds else []
        lines += options(some)
    return lines + conflicts(runs, tasks, methods)


def exit_table(runs, methods):
    header = ["method", "seeds"] + [f"exit {layer}" for layer in runs[0]["exit_layers"]] + ["mean", "shallow", "Δ mean", "Δ shallow"]
    baseline, rows = select(runs, method="ce"), []
    for some in (select(runs, method=method) for method in methods):
        if not some:
            continue
        scores = [list(column) for column in zip(*(run["exit_scores"] for run in some))]
        means = [[run[name] for run in some] for name in ("mean_exit_score", "shallow")]
        against = ["", ""] if some[0]["method"] == "ce" else [
            difference(some, baseline, lambda run: run["mean_exit_score"]), difference(some, baseline, lambda run: run["shallow"])]
        rows.append([some[0]["method"], len(some), *map(mean_sd, scores + means), *against])
    return table(header, rows)


def speed_table(runs, methods):
    rows, tables = [], {run["folder"]: read_tradeoff(run["folder"] / "tradeoff.csv") for run in runs
                        if (run["folder"] / "tradeoff.csv").is_file()}
    for rule in exits.RULES:
        for method in methods:
            some = [run for run in select(runs, method=method) if run["folder"] in tables]
            at = [[exits.at_speedup(tables[run["folder"]], rule, speed) for run in some] for speed in exits.SPEEDS]
            kept = [share_kept(found, run["score"]) for found, run in zip(at[1], some)]
            rows.append([f"{rule}, {method}", *(speed_cell(found, speed) for found, speed in zip(at, exits.SPEEDS)),
                         mean_sd(kept) and f"{mean_sd(kept)} %"])
    return table(["rule, method"] + [f"{speed}x" for speed in exits.SPEEDS] + ["kept at 2x"], rows)


def share_kept(found, full):
    """Percent of the full model's score; None without a setting that fast, or of a full model no better than chance in
    Matthews' correlation (0 or less), of which no share can be kept."""
    return 100 * found["score"] / full if found and full > 0 else None


def speed_cell(found, speed):
    """Scores of the settings found; with their speed where the rule has no setting near the speed asked for."""
    if not found or None in found:
        return "-" if found else ""
    actual = statistics.mean(row["speedup"] for row in found)
    return mean_sd([row["score"] for row in found]) + (f" ({actual:.2f}x)" if actual > 1.05 * speed else "")


def tune(runs):
    """The grid: every method got the same number of settings; chosen: the highest mean over exits."""
    lines = ["### Tuning", "", "Trained on train less its last rows, scored on those (dev is not looked at); "
             "bold: chosen, the highest mean over exits of its method.", ""]
    for task in present(runs, "task", TASKS):
        rows = []
        for method in present(runs, "method", METHODS):
            some = {setting: select(runs, task=task, method=method, setting=setting)
                    for setting in dict.fromkeys(run["setting"] for run in select(runs, task=task, method=method))}
            best = max(some, key=lambda s: statistics.mean(run["mean_exit_score"] for run in some[s]), default=None)
            for setting, group in some.items():
                config = group[0]["config"]
                own = ["", ""] if method == "ce" else [f"{config['weight']:g}", f"{config['temperature']:g}"]
                mean, deepest = (mean_sd([run[name] for run in group]) for name in ("mean_exit_score", "score"))
                mark = "**" if setting == best else ""
                rows.append([method, f"{config['lr']:g}", *own, f"{mark}{mean}{mark}", deepest])
        held = " or ".join(str(n) for n in dict.fromkeys(run["config"]["holdout"] for run in select(runs, task=task)))
        lines += table([f"{task}, {held} rows held out", "lr", "weight", "temperature", "mean over exits", "deepest exit"], rows)
    return lines


def ablate(runs, multi_runs):
    """Each ablation against the multi block's run of the same task, method and seed."""
    rows = []
    keys = dict.fromkeys((run["setting"], run["task"], run["method"]) for run in runs)
    for setting, task, method in keys:
        some = select(runs, setting=setting, task=task, method=method)
        means = [mean_sd([run[name] for run in some]) for name in ("mean_exit_score", "shallow", "score")]
        against = difference(some, select(multi_runs, task=task, method=method), lambda run: run["mean_exit_score"])
        rows.append([f"{task}, {method}, {setting}", len(some), *means, against, percent(some, "conflict_share"), percent(some, "kept")])
    return ["### Ablations", "", "Δ: paired difference of the mean over exits to the same method in the multi-exit table.", ""] + table(
        ["run", "seeds", "mean over exits", "shallow", "deepest exit", "Δ mean", "conflicts", "kept"], rows)


def main(argv=None):
    p = argparse.ArgumentParser(prog="tables.py", description="Result tables in Markdown, from the files of finished runs.")
    p.error = lambda message: p.exit(2, f"tables.py: {message}; see python results/tables.py --help\n")
    p.add_argument("--block", choices=("vanilla", "multi", "tune", "ablate"), help="only this one")
    p.add_argument("--runs", default=ROOT / "results" / "runs", help="folder of the blocks (results/runs)")
    p.add_argument("--write", metavar="FILE", help="replace what stands between <!-- results --> and <!-- /results --> in FILE")
    args = p.parse_args(argv)
    blocks = read_runs(args.runs)
    make = {"vanilla": vanilla, "multi": multi, "tune": tune, "ablate": lambda runs: ablate(runs, blocks.get("multi", []))}
    lines = [line for name in make if name in blocks and args.block in (None, name) for line in make[name](blocks[name])]
    text = "\n".join(lines).rstrip("\n") + "\n"
    if not args.write:
        print(text, end="")
        return 0
    try:
        before, rest = Path(args.write).read_text(encoding="utf-8").split(BEGIN)
        Path(args.write).write_text(before + BEGIN + text + END + rest.split(END)[1], encoding="utf-8")
    except (OSError, ValueError, IndexError) as error:
        print(f"tables.py: {args.write} cannot be read or lacks one line {BEGIN.strip()} and one {END.strip()} ({error})", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
