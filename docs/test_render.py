"""A Markdown file as GitHub shows it: mathematics, tables, anchors, dead links, width."""

import shutil

import pytest

for package in ("latex2mathml", "markdown_it", "mdit_py_plugins"):
    pytest.importorskip(package, reason=f"no {package}: pip install -r docs/requirements.txt")

import check_width
import render

TEXT = r"""# The *gate*, in short

Costs $5 or $6, while $x$ is math; see [there](#the-gate-in-short) and [a file](other.md).

$$
\begin{aligned} a &= b \\ c &= d \end{aligned}
$$

```math
y^2
```

| a | b |
|---|---|
| 1 | 2 |
"""


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        render.main([str(argument) for argument in arguments])
    return stopped.value.code


def test_mathematics_tables_and_anchors():
    content = render.body(TEXT)
    assert content.count("<math") == 3
    assert content.count('display="block"') == 2
    assert "<mtable" in content
    assert "&</mi>" not in content
    assert "Costs $5 or $6" in content
    assert '<h1 id="the-gate-in-short">' in content
    assert "<td>2</td>" in content


def test_links_to_nowhere_are_named(tmp_path, capsys):
    source = tmp_path / "text.md"
    source.write_text(TEXT)
    output = tmp_path / "text.html"
    assert run(source, "--output", output) == 1
    assert "link to nowhere: other.md\n" in capsys.readouterr().out
    (tmp_path / "other.md").write_text("")
    assert run(source, "--output", output, "--dark") == 0
    assert "@media all" in output.read_text()
    source.write_text(TEXT + "[no](#such-anchor)")
    assert run(source, "--output", output) == 1
    assert "link to nowhere: #such-anchor\n" in capsys.readouterr().out


def test_unknown_latex_is_named(tmp_path, capsys):
    source = tmp_path / "text.md"
    source.write_text(r"$\nosuch$")
    assert run(source, "--output", tmp_path / "text.html") == 1
    assert r"LaTeX not known here: \nosuch" in capsys.readouterr().out


def test_another_file_is_kept(tmp_path, capsys):
    source = tmp_path / "text.md"
    source.write_text("text")
    assert run(source, "--output", source) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert source.read_text() == "text"
    assert run(tmp_path / "none.md", "--output", tmp_path / "none.html") == 2


@pytest.mark.skipif(not any(map(shutil.which, check_width.BROWSERS)), reason="no Chromium")
def test_what_is_too_wide_is_named(tmp_path, capsys):
    for style, status in (("", 0), ("width: 700px", 1), ("overflow-x: auto", 0)):
        file = tmp_path / "text.html"
        file.write_text(f'<div style="{style}"><div style="width: 300px">narrow</div></div>')
        if style:
            file.write_text(f'<div style="{style}"><p style="width: 700px">wide</p></div>')
        with pytest.raises(SystemExit) as stopped:
            check_width.main([str(file), "--widths", "390"])
        assert stopped.value.code == status
        assert ("p 708 px: wide" in capsys.readouterr().out) == (status == 1)
