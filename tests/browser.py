"""A real browser for tests: opens a page in headless Chromium and runs a script against it.

The page stands in a frame of the width asked for, untouched and under its own Content-Security-Policy; the script runs
outside of it, as a user's hands would, and what it returns comes back through the dumped document.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--allow-file-access-from-files",  # the outer document may look into the frame
    "--enable-logging=stderr",
)

_OUTER = """<!doctype html><meta charset="utf-8"><style>body{{margin:0}}iframe{{border:0;display:block}}</style>
<iframe id="frame" width="{width}" height="{height}"></iframe><pre id="result"></pre>
<script>
const frame = document.getElementById("frame");
const press = (item) => {{ item.focus(); item.click(); }};
let violations = 0;
frame.addEventListener("load", () => {{
  const page = frame.contentDocument, view = frame.contentWindow;
  let found;
  try {{ found = {{ value: (() => {{ {script} }})() }}; }} catch (error) {{ found = {{ error: String(error.stack) }}; }}
  document.getElementById("result").textContent = JSON.stringify(found);
}});
frame.src = {source};
</script>"""


@dataclass(frozen=True)
class Visit:
    """What a script found in a page.

    Attributes:
        value: what it returned.
        console: everything the browser had to complain about.
    """

    value: Any
    console: list[str]


def visit(page: Path, script: str, *, width: int = 1200, height: int = 900, shot: Path | None = None) -> Visit:
    """Open a page and run the body of a function of ``page`` (its document), ``view`` (its window) and ``press``.

    Args:
        page: the HTML file.
        script: JavaScript that returns something JSON can hold.
        width: of the page's viewport, in pixels.
        height: likewise.
        shot: where to put a picture of the page, as a PNG.

    Raises:
        RuntimeError: there is no browser, or the script failed.
    """
    if CHROMIUM is None:
        raise RuntimeError("no chromium")
    folder = page.parent / f"browser-{page.stem}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    outer = folder / "outer.html"
    outer.write_text(_OUTER.format(width=width, height=height, script=script, source=json.dumps(page.as_uri())))
    command = [CHROMIUM, *_OPTIONS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
    if shot is not None:
        subprocess.run([*command, f"--screenshot={shot}", outer.as_uri()], capture_output=True, timeout=120, check=True)
    done = subprocess.run(
        [*command, "--dump-dom", outer.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    shutil.rmtree(folder, ignore_errors=True)
    match = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    found = json.loads(html.unescape(match[1])) if match and match[1] else {"error": "the page never loaded"}
    if "error" in found:
        raise RuntimeError(found["error"])
    return Visit(found["value"], re.findall(r"CONSOLE.*", done.stderr))
