"""Pictures of finished runs: small SVG or PNG files under results/figures/, the same bytes each time for the same runs.

    python results/figures.py angles RUN ...           # pilot: angles between CE's and the contrastive gradient
    python results/figures.py groups RUN               # the same cosine per layer and step (train.py --conflict-groups)
    python results/figures.py tradeoff RUN ...         # score against counted speed-up (after exits.py RUN ..)
    python results/figures.py space RUN ... --exit 6   # dev representations and label embeddings before and after training

RUN is a run's folder.  Runs that differ only by seed are pooled or averaged under one label.  --output picks file and format.
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
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import acl
import exits
import glue
from glue import InputError
from tables import read_tradeoff
from train import METHODS, read_csv

# Okabe and Ito's colours, told apart with any colour vision.
COLOURS = {"ce": "#000000", "scl": "#E69F00", "acl-embed": "#56B4E9", "acl-grad": "#0072B2", "acl-cl": "#D55E00", "kd": "#009E73"}
CLASSES = (("#0072B2", "o"), ("#D55E00", "^"), ("#009E73", "s"))        # colour and marker
# Of these a label names what differs between the runs of one method.
APART = ("task", "exits", "conflict", "conflict_at", "weight", "temperature", "exit_weights", "students_embed", "center")
ROWS = 1000                                                             # dots in a picture of the space: QQP has 40,000
# hashsalt: SVG's ids come from the content, not from chance.  fonttype: letters as outlines look alike everywhere.
plt.rcParams |= {"svg.hashsalt": "acl", "svg.fonttype": "path", "font.size": 9, "axes.spines.top": False,
                 "axes.spines.right": False, "legend.frameon": False, "figure.constrained_layout.use": True}


def save(figure, path):
    """Without date and version, so that redrawing changes nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    svg = path.suffix == ".svg"
    figure.savefig(path, dpi=100, metadata={"Date": None, "Creator": None} if svg else {"Software": None})
    print(path)


def read_config(folder):
    try:
        return json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no run: its config.json cannot be read ({error})") from None


def by_label(folders):
    """{label: folders of the runs that differ by seed alone}, methods in train.py's order."""
    configs = {Path(folder): read_config(folder) for folder in folders}
    groups = {}
    for folder, config in sorted(configs.items(), key=lambda item: list(METHODS).index(item[1]["method"])):
        twins = [c for c in configs.values() if c["method"] == config["method"]]
        apart = [f"{name} {config[name]}" for name in APART if len({c[name] for c in twins}) > 1]
        groups.setdefault(", ".join([config["method"], *apart]), []).append(folder)
    return groups


def colours(labels):
    """A method's own colour; where a method has several labels, one colour after the other."""
    spare = list(COLOURS.values())
    return {label: COLOURS.get(label) if set(labels) <= set(COLOURS) else spare[i % len(spare)] for i, label in enumerate(labels)}


def angles(args):
    """Left the angles of all steps, right the share of conflicts along training."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    runs = {label: [row for folder in folders for row in read_csv(folder / "steps.csv") if row["angle"]]
            for label, folders in by_label(args.runs).items()}
    for label, colour in colours(runs).items():
        if not runs[label]:
            raise InputError(f"{label}: no angle was measured; train with --conflict observe")
        # A gradient that is not finite has no angle (NaN), and is a conflict.
        points = [(int(row["step"]), float(row["angle"])) for row in runs[label]]
        finite = [angle for _, angle in points if math.isfinite(angle)]
        share = 100 * statistics.mean(not angle <= 90 for _, angle in points)
        style = {"bins": range(0, 181, 3), "weights": [100 / len(points)] * len(finite), "color": colour}
        left.hist(finite, histtype="stepfilled", alpha=0.2, **style)
        left.hist(finite, histtype="step", linewidth=1.3, label=f"{label}: {share:.0f} % of {len(points)} steps over 90°", **style)
        width = math.ceil(max(step for step, _ in points) / args.bins)
        bins = {}
        for step, angle in points:
            bins.setdefault((step - 1) // width, []).append(not angle <= 90)
        right.plot([(i + 0.5) * width for i in sorted(bins)], [100 * statistics.mean(bins[i]) for i in sorted(bins)],
                   marker="o", markersize=3, color=colour)
    left.axvline(90, color="grey", linestyle="--", linewidth=1)
    low, high = left.dataLim.intervalx
    left.set(xlabel="angle between the gradients, degrees", ylabel="% of steps", xticks=range(0, 181, 15))
    left.set_xlim(min(low, 60), max(high, 120))
    right.set(xlabel=f"step (bins of {width})", ylabel="% of steps over 90°", ylim=(0, None), xlim=(0, None))
    figure.legend(loc="outside upper center", ncols=min(len(runs), 3))
    return figure


def groups(args):
    """Heat map of the cosine per group and step; beside each group its share of conflicts."""
    folder = Path(args.runs[0])
    read_config(folder)
    if not (folder / "groups.csv").is_file():
        raise InputError(f"{folder} has no groups.csv; train with --conflict-groups")
    rows = read_csv(folder / "groups.csv")
    names = list(dict.fromkeys(row["group"] for row in rows))
    cosine = torch.tensor([float(row["cosine"] or "nan") for row in rows]).view(-1, len(names)).T      # (groups, steps)
    width = math.ceil(cosine.shape[1] / args.columns)
    binned = torch.stack([part.nanmean(dim=1) for part in cosine.split(width, dim=1)], dim=1)          # (groups, columns)
    limit = max(binned[~binned.isnan()].abs().quantile(0.98).item(), 0.05)
    figure, axes = plt.subplots(figsize=(9, 0.6 + 0.32 * len(names)))
    axes.set_facecolor("lightgrey")                                                                    # blank: not shared
    image = axes.imshow(binned, aspect="auto", origin="lower", cmap="RdBu", vmin=-limit, vmax=limit, interpolation="none",
                        extent=(0.5, 0.5 + width * binned.shape[1], -0.5, len(names) - 0.5))
    share = [100 * (row[~row.isnan()] < 0).double().mean().item() for row in cosine]
    axes.set_yticks(range(len(names)), [f"{name}  " + ("-" if math.isnan(s) else f"{s:3.0f} %") for name, s in zip(names, share)])
    axes.set(xlabel="step" + (f" (mean of {width})" if width > 1 else ""))
    axes.set_title("group and its share of steps below 0", loc="left", x=-0.1, fontsize=9)
    figure.colorbar(image, label="cosine", extend="both", pad=0.02)
    return figure


def tradeoff(args):
    """Mean and ±1 sd over seeds of the score at a counted speed-up: a panel for each rule.

    A run enters at each speed-up with the slowest setting at least that fast, chosen by speed alone; a Pareto front would be
    picked on dev.  A line ends where some run has no setting that fast.
    """
    rules = [args.rule] if args.rule else list(exits.RULES)
    groups, speeds = by_label(args.runs), [1 + i / 20 for i in range(61)]
    across = min(len(rules), 2)
    down = math.ceil(len(rules) / across)
    figure, panels = plt.subplots(down, across, figsize=(4.5 * across, 0.5 + 2.7 * down), sharex=True, sharey=True, squeeze=False)
    tables = {label: [read_tradeoff(folder / "tradeoff.csv") for folder in folders] for label, folders in groups.items()}
    for axes, rule in zip(panels.flat, rules):
        for label, colour in colours(groups).items():
            found = [[exits.at_speedup(rows, rule, speed) for rows in tables[label]] for speed in speeds]
            scores = [[row["score"] for row in some] if None not in some else [math.nan] for some in found]
            mean = torch.tensor([statistics.mean(some) for some in scores])
            sd = torch.tensor([statistics.stdev(some) if len(some) > 1 else 0.0 for some in scores])
            axes.plot(speeds, mean, color=colour, linewidth=1.3, label=f"{label} ({len(tables[label])})")
            axes.fill_between(speeds, mean - sd, mean + sd, color=colour, alpha=0.12, linewidth=0)
        axes.set_title(rule, fontsize=9)
    metric = glue.TASKS[read_config(args.runs[0])["task"]].metrics[0]
    figure.supxlabel("counted speed-up", fontsize=9)
    figure.supylabel(f"dev {metric}, mean and ±1 sd over seeds", fontsize=9)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=min(len(groups), 6))
    return figure


def untrained(config):
    """The model and tokenizer as train.run has them before step 1: the seed decides the heads."""
    torch.manual_seed(config["seed"])
    if config["task"] == "demo":
        tokenizer = glue.demo_tokenizer()
        encoder = exits.demo_encoder(len(tokenizer))
    else:
        encoder, tokenizer = exits.load_encoder(config["model"])
    return exits.MultiExitBert(encoder, config["num_labels"], config["exit_layers"], config["pooling"]), tokenizer


def plane(h, rows):
    """PCA of the samples h (R, d) and label embeddings rows (K, d) together, all at length 1.

    Returns (R, 2), (K, 2) and the share of the variance the plane holds.  Axes are turned so that the last class's samples
    lie right of the first's: PCA's signs are arbitrary, and panels could not be compared."""
    items = F.normalize(torch.cat([h, rows]).double(), dim=-1)                                         # (R + K, d)
    items = items - items.mean(dim=0)
    _, scale, axes = torch.linalg.svd(items, full_matrices=False)
    flat = items @ axes[:2].T                                                                          # (R + K, 2)
    flat = flat * torch.where(flat[-1] < flat[len(h)], -1.0, 1.0)
    return flat[:len(h)], flat[len(h):], (scale[:2].square().sum() / scale.square().sum()).item()


def space(args):
    """Dev representations of one exit with the label embeddings among them, untrained and after each run; a PCA for each."""
    panels, seen = [], set()
    for folder in args.runs:
        config, result, _, _ = exits.load_run(folder)
        if args.exit not in config["exit_layers"]:
            raise InputError(f"{folder} has no exit {args.exit}, only {config['exit_layers']}")
        split = glue.load_task(config["task"], config["data"], config["limit_train"], config["holdout"])[next(iter(result["dev"]))]
        start = tuple(str(config[name]) for name in ("task", "model", "pooling", "exit_layers", "seed"))
        if start not in seen:                                          # runs of one seed start from the same model
            seen.add(start)
            panels.append((f"before training, seed {config['seed']}", config, split.part(0, ROWS), *untrained(config)))
        panels.append((f"{config['method']}, seed {config['seed']}", config, split.part(0, ROWS), *exits.load_model(folder, config)))
    panels.sort(key=lambda panel: not panel[0].startswith("before"))
    figure, all_axes = plt.subplots(1, len(panels), figsize=(2.7 * len(panels), 3.4), squeeze=False)
    for axes, panel in zip(all_axes.flat, panels):
        draw_space(axes, args.exit, *panel)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    return figure


def draw_space(axes, exit_layer, title, config, split, model, tokenizer):
    split.tokenize(tokenizer, config["max_length"])
    index = config["exit_layers"].index(exit_layer)
    h, rows = exits.all_exits(model, split, torch.device("cpu"))[0][index], model.classifiers[index].weight.detach()
    dots, stars, share = plane(h, rows)
    names = glue.TASKS[config["task"]].labels
    for k, (name, (colour, marker)) in enumerate(zip(names, CLASSES)):
        axes.scatter(*dots[split.labels == k].T, s=6, marker=marker, color=colour, alpha=0.4, linewidths=0, label=name)
    for k, (name, (colour, _)) in enumerate(zip(names, CLASSES)):
        axes.scatter(*stars[k], s=220, marker="*", color=colour, edgecolors="black", label=f"label embedding of {name}", zorder=3)
    cosine = acl.geometry(h, split.labels, rows)["label_cosine"]
    axes.set_title(f"{title}\nlabel cosine {cosine:.2f}, plane {100 * share:.0f} %", fontsize=9)
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(True)


def main(argv=None):
    p = argparse.ArgumentParser(prog="figures.py", description="Pictures of finished runs.")
    p.error = lambda message: p.exit(2, f"figures.py: {message}; see python results/figures.py --help\n")
    commands = p.add_subparsers(dest="command", required=True)
    for draw, suffix in ((angles, "svg"), (groups, "svg"), (tradeoff, "svg"), (space, "png")):
        c = commands.add_parser(draw.__name__, help=draw.__doc__.splitlines()[0])
        c.add_argument("runs", nargs=1 if draw is groups else "+", metavar="RUN", help="run folder")
        c.add_argument("--output", type=Path, help=f"file, .svg or .png (results/figures/{draw.__name__}_<task>.{suffix})")
        c.set_defaults(draw=draw, suffix=suffix)
    commands.choices["angles"].add_argument("--bins", type=int, default=15, help="bins along training (15)")
    commands.choices["groups"].add_argument("--columns", type=int, default=120, help="columns at most; more steps are averaged (120)")
    commands.choices["tradeoff"].add_argument("--rule", choices=exits.RULES, help="only this one (all)")
    commands.choices["space"].add_argument("--exit", type=int, required=True, help="layer number of the exit")
    args = p.parse_args(argv)
    try:
        figure = args.draw(args)
        name = f"{args.command}_{read_config(args.runs[0])['task']}.{args.suffix}"
        save(figure, args.output or ROOT / "results" / "figures" / name)
        return 0
    except (InputError, OSError) as error:
        print(f"figures.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
