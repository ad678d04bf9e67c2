"""The page: what the database has, as HTML, JSON and CSV; it writes nothing and needs nothing from elsewhere."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline
from fastapi import FastAPI, HTTPException
from sqlalchemy import Connection
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from federation.run_folder import PATIENTS, SITES, UPDATES
from monitor import curves, models, privacy, views
from monitor.access import guard
from monitor.alarm_views import run_alarms
from monitor.database import Database, DatabaseAwayError
from monitor.exports import EXPORTS, as_table, attached, exported
from monitor.prometheus import exposition
from monitor.site_files import SITE

_FOLDER = Path(__file__).parent
_KEPT = {"Cache-Control": "private, max-age=86400"}
_BY_ROUND = {
    "norms": curves.norms,
    "similarity": curves.similarity,
    "traffic": curves.traffic,
    "epsilon": privacy.epsilons,
    "masks": privacy.masked_counts,
}
"""Lines of numbers by round, beside the metrics."""
_PARTS = ("metric", "timeline", *_BY_ROUND, "compared")


def make_page(database: Database, password: str | None = None) -> FastAPI:
    """The application; without a password it answers to names of this machine alone."""
    app = FastAPI(title="dipro-fed monitor", docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(guard(password))
    app.add_middleware(GZipMiddleware, minimum_size=2000, compresslevel=1)
    templates, plotly_js = _templates(), plotly.offline.get_plotlyjs()

    def render(name: str, status: int = 200, **facts: Any) -> HTMLResponse:
        return HTMLResponse(templates.get_template(name).render(now=datetime.now(UTC), **facts), status)

    @app.exception_handler(DatabaseAwayError)
    def away(request: Request, error: DatabaseAwayError) -> Response:
        return render("away.html", 503, error=str(error))

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name == "plotly.js":
            return Response(plotly_js, media_type="text/javascript", headers=_KEPT)
        kinds = {"monitor.js": "text/javascript", "look.css": "text/css", "monitor.css": "text/css"}
        if name not in kinds:
            raise HTTPException(404)
        return Response((_FOLDER / "static" / name).read_text(encoding="utf-8"), media_type=kinds[name])

    @app.get("/metrics")
    def figures(request: Request) -> Response:
        with database.reading() as connection:
            text, kind = exposition(connection, request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": kind})

    @app.get("/grafana.json")
    def grafana() -> Response:
        text = (_FOLDER / "grafana" / "dipro-fed.json").read_text(encoding="utf-8")
        return Response(text, media_type="application/json", headers=attached("dipro-fed.json"))

    @app.get("/")
    def index() -> Response:
        with database.reading() as connection:
            return render("runs.html", runs=views.all_runs(connection))

    @app.get("/runs/{run_id}")
    def run(run_id: int, request: Request, metric: str = "", split: str = "") -> Response:
        with database.reading() as connection:
            found = _found(connection, run_id)
            known = views.metrics(connection, run_id)
            chosen = _chosen(known, found, metric, split)
            wanted = _beside(request)
            others = [
                each
                for each in views.all_runs(connection)
                if each["task"] == found["task"] and each["run_id"] != run_id and each["best_step"] is not None
            ]
            beside = [models.reference(connection, each, *chosen) for each in wanted]
            side_by_side = [found, *(each for each in others if each["run_id"] in wanted)]
            facts = {
                "metric": chosen[0],
                "split": chosen[1],
                "unit": found["step_unit"] or "round",
                "beside": [{"name": each[0], "value": each[1]} for each in beside if each],
                "budgets": privacy.budgets(found),
            }
            return render(
                "run.html",
                run=found,
                **_board(connection, found, measured=bool(known)),
                metrics=known,
                is_private=any(privacy.is_on(found, each) for each in (PATIENTS, SITES)),
                is_masked=privacy.is_on(found, UPDATES),
                chosen=chosen,
                others=others,
                wanted=wanted,
                beside=[each for each in beside if each],
                matrix=models.matrix(found, chosen[0]),
                cross_site=models.cross_site(side_by_side, chosen[0]) if wanted else ([], []),
                facts=json.dumps(facts),
            )

    @app.get("/runs/{run_id}/board")
    def board(run_id: int, version: str = "") -> Response:
        """The part of the page that changes, where it is not that version any more."""
        with database.reading() as connection:
            found = _found(connection, run_id)
            if views.version(connection, run_id) == version:
                return Response(status_code=204)
            measured = views.is_measured(connection, run_id)
            return render("board.html", run=found, **_board(connection, found, measured=measured))

    @app.get("/runs/{run_id}/series")
    def series(run_id: int, metric: str, split: str, after: int = -1, parts: str = ",".join(_PARTS)) -> Response:
        """What the pictures are drawn from, after a step; only some of the parts where they are named."""
        wanted = set(parts.split(","))
        with database.reading() as connection:
            _found(connection, run_id)
            found: dict[str, Any] = {}
            if "metric" in wanted:
                found["metric"] = curves.series(connection, run_id, metric, split, after)
            if "timeline" in wanted:
                found["timeline"] = [asdict(bar) for bar in views.timeline(connection, run_id)]
            found |= {name: _BY_ROUND[name](connection, run_id, after) for name in _BY_ROUND if name in wanted}
            if "compared" in wanted:
                found["compared"] = curves.compared(connection, run_id)
        return JSONResponse(found)

    @app.get("/runs/{run_id}/board.csv")
    def board_csv(run_id: int) -> Response:
        with database.reading() as connection:
            seats = [asdict(seat) for seat in views.board(connection, _found(connection, run_id))]
        names = list(asdict(views.Seat(site="")))
        return as_table(f"run-{run_id}-sites", names, [[seat[name] for name in names] for seat in seats])

    @app.get("/runs/{run_id}/series.csv")
    def series_csv(run_id: int, metric: str, split: str) -> Response:
        with database.reading() as connection:
            _found(connection, run_id)
            found = curves.series(connection, run_id, metric, split)
        return as_table(f"run-{run_id}-series", ["step", "site", metric], _by_step(found))

    @app.get("/runs/{run_id}/{what}-by-round.csv")
    def by_round_csv(run_id: int, what: str) -> Response:
        """Lengths of the updates, bytes, epsilons and the like: whatever is drawn by round beside the metrics."""
        if what not in _BY_ROUND:
            raise HTTPException(404)
        with database.reading() as connection:
            _found(connection, run_id)
            found = _BY_ROUND[what](connection, run_id)
        return as_table(f"run-{run_id}-{what}", ["round", "of", "value"], _by_step(found))

    @app.get("/runs/{run_id}/compared.csv")
    def compared_csv(run_id: int) -> Response:
        with database.reading() as connection:
            _found(connection, run_id)
            found = curves.compared(connection, run_id) or {"round": None, "sites": [], "cosines": []}
        rows = [[site, *cosines] for site, cosines in zip(found["sites"], found["cosines"], strict=True)]
        return as_table(f"run-{run_id}-compared", [f"round {found['round']}", *found["sites"]], rows)

    @app.get("/runs/{run_id}/{what}-sites.csv")
    def sites_csv(run_id: int, what: str, metric: str, request: Request) -> Response:
        """The table of the chosen model at every site, or of several runs' models at every site's test part."""
        if what not in ("chosen", "cross"):
            raise HTTPException(404)
        with database.reading() as connection:
            found = _found(connection, run_id)
            beside = [views.one_run(connection, each) for each in _beside(request)]
        if what == "chosen":
            columns, rows = models.matrix(found, metric)
        else:
            columns, rows = models.cross_site([found, *(each for each in beside if each)], metric)
        return as_table(f"run-{run_id}-{what}-sites", [metric, *columns], [[name, *values] for name, values in rows])

    @app.get("/runs/{run_id}/timeline.csv")
    def timeline_csv(run_id: int) -> Response:
        with database.reading() as connection:
            _found(connection, run_id)
            bars = [asdict(bar) for bar in views.timeline(connection, run_id)]
        names = ["site", "what", "round", "sent", "received", "seconds", "end"]
        return as_table(f"run-{run_id}-timeline", names, [[bar[name] for name in names] for bar in bars])

    @app.get("/runs/{run_id}/{what}.{form}")
    def export(run_id: int, what: str, form: str) -> Response:
        """All events, measurements or alarms of a run, row by row."""
        if what not in EXPORTS or form not in ("csv", "json"):
            raise HTTPException(404)
        with database.reading() as connection:
            _found(connection, run_id)
        return exported(database, run_id, what, form)

    return app


def _found(connection: Connection, run_id: int) -> dict[str, Any]:
    found = views.one_run(connection, run_id)
    if found is None:
        raise HTTPException(404, "no such run")
    return found


def _beside(request: Request) -> list[int]:
    """Numbers of the runs that are to be shown beside one."""
    return [int(text) for text in request.query_params.getlist("beside") if text.isdecimal()][:20]


def _by_step(lines: dict[str, Any]) -> list[tuple[int, str, Any]]:
    """A row for each point of a picture's lines."""
    return [
        (step, name, value)
        for name, line in lines.items()
        for step, value in zip(line["step"], line["value"], strict=True)
    ]


def _board(connection: Connection, run: dict[str, Any], *, measured: bool) -> dict[str, Any]:
    return {
        "version": views.version(connection, run["run_id"]),
        "measured": measured,
        "seats": views.board(connection, run),
        "happenings": views.happenings(connection, run["run_id"]),
        "alarms": run_alarms(connection, run["run_id"]),
        "spent": privacy.spent(connection, run),
        "masks": privacy.masks(connection, run),
        "departures": views.departures(connection, run["run_id"]) if run["kind"] == SITE else [],
    }


def _chosen(known: Sequence[tuple[str, str]], run: dict[str, Any], metric: str, split: str) -> tuple[str, str]:
    """The metric and split that were asked for, or what chooses the run's best step, or the loss."""
    wanted = [(metric, split), (run["monitor"], "val"), ("loss", "val"), ("loss", "train")]
    return next((each for each in wanted if each in known), known[0] if known else ("loss", "train"))


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "size": _size,
        "moment": _moment,
        "duration": _duration,
        "text": _as_text,
        "digits": _digits,
    }
    return environment


def _size(num_bytes: int | None) -> str:
    size = float(num_bytes or 0)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def _moment(time: str | None) -> str:
    """To the second, in UTC; a time of another form as it is."""
    try:
        return datetime.fromisoformat(str(time)).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return str(time or "")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _digits(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def _as_text(facts: Any) -> str:
    """What an event says, on one line."""
    known = facts.get("reason") if isinstance(facts, dict) else None
    return str(known) if known else json.dumps(facts, ensure_ascii=False)
