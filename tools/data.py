"""Data files behind glue.load_task: GLUE in the layouts people have, and tables of one's own.

Names of folders and files mean themselves (none is taken for a pattern), and nothing is cached:
a changed file is read anew.  The datasets library's own readers of CSV and JSON do not fit here:
they take `NA` for a missing text, fill up short rows, move the cells of long ones, and look for
brackets in names.  So Python's csv and json modules read, and the rows become a Dataset.

Every function raises InputError for what it cannot read.
"""

import csv
import hashlib
import json
import os
import random
import re
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow.parquet
from datasets import ClassLabel, Dataset

from tools import processes
from tools.errors import InputError, is_here, reason


@contextmanager
def one_line_errors(path):
    """Whatever goes wrong with reading `path` becomes one line that names it."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({reason(error)}); save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or reason(error)}") from None
    except Exception as error:      # a torn file: the libraries' errors have many names
        raise InputError(f"cannot load {path} ({reason(error)[:200]})") from None


def remark(text):
    """One line on standard error, of the first process alone; names may hold line ends."""
    processes.say(" ".join(text.splitlines()), file=sys.stderr)


def tsv_rows(path):
    """(line number, cells) of each line.

    Only \\n and \\r\\n end a row, only a tab ends a cell, and quotes are plain characters.
    A byte-order mark (MRPC starts with one) is dropped.
    """
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            line = line.removesuffix("\n")
            yield number, line.removesuffix("\r").split("\t")


# -------------------------------------------------------------------------- GLUE, four layouts

# What the hub calls the classes of tasks whose download has 0 and 1.
HUB_CLASSES = {
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "wnli": ("not_entailment", "entailment"),
}


def read_glue_folder(task, data, names):
    """{split: Dataset} of the splits `names` of a GLUE task from the folder `data`.

    task: a glue.Task.  Looked for in RTE/, rte/ or the folder itself, in this order:
    train.tsv (GLUE's download), train-*.parquet (a copy of the hub's nyu-mll/glue),
    train/*.parquet (the hub's converted files), dataset_dict.json (save_to_disk).
    """
    places = glue_places(task, Path(data))
    for place in places:
        # A link that points nowhere is there too: reading it says what is wrong.
        if os.path.lexists(place / "train.tsv"):
            return {name: read_glue_tsv(task, place / f"{name}.tsv") for name in names}
    for place in places:
        if parquet_files(place, "train"):
            return {name: read_glue_parquet(task, place, name) for name in names}
    for place in places:
        if (place / "dataset_dict.json").exists():
            return read_glue_saved(task, place, names)
    raise InputError(
        f"--data {data} holds no {task.name}: neither {task.folder}/train.tsv (GLUE's download) "
        f"nor {task.name}/train-*.parquet (a copy of the hub's nyu-mll/glue) "
        f"nor {task.name}/train/*.parquet (the hub's converted files) "
        f"nor {task.name}/dataset_dict.json (save_to_disk); "
        "data of your own need a --task of their own")


def read_glue(task, data, names):
    """{name: Dataset} of a GLUE task, from a folder or the hub.  Raises InputError."""
    if is_here("--data", data):
        return read_glue_folder(task, data, names)
    return read_glue_hub(task, data, names)


def glue_places(task, folder):
    """The folders in which a task's files may lie.  Capitals do not count, as on some disks."""
    wanted = {task.folder.lower(), task.name}
    if not folder.is_dir():
        raise InputError(f"--data {folder} is a file, and {task.name} is a task of GLUE; "
                         f"choose another --task for data of your own")
    with one_line_errors(folder):
        entries = sorted(folder.iterdir())
    inside = [entry for entry in entries if entry.name.lower() in wanted and entry.is_dir()]
    return [*inside, folder]


def read_glue_tsv(task, path):
    """A file of GLUE's download."""
    with one_line_errors(path):
        return parse_glue_tsv(task, path)


def parse_glue_tsv(task, path):
    is_labelled = not path.name.startswith("test")
    rows = tsv_rows(path)

    # CoLA's train and dev have no header and four columns.
    if task.name == "cola" and is_labelled:
        header = ["source", "label", "mark", "sentence"]
    else:
        _, header = next(rows, (1, []))
    wanted = [*task.tsv_columns]
    if is_labelled:
        wanted.append(task.tsv_label)
    for column in wanted:
        if column not in header:
            names = ", ".join(header)[:80]
            raise InputError(f"{path}, line 1: no column {column!r} in the header; found {names!r}")

    columns = {column: [] for column in (*task.text_columns, "label")}
    skipped = 0
    for number, cells in rows:
        # Known faults of the download.
        is_short = len(cells) < len(header)
        if is_short and task.name == "qqp" and path.name == "train.tsv":
            skipped += 1
            continue
        if len(cells) != len(header):
            raise InputError(
                f"{path}, line {number}: {len(cells)} columns where the header has {len(header)}")
        row = dict(zip(header, cells))
        for column, tsv_column in zip(task.text_columns, task.tsv_columns):
            columns[column].append(row[tsv_column])
        if not is_labelled:
            columns["label"].append(-1)
            continue
        label = row[task.tsv_label]
        if label not in task.labels:
            allowed = " or ".join(task.labels)
            raise InputError(f"{path}, line {number}: label {label[:40]!r} is not {allowed}")
        columns["label"].append(task.labels.index(label))
    if skipped:
        remark(f"{path}: {skipped} short rows skipped")
    return Dataset.from_dict(columns)


def hub_name(name):
    """On the hub the dev split is called validation."""
    return name.replace("dev", "validation")


def parquet_files(place, hub_split):
    """train-*.parquet, or else train/*.parquet, in order.  Names, not patterns."""
    if not place.is_dir():
        return []
    with one_line_errors(place):
        flat = [f for f in sorted(place.iterdir()) if f.name.startswith(f"{hub_split}-")]
        folder = place / hub_split
        converted = sorted(folder.iterdir()) if folder.is_dir() else []
    for files in (flat, converted):
        parts = [file for file in files if file.suffix == ".parquet"]
        if parts:
            return parts
    return []


def read_parquet_parts(files):
    """Parquet files, one behind the other, as a Dataset.  All parts must be there."""
    count = re.search(r"-of-(\d+)$", files[0].stem)
    if count and int(count[1]) != len(files):
        raise InputError(f"{files[0].parent} holds {len(files)} of the {int(count[1])} parts "
                         f"of {files[0].name}; copy the others too")
    parts = []
    for path in files:
        with one_line_errors(path), open(path, "rb") as file:
            parts.append(Dataset(pyarrow.parquet.read_table(file)))
    with one_line_errors(files[0]):
        return datasets.concatenate_datasets(parts)


def read_glue_parquet(task, place, name):
    files = parquet_files(place, hub_name(name))
    if not files:
        raise InputError(f"{place} has no {hub_name(name)}-*.parquet, though {task.name} needs it")
    return check_hub_split(task, read_parquet_parts(files), name, files[0])


def read_glue_saved(task, place, names):
    """What load_dataset("nyu-mll/glue", task).save_to_disk(place) wrote."""
    # The library takes `::` for a chain of file systems, even in an absolute path.
    if "::" in str(place.absolute()):
        raise InputError(f"{place} cannot be read as a saved dataset because of the :: in its "
                         "path; rename the folder")
    with one_line_errors(place):
        tables = datasets.load_from_disk(str(place.absolute()), keep_in_memory=True)
    return select_hub_splits(task, tables, names, place)


def read_glue_hub(task, data, names):
    """The splits `names` from the hub id `data`, such as nyu-mll/glue, or from the hub's cache."""
    try:
        tables = datasets.load_dataset(data, task.name)
    except Exception as error:      # offline, no such id: the library's errors have many names
        folder = data.rpartition("/")[2]
        raise InputError(
            f"cannot load {task.name} from the hub's {data} ({reason(error)[:150]}).  Two ways on: "
            "where there is a network, "
            f"`hf download {data} --repo-type dataset --local-dir {folder}`, and here "
            f"`python train.py --task {task.name} --method acl-cl --data {folder}`; "
            "or without data `python train.py --task demo --method acl-cl`") from None
    return select_hub_splits(task, tables, names, data)


def select_hub_splits(task, tables, names, source):
    """The wanted splits of a DatasetDict that has the hub's names, each checked."""
    splits = {}
    for name in names:
        if hub_name(name) not in tables:
            there = ", ".join(tables)
            raise InputError(f"{source} has no split {hub_name(name)}; found {there}")
        splits[name] = check_hub_split(task, tables[hub_name(name)], name, source)
    return splits


def check_hub_split(task, split, name, source):
    """The split's texts and label alone.  InputError where columns, texts or labels do not fit."""
    wanted = [*task.text_columns, "label"]
    missing = [column for column in wanted if column not in split.column_names]
    if missing:
        raise InputError(f"{source}: {name} of {task.name} must have the columns "
                         f"{', '.join(wanted)}; found {', '.join(split.column_names)}")

    # Of the same columns, the classes' names tell which task it is.
    expected = HUB_CLASSES.get(task.name, task.labels)
    feature = split.features["label"]
    if isinstance(feature, ClassLabel) and tuple(feature.names) not in (expected, task.labels):
        raise InputError(f"{source}: the classes of {task.name} are {', '.join(expected)} in "
                         f"this order; found {', '.join(feature.names)}; is it another task?")

    split = split.select_columns(wanted)
    for column in task.text_columns:
        if not all(isinstance(text, str) for text in split[column]):
            raise InputError(f"{source}: {name} of {task.name} has a text in {column} that is "
                             "missing or no string")
    # Only test may hide its labels.
    lowest = -1 if name.startswith("test") else 0
    allowed = range(lowest, len(task.labels))
    for label in split["label"]:
        if type(label) is not int or label not in allowed:
            raise InputError(f"{source}: {name} of {task.name} has labels outside "
                             f"{allowed[0]}..{allowed[-1]}, first {label!r}")
    return split


# ------------------------------------------------------------------------------ one's own data

class Table(NamedTuple):
    """One's own file, as read.  R samples."""

    path: Path
    columns: dict         # name: list of R values
    places: list          # R strings for messages, such as "line 7"
    class_names: tuple    # of a Parquet file whose label is a ClassLabel, in their order; or None


SPLIT_NAMES = {
    "train": ("train",),
    "dev": ("dev", "validation", "valid", "val"),
    "test": ("test",),
}
# Text columns that are taken where a file has more than two columns beside `label`.
PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"),
         ("question", "sentence"), ("text1", "text2"))
SINGLES = ("sentence", "text", "question")
NUMBERING = ("id", "idx", "index", "guid", "", "unnamed: 0", "__index_level_0__")
# How the header of what --predict and --examples write begins.
OUR_TABLES = (("prediction", "confidence"), ("exit_layer", "confidence"))
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
DEV_SHARE = 0.1
MOST_CLASSES = 150


def read_own(name, data, with_test):
    """Text columns, classes in order, {split: Dataset} of a file or folder of one's own.

    Classes are ordered as numbers where all are numbers, else as strings; a Parquet file's
    ClassLabel keeps its order.  Without a dev file a tenth of train, drawn with a fixed seed,
    is dev.  What was chosen is told on standard error.
    """
    files = own_files(name, Path(data))
    if with_test and "test" not in files:
        raise InputError(f"{data} has no test file, which --predict needs: a folder with "
                         "train.csv and test.csv, say")
    if not with_test:
        files.pop("test", None)
    tables = {split: read_table(path) for split, path in files.items()}
    text_columns = choose_text_columns(tables["train"])
    classes = choose_classes(tables["train"])
    shown = " | ".join(classes[:10])
    if len(classes) > 10:
        shown += " | .."
    texts = " and ".join(text_columns)
    remark(f"{name}: texts from {texts}; {len(classes)} classes: {shown}")

    splits = {}
    for split, table in tables.items():
        splits[split] = encode(table, text_columns, classes, split)
    if "dev" not in splits:
        train, dev = set_dev_aside(splits["train"], files["train"])
        count = len(train) + len(dev)
        remark(f"{name}: no dev file; {len(dev)} of the {count} samples of "
               f"{files['train'].name}, drawn with a fixed seed, are dev")
        splits = splits | {"train": train, "dev": dev}
    return text_columns, classes, splits


def own_files(name, data):
    """{split: path}: one file is train; in a folder the names tell."""
    kinds = ", ".join(READERS)
    if not data.is_dir():
        if data.suffix.lower() not in READERS:
            raise InputError(f"--data {data} is none of {kinds}")
        return {"train": data}

    with one_line_errors(data):
        entries = [file for file in sorted(data.iterdir()) if file.suffix.lower() in READERS]
    files = {}
    for split, stems in SPLIT_NAMES.items():
        fitting = [file for file in entries if file.stem.lower() in stems]
        if len(fitting) > 1:
            raise InputError(f"--data {data}: {fitting[0].name} and {fitting[1].name} both hold "
                             f"{split}; keep one")
        if fitting:
            files[split] = fitting[0]
    if "train" not in files:
        raise InputError(f"--task {name} is none of GLUE's, and --data {data} holds no file train "
                         f"of one's own (one of {kinds})")
    return files


def read_table(path):
    """One's own file -> Table."""
    with one_line_errors(path):
        table = READERS[path.suffix.lower()](path)
        if not table.places:
            raise InputError(f"{path} has no rows")
        return table


def read_csv(path):
    """Cells between commas, in double quotes where they hold commas, newlines or quotes."""
    rows = quoted_rows(path, ",")
    return table_of_cells(path, rows, "cells of a .csv are separated by commas")


def quoted_rows(path, separator):
    """[(line number, cells)] of a table whose cells may be quoted."""
    rows = []
    limit = csv.field_size_limit(2**31 - 1)
    try:
        # A lone \r ends no row, so newline="\n"; csv reads on where a quoted cell holds one.
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            reader = csv.reader(file, delimiter=separator, strict=True)
            start = 1
            for cells in reader:
                rows.append((start, cells))
                start = reader.line_num + 1
    except csv.Error as error:
        # csv's own words for a \r outside quotes are advice for programmers.
        problem = str(error)
        if "new-line character" in problem:
            problem = "a lone carriage return outside quotes; end the lines with a newline"
        raise InputError(f"{path}, the row that starts in line {start}: {problem}") from None
    finally:
        csv.field_size_limit(limit)
    return rows


def read_tsv(path):
    """Cells between tabs.  Quotes are plain characters, as in GLUE's own files; but where the
    header is that of a table this project wrote, a text with a tab or a quote is quoted."""
    _, header = next(tsv_rows(path), (1, []))
    first_two = tuple(cell.strip('"') for cell in header[:2])
    rows = tsv_rows(path)
    if first_two in OUR_TABLES:
        rows = quoted_rows(path, "\t")
    return table_of_cells(path, rows, "in a .tsv a tab ends a cell, quoted or not")


def table_of_cells(path, rows, hint):
    """(line number, cells) of each row, the header first -> Table.  Empty lines are passed over."""
    rows = [(number, cells) for number, cells in rows if cells not in ([], [""])]
    if not rows:
        raise InputError(f"{path} is empty")
    header = [cell.strip() for cell in rows[0][1]]
    twice = [column for column, count in Counter(header).items() if count > 1]
    if twice:
        raise InputError(f"{path}, line {rows[0][0]}: two columns are called {twice[0]!r}")
    for number, cells in rows[1:]:
        if len(cells) != len(header):
            raise InputError(f"{path}, line {number}: {len(cells)} cells where the header has "
                             f"{len(header)} ({hint})")
    columns = {}
    for i, column in enumerate(header):
        columns[column] = [cells[i] for _, cells in rows[1:]]
    return Table(path, columns, [f"line {number}" for number, _ in rows[1:]], None)


def read_json_lines(path):
    """One JSON object a line."""
    samples, places = [], []
    # Only \n ends a line: JSON strings may hold other line ends as they are.
    with open(path, encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                samples.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: no JSON ({error})") from None
            places.append(f"line {number}")
    return table_of_objects(path, samples, places)


def read_json(path):
    """A list of JSON objects, or one object a line."""
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        return read_json_lines(path)
    try:
        samples = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no JSON ({error})") from None
    return table_of_objects(path, samples, [f"sample {i}" for i in range(1, len(samples) + 1)])


def table_of_objects(path, samples, places):
    """JSON objects -> Table; None where an object lacks a column that another has."""
    names = {}
    for sample, place in zip(samples, places):
        if not isinstance(sample, dict):
            raise InputError(f"{path}, {place}: {str(sample)[:40]!r} is no object like "
                             '{"text": "..", "label": ".."}')
        names.update(dict.fromkeys(sample))
    columns = {}
    for column in names:
        columns[column] = [sample.get(column) for sample in samples]
    return Table(path, columns, places, None)


def read_parquet(path):
    split = read_parquet_parts([path])
    columns = {column: split[column][:] for column in split.column_names}
    feature = split.features.get("label")
    class_names = None
    # The numbers of a ClassLabel become its names; -1 means unknown.
    if isinstance(feature, ClassLabel):
        class_names = tuple(feature.names)
        known = dict(enumerate(class_names))
        columns["label"] = [known.get(number) for number in columns["label"]]
    return Table(path, columns, [f"sample {i}" for i in range(1, len(split) + 1)], class_names)


READERS = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".parquet": read_parquet,
}


def well_known(columns):
    """The one pair of well-known names among the columns, or else the one such name, or ()."""
    pairs = [pair for pair in PAIRS if set(pair) <= set(columns)]
    singles = [name for name in SINGLES if name in columns]
    if len(pairs) == 1:
        return pairs[0]
    if not pairs and len(singles) == 1:
        return (singles[0],)
    return ()


def choose_text_columns(table):
    """One or two columns: all but `label` and a numbering, or else names that are well known."""
    present = list(table.columns)
    if "label" not in present:
        raise InputError(f"{table.path} has no column label; found {', '.join(present)[:80]!r}; "
                         "call the column with the classes label")
    numbering = [column for column in present if column.lower() in NUMBERING]
    texts = [column for column in present if column != "label" and column not in numbering]
    if not texts:
        raise InputError(f"{table.path} has no text column; found {', '.join(present)!r}")

    # A pair gets its usual order, whatever the file's; of many columns the known ones are taken.
    known = well_known(texts)
    if known and len(texts) > 2:
        texts = known
    if set(known) == set(texts):
        texts = known
    if len(texts) > 2:
        raise InputError(f"{table.path} has {len(texts)} columns that may be texts: "
                         f"{', '.join(texts)[:80]}; keep one or two beside label, or call them "
                         "sentence1 and sentence2")
    left_out = [column for column in present if column not in (*texts, "label")]
    if left_out:
        remark(f"{table.path}: left out the columns {', '.join(map(repr, left_out))}")
    return tuple(texts)


def label_names(table):
    """The label column as R strings, None where it is missing.  An integral 2.0 becomes "2"."""
    names = []
    for label, place in zip(table.columns["label"], table.places):
        if isinstance(label, float):
            # pandas makes numbers with gaps floats; a NaN (unlike itself) is the gap.
            if label != label:
                label = None
            elif label.is_integer():
                label = int(label)
        if not isinstance(label, (str, int, float, type(None))):
            raise InputError(f"{table.path}, {place}: label {str(label)[:40]!r} is neither a "
                             "string nor a number")
        # Spaces at the ends cannot be seen, so they make no class of their own.
        name = "" if label is None else str(label).strip()
        check_characters(table.path, place, name)
        names.append(name or None)
    return names


def check_characters(path, place, text):
    """InputError for half a surrogate pair, which JSON can spell ("\\ud83d") and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise InputError(f"{path}, {place}: {half!r} is half a character (an emoji cut in two?); "
                         "mend the text") from None


def choose_classes(table):
    """The classes in order, a tuple of K strings."""
    names = label_names(table)
    for name, place in zip(names, table.places):
        if name is None:
            raise InputError(f"{table.path}, {place}: the label is missing")
    classes = sorted(set(names))
    if all(NUMBER.fullmatch(name) for name in classes):
        classes.sort(key=float)
        for one, next_one in zip(classes, classes[1:]):
            if float(one) == float(next_one):
                raise InputError(f"{table.path}: the labels {one} and {next_one} are one number; "
                                 "write it in one way")
    if table.class_names:
        classes = table.class_names
    if not 2 <= len(classes) <= MOST_CLASSES:
        shown = ", ".join(classes[:3])[:80]
        raise InputError(f"{table.path}: the column label has {len(classes)} different value(s) "
                         f"({shown}, ..); it takes 2 to {MOST_CLASSES} classes")
    return tuple(classes)


def encode(table, text_columns, classes, split):
    """Table -> Dataset of the text columns and `label`: int, -1 where a test file does not say."""
    is_test = split == "test"
    for column in text_columns:
        if column not in table.columns:
            raise InputError(f"{table.path}: train has the texts {', '.join(text_columns)}; "
                             f"found {', '.join(table.columns)[:80]!r}")
        for text, place in zip(table.columns[column], table.places):
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"{table.path}, {place}: the text {column} is missing")
            check_characters(table.path, place, text)

    unlabelled = is_test and "label" not in table.columns
    if unlabelled:
        names = [None] * len(table.places)
    elif "label" in table.columns:
        names = label_names(table)
    else:
        raise InputError(f"{table.path} has no column label")
    numbers = {name: number for number, name in enumerate(classes)}
    if is_test:
        numbers[None] = -1
    for name, place in zip(names, table.places):
        if name not in numbers:
            raise InputError(f"{table.path}, {place}: label {name!r} is no class of train")
    columns = {column: table.columns[column] for column in text_columns}
    return Dataset.from_dict(columns | {"label": [numbers[name] for name in names]})


def set_dev_aside(split, path):
    """(train, dev): a tenth of the samples, at least one, is dev; every class stays in train."""
    labels = split["label"][:]
    left = Counter(labels)
    order = list(range(len(labels)))
    random.Random(0).shuffle(order)
    wanted = max(1, round(DEV_SHARE * len(labels)))
    dev = []
    for i in order:
        if len(dev) < wanted and left[labels[i]] > 1:
            left[labels[i]] -= 1
            dev.append(i)
    if not dev:
        raise InputError(f"{path}: each class has one sample, so none can be set aside as dev; "
                         "add samples or a dev file")
    train = sorted(set(order) - set(dev))
    return split.select(train), split.select(sorted(dev))


def check_rows(name, data, splits):
    """InputError for a split without samples."""
    for split_name, split in splits.items():
        if len(split) == 0:
            raise InputError(f"{name}: the {split_name} split in {data} has no rows")


def check_classes(task, train):
    """InputError for a class without samples in train.

    It would never be learnt: its label embedding would only be pushed away.
    """
    present = set(train["label"][:])
    for number, label in enumerate(task.labels):
        if number not in present:
            raise InputError(f"{task.name}: no row of train has the label {label}, and it takes "
                             "all classes to train; look at the data, --limit-train and --holdout")


def check_own_name(name, data, tasks):
    """InputError where `name` cannot be a task of one's own, or `data` is no file or folder."""
    if name.lower() == "stsb":
        raise InputError("unknown task 'stsb': STS-B is regression, so there are no classes and no "
                         f"label embeddings to align with; choose one of {', '.join(tasks)}")
    plain = re.sub("[^a-z0-9]", "", name.lower())  # SST-2 as GLUE spells it, RTE
    if plain in tasks:
        raise InputError(f"unknown task {name!r}; did you mean {plain}?")
    is_local = is_here("--data", data)
    if not is_local:
        raise InputError(f"unknown task {name!r}; choose one of {', '.join(tasks)}, or another "
                         "name and a file of your own: --data FILE.csv")
    if not re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_-]*", name):
        raise InputError(f"--task {name!r}: a name of your own has letters, digits, - and _ only")


def fingerprint(split):
    """Tokenised split -> 16 hex digits over its tokens and labels, in order.

    The same on every machine, whatever chunks or indices the table has.
    """
    lengths, tokens, labels = (hashlib.sha256() for _ in range(3))
    for table in split.with_format("arrow").iter(10_000):
        for column in table.column("input_ids").chunks:
            # Where one sample ends and the next begins counts too.
            lengths.update(little_endian(column.value_lengths()))
            tokens.update(little_endian(column.flatten()))
        for column in table.column("label").chunks:
            labels.update(little_endian(column))
    together = lengths.digest() + tokens.digest() + labels.digest()
    return hashlib.sha256(together).hexdigest()[:16]


def little_endian(integers):
    """An arrow array of integers as bytes, 8 of each, in the same order on every machine."""
    return integers.to_numpy(zero_copy_only=False).astype("<i8").tobytes()
