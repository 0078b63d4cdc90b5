"""The atomic steps of a job's life, as Lua for Redis ≥ 7 or Valkey.

Each step reads which keys exist and changes them in one go, so that two readers, two workers or a
worker and an eraser can never both win. Scripts that only drain carry ``allow-oom``: running,
finishing and fetching go on when the memory is full.
"""

# KEYS image job queue arq_job
# ARGV id sealed image_ttl job_ttl model arq_payload is_bulk max_jobs max_bytes wake_channel
# The payload is written before the queue entry: a worker that sees the entry finds the payload.
# arq serves the lowest score first and nothing with a score in its future. Interactive jobs are
# scored an hour early and bulk jobs ten minutes, by the server's clock: so every interactive job
# goes first, hosts' clocks need not agree, and an age can still be read from a score.
SUBMIT = """#!lua
local image, job, queue, arq_job = unpack(KEYS)
local id, sealed, image_ttl, job_ttl, model, arq_payload = unpack(ARGV, 1, 6)
local is_bulk, max_jobs, max_bytes, wake = unpack(ARGV, 7, 10)
if redis.call('EXISTS', job) == 1 then return 'exists' end
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000 -- with its fraction: first come, first served
local interactive, bulk = now - 3600000, now - 600000
-- Entries older than an image can live are dead; without a worker nobody else removes them. Between
-- the newest interactive and the oldest dead bulk entry a minute is kept, for a clock set back.
redis.call('ZREMRANGEBYSCORE', queue, '-inf', interactive - image_ttl)
redis.call('ZREMRANGEBYSCORE', queue, interactive + 60000, bulk - image_ttl)
if redis.call('ZCARD', queue) >= tonumber(max_jobs) then return 'full' end
local memory = redis.call('INFO', 'memory')
local used = tonumber(string.match(memory, 'used_memory:(%d+)'))
local server_max = tonumber(string.match(memory, 'maxmemory:(%d+)'))
local limit = tonumber(max_bytes)
if server_max > 0 then limit = math.min(limit, server_max * 0.7) end
if used + #sealed > limit then return 'full' end
redis.call('SET', image, sealed, 'PX', image_ttl)
redis.call('SET', job, model, 'PX', job_ttl)
redis.call('SET', arq_job, arq_payload, 'PX', image_ttl)
redis.call('ZADD', queue, is_bulk == '1' and bulk or interactive, id)
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

# KEYS queue; ARGV room lease_ms in_progress_prefix retry_prefix retry_ttl
# Running jobs stay in the queue, so the head is read until there is nothing left to claim. The
# claim is arq's own: its in-progress key, with a short lease that the worker renews, and its count
# of tries, so that a job which was not handed back is known. -> {{id, score, try}, ...}
CLAIM = """#!lua flags=allow-oom
local claimed, room, page = {}, tonumber(ARGV[1]), 200
for start = 0, 100000, page do
  local entries = redis.call('ZRANGE', KEYS[1], start, start + page - 1, 'WITHSCORES')
  for i = 1, #entries, 2 do
    local id, score = entries[i], entries[i + 1]
    if redis.call('SET', ARGV[3] .. id, '1', 'PX', ARGV[2], 'NX') then
      local try = redis.call('INCR', ARGV[4] .. id)
      redis.call('PEXPIRE', ARGV[4] .. id, ARGV[5])
      claimed[#claimed + 1] = {id, score, try}
      if #claimed == room then return claimed end
    end
  end
  if #entries < 2 * page then break end
end
return claimed
"""

# KEYS crash; ARGV ttl
COUNT = """#!lua flags=allow-oom
redis.call('SET', KEYS[1], 0, 'PX', ARGV[1], 'NX')
return redis.call('INCR', KEYS[1])
"""

# KEYS image job result in_progress arq_job arq_retry; ARGV id sealed result_ttl queue_prefix done
# The image goes in the step that stores the result, and so does the job's place in the queue. No
# image: the job was erased, has expired or was finished by another worker, and this result must not
# bring it back.
FINISH = """#!lua flags=allow-oom
local image, job, result, in_progress, arq_job, arq_retry = unpack(KEYS)
local id, sealed, result_ttl, prefix, done = unpack(ARGV)
local model = redis.call('GET', job)
if model then redis.call('ZREM', prefix .. model, id) end
redis.call('DEL', in_progress, arq_job, arq_retry)
if redis.call('DEL', image) == 0 then return 0 end
redis.call('SET', result, sealed, 'PX', result_ttl, 'NX')
redis.call('PUBLISH', done, id)
return 1
"""

# KEYS image job result lease; ARGV id reader lease_ms grace_ms done_channel
# Without a reader the result is taken and deleted: the first caller wins, the others see it gone.
# With one it is leased: only that reader gets it again until the lease ends, and the first read
# cuts what is left of its life to the grace. -> {state, ttl in ms, result}
FETCH = """#!lua flags=allow-oom
local image, job, result, lease = unpack(KEYS)
local id, reader, lease_ms, grace_ms, done = unpack(ARGV)
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
  redis.call('PUBLISH', done, id)
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
