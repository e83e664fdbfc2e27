"""The page of a run folder: static files, and the API routes behind its views.

The files in `static/` are plain HTML, CSS and JavaScript modules without a build step, and nothing
loads from another origin. `static/dom.js` inserts text as text nodes only, so the output of a model
is never markup.
"""
