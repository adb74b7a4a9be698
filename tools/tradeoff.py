"""Score against speed-up, from the dev logits that a finished run stored: no model is run again.

    run = read_run("runs/rte_acl-cl_1")
    rows = trade_off(run.logits, run.labels, run.config["exit_layers"], run.result["metric"])
    at_speedup(rows, "entropy", 2).score

Speed-up is counted, layers / mean exit layer; `clock` measures it.
"""

import statistics
import time

import pandas
import torch
from tqdm import tqdm

import exits
import glue
from tools.errors import InputError

# The rules of exits.py and their settings.  A rule of your own is a function there, a line here.
EXIT_RULES = {
    "entropy": ("threshold",),
    "confidence": ("threshold",),
    "patience": ("patience",),
    "pcee": ("threshold", "patience"),
}

SPEEDS = (1.5, 2, 3)  # at which reports show a rule


# ------------------------------------------------------------------------------- a rule's setting


def make_rule(rule, threshold=None, patience=None):
    """A rule of exits.py with its setting filled in: logits (m, n, K) -> (n,) bool.

    Raises InputError for a setting that the rule does not have, lacks, or makes no sense of.
    """
    given = {"threshold": threshold, "patience": patience}
    given = {name: value for name, value in given.items() if value is not None}
    names = EXIT_RULES[rule]
    if tuple(given) != names:
        raise InputError(f"rule {rule} needs a {' and a '.join(names)}, and no other setting")
    # A rule of your own may have a threshold of another scale.
    is_share = rule in ("entropy", "confidence", "pcee")
    if is_share and not 0 <= threshold <= 1:
        raise InputError(f"the threshold of rule {rule} must be from 0 to 1, not {threshold}")
    if "patience" in given:
        given["patience"] = int(patience)  # torch takes no integers of numpy
        if patience < 1:
            raise InputError(f"the patience of rule {rule} must be 1 or more, not {patience}")
    return lambda logits: getattr(exits, rule)(logits, *given.values())


def choose(run, rule, threshold=None, patience=None):
    """{"rule", "threshold", "patience"}: the setting given, or else the one next above 2x on dev.

    run: a FinishedRun.  None where the rule has no such number.  Raises InputError.
    """
    setting = {"rule": rule, "threshold": threshold, "patience": patience}
    if threshold is None and patience is None:
        row = at_speedup(trade_off_of(run), rule, 2)
        if row is None:
            raise InputError(f"{run.folder}: {rule} never reaches 2x; choose another --rule "
                             "(tools.predict takes a --threshold or --patience, too)")
        setting = {name: None if pandas.isna(row[name]) else row[name] for name in setting}
    make_rule(**setting)
    return setting


def setting_text(setting):
    """'rule pcee, threshold 0.3125, patience 2'"""
    words = [f"rule {setting['rule']}"]
    for name in EXIT_RULES[setting["rule"]]:
        words.append(f"{name} {setting[name]:.4g}")
    return ", ".join(words)


# ----------------------------------------------------------------------------------- the trade-off


def trade_off(logits, labels, layers, metric):
    """Every rule at many settings, from stored logits alone: a DataFrame, one row a setting.

    logits (M, R, K), labels (R,), layers: the M exits' layer numbers, metric: one of glue.METRICS.

        rule, threshold, patience   the setting; empty where the rule has no such number
        mean_exit_layer             over the R samples
        speedup                     layers[-1] / mean_exit_layer
        score                       of the answers given at those exits, in points
    """
    depth = torch.tensor(layers)  # (M,)
    predictions = logits.argmax(dim=-1)  # (M, R)
    rows = []
    for rule, threshold, patience in settings_to_try(logits):
        index = exits.exit_indices(logits, make_rule(rule, threshold, patience))  # (R,)
        answers = predictions.gather(0, index[None])[0]  # (R,)
        mean_exit_layer = depth[index].double().mean().item()
        rows.append({
            "rule": rule,
            "threshold": threshold,
            "patience": patience,
            "speedup": layers[-1] / mean_exit_layer,
            "mean_exit_layer": mean_exit_layer,
            "score": glue.METRICS[metric](answers, labels),
        })
    return pandas.DataFrame(rows).astype({"threshold": "float64", "patience": "Int64"})


def trade_off_of(run):
    """A tools.run.FinishedRun's."""
    return trade_off(run.logits, run.labels, run.config["exit_layers"], run.result["metric"])


def settings_to_try(logits):
    """(rule, threshold, patience), ..  No label is used.

    Thresholds are quantiles of what the exits say, so that they spread over all speeds.
    """
    M = len(logits)
    early = logits[:-1] if M > 1 else logits  # nobody leaves *early* at the last exit
    entropies = quantiles(exits.normalised_entropy(early))
    thresholds = {
        "entropy": entropies,
        "confidence": quantiles(early.float().softmax(dim=-1).amax(dim=-1)),
        "pcee": entropies[::2],
    }

    # A rule of your own gets steps from 0 on, closer together where they are low.
    widest = (early.amax() - early.amin()).item()
    steps = (torch.linspace(0, 1, 41) ** 2 * widest).tolist()

    # More patience than this lets nobody leave before the last exit.
    settings = []
    for rule, names in EXIT_RULES.items():
        patiences = [None]
        if "patience" in names:
            patiences = range(2, M) if "threshold" in names else range(1, max(2, M - 1))
        of_rule = thresholds.get(rule, steps) if "threshold" in names else [None]
        for patience in patiences:
            settings += [(rule, threshold, patience) for threshold in of_rule]
    return settings


def quantiles(values):
    """41 quantiles of a tensor, all different; rounding must not take them out of 0..1."""
    grid = torch.linspace(0, 1, 41, dtype=torch.float64)
    found = values.double().flatten().quantile(grid).clamp(0, 1)
    return sorted(set(found.tolist()))


def at_speedup(rows, rule, speed):
    """The slowest setting of `rule` that is at least `speed` times as fast: a row, or None.

    Chosen by speed alone: the best-scoring one would be picked on dev.  Of equally slow ones the
    first.
    """
    fast = rows[(rows.rule == rule) & (rows.speedup >= speed)]
    return None if fast.empty else fast.iloc[fast.speedup.argmin()]


# ------------------------------------------------------------------------------------- the clock


def dev_split(run):
    """The dev split of a FinishedRun, as text.  InputError where it is no longer what it was."""
    config = run.config
    _, splits = glue.load_task(
        config["task"], config["data"], config["limit_train"], config["holdout"]
    )
    split = splits[next(iter(run.result["dev"]))]
    if split["label"][:] != run.labels.tolist():
        raise InputError(f"{run.folder}: its dev labels are not those of {config['data']}; the "
                         "data have changed")
    return split


def clock(model, split, tokenizer, rule, batch_size, device, rounds=5):
    """Early exit against the full model, on the same batches of a tokenised split.

    Returns the seconds of the full model, those of early exit, and the counted speed-up.  Batches
    are sorted by length.  After a warm-up the median of `rounds`; both sides take turns, so that a
    slow moment hits both.
    """
    numbers = glue.row_lengths(split).argsort(stable=True).split(batch_size)
    batches = [batch.to(device) for batch in glue.loader(split, numbers, tokenizer)]
    for batch in batches:
        batch.pop("label")

    # Each side once before the clock counts.
    time_once(model, batches, None)
    _, mean_exit_layer = time_once(model, batches, rule)

    full, early = [], []
    for _ in tqdm(range(rounds), f"batch size {batch_size}", leave=False, disable=None):
        full.append(time_once(model, batches, None)[0])
        early.append(time_once(model, batches, rule)[0])
    return statistics.median(full), statistics.median(early), model.num_layers / mean_exit_layer


def time_once(model, batches, rule):
    """Seconds of early exit through all batches, and the mean exit layer."""
    start = time.perf_counter()
    exit_layers = [exits.early_exit(model, batch, rule)[1] for batch in batches]
    mean_exit_layer = torch.cat(exit_layers).double().mean().item()  # waits for the device
    return time.perf_counter() - start, mean_exit_layer
