"""Every named limit in one place. Units stand last in the names."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
TIB: Final = 1024 * GIB

# Requests
BODY_BYTES_MAX: Final = 8 * MIB
BODIES_BYTES_MAX: Final = 64 * MIB  # all bodies that are being read, together
HEADER_BYTES_MAX: Final = 32 * KIB
HEADER_TIMEOUT_S: Final = 10.0
BODY_TIMEOUT_S: Final = 30.0
SEND_STALL_S: Final = 30.0  # a client that takes nothing for so long is cut
CONNECTIONS_MAX: Final = 512
CONNECTIONS_REFUSED_MAX: Final = 128  # more, for a moment, that hear that there is no room
JSON_DEPTH_MAX: Final = 64
EVENT_HEARTBEAT_S: Final = 15.0
NAME_CHARS_MAX: Final = 64
VERSION_MAX: Final = 999_999_999  # the highest number of a model's version
TOPIC_CHARS_MAX: Final = 4 * NAME_CHARS_MAX + 3  # names joined by /
REF_CHARS_MAX: Final = 2 * NAME_CHARS_MAX + 1  # of a model, as NAME:TAG
NAME_BYTES_MAX: Final = 192  # in UTF-8: with what is put around a name, a file name has at most 255
PATH_CHARS_MAX: Final = 4096
ARGV_BYTES_MAX: Final = 128 * KIB
ENV_BYTES_MAX: Final = 128 * KIB
IDEMPOTENCY_KEY_CHARS_MAX: Final = 128
TASKS_LISTED_MAX: Final = 10_000
AUDIT_CHARS_MAX: Final = 500  # of a text in a row
AUDIT_LISTED_MAX: Final = 1000
AUDIT_KEPT: Final = 100_000
TOKENS_MAX: Final = 1000
REFUSALS_KEPT: Final = 10  # rows of requests that were not let in, in a window
REFUSALS_WINDOW_S: Final = 60.0

# Resources
CPU_MILLI_MAX: Final = 4096 * 1000
GPU_MILLI_MAX: Final = 1024 * 1000
MEMORY_BYTES_MAX: Final = 1024 * TIB
MEMORY_BYTES_MIN: Final = 4 * MIB

# Scheduling
PRIORITY_MIN: Final = 0
PRIORITY_LOW: Final = 25
PRIORITY_NORMAL: Final = 50
PRIORITY_HIGH: Final = 75
PRIORITY_MAX: Final = 100
PRIORITIES: Final = {"low": PRIORITY_LOW, "normal": PRIORITY_NORMAL, "high": PRIORITY_HIGH}
EXPECTED_S_DEFAULT: Final = 600.0
EXPECTED_S_MAX: Final = 10 * 365 * 86400.0
TIME_S_MAX: Final = 253_402_300_799.0  # the end of the year 9999
DEADLINE_STEP: Final = 5  # points of priority by which the nearness of a deadline raises
RETRIES_MAX: Final = 1000
QUOTA_WINDOW_S: Final = 7 * 86400.0  # in which GPU-hours are counted
FAIR_HALF_LIFE_S: Final = 7 * 86400.0  # after which use counts half
FAIR_WEIGHT: Final = 25.0  # points of score that having had too much costs at most
ACCOUNTS_MAX: Final = 4096  # users and projects that do nothing, whose use is remembered
SIGNATURES_MAX: Final = 4096  # of tasks whose run times are remembered
SIGNATURE_CHARS_MAX: Final = 256
PICTURED_TASKS_MAX: Final = 1000  # waiting ones that `zenos why` and `zenos plan` look at
FORECAST_STEPS_MAX: Final = 20_000
FORECAST_S_MAX: Final = 30 * 86400.0
FORECAST_TIMEOUT_S: Final = 20.0
PREDICTIONS_KEPT: Final = 32  # of each signature
# How preemption keeps from thrashing: a worker stays so long before it gives way, to a higher
# priority and to an equal; and gives way so often at most.
RESIDENCE_S: Final = 2.0
SLICE_RESIDENCE_S: Final = 600.0
GROW_S: Final = 60.0  # an elastic training stays so long before it starts again with more workers
PREEMPTIONS_PER_HOUR: Final = 12
SLICE_S: Final = 4 * 3600.0  # device-seconds of service until a task gives way to equals
QUEUED_TASKS_MAX: Final = 1_000_000
BATCH_TASKS_MAX: Final = 1000  # of one file
ARRAY_TASKS_MAX: Final = 10_000
ARRAY_INDEX_MAX: Final = 10**9
LABELS_MAX: Final = 64  # of a node, and that a task asks for
AFTER_MAX: Final = 1000  # tasks that one waits for

# Measured memory
MEMORY_LOOK_S: Final = 2.0  # between two looks at what processes outside zenos use
FOREIGN_STEP_BYTES: Final = 64 * MIB  # a change by less is noise
MEMORY_MARGIN: Final = "256MiB"  # left free beside what tasks hold and others use

# Workers
CANCEL_GRACE_S: Final = 10.0
SUSPEND_GRACE_S: Final = 120.0
PAUSE_GRACE_S: Final = 60.0  # for the end of the step that a training is in
STOP_WORD_WAIT_S: Final = 1.0  # after SIGTERM, for what the daemon says on the bus
START_TIMEOUT_S: Final = 120.0
RETRY_BACKOFF_S: Final = 1.0
RETRY_BACKOFF_S_MAX: Final = 300.0
RETRY_JITTER: Final = 0.25  # of the backoff, by which it may be shorter
TRAIN_RESTARTS_MAX: Final = 10  # faults in a row without a newer checkpoint
START_FAILURES_MAX: Final = 3  # in a row; of training and model creation TRAIN_RESTARTS_MAX
SERVE_RESTARTS_MAX: Final = 5
IDLE_YIELDS_S: Final = 10.0  # so long unused, a replica ends for waiting work of lower priority too
ERROR_CHARS_MAX: Final = 4000  # of what a worker says of its end
LOG_TAIL_BYTES: Final = 4 * KIB
LOG_BYTES_MAX: Final = 64 * MIB
ORPHAN_WAIT_S: Final = 600.0

# Bus
SOCKET_LOOK_S: Final = 3.0  # between two looks whether the bus's socket is still where it was
HEARTBEAT_S: Final = 5.0  # a peer that says nothing else says so often that it is there
SILENT_S: Final = 30.0  # of whom nothing is heard for so long is taken to be gone
FRAME_BYTES_MAX: Final = 64 * MIB
SEND_QUEUE_FRAMES_MAX: Final = 4096
SEND_QUEUE_BYTES_MAX: Final = 256 * MIB
FRAME_HEADER_BYTES_MAX: Final = 16 * KIB
FRAME_DESCRIPTORS_MAX: Final = 8  # that come with one frame
DESCRIPTOR_BYTES: Final = MIB  # what one counts against the bytes of a topic
PEERS_MAX: Final = 4096
PEER_TOPICS_MAX: Final = 1024  # that one peer sends to, receives from or has subscribed to
PEER_REQUESTS_MAX: Final = 10_000  # of one peer that wait for an answer
PEER_HELD_MAX: Final = 20_000  # messages of one peer that wait for room in transient topics
WINDOW_MESSAGES: Final = 1024  # that a peer may have sent to a transient topic and not heard of
WINDOW_BYTES: Final = 8 * MIB
SUBSCRIPTION_MESSAGES_MAX: Final = 10_000  # that a subscriber has not taken yet
SUBSCRIPTION_BYTES_MAX: Final = 64 * MIB
GRANTS_MAX: Final = 64  # topics that a task may use beside its own
SHARED_COST: Final = 64  # what a message with descriptors counts, of what a subscriber may be sent
PREFETCH_MAX: Final = 10_000  # messages that a receiver may ask for before it takes them
# Direct sockets: who calls a topic so often within so many seconds gets one. It carries so many
# calls at once, of so many bytes, none larger than that; and is closed when none comes for so long.
DIRECT_CALLS: Final = 16
DIRECT_WITHIN_S: Final = 1.0
DIRECT_PENDING_MAX: Final = 256
DIRECT_BYTES_MAX: Final = 4 * MIB
DIRECT_CALL_BYTES_MAX: Final = 128 * KIB
DIRECT_ASKED_MAX: Final = 1000  # messages that its server takes from the broker in that time
DIRECT_IDLE_S: Final = 30.0
DIRECT_AGAIN_S: Final = 5.0  # after a second server came, or the only one wanted no direct socket
PEER_DIRECT_MAX: Final = 64  # direct sockets of one peer

# Shared memory
SEGMENT_BYTES_MIN: Final = 64 * KIB
SEGMENT_BYTES_MAX: Final = TIB
ARRAYS_PER_PARCEL_MAX: Final = 4096
ARRAY_DIMENSIONS_MAX: Final = 32
PARCEL_BYTES_MAX: Final = 4 * MIB  # of handles in one packet
PASS_TIMEOUT_S: Final = 30.0
SHARED_BYTES_MAX: Final = GIB  # of the bodies that one connection to the bus has in shared memory
SHARED_ARRAYS_BYTES_MIN: Final = SEGMENT_BYTES_MIN  # smaller ones go in their message
SHARED_BODY_BYTES_MIN: Final = MIB  # of bytes
WEIGHTS_WAITING_MAX: Final = 64  # replicas that ask a training for its weights at once
WEIGHTS_TIMEOUT_S: Final = 5.0  # for each word of a replica; then the next one's turn comes
WEIGHTS_WAIT_S: Final = 30.0  # for a training's answer; then the file is read
REPLICAS_MAX: Final = 64  # of a deployment
RANKS_MAX: Final = 64
REDUCE_TIMEOUT_S: Final = 300.0  # a rank that is so long behind the others is given up
REDUCE_SPIN_S: Final = 50e-6
GANG_END_S: Final = 5.0  # for ranks to end once told, and for what is to be known of one that died

# Durable topics
MESSAGE_BYTES_MAX: Final = 4 * MIB
MESSAGE_ID_CHARS_MAX: Final = 128
TOPIC_MESSAGES_MAX: Final = 100_000
TOPIC_BYTES_MAX: Final = 256 * MIB
TOPICS_MAX: Final = 10_000
TOPICS_MEASURED_MAX: Final = 100  # topics with figures of their own for Prometheus
TOPIC_EVENTS_WAITING_MAX: Final = 10_000  # of one reader of `tail`
MESSAGES_LISTED_MAX: Final = 1000
MESSAGES_LISTED_BYTES_MAX: Final = 8 * MIB
SEND_WAIT_S: Final = 30.0  # for room in a topic, where the sender says nothing
TOPIC_WAITERS_MAX: Final = 10_000  # receives, and sends that wait for room, of one topic
LEASE_S: Final = 30.0
LEASE_S_MAX: Final = 86400.0
DELIVERIES_MAX: Final = 5
DELIVERED_AT_ONCE_MAX: Final = 1000
SEVERAL_MAX: Final = 1000  # durable messages, or acknowledgements, in one frame
SEVERAL_BYTES: Final = 64 * KIB  # after which the next ones go into another frame
DEAD_MESSAGES_KEPT: Final = 10_000  # of one topic
DEDUPLICATION_S: Final = 600.0
DEDUPLICATION_IDS_MAX: Final = 100_000  # of one topic

# Registry
MODEL_PART_BYTES_MAX: Final = 256 * MIB  # of a file beside the weights: a tokenizer of 10^6 tokens
LEFT_OUT_MAX: Final = 100  # files of an imported directory that are named as left out

# Serving
REPLICA_MEMORY_BYTES: Final = GIB  # at least; where nothing is known of the model
REQUESTS_WAITING_MAX: Final = 256
REQUEST_DEADLINE_S: Final = 600.0
KEEP_ALIVE_S: Final = 300.0
# How models that share a place take turns: one stays so long once it is loaded; requests for
# another wait so long at most before a busy one ends for them; its answers have so long then. The
# last is as long as a request's deadline, so by default none is cut.
MODEL_RESIDENCE_S: Final = 5.0
MODEL_WAIT_S: Final = 10.0
MODEL_DRAIN_S: Final = REQUEST_DEADLINE_S
CHAT_TEMPLATE_S: Final = 2.0  # for the prompt of one chat, by the model's template
MAX_TOKENS_DEFAULT: Final = 256
MAX_TOKENS_MAX: Final = 1_000_000
CHOICES_MAX: Final = 16
PROMPTS_MAX: Final = 64
MESSAGES_MAX: Final = 4096
STOP_STRINGS_MAX: Final = 16
STOP_CHARS_MAX: Final = 1024
LOGPROBS_MAX: Final = 20
STREAM_CHUNKS_WAITING_MAX: Final = 2048

# Retention
CACHE_SIZE: Final = "32GiB"
CACHE_FRESH_S: Final = 86400.0  # compiled code that is younger may be about to be loaded
ENDED_TASKS_KEPT: Final = 10_000
ENDED_TASK_KEPT_S: Final = 30 * 86400.0
EVENTS_KEPT: Final = 100_000
DAEMON_LOG_BYTES_MAX: Final = 16 * MIB
IDEMPOTENCY_KEPT_S: Final = 86400.0

# Calls
CALLS_KEEP_ALIVE_S: Final = 10.0  # of a host without a call
CALLS_WANTED_S: Final = 0.5  # the same, while others wait for its room
CALL_BYTES_MAX: Final = 64 * MIB  # of a function, its arguments, or its result, pickled
CALLS_IN_FLIGHT_MAX: Final = 100_000  # of one program
CALLS_BYTES_MAX: Final = 256 * MIB  # of one program's, that are in flight
CALL_RETRIES: Final = 3  # of an idempotent one whose lane died
# More goes to a lane by descriptor, which costs ten times as much for 64 KiB. The system takes a
# packet up to this without needing more than 16 KiB of memory in one piece.
CALL_PACKET_BYTES_MAX: Final = 80 * KIB
CALL_SOCKET_BYTES: Final = 512 * KIB  # on their way at once; the system may allow less
CALLS_PER_LANE_MAX: Final = 64  # that a lane is given in advance
CALLS_AHEAD_ALONE_S: Final = 0.1  # of work, while one program calls alone
CALLS_AHEAD_S: Final = 0.004  # the same, while several do
CALLS_SHARED_S: Final = 1.0  # so long after another one has called
CALLS_LATE_S: Final = 0.02  # that one runs longer than was thought until others don't wait for it
CALLS_SEGMENT_BYTES: Final = 16 * MIB  # of a host's journal, before the next file is begun

# Threads
LANES_MAX: Final = 1024  # of one pool
THREADS_WAITING_MAX: Final = 100_000  # of one pool
THREADS_SHOWN_MAX: Final = 1000
THREADS_REPORT_EVERY_S: Final = 1.0
THREADS_REPORTED_MAX: Final = 100  # by one process of a task to the daemon, and as many lanes
THREADS_REPORT_BYTES_MAX: Final = 256 * KIB
THREAD_PROCESSES_MAX: Final = 32  # of one task, whose threads are shown
POOLS_REPORTED_MAX: Final = 16
NAME_SHOWN_CHARS_MAX: Final = 80  # of what tasks call their threads
THREAD_EXPECTED_S: Final = 1.0  # where nothing is known yet
THREAD_AGEING_MAX: Final = 1e6
THREAD_BACKOFF_S_MAX: Final = 300.0
THREAD_GRACE_S: Final = 1.0  # from the word to stop to the end of a lane's process
LANE_START_TIMEOUT_S: Final = 60.0
LANE_STARTS_FAILED_MAX: Final = 3  # in a row, with no lane left: the pool is broken
LANE_RESTART_S: Final = 0.5
LANE_FUNCTIONS_MAX: Final = 64  # that a lane's process keeps
LANE_HEADER_BYTES_MAX: Final = MIB
LANE_FRAME_BYTES_MAX: Final = 16 * GIB
LANE_BUFFERS_MAX: Final = 50_000
CHUNK_S: Final = 0.05  # what a chunk of items should take
CHUNK_S_MIN: Final = 0.002
CHUNK_ITEMS_MAX: Final = 16_384
CHUNK_BYTES_MAX: Final = 8 * MIB
CHUNKS_PER_LANE: Final = 4  # of a map: running, waiting, and finished before their turn
REDUCE_ITEMS: Final = 1024
SHARD_BYTES: Final = 2 * MIB  # of text that is tokenized as one thread, about
SHARD_BYTES_MIN: Final = MIB // 2
SHARD_BYTES_MAX: Final = 8 * MIB
SHARDS_PER_LANE: Final = 2
DISK_LOW_BYTES: Final = 256 * MIB  # free on the disk of the home: less is told
DISK_FULL_BYTES: Final = MIB  # with less free a database is no more to be opened
DISK_LOOK_S: Final = 10.0
MODEL_LANES_MAX: Final = 4  # files that are copied and hashed at once: a disk takes no more
BUFFER_BYTES_MIN: Final = 64 * KIB  # bytes of that size go beside the pickle, uncopied
