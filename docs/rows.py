"""A Python file as rows: a piece of prose, and the lines of code that it speaks of.

- A docstring stands beside its function's first lines, a comment on lines of its own beside
  the code below it.  A comment behind code is code.
- A comment line `# ---- title` is a section's title; comments below it introduce the section.
- A blank line below a comment parts it from the code: it speaks of more than the next step.
"""

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from itertools import pairwise

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass
class Row:
    """title: a section's, or ""; name: of the function that starts here, or ""; code: numbers
    of lines, from 1, in order, blank ones between them included."""

    title: str = ""
    name: str = ""
    prose: str = ""
    code: list = field(default_factory=list)


def definitions(node, prefix=""):
    """Yield (dotted name, node) of every function and class below a syntax node."""
    for child in ast.iter_child_nodes(node):
        inside = prefix
        if isinstance(child, DEFINITIONS):
            yield prefix + child.name, child
            inside = f"{prefix}{child.name}."
        yield from definitions(child, inside)


def docstring_lines(node, lines):
    """The numbers of a docstring's lines; none where it shares its line with code."""
    if ast.get_docstring(node) is None:
        return range(0)
    string = node.body[0]
    before = lines[string.lineno - 1][: string.col_offset]
    if before.strip():
        return range(0)
    return range(string.lineno, string.end_lineno + 1)


def comment_lines(text):
    """{number: text} of the comments that have a line to themselves."""
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            comments[token.start[0]] = re.sub("^# ?", "", token.string)
    return comments


def starts_of(tree, lines):
    """{number: (name, docstring)} of the lines where a function starts, and ("", "") where
    other code follows one at the top level; and the set of all docstrings' lines."""
    starts, inside = {}, set(docstring_lines(tree, lines))
    for name, node in definitions(tree):
        own = docstring_lines(node, lines)
        inside.update(own)
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        starts[first] = (name, ast.get_docstring(node) if own else "")
    for node, following in pairwise(tree.body):
        if isinstance(node, DEFINITIONS) and not isinstance(following, DEFINITIONS):
            starts[following.lineno] = ("", "")
    return starts, inside


def read_rows(text):
    """Python source -> its rows, in order.  Every line of code is in exactly one of them."""
    lines, comments = text.splitlines(), comment_lines(text)
    starts, docstrings = starts_of(ast.parse(text), lines)
    rows = [Row()]
    # Whether the next line, whatever it is, belongs to another row than the last one did.
    parted = False
    for number, line in enumerate(lines, start=1):
        row = rows[-1]
        title = re.match(r"-{3,} *(\w.*)", comments.get(number, ""))
        if number in docstrings:
            continue
        if not line.strip():
            if row.code:
                row.code.append(number)
            else:
                parted = True
            continue
        if title:
            rows.append(Row(title=title[1]))
        elif number in comments:
            if row.code or parted:
                rows.append(Row())
            rows[-1].prose += comments[number] + "\n"
        else:
            starts_here = number in starts and row.code
            if starts_here or parted or row.title:
                rows.append(Row())
            if number in starts:
                rows[-1].name, docstring = starts[number]
                rows[-1].prose += f"\n{docstring}"
            rows[-1].code.append(number)
        parted = False
    return [row for row in rows if row != Row()]
