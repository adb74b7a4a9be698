"""What train.py prints: a run's first line, one after each epoch, and what to look at next."""

import shlex
import statistics

import safetensors

from tools import machine
from tools.tradeoff import majority_score


def first_line(folder, count, model, device, bf16):
    """'runs/rte_ce_1: 2490 samples, exits [12], cpu, 2 threads, bf16'"""
    precision = "bf16" if bf16 else "fp32"
    where = machine.device_name(device)
    return f"{folder}: {count} samples, exits {model.exit_layers}, {where}, {precision}"


def epoch_line(when, metric, rows):
    """'epoch 3/8  dev accuracy by exit: 71.0 80.2  mean 75.6', of the first dev split.

    when: 'epoch 3/8'; rows: what train.evaluate returns, a dict for each dev split and exit.
    """
    scores = [row[metric] for row in rows if row["split"] == rows[0]["split"]]
    by_exit = " ".join(f"{score:.1f}" for score in scores)
    if len(scores) == 1:
        return f"{when}  dev {metric}: {by_exit}"
    mean = statistics.mean(scores)
    return f"{when}  dev {metric} by exit: {by_exit}  mean {mean:.1f}"


def closing_lines(folder, result, config):
    """Lines to print: the score at each exit, the share of steps in conflict, what to type next.

    folder: the run's, a Path; result, config: its result.json and config.json as dicts.
    """
    lines = [score_line(result, majority_of(folder, result))]
    if result["conflict_share"] is not None:
        share = 100 * result["conflict_share"]
        what = "over 90 degrees"
        if config["conflict_at"] == "features":
            what = "the exits' mean angle over 90 degrees"
        lines.append(f"steps in conflict ({what}): {share:.1f} % of {result['steps']}, "
                     f"{what_was_done(config)}")

    name = shlex.quote(str(folder))
    commands = [(f"python exits.py {name}", "score against speed-up")]
    if len(result["exit_layers"]) == 1:
        commands = [(f"python exits.py {name} --predict -", "classify the sentences you type")]
    if result["conflict_share"] is not None:
        commands.append((f"python grad_surgery.py {name}", "the angles"))
    width = max(len(command) for command, _ in commands)
    for number, (command, meaning) in enumerate(commands):
        lines.append(f"{'next: ' if number == 0 else '      '}{command:{width}}   {meaning}")
    return lines


def score_line(result, majority):
    """'accuracy by exit: 74.2 91.6 94.2 94.2   (majority class 50.0)'"""
    scores = " ".join(f"{score:.1f}" for score in result["exit_scores"])
    where = " by exit" if len(result["exit_scores"]) > 1 else ""
    beside = "" if majority is None else f"   (majority class {majority:.1f})"
    return f"{result['metric']}{where}: {scores}{beside}"


def majority_of(folder, result):
    """The majority class's score on the first dev split, None where it is not known: a run from
    before result.json had it, without its labels."""
    if "majority_score" in result:
        return result["majority_score"]
    path = folder / "dev_logits.safetensors"
    if not path.is_file():
        return None
    split = next(iter(result["dev"]))
    with safetensors.safe_open(path, framework="pt") as file:
        labels = file.get_tensor(f"{split}.labels")
    return majority_score(labels, result["metric"])


def what_was_done(config):
    """What the gate did there."""
    words = {
        "discard": "where the contrastive gradient was dropped",
        "project": "where it lost the part against cross-entropy's",
        "weigh": "where it was multiplied by 0",
    }
    if config["conflict_at"] == "features":
        return "where each exit decided for itself"
    return words.get(config["conflict"], "which were only watched")
