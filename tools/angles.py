"""The angle between both gradients: what a step logs of it, and the report of finished runs.

    python grad_surgery.py runs/rte_scl_1 runs/rte_scl_2
"""

import math
import statistics
import sys
from pathlib import Path

import torch

from tools.command_line import InputError, Parser, run_command
from tools.files import read_csv


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


def main(argv=None):
    p = Parser("grad_surgery.py", description="Angles between CE's and the contrastive gradient "
               "in runs whose gate looked at them (any --conflict but none).")
    p.add_argument("runs", nargs="+", help="run folders")
    args = p.parse_args(argv)
    return run_command("grad_surgery.py", lambda: report(args.runs))


def report(folders):
    runs = [(folder, load_angles(folder)) for folder in folders]
    for folder, by_epoch in runs:
        print_angles(folder, by_epoch)


def load_angles(folder):
    """steps.csv of a run -> {epoch: angles in degrees, NaN where a gradient was not finite}."""
    by_epoch = {}
    try:
        for row in read_csv(Path(folder) / "steps.csv"):
            if row["angle"]:
                by_epoch.setdefault(int(row["epoch"]), []).append(float(row["angle"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        problem = type(error).__name__
        raise InputError(f"{folder} is no run with a whole steps.csv ({problem})") from None
    if not by_epoch:
        raise InputError(f"{folder} measured no angles; train it with --conflict observe")
    return by_epoch


def share_over_90(angles):
    """'12.5 %': the steps in conflict, NaN among them."""
    conflicts = sum(not angle <= 90 for angle in angles)
    return f"{100 * conflicts / len(angles):.1f} %"


def print_angles(folder, by_epoch):
    angles = [angle for epoch in by_epoch.values() for angle in epoch]
    finite = torch.tensor([angle for angle in angles if math.isfinite(angle)])
    missing = len(angles) - len(finite)
    shares = "  ".join(share_over_90(epoch) for epoch in by_epoch.values())
    print(f"\n{folder}: {len(angles)} steps, {missing} not finite (they count as conflicts)")
    print(f"over 90 degrees: {share_over_90(angles)}   by epoch: {shares}")
    if len(finite) == 0:
        return

    low, median, high = finite.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    print(f"mean {finite.mean():.1f}   5th percentile {low:.1f}   median {median:.1f}   "
          f"95th percentile {high:.1f} degrees")
    counts = torch.histc(finite, bins=18, min=0, max=180).int().tolist()
    for start, count in zip(range(0, 180, 10), counts):
        if count:
            bar = "#" * max(1, round(50 * count / max(counts)))
            print(f"{start:4} to {start + 10:3}  {count:6}  {bar}")


if __name__ == "__main__":
    sys.exit(main())
