"""Look through the pages of the dashboard with axe-core, as a screen reader's user would want somebody to.

Usage: ``python benchmarks/accessibility.py AXE RESULTS --ct CT [--review FOLDER] [--all]``

AXE is ``axe.min.js`` of the npm package axe-core (``npm pack axe-core`` and unpack it), which is not part of
this project. Table, case, list of what was not scored, SQL, and with ``--review`` work list and desk are
opened in Debian's chromium, in light and dark, 1280 and 390 pixels wide. Prints a line for every finding that
is serious or critical (with ``--all`` every one), then their number by page; exits with 1 if any.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

BAD = ("serious", "critical")
READER = "Ann Miller"


def with_ct(origin: str) -> str:
    """The first scored series whose CT is at hand."""
    page, pages = 1, 1
    while page <= pages:
        with urllib.request.urlopen(f"{origin}/api/cases?status=scored&size=200&page={page}") as answer:
            found = json.load(answer)
        for row in found["rows"]:
            try:
                urllib.request.urlopen(f"{origin}/api/cases/{row['series_uid']}/slices").close()
            except OSError:
                continue
            return str(row["series_uid"])
        page, pages = page + 1, found["pages"]
    raise SystemExit("no scored series has its CT in the folder of --ct")


def pages(uid: str, *, review: bool) -> dict[str, tuple[str, str]]:
    """Address and what stands on it when it is complete, by name."""
    sql = "/sql?q=SELECT+series_uid,+kernel+FROM+results"
    found = {
        "table and charts": ("/?status=scored", "table.cases tbody tr"),
        "table, no row": ("/?search=nobody", "td.empty"),
        "case": (f"/case/{uid}?status=scored", ".slices img[src]"),
        "not scored": ("/not-scored", "section[aria-label=Series]"),
        "SQL": (sql, "textarea"),
        "nothing there": ("/nothing", ".panel h2"),
    }
    if review:
        found |= {
            "work list": ("/review", "table.worklist"),
            "desk": (f"/review/{uid}", "canvas[data-drawn]"),
        }
    return found


def opened(page: Any, name: str) -> None:
    """Open what is folded, and run what waits for a button."""
    page.wait_for_load_state("networkidle")
    if name == "SQL":
        page.get_by_role("button", name="Run").click()
        page.wait_for_selector(".sql table")
    if name == "table and charts":
        page.locator(".saved summary").click()
    page.evaluate("document.querySelectorAll('details:not(.saved)').forEach((e) => { e.open = true; })")
    page.wait_for_timeout(300)


def look(origin: str, axe: str, *, review: bool, every: bool) -> int:
    """Findings in all pages, printed; returns the number of those that are serious."""
    from playwright.sync_api import sync_playwright

    count: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    looked = pages(with_ct(origin), review=review)
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            for width in (1280, 390):
                context = browser.new_context(
                    viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
                )
                context.add_init_script(f"localStorage.setItem('reader', {READER!r})")
                for name, (address, complete) in looked.items():
                    page = context.new_page()
                    page.set_default_timeout(60_000)
                    page.goto(origin + address)
                    page.wait_for_selector(complete, state="attached")
                    opened(page, name)
                    page.evaluate(axe)
                    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
                    rules["passed"] += len(found["passes"])
                    for one in found["violations"]:
                        bad = one["impact"] in BAD
                        count[name] += bad
                        rules[one["impact"]] += 1
                        if bad or every:
                            nodes = [node["html"][:120] for node in one["nodes"]]
                            print(f"{name}, {scheme}, {width}: {one['impact']} {one['id']}: {one['help']}")
                            print(f"  {len(nodes)} elements, first {nodes[0]}", flush=True)
                            why = one["nodes"][0].get("failureSummary", "").replace("\n", " ")
                            print(f"  {why[:300]}")
                    page.close()
                context.close()
        browser.close()
    print(f"\nrules on all pages: {dict(rules)}")
    for name in looked:
        print(f"{name}: {count[name]} serious or critical in light and dark, 1280 and 390 px")
    return sum(count.values())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("axe", type=Path, help="axe.min.js")
    parser.add_argument("results", type=Path, help="output folder of a run")
    parser.add_argument("--ct", type=Path, required=True, help="its CT")
    parser.add_argument("--review", type=Path, help="folder of readings: work list and desk as well")
    parser.add_argument("--all", action="store_true", help="print minor and moderate findings, too")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "deepcac2", "dashboard", str(arguments.results), "--port", "0"]
    command += ["--ct", str(arguments.ct)]
    command += ["--review", str(arguments.review)] if arguments.review else []
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen(command, stderr=log, text=True) as server:
        try:
            origin = ""
            while not origin:
                time.sleep(0.1)
                log.seek(0)
                origin = next((w.rstrip("/") for w in log.read().split() if w.startswith("http")), "")
                if server.poll() is not None:
                    log.seek(0)
                    print(log.read(), file=sys.stderr)
                    return 2
            axe = arguments.axe.read_text(encoding="utf-8")
            bad = look(origin, axe, review=arguments.review is not None, every=arguments.all)
        finally:
            server.terminate()
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
