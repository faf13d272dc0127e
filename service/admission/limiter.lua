-- Limits of a fleet: buckets, places and budgets, changed together or not at all, on the server's own clock.
--
-- Each quota is one key and five arguments: its kind (b bucket, c places, m money), its capacity, what comes back in a
-- minute, an amount, and what must be there for it. Buckets count in 60,000ths, so that a rate of n a minute adds exactly
-- n in each millisecond. Bookings count in microseconds.
-- All numbers are whole and below 2^53, up to which doubles are exact; written as %.0f, since Lua's own form is not.
--
--   reserve ID LEASE_MS KEPT_MS quota...     KEYS: record, quota...   the amount is taken, if what it needs is there
--     -> { 1 taken, 0 refused, -1 given up before; now in ms; left and wait in ms for each quota }
--   settle ID TOMBSTONE_MS - quota...        KEYS: record, quota...   the amount is given back, where negative taken
--     -> 1 where it was open; 0 where not. With a TOMBSTONE_MS a reservation that comes later takes nothing.
--   renew LEASE_MS (COUNT ID...)...          KEYS: places...          these still run
--     -> 1
--   promise WORK AT_LEAST MAX KEPT           KEYS: pace, booked       room is booked behind all other bookings
--     -> the time until there is room; MAX where that is longer, and then nothing is booked
--   redeem KEPT                              KEYS: booked             the first booking is used up, if its time has come
--     -> 1 where there was one; 0 where not. What nobody came for until KEPT later is forgotten.
local MINUTE = 60000
local DAY = 86400000
local MARGIN = 1000
local GIVEN_UP = 'given up'

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local now_us = time[1] * 1000000 + time[2]
local today = math.floor(now / DAY)

local function whole(number)
  return string.format('%.0f', number)
end

local function quota_of(number)
  local at = 5 * number - 5
  return KEYS[number], ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]),
    tonumber(ARGV[at + 4])
end

local function bucket_level(key, capacity, rate)
  local kept = redis.call('HMGET', key, 'level', 'at')
  if not kept[1] then
    return capacity * MINUTE
  end
  -- A clock that went back, after a failover, fills nothing by that.
  local gone = math.max(0, now - tonumber(kept[2]))
  return math.min(capacity * MINUTE, tonumber(kept[1]) + gone * rate)
end

local function keep_bucket(key, capacity, rate, level)
  redis.call('HSET', key, 'level', whole(level), 'at', whole(now))
  -- A full bucket is the same as none.
  redis.call('PEXPIRE', key, whole(math.ceil((capacity * MINUTE - level) / rate) + MARGIN))
end

local function spent_on(key, day)
  local kept = redis.call('HMGET', key, 'day', 'spent')
  if kept[1] and tonumber(kept[1]) == day then
    return tonumber(kept[2])
  end
  return 0
end

local function keep_spent(key, spent)
  redis.call('HSET', key, 'day', whole(today), 'spent', whole(spent))
  redis.call('PEXPIRE', key, 2 * DAY)
end

local function hold_place(key, id, lease)
  redis.call('ZADD', key, whole(now + lease), id)
  redis.call('PEXPIRE', key, lease + MARGIN)
end

local function reserve()
  local id, lease, kept = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
  if redis.call('EXISTS', KEYS[1]) == 1 then
    return { -1, now }
  end
  local passes = 1
  local left, reply = {}, { 1, now }
  for number = 2, #KEYS do
    local key, kind, capacity, rate, _, needed = quota_of(number)
    local level, wait = 0, 0
    if kind == 'b' then
      level = bucket_level(key, capacity, rate)
      wait = math.max(0, math.ceil((needed * MINUTE - level) / rate))
    elseif kind == 'c' then
      redis.call('ZREMRANGEBYSCORE', key, '-inf', whole(now))
      level = capacity - redis.call('ZCARD', key)
      wait = level < needed and MARGIN or 0
    else
      level = capacity - spent_on(key, today)
      -- What costs nothing passes, also where settling has spent more than there was.
      wait = needed > 0 and level < needed and DAY - now % DAY or 0
    end
    if wait > 0 then
      passes = 0
    end
    left[number] = level
    reply[2 * number - 1] = level
    reply[2 * number] = wait
  end
  reply[1] = passes
  if passes == 0 then
    return reply
  end
  -- An open reservation's record is the day on which its money is booked.
  redis.call('SET', KEYS[1], whole(today), 'PX', kept)
  for number = 2, #KEYS do
    local key, kind, capacity, rate, amount = quota_of(number)
    local level = left[number]
    if kind == 'b' then
      level = level - amount * MINUTE
      keep_bucket(key, capacity, rate, level)
    elseif kind == 'c' then
      level = level - 1
      hold_place(key, id, lease)
    else
      level = level - amount
      keep_spent(key, capacity - level)
    end
    reply[2 * number - 1] = level
  end
  return reply
end

local function settle()
  local id, tombstone = ARGV[2], tonumber(ARGV[3])
  local record = redis.call('GET', KEYS[1])
  local open = record and record ~= GIVEN_UP
  if open then
    -- First: a store that is full takes what follows a deletion.
    redis.call('DEL', KEYS[1])
  elseif not record and tombstone > 0 then
    redis.call('SET', KEYS[1], GIVEN_UP, 'PX', tombstone)
  end
  for number = 2, #KEYS do
    local key, kind, capacity, rate, amount = quota_of(number)
    if kind == 'c' then
      -- In any case: renewing makes places anew where the store lost everything.
      redis.call('ZREM', key, id)
    elseif open and amount ~= 0 then
      if kind == 'b' then
        local level = bucket_level(key, capacity, rate)
        keep_bucket(key, capacity, rate, math.min(capacity * MINUTE, level + amount * MINUTE))
      elseif tonumber(record) == today then
        -- Yesterday's money is not missing today.
        keep_spent(key, math.max(0, spent_on(key, today) - amount))
      end
    end
  end
  return open and 1 or 0
end

local function renew()
  local lease, at = tonumber(ARGV[2]), 3
  for number = 1, #KEYS do
    local last = at + tonumber(ARGV[at])
    -- Deleting first: a store that is full takes what follows it, and who runs keeps its place.
    redis.call('ZREMRANGEBYSCORE', KEYS[number], '-inf', whole(now))
    for member = at + 1, last do
      hold_place(KEYS[number], ARGV[member], lease)
    end
    at = last + 1
  end
  return 1
end

local function promise()
  local work, at_least, most, kept = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
  local last = tonumber(redis.call('GET', KEYS[1]) or 0)
  local room = math.max(now_us + at_least, last)
  if room - now_us > most then
    return most
  end
  local over = room + work
  -- A pace whose bookings are over is the same as none.
  redis.call('SET', KEYS[1], whole(over), 'PX', whole(math.ceil((over - now_us) / 1000) + MARGIN))
  redis.call('RPUSH', KEYS[2], whole(room))
  redis.call('PEXPIRE', KEYS[2], whole(math.ceil((room - now_us + kept) / 1000) + MARGIN))
  return room - now_us
end

local function redeem()
  local kept = tonumber(ARGV[2])
  while true do
    local room = redis.call('LINDEX', KEYS[1], 0)
    if not room or tonumber(room) > now_us then
      return 0
    end
    redis.call('LPOP', KEYS[1])
    if now_us - tonumber(room) <= kept then
      return 1
    end
  end
end

local actions = { reserve = reserve, settle = settle, renew = renew, promise = promise, redeem = redeem }
return actions[ARGV[1]]()
