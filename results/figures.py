"""Pictures of finished runs; the same runs give the same bytes.

    python results/figures.py angles RUN ...          # angles between both losses' gradients
    python results/figures.py groups RUN              # the same by layer, of a run of
                                                      # variants.py conflict-groups
    python results/figures.py tradeoff RUN ...        # score against counted speed-up
    python results/figures.py space RUN .. --exit 6   # representations and label embeddings

RUN is a run's folder.  A picture goes into the working folder, angles_rte.png say, or where
--output says.  Runs that differ in their seed alone share a label: their steps are pooled, their
scores averaged.  tradeoff takes what `python exits.py RUN ...` has written; space needs a run
whose model is still there.
"""

import math
import statistics
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

try:
    import matplotlib
except ImportError:
    sys.stderr.write("figures.py: no matplotlib; run pip install -r results/requirements.txt\n")
    sys.exit(2)

matplotlib.use("Agg")  # draws files, needs no screen
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

import exits
import glue
from tools import demo, models
from tools.command_line import InputError, Parser, run_command
from tools.files import errors_that_name, read_csv, read_json
from tools.geometry import geometry
from tools.tradeoff import EXIT_RULES, at_speedup, dev_split, load_run, read_tradeoff, task_of
from train import METHODS

# Okabe and Ito's colours, which can be told apart with any colour vision.
COLOURS = {
    "ce": "#000000",
    "scl": "#E69F00",
    "acl-embed": "#56B4E9",
    "acl-grad": "#0072B2",
    "acl-cl": "#D55E00",
    "kd": "#009E73",
    "spare": "#CC79A7",
}
CLASS_COLOURS = ("#0072B2", "#D55E00", "#009E73")
CLASS_MARKERS = ("o", "^", "s")
CLASS_LIMIT = len(CLASS_COLOURS)  # more take a colour map

# More classes than this have a colour bar in place of a legend.
NAMED_CLASSES = 12

# What a label names beside the method, if runs of one method differ in it.
OPTIONS = ("task", "model", "exits", "epochs", "lr", "head_lr", "weight", "temperature",
           "conflict", "conflict_at", "exit_weights", "students_embed", "center", "change",
           "limit_train", "holdout", "max_steps")

plt.rcParams |= {
    "svg.hashsalt": "acl",  # SVG's ids come from the content, not from chance
    "font.size": 9,
    "axes.titlesize": 9,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


# ------------------------------------------------------------------------ labels, colours


def read_config(folder):
    """A run's config.json.  Raises InputError."""
    try:
        config = read_json(Path(folder) / "config.json")
        config["task"], config["method"], config["seed"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        problem = type(error).__name__ if Path(folder).exists() else "there is no such folder"
        raise InputError(f"{folder} is no run: no whole config.json ({problem})") from None
    return config


def by_label(folders):
    """{label: (colour, folders)}, methods in the modules' order; each method has its own colour
    unless it has several labels."""
    configs = {Path(folder): read_config(folder) for folder in folders}
    labels = {}
    for method in METHODS:
        twins = {f: config for f, config in configs.items() if config["method"] == method}
        told = [name for name in OPTIONS if differs(name, twins.values())]
        for folder, config in twins.items():
            label = ", ".join([method, *(f"{name} {value_of(name, config)}" for name in told)])
            labels.setdefault(label, []).append(folder)
    if set(labels) <= set(COLOURS):
        return {label: (COLOURS[label], labels[label]) for label in labels}
    colours = many_colours(len(labels), tuple(COLOURS.values()))
    return {label: (colour, labels[label]) for label, colour in zip(labels, colours)}


def value_of(option, config):
    """An option's value, for a label: of an encoder's path the last part."""
    value = config.get(option)
    return Path(str(value)).name if option == "model" else value


def differs(option, configs):
    """Whether runs differ in an option; one that is off is as good as none."""
    return len({config.get(option) or None for config in configs}) > 1


def many_colours(count, first_choice):
    """`count` colours: the chosen ones where they are enough, else spread over a colour map."""
    if count <= len(first_choice):
        return first_choice[:count]
    return [plt.cm.turbo(i / (count - 1)) for i in range(count)]


def legend(figure, axes, place):
    """Outside, above or below all panels, in as many columns as fit (16 letters an inch)."""
    handles, labels = axes.get_legend_handles_labels()
    widest = int(14 * figure.get_figwidth()) - 7  # a longer label is broken
    labels = [textwrap.fill(label, widest) for label in labels]
    longest = max(len(label) for label in labels)
    columns = int(16 * figure.get_figwidth() / (longest + 7))
    columns = min(max(columns, 1), len(labels))
    box = figure.legend(handles, labels, loc=f"outside {place} center", ncols=columns)

    # Letters differ in width: fewer columns where these are too wide after all.
    while columns > 1 and box.get_window_extent().width > figure.bbox.width:
        columns -= 1
        box.remove()
        box = figure.legend(handles, labels, loc=f"outside {place} center", ncols=columns)


# ---------------------------------------------------------------------------- the angles


def angles(args):
    """Left the angles of all steps; right the share of conflicts along training, in 15 bins."""
    kinds = by_label(args.runs)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6 + 0.18 * (len(kinds) // 4)))
    limits = [75, 105]
    for label, (colour, folders) in kinds.items():
        points = [point for folder in folders for point in angles_of(folder)]
        if not points:
            raise InputError(f"{label}: no angle was measured; train with --conflict observe")

        # A gradient that is not finite has no angle (NaN) and is a conflict.
        finite = [angle for _, angle in points if math.isfinite(angle)]
        limits += finite
        share_of_each = [100 / len(points)] * len(finite)
        for look in ({"histtype": "stepfilled", "alpha": 0.2}, {"histtype": "step"}):
            left.hist(finite, range(0, 182, 2), weights=share_of_each, color=colour, **look)

        # The share of conflicts in each bin of steps.
        width = math.ceil(max(step for step, _ in points) / 15)
        bins = {}
        for step, angle in points:
            bins.setdefault((step - 1) // width, []).append(not angle <= 90)
        middles = [(i + 0.5) * width for i in sorted(bins)]
        shares = [100 * statistics.mean(bins[i]) for i in sorted(bins)]
        share = 100 * statistics.mean(not angle <= 90 for _, angle in points)
        label += f": {share:.0f} % of {len(points)} steps over 90°"
        right.plot(middles, shares, ".-", color=colour, label=label)
    left.axvline(90, color="grey", linestyle="--", linewidth=1)
    left.set(xlabel="angle between both gradients, degrees", ylabel="% of steps")
    left.set_xlim(min(limits) - 3, max(limits) + 3)
    right.set(xlabel="step", ylabel="% of steps over 90°", xlim=(0, None), ylim=(0, None))
    legend(figure, right, "upper")
    return figure


def angles_of(folder):
    """[(step, angle in degrees)] of the steps of a run that measured it.  Raises InputError."""
    try:
        rows = read_csv(folder / "steps.csv")
        return [(int(row["step"]), float(row["angle"])) for row in rows if row["angle"]]
    except (OSError, KeyError, TypeError, ValueError) as error:
        problem = type(error).__name__
        raise InputError(f"{folder} has no whole steps.csv ({problem})") from None


def groups(args):
    """Heat map of the cosine per group and step, and each group's share of steps in conflict."""
    path = Path(args.runs[0]) / "groups.csv"
    rows = read_csv(path) if path.is_file() else []
    if not rows:
        raise InputError(f"{path} is missing or empty; train with results/variants.py "
                         "conflict-groups")
    names = list(dict.fromkeys(row["group"] for row in rows))
    cosines = torch.tensor([float(row["cosine"] or "nan") for row in rows])
    cosines = cosines.view(-1, len(names)).T  # (groups, steps)

    # A column is the mean of so many steps; a few outliers must not pale the rest.
    width = math.ceil(cosines.shape[1] / 150)
    parts = cosines.split(width, dim=1)
    columns = torch.stack([part.nanmean(dim=1) for part in parts], dim=1)  # (groups, columns)
    limit = columns[~columns.isnan()].abs().quantile(0.98).item()

    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.3 * len(names)))
    right_end = 0.5 + width * columns.shape[1]
    image = axes.imshow(
        columns,
        cmap="RdBu",
        vmin=-limit,
        vmax=limit,
        origin="lower",
        aspect="auto",
        interpolation="none",
        extent=(0.5, right_end, -0.5, len(names) - 0.5),
    )
    axes.set_facecolor("lightgrey")
    beside = [f"{name}  {share_below_0(row)}" for name, row in zip(names, cosines)]
    axes.set_yticks(range(len(names)), beside)
    axes.set_title(
        "cosine between both gradients; beside each group its share of steps below 0", loc="left"
    )
    axes.set_xlabel("step" if width == 1 else f"step (a column is the mean of {width})")
    figure.colorbar(image, label="cosine", extend="both", pad=0.02)
    return figure


def share_below_0(cosines):
    """'12 %' of a group's steps, or "not shared" where no step has a cosine."""
    there = cosines[~cosines.isnan()]
    if len(there) == 0:
        return "not shared"
    return f"{100 * (there < 0).double().mean().item():.0f} %"


# -------------------------------------------------------------------------- the trade-off


def tradeoff(args):
    """Mean and ±1 sd over seeds of the score at counted speed-ups, a panel for each rule.

    At each speed-up a run enters with its slowest setting at least that fast, chosen by speed
    alone: a Pareto front would be picked on dev.  A line ends where some run has no setting that
    fast.
    """
    runs = with_early_exit(args.runs)
    tasks = {read_config(folder)["task"] for folder in runs}
    if len(tasks) > 1:
        raise InputError(f"runs of several tasks ({', '.join(sorted(tasks))}): draw one at a time")
    kinds = by_label(runs)
    rules = [args.rule] if args.rule else list(EXIT_RULES)
    speeds = [1 + i / 20 for i in range(61)]
    down, across = math.ceil(len(rules) / 2), min(len(rules), 2)
    size = (3 + 3 * across, 1 + 2.5 * down + 0.18 * (len(kinds) // 6))
    figure, panels = plt.subplots(
        down, across, figsize=size, sharex=True, sharey=True, squeeze=False
    )
    for label, (colour, folders) in kinds.items():
        tables = [tradeoff_of(folder) for folder in folders]
        for rule, axes in zip(rules, panels.flat):
            scores = []
            for speed in speeds:
                scores.append([score_at(rows, rule, speed) for rows in tables])
            scores = torch.tensor(scores, dtype=torch.float64)  # (speeds, seeds)
            mean = scores.mean(dim=1)
            sd = scores.std(dim=1, correction=min(1, len(tables) - 1))
            axes.plot(speeds, mean, color=colour, label=f"{label} ({len(tables)})")
            axes.fill_between(speeds, mean - sd, mean + sd, color=colour, alpha=0.12, linewidth=0)
            axes.set_title(rule)
    figure.supxlabel("counted speed-up", fontsize=9)
    task, metric = read_config(args.runs[0])["task"], metric_of(args.runs[0])
    figure.supylabel(f"{task}, dev {metric}, mean ± sd (seeds)", fontsize=9)
    legend(figure, panels[0, 0], "upper")
    return figure


def with_early_exit(folders):
    """Without the runs of one exit, which are named.  Raises InputError where no other is left."""
    kept = []
    for folder in folders:
        if len(read_config(folder).get("exit_layers", [])) == 1:
            print(f"left out {folder}: it has one exit (train it with --exits all)")
        else:
            kept.append(folder)
    if not kept:
        raise InputError("none of these runs has several exits; train one with --exits all")
    return kept


def tradeoff_of(folder):
    """The rows of a run's tradeoff.csv.  Raises InputError."""
    path = folder / "tradeoff.csv"
    if not path.is_file():
        raise InputError(f"{path} is missing; python exits.py {folder} writes it for a run of "
                         "several exits")
    return read_tradeoff(path)


def score_at(rows, rule, speed):
    row = at_speedup(rows, rule, speed)
    return row["score"] if row else math.nan


def metric_of(folder):
    try:
        return read_json(Path(folder) / "result.json")["metric"]
    except (OSError, KeyError, ValueError) as error:
        problem = type(error).__name__
        raise InputError(f"{folder} has no whole result.json ({problem})") from None


# ------------------------------------------------------------- samples, label embeddings


def space(args):
    """Dev samples of one exit with the label embeddings among them, before and after training.

    Each panel is a PCA of its own, so that distances compare within a panel, not between two.
    """
    before, after = {}, []
    for folder in args.runs:
        finished = load_run(folder)
        config = finished.config
        if args.exit not in config["exit_layers"]:
            raise InputError(f"{folder} has no exit {args.exit}, only {config['exit_layers']}")
        run = models.load_run(folder)
        if finished.labels is None:
            raise InputError(f"{folder} has no dev_logits.safetensors; train it again")
        dev = dev_split(folder, config, finished.result, finished.labels)
        dev = dev.select(range(len(dev))[:1000])  # QQP's 40,000 dots would be a blot

        # Runs of one seed start from one model.
        start = str([config[name] for name in ("task", "model", "pooling", "exit_layers", "seed")])
        if start not in before:
            title = f"before training, seed {config['seed']}"
            before[start] = (title, config, dev, *untrained(config))
        title = f"{config['method']}, seed {config['seed']}"
        after.append((title, config, dev, run.model, run.tokenizer))

    return draw_panels([*before.values(), *after], args.exit)


def draw_panels(panels, layer):
    """A figure with a panel for each (title, config, dev, model, tokenizer)."""
    K = panels[0][1]["num_labels"]
    width = max(2.7 * len(panels), 4)
    height = 3.4
    if CLASS_LIMIT < K <= NAMED_CLASSES:
        height += 0.18 * K  # the legend's lines
    figure, all_axes = plt.subplots(1, len(panels), figsize=(width, height), squeeze=False)
    for axes, panel in zip(all_axes.flat, panels):
        draw_space(axes, layer, *panel)
    if K > NAMED_CLASSES:
        colour_bar(figure, all_axes, K)
    legend(figure, axes, "lower")
    return figure


def untrained(config):
    """The model and tokenizer as train.py has them before step 1: the seed decides what is new
    in the model."""
    torch.manual_seed(config["seed"])
    if config["task"] == "demo":
        encoder, tokenizer = demo.demo_encoder()
    else:
        encoder, tokenizer = models.load_encoder(config["model"])
    model = exits.MultiExitBert(
        encoder, config["num_labels"], config["exit_layers"], config["pooling"]
    )
    return model, tokenizer


def draw_space(axes, layer, title, config, dev, model, tokenizer):
    """One panel: samples as dots, label embeddings as stars, each class in its colour."""
    labels = torch.tensor(dev["label"][:])  # (R,)
    dev = glue.tokenize(dev, tokenizer, config["max_length"])
    index = config["exit_layers"].index(layer)
    h, _ = exits.all_exits(model, dev, tokenizer, torch.device("cpu"), keep_h=len(dev))
    h = h[index]  # (R, d)
    label_embeddings = model.classifiers[index].weight.detach()  # (K, d)
    K = len(label_embeddings)
    colours = many_colours(K, CLASS_COLOURS)

    dots, stars, share = plane(h, label_embeddings)
    for k in range(K):
        marker = CLASS_MARKERS[k % len(CLASS_MARKERS)]
        x, y = dots[labels == k].T
        axes.scatter(x, y, s=7, color=colours[k], marker=marker, alpha=0.4, linewidths=0)
    names, _ = task_of(config)
    for k in range(K):
        name = f"{names[k]} (star: its label embedding)"
        if K > NAMED_CLASSES:
            name = "star: a label embedding" if k == 0 else None
        size = 220 if K <= NAMED_CLASSES else 80
        axes.scatter(*stars[k], s=size, color=[colours[k]], marker="*", edgecolors="black",
                     label=name)
    cosine = geometry(h, labels, label_embeddings)["label_cosine"]
    axes.set_title(f"{title}\nlabel cosine {cosine:.2f}, plane holds {100 * share:.0f} %")
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    axes.spines[["top", "right"]].set_visible(True)


def colour_bar(figure, all_axes, K):
    """Which colour is which class, where they are too many for a legend."""
    scale = plt.cm.ScalarMappable(plt.Normalize(0, K - 1), plt.cm.turbo)
    figure.colorbar(scale, ax=all_axes, label="class, by its place in config.json's labels")


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


def draw(args):
    """Draw and save one picture; prints where it is."""
    path = args.output
    if path is None:
        task = read_config(args.runs[0])["task"]
        path = Path(f"{args.command}_{task}.png")  # PNG: smaller than SVG here
        if path.exists():
            raise InputError(f"{path} exists; --output {path} writes over it")
    kinds = plt.figure().canvas.get_supported_filetypes()
    if path.suffix[1:] not in kinds:
        raise InputError(f"--output {path}: a picture's name ends in .png or .svg")
    figure = args.draw(args)
    with errors_that_name(path):
        path.parent.mkdir(parents=True, exist_ok=True)

    # Neither date nor version in the file, so that redrawing changes nothing.
    metadata = {"Date": None, "Creator": None} if path.suffix == ".svg" else {"Software": None}
    with errors_that_name(path):
        figure.savefig(path, dpi=110, metadata=metadata)
    plt.close("all")
    print(path)


def main(argv=None):
    p = Parser("results/figures.py", description="Pictures of finished runs.")
    commands = p.add_subparsers(dest="command", required=True, parser_class=Parser)
    for function in (angles, groups, tradeoff, space):
        name = function.__name__
        summary = function.__doc__.splitlines()[0].replace("%", "%%")
        command = commands.add_parser(name, prog=p.prog, help=summary)
        count = 1 if function is groups else "+"
        command.add_argument("runs", nargs=count, metavar="RUN", help="a run's folder")
        command.add_argument("--output", type=Path, metavar="FILE",
                             help=f".png or .svg ({name}_TASK.png here)")
        command.set_defaults(draw=function)
    commands.choices["tradeoff"].add_argument("--rule", choices=EXIT_RULES,
                                              help="only this one (all)")
    commands.choices["space"].add_argument("--exit", type=int, required=True,
                                           help="layer number of the exit")
    args = p.parse_args(argv)
    return run_command("results/figures.py", lambda: draw(args))


if __name__ == "__main__":
    sys.exit(main())
