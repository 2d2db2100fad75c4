"""The health page of a listening node, and its metrics for Prometheus.

Nothing here is about a patient: counts, addresses of destinations, reasons in our own words.
"""

from __future__ import annotations

import html
import shutil
import time
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from .web import WebServer

if TYPE_CHECKING:
    from .node import Node

_STUCK = 3600.0
"""Seconds without a turn of the node's loop after which it counts as ill; a batch of slow series on a CPU
takes minutes. Chosen."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def state_of(node: Node) -> dict[str, Any]:
    """All that is told of a node: JSON types."""
    counts, received = node.inbox.counts(), node.received()
    free = shutil.disk_usage(node.inbox.root).free
    problems = [text for text in node.health.destinations.values() if text]
    if free < node.config.limits.free_gb * 1e9:
        problems.append("the disk is nearly full: instances are refused until there is room")
    if counts["waiting"] >= node.config.limits.waiting:
        problems.append("too many series wait: further ones are refused until some are scored")
    if counts["delivery_problems"]:
        problems.append(f"{counts['delivery_problems']} results were not taken by a destination; see the log")
    if counts["commitment_problems"]:
        problems.append(
            f"{counts['commitment_problems']} reports of storage commitment are not taken; see the log, and "
            "the port of the peer"
        )
    alive = time.monotonic() - node.health.beat < _STUCK and not node.stopping
    return {
        "status": "ok" if alive and not problems else "troubled" if alive else "ill",
        "alive": alive,
        "problems": problems,
        "seconds": round(time.time() - node.health.started),
        "series": {k: counts[k] for k in ("scored", "rejected", "failed", "waiting")},
        "scoring": max(node.health.scoring, 0),
        "undelivered": counts["undelivered"],
        "commitments": counts["commitments"],
        "instances": {k: received[k] for k in ("new", "again", "refused")},
        "bytes": received["bytes"],
        "echoes": received["echoes"],
        "cut_off": received["too_large"],
        "turned_away": {
            k.removeprefix("turned_away_"): n for k, n in received.items() if k.startswith("turned_away_")
        },
        "associations": node.listener.open_associations,
        "worker_deaths": node.health.deaths,
        "free_bytes": free,
    }


def metrics_of(state: dict[str, Any]) -> str:
    """The same in the text format of Prometheus (version 0.0.4)."""
    lines: list[str] = []

    def add(name: str, kind: str, meaning: str, values: dict[str, float], label: str = "") -> None:
        lines.append(f"# HELP deepcac2_node_{name} {meaning}")
        lines.append(f"# TYPE deepcac2_node_{name} {kind}")
        for key, value in values.items():
            labels = f'{{{label}="{key}"}}' if label else ""
            lines.append(f"deepcac2_node_{name}{labels} {value}")

    add("up", "gauge", "1 while its loop turns", {"": int(state["alive"])})
    add("problems", "gauge", "what a person has to look at", {"": len(state["problems"])})
    add("uptime_seconds", "gauge", "since its start", {"": state["seconds"]})
    add("series", "gauge", "series in the inbox by status", state["series"], "status")
    add("series_scoring", "gauge", "series that are with the workers", {"": state["scoring"]})
    add(
        "deliveries_waiting",
        "gauge",
        "results that a destination does not have yet",
        {"": state["undelivered"]},
    )
    add(
        "commitments_waiting",
        "gauge",
        "requests for storage commitment that got no report yet",
        {"": state["commitments"]},
    )
    add("instances_total", "counter", "instances offered since the start", state["instances"], "outcome")
    add("received_bytes_total", "counter", "bytes received", {"": state["bytes"]})
    add("echoes_total", "counter", "C-ECHO answered", {"": state["echoes"]})
    add("cut_off_total", "counter", "callers cut off for the size of what they sent", {"": state["cut_off"]})
    add("turned_away_total", "counter", "calls turned away", state["turned_away"], "why")
    add("associations", "gauge", "open associations", {"": state["associations"]})
    add("worker_deaths_total", "counter", "worker processes that died", {"": state["worker_deaths"]})
    add("disk_free_bytes", "gauge", "free bytes on the disk of the inbox", {"": state["free_bytes"]})
    return "\n".join(lines) + "\n"


def page_of(state: dict[str, Any]) -> str:
    """The same for people."""
    rows = "".join(
        f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td>{html.escape(_in_words(value))}</td></tr>"
        for name, value in state.items()
        if name not in ("status", "alive", "problems")
    )
    problems = "".join(f"<li>{html.escape(text)}</li>" for text in state["problems"])
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=10>"
        f"<title>deepcac2 node: {state['status']}</title><style>body{{font:16px system-ui;max-width:42rem;"
        "margin:2rem auto;padding:0 1rem;color:#222;background:#fff}th{text-align:left;font-weight:400;"
        "color:#555;padding:.2rem 2rem .2rem 0;vertical-align:top}.ok{color:#176b2c}.troubled{color:#8a5a00}"
        ".ill{color:#a01616}@media(prefers-color-scheme:dark){body{color:#ddd;background:#161616}"
        "th{color:#aaa}.ok{color:#6fcf87}.troubled{color:#e0b050}.ill{color:#ff8a80}}</style>"
        f"<h1>deepcac2 node: <span class={state['status']}>{state['status']}</span></h1><ul>{problems}</ul>"
        f"<table>{rows}</table></html>"
    )


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{n} {k}" for k, n in value.items()) or "none"
    return str(value)


class HealthPage(WebServer):
    """Serves ``/``, ``/health`` and ``/metrics`` until it is stopped.

    Args:
        node: Of which it tells.
        address: ``HOST:PORT``.

    Raises:
        InputError: It cannot listen there.
    """

    def __init__(self, node: Node, address: str) -> None:
        def page(request: Request) -> Response:
            return HTMLResponse(page_of(state_of(node)), headers=_HEADERS)

        def health(request: Request) -> Response:
            state = state_of(node)
            return JSONResponse(state, status_code=200 if state["alive"] else 503, headers=_HEADERS)

        def metrics(request: Request) -> Response:
            text = metrics_of(state_of(node))
            return PlainTextResponse(text, media_type="text/plain; version=0.0.4", headers=_HEADERS)

        app = Starlette(routes=[Route("/", page), Route("/health", health), Route("/metrics", metrics)])
        super().__init__(app, address, option="http")
