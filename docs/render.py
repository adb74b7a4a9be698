"""A Markdown file as GitHub shows it, roughly: to look at README.md before it is pushed.

    python docs/render.py README.md                          # writes docs/README.html
    python docs/render.py results/README.md --dark --output results.html

Tables, `$$` blocks, `$` inline, anchors at headings, and the width of GitHub's page.  Without
--dark the page is light or dark as the browser asks.  One line for each link within the
project that leads nowhere and each LaTeX command that is not known; exit status 1 then.
Mermaid drawings and the colours of code are left out.
"""

import argparse
import re
import sys
from pathlib import Path
from string import Template

try:
    from latex2mathml.converter import convert
    from markdown_it import MarkdownIt
    from mdit_py_plugins.anchors import anchors_plugin
    from mdit_py_plugins.dollarmath import dollarmath_plugin
except ImportError as error:
    sys.stderr.write(f"render.py: no {error.name}; run pip install -r docs/requirements.txt\n")
    sys.exit(2)

DOCS = Path(__file__).resolve().parent
MARK = '<meta name="generator" content="docs/render.py">'


def mathml(latex, options):
    """LaTeX -> MathML.  The library knows `split`, not `aligned`, which means the same."""
    display = "block" if options["display_mode"] else "inline"
    return convert(latex.replace("{aligned}", "{split}").strip(), display=display)


def github_slug(title):
    """A heading's anchor: letters, digits, _ and -, lower case; spaces become -."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def parser():
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    dollarmath_plugin(markdown, allow_space=False, double_inline=True, renderer=mathml)
    anchors_plugin(markdown, max_level=6, slug_func=github_slug)
    return markdown


def body(text):
    """Markdown -> HTML of the page's content."""
    # A ```math block is another way to write $$.
    text = re.sub(r"^```math\n(.*?)^```$", r"$$\n\1$$", text, flags=re.DOTALL | re.MULTILINE)
    return parser().render(text)


def dead_links(content, file):
    """Links and pictures within the project that lead nowhere: files, and anchors of this page."""
    dead, folder = [], file.resolve().parent
    for target in re.findall(r'(?:href|src|srcset)="([^"]+)"', content):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        if path and not (folder / path).exists():
            dead.append(target)
        if not path and f'id="{anchor}"' not in content:
            dead.append(target)
    return dead


def main(argv=None):
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("file", type=Path)
    options.add_argument("--output", type=Path, help="docs/<name>.html")
    options.add_argument("--dark", action="store_true", help="dark, whatever the browser asks")
    args = options.parse_args(argv)
    output = args.output or DOCS / f"{args.file.stem}.html"
    try:
        content = body(args.file.read_text(encoding="utf-8"))
        # A page made before may be replaced, any other file may not.
        if output.exists() and MARK not in output.read_text(errors="replace"):
            raise OSError(f"{output} was not made by this command; choose another --output")
        template = Template((DOCS / "render_template.html").read_text(encoding="utf-8"))
        # Files are named as seen from the Markdown file, anchors as seen from the page.
        here = output.resolve().as_uri()
        page = template.substitute(
            mark=MARK,
            title=args.file,
            base=args.file.resolve().parent.as_uri() + "/",
            dark="all" if args.dark else "(prefers-color-scheme: dark)",
            content=content.replace('href="#', f'href="{here}#'),
        )
        output.write_text(page, encoding="utf-8")
    except OSError as error:
        options.exit(2, f"render.py: {error}\n")
    print(output)
    faults = [f"link to nowhere: {target}" for target in dead_links(content, args.file)]
    # What latex2mathml does not know it shows as it stands.
    for command in re.findall(r"<mi>(\\\w+)</mi>", content):
        faults.append(f"LaTeX not known here: {command}")
    for fault in faults:
        print(f"{args.file}: {fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
