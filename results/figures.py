"""Pictures of finished runs; the same runs give the same bytes.

    python results/figures.py                        # redraw those of results/figures but space
    python results/figures.py idea                   # what each loss does to vectors in the plane
    python results/figures.py differences            # of each method to ce, in the packed runs
    python results/figures.py angles RUN ..          # angles between both losses' gradients
    python results/figures.py groups RUN             # the same by layer, of a run of
                                                     # variants.py conflict-groups
    python results/figures.py tradeoff RUN ..        # score against counted speed-up
    python results/figures.py space RUN .. --exit 6  # representations and label embeddings

RUN is the folder of a run of your own, or the name of packed runs, in which * stands for anything:
"multi/mrpc_*".  A picture goes into the working folder, angles.png say, or where --output says.
Runs that differ in their seed alone share a label: their steps are pooled, their scores averaged.
space runs the model, so it needs a folder that still has it.
"""

import argparse
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
import exits
import glue
from results import packed, tables
from tools import machine, models
from tools.errors import InputError, Parser, one_line_errors
from tools.geometry import geometry
from tools.report import settings
from tools.run import in_conflict, read_run, run_folders
from tools.tradeoff import EXIT_RULES, at_speedup, dev_split

# Okabe and Ito's colours, which can be told apart with any colour vision.
COLOURS = {
    "ce": "#000000",
    "scl": "#E69F00",
    "acl-embed": "#56B4E9",
    "acl-grad": "#0072B2",
    "acl-cl": "#D55E00",
    "kd": "#009E73",
}
CLASS_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#000000")

# The pictures of both READMEs that need no model.
COMMITTED = (
    "idea --output results/figures/idea.png",
    "differences --output results/figures/differences.png",
    "angles pilot_temperature0.1/* multi/rte_acl-cl_[1-3] --output results/figures/angles_rte.png",
    "groups pilot_temperature0.1/rte_scl_1 --output results/figures/groups_rte.png",
    "tradeoff multi/mrpc_* --output results/figures/tradeoff_mrpc.png",
    "tradeoff multi/sst2_* --output results/figures/tradeoff_sst2.png",
)

plt.switch_backend("Agg")  # draws files, needs no screen
plt.rcParams |= {
    "svg.hashsalt": "acl",  # SVG's ids come from the content, not from chance
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
    frames = packed.read()._asdict()
    names = []
    for word in words:
        if Path(word).is_dir():
            found = []
            for folder in run_folders([word]):
                found.append(str(folder))
                for kind, rows in packed.frames_of(folder, str(folder)).items():
                    frames[kind] = pandas.concat([frames[kind], rows])
        else:
            found = fnmatch.filter(frames["runs"].run, word)
        if not found:
            raise InputError(f"{word} is neither a folder nor the name of packed runs")
        names += found
    frames = {kind: rows[rows.run.isin(names)] for kind, rows in frames.items()}
    if frames["runs"].task.nunique() > 1:
        raise InputError("these runs are of several tasks: draw one at a time")
    return frames


def by_label(runs):
    """[(label, colour, names of runs)]; a method that has several labels takes other colours."""
    columns = ["task", "method", "exit_layers", *packed.SETTINGS]
    labels = settings(runs.reset_index(drop=True)[columns]).to_numpy()
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
        for k, colour in enumerate(CLASS_COLOURS[:3]):
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


def groups(args):
    """Heat map of the cosine per group and step, and each group's share of steps in conflict."""
    rows = read_runs(args.runs)["groups"]
    if rows.run.nunique() != 1:
        raise InputError("name one run that was trained with results/variants.py conflict-groups")

    # A column is the mean of so many steps; a few outliers must not pale the rest.
    width = math.ceil(rows.step.max() / 150)
    rows = rows.assign(column=(rows.step - 1) // width * width + (width + 1) / 2)
    cosines = rows.pivot_table("cosine", "group", "column", sort=False)
    limit = cosines.stack().abs().quantile(0.98)

    shares = 100 * (rows.cosine < 0).groupby(rows.group).mean()
    names = [f"{group}  {shares[group]:.0f} %" for group in cosines.index]
    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.3 * len(names)))
    image = axes.pcolormesh(cosines.columns, names, cosines, cmap="RdBu", vmin=-limit, vmax=limit)
    axes.set_title(
        "cosine between both gradients; beside each group its share of steps below 0", loc="left"
    )
    axes.set_xlabel("step" if width == 1 else f"step (a column is the mean of {width})")
    figure.colorbar(image, label="cosine", extend="both", pad=0.02)
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


# ------------------------------------------------------------- samples, label embeddings


def space(args):
    """Dev samples of one exit with the label embeddings among them, before and after training.

    Before: the first run's model as train.py started with it.  Each panel is a PCA of its own, so
    that distances compare within a panel, not between two.
    """
    machine.quiet_libraries()
    runs = [read_run(folder) for folder in args.runs]
    config = runs[0].config
    untrained = models.build_model(
        argparse.Namespace(**config), config["seed"], config["num_labels"], "cpu"
    )
    panels = [(f"before training, seed {config['seed']}", runs[0], *untrained)]
    for run in runs:
        trained = models.load_model(run.folder, run.config)
        panels.append((f"{run.config['method']}, seed {run.config['seed']}", run, *trained))

    figure, all_axes = plt.subplots(1, len(panels), figsize=(2.7 * len(panels), 3.4))
    for axes, (title, run, model, tokenizer) in zip(all_axes, panels):
        layers = run.config["exit_layers"]
        layer = args.exit or layers[-1]
        if layer not in layers:
            raise InputError(f"{run.folder} has no exit {layer}, only {layers}")
        split = dev_split(run)
        split = split.select(range(len(split))[:1000])  # QQP's 40,000 dots would be a blot
        labels = torch.tensor(split["label"][:])  # (R,)
        tokens = glue.tokenize(split, tokenizer, run.config["max_length"])
        h, _ = exits.all_exits(model, tokens, tokenizer, torch.device("cpu"), keep_h=len(tokens))
        index = layers.index(layer)
        label_embeddings = model.label_embeddings()[index].detach()  # (K, d)
        draw_space(axes, title, h[index], labels, label_embeddings)
    stars = [f"{name} (star: its label embedding)" for name in config["labels"]]
    figure.legend(axes.collections[1::2], stars, loc="outside lower center", ncols=2)
    return figure


def draw_space(axes, title, h, labels, label_embeddings):
    """One panel: samples h (R, d) as dots, label embeddings (K, d) as stars, a class a colour."""
    dots, stars, share = plane(h, label_embeddings)
    for k in range(len(stars)):
        colour = CLASS_COLOURS[k % 6]
        x, y = dots[labels == k].T
        axes.scatter(x, y, s=7, color=colour, marker="o^s"[k % 3], alpha=0.4, linewidths=0)
        axes.scatter(*stars[k], s=220, color=colour, marker="*", edgecolors="black", zorder=3)
    cosine = geometry(h, labels, label_embeddings)["label_cosine"]
    axes.set_title(f"{title}\nlabel cosine {cosine:.2f}, plane holds {100 * share:.0f} %")
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(True)


def plane(h, label_embeddings):
    """PCA of samples h (R, d) and label embeddings (K, d) together, each at length 1.

    Returns both in the plane, (R, 2) and (K, 2), and the share of the variance it holds.  PCA
    leaves an axis's sign open: here the last label embedding lies right of and above the first,
    so that panels look alike.
    """
    z = F.normalize(torch.cat([h, label_embeddings]).double(), dim=-1)  # (R + K, d)
    z = z - z.mean(dim=0)
    _, scale, axes = torch.linalg.svd(z, full_matrices=False)
    flat = z @ axes[:2].T  # (R + K, 2)
    first, last = flat[len(h)], flat[-1]
    flat = flat * torch.where(last < first, -1.0, 1.0)
    variance = scale.square()
    return flat[:len(h)], flat[len(h):], (variance[:2].sum() / variance.sum()).item()


# ----------------------------------------------------------------------------- the command

PICTURES = {
    "idea": idea,
    "differences": differences,
    "angles": angles,
    "groups": groups,
    "tradeoff": tradeoff,
    "space": space,
}


def draw(args):
    """Draw and save one picture; prints where it is."""
    figure = PICTURES[args.picture](args)
    path = args.output or Path(f"{args.picture}.png")

    # Neither date nor version in the file, so that redrawing changes nothing.
    metadata = {"Software": None}
    if path.suffix in (".svg", ".pdf"):
        metadata = {"Creator": None, "Date" if path.suffix == ".svg" else "CreationDate": None}
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
    p.add_argument("--exit", type=int, help="space: layer number of the exit (the deepest)")
    args = p.parse_args(argv)
    if args.picture in ("angles", "groups", "tradeoff", "space") and not args.runs:
        p.error(f"{args.picture} of which RUN?")
    return args


def main(argv=None):
    args = parse_args(argv)
    jobs = [args] if args.picture else [parse_args(line.split()) for line in COMMITTED]
    with one_line_errors("results/figures.py"):
        for job in jobs:
            draw(job)


if __name__ == "__main__":
    main()
