"""Pictures of finished runs, small files under results/figures/; the same runs give the same bytes.

    python results/figures.py angles RUN ...            # the pilot: angles between CE's and the contrastive gradient
    python results/figures.py groups RUN                # the same per layer and step (variants.py conflict-groups)
    python results/figures.py tradeoff RUN ...          # score against counted speed-up (after python exits.py RUN ...)
    python results/figures.py space RUN ... --exit 6    # dev representations and label embeddings, before and after

RUN is a run's folder.  Runs that differ by seed alone share a label: their steps are pooled, their scores averaged.
"""

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib
matplotlib.use("Agg")                                                       # draws files, needs no screen
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import acl
import exits
import glue
from glue import InputError
from tables import read_tradeoff
from tradeoff import RULES, at_speedup, load_model, load_run, read_csv
from train import METHODS

# Okabe and Ito's colours, which can be told apart with any colour vision.
COLOURS = {"ce": "#000000", "scl": "#E69F00", "acl-embed": "#56B4E9", "acl-grad": "#0072B2", "acl-cl": "#D55E00",
           "kd": "#009E73", "spare": "#CC79A7"}
CLASSES = (("#0072B2", "o"), ("#D55E00", "^"), ("#009E73", "s"))            # colour and marker
# What a label names beside the method, if runs of one method differ in it.
OPTIONS = ("task", "exits", "epochs", "lr", "weight", "temperature", "conflict", "conflict_at", "exit_weights",
           "students_embed", "center", "change", "limit_train", "holdout", "max_steps")
# hashsalt: SVG's ids come from the content, not from chance.
plt.rcParams |= {"svg.hashsalt": "acl", "font.size": 9, "axes.titlesize": 9, "figure.constrained_layout.use": True,
                 "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}


def read_config(folder):
    try:
        return json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no run: its config.json cannot be read ({error})") from None


def by_label(folders):
    """{label: (colour, folders)}; methods in train.py's order, each with its colour unless it has several labels."""
    configs = {Path(folder): read_config(folder) for folder in folders}
    labels = {}
    for folder, config in sorted(configs.items(), key=lambda item: list(METHODS).index(item[1]["method"])):
        twins = [other for other in configs.values() if other["method"] == config["method"]]
        own = [f"{name} {config.get(name)}" for name in OPTIONS if len({other.get(name) or None for other in twins}) > 1]
        labels.setdefault(", ".join([config["method"], *own]), []).append(folder)
    if len(labels) > len(COLOURS):
        raise InputError(f"{len(labels)} kinds of run, only {len(COLOURS)} can be told apart: {'; '.join(labels)}")
    own = COLOURS if set(labels) <= set(COLOURS) else dict(zip(labels, COLOURS.values()))
    return {label: (own[label], labels[label]) for label in labels}


def legend(figure, axes, place):
    """Above or below all panels, in as many columns as fit (16 letters an inch)."""
    handles, labels = axes.get_legend_handles_labels()
    columns = int(16 * figure.get_figwidth() / (max(map(len, labels)) + 7))
    figure.legend(handles, labels, loc=f"outside {place} center", ncols=min(max(columns, 1), len(labels)))


def angles(args):
    """Left the angles of all steps; right the share of conflicts along training, in 15 bins."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    limits = [75, 105]
    for label, (colour, folders) in by_label(args.runs).items():
        rows = [row for folder in folders for row in read_csv(folder / "steps.csv") if row["angle"]]
        if not rows:
            raise InputError(f"{label}: no angle was measured; train with --conflict observe")
        # A gradient that is not finite has no angle (NaN) and is a conflict.
        points = [(int(row["step"]), float(row["angle"])) for row in rows]
        finite = [angle for _, angle in points if math.isfinite(angle)]
        limits += finite
        for look in ({"histtype": "stepfilled", "alpha": 0.2}, {"histtype": "step"}):
            left.hist(finite, range(0, 182, 2), weights=[100 / len(points)] * len(finite), color=colour, **look)
        width, bins = math.ceil(max(points)[0] / 15), {}
        for step, angle in points:
            bins.setdefault((step - 1) // width, []).append(not angle <= 90)
        share = statistics.mean(not angle <= 90 for _, angle in points)
        middles, shares = zip(*(((i + 0.5) * width, 100 * statistics.mean(bins[i])) for i in sorted(bins)))
        label += f": {100 * share:.0f} % of {len(points)} steps over 90°"
        right.plot(middles, shares, ".-", color=colour, label=label)
    left.axvline(90, color="grey", linestyle="--", linewidth=1)
    left.set(xlabel="angle between both gradients, degrees", ylabel="% of steps")
    left.set_xlim(min(limits) - 3, max(limits) + 3)
    right.set(xlabel="step", ylabel="% of steps over 90°", xlim=(0, None), ylim=(0, None))
    legend(figure, right, "upper")
    return figure


def groups(args):
    """Heat map of the cosine per group and step, and each group's share of steps in conflict."""
    path = Path(args.runs[0]) / "groups.csv"
    rows = read_csv(path) if path.is_file() else []
    if not rows:
        raise InputError(f"{path} is missing or empty; train with results/variants.py conflict-groups")
    names = list(dict.fromkeys(row["group"] for row in rows))
    cosine = torch.tensor([float(row["cosine"] or "nan") for row in rows]).view(-1, len(names)).T    # (groups, steps)
    width = math.ceil(cosine.shape[1] / 150)                                # a column is the mean of so many steps
    columns = torch.stack([part.nanmean(dim=1) for part in cosine.split(width, dim=1)], dim=1)       # (groups, columns)
    share = [100 * (row[~row.isnan()] < 0).double().mean().item() for row in cosine]
    limit = columns[~columns.isnan()].abs().quantile(0.98).item()           # a few outliers must not pale the rest
    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.3 * len(names)))
    image = axes.imshow(columns, cmap="RdBu", vmin=-limit, vmax=limit, origin="lower", aspect="auto",
                        interpolation="none", extent=(0.5, 0.5 + width * columns.shape[1], -0.5, len(names) - 0.5))
    axes.set_facecolor("lightgrey")
    axes.set_yticks(range(len(names)), [f"{name}  " + ("not shared" if math.isnan(below) else f"{below:.0f} %")
                                        for name, below in zip(names, share)])
    axes.set_title("cosine between both gradients; beside each group its share of steps below 0", loc="left")
    axes.set_xlabel("step" if width == 1 else f"step (a column is the mean of {width})")
    figure.colorbar(image, label="cosine", extend="both", pad=0.02)
    return figure


def tradeoff(args):
    """Mean and ±1 sd over seeds of the score at counted speed-ups, a panel for each rule.

    At each speed-up a run enters with its slowest setting at least that fast, chosen by speed alone: a Pareto front
    would be picked on dev.  A line ends where some run has no setting that fast.
    """
    rules, speeds = [args.rule] if args.rule else list(RULES), [1 + i / 20 for i in range(61)]
    down, across = math.ceil(len(rules) / 2), min(len(rules), 2)
    figure, panels = plt.subplots(down, across, figsize=(3 + 3 * across, 1 + 2.5 * down), sharex=True, sharey=True,
                                  squeeze=False)
    for label, (colour, folders) in by_label(args.runs).items():
        tables = [read_tradeoff(folder / "tradeoff.csv") for folder in folders]
        for rule, axes in zip(rules, panels.flat):
            found = [[at_speedup(rows, rule, speed) for rows in tables] for speed in speeds]
            scores = [[math.nan if None in some else row["score"] for row in some] for some in found]
            scores = torch.tensor(scores, dtype=torch.float64)                                       # (speeds, seeds)
            mean, sd = scores.mean(dim=1), scores.std(dim=1, correction=min(1, len(tables) - 1))
            axes.plot(speeds, mean, color=colour, label=f"{label} ({len(tables)})")
            axes.fill_between(speeds, mean - sd, mean + sd, color=colour, alpha=0.12, linewidth=0)
            axes.set_title(rule)
    figure.supxlabel("counted speed-up", fontsize=9)
    task = read_config(args.runs[0])["task"]
    figure.supylabel(f"{task}, dev {glue.TASKS[task].metrics[0]}, mean ± sd (seeds)", fontsize=9)
    legend(figure, panels[0, 0], "upper")
    return figure


def space(args):
    """Dev representations of one exit with the label embeddings among them, before and after training.

    Each panel is a PCA of its own, so that distances compare within a panel, not between two.
    """
    before, after = {}, []
    for folder in args.runs:
        config, result, _, _ = load_run(folder)
        if args.exit not in config["exit_layers"]:
            raise InputError(f"{folder} has no exit {args.exit}, only {config['exit_layers']}")
        splits = glue.load_task(config["task"], config["data"], config["limit_train"], config["holdout"])
        dev = splits[next(iter(result["dev"]))]
        dev = dev.select(range(len(dev))[:1000])                            # QQP's 40,000 dots would be a blot
        start = str([config[name] for name in ("task", "model", "pooling", "exit_layers", "seed")])
        if start not in before:                                             # runs of one seed start from one model
            before[start] = (f"before training, seed {config['seed']}", config, dev, *untrained(config))
        after.append((f"{config['method']}, seed {config['seed']}", config, dev, *load_model(folder, config)))
    panels = [*before.values(), *after]
    figure, all_axes = plt.subplots(1, len(panels), figsize=(2.7 * len(panels), 3.4), squeeze=False)
    for axes, panel in zip(all_axes.flat, panels):
        draw_space(axes, args.exit, *panel)
    legend(figure, axes, "lower")
    return figure


def untrained(config):
    """The model and tokenizer as train.run has them before step 1: the seed decides what is new in the model."""
    torch.manual_seed(config["seed"])
    encoder, tokenizer = exits.demo_encoder() if config["task"] == "demo" else exits.load_encoder(config["model"])
    return exits.MultiExitBert(encoder, config["num_labels"], config["exit_layers"], config["pooling"]), tokenizer


def draw_space(axes, layer, title, config, dev, model, tokenizer):
    dev, labels = glue.tokenize(dev, tokenizer, config["max_length"]), torch.tensor(dev["label"][:])           # .., (R,)
    index = config["exit_layers"].index(layer)
    h = exits.all_exits(model, dev, tokenizer, torch.device("cpu"), len(dev))[0][index]                                   # (R, d)
    rows = model.classifiers[index].weight.detach()                                                  # (K, d)
    dots, stars, share = plane(h, rows)
    for k, (colour, marker) in enumerate(CLASSES[:len(rows)]):
        axes.scatter(*dots[labels == k].T, s=7, color=colour, marker=marker, alpha=0.4, linewidths=0)
    for k, (colour, _) in enumerate(CLASSES[:len(rows)]):
        name = f"{glue.TASKS[config['task']].labels[k]} (star: its label embedding)"
        axes.scatter(*stars[k], s=220, color=colour, marker="*", edgecolors="black", label=name)
    cosine = acl.geometry(h, labels, rows)["label_cosine"]
    axes.set_title(f"{title}\nlabel cosine {cosine:.2f}, plane holds {100 * share:.0f} %")
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(True)


def plane(h, rows):
    """PCA in the plane of samples h (R, d) and label embeddings rows (K, d) together, each at length 1.

    Returns both in the plane, (R, 2) and (K, 2), and the share of the variance it holds.  PCA leaves an axis's sign
    open: here the last label embedding lies right of and above the first, so that panels look alike.
    """
    items = F.normalize(torch.cat([h, rows]).double(), dim=-1)                                       # (R + K, d)
    items = items - items.mean(dim=0)
    _, scale, axes = torch.linalg.svd(items, full_matrices=False)
    flat = items @ axes[:2].T                                                                        # (R + K, 2)
    flat = flat * torch.where(flat[-1] < flat[len(h)], -1.0, 1.0)
    return flat[:len(h)], flat[len(h):], (scale[:2].square().sum() / scale.square().sum()).item()


def main(argv=None):
    p = argparse.ArgumentParser(prog="figures.py", description="Pictures of finished runs.")
    commands = p.add_subparsers(dest="command", required=True)
    for draw in (angles, groups, tradeoff, space):
        command = commands.add_parser(draw.__name__, help=draw.__doc__.splitlines()[0])
        command.add_argument("runs", nargs=1 if draw is groups else "+", metavar="RUN", help="a run's folder")
        command.add_argument("--output", type=Path, help=f".png or .svg (results/figures/{draw.__name__}_TASK.png)")
        command.set_defaults(draw=draw)
    commands.choices["tradeoff"].add_argument("--rule", choices=RULES, help="only this one (all)")
    commands.choices["space"].add_argument("--exit", type=int, required=True, help="layer number of the exit")
    for parser in (p, *commands.choices.values()):
        parser.error = lambda message: p.exit(2, f"figures.py: {message}; see python results/figures.py --help\n")
    args = p.parse_args(argv)
    try:
        name = f"{args.command}_{read_config(args.runs[0])['task']}.png"       # smaller than SVG here
        path = args.output or ROOT / "results" / "figures" / name
        figure = args.draw(args)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Neither date nor version in the file, so that redrawing changes nothing.
        metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
        figure.savefig(path, dpi=110, metadata=metadata)
        print(path)
        return 0
    except (InputError, OSError) as error:
        print(f"figures.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
