"""What the application and its requests carry, typed."""

from aiohttp import web

from api.metrics import Metrics
from api.watch import Changes, Pulse
from jobs.sealing import PublicKey
from jobs.settings import Settings
from jobs.store import Store

SETTINGS = web.AppKey("settings", Settings)
STORE = web.AppKey("store", Store)
PUBLIC_KEY = web.AppKey("public_key", PublicKey)
CHANGES = web.AppKey("changes", Changes)
PULSE = web.AppKey("pulse", Pulse)
METRICS = web.AppKey("metrics", Metrics)

JOB = web.RequestKey("job", str)  # the id of the job that a request is about
