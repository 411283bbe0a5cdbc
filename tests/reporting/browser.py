"""A page as Chromium lays it out: in a frame, because its window is never narrower than 500 pixels."""

import html
import re
import shutil
import subprocess
from pathlib import Path

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FRAME = """<!doctype html><body><iframe style="border: 0; width: {width}px; height: 900px" srcdoc="{page}"></iframe><script>
const frame = document.querySelector('iframe');
frame.onload = () => {{
  const page = frame.contentDocument;
  page.body.dataset.room = page.defaultView.innerWidth;
  page.body.dataset.wide = page.documentElement.scrollWidth > page.defaultView.innerWidth;
  document.body.dataset.said = JSON.stringify(page.body.dataset);
}};
</script></body>"""


def shown(page: str, width: int, folder: Path) -> dict[str, str]:
    """What the page has put into its body's data-..., and `wide`: whether it is wider than its window. No word on the console."""
    path = folder / "framed.html"
    path.write_text(FRAME.format(width=width, page=html.escape(page)))
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1300,1000"]
    command += [f"--user-data-dir={folder}/profile", "--enable-logging=stderr", "--dump-dom", path.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in ran.stderr, ran.stderr
    said = re.search(r'<body data-said="([^"]*)"', ran.stdout)
    assert said is not None
    found = dict(re.findall(r'"(\w+)":"([^"]*)"', html.unescape(said[1])))
    assert found["room"] == str(width)
    return found
