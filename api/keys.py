"""What the application and its requests carry, typed."""

import asyncio

from aiohttp import web

from api.access_log import AccessLog
from api.accounts import Accounts
from api.metrics import Metrics
from api.notice import Notices
from api.watch import Changes, Pulse
from jobs.gate import Gate
from jobs.settings import Settings
from jobs.store import Store

SETTINGS = web.AppKey("settings", Settings)
STORE = web.AppKey("store", Store)
GATE = web.AppKey("gate", Gate)
CHANGES = web.AppKey("changes", Changes)
PULSE = web.AppKey("pulse", Pulse)
METRICS = web.AppKey("metrics", Metrics)
CONVERTING = web.AppKey("converting", asyncio.Lock)  # one at a time
TOLD = web.AppKey("told", set[str])  # accounts that know the notice, by id
NOTICES = web.AppKey("notices", Notices)
ACCESS_LOG = web.AppKey("access_log", AccessLog)
ACCOUNTS = web.AppKey("accounts", Accounts)

JOB = web.RequestKey("job", str)  # the id of the job that a request is about
# the log line names nobody: the account objected, or the request erases the lines of its address
ANONYMOUS = web.RequestKey("anonymous", bool)
LIMIT_HEADERS = web.RequestKey("limit_headers", dict[str, str])  # what is left to its sender
NEW_NOTICE = web.RequestKey("new_notice", bool)  # its account did not know the notice yet
