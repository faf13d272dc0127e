-- Jobs of a fleet: records, queues, leases and results, changed together or not at all, on the server's own clock.
--
-- KEYS[1] is the prefix of all keys, in braces. Times are in milliseconds since the epoch. Below the prefix:
--   job:ID              hash, the record; it goes when its result is too old
--   gone:ID             the principal of a job that is over, kept for longer
--   done:ID             the fence of the claim that ended it, kept for as long as its worker may say so again
--   queued:PRIORITY     sorted set of the jobs that wait, by start tag; a member is 16 digits of its coming, and the id
--   tags:PRIORITY       hash: principal -> the start tag of its next job
--   begun:PRIORITY      the start tag of the newest that was begun
--   waiting             sorted set of all that stand in a queue, by the time since when
--   deferred            sorted set of jobs that wait for a time, by when
--   pending             set of the jobs that wait, for a time or in a queue; lines of batches do not count
--   leases              sorted set of the jobs that run, by the time until which their worker need not be heard
--   deadlines           sorted set of the jobs that have one and are not over
--   batch:ID            hash: a batch; file:ID, lines:ID its file and that file's lines by number; results:ID what came of
--                       them: S and an answer, or E and an error. A line that runs is a job, ID/NUMBER, with a record as
--                       any other; a batch that waits stands in a queue once, and its next line is taken each time
--   batches:PRINCIPAL   sorted set of its batches, by the time of their coming
--   open                sorted set of the batches that are not over, by the end of their window; open:of:PRINCIPAL those
--                       of one caller, open:with:FILE those that need one file
--   outbox              sorted set of the jobs that are over and of which a server is to be told, by when
--   seen                when a worker was heard last
local prefix = KEYS[1]
local STEP = 1000000
local AT_ONCE = 100
local SEEN_MS = 500
local DONE_MS = 60000
-- Claims of one job that may end without a word of their worker before they count: its answer came too late to be heard.
local UNHEARD_MAX = 40

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function whole(number)
  return string.format('%.0f', number)
end

local function key(...)
  return prefix .. table.concat({ ... }, ':')
end

local function field(id, name)
  return redis.call('HGET', key('job', id), name)
end

-- Keep where the acceptance of a job or a batch stands in a trace.
local function note_trace(name, traceparent)
  if traceparent and traceparent ~= '' then
    redis.call('HSET', name, 'traceparent', traceparent)
  end
end

local function begun(priority)
  return tonumber(redis.call('GET', key('begun', priority)) or '0')
end

-- The start tag of the next turn of a principal: behind all that it has waiting, and never before what was begun.
local function next_tag(priority, principal)
  return math.max(begun(priority), tonumber(redis.call('HGET', key('tags', priority), principal) or '0'))
end

local function take_turn(priority, principal, weight)
  local tag = next_tag(priority, principal)
  redis.call('HSET', key('tags', priority), principal, whole(tag + STEP / weight))
  return tag
end

local function is_line(id)
  return string.find(id, '/', 1, true)
end

local function await(id)
  if not is_line(id) then
    redis.call('SADD', key('pending'), id)
  end
end

local function unqueue(id)
  local kept = redis.call('HMGET', key('job', id), 'priority', 'member')
  if kept[1] then
    redis.call('ZREM', key('queued', kept[1]), kept[2])
  end
  redis.call('ZREM', key('deferred'), id)
  redis.call('ZREM', key('waiting'), id)
  redis.call('SREM', key('pending'), id)
end

-- Put a job into its queue: first, or where its owner's next turn is.
local function queue(id, is_first)
  local kept = redis.call('HMGET', key('job', id), 'priority', 'member', 'tag', 'principal', 'weight')
  local tag = is_first and math.min(kept[3], begun(kept[1])) or take_turn(kept[1], kept[4], kept[5])
  redis.call('HSET', key('job', id), 'tag', whole(tag))
  redis.call('ZADD', key('queued', kept[1]), whole(tag), kept[2])
  redis.call('ZADD', key('waiting'), whole(now), id)
  await(id)
end

local command = ARGV[1]
local id = ARGV[2]

if not ({ submit = true, batch = true, get = true, depth = true })[command] then
  -- A full store refuses a script's writes, unless it has written before: what ends or goes on makes room.
  redis.call('DEL', key('none'))
end
