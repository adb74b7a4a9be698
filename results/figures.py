"""Pictures of finished runs; the same runs give the same bytes.

    python results/figures.py                        # redraw those of results/figures
    python results/figures.py idea                   # what each loss does to vectors in the plane
    python results/figures.py differences            # of each method to ce, in the packed runs
    python results/figures.py angles RUN ..          # angles between both losses' gradients
    python results/figures.py tradeoff RUN ..        # score against counted speed-up

RUN is the folder of a run of your own, or the name of packed runs, in which * stands for anything:
"multi/mrpc_*".  A picture goes into the working folder, angles.png say, or where --output says.
Runs that differ in their seed alone share a label: their steps are pooled, their scores averaged.
"""

import fnmatch
import math
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import acl
from results import packed, tables
from tools.errors import InputError, Parser, one_line_errors
from tools.report import settings
from tools.run import in_conflict, run_folders
from tools.tradeoff import EXIT_RULES, at_speedup

# Okabe and Ito's colours, which can be told apart with any colour vision.
COLOURS = {
    "ce": "#000000",
    "scl": "#E69F00",
    "acl-embed": "#56B4E9",
    "acl-grad": "#0072B2",
    "acl-cl": "#D55E00",
    "kd": "#009E73",
}

# The pictures of both READMEs.
COMMITTED = (
    "idea --output results/figures/idea.png",
    "differences --output results/figures/differences.png",
    "angles pilot_temperature0.1/* multi/rte_acl-cl_[1-3] --output results/figures/angles_rte.png",
    "tradeoff multi/mrpc_* --output results/figures/tradeoff_mrpc.png",
    "tradeoff multi/sst2_* --output results/figures/tradeoff_sst2.png",
)

plt.switch_backend("Agg")  # draws files, needs no screen
plt.rcParams |= {
    "font.size": 9,
    "axes.titlesize": 9,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


# ------------------------------------------------------------------------ runs, their labels


def read_runs(words):
    """Folders and names of packed runs -> {"runs": frame, "steps": frame, ..} of packed.py.

    Raises InputError.
    """
    if not words:
        raise InputError("of which RUN?")
    frames = packed.read()
    chosen = set()
    for word in words:
        names = fnmatch.filter(frames["runs"].run, word)
        if not names and not Path(word).is_dir():
            raise InputError(f"{word} is neither a folder nor the name of packed runs")
        for folder in [] if names else run_folders([word]):
            names.append(str(folder))
            for kind, rows in packed.frames_of(folder, str(folder)).items():
                frames[kind] = pandas.concat([frames[kind], rows], ignore_index=True)
        chosen.update(names)
    frames = {kind: rows[rows.run.isin(chosen)] for kind, rows in frames.items()}
    if frames["runs"].task.nunique() > 1:
        raise InputError("these runs are of several tasks: draw one at a time")
    return frames


def by_label(runs):
    """[(label, colour, names of runs)]; a method that has several labels takes other colours."""
    labels = settings(runs[["task", "method", "exit_layers", *packed.SETTINGS]])
    groups = runs.groupby(labels, sort=False).run
    kinds = []
    for number, (label, names) in enumerate(groups):
        colour = COLOURS.get(label, plt.cm.turbo(number / len(groups)))
        kinds.append((label, colour, names))
    return kinds


# ------------------------------------------------------------------------------ the idea


def idea(args):
    """Four panels: a random start, and where 150 steps of gradient descent on each loss lead."""
    torch.manual_seed(1)
    labels = torch.arange(45) % 3
    h, label_embeddings = torch.randn(45, 2), torch.randn(3, 2)
    losses = {
        "cross-entropy": lambda h, l: F.cross_entropy(h @ l.T, labels),
        "SCL": lambda h, l: acl.scl_loss(h, labels, temperature=0.5),
        "ACL-Embed": lambda h, l: acl.acl_embed_loss(h, labels, l, temperature=0.5),
    }
    panels = {"start": (h, label_embeddings)}
    for name, loss in losses.items():
        panels[name] = descend(loss, h, label_embeddings)

    figure, all_axes = plt.subplots(1, 4, figsize=(9, 2.7))
    for axes, (name, (h, label_embeddings)) in zip(all_axes, panels.items()):
        axes.set(title=name, xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal")
        axes.axis("off")
        axes.add_patch(plt.Circle((0, 0), 1, fill=False, color="lightgrey"))
        for k, colour in enumerate(("#0072B2", "#D55E00", "#009E73")):
            x, y = acl.unit(h)[labels == k].T
            axes.plot(x, y, "o^s"[k], color=colour, markersize=6, alpha=0.5, markeredgewidth=0)
            end = 1.3 * acl.unit(label_embeddings)[k]
            look = {"arrowstyle": "-|>", "color": colour, "linewidth": 2}
            axes.annotate("", xy=end.tolist(), xytext=(0, 0), arrowprops=look)
    figure.supxlabel("dots: 45 samples of three classes; arrows: the label embeddings; both as "
                     "directions", fontsize=9)
    return figure


def descend(loss, h, label_embeddings, steps=150, lr=10.0):
    """Both after plain gradient descent on loss(h, label_embeddings)."""
    vectors = [x.clone().requires_grad_() for x in (h, label_embeddings)]
    optimizer = torch.optim.SGD(vectors, lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(*vectors).backward()
        optimizer.step()
    return [x.detach() for x in vectors]


# ----------------------------------------------------------------------------- the differences


def differences(args):
    """Each method minus cross-entropy, by task: mean over seeds and 95 % interval, paired by seed.

    A panel for each block of the summary table; scores are means over the exits.
    """
    runs = tables.frame_of(packed.read())
    figure, all_axes = plt.subplots(
        1, len(tables.SUMMARY), figsize=(9, 4.2), sharex=True, sharey=True
    )
    methods = list(COLOURS)[1:]
    tasks = tables.TASKS[:5]  # without the demo
    bars = {}
    for axes, (block, title) in zip(all_axes, tables.SUMMARY.items()):
        means = tables.with_means(runs[runs.block == block])
        ce = means[means.method == "ce"]
        groups = tables.paired(means, ce, "mean", tables.TO_CE)
        for (method, task), values in groups:
            middle, half = tables.interval(values)
            place = methods.index(method)
            y = tasks.index(task) + (place - 2) * 0.15
            look = {"fmt": "osD^v"[place], "color": COLOURS[method], "markersize": 4}
            bars[method] = axes.errorbar(middle, y, xerr=half, **look)
        axes.axvline(0, color="grey", linewidth=1)
        axes.set(title=title, xlabel="points above cross-entropy")
        for edge in range(1, len(tasks)):
            axes.axhline(edge - 0.5, color="lightgrey", linewidth=0.5)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set_yticks(range(len(tasks)), ["all tasks", *tasks[1:]])
    figure.legend(bars.values(), bars, loc="outside upper center", ncols=len(bars))
    return figure


# ---------------------------------------------------------------------------- the angles


def angles(args):
    """Left the angles of all steps; right the share of conflicts along training, in 15 bins."""
    frames = read_runs(args.runs)
    kinds = by_label(frames["runs"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4 + 0.2 * len(kinds)))
    for label, colour, names in kinds:
        steps = frames["steps"]
        steps = steps[steps.run.isin(names) & steps.kept.notna()]  # those that measured it
        if steps.empty:
            raise InputError(f"{label}: no angle was measured; train with --conflict observe")

        # A gradient that is not finite has no angle (NaN) and is a conflict.
        found = steps.angle.dropna()
        share_of_each = [100 / len(steps)] * len(found)
        left.hist(found, range(0, 182, 2), weights=share_of_each, histtype="stepfilled",
                  facecolor=(colour, 0.2), edgecolor=colour)

        # The share of conflicts in each bin of steps.
        is_conflict = in_conflict(steps)
        width = math.ceil(steps.step.max() / 15)
        shares = 100 * is_conflict.groupby((steps.step - 1) // width).mean()
        label += f": {100 * is_conflict.mean():.0f} % of {len(steps)} steps over 90°"
        right.plot((shares.index + 0.5) * width, shares, ".-", color=colour, label=label)
    left.axvline(90, color="grey", linestyle="--", linewidth=1)
    left.set(xlabel="angle between both gradients, degrees", ylabel="% of steps")
    left.set_xlim(0, max(105, frames["steps"].angle.max() + 3))
    right.set(xlabel="step", ylabel="% of steps over 90°", xlim=(0, None), ylim=(0, None))
    figure.legend(loc="outside upper center")
    return figure


# -------------------------------------------------------------------------- the trade-off


def tradeoff(args):
    """Mean and ±1 sd over seeds of the score at counted speed-ups.

    At each speed-up a run enters with its slowest setting at least that fast, chosen by speed
    alone: a Pareto front would be picked on dev.  A line ends where some run has no setting that
    fast.
    """
    frames = read_runs(args.runs)
    runs, rows = frames["runs"], frames["tradeoff"]
    runs = runs[runs.run.isin(rows.run)]
    if runs.empty:
        raise InputError("none of these runs has several exits; train one with --exits all")
    kinds = by_label(runs)
    speeds = [1 + i / 20 for i in range(61)]
    longest = max(len(label) for label, _, _ in kinds)
    columns = max(1, 66 // (longest + 14))  # of the legend: as many as fit
    lines = math.ceil((len(kinds) + 1) / columns)
    figure, axes = plt.subplots(figsize=(6, 3.2 + 0.2 * lines))
    for number, (label, colour, names) in enumerate(kinds):
        scores = pandas.DataFrame(index=speeds)  # a column a run
        for name in names:
            of_run = rows[rows.run == name]
            found = [at_speedup(of_run, args.rule, speed) for speed in speeds]
            scores[name] = [math.nan if row is None else row.score for row in found]
        mean = scores.mean(axis=1, skipna=False)
        sd = scores.std(axis=1, skipna=False, ddof=min(1, len(names) - 1))
        # A marker of its own tells a method apart without colour.
        look = {"marker": "osD^vPX"[number % 7], "markevery": (number, 10), "markersize": 5}
        axes.plot(speeds, mean, color=colour, label=f"{label} ({len(names)})", **look)
        axes.fill_between(speeds, mean - sd, mean + sd, color=colour, alpha=0.12, linewidth=0)
    one = runs.iloc[0]
    axes.axhline(one.majority_score, color="grey", linestyle=":", label="majority class")
    axes.set(title=args.rule, xlabel="counted speed-up")
    axes.set_ylabel(f"{one.task}, dev {one.metric}, mean ± sd (seeds)")
    figure.legend(loc="outside upper center", fontsize="small", ncols=columns)
    return figure


# ----------------------------------------------------------------------------- the command

PICTURES = {"idea": idea, "differences": differences, "angles": angles, "tradeoff": tradeoff}


def draw(args):
    """Draw and save one picture; prints where it is."""
    figure = PICTURES[args.picture](args)
    path = args.output or Path(f"{args.picture}.png")

    # PNG's metadata would name the version of matplotlib.
    metadata = {"Software": None} if path.suffix == ".png" else {}
    figure.savefig(path, dpi=110, metadata=metadata)
    plt.close("all")
    print(path)


def parse_args(argv):
    p = Parser("results/figures.py", description=__doc__)
    p.add_argument("picture", nargs="?", choices=PICTURES, help="see above")
    p.add_argument("runs", nargs="*", metavar="RUN", help="a folder, or the name of packed runs")
    p.add_argument("--output", type=Path, metavar="FILE", help="a .png, .svg or .pdf (PICTURE.png)")
    p.add_argument("--rule", choices=EXIT_RULES, default="entropy",
                   help="tradeoff: the exit rule (%(default)s)")
    args = p.parse_args(argv)
    if args.output and args.output.suffix not in (".png", ".svg", ".pdf"):
        p.error(f"--output {args.output} must end in .png, .svg or .pdf")
    return args


def main(argv=None):
    args = parse_args(argv)
    jobs = [args] if args.picture else [parse_args(line.split()) for line in COMMITTED]
    with one_line_errors("results/figures.py"):
        for job in jobs:
            draw(job)


if __name__ == "__main__":
    main()
