-- wrk script: steps open sessions in turn.
-- Arguments behind --: path of the model, number of sessions, prefix of their ids, values of one step.
-- The sessions must be open: wrk asks this script for requests that it never sends, so none may matter.

function init(args)
   local model, prefix, values = args[1], args[3], args[4]
   sessions, turn, requests = tonumber(args[2]), 0, {}
   for i = 0, sessions - 1 do
      requests[i] = wrk.format(
         "POST",
         model .. "/sessions/" .. prefix .. i .. "/steps",
         { ["content-type"] = "application/json" },
         '{"inputs":[[' .. values .. "]]}"
      )
   end
end

function request()
   turn = (turn + 1) % sessions
   return requests[turn]
end

-- One line for the program that started wrk. Times are in microseconds; status counts replies from 400 up.
-- latencies: every time that came, and how often.
function done(summary, latency, _)
   local e, all = summary.errors, {}
   for i = 1, #latency do
      local time, count = latency(i)
      all[i] = "[" .. time .. "," .. count .. "]"
   end
   io.write(string.format(
      'RESULT {"requests":%d,"seconds":%f,"p50_us":%f,"p99_us":%f,"errors":%d,"latencies":[%s]}\n',
      summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
      e.connect + e.read + e.write + e.status + e.timeout, table.concat(all, ",")
   ))
end
