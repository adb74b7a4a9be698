"""The result tables in Markdown, from the packed runs (packed.py).

    python results/tables.py                   print all tables
    python results/tables.py --block multi     print one block's
    python results/tables.py --write           into results/tables.md, the summary into README.md

All runs are one pandas frame, a row a run, and a table is a groupby of it.  Scores are the last
epoch's, in points.  For runs of your own there is `python -m tools.report RUN ..`.
"""

import math
import sys
from pathlib import Path
from statistics import mean

import pandas

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from results import packed
from tools.errors import Parser, one_line_errors
from tools.report import METHODS, mean_sd
from tools.tradeoff import SPEEDS

BEGIN, END = "<!-- results -->\n", "<!-- /results -->\n"

# The order of rows and columns; that of METHODS is the report's.
TASKS = ("all", "cola", "sst2", "mrpc", "rte", "demo")
RULES = ("entropy", "patience", "pcee")  # with two classes confidence leaves where entropy does

WIDEST = 7  # columns of a table beside its first one

MEASURES = {
    "mean": "Mean over exits",
    "shallow": "Mean over the lower half of the exits",
    "entropy 2x": "Score at twice the speed, counted, entropy",
}
ONE_EXIT = {"mean": "Score"}
GEOMETRY = ["label_cosine", "alignment", "uniformity"]
SUMMARY = {"vanilla": "one exit", "multi": "six exits", "mpnet": "MPNet, 12 exits"}

# What two runs have in common whose difference is taken.
TO_CE = ["exits", "task", "seed"]
TO_ITSELF = ["method", *TO_CE]

# 97.5 % quantiles of Student's t for 1, 2, .. 9 degrees of freedom: half a 95 % interval in
# standard errors.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


# ------------------------------------------------------------------------- the frame of runs


def frame_of(data):
    """runs.csv with a column for whatever a table shows of a run.

        name             'acl-cl, depth, center', the row of a table where it stands
        exit 1, ..       scores; mean and shallow: over all exits, over their lower half
        entropy 2x, ..   a rule's score at a speed-up, and what the setting itself reaches
        over epochs      mean over the epochs of the deepest exit's score: who learns earlier has
                         more
        alignment, deepest, ..      geometry after the last epoch, at the first exit and the last

    Tasks, methods and names are categories, which pandas sorts in their own order.
    """
    runs = data.runs.rename(columns={"mean_exit_score": "mean"})
    runs["task"] = pandas.Categorical(runs.task, TASKS)
    runs["method"] = pandas.Categorical(runs.method, METHODS)
    words = (", " + runs.setting.str.replace("_", ", ")).fillna("")
    runs["name"] = runs.method.astype(str) + words
    names = runs.sort_values(["method", "name"]).name.unique()
    runs["name"] = pandas.Categorical(runs.name, names)

    # The exits' scores.
    by_exit = [dict(zip(*both)) for both in zip(runs.exit_layers, runs.exit_scores)]
    by_exit = pandas.DataFrame(by_exit).sort_index(axis=1)
    runs = runs.join(by_exit.rename(columns="exit {}".format))
    runs["exits"] = runs.exit_scores.map(len)
    runs["shallow"] = runs.exit_scores.map(lambda scores: mean(scores[:max(1, len(scores) // 2)]))

    # Early exit.
    for speed in SPEEDS:
        runs = runs.join(at_speed(data.tradeoff, speed), on="run")
    clock = data.clock[data.clock.batch_size == 32].set_index("run").clocked
    runs = runs.join(clock, on="run")

    # An epoch's rows are those of its exits, the deepest last.
    epochs = data.exits.groupby(["run", "epoch"])
    runs = runs.join(epochs.accuracy.last().groupby("run").mean().rename("over epochs"), on="run")
    for exit, rows in {"exit 1": epochs.first(), "deepest": epochs.last()}.items():
        last_epoch = rows[GEOMETRY].groupby("run").last()
        runs = runs.join(last_epoch.add_suffix(f", {exit}"), on="run")
    return runs


def at_speed(tradeoff, speed):
    """A row a run: each rule's score with its slowest setting that is at least so fast.

    Chosen by speed alone: the best-scoring one would be picked on dev.
    """
    fast = tradeoff[tradeoff.speedup >= speed]
    slowest = fast.loc[fast.groupby(["run", "rule"]).speedup.idxmin()].set_index(["run", "rule"])
    score = slowest.score.unstack("rule").reindex(columns=RULES)
    reached = slowest.speedup.unstack("rule").reindex(columns=RULES)
    return score.add_suffix(f" {speed}x").join(reached.add_suffix(f" {speed}x, reached"))


def with_means(runs):
    """The runs, and for each name and seed that has every task one of the task "all".

    Its scores are means over the tasks, as GLUE averages.  A task that fewer methods or seeds were
    trained on than on another does not count.
    """
    counts = runs.drop_duplicates(["task", "method", "seed"]).task.value_counts()
    tasks = counts.index[counts == counts.max()]
    if len(tasks) == 1:
        return runs
    groups = grouped(runs[runs.task.isin(tasks)], "block", "method", "name", "exits", "seed")
    measures = [*exits_of(runs), *MEASURES, "majority_score"]
    means = groups[measures].agg(mean)[groups.size() == len(tasks)].reset_index()
    means["task"] = pandas.Categorical(["all"] * len(means), TASKS)
    means["run"] = means.block + " " + means.name.astype(str)
    return pandas.concat([means, runs], ignore_index=True)


def grouped(runs, *columns):
    """Groups in the order of the categories, without those that have no run."""
    return runs.groupby(list(columns), observed=True)


def exits_of(runs):
    """The columns of the exits that these runs have."""
    return [name for name in runs if name.startswith("exit ") and runs[name].notna().any()]


# ------------------------------------------------------------------------------- the cells


def interval(differences):
    """Mean of differences that are paired by seed, and half of their 95 % t-interval.

    The half is NaN where there is a single one, which has no sd.
    """
    n = len(differences)
    return mean(differences), T[n - 2] * differences.std() / math.sqrt(n)


def interval_cell(differences):
    """'+0.42 [-0.10, 0.94]'"""
    middle, half = interval(differences)
    cell = f"{middle:+.2f}"
    return cell if math.isnan(half) else f"{cell} [{middle - half:.2f}, {middle + half:.2f}]"


def paired(runs, baseline, measure, keys):
    """By name and task the differences of the runs to the baseline's runs with the same keys."""
    pairs = runs.merge(baseline[[*keys, "run", measure]], on=keys, suffixes=("", " there"))
    pairs = pairs[pairs.run != pairs["run there"]]  # nothing is compared with itself
    pairs["difference"] = pairs[measure] - pairs[f"{measure} there"]
    return grouped(pairs.dropna(subset="difference"), "name", "task").difference


def differences(runs, baseline, measure, keys):
    """Those differences as cells."""
    return paired(runs, baseline, measure, keys).agg(interval_cell)


def percent(shares):
    """'18 %': mean share over the runs that measured it."""
    return f"{100 * shares.mean():.0f} %" if shares.notna().any() else ""


def conflicts(groups):
    """'2 % (98 %)': steps in conflict, and what was kept of the second gradient."""
    share = groups.conflict_share.agg(percent)
    return share.where(share == "", share + " (" + groups.kept.agg(percent) + ")")


# --------------------------------------------------------------------------- table shapes


def table(caption, cells):
    """Markdown lines of a frame of texts; rows without any are left out, [] if none is left."""
    cells = cells.astype(object).fillna("")
    cells = cells[(cells != "").any(axis=1)]
    if cells.empty:
        return []
    lines = [f"|  | {' | '.join(cells.columns)} |", "| --- |" + " ---: |" * cells.shape[1]]
    lines += [f"| {' | '.join(row)} |" for row in cells.itertuples()]
    return [caption, "", *lines, ""]


def exit_tables(runs):
    """Of every task each exit's score and their mean; 12 exits take two tables."""
    lines = []
    for task, some in runs.groupby("task", observed=True):
        columns = [*exits_of(some), "mean"]
        names = some.groupby("name", observed=True)
        cells = names[columns].agg(mean_sd)
        cells.index = [f"{name} ({count})" for name, count in names.size().items()]
        constant = pandas.DataFrame(mean_sd(some.majority_score[:1]), ["majority class"], columns)
        cells = pandas.concat([constant, cells])
        lines += table(f"**{task}** (seeds)", cells.iloc[:, :WIDEST])
        lines += table(f"**{task}**, its deeper exits", cells.iloc[:, WIDEST:])
    return lines


def task_table(caption, cells):
    """cells: a Series of texts by name and task, which become rows and columns."""
    return table(caption, cells.unstack("task"))


def difference_tables(runs, baseline, measures, keys, to):
    lines = []
    for measure, title in measures.items():
        cells = differences(runs, baseline, measure, keys)
        lines += task_table(f"{title}, difference to {to}:", cells)
    return lines


# ------------------------------------------------------------------------------ the blocks


def summary(frame):
    """The one table of README.md: each encoder's mean over its tasks, a column each."""
    columns = {}
    for block, title in SUMMARY.items():
        means = with_means(frame[frame.block == block])
        means = means[means.task == "all"]
        ce = means[means.method == "ce"]
        first = {"majority class": mean_sd(ce.majority_score[:1]), "ce": mean_sd(ce["mean"])}
        others = differences(means, ce, "mean", TO_CE).droplevel("task")
        columns[title] = first | others.to_dict()
    cells = pandas.DataFrame(columns).reindex(["majority class", *METHODS])
    caption = ("Accuracy (cola: Matthews' correlation) on dev, mean over tasks and exits.  ce: "
               "mean±sd over seeds.  The others: paired difference to ce, 95 % t-interval.  "
               "Empty: not run, or it needs several exits.")
    return table(caption, cells)


def block(runs, others=None):
    """Each exit, the differences to ce, how often the gate closed.

    others: another block's runs, from which the differences are taken; then also those to the
    same method there.
    """
    measures = ONE_EXIT if runs.exits.max() == 1 else MEASURES
    means = with_means(runs)
    there = means if others is None else with_means(others)
    ce = there[there.method == "ce"]
    lines = exit_tables(means) + difference_tables(means, ce, measures, TO_CE, "`ce`")
    if others is not None:
        to = "the same method there"
        lines += difference_tables(means, there, measures, TO_ITSELF, to)
    for measure in list(measures)[2:]:
        cells = grouped(means, "name", "task")[measure].agg(mean_sd)
        lines += task_table(f"{measures[measure]}:", cells)
    cells = conflicts(grouped(runs, "name", "task"))
    return lines + task_table("Steps in conflict (over 90 degrees), in brackets the share kept of "
                              "the second gradient, where it was measured:", cells)


def tries(runs):
    """Each exit, and the differences to ce with depth weights."""
    measures = {"mean": MEASURES["mean"], "shallow": MEASURES["shallow"]}
    ce = runs[(runs.method == "ce") & (runs.setting == "depth")]
    return difference_tables(runs, ce, measures, TO_CE, "`ce, depth`") + exit_tables(runs)


def tune(runs):
    """Mean over exits of every setting."""
    scores = grouped(with_means(runs), "name", "task")["mean"].mean()
    return task_table("Mean over exits:", scores.map("{:.2f}".format))


def speeds(runs):
    """Every rule: score at counted speed-ups, share kept at 2x, the clock's speed-up."""
    lines = []
    for (task,), some in grouped(runs, "task"):
        rows = {}
        for rule in RULES:
            for (method,), twins in grouped(some, "method"):
                row = {f"{speed}x": speed_cell(twins, rule, speed) for speed in SPEEDS}
                share = 100 * twins[f"{rule} 2x"] / twins.score
                row["% of full, 2x"] = mean_sd(share)
                if rule == "entropy" and twins.clocked.any():
                    row["clocked"] = f"{twins.clocked.mean():.2f}x"
                rows[f"{rule}, {method}"] = row
        caption = f"**{task}**, {some.seed.nunique()} seeds"
        lines += table(caption, pandas.DataFrame.from_dict(rows, "index"))
    return lines


def speed_cell(runs, rule, speed):
    """The score at a speed-up, and what the setting itself reaches where that is over 5 % more."""
    cell = mean_sd(runs[f"{rule} {speed}x"])
    reached = runs[f"{rule} {speed}x, reached"].mean()
    return f"{cell} ({reached:.2f}x)" if cell != "-" and reached > 1.05 * speed else cell


def geometry(runs):
    """Label cosine, alignment, uniformity at the first and the deepest exit, last epoch."""
    columns = [f"{name}, {exit}" for name in GEOMETRY for exit in ("exit 1", "deepest")]
    cells = grouped(runs, "task", "method")[columns].mean().map("{:.2f}".format)
    cells.index = [", ".join(names) for names in cells.index]
    return table("Mean over seeds:", cells.rename(columns=lambda name: name.replace("_", " ")))


def changes(runs, baseline, measures):
    """One change a row, beside the unchanged method; compared is the first of the measures."""
    lines = []
    for task, some in grouped(runs, "task"):
        names = some.groupby("name", observed=True)
        cells = {"seeds": names.size().astype(str)}
        for measure, title in measures.items():
            cells[title] = names[measure].agg(mean_sd)
        first = next(iter(measures))
        ce = baseline[baseline.method == "ce"]
        cells["to itself"] = differences(some, baseline, first, TO_ITSELF).droplevel("task")
        cells["to ce"] = differences(some, ce, first, TO_CE).droplevel("task")
        cells["conflicts (kept)"] = conflicts(names)
        lines += table(f"**{task[0]}**", pandas.DataFrame(cells))
    return lines


def ablate(runs, others):
    return changes(runs, others, {"mean": "mean", "shallow": "shallow", "score": "deepest"})


def gate(runs):
    plain = runs[(runs.setting == "observe") | (runs.method == "ce")]
    return changes(runs, plain, {"over epochs": "over epochs", "score": "score"})


# ----------------------------------------------------------------------------- the command

ON_DEV = "GLUE's dev split; accuracy, on cola Matthews' correlation; mean±sd over seeds."
BESIDE_TABLES = "Beside the multi-exit tables, from which the differences are taken."
ON_SLICES = "On slices of train, held out of it."

# Name: the title, what stands below it, the function that makes the tables, and of which blocks'
# runs, where it is not the block of that name: first those shown, then those they stand beside.
BLOCKS = {
    "vanilla": ("One exit", ON_DEV, block),
    "multi": (
        "An exit at every layer", ON_DEV + "  all: mean over the tasks, seed by seed.", block
    ),
    "mpnet": (
        "A base-size encoder, an exit at every layer",
        ON_DEV + "  MPNet, 12 layers; on a GPU.",
        block,
    ),
    "mpnet_cpu": (
        "The same on a CPU, as far as it went",
        ON_DEV + "  Independent of the table above: a seed draws other dropout masks there.",
        block,
    ),
    "vanilla_nt-xent": (
        "NT-Xent instead of SupCon, one exit",
        "Beside the table of one exit, from which the differences are taken.",
        block,
        "vanilla_nt-xent",
        "vanilla",
    ),
    "multi_nt-xent": (
        "NT-Xent instead of SupCon, an exit at every layer",
        BESIDE_TABLES,
        block,
        "multi_nt-xent",
        "multi",
    ),
    "multi_random-batches": (
        "Batches drawn at random, not by length", BESIDE_TABLES, block, "multi_random-batches",
        "multi"
    ),
    "multi_best-teacher": (
        "The teacher chosen by its loss", BESIDE_TABLES, block, "multi_best-teacher", "multi"
    ),
    "pilot_temperature0.1": (
        "The pilot's runs", "RTE's dev split, one exit, weight 0.5, temperature 0.1.", block
    ),
    "speeds": (
        "Early exit, every rule",
        "The slowest setting at least that fast (counted), in brackets its own speed-up where "
        "over 5 % more; -: not in every run; clocked: the clock's speed-up at 2x's setting, batch "
        "32, seed 3 alone.  With two classes confidence leaves where entropy does.",
        speeds,
        "multi",
    ),
    "geometry": (
        "Did it align?",
        "label cosine: between each class's mean and its label embedding; alignment: mean "
        "squared distance within a class; uniformity: log mean exp(-2 squared distance) over all "
        "pairs, 0 where all are one point (tools/geometry.py).  Six exits, the block multi.",
        geometry,
        "multi",
    ),
    "ablate": (
        "Ablations",
        "At learning rate 1e-4.  Mean over exits, over their lower half, deepest exit; "
        "differences of the mean over exits to the same method and to ce, both in the tables at "
        "1e-4; none: no gate, a plain sum.",
        ablate,
        "ablate",
        "multi_lr1e-4",
    ),
    "gate": (
        "What the gate does where gradients conflict",
        "Score of the deepest exit on dev: its mean over the epochs (who learns earlier has "
        "more), of which the differences are, and at the end; observe: the plain sum, from which "
        "the differences to itself are; conflicts: steps over 90 degrees; kept: mean length of "
        "what was added over that of the gradient.  The demo: weight 0.1, temperature 0.07, 8 "
        "epochs, batches of 32; RTE: one epoch, one exit, weight 0.5, temperature 0.1.",
        gate,
    ),
    "few": (
        "Few samples",
        "1,000 samples of SST-2's train split, 6 epochs, scored on the 2,000 after them; acl-grad "
        "with weight 0.1, temperature 0.5.",
        block,
    ),
    "tries": (
        "Tries",
        "What might help ACL-CL at the shallow exits, on slices of train (acl-cl weight 0.5, "
        "temperature 0.5; acl-grad 0.5, 0.1; without gate).",
        tries,
    ),
    "tune": (
        "Tuning",
        ON_SLICES + "  Seed 1, mean over exits; all: mean over the tasks that every method has.",
        tune,
    ),
    "tune_vanilla": ("Tuning, one exit", ON_SLICES + "  Seed 1; all: mean over the tasks.", tune),
    "tune_nt-xent": ("Tuning NT-Xent's weight", ON_SLICES + "  Seed 1.", exit_tables),
    "mpnet_head_lr": (
        "The base-size encoder: rate of the classifiers",
        ON_SLICES + "  Encoder 5e-5, classifiers 1, 10, 20 times that; seed 1.",
        exit_tables,
    ),
    "mpnet_tune": ("The base-size encoder: learning rate", ON_SLICES + "  Seed 1.", exit_tables),
    "multi_lr1e-4": (
        "At 1e-4",
        "The multi-exit tables before the tuning, which ablations stand beside: learning rate "
        "1e-4 on every task, scl and acl-grad with weight 0.5, temperature 0.1.",
        block,
    ),
}


def text_of(name, frame):
    """A block's title, what it is, its tables; empty where it has no run."""
    if name == "summary":
        return "\n".join(summary(frame))
    title, what, make, *blocks = BLOCKS[name]
    frames = [frame[frame.block == block] for block in blocks or [name]]
    if frames[0].empty:
        return ""
    return "\n".join([f"### {title}", "", what, "", *make(*frames), ""])


def write_between_markers(text, path):
    """Replace what stands between the two marker lines of a file."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(before + BEGIN + text.strip() + "\n" + END + after, encoding="utf-8")


def report(args):
    frame = frame_of(packed.read(args.packed))
    text = "".join(text_of(name, frame) for name in args.block)
    if args.write:
        write_between_markers(text, ROOT / "results" / "tables.md")
        write_between_markers(text_of("summary", frame), ROOT / "README.md")
    else:
        print(text.strip() or f"{args.packed} has no run of {' or '.join(args.block)}")


def main(argv=None):
    p = Parser("results/tables.py", description=__doc__)
    names = ["summary", *BLOCKS]
    p.add_argument("--block", nargs="+", choices=names, default=list(BLOCKS), metavar="BLOCK",
                   help=f"only these, of {', '.join(names)}")
    p.add_argument("--packed", type=Path, default=packed.FOLDER, help="where the packed files are")
    p.add_argument("--write", action="store_true", help="into results/tables.md and README.md")
    args = p.parse_args(argv)
    with one_line_errors("results/tables.py"):
        report(args)


if __name__ == "__main__":
    main()
