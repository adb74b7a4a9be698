"""The five modules as one static HTML page: prose left, equations and their code right.

    pip install -r docs/requirements.txt
    python docs/page.py                         # writes docs/acl.html; open it in any browser

- A docstring stands beside its function and stays in view while the code scrolls past; the
  comments within a function stay in its code.
- A comment line `# ---- title` is a section's title.  Comments outside functions are prose, too.
- EQUATIONS has the formulas of docstrings in LaTeX: the page shows these in place of the text.

There is no JavaScript and nothing to load.  The modules are read, never imported.
"""

import ast
import html
import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from string import Template

from latex2mathml.converter import convert
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

DOCS = Path(__file__).resolve().parent
MODULES = ("acl", "grad_surgery", "exits", "train", "glue")
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)
FORMATTER = HtmlFormatter(nowrap=True)

# Pattern -> what prose shows instead: *emphasis*, l_{y_i}, h_i, h^m, tau, lambda.
TYPOGRAPHY = {
    r"(?<![\w*])\*(\w[^*]*\w)\*(?![\w*])": r"<em>\1</em>",
    r"_\{([^{}]+)\}": r"<sub>\1</sub>",
    r"\b([A-Za-z])_(\w+(?:-[A-Z]\w+)?)": r"\1<sub>\2</sub>",
    r"(\b[A-Za-z]|tau|[|]|</sub>)\^(\w+)": r"\1<sup>\2</sup>",
    r"\btau\b": "τ",
    r"\blambda\b": "λ",
}

# The table of contents: an idea, what it is, its functions.
IDEAS = [
    ("The losses", "One kernel, different anchors and keys.", "contrastive_loss scl_loss kd_loss"),
    ("ACL-Embed", "Label embeddings are samples, too.", "acl_embed_loss"),
    ("ACL-CL", "The deepest exit guides the others.", "acl_cl_loss"),
    ("The gate", "A gradient in conflict goes.", "acl_grad acl_grad_features"),
    ("The exits", "A classifier at chosen layers.", "MultiExitBert MultiExitBert.forward"),
    ("Early exit", "Easy samples leave first.", "early_exit entropy confidence patience pcee"),
    ("One training step", "From a batch to its gradient.", "losses second_loss training_step"),
    ("The data", "Tasks, batches, metrics.", "load_task bucketed_batches loader score"),
]

# Function -> its equation in LaTeX.  Lines: \begin{split} .. &= .. \\ .. &= .. \end{split}
EQUATIONS = {
    "contrastive_loss": r"""
        \begin{split}
        z &= \frac{x}{\lVert x \rVert} \\
        \mathrm{prob}(b \mid a) &= \frac{\exp(z_a \cdot z_b / \tau)}
        {\sum_{b'} \exp(z_a \cdot z_{b'} / \tau)} \\
        \mathcal{L} &= \underset{a}{\text{mean}} \; \frac{-1}{|P(a)|}
        \sum_{p \in P(a)} \log \, \mathrm{prob}(p \mid a)
        \end{split}""",
    "scl_loss": r"""
        \begin{split}
        \mathcal{L}_{\text{SCL}} &= \underset{i}{\text{mean}} \; \frac{-1}{|P(i)|}
        \sum_{p \in P(i)} \log \, \mathrm{prob}(p \mid i) \\
        \mathrm{prob}(b \mid i) &= \frac{\exp(z_i \cdot z_b / \tau)}
        {\sum_{b' \neq i} \exp(z_i \cdot z_{b'} / \tau)}
        \end{split}""",
    "acl_embed_loss": r"""
        \begin{split}
        \text{items} &= \{ h_1, \dots, h_N, \; l_1, \dots, l_K \} \\
        \text{labels} &= \{ y_1, \dots, y_N, \; 1, \dots, K \} \\
        \mathcal{L}_{\text{ACL-Embed}} &= \mathcal{L}_{\text{SCL}}(\text{items}, \text{labels})
        \end{split}""",
    "acl_cl_loss": r"""
        \begin{split}
        \text{keys} &= \text{sg} \{ h^M_1, \dots, h^M_N, \; l^M_1, \dots, l^M_K \} \\
        \text{labels} &= \{ y_1, \dots, y_N, \; 1, \dots, K \} \\
        \mathcal{L}^m_{\text{ACL-CL}} &= \frac{1}{N} \sum_{i=1}^{N} \; \frac{-1}{|P(i)|}
        \sum_{p \in P(i)} \log \, \mathrm{prob}(p \mid i) \\
        \mathrm{prob}(b \mid i) &= \frac{\exp(z^m_i \cdot z_b / \tau)}
        {\sum_{b'} \exp(z^m_i \cdot z_{b'} / \tau)}
        \end{split}""",
    "kd_loss": r"""
        \mathcal{L}_{\text{KD}} = \frac{\tau^2}{N} \sum_{i=1}^{N} \text{KL} \left(
        \text{softmax} \frac{\text{sg}[t_i]}{\tau} \; \Vert \; \text{softmax} \frac{s_i}{\tau}
        \right)""",
    "acl_grad": r"""
        g = g_{\text{CE}} + \lambda \; 𝟏 \left[
        \langle g_{\text{CE}}, g_{\text{ACL}} \rangle \geq 0 \right] \; g_{\text{ACL}}""",
    "acl_grad_features": r"""
        \text{keep } \mathcal{L}^m_{\text{ACL}} \; \Leftrightarrow \; \left\langle
        \frac{\partial \mathcal{L}_{\text{CE}}}{\partial h^m} ,
        \frac{\partial \mathcal{L}^m_{\text{ACL}}}{\partial h^m} \right\rangle \geq 0""",
    "losses": r"""
        \mathcal{L}_{\text{CE}} = \frac{ \sum_m w_m \mathcal{L}^m_{\text{CE}} }{ \sum_m w_m }
        \qquad
        \mathcal{L}_{\text{ACL}} = \frac{ \sum_m w_m \mathcal{L}^m_{\text{ACL}} }{ \sum_m w_m }""",
}


# -------------------------------------------------------------------------------- reading


@dataclass
class Row:
    """A piece of prose and the lines of code that it speaks of."""

    title: str = ""  # of the section that starts here
    name: str = ""  # of the function that starts here
    prose: str = ""
    caption: str = ""  # what stands below the equation
    code: list = field(default_factory=list)  # numbers of lines


def definitions(node, prefix=""):
    """Yield (dotted name, node) of functions, classes and methods; __init__ is its class's."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, DEFINITIONS) and child.name != "__init__":
            yield prefix + child.name, child
        if isinstance(child, ast.ClassDef):
            yield from definitions(child, f"{child.name}.")


def docstring_lines(node):
    """The numbers of the lines of a docstring."""
    if ast.get_docstring(node) is None:
        return []
    return range(node.body[0].lineno, node.body[0].end_lineno + 1)


def row_of(name, node):
    """The row where a function starts.  An equation takes the place of the docstring's first
    indented block; what that says behind its formulas becomes the caption."""
    row = Row(name=name, prose=ast.get_docstring(node) or "")
    if name in EQUATIONS:
        above, block, below = re.split(r"\n((?: {4}.*\n)+)", row.prose, maxsplit=1)
        row.prose = above + below
        pieces = re.split(r"\n *| {5,}", block.strip())
        row.caption = "; ".join(piece for piece in pieces if not re.search("[={]", piece))
    return row


def read_rows(text):
    """Python source -> its rows, in order.  Every line of code is in exactly one of them."""
    tree = ast.parse(text)
    docstrings = {*docstring_lines(tree)}
    starts = {}  # number of a function's first line: its row
    for name, node in definitions(tree):
        docstrings.update(docstring_lines(node))
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        starts[first] = row_of(name, node)

    # The module's docstring comes first, without the formula that stands with acl_grad.
    rows = [Row(prose=re.sub("    g = .*\n", "", ast.get_docstring(tree)))]
    above = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if number in docstrings:
            continue
        if number in starts:
            rows.append(starts[number])
        elif not above and re.match(r"[\w#]", line):  # a paragraph outside functions
            rows.append(Row())
        row = rows[-1]
        above = line

        # A paragraph's comment is its title or its prose.
        comment = re.match("# ?(-{3,} *)?(.*)", line)
        if comment and comment[1]:
            row.title = comment[2]
        elif comment and not row.code:
            row.prose += f"{comment[2]}\n"
        elif line or row.code:
            row.code.append(number)
    return rows


# -------------------------------------------------------------------------------- writing


def link_all(pattern, text, targets):
    """HTML whose matches of the pattern lead to the function that they name, if it is known."""

    def link(match):
        anchor = targets.get(match[1])
        return f'<a href="#{anchor}">{match[0]}</a>' if anchor else match[0]

    return re.sub(pattern, link, text)


def inline(text, targets):
    """Plain text -> HTML with `code`, *emphasis*, and the indices of l_{y_i} below the line."""
    pieces = html.escape(text, quote=False).split("`")
    for place in range(0, len(pieces), 2):  # what is not in backticks
        for pattern, form in TYPOGRAPHY.items():
            pieces[place] = re.sub(pattern, form, pieces[place])
    for place in range(1, len(pieces), 2):
        pieces[place] = f"<code>{pieces[place]}</code>"
    return link_all("<code>([\\w.]+)</code>", "".join(pieces), targets)


def prose_html(text, targets):
    """A docstring or a block of comments -> HTML: paragraphs, and blocks that keep their shape."""
    out = ""
    for block in re.split("\n\n+", text.strip("\n")):
        if block.startswith((">>> ", "    ")):
            out += f"<pre>{html.escape(textwrap.dedent(block), quote=False)}</pre>"
        elif block:
            out += f"<p>{inline(block, targets)}</p>"
    return out


def row_html(row, module, lines, targets):
    left, right, anchor = prose_html(row.prose, targets), "", ""
    if row.title:
        left = f"<h3>{row.title}</h3>{left}"
    if row.name:
        left = f"<h4>{row.name} <small>{module}.py, line {row.code[0]}</small></h4>{left}"
        anchor = f' id="{module}.{row.name}"'
    if row.name in EQUATIONS:
        right = convert(textwrap.dedent(EQUATIONS[row.name]).strip(), display="block")
        right += f"<p>{inline(row.caption, targets)}</p>"
    if row.code:
        code = "\n".join(lines[number - 1] for number in row.code)
        right += f"<pre>{code.rstrip()}</pre>"
    kind = "row" if left and right else "row wide"
    cells = f'<div class="prose">{left}</div><div class="code">{right}</div>'
    return f'<section class="{kind}"{anchor}>{cells}</section>\n'


def module_html(module, targets):
    text = (DOCS.parent / f"{module}.py").read_text(encoding="utf-8")
    code = highlight(text, PythonLexer(stripnl=False), FORMATTER)
    called = r'<span class="n">(\w+)</span>(?=<span class="p">\()'
    lines = link_all(called, code, targets).split("\n")
    out = f'<h2 id="{module}">{module}.py <a href="#contents">contents</a></h2>\n'
    for row in read_rows(text):
        out += row_html(row, module, lines, targets)
    return out


def build():
    """The whole page."""
    targets = {}  # function: anchor
    for module in MODULES:
        tree = ast.parse((DOCS.parent / f"{module}.py").read_text(encoding="utf-8"))
        for name, _ in definitions(tree):
            targets[name] = f"{module}.{name}"

    contents = ""
    for idea, sentence, names in IDEAS:
        links = [f'<a href="#{targets[name]}"><code>{name}</code></a>' for name in names.split()]
        contents += f"<li><strong>{idea}</strong> {sentence}<br>{', '.join(links)}</li>\n"

    style = ""
    for scheme, colours in (("light", "default"), ("dark", "github-dark")):
        rules = "\n".join(HtmlFormatter(style=colours).get_token_style_defs("pre"))
        style += f"@media (prefers-color-scheme: {scheme}) {{\n{rules}\n}}\n"

    body = "".join(module_html(module, targets) for module in MODULES)
    template = Template((DOCS / "page_template.html").read_text(encoding="utf-8"))
    return template.substitute(style=style, contents=contents, body=body)


def main():
    page = DOCS / "acl.html"
    page.write_text(build(), encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
