"""The angle between both gradients: what a step logs of it, and the report of finished runs.

    python grad_surgery.py runs/rte_acl-grad_1      share over 90 degrees, by epoch, histogram
    python grad_surgery.py runs/rte_*               methods side by side
"""

import math
import shlex
import statistics
from pathlib import Path
from typing import NamedTuple

import torch

from tools import comparison
from tools.command_line import InputError
from tools.files import mean_sd, read_csv


def telemetry(cosines, rule):
    """{cosine, angle, kept} of a step, means over its cosines (several: --conflict-at features,
    where each exit decides for itself); None where no gate looked."""
    if not cosines:
        return {"cosine": None, "angle": None, "kept": None}
    return {
        "cosine": statistics.mean(cosines),
        "angle": statistics.mean(angle(cosine) for cosine in cosines),
        "kept": statistics.mean(kept(cosine, rule) for cosine in cosines),
    }


def angle(cosine):
    """Degrees.  Rounding can leave a cosine a little outside -1..1; NaN stays NaN."""
    return math.degrees(math.acos(clamp(cosine)))


def clamp(cosine):
    if math.isnan(cosine):
        return cosine
    return max(-1.0, min(1.0, cosine))


def kept(cosine, rule):
    """Length of what a rule adds over length of g_ACL: 1 or 0 under discard, the sine of the
    angle under project in a conflict, max(0, cosine) under weigh, 1 under observe."""
    if rule == "observe":
        return 1.0
    if math.isnan(cosine):
        return 0.0
    if rule == "weigh":
        return max(0.0, clamp(cosine))
    if cosine >= 0:
        return 1.0
    if rule == "project":
        return math.sqrt(1 - clamp(cosine) ** 2)
    return 0.0


# ------------------------------------------------------------------------------ the report


class Angles(NamedTuple):
    """What a run's gate saw."""

    folder: Path
    config: dict  # config.json, {} without one
    by_epoch: dict  # {epoch: angles in degrees, NaN where a gradient was not finite}


def report(args):
    """One run at a glance, or methods side by side; raises InputError where no angle is there."""
    runs, left_out = [], []
    for folder in map(Path, args.runs):
        try:
            runs.append(load_run(folder))
        except InputError as error:
            left_out.append((folder, str(error).removeprefix(f"{folder} ")))
            problem = error
    if not runs:
        message = str(problem)
        if len(args.runs) > 1:
            message += f" (and there is nothing to show of the other {len(args.runs) - 1})"
        raise InputError(message)

    if len(runs) > 1:
        print_several(runs, left_out)
    if len(runs) == 1 or args.all:
        for run in runs:
            print_one(run)
    comparison.print_left_out(left_out)
    if len(runs) > 1 and not args.all:
        folder = shlex.quote(str(runs[-1].folder))
        print(f"\nNext: python grad_surgery.py {folder}   one run, its histogram")


def load_run(folder):
    """A run's folder -> Angles.  Raises InputError."""
    folder = Path(folder)
    config = comparison.read_config(folder)
    return Angles(folder, config, load_angles(folder, config))


def load_angles(folder, config=None):
    """steps.csv of a run -> {epoch: angles in degrees, NaN where a gradient was not finite}."""
    by_epoch = {}
    path = Path(folder) / "steps.csv"
    try:
        for row in read_csv(path):
            if row["angle"]:
                by_epoch.setdefault(int(row["epoch"]), []).append(float(row["angle"]))
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (OSError, KeyError, TypeError, ValueError) as error:
        problem = type(error).__name__ if path.parent.exists() else "there is no such folder"
        raise InputError(f"{folder} is no run with a whole steps.csv ({problem})") from None
    if not by_epoch and (config or {}).get("method") == "ce":
        raise InputError(f"{folder} measured no angles: ce has one gradient, and no second one "
                         "to conflict with it")
    if not by_epoch:
        raise InputError(f"{folder} measured no angles; train it with --conflict observe")
    return by_epoch


def all_angles(run):
    angles = []
    for epoch in run.by_epoch.values():
        angles += epoch
    return angles


def conflict_share(angles):
    """Percent of the steps in conflict, NaN among them."""
    conflicts = sum(not angle <= 90 for angle in angles)
    return 100 * conflicts / len(angles)


def share_over_90(angles):
    """'12.5 %'"""
    return f"{conflict_share(angles):.1f} %"


def shares_by_epoch(by_epoch):
    """'2.6 %  0.0 %  ..'; of many epochs the first and the last four."""
    shares = [share_over_90(angles) for _, angles in sorted(by_epoch.items())]
    if len(shares) > 8:
        shares = [*shares[:4], "..", *shares[-4:]]
    return "  ".join(shares)


def print_one(run):
    """Share in conflict, by epoch, one sentence, a short histogram."""
    angles = all_angles(run)
    finite = torch.tensor([angle for angle in angles if math.isfinite(angle)])
    missing = len(angles) - len(finite)
    note = f", {missing} not finite (they count as conflicts)" if missing else ""
    print(f"{run.folder}: angle between both gradients at {len(angles)} steps{note}\n")
    print(f"over 90 degrees: {share_over_90(angles)}   by epoch: {shares_by_epoch(run.by_epoch)}")
    if len(finite):
        print_histogram(finite)
    print("\n" + meaning(run, angles))


def print_histogram(angles):
    """Mean, percentiles, and a bar for each 10 degrees between the least and the most."""
    low, median, high = angles.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    print(f"mean {angles.mean():.1f}   5th percentile {low:.1f}   median {median:.1f}   "
          f"95th percentile {high:.1f} degrees\n")
    counts = torch.histc(angles, bins=18, min=0, max=180).int().tolist()
    used = [i for i, count in enumerate(counts) if count]
    for i in range(used[0], used[-1] + 1):
        bar = "#" * math.ceil(50 * counts[i] / max(counts))
        print(f"{10 * i:4} to {10 * i + 10:3}  {counts[i]:6}  {bar}".rstrip())


WHAT_THE_GATE_DID = {
    "observe": "only watched",
    "discard": "dropped it there",
    "project": "took away the part that points against",
    "weigh": "multiplied it by 0 there, and elsewhere by the cosine",
}


def meaning(run, angles):
    """One sentence: what these numbers say of the training."""
    conflicts = sum(not angle <= 90 for angle in angles)
    did = WHAT_THE_GATE_DID.get(run.config.get("conflict"))
    gate = f"; the gate {did}" if did else ""
    return (f"In {conflicts} of {len(angles)} steps the second gradient pointed against "
            f"cross-entropy's{gate}.")


def print_several(runs, left_out):
    """Methods as rows, mean±sd over their seeds; a table for each task."""
    tables = {}
    for run in runs:
        tables.setdefault(run.config.get("task"), []).append(run)
    for number, (task, some) in enumerate(tables.items()):
        settings, repeated = comparison.settings_of(some)
        for run, earlier in repeated:
            left_out.append((run.folder, f"the same options and seed as {earlier.folder}"))
        if number:
            print()
        print(f"{task or 'unknown task'}: angle between both gradients, mean±sd over runs\n")
        print_table(settings)
        comparison.print_differences(settings)


def print_table(settings):
    width = max(len(setting.label) for setting in settings) + 2
    print(f"{'method':{width}}{'runs':>4}{'steps':>8}{'over 90, %':>12}{'mean, degrees':>15}"
          "   over 90 by epoch")
    for setting in settings:
        angles = [all_angles(run) for run in setting.runs]
        steps = sum(len(some) for some in angles)
        share = mean_sd(conflict_share(some) for some in angles)
        degrees = mean_sd(mean_angle(some) for some in angles)
        print(f"{setting.label:{width}}{len(angles):>4}{steps:>8}{share:>12}{degrees:>15}   "
              f"{shares_by_epoch(together(setting.runs))}")
    print("\nOver 90 degrees the second gradient points against cross-entropy's: a step in "
          "conflict.")


def mean_angle(angles):
    """Of the finite ones; None without any."""
    finite = [angle for angle in angles if math.isfinite(angle)]
    return statistics.mean(finite) if finite else None


def together(runs):
    """{epoch: angles of all runs}"""
    by_epoch = {}
    for run in runs:
        for epoch, angles in run.by_epoch.items():
            by_epoch.setdefault(epoch, []).extend(angles)
    return by_epoch
