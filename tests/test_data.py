"""tools/data.py: GLUE's layouts, one's own files, what is wrong with them, and fingerprints.

Where a folder `data` holds GLUE's download, its real files are read, too.
"""

import random
from pathlib import Path

import datasets
import pandas
import pytest
from datasets import ClassLabel, Dataset

import glue
from tests.test_glue import texts
from tools import data
from tools.errors import InputError

datasets.disable_progress_bars()
GLUE = Path(__file__).parent.parent / "data"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """What the hub answers is said by the one test that asks it."""
    monkeypatch.setattr(datasets, "load_dataset", None)


def write(path, content):
    """A file with this text, these bytes or these columns; returns its path as a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        pandas.DataFrame(content).to_parquet(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def refusal(*arguments, **options):
    """The one line of load_task's InputError."""
    with pytest.raises(InputError) as caught:
        glue.load_task(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line


# ------------------------------------------------------------------------------ GLUE


PAIRS = 'index\tsentence1\tsentence2\tlabel\n0\tA "b\tC\t'
PAIRS_TEST = 'index\tsentence1\tsentence2\n0\tA "b\tC\n'
RTE = PAIRS + "not_entailment\n1\tD\t\tentailment\n"
MRPC = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t5\t4\tA "b\tC\n0\t5\t4\tD\tE\n'
MRPC_TEST = 'index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t5\t4\tA "b\tC\n'
QQP = 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tA "b\tC\t1\n1\t2\t3\tD\tE\t0\n'
QNLI_TEST = 'index\tquestion\tsentence\n0\tA "b\tC\n'
QNLI = "index\tquestion\tsentence\tlabel\n0\tA \"b\tC\tnot_entailment\n1\tD\tE\tentailment\n"
MNLI = (
    "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
    '0\tx\tA "b\tC\tneutral\tneutral\n'
    "1\tx\tD\tE\tneutral\tentailment\n"
    "2\tx\tD\tE\tneutral\tcontradiction\n"
)
# task: the download's train and dev, and its test.  The first sample is A "b, C, of class 1.
DOWNLOAD = {
    "rte": (RTE, PAIRS_TEST),
    "wnli": (PAIRS + "1\n1\tD\tE\t0\n", PAIRS_TEST),
    "mrpc": (MRPC, MRPC_TEST),
    "cola": ('gj04\t1\t\tA "b\ngj04\t0\t*\tB.\n', 'index\tsentence\n0\tA "b\n'),
    "sst2": ('sentence\tlabel\nA "b\t1\nc\t0\n', 'index\tsentence\n0\tA "b\n'),
    "qnli": (QNLI, QNLI_TEST),
    "qqp": (QQP, 'id\tquestion1\tquestion2\n0\tA "b\tC\n'),
    "mnli": (MNLI, 'index\tgenre\tsentence1\tsentence2\n0\tx\tA "b\tC\n'),
}


def write_download(folder, task, train=None):
    """The task's files as GLUE's download has them, perhaps with another train."""
    labelled, test = DOWNLOAD[task]
    for name in glue.split_names(glue.TASKS[task], with_test=True):
        text = test if name.startswith("test") else labelled
        if name == "train" and train is not None:
            text = train
        write(folder / glue.TASKS[task].folder / f"{name}.tsv", text)
    return str(folder)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("task", DOWNLOAD)
def test_the_download(task, end, tmp_path):
    """The folder above may be given or the task's own; quotes are plain characters."""
    folder = write_download(tmp_path, task, DOWNLOAD[task][0].replace("\n", end))
    columns = glue.TASKS[task].text_columns
    for place in (folder, f"{folder}/{glue.TASKS[task].folder}"):
        _, splits = glue.load_task(task, place, with_test=True)
        for name, split in splits.items():
            assert split.column_names == [*columns, "label"]
            assert texts(split)[0] == ('A "b', "C")[:len(columns)]
            assert split["label"][:2] == ([-1] if name.startswith("test") else [1, 0])


def test_short_rows_of_qqps_train_are_skipped_with_a_remark(tmp_path, capsys):
    folder = write_download(tmp_path, "qqp", QQP + "5\t6\n")
    assert len(glue.load_task("qqp", folder)[1]["train"]) == 2
    assert "row 4 is too short and skipped" in capsys.readouterr().err


@pytest.mark.parametrize("odd", ["\r", "\v", "\f", "\x1c", "\x85", "\u2028", "\0", "w " * 10**5])
def test_only_a_newline_ends_a_row_and_only_a_tab_a_cell(odd, tmp_path):
    folder = write_download(tmp_path, "rte", RTE.replace('"b', f'{odd}"b{odd}c'))
    _, splits = glue.load_task("rte", folder)
    assert texts(splits["train"]) == [(f'A {odd}"b{odd}c', "C"), ("D", "")]


def write_hub(folder, task, **train):
    """A copy of the hub's repository; returns its tables.  train: other columns there."""
    spec = glue.TASKS[task]
    names = [*data.HUB_CLASSES.get(task, spec.labels)]
    (folder / task).mkdir(parents=True, exist_ok=True)
    tables = {}
    for name in glue.split_names(spec, with_test=True):
        columns = {column: [f"{name} {column}", "B", "C"] for column in spec.text_columns}
        columns["label"] = [-1] * 3 if name.startswith("test") else [1, 0, len(names) - 1]
        if name == "train":
            columns |= train
        table = Dataset.from_dict(columns).cast_column("label", ClassLabel(names=names))
        name = name.replace("dev", "validation")
        table.to_parquet(folder / task / f"{name}-00000-of-00001.parquet")
        tables[name] = table
    return tables


@pytest.mark.parametrize("task", DOWNLOAD)
def test_the_hub_and_a_copy_of_it(task, tmp_path, monkeypatch):
    folder = tmp_path / "glue[v1]*"  # no part of a path is taken for a pattern
    tables = write_hub(folder, task)
    monkeypatch.setattr(datasets, "load_dataset", lambda data, name, split: tables[split])
    for source in (str(folder), "nyu-mll/glue"):
        _, splits = glue.load_task(task, source, with_test=True)
        for name, split in splits.items():
            assert split.to_dict() == tables[name.replace("dev", "validation")].to_dict()


@pytest.mark.skipif(not (GLUE / "RTE").is_dir(), reason="no GLUE download in data/")
@pytest.mark.parametrize("task, sizes", {
    "rte": "2490 277 3000",
    "mrpc": "3668 408 1725",
    "cola": "8551 1043 1063",
    "sst2": "67349 872 1821",
    "wnli": "635 71 146",
}.items())
def test_real_files(task, sizes):
    """Read as GLUE's, and as a file to predict, which must know these quotes as well."""
    spec, splits = glue.load_task(task, str(GLUE), with_test=True)
    assert " ".join(str(len(split)) for split in splits.values()) == sizes
    table = data.read_table(GLUE / spec.folder / "test.tsv")
    assert [tuple(row) for row in table[[*spec.tsv_columns]].values] == texts(splits["test"])


# ------------------------------------------------------------------------------ own files


SAMPLES = [
    ("It rains, again; and", "bad"),
    ('He said ""fine"" film', "good"),
    ('"quoted"', "so so"),
    ("two\nlines", "so so"),
    ("NA", "bad"),
    ("null", "good"),
    ("tab\there", "so so"),
    ("  spaces  ", "bad"),
    ("007", "good"),
    ("ünï — 漢字", "so so"),
    ("#no, comment", "bad"),
]
KINDS = pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])


def write_own(path, samples, columns=("text", "label")):
    """Samples as pandas writes them; returns the path."""
    frame = pandas.DataFrame(samples, columns=list(columns))
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix.startswith(".json"):
        frame.to_json(path, orient="records", lines=path.suffix == ".jsonl")
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


def own_samples(task, split):
    """What was read, as (texts.., label's name)."""
    return [(*row, task.labels[k]) for row, k in zip(texts(split), split["label"])]


@KINDS
def test_own_files_of_each_kind(kind, tmp_path, capsys):
    write_own(tmp_path / f"train{kind}", SAMPLES)
    write_own(tmp_path / f"test{kind}", [text for text, _ in SAMPLES], ["text"])
    task, splits = glue.load_task("mine", str(tmp_path), with_test=True)
    assert task.labels == ("bad", "good", "so so")
    together = own_samples(task, splits["train"]) + own_samples(task, splits["dev"])
    assert sorted(together) == sorted(SAMPLES)
    assert texts(splits["test"]) == [(text,) for text, _ in SAMPLES]
    told = capsys.readouterr().err
    assert "mine: texts from text; 3 classes: bad | good | so so\n" in told
    assert f"no dev file; 1 of the 11 samples of train{kind}" in told

    write_own(tmp_path / f"Val{kind}", SAMPLES[:2])
    task, splits = glue.load_task("mine", str(tmp_path))
    assert own_samples(task, splits["train"]) == SAMPLES
    assert own_samples(task, splits["dev"]) == SAMPLES[:2]


@KINDS
def test_a_number_is_one_class_however_a_file_spells_it(kind, tmp_path):
    write_own(tmp_path / f"train{kind}", [("a", 0.0), ("b", 1.0), ("c", 10.0), ("d", 2.0)])
    write_own(tmp_path / f"dev{kind}", [("a", 10), ("b", 0)])
    task, splits = glue.load_task("mine", str(tmp_path))
    assert task.labels == ("0", "1", "2", "10")
    assert splits["dev"]["label"][:] == [3, 0]


@pytest.mark.parametrize("given, order", [
    (["b", "a", "C"], ("C", "a", "b")),
    (["10", "9", "x"], ("10", "9", "x")),
    ([0.5, 2.0, -1.0], ("-1", "0.5", "2")),
    ([" a", "b ", "a"], ("a", "b")),
    ([True, False], ("False", "True")),
])
@pytest.mark.parametrize("kind", [".csv", ".json", ".parquet"])
def test_order_of_classes(kind, given, order, tmp_path):
    path = write_own(tmp_path / f"mine{kind}", [("a text", label) for label in given] * 2)
    assert glue.load_task("mine", path)[0].labels == order


def test_a_parquet_file_that_names_its_classes_keeps_their_order(tmp_path):
    table = Dataset.from_dict({"text": ["A", "B", "C", "D"], "label": [2, 0, 1, -1]})
    table = table.cast_column("label", ClassLabel(names=["z", "a", "m"]))
    for name, rows in {"train": 3, "dev": 3, "test": 4}.items():
        table.take(rows).to_parquet(tmp_path / f"{name}.parquet")
    task, splits = glue.load_task("mine", str(tmp_path), with_test=True)
    assert task.labels == ("z", "a", "m")
    assert splits["test"]["label"][:] == [2, 0, 1, -1]


def test_quotes_of_a_tsv_are_plain_unless_all_of_them_are_around_cells(tmp_path):
    """Otherwise a quotation's first row would swallow those up to its end."""
    rows = ["text\tlabel", '"I came.\tx', 'I saw."\ty', '"quoted"\tx', 'say ""\ty']
    for some in (rows, rows[:-1]):
        table = data.read_table(write(tmp_path / "a.tsv", "\n".join(some)))
        assert ["\t".join(row) for row in table.values] == some[1:]


def test_a_european_excels_csv(tmp_path):
    text = '\ufeff Text;LABEL\r\n"a, b; ""c""";x\r\n"d\r\ne";y\r\n\r\n'
    table = data.read_table(write(tmp_path / "a.csv", text))
    assert table.to_dict("list") == {"Text": ['a, b; "c"', "d\r\ne"], "label": ["x", "y"]}


def test_labels_that_a_test_file_hides(tmp_path):
    """-1 does not hide anything where it is a class of train."""
    write(tmp_path / "test.csv", "text,label\na,1\nb,?\nc,\nd,-1\n")
    for known, expected in {"0": [1, -1, -1, -1], "-1": [1, -1, -1, 0]}.items():
        write(tmp_path / "train.csv", f"text,label\na,{known}\nb,1\nc,1\n")
        _, splits = glue.load_task("mine", str(tmp_path), with_test=True)
        assert splits["test"]["label"][:] == expected


@KINDS
def test_no_row_of_one_column_vanishes(kind, tmp_path):
    """An empty text stays a row, so that predictions belong to their rows."""
    texts = ["fine film", "", "nasty", "NA"]
    table = data.read_table(write_own(tmp_path / f"a{kind}", texts, ["text"]))
    assert table["text"].tolist() == texts


def test_a_table_is_of_strings_and_says_where_rows_stand(tmp_path):
    lines = '\n{"text": 5, "b": null}\n\n{"text": "x", "b": true}\n'
    table = data.read_table(write(tmp_path / "a.jsonl", lines))
    assert table.to_dict("list") == {"text": ["5", "x"], "b": ["", "True"]}
    assert table.index.tolist() == ["sample 1", "sample 2"]
    table = data.read_table(write(tmp_path / "a.csv", "text\na\n\nb\n\n\n"))
    assert table["text"].to_dict() == {"row 2": "a", "row 3": "", "row 4": "b"}


@pytest.mark.parametrize("columns, expected, left_out", [
    ("label body title", "body title", ""),
    ("hypothesis premise label", "premise hypothesis", ""),
    ("Id text author date label", "text", "left out the columns 'Id', 'author', 'date'\n"),
    ("sentence2 genre sentence1 label text", "sentence1 sentence2", "columns 'genre', 'text'\n"),
])
def test_choice_of_text_columns(columns, expected, left_out, tmp_path, capsys):
    columns = columns.split()
    rows = [columns, columns[::-1]] * 2
    task, splits = glue.load_task("mine", write_own(tmp_path / "mine.csv", rows, columns))
    assert " ".join(task.text_columns) == expected
    assert expected in [" ".join(pair) for pair in texts(splits["train"])]
    assert left_out in capsys.readouterr().err


@pytest.mark.parametrize("alone, dev", [(0, [12, 21, 27, 29]), (39, [0, 12, 21, 27])])
def test_a_dev_share_is_fixed_and_leaves_every_class_in_train(alone, dev, tmp_path):
    """Row `alone` is the only one of its class.  No run can be resumed where dev changes."""
    samples = [(f"text {i}", "z" if i == alone else "xy"[i % 2]) for i in range(40)]
    _, splits = glue.load_task("mine", write_own(tmp_path / "mine.csv", samples))
    assert texts(splits["dev"]) == [(f"text {i}",) for i in dev]
    assert texts(splits["train"]) == [(f"text {i}",) for i in range(40) if i not in dev]


# ------------------------------------------------------------------------------ bad input


ROW = "index\tsentence1\tsentence2\tlabel\n0\tA\tB\t"


@pytest.mark.parametrize("train, words", [
    ("", "train.tsv must have rows with the columns sentence1, sentence2, label"),
    (ROW[:32], "found 0 rows"),
    ("a\tb\n0\tA\n", "found 1 rows with a, b"),
    (random.Random(0).randbytes(3000), "train.tsv: UnicodeDecodeError"),
    (b"\0" * 500, "train.tsv must have rows"),
])
def test_files_that_are_no_download(train, words, tmp_path):
    assert words in refusal("rte", write_download(tmp_path, "rte", train))


@pytest.mark.parametrize("rest, words", [
    ("entailment\n1\tA\tB\n", "train.tsv, row 3: 3 cells where the header has 4"),
    ("entailment\tx\n", "row 2: 5 cells where"),
    ("entailment\n\n1\tA\tB\tentailment\n", "row 3: 1 cells"),
    ("entailment\n" + "x\t" * 10**6, "row 3: 1000001 cells"),
    ("neutral\n", "row 2: label 'neutral' is none of entailment, not_entailment"),
    ("1.0\n", "row 2: label '1"),
    ("\n", "row 2: label ''"),
    ("entailment\n", "no row of train has the label not_entailment"),
])
def test_bad_downloads(rest, words, tmp_path):
    assert words in refusal("rte", write_download(tmp_path, "rte", ROW + rest))


XY = "text,label\na,x\nb,y\nc,y\n"
REGRESSION = "text,label\n" + "".join(f"a,{i / 7}\n" for i in range(999))


@pytest.mark.parametrize("name, content, words", [
    ("a.csv", "\n\r\n", "a.csv has no rows"),
    ("a.csv", "text,class\na,x\n", "must have a column label"),
    ("a.csv", "id,label\n1,x\n2,y\n", "one or two columns of texts"),
    ("a.csv", "a,b,c,label\n1,2,3,x\n", "found a, b, c, label"),
    ("a.csv", "text,text,label\na,b,x\n", "two columns have one name"),
    ("a.csv", "text,label,Label\na,b,x\n", "two columns have one name"),
    ("a.csv", "text,label\na,x\nb,x\n", "1 different value(s) (x"),
    ("a.csv", REGRESSION, "999 different value(s)"),
    ("a.csv", "text,label\na,x\n  ,y\n", "a.csv, row 3: text '  ' is missing"),
    ("a.csv", "text,label\na,x\nb,\n", "row 3: label '' is missing"),
    ("a.csv", 'text,label\n"a\n",x\nb\n', "row 3: 1 cells where the header has 2"),
    ("a.csv", "text,label\na,x,1\nb,y,1\n", "row 2: 3 cells"),
    ("a.csv", 'text,label\na,x\n"b,y\nc,y\n', "row 3: unexpected end"),
    ("a.csv", 'text,label\n"a"b,x\n', "row 2: ',' expected"),
    ("a.csv", "text,label\ra,x\rb,y\r", "row 1: new-line character"),
    ("a.csv", "text,label\nä,x\n".encode("latin-1"), "a.csv: UnicodeDecodeError"),
    ("a.csv", XY.encode("utf-16"), "UnicodeDecodeError"),
    ("a.csv", XY[:19], "a.csv: each class has one sample"),
    ("a.tsv", 'text\tlabel\na"\tx\nb\n', "a.tsv, row 3: 1 cells"),
    ("a.tsv", 'text\tlabel\n"a\tb\nc\nd"\tx\n', "row 3: 1 cells"),
    ("a.jsonl", '{"text": "a"}\n{"text": ', "JSONDecodeError: Expecting value: line 2"),
    ("a.jsonl", '["a", 1]\n', "must have a column label"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"label": 2}\n', "sample 2: text '' is missing"),
    ("a.jsonl", '{"text": "a", "label": NaN}\n', "sample 1: label '' is missing"),
    ("a.jsonl", '{"text": "a", "label": [1]}\n', "sample 1: label [1] is missing or no text"),
    ("a.jsonl", '{"text": "b\\ud83d", "label": 1}\n', "surrogates not allowed"),
    ("a.jsonl", '{"text": 5, "label": 1}\n{"text": "\\ud83d"}', "a.jsonl: UnicodeEncodeError"),
    ("a.json", '{"text": {"0": "a"}, "label": {"0": 1}}', "label {'0': 1} is missing"),
    ("a.json", "[" * 10**5, "a.json: RecursionError"),
    ("a.json", "[]", "a.json has no rows"),
    ("a.parquet", b"PAR1", "a.parquet: ArrowInvalid"),
    ("a.parquet", {"text": ["a", None], "label": [0, 1]}, "sample 2: text '' is missing"),
    ("a.parquet", {"text": ["a", "b"], "label": [0, None]}, "sample 2: label '' is missing"),
    ("a.parquet", {"text": [[1], [2]], "label": [0, 1]}, "text [1] is missing or no text"),
    ("a.xlsx", XY, "a.xlsx is none of .csv"),
])
def test_bad_own_files(name, content, words, tmp_path):
    line = refusal("mine", write(tmp_path / name, content))
    assert words in line, line


@pytest.mark.parametrize("names, words", [
    ("dev.csv test.csv", "has no file train of your own"),
    ("train.csv dev.csv", "has no file test of your own"),
    ("train.csv train.tsv", "train.csv and train.tsv both hold train"),
    ("train.csv dev.csv valid.csv", "dev.csv and valid.csv both hold dev"),
])
def test_bad_own_folders(names, words, tmp_path):
    for name in names.split():
        write(tmp_path / name, XY)
    assert words in refusal("mine", str(tmp_path), with_test=True)


@pytest.mark.parametrize("name, content, words", [
    ("dev.csv", XY + "d,z\n", "dev.csv, row 5: label 'z' is none of x, y"),
    ("dev.csv", XY + "d,?\n", "row 5: label '?' is none of x, y"),
    ("dev.csv", "body,label\na,x\n", "must have rows with the columns text, label"),
    ("dev.csv", "text,label\n", "dev.csv has no rows"),
    ("test.csv", "text,label\na,z\n", "test.csv, row 2: label 'z' is none of x, y"),
])
def test_bad_files_beside_train(name, content, words, tmp_path):
    write(tmp_path / "train.csv", XY)
    write(tmp_path / name, content)
    assert words in refusal("mine", str(tmp_path), with_test=name == "test.csv")


@pytest.mark.parametrize("task, source, words", [
    ("rtee", "nyu-mll/glue", "rtee is none of GLUE's"),
    ("rtee", ".", "has no file train of your own"),
    ("../x", ".", "letters, digits, - and _ only"),
    ("rte", "./nowhere", "./nowhere: there is no such file or folder"),
    ("mine", "here/typo", "here/typo: there is no such file or folder"),
    ("mine", "mine.cvs", "mine.cvs has no file train of your own"),
    ("rte", "a.csv", "neither RTE/train.tsv (GLUE's download) nor rte/train-00000-of-00001.parq"),
    ("rte", "here", "RTE/train.tsv: IsADirectoryError"),
    ("rte", "nyu-mll/glue", "hf download nyu-mll/glue --repo-type dataset --local-dir glue"),
])
def test_bad_places(task, source, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.csv", XY)
    (tmp_path / "here" / "RTE" / "train.tsv").mkdir(parents=True)
    assert words in refusal(task, source)


def test_bad_copies_of_the_hub(tmp_path):
    write_hub(tmp_path, "rte", sentence1=["A", None, "C"])
    assert "parquet, sample 2: sentence1 " in refusal("rte", str(tmp_path))
    write_hub(tmp_path, "rte", label=[0, 1, -1])
    assert "sample 3: label '' is none of entailment, not_ent" in refusal("rte", str(tmp_path))
    for task in ("wnli", "mrpc"):
        assert "is it another task?" in refusal(task, str(tmp_path / "rte"))


def test_a_class_only_in_the_held_out_end(tmp_path):
    assert "the label entailment" in refusal("rte", write_download(tmp_path, "rte"), holdout=1)


# ------------------------------------------------------------------------------ fingerprints


def test_a_fingerprint_is_of_tokens_and_labels_alone():
    samples = [[1, 2, 3], [], [4, 70_000], [5]]
    split = Dataset.from_dict({"input_ids": samples, "label": [0, 1, 1, 0]})

    # Other chunks, indices instead of a table, other columns: the same.
    parts = datasets.concatenate_datasets([split.take(1), split.skip(1)])
    for same in (split, parts, parts.select(range(4)), split.add_column("more", samples)):
        assert data.fingerprint(same) == "fb0be9a9d035d4d3"

    # Other ends of the samples, another order, other labels: another.
    others = [[[1, 2], [3], [4, 70_000], [5]], samples[::-1], samples]
    for tokens, last in zip(others, (0, 0, 1)):
        other = Dataset.from_dict({"input_ids": tokens, "label": [0, 1, 1, last]})
        assert data.fingerprint(other) != "fb0be9a9d035d4d3"
