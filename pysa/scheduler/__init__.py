"""Continuous batching: many requests share one model, a few sessions (lanes) and one thread.

    scheduler = Scheduler(model, lambda: model.session(n_ctx=8192), n_parallel=4)
    ticket = scheduler.submit(completion)     # from any thread
    print(ticket.result()["choices"][0]["text"])

scheduler.py is the front, ticket.py a request's place in it, lane.py a session and what it holds, step.py one step of
the batch, engine.py the thread, errand.py what no batch can do, shelf.py sessions on disk. AsyncLlama and `pysa serve`
stand on it.
"""

from __future__ import annotations

from pysa.scheduler.scheduler import Scheduler
from pysa.scheduler.stats import Stats
from pysa.scheduler.ticket import Drivable, QueueFullError, Ticket

__all__ = ["Drivable", "QueueFullError", "Scheduler", "Stats", "Ticket"]
