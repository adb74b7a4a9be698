"""tools/data.py: GLUE's layouts, one's own files, what is wrong with them, and fingerprints."""

import datasets
import pandas
import pytest
from datasets import ClassLabel, Dataset

import glue
from tests.test_glue import texts
from tools import data
from tools.errors import InputError

datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """What the hub answers is said by the one test that asks it."""
    monkeypatch.setattr(datasets, "load_dataset", None)


def write(path, content):
    """A file with this text, these bytes or these columns; returns its path as a string."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        pandas.DataFrame(content, index=["y", "z"]).to_parquet(path)
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


PAIRS = 'index\tsentence1\tsentence2\tlabel\n0\t"A b\tC\t'
PAIRS_TEST = 'index\tsentence1\tsentence2\n0\t"A b\tC\n'
RTE = PAIRS + "not_entailment\n1\tD\t\tentailment\n"
MRPC_TEST = 'index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t5\t4\t"A b\tC\n'
MRPC = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t5\t4\t"A b\tC\n0\t5\t4\tD\tE\n'
QQP = 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\t"A b\tC\t1\n1\t2\t3\tD\tE\t0\n'
QNLI_TEST = 'index\tquestion\tsentence\n0\t"A b\tC\n'
QNLI = "index\tquestion\tsentence\tlabel\n0\t\"A b\tC\tnot_entailment\n1\tD\tE\tentailment\n"
MNLI = (
    "index\tgenre\tsentence1\tsentence2\tlabel1\tgold_label\n"
    '0\tx\t"A b\tC\tneutral\tneutral\n'
    "1\tx\tD\tE\tneutral\tentailment\n"
    "2\tx\tD\tE\tneutral\tcontradiction\n"
)
# task: the download's train and dev, and its test.  The first sample is "A b, C, of class 1.
DOWNLOAD = {
    "rte": (RTE, PAIRS_TEST),
    "wnli": (PAIRS + "1\n1\tD\tE\t0\n", PAIRS_TEST),
    "mrpc": (MRPC, MRPC_TEST),
    "cola": ('gj04\t1\t\t"A b\ngj04\t0\t*\tB.\n', 'index\tsentence\n0\t"A b\n'),
    "sst2": ('sentence\tlabel\n"A b\t1\nc\t0\n', 'index\tsentence\n0\t"A b\n'),
    "qnli": (QNLI, QNLI_TEST),
    "qqp": (QQP, 'id\tquestion1\tquestion2\n0\t"A b\tC\n'),
    "mnli": (MNLI, 'index\tgenre\tsentence1\tsentence2\n0\tx\t"A b\tC\n'),
}


def write_download(folder, task, **files):
    """The task's files as GLUE's download has them, perhaps with another train."""
    labelled, test = DOWNLOAD[task]
    for name in glue.split_names(glue.TASKS[task], with_test=True):
        content = files.get(name, test if name.startswith("test") else labelled)
        write(folder / glue.TASKS[task].folder / f"{name}.tsv", content)
    return str(folder)


@pytest.mark.parametrize("task", DOWNLOAD)
def test_the_download(task, tmp_path):
    """Quotes are plain characters, and the columns have the hub's names and order."""
    _, splits = glue.load_task(task, write_download(tmp_path, task), with_test=True)
    columns = glue.TASKS[task].text_columns
    for name, split in splits.items():
        assert split.column_names == [*columns, "label"]
        assert texts(split)[0] == ('"A b', "C")[:len(columns)]
        assert split["label"][:2] == ([-1] if name.startswith("test") else [1, 0])


def test_short_rows_of_qqps_train_are_skipped_with_a_remark(tmp_path, capsys):
    folder = write_download(tmp_path, "qqp", train=QQP + "5\t6\n")
    assert len(glue.load_task("qqp", folder)[1]["train"]) == 2
    assert "train.tsv: 1 rows are too short and skipped" in capsys.readouterr().err


def test_only_a_newline_ends_a_row_and_only_a_tab_a_cell(tmp_path):
    odd = '"A b\v\f\x1c\x85\u2028\0 c"'
    folder = write_download(tmp_path, "rte", train=RTE.replace('"A b', odd))
    assert texts(glue.load_task("rte", folder)[1]["train"]) == [(odd, "C"), ("D", "")]


def test_the_hub_and_a_copy_of_it(tmp_path, monkeypatch):
    folder = tmp_path / "glue[v1]*"  # no part of a path is taken for a pattern
    (folder / "mnli").mkdir(parents=True)
    names = ["train"]
    names += ["validation_matched", "validation_mismatched", "test_matched", "test_mismatched"]
    tables = {}
    for name in names:
        columns = {"hypothesis": [name, "B", ""], "premise": ["D", "E", "F"], "label": [2, 0, 1]}
        table = Dataset.from_dict(columns | {"idx": [0, 1, 2]})
        table = table.cast_column("label", ClassLabel(names=["yes", "perhaps", "no"]))
        table.to_parquet(folder / "mnli" / f"{name}-00000-of-00001.parquet")
        tables[name] = table

    monkeypatch.setattr(datasets, "load_dataset", lambda data, name, split: tables[split])
    for source in (str(folder), "nyu-mll/glue"):
        _, splits = glue.load_task("mnli", source, with_test=True)
        for split, name in zip(splits.values(), names, strict=True):
            assert split.column_names == ["premise", "hypothesis", "label"]
            assert split.to_dict() == tables[name].remove_columns("idx").to_dict()


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
    ("carriage\r\nreturn", "good"),
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
    """Texts stay exactly as they stand, also where pandas would take them for something else."""
    write_own(tmp_path / f"train{kind}", SAMPLES)
    write_own(tmp_path / f"test{kind}", [text for text, _ in SAMPLES], ["text"])
    task, splits = glue.load_task("mine", str(tmp_path), with_test=True)
    assert (task.text_columns, task.labels) == (("text",), ("bad", "good", "so so"))
    assert texts(splits["test"]) == [(text,) for text, _ in SAMPLES]
    together = own_samples(task, splits["train"]) + own_samples(task, splits["dev"])
    assert sorted(together) == sorted(SAMPLES)
    assert capsys.readouterr().err == (
        "mine: texts from text; 3 classes: bad | good | so so\n"
        "mine: no dev file; 1 of 12 samples, drawn with a fixed seed, are dev\n"
    )

    write_own(tmp_path / f"Val{kind}", SAMPLES[:2])
    task, splits = glue.load_task("mine", str(tmp_path))
    assert own_samples(task, splits["train"]) == SAMPLES
    assert own_samples(task, splits["dev"]) == SAMPLES[:2]


@pytest.mark.parametrize("given, order", [
    (["b", "a", "C", " a"], ("C", "a", "b")),
    (["10", "9", "x"], ("10", "9", "x")),
    ([0.5, 2.0, 2, "2.00", -1.0], ("-1", "0.5", "2")),
    ([True, False], ("False", "True")),
])
def test_order_of_classes(given, order, tmp_path):
    path = write_own(tmp_path / "mine.json", [("a text", label) for label in given] * 2)
    assert glue.load_task("mine", path)[0].labels == order


def test_quotes_of_a_tsv_are_plain_unless_all_of_them_are_around_cells(tmp_path):
    """Otherwise a quotation's first row would swallow those up to its end."""
    rows = ["text\tlabel", '"I came.\tx', 'I saw."\ty', '"quoted"\tx', 'say ""\ty']
    for some in (rows, rows[:-1]):
        table = data.read_table(write(tmp_path / "a.tsv", "\n".join(some)))
        assert ["\t".join(row) for row in table.values] == some[1:]


def test_a_european_excels_csv(tmp_path):
    text = '\ufeffText;LABEL\r\n"a, b; ""c""";x\r\n"d\r\ne";y\r\n\r\n'
    table = data.read_table(write(tmp_path / "a.csv", text))
    assert table.to_dict("list") == {"Text": ['a, b; "c"', "d\r\ne"], "label": ["x", "y"]}


@pytest.mark.parametrize("known, expected", [("0", [1, -1, -1, -1]), ("-1", [1, -1, -1, 0])])
def test_labels_that_a_test_file_hides(known, expected, tmp_path):
    write(tmp_path / "train.csv", f"text,label\na,{known}\nb,1\nc,1\n")
    write(tmp_path / "test.csv", "text,label\na,1\nb,?\nc,\nd,-1\n")
    _, splits = glue.load_task("mine", str(tmp_path), with_test=True)
    assert splits["test"]["label"][:] == expected


@KINDS
def test_a_table_for_prediction_keeps_its_rows_and_has_texts(kind, tmp_path):
    """An empty text stays a row, so that predictions belong to their rows."""
    rows = ["fine film", "", "nasty", "NA"]
    table = data.read_table(write_own(tmp_path / f"a{kind}", rows, ["text"]))
    assert table["text"].tolist() == rows
    table = data.read_table(write_own(tmp_path / f"b{kind}", [5, 6], ["text"]))
    assert table["text"].tolist() == ["5", "6"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_a_row_lacks_is_no_empty_text(end, tmp_path):
    """An empty line is a row like others, but at the end of a file it is none."""
    path = write(tmp_path / "a.csv", "first,second\na,\nb\n\nc,d\n\n".replace("\n", end))
    table = data.read_table(path)
    assert table.isna().values.tolist() == [[False] * 2, [False, True], [True] * 2, [False] * 2]


def test_a_numbering_of_the_rows_is_no_text(tmp_path):
    for number in ("", "Id"):  # pandas and Excel leave out its name
        path = write(tmp_path / "a.csv", f"{number},text,label\n0,a,x\n1,b,y\n2,c,y\n")
        assert glue.load_task("mine", path)[0].text_columns == ("text",)


@pytest.mark.parametrize("position, dev", [(0, [12, 21, 27, 29]), (39, [0, 12, 21, 27])])
def test_a_dev_share_is_fixed_and_leaves_every_class_in_train(position, dev, tmp_path):
    """`position`'s row is the only one of its class.  No run can be resumed where dev changes."""
    samples = [(f"text {i}", "z" if i == position else "xy"[i % 2]) for i in range(40)]
    task, splits = glue.load_task("mine", write_own(tmp_path / "mine.csv", samples))
    assert own_samples(task, splits["dev"]) == [samples[i] for i in dev]
    assert own_samples(task, splits["train"]) == [s for i, s in enumerate(samples) if i not in dev]


# ------------------------------------------------------------------------------ bad input


ROW = "index\tsentence1\tsentence2\tlabel\n0\tA\tB\t"


@pytest.mark.parametrize("train, words", [
    ("a\tb\n0\tA\n", "train.tsv: ValueError: the header must have sentence1, sentence2, label"),
    (ROW[:32], "train.tsv has no rows"),
    (ROW + "entailment\n1\tA\tB\n", "sample 2: label '' is none of"),
    (ROW + "entailment\n1\tA\n", "sample 2: sentence2 nan is missing"),
    (ROW + "entailment\n" + "x\t" * 9, "ValueError: line 3 has 10 cells, the header 4"),
    (ROW + "neutral\n", "train.tsv, sample 1: label 'neutral' is none of entailment, not_entail"),
    (b"a\tb\n\xff", "train.tsv: UnicodeDecodeError"),
    (ROW + "entailment\n", "no row of train has the label not_entailment"),
])
def test_bad_downloads(train, words, tmp_path):
    assert words in refusal("rte", write_download(tmp_path, "rte", train=train))


XY = "text,label\na,x\nb,y\nc,y\n"
REGRESSION = "text,label\n" + "".join(f"a,{i / 7}\n" for i in range(999))


@pytest.mark.parametrize("name, content, words", [
    ("a.csv", "text,label\n", "a.csv has no rows"),
    ("a.csv", "text,class\na,x\n", "must have a column label"),
    ("a.csv", "a,b,c,label\n1,2,3,x\n", "found a, b, c, label"),
    ("a.csv", "text,label,Label\na,b,x\n", "names one column twice: text, label, label"),
    ("a.csv", "text,label\na,x\nb,x\n", "1 different value(s)"),
    ("a.csv", REGRESSION, "999 different value(s)"),
    ("a.csv", XY + "  ,y\n", "a.csv, sample 4: text nan is missing"),
    ("a.csv", XY + "d,\n", "sample 4: label nan is missing"),
    ("a.csv", XY + "d,y,z\n", "a.csv: ValueError: line 5 has 3 cells, the header 2"),
    ("a.csv", 'text,label\na,x\n"b,y\nc,y\n', "unexpected end"),
    ("a.csv", "text\na\rb\n", "new-line character"),
    ("a.csv", XY.encode("utf-16"), "a.csv: UnicodeDecodeError"),
    ("a.csv", XY[:19], "a.csv: each class has one sample"),
    ("a.tsv", 'text\tlabel\n"a\tb\nc\nd"\tx\n', "sample 2: label nan is missing"),
    ("a.jsonl", '\ufeff{"text": "a"}\n{"text": ', "JSONDecodeError: Expecting value: line 2"),
    ("a.jsonl", '["a", 1]\n', "must have a column label"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"label": 2}\n', "sample 2: text nan is missing"),
    ("a.jsonl", '{"text": "a", "label": [1]}\n', "sample 1: label nan is missing or no text"),
    ("a.parquet", b"PAR1", "a.parquet: ArrowInvalid"),
    ("a.parquet", {"text": [[1], [2]], "label": [0, 1]}, "sample 1: text nan is missing"),
    ("a.xlsx", XY, "a.xlsx is none of .csv"),
])
def test_bad_own_files(name, content, words, tmp_path):
    line = refusal("mine", write(tmp_path / name, content))
    assert words in line, line


@pytest.mark.parametrize("files, words", [
    ({"dev.csv": XY, "test.csv": XY}, "has no file train of your own"),
    ({"train.csv": XY, "dev.csv": XY}, "has no file test of your own"),
    ({"train.csv": XY, "train.tsv": XY}, "train.csv and train.tsv both hold train"),
    ({"train.csv": XY, "test.csv": "text,label\na,z\n"}, "test.csv, sample 1: label 'z' is"),
    ({"train.csv": XY, "test.csv": XY, "dev.csv": XY + "d,?\n"}, "sample 4: label '?' is none"),
    ({"train.csv": XY, "test.csv": XY, "dev.csv": "text\na\n"}, "dev.csv, sample 1: label '' is"),
])
def test_bad_own_folders(files, words, tmp_path):
    for name, content in files.items():
        write(tmp_path / name, content)
    assert words in refusal("mine", str(tmp_path), with_test=True)


@pytest.mark.parametrize("task, source, words", [
    ("rtee", "nyu-mll/glue", "rtee is none of GLUE's"),
    ("../x", ".", "letters, digits, - and _ only"),
    ("rte", "./nowhere", "./nowhere: there is no such file or folder"),
    ("mine", "here/typo", "here/typo: there is no such file or folder"),
    ("mine", "mine.cvs", "there is no mine.cvs here"),
    ("rte", ".", "there is no RTE/train.tsv (GLUE's download), and"),
    ("rte", ".", "can be read (FileNotFoundError: rte/train-00000-of-00001.parquet)"),
    ("rte", "a.csv", "data of your own need a --task of their own"),
    ("rte", "here", "RTE/train.tsv: IsADirectoryError"),
    ("rte", "nyu-mll/glue", "hf download nyu-mll/glue --repo-type dataset --local-dir glue"),
    ("rte", "nyu-mll/glue", "without data there is --task demo"),
])
def test_bad_places(task, source, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.csv", XY)
    (tmp_path / "here" / "RTE" / "train.tsv").mkdir(parents=True)
    assert words in refusal(task, source)


def test_a_class_only_in_the_held_out_end(tmp_path):
    assert "the label entailment" in refusal("rte", write_download(tmp_path, "rte"), holdout=1)


# ------------------------------------------------------------------------------ fingerprints


def test_a_fingerprint_is_of_tokens_and_labels_alone():
    samples = [[1, 2, 3], [], [4, 70_000], [5]]
    split = Dataset.from_dict({"input_ids": samples, "label": [0, 1, 1, 0]})

    # Other chunks, indices instead of a table, other columns: the same.
    parts = datasets.concatenate_datasets([split.take(1), split.skip(1)])
    turned = split.select([3, 2, 1, 0]).flatten_indices().select([3, 2, 1, 0])
    for same in (split, parts, turned, split.add_column("token_type_ids", samples)):
        assert data.fingerprint(same) == "fb0be9a9d035d4d3"

    # Other ends of the samples, another order, other labels: another.
    for tokens, last in (([[1, 2], [3], *samples[2:]], 0), (samples[::-1], 0), (samples, 1)):
        other = Dataset.from_dict({"input_ids": tokens, "label": [0, 1, 1, last]})
        assert data.fingerprint(other) != "fb0be9a9d035d4d3"
