"""The modules as one static HTML page: prose and equations left, the code they speak of right.

    pip install -r docs/requirements.txt
    python docs/page.py                         # writes docs/acl.html; open it in any browser

docs/rows.py says which lines become prose.  In prose, lines indented by four spaces or more
and doctests keep their shape, `- ` begins an item, and `name` in backticks links to the
function of that name.  Mathematics is in EQUATIONS below; the page shows it above the
docstring of the function it names.  No JavaScript, no network; the modules are read, never
imported.
"""

import argparse
import ast
import html
import re
import sys
import textwrap
from itertools import groupby
from pathlib import Path
from string import Template

from rows import definitions, read_rows

try:
    from latex2mathml.converter import convert
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonConsoleLexer, PythonLexer
except ImportError as error:
    sys.stderr.write(f"page.py: no {error.name}; run pip install -r docs/requirements.txt\n")
    sys.exit(2)

DOCS = Path(__file__).resolve().parent
MODULES = ("acl", "grad_surgery", "exits", "train", "glue")
FORMATTER = HtmlFormatter(nowrap=True)

# The table of contents: an idea, what it is, its functions.
IDEAS = [
    ("The losses", "One kernel, different anchors and keys.", "contrastive_loss scl_loss kd_loss"),
    ("ACL-Embed", "Label embeddings are samples, too.", "acl_embed_loss"),
    ("ACL-CL", "The deepest exit guides the others.", "acl_cl_loss"),
    ("The gate", "A gradient in conflict goes.", "acl_grad apply_rule acl_grad_features"),
    ("The exits", "A classifier at chosen layers.", "MultiExitBert MultiExitBert.forward"),
    ("Early exit", "Easy samples leave first.", "early_exit entropy confidence patience pcee"),
    ("One training step", "From a batch to its gradient.", "losses second_loss training_step"),
    ("The data", "Tasks, batches, metrics.", "load_task bucketed_batches loader score"),
]

# Function -> its equation in LaTeX.  Lines: \begin{split} .. &= .. \\ .. &= .. \end{split}
EQUATIONS = {
    "contrastive_loss": r"""
        \begin{split}
        \mathcal{L} &= \underset{a : P(a) \neq \emptyset}{\text{mean}} \; \frac{-1}{|P(a)|}
        \sum_{p \in P(a)} \log \, \mathrm{prob}(p \mid a) \\
        \mathrm{prob}(b \mid a) &= \frac{\exp(z_a \cdot z_b / \tau)}
        {\sum_c \exp(z_a \cdot z_c / \tau)}
        \qquad z = \frac{x}{\lVert x \rVert}
        \end{split}""",
    "scl_loss": r"""
        \begin{split}
        \mathcal{L}_{\text{SCL}} &= \underset{i : P(i) \neq \emptyset}{\text{mean}}
        \; \frac{-1}{|P(i)|}
        \sum_{p \in P(i)} \log \, \mathrm{prob}(p \mid i) \\
        \mathrm{prob}(b \mid i) &= \frac{\exp(z_i \cdot z_b / \tau)}
        {\sum_{c \neq i} \exp(z_i \cdot z_c / \tau)}
        \end{split}""",
    "acl_embed_loss": r"""
        \begin{split}
        \mathcal{L}_{\text{ACL-Embed}} &= \mathcal{L}_{\text{SCL}}(\text{items}, \text{labels}) \\
        \text{items} &= \{ h_1, \dots, h_N, \; l_1, \dots, l_K \} \\
        \text{labels} &= \{ y_1, \dots, y_N, \; 1, \dots, K \}
        \end{split}""",
    "acl_cl_loss": r"""
        \begin{split}
        \mathcal{L}^m_{\text{ACL-CL}} &= \frac{1}{N} \sum_{i=1}^{N} \; \frac{-1}{|P(i)|}
        \sum_{p \in P(i)} \log \, \mathrm{prob}(p \mid i) \\
        \mathrm{prob}(b \mid i) &= \frac{\exp(z^m_i \cdot z_b / \tau)}
        {\sum_c \exp(z^m_i \cdot z_c / \tau)} \\
        b, c &\in \text{sg} \{ h^M_1, \dots, h^M_N, \; l^M_1, \dots, l^M_K \}
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
    "entropy": r"\frac{H(p^m)}{\log \, K} \leq \text{threshold}",
    "confidence": r"\max_k \; p^m_k \geq \text{threshold}",
    "normalised_entropy": r"""
        \frac{H(p)}{\log \, K} = - \frac{1}{\log \, K} \sum_{k=1}^{K} p_k \, \log \, p_k""",
    "losses": r"""
        \mathcal{L}_{\text{CE}} = \frac{ \sum_m w_m \mathcal{L}^m_{\text{CE}} }{ \sum_m w_m }
        \qquad
        \mathcal{L}_{\text{ACL}} = \frac{ \sum_m w_m \mathcal{L}^m_{\text{ACL}} }{ \sum_m w_m }""",
}


def inline(text, targets):
    """Plain text -> HTML with `code` and *emphasis*; targets: {function name: anchor}."""
    out = ""
    for place, piece in enumerate(re.split("`([^`]+)`", text)):
        shown = html.escape(piece, quote=False)
        is_code = place % 2 == 1
        if is_code:
            anchor = targets.get(piece.removesuffix("()"))
            link = f'<a href="#{anchor}"><code>{shown}</code></a>'
            out += link if anchor else f"<code>{shown}</code>"
        else:
            out += re.sub(r"(?<![\w*])\*(\w[^*]*\w)\*(?![\w*])", r"<em>\1</em>", shown)
    return out


def paragraphs(text, targets):
    """Lines of prose -> a paragraph, then a list of the lines' `- ` items."""
    first, *items = re.split("^- ", text, flags=re.MULTILINE)
    out = f"<p>{inline(first, targets)}</p>" if first.strip() else ""
    if items:
        out += "<ul>" + "".join(f"<li>{inline(item, targets)}</li>" for item in items) + "</ul>"
    return out


def prose(text, targets):
    """A docstring or a block of comments -> HTML."""
    out = ""
    for block in re.split(r"\n[ \t]*\n", text.strip("\n")):
        if block.startswith(">>> "):
            out += f"<pre>{highlight(block, PythonConsoleLexer(), FORMATTER)}</pre>"
            continue
        for indented, group in groupby(block.split("\n"), key=lambda line: line[:4].isspace()):
            lines = "\n".join(group)
            if indented:
                out += f"<pre>{html.escape(textwrap.dedent(lines), quote=False)}</pre>"
            else:
                out += paragraphs(lines, targets)
    return out


def equation(name):
    """The MathML of a function's equation; empty if it has none."""
    if name not in EQUATIONS:
        return ""
    mathml = convert(textwrap.dedent(EQUATIONS[name]).strip(), display="block")
    # What latex2mathml does not know it shows as it stands.
    unknown = re.search(r"\\\w+", mathml)
    if unknown:
        raise ValueError(f"latex2mathml does not know {unknown[0]} in EQUATIONS[{name!r}]")
    return f'<div class="equation">{mathml}</div>'


def highlighted_lines(text, targets):
    """Python source -> the HTML of each line; a call of a known function links to it."""

    def link(match):
        anchor = targets.get(match[1])
        return f'<a href="#{anchor}">{match[0]}</a>' if anchor else match[0]

    code = highlight(text, PythonLexer(stripnl=False), FORMATTER)
    called = r'<span class="n">(\w+)</span>(?=<span class="p">\()'
    return re.sub(called, link, code).split("\n")


def row_html(row, module, lines, targets):
    left, anchor, width = equation(row.name) + prose(row.prose, targets), "", ""
    if row.name:
        anchor = f' id="{module}.{row.name}"'
        where = f"<small>{module}.py, line {row.code[0]}</small>"
        left = f"<h4>{row.name} {where}</h4>" + left
    if row.title:
        left = f"<h3>{html.escape(row.title)}</h3>" + left
    right = "\n".join(lines[number - 1] for number in row.code).rstrip()
    if right:
        right = f'<pre class="code">{right}</pre>'
    else:
        width = " wide"
    return f'<section class="row{width}"{anchor}><div class="prose">{left}</div>{right}</section>\n'


def module_html(module, text, targets):
    introduction = prose(ast.get_docstring(ast.parse(text)) or "", targets)
    lines = highlighted_lines(text, targets)
    rows = [row_html(row, module, lines, targets) for row in read_rows(text)]
    return (
        f'<h2 id="{module}">{module}.py <a href="#contents">contents</a></h2>\n'
        f'<section class="row wide"><div class="prose">{introduction}</div></section>\n'
        + "".join(rows)
    )


def contents_html(targets):
    out = ""
    for idea, sentence, names in IDEAS:
        links = [f'<a href="#{targets[name]}"><code>{name}</code></a>' for name in names.split()]
        out += f"<li><strong>{idea}</strong> {sentence}<br>{', '.join(links)}</li>\n"
    return out


def check_names(homes):
    """ValueError if a function named at the top of this file is not in one module."""
    for name in [*EQUATIONS, *" ".join(names for _, _, names in IDEAS).split()]:
        found = homes.get(name, [])
        if len(found) != 1:
            where = " and ".join(found) or "no module"
            raise ValueError(f"{name} is defined in {where}; mend IDEAS or EQUATIONS")


def build(root=DOCS.parent):
    """The whole page, from the modules in `root`.  ValueError: see check_names, equation."""
    texts = {module: (root / f"{module}.py").read_text(encoding="utf-8") for module in MODULES}
    homes = {}
    for module, text in texts.items():
        for name, _ in definitions(ast.parse(text)):
            homes.setdefault(name, []).append(module)
    check_names(homes)
    targets = {name: f"{modules[0]}.{name}" for name, modules in homes.items()}
    body = ""
    for module, text in texts.items():
        # A name that two modules define means, in each of them, its own.
        own = {name: f"{module}.{name}" for name, found in homes.items() if module in found}
        body += module_html(module, text, targets | own)
    style = (DOCS / "page.css").read_text(encoding="utf-8")
    for scheme, colours in (("light", "default"), ("dark", "github-dark")):
        rules = "\n".join(HtmlFormatter(style=colours).get_token_style_defs("pre"))
        style += f"@media (prefers-color-scheme: {scheme}) {{\n{rules}\n}}\n"
    template = Template((DOCS / "page_template.html").read_text(encoding="utf-8"))
    return template.substitute(style=style, contents=contents_html(targets), body=body)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DOCS / "acl.html", help="docs/acl.html")
    output = parser.parse_args(argv).output
    try:
        # A page made before may be replaced, any other file may not.
        if output.exists() and 'content="docs/page.py"' not in output.read_text(errors="replace"):
            raise ValueError(f"{output} was not made by this command; choose another --output")
        output.write_text(build(), encoding="utf-8")
    except (OSError, SyntaxError, ValueError) as error:
        parser.exit(2, f"page.py: {error}\n")
    print(f"{output}: {output.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
