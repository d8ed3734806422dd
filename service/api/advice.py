"""What each error code means to a client, and what to do about it: for the page, and for the document."""

from __future__ import annotations

#: By code: what happened, and what a client should do.
ADVICE: dict[str, tuple[str, str]] = {
    "bad_request": (
        "The body is not JSON, not a snapshot, or not a text frame. Nothing was executed.",
        "Correct the request; the same one fails again.",
    ),
    "invalid_value": (
        "A value has the wrong shape, type or range, or is not finite. `field` names the first such place."
        " Nothing was executed.",
        "Correct the value at `field`; the same request fails again.",
    ),
    "too_large": (
        "The body has more bytes, or the request more steps, than `limit`. Nothing was executed.",
        "Send the steps in several requests, one after the other.",
    ),
    "timeout": (
        "The request did not arrive within `request_timeout_s`. Nothing was executed.",
        "Send the same request again, over a faster connection or in smaller pieces.",
    ),
    "unsupported_media_type": (
        "The body says that it is not JSON, or that it is compressed. Nothing was executed.",
        "Send plain JSON with `Content-Type: application/json`.",
    ),
    "not_found": (
        "There is no such path, or no such model.",
        "Look at the list at `GET /v1/models`, and at the spelling.",
    ),
    "method_not_allowed": (
        "The path is there and does not take this method.",
        "Use a method of the `Allow` header.",
    ),
    "session_not_found": (
        "No session of that id is open, and the request did not begin at step 0.",
        "Open it, or send its sequence from step 0. If it was open before, its client ended it.",
    ),
    "session_exists": (
        "A session of that id is open.",
        "Go on with it, or take another id, or leave the id to the service.",
    ),
    "step_conflict": (
        "The step is ahead of the session, or is older than what a retry is answered from, or was committed"
        " with other inputs or options. The session has not moved.",
        "Go on at `expected_step`. If the step was a retry with the same inputs, it has been executed.",
    ),
    "session_gone": (
        "The session was here and is no more.",
        "Open a new one and send the sequence, or a snapshot, again.",
    ),
    "session_expired": (
        "The session was idle for longer than its time to live.",
        "Open a new one and send the sequence, or a snapshot, again. Ask for a longer `ttl_s`.",
    ),
    "session_lost": (
        "The session was kept in the memory of a process that ended.",
        "Open a new one and send the sequence, or a snapshot, again.",
    ),
    "unauthorized": (
        "The service has keys, and the request has none, or one that is not known. Nothing was executed.",
        "Send `Authorization: Bearer` with a key that the operator gave you.",
    ),
    "forbidden": (
        "The key is good, and not for this model or this path. Nothing was executed.",
        "Take a key that is for it, or ask the operator.",
    ),
    "quota_exceeded": (
        "The key has as many sessions open, or has sent as many requests, as it may. Nothing was executed.",
        "Send the same request again after `retry_after_s`, with its `step`; or end sessions.",
    ),
    "no_capacity": (
        "More is asked for than can be done in time, or as many sessions are open as may be. Nothing was"
        " executed.",
        "Send the same request again after `retry_after_s`, with its `step`.",
    ),
    "unavailable": (
        "The service is starting, stopping, or lacks a part that it needs. If that is the store, whether the"
        " request was executed is told by a retry.",
        "Send the same request again after `retry_after_s`, with its `step`.",
    ),
    "moving": (
        "The session is changing the replica that owns it, or that replica can't be reached. Whether the"
        " request was executed is told by a retry.",
        "Send the same request again at once, with its `step`.",
    ),
    "session_damaged": (
        "What the store keeps of the session is not what was written. Other sessions are not concerned.",
        "Open a new one and send the sequence, or a snapshot, again. The service's log names the record.",
    ),
    "version_conflict": (
        "The session is of a version of the model that is not served any more, and its history can't be run"
        " on the version that is: their inputs differ.",
        "Open a new session; or have the older version served again, with `upgrade` set to `pin`.",
    ),
    "deadline_exceeded": (
        "The request was not started within its `timeout_ms`. Nothing was executed.",
        "Send it again, with more time or when there is less to do.",
    ),
    "engine_failure": (
        "The service met an error of its own. The session is where it was.",
        "Send the same request again after `retry_after_s`. If it fails again, the service's log says why.",
    ),
}
