"""The HTTP server of `pysa serve`: OpenAI's interface over AsyncLlama. Needs the extra `serve` (Starlette, uvicorn).

settings.py has what it is told, app.py puts it together, gate.py lets requests in, body.py and fields.py read them,
routes.py answers, answers.py and events.py give answers their form, errors.py and metrics.py say how it goes, run.py is
the process.
"""
