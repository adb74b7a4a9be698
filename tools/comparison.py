"""Runs side by side: in which order, which are seeds of one setting, and what to call them."""

import json
from typing import NamedTuple

from tools.command_line import InputError
from tools.files import read_json

# The papers' order; a method of one's own comes after them.
METHODS = ("ce", "scl", "acl-embed", "acl-grad", "acl-cl", "kd")

# Entries of config.json that two seeds of one setting need not share: the seed, the machine, the
# files, and what is said twice ("exits" again as exit_layers).
NOT_THE_SETTING = (
    "seed", "seeds", "device", "device_name", "versions", "data", "output", "resume",
    "save_steps", "predict", "exits", "num_labels", "labels", "metrics", "text_columns",
    "data_fingerprint", "conflict_groups",
)

# What a method does not use, so that two of its runs may differ in it.
WITHOUT_EFFECT = {"ce": ("weight", "temperature")}

# What methods beside each other should share.  A rate, a weight each may have of its own.
TRAINED_ALIKE = ("model", "pooling", "epochs", "max_steps", "limit_train", "batch_size")


class Setting(NamedTuple):
    """The runs of one method that differ in seed alone."""

    label: str  # "acl-cl"; where two settings of it are there "acl-cl (1)", "acl-cl (2)"
    difference: str  # then "weight 0.5", what the others have otherwise; else ""
    runs: list


def read_config(folder):
    """config.json of a run, or {} where there is none.  Raises InputError."""
    path = folder / "config.json"
    try:
        config = read_json(path)
    except FileNotFoundError:
        return {}
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is torn ({type(error).__name__}); train it again") from None
    return config if isinstance(config, dict) else {}


def settings_of(runs):
    """Runs (with .config) of one task -> ([Setting ..] in the papers' order, repeated).

    repeated: pairs (run, the one before it with the same options and the same seed); the first
    of them stands in no Setting, or it would count twice.
    """
    # Sort the runs by method and options, and see to it that no seed counts twice.
    of_method = {}  # method: [(options, runs), ..]
    repeated = []
    for run in runs:
        alike = runs_with(options_of(run.config), of_method.setdefault(name_of(run), []))
        earlier = [other for other in alike if seed_of(other) == seed_of(run)]
        if earlier:
            repeated.append((run, earlier[0]))
        else:
            alike.append(run)

    # Two settings of a method get a number each, and words for what they do not share.
    settings = []
    for method in sorted(of_method, key=place_of):
        for number, (options, alike) in enumerate(of_method[method], start=1):
            if len(of_method[method]) == 1:
                settings.append(Setting(method, "", alike))
                continue
            others = [other for other, _ in of_method[method]]
            text = difference(options, others)
            settings.append(Setting(f"{method} ({number})", text, alike))
    return settings, repeated


def name_of(run):
    """The method, or the folder's name where no config.json tells it."""
    return run.config.get("method", run.folder.name)


def seed_of(run):
    return run.config.get("seed")


def place_of(method):
    return METHODS.index(method) if method in METHODS else len(METHODS)


def options_of(config):
    """What makes the setting.  An option that is off and one that is not there are the same, and
    so are a gate that only watches and none."""
    options = {name: x for name, x in config.items() if x and name not in NOT_THE_SETTING}
    if options.get("conflict") in ("none", "observe"):
        del options["conflict"]
    for name in WITHOUT_EFFECT.get(options.get("method"), ()):
        options.pop(name, None)
    return options


def runs_with(options, settings):
    """The list of runs that have these options, started where none has."""
    for other, alike in settings:
        if other == options:
            return alike
    settings.append((options, []))
    return settings[-1][1]


def difference(options, others):
    """'weight 0.5, exits 6': the options that are not the same in all of `others`."""
    words = []
    for name in sorted(set().union(*others)):
        values = {json.dumps(other.get(name)) for other in others}
        if len(values) == 1:
            continue
        if name == "exit_layers":
            words.append("exits " + ",".join(map(str, options.get(name, []))))
        else:
            words.append(f"{name} {options.get(name, 'off')}")
    return ", ".join(words)


def print_differences(settings):
    """Below a table: what "acl-cl (2)" stands for."""
    for setting in settings:
        if setting.difference:
            print(f"{setting.label}: {setting.difference}")

    # Methods that were not trained alike: their scores cannot be compared.
    for name in TRAINED_ALIKE:
        by_value = {}
        for setting in settings:
            value = setting.runs[0].config.get(name, "not set")
            if value is None:
                value = "not set"
            by_value.setdefault(str(value), []).append(setting.label)
        if len(by_value) > 1:
            parts = [f"{value} ({', '.join(labels)})" for value, labels in by_value.items()]
            print(f"Not trained alike, {name}: {', '.join(parts)}")


def print_left_out(reasons):
    """reasons: [(what, why), ..]; many with one reason become one line."""
    by_reason = {}
    for what, why in reasons:
        by_reason.setdefault(why, []).append(str(what))
    if by_reason:
        print("\nLeft out:")
    for why, what in by_reason.items():
        names = ", ".join(what)
        if len(what) > 4:
            names = f"{what[0]} and {len(what) - 1} others"
        print(f"  {names}: {why}")
