"""The page beside the paper: every line of code, each formula once, links that lead somewhere."""

import ast
import html
import re
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

pytest.importorskip("latex2mathml", reason="pip install -r docs/requirements.txt")

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "docs"))

import page


@pytest.fixture(scope="module")
def built():
    return page.build()


@pytest.mark.parametrize("module", page.MODULES)
def test_every_line_of_code_stands_once_and_in_order(built, module):
    _, _, rest = built.partition(f'<h2 id="{module}">')
    section = rest.partition("<h2 ")[0]
    cells = re.findall("<pre>((?:(?!</pre>).)*)</pre></div></section>", section, re.DOTALL)
    shown = html.unescape(re.sub("<[^>]+>", "", "\n".join(cells)))

    # The module without its docstrings, its blank lines and the comments outside functions.
    source = (page.DOCS.parent / f"{module}.py").read_text(encoding="utf-8")
    code = re.sub(r'^ *"""\S.*?"""$', "", source, flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in code.splitlines() if line and not line.startswith("#")]
    assert [line for line in shown.splitlines() if line] == lines


def test_every_link_has_a_target(built):
    ids = re.findall(' id="([^"]+)"', built)
    assert len(ids) == len(set(ids))
    hrefs = re.findall('href="([^"]+)"', built)
    inside = {href[1:] for href in hrefs if href.startswith("#")}
    assert inside <= set(ids)
    assert "acl.contrastive_loss" in inside  # called in acl.py, spoken of in its docstring
    assert set(hrefs) - {f"#{name}" for name in inside} == {"https://arxiv.org/abs/2602.03563"}
    assert not re.search("<(script|link|img|iframe)", built)


def test_each_formula_stands_once(built):
    sections = re.findall(r'<section[^>]* id="\w+\.([\w.]+)">(.*?)</section>', built, re.DOTALL)
    shown = {}
    for name, section in sections:
        formulas = re.findall("<math.*?</math>", section, re.DOTALL)
        if formulas:
            [shown[name]] = formulas
    assert shown.keys() == page.EQUATIONS.keys()
    for formula in shown.values():
        leaves = "".join(xml.etree.ElementTree.fromstring(formula).itertext())
        assert "\\" not in leaves  # a command that latex2mathml does not know
        assert "&" not in leaves

    # Nor does it stand as text, or raw in the prose.
    prose = "".join(re.findall('<div class="prose">(.*?)</div>', built, re.DOTALL))
    for text in ("sum_{p in P", "prob(b|i) =", "g = g_CE + lambda * 1[", "l_{y_i}"):
        assert html.escape(text) not in prose
    assert "l<sub>y<sub>i</sub></sub>" in prose


SOURCE = '''"""What the module is."""
import math

# First a constant,
# in two lines.
TWO = 2  # behind code

# ---- a section
# Its introduction.

THREE = 3


@cache
def double(x):
    """Twice x."""
    y = TWO * x

    # This comment stays in the code.
    return y


OTHER = 1
'''


def test_rows_of_a_small_file():
    lines = SOURCE.splitlines()
    found = []
    for row in page.read_rows(SOURCE):
        code = "\n".join(lines[number - 1] for number in row.code)
        found.append((row.title, row.name, row.prose.strip(), code.strip()))
    double = SOURCE[SOURCE.index("@cache"):SOURCE.index("\n\n\nOTHER")]
    assert found == [
        ("", "", "What the module is.", ""),
        ("", "", "", "import math"),
        ("", "", "First a constant,\nin two lines.", "TWO = 2  # behind code"),
        ("a section", "", "Its introduction.", ""),
        ("", "", "", "THREE = 3"),
        ("", "double", "Twice x.", double.replace('    """Twice x."""\n', "")),
        ("", "", "", "OTHER = 1"),
    ]


def test_an_equation_takes_the_place_of_its_text(monkeypatch):
    formula = "    s = sum_i x_i      x_i: an item\n    P(i):    the others\n"
    tree = ast.parse(f'def total(x):\n    """Sums up.\n\n{formula}\nx (N,)."""')
    monkeypatch.setitem(page.EQUATIONS, "total", "s")
    row = page.row_of("total", tree.body[0])
    assert row.prose.split("\n\n") == ["Sums up.", "x (N,)."]
    assert row.caption.split("; ") == ["x_i: an item", "P(i):    the others"]


def test_prose_keeps_shapes_and_links_functions():
    text = "Like `loss` and\n*this*, a_i * b < c^m:\n\n    x  =  1"
    assert page.prose_html(text, {"loss": "acl.loss"}) == (
        '<p>Like <a href="#acl.loss"><code>loss</code></a> and\n'
        "<em>this</em>, a<sub>i</sub> * b &lt; c<sup>m</sup>:</p><pre>x  =  1</pre>"
    )
