"""The angles between both gradients in finished runs, from their steps.csv: what `python grad_surgery.py RUN ..` runs.

    python grad_surgery.py runs/rte_scl_1 runs/rte_scl_2        # mean, percentiles, share over 90 degrees, histogram
"""

import argparse
import csv
import math
import sys
from pathlib import Path

import torch


def main(argv=None):
    p = argparse.ArgumentParser(prog="grad_surgery.py", description="Angles between CE's and the contrastive gradient in runs "
                                "that measured them (--conflict observe, discard, project or weigh).")
    p.error = lambda message: p.exit(2, f"grad_surgery.py: {message}; see python grad_surgery.py --help\n")
    p.add_argument("runs", nargs="+", help="run folders")
    try:
        runs = [(folder, load_angles(folder)) for folder in p.parse_args(argv).runs]
    except ValueError as error:
        print(f"grad_surgery.py: {error}", file=sys.stderr)
        return 2
    for folder, by_epoch in runs:
        print_angles(folder, by_epoch)
    return 0


def load_angles(folder):
    """steps.csv of a run -> {epoch: list of angles in degrees, NaN where a gradient was not finite}.  Raises ValueError."""
    by_epoch = {}
    try:
        with open(Path(folder) / "steps.csv", newline="") as file:
            for row in csv.DictReader(file):
                if row["angle"]:
                    by_epoch.setdefault(int(row["epoch"]), []).append(float(row["angle"]))
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{folder} is no run with a whole steps.csv ({type(error).__name__})") from None
    if not by_epoch:
        raise ValueError(f"{folder} measured no angles; train it with --conflict observe")
    return by_epoch


def print_angles(folder, by_epoch):
    def conflicts(angles):
        return f"{100 * sum(not angle <= 90 for angle in angles) / len(angles):.1f} %"

    angles = [angle for epoch in by_epoch.values() for angle in epoch]
    finite = torch.tensor([angle for angle in angles if math.isfinite(angle)])
    print(f"\n{folder}: {len(angles)} steps, {len(angles) - len(finite)} not finite (they count as conflicts)")
    print(f"over 90 degrees: {conflicts(angles)}   by epoch: " + "  ".join(conflicts(epoch) for epoch in by_epoch.values()))
    if len(finite):
        low, median, high = finite.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
        print(f"mean {finite.mean():.1f}   5th percentile {low:.1f}   median {median:.1f}   95th percentile {high:.1f} degrees")
        counts = torch.histc(finite, bins=18, min=0, max=180).int().tolist()
        for start, count in zip(range(0, 180, 10), counts):
            if count:
                print(f"{start:4} to {start + 10:3}  {count:6}  " + "#" * max(1, round(50 * count / max(counts))))


if __name__ == "__main__":
    sys.exit(main())
