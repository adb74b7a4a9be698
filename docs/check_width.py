"""Is an HTML page wider than its window?  Measured, and pictured, by a headless Chromium.

    python docs/check_width.py docs/acl.html                       # 1280, 850 and 390 px
    python docs/check_width.py readme.html --widths 850 --pictures shots

Prints one line a width: the page's width and, if that is more than the window, the innermost
elements that stick out; then how many tables, code blocks and the like are wider than their
place and scroll inside it, with --inside one line each.  Exit status 1 if the page, with
--inside if anything, is too wide.  --pictures writes the whole page, light and dark, in PNG
files of at most --height pixels each.  Needs `chromium` (Debian: apt-get install chromium),
`chromium-browser` or `google-chrome`, and nothing else.
"""

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")

# The page stands in a frame of the wanted width: a window cannot be as narrow as a phone.
FRAME = """<!doctype html><meta charset="utf-8"><style>body, iframe { margin: 0; border: 0;
display: block; color-scheme: %(scheme)s }</style>
<iframe src="%(page)s" style="width: %(width)dpx; height: %(height)dpx"></iframe>
<pre></pre><script>
onload = () => {
  const page = frames[0].document, limit = %(width)d, wide = [], inside = [];
  frames[0].scrollTo(0, %(top)d);
  const clips = node => getComputedStyle(node).overflowX != "visible";
  const clipped = node => node && (clips(node) || clipped(node.parentElement));
  const name = (node, width) => `${node.tagName.toLowerCase()} ${Math.round(width)} px: ` +
    node.textContent.trim().slice(0, 60).replace(/\\s+/g, " ");
  for (const node of page.body.querySelectorAll("*")) {
    const right = node.getBoundingClientRect().right;
    if (right > limit + 1 && !node.children.length && !clipped(node.parentElement))
      wide.push(name(node, right));
    if (clips(node) && node.scrollWidth > node.clientWidth + 1)
      inside.push(name(node, node.scrollWidth));
  }
  const { scrollWidth: width, scrollHeight: height } = page.documentElement;
  document.querySelector("pre").textContent = JSON.stringify({ width, height, wide, inside });
}
</script>
"""


def chromium(url, profile, *options):
    """Run the browser once; its standard output."""
    found = [path for path in map(shutil.which, BROWSERS) if path]
    if not found:
        sys.stderr.write("check_width.py: no chromium; Debian: apt-get install chromium\n")
        sys.exit(2)
    command = [
        found[0], "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--disable-background-networking", "--allow-file-access-from-files",
        f"--user-data-dir={profile}", *options, url,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def look(page, width, folder, scheme="light", top=0, height=900, picture=None):
    """Open the page in a frame; what was measured, or None where a picture was asked for."""
    frame = folder / "frame.html"
    values = {"page": html.escape(page.resolve().as_uri()), "width": width, "height": height}
    frame.write_text(FRAME % {**values, "scheme": scheme, "top": top}, encoding="utf-8")
    if picture:
        size = f"--window-size={width},{height}"
        chromium(frame.as_uri(), folder / "profile", f"--screenshot={picture}", size)
        return None
    shown = chromium(frame.as_uri(), folder / "profile", "--dump-dom")
    return json.loads(html.unescape(re.search("<pre>(.*?)</pre>", shown, re.DOTALL)[1]))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--widths", type=int, nargs="+", default=[1280, 850, 390])
    parser.add_argument("--inside", action="store_true", help="what scrolls counts as too wide")
    parser.add_argument("--pictures", type=Path, help="folder for PNG files")
    parser.add_argument("--height", type=int, default=2000, help="of one picture, px (2000)")
    args = parser.parse_args(argv)
    if not args.page.is_file():
        parser.exit(2, f"check_width.py: no file {args.page}\n")
    too_wide = False
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        for width in args.widths:
            seen = look(args.page, width, folder)
            size, inside = f"page {seen['width']} x {seen['height']}", len(seen["inside"])
            verdict = "fits" if seen["width"] <= width else "TOO WIDE"
            print(f"{args.page} at {width} px: {size}, {verdict}; {inside} scroll inside")
            listed = seen["wide"][:20] if seen["width"] > width else []
            if args.inside:
                listed += seen["inside"]
            print("".join(f"    {line}\n" for line in listed), end="")
            too_wide = too_wide or bool(listed) or seen["width"] > width
            if args.pictures:
                args.pictures.mkdir(parents=True, exist_ok=True)
                for scheme in ("light", "dark"):
                    for part, top in enumerate(range(0, seen["height"], args.height), start=1):
                        stem = f"{args.page.stem}_{width}_{scheme}_{part:02}.png"
                        picture = args.pictures.resolve() / stem
                        look(args.page, width, folder, scheme, top, args.height, picture)
    sys.exit(1 if too_wide else 0)


if __name__ == "__main__":
    main()
