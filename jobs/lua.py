"""The atomic steps of a job's life, as Lua for Redis ≥ 7 or Valkey.

Each step reads which keys exist and changes them in one go, so that two readers, two workers or a
worker and an eraser can never both win. Scripts that only drain carry ``allow-oom``: running,
finishing and fetching go on when the memory is full.
"""

BULK = 1e11  # scores of bulk jobs are this much higher

# KEYS image job queue arq_job turn lane swept uncounted owned
# ARGV id sealed image_ttl job_ttl model arq_payload score_offset max_jobs max_bytes wake_channel
#      image_pattern counted has_account
# The payload is written before the queue entry: a worker that sees the entry finds the payload.
# arq serves the lowest score first. Here it is a turn, as in start-time fair queueing (Goyal, Vin,
# Cheng 1996): a job's turn is the one that was served last, or, if that is later, one after its
# owner's last. So owners with jobs take turns, however many each has. What counts as served moves
# on by a thousandth with each job that comes: equals go in the order of their coming, and who has
# many waits for no more than a thousand newcomers at each of them.
SUBMIT = """#!lua
local image, job, queue, arq_job, turn, lane, swept, uncounted, owned = unpack(KEYS)
local id, sealed, image_ttl, job_ttl, model, arq_payload = unpack(ARGV, 1, 6)
local score_offset, max_jobs, max_bytes, wake, image_pattern = unpack(ARGV, 7, 11)
local counted, has_account = unpack(ARGV, 12, 13)
if redis.call('EXISTS', job) == 1 then return 'exists' end
-- Workers drop dead entries that they meet; where the queue seems full, they are looked for.
if redis.call('ZCARD', queue) >= tonumber(max_jobs) then
  if not redis.call('SET', swept, '', 'PX', 1000, 'NX') then return 'full' end
  for _, entry in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
    if redis.call('EXISTS', string.format(image_pattern, entry)) == 0 then
      redis.call('ZREM', queue, entry)
    end
  end
  if redis.call('ZCARD', queue) >= tonumber(max_jobs) then return 'full' end
end
local memory = redis.call('INFO', 'memory')
local used = tonumber(string.match(memory, 'used_memory:(%d+)'))
local server_max = tonumber(string.match(memory, 'maxmemory:(%d+)'))
local limit = tonumber(max_bytes)
if server_max > 0 then limit = math.min(limit, server_max * 0.7) end
if used + #sealed > limit then return 'full' end
redis.call('SET', image, sealed, 'PX', image_ttl)
redis.call('SET', job, model, 'PX', job_ttl)
redis.call('SET', arq_job, arq_payload, 'PX', image_ttl)
if counted == '0' then redis.call('SET', uncounted, '', 'PX', job_ttl) end
if has_account == '1' then -- so that the account can see and erase what is live of it
  local time = redis.call('TIME')[1] * 1000
  redis.call('ZREMRANGEBYSCORE', owned, '-inf', time)
  redis.call('ZADD', owned, time + job_ttl, id)
  redis.call('PEXPIRE', owned, job_ttl)
end
local served = tonumber(redis.call('GET', turn) or 0) + 0.001
local place = math.max(served, (redis.call('GET', lane) or -1) + 1)
redis.call('SET', turn, served, 'PX', image_ttl)
redis.call('SET', lane, place, 'PX', image_ttl)
redis.call('ZADD', queue, score_offset + place, id)
redis.call('PEXPIRE', queue, image_ttl) -- with the last image that may wait in it
redis.call('PUBLISH', wake, id)
return 'queued'
"""

# KEYS image job result in_progress; ARGV id queue_prefix
# A state is never stored: it is read from which keys exist. -> {state, jobs ahead, ttl in ms}
STATE = """#!lua flags=no-writes
local image, job, result, in_progress = unpack(KEYS)
local ttl = redis.call('PTTL', result)
if ttl > 0 then return {'done', 0, ttl} end
ttl = redis.call('PTTL', image)
if ttl > 0 then
  if redis.call('EXISTS', in_progress) == 1 then return {'running', 0, ttl} end
  local queue = ARGV[2] .. (redis.call('GET', job) or '')
  return {'queued', redis.call('ZRANK', queue, ARGV[1]) or 0, ttl}
end
if redis.call('EXISTS', job) == 1 then return {'gone', 0, 0} end
return {'unknown', 0, 0}
"""

# KEYS queue; ARGV room lease_ms in_progress_prefix retry_prefix retry_ttl image_pattern
#      started_channel
# Running jobs stay in the queue, so the head is read until there is nothing left to claim. The
# claim is arq's own: its in-progress key, with a short lease that the worker renews, and its count
# of tries, so that a job which was not handed back is known. -> {{id, score, try}, ...}
CLAIM = """#!lua flags=allow-oom
local room, lease_ms, in_progress, retry, retry_ttl, image_pattern, started = unpack(ARGV)
local claimed, start, page = {}, 0, 200
room = tonumber(room)
while #claimed < room and start < 100000 do
  local entries = redis.call('ZRANGE', KEYS[1], start, start + page - 1, 'WITHSCORES')
  for i = 1, #entries, 2 do
    local id, score = entries[i], entries[i + 1]
    if redis.call('EXISTS', string.format(image_pattern, id)) == 0 then
      redis.call('ZREM', KEYS[1], id) -- it expired while it waited
    else
      start = start + 1
      if redis.call('SET', in_progress .. id, '1', 'PX', lease_ms, 'NX') then
        local try = redis.call('INCR', retry .. id)
        redis.call('PEXPIRE', retry .. id, retry_ttl)
        redis.call('PUBLISH', started, id)
        claimed[#claimed + 1] = {id, score, try}
        if #claimed == room then break end
      end
    end
  end
  if #entries < 2 * page then break end
end
return claimed
"""

# KEYS image in_progress arq_retry
# A claimed job whose image is gone, erased or expired: nothing of the claim is left either.
LET_GO = """#!lua flags=allow-oom
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('DEL', KEYS[2], KEYS[3]) end
"""

# ARGV lease_ms in_progress_prefix ids, in one string with spaces between
RENEW = """#!lua flags=allow-oom
for id in string.gmatch(ARGV[3], '%S+') do redis.call('PEXPIRE', ARGV[2] .. id, ARGV[1]) end
"""

# KEYS crash; ARGV ttl
COUNT = """#!lua flags=allow-oom
redis.call('SET', KEYS[1], 0, 'PX', ARGV[1], 'NX')
return redis.call('INCR', KEYS[1])
"""

# KEYS image job result in_progress arq_job arq_retry uncounted usage
# ARGV id sealed result_ttl queue_prefix done_channel bulk_offset turn_prefix bulk_turn_prefix
#      usage_ttl (field count)*
# The image goes in the step that stores the result, and so does the job's place in the queue. No
# image: the job was erased, has expired or was finished by another worker, and this result must not
# bring it back, nor be counted.
FINISH = """#!lua flags=allow-oom
local image, job, result, in_progress, arq_job, arq_retry, uncounted, usage = unpack(KEYS)
local id, sealed, result_ttl, prefix, done, bulk, turn_prefix, bulk_turn_prefix = unpack(ARGV)
local model = redis.call('GET', job) or ''
local place = tonumber(redis.call('ZSCORE', prefix .. model, id))
if place then
  redis.call('ZREM', prefix .. model, id)
  local turn = turn_prefix .. model
  if place >= tonumber(bulk) then turn, place = bulk_turn_prefix .. model, place - bulk end
  local served = tonumber(redis.call('GET', turn))
  if served and served < place then redis.call('SET', turn, place, 'KEEPTTL') end
end
redis.call('DEL', in_progress, arq_job, arq_retry)
if redis.call('DEL', image) == 0 then return 0 end
redis.call('SET', result, sealed, 'PX', result_ttl, 'NX')
redis.call('PUBLISH', done, id)
if redis.call('DEL', uncounted) == 1 or #ARGV == 9 then return 1 end
local where = math.floor(redis.call('TIME')[1] / 86400) .. ' ' .. model .. ' '
for i = 10, #ARGV, 2 do redis.call('HINCRBY', usage, where .. ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', usage, ARGV[9])
return 1
"""

# KEYS usage batch; ARGV id ttl -> the batch
# What was counted is set aside under an id, until a front door says that it is in its database.
# Meanwhile others see the same batch under the same id, and what is counted makes the next one.
TAKE_USAGE = """#!lua flags=allow-oom
local usage, batch = unpack(KEYS)
if redis.call('EXISTS', batch) == 0 then
  if redis.call('EXISTS', usage) == 0 then return {} end
  redis.call('RENAME', usage, batch)
  redis.call('HSET', batch, 'id', ARGV[1])
  redis.call('PEXPIRE', batch, ARGV[2])
end
return redis.call('HGETALL', batch)
"""

# KEYS batch; ARGV id
DROP_USAGE = """#!lua flags=allow-oom
if redis.call('HGET', KEYS[1], 'id') == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 0
"""

# KEYS image job result lease; ARGV reader lease_ms grace_ms
# Without a reader the result is taken and deleted: the first caller wins, the others see it gone.
# With one it is leased: only that reader gets it again until the lease ends, and the first read
# cuts what is left of its life to the grace. -> {state, ttl in ms, result}
FETCH = """#!lua flags=allow-oom
local image, job, result, lease = unpack(KEYS)
local reader, lease_ms, grace_ms = unpack(ARGV)
local sealed = redis.call('GET', result)
if not sealed then
  if redis.call('EXISTS', image) == 1 then return {'pending', redis.call('PTTL', image)} end
  if redis.call('EXISTS', job) == 1 then return {'gone', 0} end
  return {'unknown', 0}
end
local holder = redis.call('GET', lease)
if holder and holder ~= reader then return {'leased', redis.call('PTTL', lease)} end
if reader == '' then
  redis.call('DEL', result)
else
  local left = math.min(redis.call('PTTL', result), tonumber(grace_ms))
  redis.call('PEXPIRE', result, left)
  redis.call('SET', lease, reader, 'PX', math.min(left, tonumber(lease_ms)))
end
return {'done', 0, sealed}
"""

# KEYS image job result lease arq_job arq_retry; ARGV id reader queue_prefix done_channel
# An acknowledgement that lost its lease to another reader changes nothing; an erasure by the owner
# (no reader) always wins. -> what was there: fenced, erased or nothing
ERASE = """#!lua flags=allow-oom
local image, job, result, lease, arq_job, arq_retry = unpack(KEYS)
local id, reader, prefix, done = unpack(ARGV)
local holder = redis.call('GET', lease)
if reader ~= '' and holder and holder ~= reader then return 'fenced' end
local there = redis.call('DEL', image, result, lease)
local model = redis.call('GET', job)
if model then redis.call('ZREM', prefix .. model, id) end
redis.call('DEL', arq_job, arq_retry)
if there == 0 then return 'nothing' end
redis.call('PUBLISH', done, id)
return 'erased'
"""

# KEYS workers; ARGV worker info ttl
# Each entry begins with the server's clock in ms, so that the hosts' clocks need not agree.
HEARTBEAT = """#!lua flags=allow-oom
local time = redis.call('TIME')
local now = string.format('%013d', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[1], ARGV[1], now .. ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return now
"""
