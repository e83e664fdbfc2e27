"""The page itself at `/`, and its files below `/page`; they hold nothing of any run.

So they need no key (`reflux.server.guards`): where the server has one, the page asks for it and
shows it with every request to the API.
"""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from reflux.web import commands_api, evaluations_api, review_api, runs_api, trajectories_api

STATIC = Path(__file__).parent / "static"
FRESH = {"cache-control": "no-cache"}
"""A browser asks whether its copy is still right, so a new Reflux never meets an old page."""


class _Files(StaticFiles):
    """Static files that a browser may keep, if it asks each time."""

    def file_response(self, *args: object, **more: object) -> Response:
        """The file, or word that it has not changed."""
        response = super().file_response(*args, **more)  # pyright: ignore[reportArgumentType]
        response.headers.update(FRESH)
        return response


def add_page(app: FastAPI) -> None:
    """Serve the page, and the routes of its views."""

    @app.get("/", include_in_schema=False)
    async def show_page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers=FRESH)

    app.mount("/page", _Files(directory=STATIC), name="page")
    for routes in (
        trajectories_api,
        runs_api,
        evaluations_api,
        commands_api,
        review_api,
    ):
        app.include_router(routes.router)
