"""tools/errors.py: an expected error is one line and a status, any other keeps its traceback."""

import pytest
import torch

from tests.small import answer
from tools.errors import InputError, Parser, is_here, one_line_errors, reading


def run(error):
    """A command whose work raises an error."""
    with one_line_errors("program.py"):
        raise error


EXPECTED = [
    (InputError("a file\nis wrong"), 2, "a file is wrong"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (FloatingPointError("step 3: nan"), 1, "step 3: nan"),
    (OSError(28, "No space left on device", "model"), 1, "No space left on device: 'model'"),
    (MemoryError(), 1, "use a smaller --batch-size or --max-length"),
    (torch.OutOfMemoryError("CUDA out of memory.\nSee"), 1, "out of memory (OutOfMemoryError: "),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "use a smaller --batch-size"),
]


@pytest.mark.parametrize("error, expected, words", EXPECTED)
def test_an_expected_error_is_one_line(error, expected, words, capsys):
    status, out, line = answer(capsys, lambda argv: run(error))
    assert (status, out) == (expected, "")
    assert line.startswith("program.py: ")
    assert words in line
    assert line.count("\n") == 1


def test_a_fault_of_the_program_keeps_its_traceback():
    for error in (RuntimeError("shapes differ"), KeyError("score")):
        with pytest.raises(type(error)):
            run(error)


def test_an_error_while_reading_names_the_file(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(InputError, match=f"^{path} is missing$"):
        with reading(path):
            path.read_text()
    with pytest.raises(InputError, match=f"^cannot read {path}: ValueError: line 3 is odd$"):
        with reading(path):
            raise ValueError("line 3\nis odd")
    with pytest.raises(InputError, match="^said before$"):
        with reading(path):
            raise InputError("said before")


@pytest.mark.parametrize("words, said", [
    ("--rats 3", "unrecognized arguments: --rats 3, did you mean --rate?"),
    ("--tau 3", "did you mean --heat?"),
    ("--rate much", "argument --rate: invalid float value: 'much'"),
])
def test_a_wrong_option_is_one_line(words, said, capsys, monkeypatch):
    parser = Parser("program.py")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--heat", help="tau of the loss")
    status, _, line = answer(capsys, parser.parse_args, *words.split())
    assert status == 2
    assert line.startswith("program.py: ")
    assert said in line
    assert line.endswith("; --help shows all options\n")
    assert line.count("\n") == 1

    # Of several processes the first one speaks.
    monkeypatch.setenv("RANK", "1")
    assert answer(capsys, parser.parse_args, *words.split()) == (2, "", "")


def test_a_path_or_a_hub_id(tmp_path, monkeypatch):
    """What can only be a path must be there: nobody asks the hub for it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert is_here("--model", "models")
    for name in ("bert-base-uncased", "google-bert/bert-base-uncased"):
        assert not is_here("--model", name)
    for name in ("./bert", "/nowhere/bert", "~/bert", "models/bert", "a/b/c"):
        with pytest.raises(InputError, match=f"--model {name}: there is no such file or folder"):
            is_here("--model", name)
