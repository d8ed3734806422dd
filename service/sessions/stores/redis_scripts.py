"""What the server does, in Lua: each operation is one script, which Redis runs alone and as a whole.

Keys of a model, all with one hash tag so that they lie in one slot:

    cellstate:{model}:meta           hash     format, secret
    cellstate:{model}:owner:<token>  string   address; expires with the lease
    cellstate:{model}:fenced:<token> string   a former owner that was taken over; kept for a day
    cellstate:{model}:s:<id>         hash     a session: owner (a token or empty), epoch, next, times ...
    cellstate:{model}:j:<id>         list     its records, in order, each behind RECORD_HEADER
    cellstate:{model}:n:<id>         hash     its snapshots by step
    cellstate:{model}:e:<id>         string   how it ended, and its last epoch; kept for a day

A script checks all before it writes anything: Redis does not undo. Steps and epochs are compared as text,
because Lua's numbers lose digits when they are printed. Times are the server's, in ms.

KEYS[1] is the model's meta key; the others are made from it. ARGV[1] is the caller's token.
"""

from __future__ import annotations

import struct

from service.sessions.stores.redis_wire import Script

FORMAT = 1
RECORD_HEADER = struct.Struct("<qI")  # first step, steps
PAGE_BYTES = 1 << 20  # of records in one reply: the server serves nobody else while it copies them

_COMMON = """
local call = redis.call
local prefix = string.sub(KEYS[1], 1, -5)
local me = ARGV[1]
local DAY = 86400

local function clock()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function key(kind, name) return prefix .. kind .. ':' .. name end

local function fenced() return call('EXISTS', key('fenced', me)) == 1 end

local function alive(token) return token ~= '' and call('EXISTS', key('owner', token)) == 1 end

local function fence(token)
  if token ~= '' then
    call('SET', key('fenced', token), '1', 'EX', DAY)
    call('DEL', key('owner', token))
  end
end

-- How a session that nobody alive owns has ended already, though nobody noticed yet; nil if it lives
local function fate(owner, durability, idle, ttl)
  if owner ~= '' and durability == 'none' then return 'lost' end
  if idle > ttl * 1000 then return 'expired' end
end

local function finish(id, how, epoch)
  call('UNLINK', key('s', id), key('j', id), key('n', id))
  call('SET', key('e', id), how .. ' ' .. epoch, 'EX', DAY)
end

-- Is it mine, with that epoch
local function mine(id, epoch)
  local v = call('HMGET', key('s', id), 'owner', 'epoch')
  return v[1] == me and v[2] == epoch
end

local function span(record)
  local at, count = struct.unpack('<i8I4', record)
  return at, at + count
end

-- Index of the first record whose first step (or, with `ends`, the step behind its last) is `step` or more
local function seek(j, step, ends)
  local low, high = 0, call('LLEN', j)
  while low < high do
    local middle = math.floor((low + high) / 2)
    local first, last = span(call('LINDEX', j, middle))
    if (ends and last or first) >= step then high = middle else low = middle + 1 end
  end
  return low
end

-- Records low to high - 1, as many as fit in a page, but one at least
local function page(j, low, high, limit)
  local found, bytes = {}, 0
  while low < high and bytes < limit do
    local chunk = call('LRANGE', j, low, math.min(low + 16, high) - 1)
    for _, record in ipairs(chunk) do
      found[#found + 1] = record
      bytes = bytes + #record
    end
    low = low + 16
  end
  return found
end

-- The newest snapshot at or before `step` (any, without it), and the oldest of all; as text
local function snapshots(n, step)
  local newest, oldest
  for _, at in ipairs(call('HKEYS', n)) do
    local number = tonumber(at)
    if (not step or number <= step) and (not newest or number > tonumber(newest)) then newest = at end
    if not oldest or number < tonumber(oldest) then oldest = at end
  end
  return newest, oldest
end
"""

# Full servers still take these: they free memory, or hold leases
_ALWAYS = "#!lua flags=allow-oom\n"
_WRITES = "#!lua\n"
_READS = "#!lua flags=no-writes\n"

# address, lease ms, format, secret if there is none, former token -> OK, secret
JOIN = Script(
    _ALWAYS
    + _COMMON
    + """
local format = call('HGET', KEYS[1], 'format')
if format and format ~= ARGV[4] then return {'FORMAT', format} end
if not format then call('HSET', KEYS[1], 'format', ARGV[4], 'secret', ARGV[5]) end
fence(ARGV[6])
call('SET', key('owner', me), ARGV[2], 'PX', ARGV[3])
return {'OK', call('HGET', KEYS[1], 'secret')}
"""
)

# address, lease ms, secret. Another secret: the server lost its data
RENEW = Script(
    _ALWAYS
    + _COMMON
    + """
if fenced() or call('HGET', KEYS[1], 'secret') ~= ARGV[4] then return {'FENCED'} end
call('SET', key('owner', me), ARGV[2], 'PX', ARGV[3])
return {'OK'}
"""
)

LEAVE = Script(
    _ALWAYS
    + _COMMON
    + """
call('DEL', key('owner', me))
return {'OK'}
"""
)

# id, window, page bytes, then of an opening: ttl s, durability, version, digest, opened, next, snapshot or ''
CLAIM = Script(
    _WRITES
    + _COMMON
    + """
if fenced() then return {'FENCED'} end
local id, window, limit = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local s, j, n = key('s', id), key('j', id), key('n', id)
local now = clock()
local v = call('HMGET', s, 'owner', 'epoch', 'next', 'durability', 'used', 'claimed')
local owner, epoch, how = v[1], v[2], nil
if epoch and owner ~= me then
  local lease = owner == '' and -2 or call('PTTL', key('owner', owner))
  if lease >= 0 then
    return {'ELSEWHERE', call('GET', key('owner', owner)), now - v[6], lease}
  end
  how = fate(owner, v[4], now - v[5], call('HGET', s, 'ttl'))
end
if epoch and not how then
  local next = tonumber(v[3])
  local newest = snapshots(n)
  local from = math.min(newest and tonumber(newest) or 0, next - window)
  local low, high = seek(j, from + 1, true), call('LLEN', j)
  local records = page(j, low, high, limit)
  local data = newest and call('HGET', n, newest) or ''
  local about = call('HMGET', s, 'ttl', 'version', 'digest', 'opened')
  if owner ~= me then fence(owner) end
  epoch = string.format('%.0f', epoch + 1)
  call('HSET', s, 'owner', me, 'epoch', epoch, 'claimed', now, 'used', now)
  return {'MINE', epoch, v[3], v[4], now - v[5], about[1], about[2], about[3], about[4],
          newest or '', data, low, high, records, (owner ~= me and owner ~= '') and 1 or 0}
end
local ended = call('GET', key('e', id))
if how then
  fence(owner)
  finish(id, how, epoch)
  ended = how .. ' ' .. epoch
end
if not ARGV[5] then return {'ABSENT', ended and string.match(ended, '%a+') or ''} end
-- Epochs go on from an earlier session of that name: a commit to it that comes late must not fit this one
epoch = string.format('%.0f', (ended and string.match(ended, '%d+') or 0) + 1)
call('UNLINK', key('e', id), j, n)
-- What a commit reads and writes comes first: a small hash is searched from its front
call('HSET', s, 'owner', me, 'epoch', epoch, 'next', ARGV[10], 'used', now, 'claimed', now,
     'durability', ARGV[6], 'ttl', ARGV[5], 'version', ARGV[7], 'digest', ARGV[8], 'opened', ARGV[9],
     'zeros', ARGV[11] and '0' or '1')
if ARGV[11] then call('HSET', n, ARGV[10], ARGV[11]) end
return {'OPENED', epoch}
"""
)

# id, epoch, index, end, page bytes
PAGE = Script(
    _READS
    + _COMMON
    + """
if fenced() then return {'FENCED'} end
if not mine(ARGV[2], ARGV[3]) then return {'STALE', ARGV[2]} end
return {'OK', page(key('j', ARGV[2]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]))}
"""
)

_HERE = """
local last = #ARGV
local sessions, journals = prefix .. 's:', prefix .. 'j:'
"""
_CHECKED = """
if fenced() then return {'FENCED'} end
local stale, ahead = {'STALE'}, {}
for i = 2, last, 5 do
  local id = ARGV[i]
  local v = call('HMGET', sessions .. id, 'owner', 'epoch', 'next')
  if (ahead[id] or v[3]) ~= ARGV[i + 2] or v[1] ~= me or v[2] ~= ARGV[i + 1] then stale[#stale + 1] = id end
  ahead[id] = ARGV[i + 3]
end
if #stale > 1 then return stale end
"""
_APPENDED = """
for i = 2, last, 5 do
  local pushed = redis.pcall('RPUSH', journals .. ARGV[i], ARGV[i + 4])
  if type(pushed) == 'table' then  -- not a list: take back those before
    for k = 2, i - 5, 5 do call('RPOP', journals .. ARGV[k]) end
    return pushed
  end
end
local now = clock()
for i = 2, last, 5 do call('HSET', sessions .. ARGV[i], 'next', ARGV[i + 3], 'used', now) end
return {'OK'}
"""

# For each entry: id, epoch, step, next step, record with its header
COMMIT = Script(_WRITES + _COMMON + _HERE + _CHECKED + _APPENDED)
# Never used but to see that a test without the fence finds the damage
COMMIT_UNFENCED = Script(_WRITES + _COMMON + _HERE + _APPENDED)

# For each: id, epoch, step, snapshot, first step wanted
SAVE = Script(
    _WRITES
    + _COMMON
    + """
if fenced() then return {'FENCED'} end
local stale = {'STALE'}
for i = 2, #ARGV, 5 do
  local v = call('HMGET', key('s', ARGV[i]), 'owner', 'epoch', 'next', 'durability')
  local ahead = v[3] and v[4] ~= 'none' and tonumber(ARGV[i + 2]) > tonumber(v[3])
  if v[1] ~= me or v[2] ~= ARGV[i + 1] or ahead then stale[#stale + 1] = ARGV[i] end
end
if #stale > 1 then return stale end
for i = 2, #ARGV, 5 do
  local s, j, n = key('s', ARGV[i]), key('j', ARGV[i]), key('n', ARGV[i])
  call('HSET', n, ARGV[i + 2], ARGV[i + 3])
  if tonumber(ARGV[i + 2]) > tonumber(call('HGET', s, 'next')) then call('HSET', s, 'next', ARGV[i + 2]) end
  local base = snapshots(n, tonumber(ARGV[i + 4]))
  if base then
    for _, at in ipairs(call('HKEYS', n)) do
      if tonumber(at) < tonumber(base) then call('HDEL', n, at) end
    end
    local drop = seek(j, tonumber(base) + 1, true)
    if drop > 0 then call('LTRIM', j, drop, -1) end
  end
end
return {'OK'}
"""
)

# For each: id, epoch, next step, snapshot's step or '', snapshot
RELEASE = Script(
    _WRITES
    + _COMMON
    + """
if fenced() then return {'FENCED'} end
local stale, owned = {'STALE'}, {}
for i = 2, #ARGV, 5 do
  if mine(ARGV[i], ARGV[i + 1]) then
    owned[#owned + 1] = i
    local v = call('HMGET', key('s', ARGV[i]), 'next', 'durability')
    local carried = v[2] == 'none' and ARGV[i + 3] == ARGV[i + 2]  -- its steps were in memory alone
    if v[1] ~= ARGV[i + 2] and not carried then stale[#stale + 1] = ARGV[i] end
  end
end
if #stale > 1 then return stale end
local now = clock()
for _, i in ipairs(owned) do
  if ARGV[i + 3] ~= '' then call('HSET', key('n', ARGV[i]), ARGV[i + 3], ARGV[i + 4]) end
  call('HSET', key('s', ARGV[i]), 'owner', '', 'used', now, 'next', ARGV[i + 2])
end
return {'OK'}
"""
)

# id, epoch, how
END = Script(
    _ALWAYS
    + _COMMON
    + """
if fenced() then return {'FENCED'} end
if not mine(ARGV[2], ARGV[3]) then return {'STALE', ARGV[2]} end
finish(ARGV[2], ARGV[4], ARGV[3])
return {'OK'}
"""
)

# id, epoch, step, page bytes
HISTORY = Script(
    _READS
    + _COMMON
    + """
if fenced() then return {'FENCED'} end
local id, step = ARGV[2], tonumber(ARGV[4])
if not mine(id, ARGV[3]) then return {'STALE', id} end
local s, j, n = key('s', id), key('j', id), key('n', id)
local v = call('HMGET', s, 'next', 'zeros')
if step > tonumber(v[1]) then return {'STALE', id} end
local newest, oldest = snapshots(n, step)
local record = call('LINDEX', j, 0)
local first = tonumber(v[1])
if record then first = span(record) end
if first ~= 0 or v[2] ~= '1' then first = oldest and tonumber(oldest) or tonumber(v[1]) end
local low, high = seek(j, (newest and tonumber(newest) or first) + 1, true), seek(j, step, false)
if step < first then high = low end
local data = newest and call('HGET', n, newest) or ''
return {'OK', first, newest or '', data, low, high, page(j, low, high, tonumber(ARGV[5]))}
"""
)

# id, epoch, next step, version, digest, keep records, keep snapshots, snapshot or nothing
REWRITE = Script(
    _WRITES
    + _COMMON
    + """
if fenced() then return {'FENCED'} end
local id, next, data = ARGV[2], tonumber(ARGV[4]), ARGV[9]
if not mine(id, ARGV[3]) then return {'STALE', id} end
local s, j, n = key('s', id), key('j', id), key('n', id)
local keep = ARGV[7] == '1' and seek(j, next + 1, true) or 0
local zeros, gone, base = call('HGET', s, 'zeros'), {}, nil
for _, at in ipairs(call('HKEYS', n)) do
  local number = tonumber(at)
  if number > next or (number == next and next == 0) or (number < next and ARGV[8] == '0') then
    gone[#gone + 1] = at
  elseif not base or number > base then
    base = number
  end
end
if not data and next > 0 then  -- what is kept must lead there
  if not base and zeros == '1' then base = 0 end
  local at, i = next, keep - 1
  while base and at > base and i >= 0 do
    local first, last = span(call('LINDEX', j, i))
    if last ~= at then break end
    at, i = first, i - 1
  end
  if not base or at > base then return {'GAP', ARGV[4]} end
end
if keep > 0 then call('LTRIM', j, 0, keep - 1) else call('UNLINK', j) end
for _, at in ipairs(gone) do call('HDEL', n, at) end
if data then
  call('HSET', n, ARGV[4], data)
  if ARGV[8] == '0' or next == 0 then zeros = '0' end
elseif next == 0 then
  zeros = '1'
end
call('HSET', s, 'next', ARGV[4], 'version', ARGV[5], 'digest', ARGV[6], 'zeros', zeros, 'used', clock())
return {'OK'}
"""
)

# cursor, pattern, keys to look at -> cursor, ended
SWEEP = Script(
    _ALWAYS
    + _COMMON
    + """
if fenced() then return {'FENCED'} end
local now, ended, start = clock(), 0, #key('s', '') + 1
local living = {}
local found = call('SCAN', ARGV[2], 'MATCH', ARGV[3], 'COUNT', ARGV[4])
for _, s in ipairs(found[2]) do
  local v = redis.pcall('HMGET', s, 'owner', 'epoch', 'ttl', 'used', 'durability')
  local owner = v[1]
  if owner and v[2] and v[3] and v[4] then  -- what is damaged is left alone
    if living[owner] == nil then living[owner] = alive(owner) end
    if not living[owner] then
      local how = fate(owner, v[5], now - v[4], v[3])
      if how then
        fence(owner)
        finish(string.sub(s, start), how, v[2])
        ended = ended + 1
      end
    end
  end
end
return {'OK', found[1], ended}
"""
)
