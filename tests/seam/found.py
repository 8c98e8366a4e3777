"""The stories that failed once, each under the sentence that says how. They are told again in every run."""

from .plan import Plan, Setup
from .tales import Tale

BOTH = ("a", "b")

FOUND: dict[str, Tale] = {
    # Places: where a client is in the logs.
    "a client that history had brought further than the hub got a part twice when the epoch changed": Tale(
        Setup(outbox_events=4, message_bytes=40, replay_events=6, history=8),
        [
            ("connect", 0, 0, Plan()),
            ("read", 0, 1),
            ("publish", "a", 2, 0, "plain"),
            ("restart", "a", 1),
            ("publish", "a", 6, 0, "plain"),
            ("restart", "a", 1),
            ("say lost", 0),
        ],
    ),
    "the id of the open event was beyond the gap that followed it": Tale(
        Setup(outbox_events=4, message_bytes=40, replay_events=6, history=8, overflow="drop_oldest"),
        [
            ("connect", 0, 0, Plan()),
            ("read", 0, 1),
            ("cut", 0, False),
            ("publish", "a", 9, 0, "plain"),
            ("connect", 0, 1, Plan(window=0)),
            ("read", 0, 1),
            ("cut", 0, False),
        ],
    ),
    "a page cut to the size of a message had forgotten the earlier epochs": Tale(
        Setup(outbox_events=4, message_bytes=40, replay_events=6, history=8),
        [
            ("connect", 0, 0, Plan(channels=BOTH)),
            ("read", 0, 1),
            ("publish", "b", 5, 0, "plain"),
            ("read", 0, 2),
            ("publish", "b", 2, 0, "plain"),
            ("restart", "b", 0),
            ("pass", 60.0),
        ],
    ),
    "a channel that came late, and whose log was lost meanwhile, fell out of the cursor": Tale(
        Setup(outbox_events=4, message_bytes=40, replay_events=6, history=8),
        [
            ("connect", 0, 0, Plan(channels=BOTH)),
            ("read", 0, 1),
            ("publish", "b", 9, 0, "plain"),
            ("publish", "a", 8, 0, "plain"),
            ("lose log", "a"),
            ("publish", "b", 7, 0, "plain"),
            ("cut", 0, False),
            ("away", True),
            ("connect", 0, 1, Plan(channels=BOTH, window=1)),
            ("lose log", "b"),
            ("pass", 0.2),
            ("away", False),
        ],
    ),
    "the gap of a channel that came late went out behind the events that followed it": Tale(
        Setup(outbox_events=4, message_bytes=40, replay_events=6, history=8, overflow="drop_oldest"),
        [
            ("connect", 0, 0, Plan()),
            ("read", 0, 1),
            ("publish", "a", 7, 0, "plain"),
            ("away", True),
            ("cut", 0, False),
            ("connect", 0, 1, Plan()),
            ("pass", 3.0),
        ],
    ),
    "a channel that could not be subscribed when the stream opened fell out of the cursor": Tale(
        Setup(seed=2),
        [
            ("fault", "subscribe", 1, "b", True),
            ("connect", 0, 1, Plan(channels=BOTH)),
            ("read", 0, 1),
            ("publish", "b", 1, 0, "plain"),
            ("cut", 0, False),
        ],
    ),
    "a channel that could be subscribed and not be read fell out of the cursor": Tale(
        Setup(seed=2),
        [
            ("fault", "read", 1, "b", True),
            ("connect", 0, 1, Plan(channels=BOTH)),
            ("read", 0, 1),
            ("publish", "b", 1, 0, "plain"),
            ("cut", 0, False),
        ],
    ),
    "a channel that a later grant added, and that could not be subscribed, fell out of the cursor": Tale(
        Setup(seed=2),
        [
            ("fault", "subscribe", 1, "b", True),
            ("connect", 0, 0, Plan()),
            ("read", 0, 1),
            ("cut", 0, False),
            ("connect", 0, 1, Plan(channels=BOTH)),
            ("read", 0, 1),
            ("publish", "b", 1, 0, "plain"),
            ("cut", 0, False),
        ],
    ),
    "a grant that changed to another channel altogether was told a gap": Tale(
        Setup(),
        [
            ("connect", 0, 0, Plan()),
            ("read", 0, 1),
            ("cut", 0, False),
            ("connect", 0, 0, Plan(channels=("b",))),
            ("read", 0, 1),
        ],
    ),
    "a channel that was new to the client was told a gap, because its other one had not been live": Tale(
        Setup(),
        [
            ("fault", "read", 0, "a", True),
            ("connect", 0, 0, Plan()),
            ("read", 0, 1),
            ("cut", 0, False),
            ("connect", 0, 0, Plan(channels=("b",))),
        ],
    ),
    "the response started before the channel was subscribed": Tale(
        Setup(),
        [("connect", 0, 0, Plan()), ("read", 0, 0), ("publish", "a", 1, 0, "plain")],
    ),
    "a server lost what a client had, and the client got a part of the rest twice when it came back": Tale(
        Setup(),
        [
            ("publish", "a", 1, 0, "plain"),
            ("connect", 0, 0, Plan(replay="last")),
            ("read", 0, 2),
            ("publish", "a", 1, 0, "plain"),
            ("read", 0, 1),
            ("restart", "a", 1),
            ("cut", 0, False),
        ],
    ),
    "a client without control events came back to a stream that ended at once, for ever": Tale(
        Setup(history=4),
        [
            ("connect", 0, 0, Plan(control=False)),
            ("read", 0, 1),
            ("publish", "a", 1, 0, "plain"),
            ("read", 0, 1),
            ("cut", 0, False),
            ("publish", "a", 9, 0, "plain"),
        ],
    ),
    "a log went on in another epoch and could not be asked at first, and a stream asked without end": Tale(
        Setup(seed=1),
        [
            ("connect", 0, 0, Plan()),
            ("read", 0, 1),
            ("cut", 0, True),
            ("restart", "a", 0),
            ("away", True),
            ("connect", 0, 1, Plan()),
            ("read", 0, 1),
        ],
    ),
    # The broker's port.
    "a wrapper that asks for each message delivered each twice": Tale(
        Setup(wrapped=(2,), quiet_end=True),
        [("connect", 0, 2, Plan()), ("read", 0, 1), ("publish", "a", 1, 0, "plain")],
    ),
    "a wrapper that asks for each message hid that some were lost": Tale(
        Setup(seed=1, wrapped=(2,)),
        [
            ("connect", 0, 2, Plan()),
            ("read", 0, 1),
            ("fault", "lossy", 2, "a", True),
            ("publish", "a", 3, 0, "plain"),
        ],
    ),
    "what was published past the log came to some and never to those who came back": Tale(
        Setup(),
        [("connect", 0, 0, Plan()), ("read", 0, 1), ("publish", "a", 1, 0, "past"), ("read", 0, 1)],
    ),
    "an empty id was accepted": Tale(Setup(), [("publish", "a", 1, 0, "empty id")]),
    "an id that reads as a cursor was accepted": Tale(
        Setup(),
        [("connect", 0, 0, Plan(channels=BOTH)), ("read", 0, 1), ("publish", "a", 1, 0, "cursor id")],
    ),
    "an id that publish had returned was accepted as a publisher's own": Tale(
        Setup(),
        [("publish", "a", 1, 0, "plain"), ("publish", "a", 1, 0, "position id")],
    ),
    # The state that a snapshot brings.
    "a client that was cut before its snapshot came back as resumed": Tale(
        Setup(),
        [("connect", 0, 0, Plan(snapshot="sync")), ("read", 0, 1), ("cut", 0, False)],
    ),
    "a client that was cut in its snapshot came back as resumed": Tale(
        Setup(),
        [("connect", 0, 0, Plan(snapshot="sync", blocks=3)), ("read", 0, 3), ("cut", 0, True)],
    ),
    "a client that was cut between a gap and its snapshot came back as resumed": Tale(
        Setup(overflow="drop_oldest", outbox_events=2),
        [
            ("connect", 0, 0, Plan(snapshot="sync", window=0)),
            ("read", 0, 9),
            ("publish", "a", 1, 0, "plain"),
            ("turns", 5),
            ("publish", "a", 9, 0, "plain"),
            ("turns", 5),
            ("read", 0, 3),
            ("cut", 0, False),
        ],
    ),
    "a grant ended while its snapshot was read, and the stream stayed": Tale(
        Setup(),
        [("connect", 0, 0, Plan(snapshot="hangs", expires=0.1)), ("pass", 30.0)],
    ),
    "a stream was revoked while its snapshot was read, and was sent the state": Tale(
        Setup(),
        [
            ("connect", 0, 0, Plan(snapshot="slow", slot="one")),
            ("pass", 0.1),
            ("disconnect", 0, "one", None),
            ("pass", 3.0),
            ("read", 0, 3),
        ],
    ),
    "a process stopped while a snapshot was read, and the response was cut without its end": Tale(
        Setup(),
        [("connect", 0, 1, Plan(snapshot="hangs")), ("pass", 0.1), ("stop", 1)],
    ),
    "a snapshot that hung stopped the heartbeat": Tale(
        Setup(),
        [("connect", 0, 0, Plan(snapshot="hangs")), ("read", 0, 1), ("listen", 0)],
    ),
    "a new log was sent after a state that had all of it": Tale(
        Setup(),
        [
            ("connect", 0, 0, Plan(snapshot="sync")),
            ("read", 0, 2),
            ("publish", "a", 1, 0, "plain"),
            ("read", 0, 1),
            ("cut", 0, False),
            ("lose log", "a"),
            ("publish", "a", 3, 0, "plain"),
            ("connect", 0, 0, Plan(snapshot="sync")),
        ],
    ),
    "what two trimmed logs had left was sent after a state, and each brought a state of its own": Tale(
        Setup(history=4),
        [
            ("connect", 0, 0, Plan(channels=BOTH, snapshot="sync")),
            ("read", 0, 2),
            ("cut", 0, False),
            ("publish", "a", 9, 0, "plain"),
            ("publish", "b", 9, 0, "plain"),
            ("connect", 0, 0, Plan(channels=BOTH, snapshot="sync")),
        ],
    ),
    # Endings.
    "a stream was revoked in another process while it was authorized, and opened": Tale(
        Setup(),
        [
            ("connect", 0, 2, Plan(slot="one", authorize=0.1)),
            ("turns", 5),
            ("disconnect", 0, "one", None),
            ("pass", 1.0),
        ],
    ),
    "a stream was revoked in its own process while it was authorized, and opened": Tale(
        Setup(),
        [
            ("connect", 0, 2, Plan(authorize=0.1)),
            ("turns", 5),
            ("disconnect", 2, None, "a"),
            ("pass", 1.0),
        ],
    ),
    "a stream was revoked while it waited for its slot, and opened": Tale(
        Setup(cap=1, slot_delay=0.3),
        [
            ("connect", 0, 2, Plan(slot="one")),
            ("turns", 5),
            ("disconnect", 0, "one", None),
            ("pass", 1.0),
        ],
    ),
    "a process that could not hear commands kept what was revoked when it could hear again": Tale(
        Setup(),
        [
            ("fault", "subscribe", 0, "livepush.", True),
            ("connect", 0, 0, Plan()),
            ("read", 0, 1),
            ("disconnect", 2, None, "a"),
        ],
    ),
    "a process whose commands were lost for a while kept what was revoked": Tale(
        Setup(),
        [
            ("connect", 0, 0, Plan()),
            ("read", 0, 1),
            ("fault", "cut", 0, "livepush.", True),
            ("disconnect", 2, None, "a"),
            ("pass", 3.0),
        ],
    ),
    "a stream that was revoked before it had opened was told a gap": Tale(
        Setup(),
        [("connect", 0, 1, Plan()), ("disconnect", 1, None, "a")],
    ),
    "a stream that was drained before it had opened said close and never open": Tale(
        Setup(),
        [("connect", 0, 2, Plan(authorize=0.1)), ("drain", 2), ("read", 0, 1)],
    ),
    "a process stopped while a client was authorized, and the application raised": Tale(
        Setup(),
        [("connect", 0, 0, Plan(authorize=0.1)), ("turns", 5), ("stop", 0)],
    ),
    "a process was stopping, and revoking from it raised": Tale(
        Setup(),
        [("stop", 0), ("disconnect", 0, "one", None), ("pass", 3.0)],
    ),
    "a process stopped, and gave back the slots that another one held": Tale(
        Setup(cap=1, clients=2),
        [
            ("connect", 0, 0, Plan(slot="one")),
            ("read", 0, 1),
            ("stop", 1),
            ("pass", 3.0),
            ("connect", 1, 0, Plan(slot="one")),
            ("read", 1, 1),
        ],
    ),
    "a page read before its log was lost was shared with a client that had been told of the loss": Tale(
        Setup(outbox_events=1, message_bytes=100),
        [
            ("connect", 0, 0, Plan(channels=("b",))),
            ("read", 0, 1),
            ("publish", "b", 7, 0, "retry"),
            ("read", 0, 1),
            ("lose log", "b"),
        ],
    ),
    "two channels whose new logs were empty were read again and again without a pause": Tale(
        Setup(overflow="close", outbox_events=4, message_bytes=100, history=8),
        [
            ("connect", 0, 0, Plan(channels=("c",))),
            ("read", 0, 1),
            ("publish", "c", 9, 0, "plain"),
            ("read", 0, 100),
            ("publish", "b", 1, 0, "plain"),
            ("connect", 0, 0, Plan(channels=("b", "c"), replay=2)),
            ("read", 0, 2),
            ("lose log", "c"),
        ],
    ),
    "history was sent between the blocks of the state": Tale(
        Setup(overflow="latest", message_bytes=100, replay_events=6),
        [
            ("connect", 0, 0, Plan(snapshot="raises")),
            ("read", 0, 1),
            ("publish", "a", 1, 0, "x"),
            ("publish", "a", 3, 0, "plain"),
            ("publish", "a", 3, 0, "plain"),
            ("read", 0, 2),
            ("connect", 0, 0, Plan(snapshot="sync", blocks=3, window=1)),
        ],
    ),
    "a stream opened for a moment though its grant had expired while it waited for its slot": Tale(
        Setup(clients=2, cap=1, slot_delay=3.0),
        [
            ("connect", 1, 0, Plan(slot="one", expires=0.1, window=0)),
            ("read", 1, 0),
            ("pass", 3.0),
            ("connect", 0, 0, Plan(slot="one")),
            ("read", 0, 1),
            ("read", 0, 1),
            ("read", 0, 1),
        ],
    ),
    "a client came back to a lost log, with a replay, and began in the log that was lost": Tale(
        Setup(outbox_events=2, behind=(0, 1, 2)),
        [
            ("connect", 0, 1, Plan()),
            ("read", 0, 1),
            ("publish", "a", 1, 0, "plain"),
            ("publish", "a", 2, 0, "plain"),
            ("read", 0, 1),
            ("cut", 0, False),
            ("lose log", "a"),
            ("connect", 0, 1, Plan(replay="all")),
        ],
    ),
    "a client that asked for all was not told that the limit had left out the oldest events": Tale(
        Setup(replay_events=6),
        [
            ("connect", 0, 0, Plan(replay="all")),
            ("publish", "a", 7, 0, "plain"),
        ],
    ),
    "a client that asked for all was not told that its log had dropped the oldest events": Tale(
        Setup(history=4),
        [
            ("publish", "a", 7, 0, "plain"),
            ("connect", 0, 0, Plan(channels=BOTH, replay="all")),
            ("read", 0, 1),
        ],
    ),
    "a client that asked for all was not told that a server without an event had taken over": Tale(
        Setup(seed=3679),
        [
            ("connect", 0, 0, Plan(replay="all")),
            ("read", 0, 0),
            ("publish", "a", 1, 0, "plain"),
            ("forget", 0),
            ("take over", "a", 1),
        ],
    ),
    "a client without control events was told of the same doubtful beginning for ever": Tale(
        Setup(seed=200064),
        [
            ("connect", 0, 0, Plan(replay="all", control=False)),
            ("take over", "a", 0),
        ],
    ),
    "a state brought what the newest events of a name had left out, and the model missed it": Tale(
        Setup(seed=17667, overflow="latest", history=4),
        [
            ("connect", 0, 0, Plan(replay="all", snapshot="slow")),
            ("read", 0, 0),
            ("publish", "a", 1, 0, "x"),
            ("publish", "a", 4, 0, "plain"),
        ],
    ),
    "a client that asked for all was not told that a server had taken over in the middle": Tale(
        Setup(),
        [
            ("publish", "a", 3, 0, "plain"),
            ("take over", "a", 1),
            ("publish", "a", 1, 0, "plain"),
            ("connect", 0, 0, Plan(replay="all")),
        ],
    ),
    "a client did not read its soft refusal, and the model took that for an open stream": Tale(
        Setup(),
        [
            ("connect", 0, 0, Plan(expires=0.1, window=0)),
            ("stop", 0),
            ("pass", 9.0),
        ],
    ),
    "a broker that was healed was still slow to close what it had subscribed before": Tale(
        Setup(seed=400799, linger=5.0),
        [
            ("connect", 0, 2, Plan(window=0)),
            ("fault", "slow", 2, "a", 2.0),
            ("read", 0, 2),
        ],
    ),
    "a stream whose client did not read its last bytes counted as open for a moment too long": Tale(
        Setup(seed=704979, clients=2, cap=1),
        [
            ("connect", 1, 0, Plan(slot="one", expires=1.0, control=False)),
            ("read", 1, 1),
            ("connect", 0, 0, Plan(slot="one")),
            ("read", 0, 1),
        ],
    ),
    "a client that left before its first page was not told of what was missing at the beginning": Tale(
        Setup(),
        [
            ("publish", "a", 3, 0, "plain"),
            ("take over", "a", 1),
            ("publish", "a", 1, 0, "plain"),
            ("connect", 0, 0, Plan(replay="all")),
            ("read", 0, 1),
            ("cut", 0, False),
            ("connect", 0, 1, Plan()),
        ],
    ),
    "a client that left before its first page was not told that a log had lost all": Tale(
        Setup(),
        [
            ("publish", "a", 3, 0, "plain"),
            ("take over", "a", 3),
            ("connect", 0, 0, Plan(channels=BOTH, replay="all")),
            ("read", 0, 1),
            ("cut", 0, False),
        ],
    ),
    "a client that was told of one doubtful end was not told of the next one": Tale(
        Setup(seed=140, clients=2),
        [
            ("take over", "b", 5),
            ("publish", "b", 2, 0, "plain"),
            ("take over", "b", 1),
            ("connect", 1, 0, Plan(channels=("b",), replay="all", control=False)),
        ],
    ),
    "a client that had missed too many was not told of a doubtful end among those that it got": Tale(
        Setup(seed=4215796, clients=12, replay_events=6, slot_delay=0.3),
        [
            ("publish", "a", 7, 0, "plain"),
            ("connect", 0, 1, Plan(replay="all", control=False)),
            (
                "connect",
                2,
                2,
                Plan(channels=("b", "a"), replay="all", slot="two", expires=1.0, authorize=2.0),
            ),
            ("read", 2, 3),
            ("publish", "a", 3, 2, "plain"),
            ("take over", "a", 5),
            ("publish", "a", 3, 2, "plain"),
        ],
    ),
    "bounds that were older than its position sent a client a false gap, and events twice": Tale(
        Setup(seed=640, clients=2),
        [
            ("publish", "a", 1, 0, "plain"),
            ("connect", 1, 0, Plan(replay=2)),
            ("read", 1, 1),
            ("cut", 1, False),
            ("connect", 1, 0, Plan()),
            ("read", 1, 1),
            ("publish", "a", 3, 0, "plain"),
            ("take over", "a", 0),
            ("read", 1, 3),
            ("cut", 1, False),
            ("connect", 1, 0, Plan()),
        ],
    ),
    "bounds of the moment at which a client came sent it a false gap, and events twice": Tale(
        Setup(linger=0.0),
        [
            ("connect", 0, 0, Plan()),
            ("read", 0, 1),
            ("cut", 0, False),
            ("connect", 0, 2, Plan()),
            ("lose log", "a"),
            ("read", 0, 1),
            ("publish", "a", 2, 0, "plain"),
            ("read", 0, 1),
            ("cut", 0, False),
            ("connect", 0, 0, Plan()),
            ("read", 0, 3),
            ("cut", 0, False),
            ("take over", "a", 1),
            ("connect", 0, 2, Plan()),
        ],
    ),
    # Here the model was wrong, and the component right.
    "a stream was let in while the application of the closed one before it had yet to return": Tale(
        Setup(clients=2, cap=1),
        [
            ("connect", 0, 0, Plan(slot="one", window=1)),
            ("pass", 3.0),
            ("connect", 1, 0, Plan(slot="one", authorize=2.0)),
            ("pass", 2.0),
            ("turns", 1),
            ("turns", 1),
            ("turns", 1),
        ],
    ),
}
