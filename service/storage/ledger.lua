-- The ledger: drafts, records, and the number of each process's last entry. All of it in one slot.
-- KEYS: drafts (hash by id: "owner\njson"), records (stream)
-- ARGV: operation, and what it takes

local drafts, records = KEYS[1], KEYS[2]
local prefix = string.sub(drafts, 1, -7)
local alive, last, crashed, sinks = prefix .. "alive:", prefix .. "last:", prefix .. "crashed:", prefix .. "sinks"
local about = prefix .. "about"
local forgotten_ms = 86400000
-- By how much a process's clock may be before this one.
local skew_ms = 60000
-- Entries of one node of a stream, by default; what is trimmed goes by whole ones, so that there may be so many more.
local slack = 100
-- Entries that one call forces out, and that it lets go.
local forced_at_once, trimmed_at_once = 1000, 10000

local function write(json)
    return redis.call("XADD", records, "*", "r", json)
end

-- Take back what was written for a process that was taken for dead and is not, or that had kept its word elsewhere.
local function withdraw(id)
    local at = redis.call("GET", crashed .. id)
    if at then
        redis.call("XDEL", records, at)
        redis.call("DEL", crashed .. id)
    end
end

local function now()
    local at = redis.call("TIME")
    return at[1] * 1000 + math.floor(at[2] / 1000)
end

local function ms_of(id)
    return tonumber(string.match(id, "^%d+"))
end

local function is_later(id, other)
    local ms, other_ms = ms_of(id), ms_of(other)
    return ms > other_ms or ms == other_ms and tonumber(string.match(id, "%d+$")) > tonumber(string.match(other, "%d+$"))
end

-- Up to where the slowest sink has all, of those heard of within a day; false without any.
local function taken_by_all(now_ms)
    local taken = false
    for _, sink in ipairs(redis.call("HKEYS", sinks)) do
        local at = redis.call("HGET", sinks, sink .. ":at")
        if at and now_ms - tonumber(at) < forgotten_ms then
            local position = redis.call("HGET", sinks, sink)
            if not taken or is_later(taken, position) then
                taken = position
            end
        end
    end
    return taken
end

-- Keep from when on all that was written is there.
local function begins(ms)
    if ms > tonumber(redis.call("HGET", about, "since") or "0") then
        redis.call("HSET", about, "since", string.format("%.0f", ms))
    end
end

-- Let go of the oldest, so many at most, whoever has still to take them; say how many those are.
local function force_out(over, taken)
    local oldest = redis.call("XRANGE", records, "-", "+", "COUNT", math.min(over, forced_at_once) + 1)
    local lost = 0
    for place = 1, #oldest - 1 do
        if not taken or is_later(oldest[place][1], taken) then
            lost = lost + 1
        end
    end
    redis.call("XTRIM", records, "MINID", "=", oldest[#oldest][1])
    if lost > 0 then
        redis.call("HINCRBY", about, "forced_out", lost)
        redis.call("HSET", about, "forced", oldest[#oldest - 1][1])
    end
    return lost
end

-- Gives how many were forced out that a sink has still to take, or that were too young to go where there is none.
local function forget_old(kept_ms, most)
    local now_ms = now()
    local taken = taken_by_all(now_ms)
    local unwanted = math.min(now_ms - kept_ms, taken and ms_of(taken) or now_ms)
    local gone = redis.call("XTRIM", records, "MINID", "~", string.format("%.0f", unwanted))
    local lost = 0
    local over = redis.call("XLEN", records) - most
    if over > 0 then
        local let_go = taken and redis.call("XTRIM", records, "MINID", "~", taken, "LIMIT", math.min(over, trimmed_at_once)) or 0
        if let_go == 0 and over > slack then
            lost = force_out(over, taken)
            gone = gone + 1
        end
        gone = gone + let_go
    end
    if gone > 0 then
        local first = redis.call("XRANGE", records, "-", "+", "COUNT", 1)[1]
        begins((first and ms_of(first[1]) or now_ms) + skew_ms)
    end
    return lost
end

-- owner, number of the first entry, lease_ms, kept_ms, most, then kind, id, json for each entry, whose numbers follow
-- each other; gives 0 if the owner's drafts are lost, and how many records were forced out
local function apply()
    local owner, number, lease_ms, kept_ms, most = ARGV[2], tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5]), ARGV[6]
    -- A script that fails takes nothing back: where a key is not what it should be, that is found before anything is written.
    redis.call("HLEN", drafts)
    redis.call("XLEN", records)
    local known = tonumber(redis.call("GET", last .. owner) or "0")
    local newest = number + (#ARGV - 6) / 3 - 1
    if newest <= known then
        return { 1, 0 }
    end
    -- A store that is back from an older state knows an older number: what came in between is gone, drafts too.
    local is_lost = number > known + 1
    -- What is sent on after an outage may hold, at its beginning, what came through before it.
    for place = 7 + 3 * math.max(0, known + 1 - number), #ARGV, 3 do
        local kind, id, json = ARGV[place], ARGV[place + 1], ARGV[place + 2]
        if kind == "open" then
            redis.call("HSET", drafts, id, owner .. "\n" .. json)
        elseif kind == "amend" then
            if redis.call("HSET", drafts, id, owner .. "\n" .. json) == 1 then
                withdraw(id)
            end
        else
            -- Where its draft is gone, with a store's data or to who took its owner for dead, its word is the true one.
            if kind == "close" and redis.call("HDEL", drafts, id) == 0 then
                withdraw(id)
            end
            write(json)
        end
    end
    if is_lost then
        begins(now())
    end
    local lost = forget_old(kept_ms, most)
    redis.call("SET", last .. owner, string.format("%.0f", newest), "PX", ARGV[5])
    redis.call("SET", alive .. owner, "1", "PX", lease_ms)
    return { is_lost and 0 or 1, lost }
end

-- owner, lease_ms, kept_ms
local function beat()
    redis.call("SET", alive .. ARGV[2], "1", "PX", ARGV[3])
    redis.call("PEXPIRE", last .. ARGV[2], ARGV[4])
    return 1
end

-- cursor, count; gives the next cursor, and of the drafts seen those whose owner is silent
local function silent()
    local page = redis.call("HSCAN", drafts, ARGV[2], "COUNT", ARGV[3])
    local found = {}
    local is_silent = {}
    for place = 1, #page[2], 2 do
        local owner = string.match(page[2][place + 1], "^[^\n]*")
        if is_silent[owner] == nil then
            is_silent[owner] = redis.call("EXISTS", alive .. owner) == 0
        end
        if is_silent[owner] then
            found[#found + 1] = page[2][place + 1]
        end
    end
    return { page[1], found }
end

-- id, json, kept_ms, most; gives 0 if there is no such draft, and how many records were forced out
local function adopt()
    if redis.call("HDEL", drafts, ARGV[2]) == 0 then
        return { 0, 0 }
    end
    redis.call("SET", crashed .. ARGV[2], write(ARGV[3]), "PX", ARGV[4])
    return { 1, forget_old(tonumber(ARGV[4]), ARGV[5]) }
end

local operations = { apply = apply, beat = beat, silent = silent, adopt = adopt }
return operations[ARGV[1]]()
