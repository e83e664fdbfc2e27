"""The web page of a run folder: a shell of static files, and the routes that feed its views.

The files in `static/` are plain HTML, CSS and JavaScript modules as the browser takes them: there
is no build step, and nothing comes from another address. Text enters the page as text nodes only
(`static/dom.js`), so what a model wrote is never markup.
"""
