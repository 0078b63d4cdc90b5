"""A changed privacy notice is told to each account once: by a header of the answer to its job."""

import asyncio
import logging

from aiohttp import web
from sqlalchemy import Engine, delete, insert, select
from sqlalchemy.exc import SQLAlchemyError

from api.callers import Caller
from api.database import notices_seen
from api.keys import ACCOUNTS, NEW_NOTICE, NOTICES, TOLD

log = logging.getLogger(__name__)


async def tell_once(request: web.Request, asking: Caller) -> None:
    """Let the answer say that the notice is new to the account, if it is. A database that does not
    answer costs nobody their job; the account is told with a later one."""
    if asking.key is None or asking.key.account.id in request.app[TOLD]:
        return
    account_id, version = asking.key.account.id, request.app[NOTICES].version
    try:
        is_new = await asyncio.to_thread(_mark, request.app[ACCOUNTS].database, account_id, version)
    except SQLAlchemyError as error:
        log.warning("database does not answer", exc_info=error)
        return
    request.app[TOLD].add(account_id)
    if is_new:
        request[NEW_NOTICE] = True


def _mark(database: Engine, account_id: str, version: str) -> bool:
    """Note that the account has seen this version; whether it had not."""
    its = notices_seen.c.account == account_id
    with database.begin() as connection:
        if connection.scalar(select(notices_seen.c.version).where(its)) == version:
            return False
        connection.execute(delete(notices_seen).where(its))
        connection.execute(insert(notices_seen).values(account=account_id, version=version))
    return True
