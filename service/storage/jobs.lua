-- Jobs: the part of the script (behind queue.lua and batches.lua) for records, leases and results.
--
--   submit ID QUEUE_MAX PRINCIPAL ROUTE BODY PRIORITY WEIGHT DEADLINE_MS|0 FINGERPRINT WEBHOOK TRACEPARENT
--                                                   -> { 1, record }, { 0 }: the queue is full, { 2 }: another has this id
--   get ID                                          -> { 1, record }, { 0, principal } where it is gone, or { -1 }
--   watch ID WATCH_MS                               -> as get; whoever works on it is told that somebody looks
--   cancel ID RESULT_MS GONE_MS                     -> as get
--   claim COUNT LEASE_MS AWAY_MS ATTEMPTS RESULT_MS GONE_MS LOST EXPIRED NONCE      -> records, with their bodies
--   beat LEASE_MS AWAY_MS RESULT_MS GONE_MS EXPIRED (ID FENCE TEXT)...
--                                                   -> { ids that are not theirs any more, ids at which somebody looks }
--   finish ID FENCE RESULT_MS GONE_MS STATUS (FIELD VALUE)...       -> 1, said again too; 0 where it is not theirs any more
--   release ID FENCE WAIT_MS SETBACKS               -> 1, or 0; it goes back, and this was no attempt: first, or with a
--                                                   wait behind what waits by then
--   hooks COUNT HOLD_MS                             -> { id, attempt, record }..., which are nobody else's for so long
--   hooked ID STATUS WAIT_MS                        -> 1; while the status is pending, it is due again after that
--   depth                                           -> { interactive, batch, running, deferred, ms of the longest wait }
-- A record is { now, position or -1, field, value, ... }. LOST and EXPIRED are errors, as JSON. A fence tells one claim from
-- any other, also from those of a store that has forgotten some: it is the number of the attempt, and the claim's nonce.
local function finish(id, status, result_ms, gone_ms)
  if is_line(id) then
    finish_line(id, status, result_ms)
    return
  end
  local job = key('job', id)
  unqueue(id)
  redis.call('ZREM', key('leases'), id)
  redis.call('ZREM', key('deadlines'), id)
  redis.call('HSET', job, 'status', status, 'finished', whole(now), 'expires', whole(now + result_ms))
  redis.call('HDEL', job, 'body', 'progress', 'watched')
  if redis.call('HEXISTS', job, 'webhook') == 1 then
    redis.call('ZADD', key('outbox'), whole(now), id)
  end
  redis.call('PEXPIRE', job, result_ms)
  redis.call('SET', key('gone', id), redis.call('HGET', job, 'principal'), 'PX', result_ms + gone_ms)
end

local function is_theirs(id, fence)
  local kept = redis.call('HMGET', key('job', id), 'status', 'fence', 'batch')
  return kept[1] == 'in_progress' and kept[2] == fence and (not kept[3] or is_open(kept[3]))
end

local function position(id)
  local kept = redis.call('HMGET', key('job', id), 'status', 'priority', 'member')
  if kept[1] ~= 'queued' then
    return -1
  end
  local rank = redis.call('ZRANK', key('queued', kept[2]), kept[3])
  if not rank then -- it waits for a time; as if that was over
    local tag = next_tag(kept[2], field(id, 'principal'))
    rank = redis.call('ZCOUNT', key('queued', kept[2]), '-inf', whole(tag))
  end
  if kept[2] == 'batch' then
    rank = rank + redis.call('ZCARD', key('queued', 'interactive'))
  end
  return rank
end

local function record(id, has_body)
  local names, told = {}, { whole(now), position(id) }
  for _, name in ipairs(redis.call('HKEYS', key('job', id))) do
    if has_body or name ~= 'body' then
      table.insert(names, name)
    end
  end
  for at, value in ipairs(redis.call('HMGET', key('job', id), unpack(names))) do
    table.insert(told, names[at])
    table.insert(told, value)
  end
  return told
end

local function found(id)
  if redis.call('EXISTS', key('job', id)) == 1 then
    return { 1, record(id) }
  end
  local principal = redis.call('GET', key('gone', id))
  if principal then
    return { 0, principal }
  end
  return { -1 }
end

-- Note that a worker was heard. If none could be for long, that was the store's fault, and says nothing of any of them;
-- nor does a time to come, from before the store's clock was put back.
local function hear(lease_ms, away_ms)
  local seen = tonumber(redis.call('GET', key('seen')) or '0')
  if now - seen > away_ms or seen > now then
    for _, job in ipairs(redis.call('ZRANGE', key('leases'), 0, -1)) do
      redis.call('ZADD', key('leases'), whole(now + lease_ms), job)
    end
  end
  if now - seen > SEEN_MS or seen > now then
    redis.call('SET', key('seen'), whole(now))
  end
end

-- End what has no more time.
local function sweep(result_ms, gone_ms, expired)
  for _, job in ipairs(redis.call('ZRANGEBYSCORE', key('deadlines'), '-inf', whole(now), 'LIMIT', 0, AT_ONCE)) do
    if redis.call('EXISTS', key('job', job)) == 1 then
      redis.call('HSET', key('job', job), 'error', expired)
      finish(job, 'expired', result_ms, gone_ms)
    else
      forget(job, result_ms)
    end
  end
  for _, batch in ipairs(redis.call('ZRANGEBYSCORE', key('open'), '-inf', whole(now), 'LIMIT', 0, AT_ONCE)) do
    if is_open(batch) then
      close_batch(batch, 'expired', result_ms)
    else
      redis.call('ZREM', key('open'), batch)
    end
  end
end

-- How often its worker died on a job. One that was never heard of it has hardly begun it: the answer to its claim was lost.
local function deaths(id)
  local kept = redis.call('HMGET', key('job', id), 'attempts', 'released', 'heard', 'unheard', 'fence')
  if kept[3] ~= kept[5] and tonumber(kept[4] or '0') < UNHEARD_MAX then
    redis.call('HINCRBY', key('job', id), 'unheard', 1)
    kept[2] = redis.call('HINCRBY', key('job', id), 'released', 1)
  end
  return kept[1] - (kept[2] or 0)
end

if command == 'get' then
  return found(id)
end

if command == 'watch' then
  if redis.call('EXISTS', key('job', id)) == 1 then
    redis.call('HSET', key('job', id), 'watched', whole(now + ARGV[3]))
  end
  return found(id)
end

if command == 'submit' then
  local principal, priority = ARGV[4], ARGV[7]
  local known = field(id, 'fingerprint')
  if known then -- the answer to the first time did not arrive, or it is asked for again
    return known == ARGV[10] and { 1, record(id) } or { 2 }
  end
  if redis.call('SCARD', key('pending')) >= tonumber(ARGV[3]) then
    return { 0 }
  end
  local member = string.format('%016.0f', redis.call('INCR', key('count'))) .. id
  redis.call('HSET', key('job', id), 'status', 'queued', 'principal', principal, 'route', ARGV[5], 'body', ARGV[6],
    'priority', priority, 'created', whole(now), 'attempts', '0', 'member', member, 'weight', ARGV[8],
    'fingerprint', ARGV[10])
  redis.call('DEL', key('gone', id))
  if ARGV[11] ~= '' then
    redis.call('HSET', key('job', id), 'webhook', ARGV[11], 'webhook_status', 'pending')
  end
  note_trace(key('job', id), ARGV[12])
  if ARGV[9] ~= '0' then
    redis.call('HSET', key('job', id), 'deadline', whole(now + ARGV[9]))
    redis.call('ZADD', key('deadlines'), whole(now + ARGV[9]), id)
  end
  queue(id)
  return { 1, record(id) }
end

if command == 'cancel' then
  local status = field(id, 'status')
  if status == 'queued' or status == 'in_progress' then
    finish(id, 'cancelled', tonumber(ARGV[3]), tonumber(ARGV[4]))
  end
  return found(id)
end

if command == 'finish' then
  if not is_theirs(id, ARGV[3]) then
    return redis.call('GET', key('done', id)) == ARGV[3] and 1 or 0
  end
  redis.call('SET', key('done', id), ARGV[3], 'PX', DONE_MS)
  if #ARGV > 6 then
    redis.call('HSET', key('job', id), unpack(ARGV, 7))
  end
  finish(id, ARGV[6], tonumber(ARGV[4]), tonumber(ARGV[5]))
  return 1
end

if command == 'release' then
  if not is_theirs(id, ARGV[3]) then
    return 0
  end
  redis.call('HINCRBY', key('job', id), 'released', 1)
  redis.call('HINCRBY', key('job', id), 'setbacks', ARGV[5])
  redis.call('HSET', key('job', id), 'status', 'queued')
  redis.call('ZREM', key('leases'), id)
  if tonumber(ARGV[4]) > 0 then
    redis.call('HINCRBY', key('job', id), 'waits', 1 - ARGV[5])
    redis.call('ZADD', key('deferred'), whole(now + ARGV[4]), id)
    await(id)
  else
    queue(id, true)
  end
  return 1
end

if command == 'beat' then
  hear(tonumber(ARGV[2]), tonumber(ARGV[3]))
  local stopped, watched = {}, {}
  sweep(tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6])
  for at = 7, #ARGV, 3 do
    local job = ARGV[at]
    if is_theirs(job, ARGV[at + 1]) then
      redis.call('ZADD', key('leases'), whole(now + ARGV[2]), job)
      redis.call('HSET', key('job', job), 'heard', ARGV[at + 1])
      if ARGV[at + 2] ~= '' then
        redis.call('HSET', key('job', job), 'progress', ARGV[at + 2])
      end
      if tonumber(field(job, 'watched') or '0') > now then
        table.insert(watched, job)
      end
    else
      table.insert(stopped, job)
    end
  end
  return { stopped, watched }
end

if command == 'hooks' then
  local due = {}
  for _, job in ipairs(redis.call('ZRANGEBYSCORE', key('outbox'), '-inf', whole(now), 'LIMIT', 0, ARGV[2])) do
    if redis.call('EXISTS', key('job', job)) == 1 then
      redis.call('ZADD', key('outbox'), whole(now + ARGV[3]), job)
      local attempt = redis.call('HINCRBY', key('job', job), 'webhook_attempts', 1)
      table.insert(due, { job, attempt, record(job) })
    else -- its result is not kept any more, so there is nothing to tell
      redis.call('ZREM', key('outbox'), job)
    end
  end
  return due
end

if command == 'hooked' then
  if redis.call('EXISTS', key('job', id)) == 1 then
    redis.call('HSET', key('job', id), 'webhook_status', ARGV[3])
  end
  if ARGV[3] == 'pending' then
    redis.call('ZADD', key('outbox'), whole(now + ARGV[4]), id)
  else
    redis.call('ZREM', key('outbox'), id)
  end
  return 1
end

if command == 'depth' then
  local oldest = redis.call('ZRANGE', key('waiting'), 0, 0, 'WITHSCORES')
  return { redis.call('ZCARD', key('queued', 'interactive')), redis.call('ZCARD', key('queued', 'batch')),
    redis.call('ZCARD', key('leases')), redis.call('ZCARD', key('deferred')),
    oldest[2] and whole(math.max(0, now - oldest[2])) or '0' }
end

-- claim
local count, lease_ms, away_ms, attempts_max = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local result_ms, gone_ms, lost, expired, nonce = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8], ARGV[9], ARGV[10]

hear(lease_ms, away_ms)

sweep(result_ms, gone_ms, expired)

for _, job in ipairs(redis.call('ZRANGEBYSCORE', key('leases'), '-inf', whole(now), 'LIMIT', 0, AT_ONCE)) do
  local kept = redis.call('HMGET', key('job', job), 'attempts', 'batch')
  redis.call('ZREM', key('leases'), job)
  if not kept[1] then
    forget(job, result_ms)
  elseif kept[2] and not is_open(kept[2]) then
    forget_line(job)
  elseif deaths(job) >= attempts_max then
    redis.call('HSET', key('job', job), 'error', lost)
    finish(job, 'failed', result_ms, gone_ms)
  else
    redis.call('HSET', key('job', job), 'status', 'queued')
    queue(job, true)
  end
end

for _, job in ipairs(redis.call('ZRANGEBYSCORE', key('deferred'), '-inf', whole(now), 'LIMIT', 0, AT_ONCE)) do
  redis.call('ZREM', key('deferred'), job)
  if redis.call('EXISTS', key('job', job)) == 1 then
    queue(job)
  else
    forget(job, result_ms)
  end
end

local taken = {}
for _, priority in ipairs({ 'interactive', 'batch' }) do
  local looks = 0
  while #taken < count and looks < count + AT_ONCE do
    looks = looks + 1
    local first = redis.call('ZPOPMIN', key('queued', priority))
    if not first[1] then
      -- Nobody waits, so nobody is ahead of anybody.
      redis.call('DEL', key('tags', priority), key('begun', priority))
      break
    end
    local job = string.sub(first[1], 17)
    redis.call('ZREM', key('waiting'), job)
    redis.call('SREM', key('pending'), job)
    if string.sub(job, 1, 6) == 'batch_' then
      if not is_line(job) then
        job = take_line(job, first[2], first[1], result_ms)
      elseif not is_open(string.match(job, '^(.*)/')) then -- given back before its batch was ended
        forget_line(job)
        job = nil
      end
    end
    if job and redis.call('EXISTS', key('job', job)) == 0 then
      forget(job, result_ms)
    elseif job then
      redis.call('SET', key('begun', priority), whole(math.max(first[2], begun(priority))))
      local fence = redis.call('HINCRBY', key('job', job), 'attempts', 1) .. '-' .. nonce
      redis.call('HSET', key('job', job), 'status', 'in_progress', 'fence', fence)
      redis.call('HSETNX', key('job', job), 'started', whole(now))
      redis.call('ZADD', key('leases'), whole(now + lease_ms), job)
      table.insert(taken, { job, record(job, true) })
    end
  end
end
return taken
