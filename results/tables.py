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
from typing import NamedTuple

import pandas

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from results import packed
from tools.errors import Parser, one_line_errors
from tools.report import METHODS, mean_sd

BEGIN, END = "<!-- results -->\n", "<!-- /results -->\n"

# The order of rows and columns; that of METHODS is the report's.
TASKS = ("all", "cola", "sst2", "mrpc", "rte", "demo")

WIDEST = 9  # columns of a table beside its first one

MEASURES = {
    "mean": "Mean over exits",
    "half": "Mean over the lower half of the exits",
    "2x": "Score at twice the speed, counted, entropy",
    "over epochs": "Mean over the epochs of the deepest exit's score",
}
OF_GATE = ("% conflicts", "% kept")
SUMMARY = {"vanilla": "one exit", "multi": "six exits", "mpnet": "MPNet, 12 exits"}

# What two runs have in common whose difference is taken.
TO_CE = ["exits", "task", "seed"]
TO_ITSELF = ["method", *TO_CE]

# 97.5 % quantiles of Student's t for 1, 2, .. 9 degrees of freedom: half a 95 % interval in
# standard errors.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


class Block(NamedTuple):
    """What stands above a block's tables, and which numbers they show."""

    title: str
    what: str
    beside: str | None = None  # another block, to whose runs the differences are taken
    unchanged: tuple = ()  # settings to which they are taken; without any, the run's own setting
    measures: tuple = ("mean", "half", "2x")


ON_DEV = "On GLUE's dev split."
BESIDE_TABLES = "Beside the multi-exit tables, which have the ce where these have none."
ON_SLICES = "On slices of train, held out of it.  Seed 1."

BLOCKS = {
    "vanilla": Block("One exit", ON_DEV),
    "multi": Block("An exit at every layer", ON_DEV),
    "first_defaults": Block(
        "train.py's first defaults",
        "MiniLM with the settings that train.py had by default until they were tuned: RTE 8 epochs "
        "at 5e-5, MRPC 5 at 2e-5, weight 0.1, temperature 0.5; cls: the pooler of [CLS], mean: the "
        "mean of the tokens.  Differences to the tables at 1e-4, which have today's defaults.",
        beside="multi_lr1e-4",
        unchanged=("",),
    ),
    "mpnet": Block(
        "A base-size encoder, an exit at every layer",
        ON_DEV + "  MPNet, 12 layers; on a GPU.",
    ),
    "mpnet_cpu": Block(
        "The same on a CPU, as far as it went",
        ON_DEV + "  Independent of the table above: a seed draws other dropout masks there.",
    ),
    "vanilla_nt-xent": Block(
        "NT-Xent instead of SupCon, one exit",
        "Beside the table of one exit, in which ce and the same method stand.",
        beside="vanilla",
    ),
    "multi_nt-xent": Block(
        "NT-Xent instead of SupCon, an exit at every layer", BESIDE_TABLES, beside="multi"
    ),
    "multi_random-batches": Block(
        "Batches drawn at random, not by length", BESIDE_TABLES, beside="multi"
    ),
    "vanilla_random-batches": Block(
        "Batches drawn at random, one exit", "Beside the table of one exit.", beside="vanilla"
    ),
    "multi_batch64": Block("Batches of 64", BESIDE_TABLES, beside="multi"),
    "multi_best-teacher": Block("The teacher chosen by its loss", BESIDE_TABLES, beside="multi"),
    "pilot_temperature0.1": Block(
        "The pilot's runs", "RTE's dev split, one exit, weight 0.5, temperature 0.1."
    ),
    "ablate": Block(
        "Ablations",
        "At learning rate 1e-4; differences to the tables at 1e-4; none: no gate, a plain sum.",
        beside="multi_lr1e-4",
        unchanged=("",),
    ),
    "gate": Block(
        "What the gate does where gradients conflict",
        "observe: the plain sum; over epochs: mean of the deepest exit's score over the epochs "
        "(who learns earlier has more).  The demo: weight 0.1, temperature 0.07, 8 epochs, batches "
        "of 32; RTE: one epoch, one exit, weight 0.5, temperature 0.1.",
        unchanged=("observe", "ce", "all-exits"),
        measures=("over epochs",),
    ),
    "few": Block(
        "Few samples",
        "1,000 samples of SST-2's train split, 6 epochs, scored on the 2,000 after them; acl-grad "
        "with weight 0.1, temperature 0.5.",
    ),
    "tries": Block(
        "Tries",
        "What might help ACL-CL at the shallow exits, on slices of train (acl-cl weight 0.5, "
        "temperature 0.5; acl-grad 0.5, 0.1; without gate).  Differences to the setting depth.  "
        "all: mean over the tasks that every method has.",
        unchanged=("depth",),
    ),
    "tune": Block(
        "Tuning",
        ON_SLICES + "  all: mean over the tasks that every method has.",
        measures=("mean",),
    ),
    "tune_vanilla": Block("Tuning, one exit", ON_SLICES),
    "tune_nt-xent": Block("Tuning NT-Xent's weight", ON_SLICES),
    "mpnet_head_lr": Block(
        "The base-size encoder: rate of the classifiers",
        ON_SLICES + "  Encoder 5e-5, classifiers 1, 10, 20 times that.",
    ),
    "mpnet_tune": Block("The base-size encoder: learning rate", ON_SLICES),
    "multi_lr1e-4": Block(
        "At 1e-4",
        "The multi-exit tables before the tuning, which ablations stand beside: learning rate "
        "1e-4 on every task, scl and acl-grad with weight 0.5, temperature 0.1.",
    ),
}


# ------------------------------------------------------------------------- the frame of runs


def frame_of(data):
    """runs.csv with a column for whatever a table shows of a run.

        name                   'acl-cl, depth, center', the row of a table where it stands
        exit 1, ..             scores
        mean, half, ..         as MEASURES says; half and 2x where there are several exits
        % conflicts, % kept    where a gate looked

    data: packed.read()'s frames.  Tasks, methods and names are categories, which pandas sorts in
    their own order.
    """
    runs = data["runs"].rename(columns={"mean_exit_score": "mean"})
    runs["task"] = pandas.Categorical(runs.task, TASKS)
    runs["method"] = pandas.Categorical(runs.method, METHODS)
    words = ", " + runs.setting.str.replace("_", ", ")
    runs["name"] = runs.method.astype(str) + words.fillna("")
    runs["setting"] = runs.setting.fillna("")
    names = runs.sort_values(["method", "name"]).name.unique()
    runs["name"] = pandas.Categorical(runs.name, names)

    by_exit = [dict(zip(*both)) for both in zip(runs.exit_layers, runs.exit_scores)]
    by_exit = pandas.DataFrame(by_exit).sort_index(axis=1)
    runs = runs.join(by_exit.add_prefix("exit "))
    runs["exits"] = runs.exit_scores.map(len)
    lower_half = runs.exit_scores[runs.exits > 1].map(lambda scores: scores[:len(scores) // 2])
    runs["half"] = lower_half.map(mean)

    # The slowest setting that is twice as fast: the best-scoring one would be picked on dev.
    rows = data["tradeoff"]
    fast = rows[(rows.rule == "entropy") & (rows.speedup >= 2)]
    slowest = fast.loc[fast.groupby("run").speedup.idxmin()].set_index("run")
    runs["2x"] = runs.run.map(slowest.score)

    # An epoch's rows are those of its exits, the deepest last.
    deepest = data["exits"].groupby(["run", "epoch"]).accuracy.last()
    runs["over epochs"] = runs.run.map(deepest.groupby("run").mean())

    runs["% conflicts"] = 100 * runs.conflict_share
    runs["% kept"] = 100 * runs.kept
    return runs


def with_means(runs, tasks=None):
    """The runs, and for each name and seed that has all these tasks one of the task "all".

    Its scores are means over the tasks, as GLUE averages.  tasks: those of whole_tasks.
    """
    tasks = whole_tasks(runs) if tasks is None else tasks
    if len(tasks) == 1:
        return runs
    some = runs[runs.task.isin(tasks)]
    groups = grouped(some, "block", "setting", "method", "name", "exits", "seed")
    measures = columns_of(runs, [*MEASURES, *OF_GATE, "majority_score"])
    means = groups[measures].agg(mean)[groups.size() == len(tasks)].reset_index()
    means["task"] = pandas.Categorical(["all"] * len(means), TASKS)
    means["run"] = means.block + " " + means.name.astype(str)
    return pandas.concat([means, runs], ignore_index=True)


def whole_tasks(runs):
    """The tasks on which as many methods were trained as on any."""
    counts = runs.groupby("task", observed=True).method.nunique()
    return counts.index[counts == counts.max()]


def grouped(runs, *columns):
    """Groups in the order of the categories, without those that have no run."""
    return runs.groupby(list(columns), observed=True)


def columns_of(runs, measures):
    """The columns of the exits and measures that these runs have."""
    exits = [name for name in runs if name.startswith("exit ")]
    return [name for name in [*exits, *measures] if runs[name].notna().any()]


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


# ------------------------------------------------------------------------------ the tables


def table(caption, cells):
    """Markdown lines of a frame of texts; rows without any are left out, [] if none is left."""
    cells = cells.astype(object).fillna("").replace("-", "")
    cells = cells[(cells != "").any(axis=1)]
    if cells.empty:
        return []
    lines = [f"|  | {' | '.join(cells.columns)} |", "| --- |" + " ---: |" * cells.shape[1]]
    lines += [f"| {' | '.join(row)} |" for row in cells.itertuples()]
    return [caption, "", *lines, ""]


def score_tables(runs, measures):
    """Of every task each exit's score, the measures, what the gate did; in several tables."""
    lines = []
    for task, some in runs.groupby("task", observed=True):
        names = some.groupby("name", observed=True)
        cells = names[columns_of(some, [*measures, *OF_GATE])].agg(mean_sd)
        cells.index = [f"{name} ({count})" for name, count in names.size().items()]
        caption = f"**{task}**, majority class {some.majority_score.iloc[0]:.1f}"
        for start in range(0, cells.shape[1], WIDEST):
            lines += table(caption, cells.iloc[:, start:start + WIDEST])
    return lines


def tables_of(block, runs, there):
    """Each exit's scores, what the gate did, the differences to ce and to the same method.

    there: the runs to which the differences are taken; those to ce to the block's own, if any.
    """
    tasks = whole_tasks(runs)
    means, there = with_means(runs, tasks), with_means(there, tasks)
    lines = score_tables(means, block.measures)
    own = means
    keys = ["setting"]
    if block.unchanged:
        own, there = [some[some.setting.isin(block.unchanged)] for some in (own, there)]
        keys = []
    ce = own if (own.method == "ce").any() else there
    ce = ce[ce.method == "ce"]
    for to, baseline, in_common in (
        ("`ce`", ce, TO_CE), ("the same method, unchanged", there, TO_ITSELF)
    ):
        for measure in block.measures:
            groups = paired(means, baseline, measure, keys + in_common)
            cells = groups.agg(interval_cell).unstack("task")
            lines += table(f"{MEASURES[measure]}, difference to {to}:", cells)
    return lines


def summary(frame):
    """The one table of README.md: each encoder's mean over its tasks, a column each."""
    columns = {}
    for block, title in SUMMARY.items():
        means = with_means(frame[frame.block == block])
        means = means[means.task == "all"]
        ce = means[means.method == "ce"]
        first = {"majority class": mean_sd(ce.majority_score[:1]), "ce": mean_sd(ce["mean"])}
        others = paired(means, ce, "mean", TO_CE).agg(interval_cell).droplevel("task")
        columns[title] = first | others.to_dict()
    cells = pandas.DataFrame(columns).reindex(["majority class", *METHODS])
    caption = ("Accuracy (cola: Matthews' correlation) on dev, mean over tasks and exits.  ce: "
               "mean±sd over seeds.  The others: paired difference to ce, 95 % t-interval.  "
               "Empty: not run, or it needs several exits.")
    return table(caption, cells)


# ----------------------------------------------------------------------------- the command


def text_of(name, frame):
    """A block's title, what it is, its tables; empty where it has no run."""
    block = BLOCKS[name]
    runs = frame[frame.block == name]
    if runs.empty:
        return ""
    there = frame[frame.block == (block.beside or name)]
    return "\n".join([f"### {block.title}", "", block.what, "", *tables_of(block, runs, there), ""])


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
        write_between_markers("\n".join(summary(frame)), ROOT / "README.md")
    else:
        print(text.strip())


def main(argv=None):
    p = Parser("results/tables.py", description=__doc__)
    p.add_argument("--block", nargs="+", choices=BLOCKS, default=list(BLOCKS), metavar="BLOCK",
                   help=f"only these, of {', '.join(BLOCKS)}")
    p.add_argument("--packed", type=Path, default=packed.FOLDER, help="where the packed files are")
    p.add_argument("--write", action="store_true", help="into results/tables.md and README.md")
    args = p.parse_args(argv)
    with one_line_errors("results/tables.py"):
        report(args)


if __name__ == "__main__":
    main()
