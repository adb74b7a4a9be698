"""The page beside the paper: whole, in order, linked, and nothing but HTML."""

import ast
import html.parser
import io
import re
import runpy
import sys
import tokenize
import xml.etree.ElementTree
from collections import Counter

import pytest

for package in ("latex2mathml", "pygments"):
    pytest.importorskip(package, reason=f"no {package}: pip install -r docs/requirements.txt")

import page
import rows

PROSE_TOKENS = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


class Reader(html.parser.HTMLParser):
    """tags, ids, hrefs of a page; code: {id of the h2 above: text of its <pre class="code">}."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.hrefs = Counter(), Counter(), []
        self.module, self.in_code, self.code = "", False, {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags[tag] += 1
        if "id" in attrs:
            self.ids[attrs["id"]] += 1
        if "href" in attrs:
            self.hrefs.append(attrs["href"])
        if tag == "h2":
            self.module = attrs["id"]
        if tag == "pre" and attrs.get("class") == "code":
            self.in_code = True

    def handle_endtag(self, tag):
        if tag == "pre" and self.in_code:
            self.in_code = False
            self.handle_code("\n")

    def handle_data(self, data):
        if self.in_code:
            self.handle_code(data)

    def handle_code(self, data):
        self.code[self.module] = self.code.get(self.module, "") + data


def code_lines(text):
    """Slowly: every line that a token of code touches, without docstrings and blank lines."""
    touched = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in PROSE_TOKENS:
            touched.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, *rows.DEFINITIONS)) and ast.get_docstring(node):
            touched -= set(range(body[0].lineno, body[0].end_lineno + 1))
    lines = text.splitlines()
    return [lines[n - 1].rstrip() for n in sorted(touched) if lines[n - 1].strip()]


@pytest.fixture(scope="module")
def built():
    return page.build()


@pytest.mark.parametrize("module", page.MODULES)
def test_every_line_of_code_stands_once_and_in_order(built, module):
    source = (page.DOCS.parent / f"{module}.py").read_text(encoding="utf-8")
    shown = [line.rstrip() for line in Reader(built).code[module].split("\n")]
    assert [line for line in shown if line] == code_lines(source)


def test_every_link_has_a_target_and_every_idea_its_functions(built):
    read = Reader(built)
    inside = [href[1:] for href in read.hrefs if href.startswith("#")]
    assert set(inside) <= set(read.ids)
    assert max(read.ids.values()) == 1
    contents = Reader(built[: built.index("</header>")])
    for _, _, names in page.IDEAS:
        for name in names.split():
            ending = f".{name}"
            assert any(f".{href}".endswith(ending) for href in contents.hrefs), name


def test_the_page_needs_nothing_else(built):
    read = Reader(built)
    assert not {"script", "link", "img", "iframe", "object"} & set(read.tags)
    assert "@import" not in built
    assert "url(" not in built.split("</style>")[0]
    outside = {href for href in read.hrefs if not href.startswith("#")}
    assert outside == {"https://arxiv.org/abs/2602.03563"}


def test_every_equation_is_mathml_above_its_function(built):
    sections = re.findall(r'<section class="row" id="\w+\.([\w.]+)">(.*?)</section>', built, re.S)
    found = {name: re.findall("<math.*?</math>", section, re.S) for name, section in sections}
    shown = {name: formulas for name, formulas in found.items() if formulas}
    assert shown.keys() == page.EQUATIONS.keys()
    for name, formulas in shown.items():
        assert len(formulas) == 1, name
        # Parsing fails on what is no XML, such as the & of an unknown environment.
        leaves = list(xml.etree.ElementTree.fromstring(formulas[0]).itertext())
        assert leaves
        assert not any("\\" in leaf for leaf in leaves), name


def test_calls_link_to_functions_first_to_those_of_their_own_file(monkeypatch, tmp_path):
    monkeypatch.setattr(page, "EQUATIONS", {})
    monkeypatch.setattr(page, "IDEAS", [])
    for module in page.MODULES:
        (tmp_path / f"{module}.py").write_text("def main():\n    main()\n")
    (tmp_path / "exits.py").write_text("main()\n")
    read = Reader(page.build(tmp_path))
    calls = [href for href in read.hrefs if href.endswith(".main")]
    assert calls == ["#acl.main", "#grad_surgery.main", "#acl.main", "#train.main", "#glue.main"]


def refused(capsys, output):
    """Run the command, which must refuse; its one line."""
    with pytest.raises(SystemExit) as stopped:
        page.main(["--output", str(output)])
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message.count("\n") == 1
    return message


def test_a_function_that_is_not_there_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(page.EQUATIONS, "no_such_loss", "x")
    assert "no_such_loss is defined in no module" in refused(capsys, tmp_path / "page.html")
    monkeypatch.delitem(page.EQUATIONS, "no_such_loss")
    monkeypatch.setattr(page, "IDEAS", [("Idea", "Sentence.", "scl_loss no_such_step")])
    assert "no_such_step is defined in no module" in refused(capsys, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_latex_that_is_not_known_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(page.EQUATIONS, "scl_loss", r"\nosuch x")
    assert r"\nosuch" in refused(capsys, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_a_page_is_made_again_but_another_file_is_kept(capsys, tmp_path):
    for _ in range(2):
        page.main(["--output", str(tmp_path / "page.html")])
    capsys.readouterr()
    other = tmp_path / "notes.html"
    other.write_text("mine")
    assert "choose another --output" in refused(capsys, other)
    assert other.read_text() == "mine"


def test_missing_packages_are_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "latex2mathml.converter", None)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(page.__file__)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith("run pip install -r docs/requirements.txt\n")


SOURCE = '''"""What the module is."""
import math
# First a constant,
# in two lines.
TWO = 2  # behind code

# ---- a section
# Its introduction.

# Of the whole file.

@cache
def double(x):
    """Twice x."""
    text = """
# no comment
"""
    # A step.
    x = TWO * x

    return x


OTHER = 1


def short(): """Beside code."""
@cache
def bare():
    pass
'''


def test_rows_of_a_small_file():
    lines = SOURCE.splitlines()
    found = []
    for row in rows.read_rows(SOURCE):
        code = "/".join(lines[number - 1].strip() for number in row.code).rstrip("/")
        found.append((row.title, row.name, row.prose.strip(), code))
    assert found == [
        ("", "", "", "import math"),
        ("", "", "First a constant,\nin two lines.", "TWO = 2  # behind code"),
        ("a section", "", "Its introduction.", ""),
        ("", "", "Of the whole file.", ""),
        (
            "",
            "double",
            "Twice x.",
            '@cache/def double(x):/text = """/# no comment/"""',
        ),
        ("", "", "A step.", "x = TWO * x//return x"),
        ("", "", "", "OTHER = 1"),
        ("", "short", "", 'def short(): """Beside code."""'),
        ("", "bare", "", "@cache/def bare():/pass"),
    ]


def test_prose_keeps_formulas_and_links_functions():
    text = "Like `loss` and\n*this*, a * b < c:\n\n    x  =  1\n\n- one\n  more\n- two `loss()`"
    link = '<a href="#acl.loss"><code>{}</code></a>'
    assert page.prose(text, {"loss": "acl.loss"}) == (
        f"<p>Like {link.format('loss')} and\n<em>this</em>, a * b &lt; c:</p>"
        "<pre>x  =  1</pre>"
        f"<ul><li>one\n  more\n</li><li>two {link.format('loss()')}</li></ul>"
    )
