"""Every limit and default of the product, in one place; tests shrink them.

Units are the last word of each name. Feature rows (QU-*, RS-*, …) name where a value comes from.
"""

KIB = 1024
MIB = 1024 * KIB

# --- agent ---
LISTEN = "127.0.0.1:1500"  # without authentication nobody else may reach an agent
TARGET_ROOT = "/srv/replicas"  # CN-05: all-to-one copies go to TARGET_ROOT/<source>/<set>/<path>
UNIX_SOCKET_PATH_BYTES = 107  # sun_path of unix(7), without its NUL
GREETING_TIMEOUT_S = 5.0  # for the first line of an accepted socket
ACCEPT_PAUSE_S = 0.1  # after an accept that failed for want of descriptors or memory
GREETINGS_WAITING = 64  # accepted sockets that have not sent their first line
GREETINGS_PER_ADDRESS = 16  # of them, from one address
LISTEN_BACKLOG = 128  # sockets that wait in the kernel to be accepted
REFUSALS_LOGGED = 10  # of one address within REFUSALS_WINDOW_S; the rest are counted
REFUSALS_WINDOW_S = 60.0
REFUSALS_REMEMBERED = 1024  # addresses of which this is known
CHILD_START_TIMEOUT_S = 20.0  # for a child to answer on its control socket
CHILD_STOP_TIMEOUT_S = 20.0  # for a child to end after it was told to
CAPTURE_STOP_TIMEOUT_S = 300.0  # the same of a capture, which syncs its directory and saves its queue before
CONTROL_TIMEOUT_S = 10.0  # for an answer of a child
WATCH_INTERVAL_S = 10.0  # between two looks at queues; senders ring when there is something to see
FORK_SERVER_IDLE_S = 1.0  # without an order, until it imports what no child needs yet
FORK_TIMEOUT_S = 10.0  # for a child to be forked, what it needs to be imported first
FORK_ORDER_BYTES = 64 * KIB  # one order to a fork server: a few paths
RESTART_FIRST_S = 0.2  # back-off of a child that ends by itself
RESTART_MAX_S = 30.0
CAPTURE_RESTART_FIRST_S = 0.01  # applications wait for a killed capture's successor
CAPTURE_RESTART_MAX_S = 2.0
CAPTURE_GIVE_UP_S = 60.0  # without any successor that starts: then calls on its mount fail, and wait no more
HOLDER_GIVE_UP_S = 300.0  # the same when no agent runs that would start one
RELOAD_TIMEOUT_S = 60.0  # for a capture to leave its mount: syncs and reads that wait for a disk end first
CHILD_STABLE_S = 60.0  # a child that served this long starts with the first back-off again
CAPTURE_STABLE_S = (
    0.05  # a request that ends a capture is handed out again: it ends the next one sooner than that
)
AGENT_STOP_TIMEOUT_S = 60.0  # for an agent to end after SIGTERM
CHILD_KILL_TIMEOUT_S = 5.0  # for each of SIGTERM and SIGKILL
CHILD_POLL_S = 0.02  # between two looks at what nobody rings for
LOG_TAIL_BYTES = 4096  # of a child's log, searched for why it did not start
ESTABLISH_TIMEOUT_S = 15.0  # for the first session of a new connection
ESTABLISH_CHECK_S = 0.5  # between two looks at it: a safety net, its sender rings
DISCONNECT_TIMEOUT_S = 15.0  # for a sender to tell its target that the connection ends
MAKE_ROOM_S = 10.0  # between two looks for receivers whose sources came to nothing
RECEIVERS = 256  # connections that may end at one agent
STORY_KEPT = 1000  # steps of a connection's states that are remembered
EVENTS_KEPT = 1000  # recent events the API shows (CL-16)
LOG_BYTES = 1 * MIB  # LG-02: size of one log file
LOG_MIN_BYTES = 16 * KIB
LOG_FILES = 5  # LG-02
API_BODY_BYTES = 1 * MIB
API_BODY_TIMEOUT_S = 30.0  # for a body to arrive
API_HEAD_BYTES = 16 * KIB  # request line and headers
API_PATIENCE_S = 0.5  # of an agent that starts, for its children: then it imports what its API needs
API_GRACE_S = 1.0  # for answers under way when the agent stops
WAIT_TIMEOUT_MAX_S = 7 * 86400.0  # longest wait one request may ask for

# --- access ---
CONTROL_PORT = 1506  # NT-01: remote control, if it is on
ADMIN_GROUP = "dtadmin"  # SC-02
MONITOR_GROUP = "dtmon"  # SC-02
PAM_SERVICE = "replicator"
USER_CHARS = 100  # CL-04
PASSWORD_CHARS = 1024
LOGIN_TIMEOUT_S = 30.0  # CL-04: for a password to be checked
LOGINS_AT_ONCE = 4  # passwords under way; each has a thread, which PAM may hold for long
LOGIN_FREE_FAILURES = 3  # of one address, or user, before the next one has to wait
LOGIN_DELAY_FIRST_S = 1.0  # doubled by each further failure
LOGIN_DELAY_MAX_S = 300.0
LOGIN_FORGET_S = 3600.0  # without an attempt: failures are forgotten
LOGIN_FAILURES_KEPT = 4096  # addresses and users
SESSION_MINUTES = 15  # without a request: a login ends
SESSION_MINUTES_MAX = 24 * 60
SESSION_MAX_S = 12 * 3600.0  # the same, however busy
SESSIONS = 256
SESSIONS_OF_USER = 16
ACCOUNT_LOOKUPS = 8  # at once; each has a thread, which a directory service may hold for long
ACCOUNT_TIMEOUT_S = 20.0  # for the system to say which groups somebody has
HANDSHAKE_TIMEOUT_S = 10.0  # of TLS, on the port of remote control
API_CLIENTS_OF_ONE = 64  # connections to the control API of one user here, or one address elsewhere
API_CLIENTS_REMOTE = 256  # of all addresses
AUDIT_QUIET_S = 3600.0  # the same user is not said to be here again before
AUDIT_REFUSED_QUIET_S = 60.0  # the same for what was refused
AUDIT_KEPT = 1024  # users and origins remembered for that
AUDIT_VALUE_CHARS = 200  # of one value of a command
AUDIT_CHARS = 1000  # of one command

# --- journal (QU-*) ---
SEGMENT_BYTES = 5 * MIB  # QU-03: transaction logs of 5 MB; a record is never split
MEMORY_QUEUE_BYTES = 128 * MIB  # QU-01: memory tier
MEMORY_QUEUE_MIN_BYTES = 32 * MIB  # QU-01: smallest memory tier accepted
DISK_QUEUE_BYTES: int | None = None  # QU-08: None is unlimited, 0 is no disk queue
DISK_FREE_MIN_BYTES = 50 * MIB  # QU-09: always left free for others
QUEUE_ALERT_PERCENT = 50  # QU-10
QUEUE_ALERT_OVER_PERCENT = 80  # of that: below, an alert is over
MEMORY_DIRECTORY = "/dev/shm"  # tmpfs: the memory tier outlives every process
SEGMENT_MIN_BYTES = 64 * KIB
SEGMENT_MAX_BYTES = 1024 * MIB
CURSOR_SLOTS = 64  # readers one journal can have at a time
PATH_BYTES = 4095  # RS-08: longer paths are skipped and reported
RECORD_PAYLOAD_BYTES = 16 * MIB  # larger than any request the kernel sends; bounds a decoder's allocation
READ_CHUNK_BYTES = 512 * KIB  # one read of a cursor
WAKE_CHECK_S = 5.0  # a sleeping reader looks by itself this often: a safety net, not the way it is woken
MERGE_PAUSE_FIRST_S = 0.001  # a merge looks again when a journal may still get an older record
MERGE_PAUSE_MAX_S = 0.05
STAMP_MARGIN_NS = 1_000_000  # a store of one processor is visible to all others long before this

# --- dirty map ---
DIRTY_MAP_BYTES = 32 * MIB  # memory of one map, by estimate; beyond, it becomes coarser
DIRTY_REGIONS = 1024  # regions of one file; beyond, those with the smallest gaps between them are joined
DIRTY_LARGE_BYTES = 16 * MIB  # files written at or behind this place are compared whole only as a last resort
DRIFT_BYTES = 256 * KIB  # the same of what others have changed in a copy
DIRT_LOOK_S = 2.0  # between two counts of what such a map has
TRACK_ROOM_AWAY = 0.5  # a target that is away is tracked when so little of a journal is left,
TRACK_ROOM_CONNECTED = 0.25  # and one that is there, and slow, when it is this
TRACK_WAIT_S = 60.0  # for what is journaled to be tracked, before the target is asked again
TRACK_SAVE_BYTES = 16 * MIB  # of records tracked, between two times that the map is saved
TRACK_SAVE_S = 10.0  # the same, in time
TRACK_SAVE_QUIET_S = 1.0  # the same, when there is nothing more to track
TRACK_IDLE_S = 5.0  # a safety net: the journals ring
TRACK_LOOK_MIN_S = 0.01  # between two looks whether a journal gets full,
TRACK_LOOK_MAX_S = 1.0
TRACK_WRITER_BYTES_PER_S = 1_000_000_000  # faster than any capture writes
LOSSES_BYTES = 1 * MIB  # the same of what a full journal could not take
LOSSES_FILE_BYTES = 1 * MIB  # notes of that, for the successor of a killed writer, before a map replaces them
ACTIVITY_REGION_BYTES = 4 * MIB  # of a file: what a note of the activity log speaks of; a power of two
ACTIVITY_REGIONS = 64  # noted one by one; a longer range is one note
ACTIVITY_HOT = 50_000  # regions and names known to be noted; beyond, all are forgotten and noted again
ACTIVITY_FILE_BYTES = (
    1 * MIB
)  # of notes; then another file follows, and a map of both replaces the former ones
ACTIVITY_CHUNK_BYTES = 64 * KIB  # written ahead, so that syncing a note does not change the size of its file
ACTIVITY_LOOK_S = 1.0  # between two looks whether there is something to do for it
ACTIVITY_QUIET_S = 10.0  # no change for so long: what is hot may become cold
ACTIVITY_AGE_S = 300.0  # the same on a source that is never quiet

# --- capture ---
NODE_DESCRIPTORS = 8192  # open O_PATH descriptors per capture; the rest are reopened by file handle
ATTRIBUTE_TIMEOUT_S = 60.0  # nobody else changes the storage below a mount
QUIET_MTIME_S = 1.0  # an unchanged file's or directory's mtime is journaled after this pause
PENDING_MTIMES = 10_000  # mtimes that wait for their pause; beyond, the oldest no longer waits
MTIME_NOTES_BYTES = 1 * MIB  # notes of pending mtimes, before they are written anew
NAME_SEARCH_ENTRIES = 200_000  # looked at for another name of a hard-linked file that lost all known ones
CAPTURE_THREADS = 32  # fsyncs, cold reads and the like in flight at a time
DISK_THREADS_MAX = 256
REQUEST_TIMEOUT_MAX_S = 65_535  # what INIT has room for
TIMEOUT_MAX_S = 86_400.0  # for which the kernel may rely on what it was told
MAPPABLE_FILES = 65_536  # remembered as opened for reading and writing: these are not read past capture
UNSEEN_LOOK_S = 1.0  # between two looks for writable mappings of a closed file that was read past capture
UNSEEN_LOOK_MAX_S = 10.0  # the same, while it is open
UNSEEN_DOUBT_S = 60.0  # between two times that such a file is brought again
CAPTURE_TICK_S = 0.25  # between two looks at mtimes that are due, while some are pending
COLLECT_INTERVAL_S = 1.0  # between two looks for journal segments that nobody needs, and for mtimes
HOLDER_PAUSE_S = 0.1  # before a holder that was killed is replaced
NODES = 300_000  # objects the kernel may make us remember, about 400 bytes each; beyond, it gives some back
NODES_PRUNED = 512  # given back at a time
PRUNE_PAUSE_S = 0.05  # between two rounds of giving back
REQUEST_BYTES = 1 * MIB  # largest read or write the kernel asks for at once
READAHEAD_BYTES = 512 * KIB  # read in advance of a program that reads on and on; a pipe takes it in one go
SPLICE_MIN_BYTES = 64 * KIB  # smaller reads are copied: that takes fewer system calls
REPLY_PIPE_BYTES = 1 * MIB  # fs.pipe-max-size, beyond which only CAP_SYS_RESOURCE goes
BACKGROUND_REQUESTS = 64  # reads in advance, releases and the like under way at a time
LEDGER_BYTES = 160 * MIB  # takes NODES of the longest names; only what is used takes memory
LEDGER_MOVES = 2  # objects moved to a new ledger with each append: so many that this has room for all
AWAKE_REQUESTS = 64  # so many within AWAKE_MS, and idle processors are kept from halting
AWAKE_MS = 16
AWAKE_PROCESSORS = 16  # by default on hosts with at most so many: all idle ones use power
SPIN_PATIENCE = 256  # short sleeps before it is tried again where it never helped
SPIN_S = 0.00005  # a server of a busy mount looks for the next request so long before it sleeps
DIRECTORY_READ_BYTES = 32 * KIB  # names of a directory kept in memory per reader of it
COPY_RANGE_BYTES = 8 * MIB  # one step of copy_file_range: it holds up all other changes
UNNAMED_BYTES = 4 * MIB  # one record of a file that gets its first name; one that holds more is mirrored
SYNC_LOOK_S = 0.001  # between two looks of a thread whether the sync of another one has ended
SYNC_TIMEOUT_S = 5.0  # a program of a synchronous mount waits so long for a target
SYNC_TIMEOUT_MAX_S = 3600
SYNCHRONY_LOOK_S = 0.05  # between two looks whether a target is overdue, or has caught up
SYNCHRONY_RETURN_S = 1.0  # a target that was given up is not asked again before
SYNCHRONY_GATHER_NS = 10_000_000  # waits that begin within this time count as one
SYNCS = 128  # syncs of files under way at a time without a thread for each; a power of two
DETACHED_SERVE_S = 2.0  # a mount that is gone here still serves open files, and other mount namespaces

# --- processes that read or place files in a thread beside their event loop ---
# A thread that comes back from a system call waits this long for the interpreter. Python's 5 ms would be
# longer than most of its calls, and halves the rate of a mirror.
THREAD_SWITCH_S = 0.0001
COLLECT_AFTER_OBJECTS = (
    50_000  # between two runs of the garbage collector; a batch of a mirror makes thousands
)

# --- meter ---
METER_MARK_NS = 5_000_000  # operations journaled within this time are measured as one
METER_MARKS = 4096  # of one journal; more are made one by twos
QUEUE_LOOK_S = 5.0  # between two looks whether a queue is full
METER_TICK_S = 1.0  # between two samples of the history
FORECAST_MIN_S = 3.0  # a queue's growth is told after so long
LAG_WARNING_S = 60
LAG_ERROR_S = 600
LAG_MAX_S = 30 * 86400

# --- dtctl why ---
WHY_RECORDS = 200_000  # newest operations of a queue that are looked at
WHY_OPERATIONS = 10  # shown of them

# --- session ---
PORT = 1500  # NT-01
PORT_FIRST = 1025  # NT-02: of the ports that an agent may listen on; for another one it takes `PORT`
PORT_LAST = 65_535
FRAME_BYTES = 17 * MIB  # one record of the largest size, and its header
CONNECT_FRAME_BYTES = 4 * MIB  # a connection with its replication set and all its maps
CONTROL_FRAME_BYTES = 64 * KIB  # any other frame without bulk data
GREETING_BYTES = 128  # the first line of a session with its newline
RECEIVE_BYTES = 64 * KIB  # one read of a socket, unless a larger frame is known to follow
SEND_BUFFER_BYTES = 4 * MIB  # of a session's socket
PACKED_PLAIN_BYTES = 256 * KIB  # frames that are compressed together, before that; what a peer may unpack to
PACKED_FRAME_BYTES = 272 * KIB  # the same after it: zstd adds a little to what it cannot compress
AUTO_LOOK_NS = 200_000_000  # between two decisions of automatic compression
AUTO_HOLD_NS = 10 * 10**9  # until what did not help is tried again; twice as long each time,
AUTO_HOLD_MAX_NS = 160 * 10**9
AUTO_TRIAL_NS = 1_500_000_000  # so long a new level may take to show that it helps
AUTO_LEVEL_MAX = 5  # of the slider: what lies above costs much, and brings little
AUTO_BUSY_PERCENT = 85  # of the host's processors, by others: then only the fastest level (CP-04)
AUTO_SAMPLE_BYTES = 64 * KIB  # of frames of this size, some parts show whether they can be compressed:
AUTO_SAMPLES = 4
AUTO_SAMPLE_PART_BYTES = 4 * KIB
PACKED_MIN_BYTES = 128  # smaller frames are not compressed
PACKED_THREAD_BYTES = 16 * KIB  # more is compressed in a thread beside the event loop
PACKED_WINDOW_LOG = 21  # how far back zstd looks, as a power of two: 2 MiB of memory on both sides
UNPACKED_AT_ONCE_BYTES = 1 * MIB  # before what comes of it is taken
UNPACKED_WINDOW_BYTES = 8 * MIB  # a peer that looks back further is refused
RUN_BYTES = 256 * KIB  # records travel in runs of about this size
HEARTBEAT_S = 3.0  # something is sent at least this often
LIMIT_MIN_BYTES_PER_S = 100  # of bandwidth: with less, heartbeats alone would take a good part of it
LIMIT_SLICE_S = 0.04  # what is written at a time under a limit: so much of a second of it,
LIMIT_SLICE_MIN_BYTES = 256
LIMIT_SLICE_MAX_BYTES = 256 * KIB
LIMIT_SLACK_NS = 120_000_000  # a sender that wakes late by no more makes up for it: a second gets 16 % more
LIMIT_ARREARS_NS = 1_000_000_000  # of later ones so much is remembered,
LIMIT_REPAID = 0.02  # and comes back with so much more of the rate
LIMIT_TRICKLE_BYTES = 16  # sent once in a heartbeat, however slow a limit is
CALENDAR_ENTRIES = 100  # looked at once a second
BURST_MAX_S = 3600.0  # of a limit of so many bytes in so many seconds
PEER_SILENCE_S = 12.0  # nothing heard for this long ends a session
CONNECT_TIMEOUT_S = 10.0
FRAME_FIRST_BYTES = 3 * MIB  # of a frame's buffer, before anything of it has come; it grows with what comes
ID_CHARS = 64  # of an identifier that another host made; positions of `JOURNALS` of them fit `POSITION_BYTES`
SHOWN_CHARS = 1000  # of what another host says for people
FEATURES = 64  # that a side names
MAPS = 2048  # directories of one connection
ENTRIES = 65_536  # pieces, checks or findings of one frame
NAMES = 1 << 20  # of one directory, in one piece
BLOCKS = 65_536  # extents or blocks of one file, in one piece
XATTRS = 8192  # of one object: what listxattr(2) can tell
CLOSE_TIMEOUT_S = 1.0  # for the peer to hear that a session ends
KEEPALIVE_IDLE_S = 30  # TCP's own probes: for sessions that wait before the first heartbeat
KEEPALIVE_INTERVAL_S = 10  # between two of them
KEEPALIVE_PROBES = 3  # without an answer: the peer is gone
UNACKNOWLEDGED_MS = 60_000  # sent bytes that nobody acknowledges for so long end a session
RECONNECT_FIRST_S = 0.2
RECONNECT_MAX_S = 10.0

# --- target ---
SYNC_DELAY_MIRRORING_S = 10.0  # the same during a mirror
SYNC_INTERVAL_S = 1.0  # between two syncs of a target that has something new
SYNC_DELAY_S = 5.0  # a change waits so long for others to be synced with it (as ext4's own commits do)
SYNC_BYTES = 16 * MIB  # unless so much waits: the source keeps it in its queue until then
SYNC_FILES = 16  # changed files are synced one by one; more: their whole file system
FILE_CLOCK_STEP_NS = 1_000_000_000  # file systems stamp with a coarser clock than the one we read
UNSYNCED_MAX_NS = (
    300_000_000_000  # what a program writes is on the disk after this time (vm.dirty_expire_centisecs)
)
ALIVE_NOTE_S = 60.0  # between two notes of a sender that its host has power
SHIP_PAUSE_S = 0.01  # between two times that a sender looks into journals that it had read to the end,
SHIP_PAUSE_BYTES = 128 * KIB  # unless so much is in them meanwhile
ACKNOWLEDGE_INTERVAL_S = 0.005  # between two acknowledgements while the target is busy
ACKNOWLEDGE_PAUSE_S = 0.001  # between two acknowledgements of a target that keeps up
TARGET_STATE_INTERVAL_S = 1.0  # between two reports of nothing but a changed backlog
SPOOL_DRAIN_S = 0.5  # a piece waits this long for what is in the spool; then it is spooled itself
SPOOL_RETRY_S = 0.5  # between two looks for room in a full spool
SPOOL_RESUME_PERCENT = 75  # of what a full spool held: then its source may go on
POSITION_BYTES = 64 * KIB  # positions of all journals of one connection, as a receiver stores them
JOURNALS = 256  # of one connection
APPLY_RETRY_FIRST_S = 0.2
APPLY_GIVE_UP_S = 60.0  # after this a single path is left to a mirror, and the rest goes on
APPLY_RETRY_MAX_S = 5.0
# One write(2) to a copy. A larger one makes a file system with large folios look for memory in whole blocks,
# which a virtual machine may have given back to its host: seen to cost three times the processor time.
WRITE_BYTES = 128 * KIB
DIRECTORY_DESCRIPTORS = 1024  # directories a target keeps open
FILE_DESCRIPTORS = 256  # files being written that a target keeps open
REMOVE_DIRECTORIES = 1000  # sub-directories remembered at a time while a tree is removed

DRIFT_GATHER_S = 0.1  # after the first event of a file system: equal ones that follow become one
DRIFT_GATHER_MAX_S = 1.0  # the same while all that happens there is none of this copy's
DRIFT_QUIET_S = 0.5  # what others change in a copy within this time is told at once
DRIFT_PAUSE_FIRST_S = 1.0  # between two tellings of that: it goes on while a program uses the copy
DRIFT_PAUSE_MAX_S = 30.0
DRIFT_RECENT = 10_000  # operations remembered between two looks: renames, and on hard links
REFUSED_TRIES = 64  # of a path whose directory others remove from the copy, in one mirror
DRIFT_REPORTS = 8  # of one journal that are not repaired; more become one

# --- mirror ---
PART_BYTES = 2 * MIB  # content of one piece; 1 MiB costs both sides a third more processor time
CLAIMS_PER_FILE = 8  # files that are claimed together in the time in which one is read
STEP_PATHS = 256  # directories, or single paths, read in one step of the scanner, as long as that takes
STEP_PATHS_NS = 25_000_000  # no longer than this
BARE_GROUPS = 1 << 19  # groups of files that are known to have no extended attributes, 8 bytes each
STEP_FILES = 256  # files read in one step of the scanner; the stream waits for the step
FILE_WEIGHT_BYTES = 1 * KIB  # a small file counts for so much more than it has, of what is on its way
CLAIM_WEIGHT_BYTES = 128  # the same of one that is claimed with others
PIECES_IN_FLIGHT = 256  # pieces sent and not yet applied
MIRROR_HELD_NS = 10 * 10**9  # nothing is put in place for that long: the target cannot keep up (MR-09)
PIECE_BYTES_IN_FLIGHT = 16 * MIB
RECOVERY_WORK_NS = 100_000_000  # one phase of work of a recovery that has to rest in between
RECOVERY_DELAY_NS = 200_000_000  # a change waits about so long at most behind what a recovery has sent
RECOVERY_WINDOW_FIRST_BYTES = 256 * KIB  # on its way until it is known how long that takes
RECOVERY_PART_MIN_BYTES = 64 * KIB  # content of one piece where that takes long
RECOVERY_RATE_NS = 5_000_000_000  # the best rate at which pieces arrived is remembered once or twice so long
RECOVERY_STEP_NS = 50_000_000  # the stream waits about so long for a step of the scanner that reads files
MIX_LOOK_S = 0.02  # between two looks whether enough changes have gone for the next step of a mirror
RECOVERY_LOOK_S = 1.0  # between two looks whether programs change things, while something recovers
RECOVERY_BUSY_OPERATIONS_PER_S = 50.0  # of a host whose applications a recovery spares
RECOVERY_BUSY_S = 3.0  # for so long after the last such look
BROUGHT_FILES = 500_000  # inodes remembered as sent, which a rename need not send again: 60 bytes each
TOUCHED_FILES = 200_000  # identities remembered as changed while pending; more: every piece is full
REPLICATION_RATIO_MAX = 1000  # RP-05
REMAP_LINKS = True  # LK-02
AUTO_RECONNECT = True  # AD-12
RECONNECT_AT_START = True  # AD-08
REMIRROR = ("log", "difference", "checksum", "full", "off")  # AD-10, AD-11
AUTO_REMIRROR = "log"
NAMES_PER_PIECE = 16384  # of one directory's list: a target reads its own directory once for each piece
PATCH_EXTENTS = 4096  # extents and holes of one patch
COMPARE_BLOCK_BYTES = 64 * KIB  # of a file that is compared: one digest; a multiple of 4 KiB
COMPARE_READ_BYTES = 256 * KIB  # read at a time for digests: what fits into a processor's cache
COMPARE_WEIGHT = 4  # so many bytes are compared in the time in which one is sent and written
MOVED_MIN_BYTES = 4 * MIB  # of a larger file that is compared, moved content is looked for
MOVED_PROBE_BYTES = 1 * MIB  # of it that is compared first; if most of that differs, something was moved
MOVED_WINDOW_BYTES = 16 * MIB  # of an old copy, in which blocks are looked for at other places
MOVED_GIVE_UP_BYTES = 128 * MIB  # of which nothing was found there, in a row: the rest is sent as it is
MOVED_BLOCK_BYTES = 256 * KIB  # blocks of files larger than `MOVED_LARGE_BYTES`
MOVED_LARGE_BYTES = 2048 * MIB
ELSEWHERE_MIN_BYTES = (
    64 * KIB
)  # files of at least this size are looked for under other names before they are sent
ELSEWHERE_VAIN = (
    64  # such searches in vain, beyond those that found something: no more of them in this mirror
)
ELSEWHERE_ASKED = 200_000  # files that were looked for, at most, in one mirror
LOCAL_COPY = True
LOCAL_COPY_BYTES = 4 * MIB  # of a large file that the kernel copies within one host, in one step
LOCAL_OFFERS = 64  # files for that, on their way
BEGUN_MIN_BYTES = 16 * MIB  # of a larger file what has arrived is kept over kills and cuts
BEGUN_QUESTIONS = 16  # large files asked for after one of these: few can have been on their way
COMPARE_MIN_BYTES = 16 * KIB  # smaller files that differ are sent whole
CHECKSUM_ALL = False  # MR-05
SIZE_COUNT_DELAY_S = 3.0  # a mirror that takes longer is counted beside it, for percent and remaining bytes
SIZE_COUNT_FILES_PER_S = 50_000  # nor one that is faster: it would be over before the count, too
SIZE_ASKED_RESTS = 0.5  # the same, where somebody waits for the count of a set
SIZE_COUNT_RESTS = 3.0  # it pauses for so many times as long as it has worked
ESTIMATE_WINDOW_NS = 60_000_000_000  # the end of a mirror is estimated from how fast it was within this time
ESTIMATE_MARK_NS = 2_000_000_000
FILE_WORK_BYTES = 64 * KIB  # a file takes as long as so many bytes of a large one, besides its own
CHECKS_IN_FLIGHT = 64  # batches of checks sent and not answered
CHECK_COST_BYTES = 4 * KIB  # what comparing one object without its content counts as
CHECK_EXTRA_NAMES = 1000  # names that only the target has, told of one list; the rest are counted
CHECK_SETTLE_S = 0.25  # what a read may have seen is journaled by then
CHECK_AGAIN_S = 0.5  # until something that changed while it was looked at is looked at again, at first
CHECK_AGAIN_MAX_S = 3.0
CHECK_TRIES = 10  # looks at something that changes all the time, before it is left out,
CHECK_MTIME_TRIES = 5  # and if nothing but its mtime could not be compared: longer than MTIME_TOLD_S
CHECK_AGAIN_KEPT = 20_000  # paths that are to be looked at again; beyond, they are left out
MTIME_TOLD_S = 3.0  # an mtime that nobody set is in the journal by then: see QUIET_MTIME_S
TOUCHED_KEPT = 200_000  # operations remembered while checks are on their way; beyond, these are made again
DIFFERENCES_KEPT = 10_000  # of a verification, kept in memory: to be logged, and brought
DIFFERENCES_SHOWN = 1000  # of these, shown by name; the rest are counted
VERIFY_LOG_BYTES = 1_048_576  # VF-06
VERIFY_LOG_MIN_BYTES = 4 * KIB
VERIFY_LOG_NAME = "DTVerify.log"  # VF-05
BACKGROUND_PAUSE_S = 60.0  # between two walks of a verification in the background
SCHEDULE_LOOK_S = 1.0  # between two looks whether something is due
DIAGNOSTICS_LEVEL = 3  # of zstd, for samples
DIAGNOSTICS_SAMPLE_BYTES = 32 * KIB  # that are compressed together
DIAGNOSTICS_SAMPLED = 8  # one of so many bytes is compressed
DIAGNOSTICS_ANSWER_S = 0.05  # between two acknowledgements of the target Diagnostics
SCHEDULE_LATE_S = 60.0  # a start that has passed by no more when it is set begins at once
SCHEDULE_LINGER_S = 15.0  # for what was sent to be durable, before a scheduled connection is closed
CLOCK_BACK_S = 86400.0  # a clock set back by no more starts nothing a second time
SCHEDULE_MAX_S = 366 * 86400.0  # longest time between two runs
RUNS_KEPT = 200  # reports of runs, of each connection
RUNS_ASKED = 2 * RUNS_KEPT  # so many at a time are shown
RUN_PROBLEMS_KEPT = 20  # of these, in a report that is kept
PROBLEMS_KEPT = 1000  # problems of a run shown by name; the rest are counted
ORPHAN_STEP_NS = 5_000_000  # what comes from the source waits so long for a step that removes orphans
ORPHAN_PAUSE_S = 0.1  # between two such steps, while something comes all the time
ORPHANS_TOLD_BYTES = 1 * MIB  # names of orphans that a source is told; the rest are counted only
ORPHANS_FRAME_BYTES = 32 * KIB  # of them in one frame
MOVE_BYTES = 4 * MIB  # of an orphan that goes to another file system, in one step
NAME_BYTES = 255

# --- replication sets (RS-*) ---
RULE_PATH_CHARS = 259  # RS-07
NAME_CHARS = 100
FILTER_DIRECTORIES = 4096  # directories whose decisions one filter remembers

# --- control sockets of children ---
CONTROL_LINE_BYTES = 4 * MIB  # one request or answer
CONTROL_DESCRIPTORS = 8  # file descriptors beside one of them
CONTROL_BACKLOG = 16
CONTROL_ANSWER_S = 1.0  # for a last answer to leave when the server ends

# --- identity and encryption ---
CERTIFICATE_DAYS = 3650.0  # of an agent's own one, unless it is renewed before
SESSION_CERTIFICATE_DAYS = 1.0  # of the key of one session; looked at when it begins
RENEWAL_DAYS = 7.0  # a certificate that was replaced is accepted for so long
VISIT_S = 3600.0  # between two looks whether a target has a new certificate
RENEWAL_RETRY_S = 30.0  # between two tries to tell peers of a new certificate
TLS_KEY_BYTES = 256 * 1024**3  # by one key. AES-GCM is good for 24 million full records, 370 GiB (RFC 8446)
TLS_READ_BYTES = 256 * KIB  # taken from a socket at a time
TLS_WRITE_BYTES = 256 * KIB  # encrypted at a time: what fits into a processor's cache
INTRODUCTION_BYTES = 16 * KIB  # one line of what agents say before data flows: two certificates
REFUSALS_KEPT = 1000  # (peer, reason) that were logged
SIGNED_REMEMBERED = 1000  # certificates of an authority that were accepted, to be looked at again
REFUSAL_AGAIN_S = 3600.0  # the same reason is logged again after so long
PAIRING_CODE_CHARS = 12  # of 32 letters and digits: 60 bits
PAIRING_OPEN_S = 600.0  # a code is good for so long
PAIRING_TRIES = 3  # wrong codes until pairing is closed
PAIRING_PAUSE_S = 1.0  # after a wrong code, doubled with each
PAIRING_TIMEOUT_S = 20.0  # for the whole of it
PAIRING_WORK = 1 << 14  # cost of scrypt: 16 MiB and 50 ms for each guess

# --- restores ---

RESTORE_CALL_S = 90.0  # for another agent to answer about a restore: a copy may have to be synced first
RESTORE_CALL_BYTES = 4 * MIB  # one thing that is asked about a restore
AGENT_CALLS = 16  # of one purpose that are answered at a time
RESTORE_STALL_S = 60.0  # for another agent to take some of what it asked for
RESTORE_LINE_BYTES = 16 * MIB  # of what agents say to one another about restores
RESTORE_ITEMS = 500  # objects that are listed at once
RESTORE_LOOK_S = 0.5  # between two looks at one that runs
RESTORE_RETRY_S = 5.0  # until an agent that does not answer is asked again
RESTORE_DRAIN_S = 60.0  # for a copy to apply what it has received, before it stands still
RESTORE_STEPS_KEPT = 100_000  # steps of a dry run that are told by name
RESTORE_LACKING = 10_000  # paths that differ after a restore; more of them are compared as a whole
DIRECTORIES_MADE = 100_000  # that are remembered, to be given their times, where only what is missing is made
RESTORES_KEPT = 20  # that have ended, to be looked at

# --- divergence bundles ---

BUNDLE_BLOCK_BYTES = MIB  # of a file, in a divergence bundle: with a digest of its own
BUNDLE_BLOCKS = 1024  # that are described at once
BUNDLE_NAMES = 1000  # of a directory, the same
BUNDLE_FREE_BYTES = 256 * MIB  # bundles leave so much of their disk to others
BUNDLE_CHECK_BYTES = 16 * MIB  # written between two looks at that
BUNDLE_DIFFERENCES_KEPT = 1000  # that are told by name

# --- failback ---

FAILBACK_FIND_S = 300.0  # FB-03: so long the other agent is searched and asked
FAILBACK_RETRY_S = 1.0  # between two tries
FAILBACK_PREPARE_S = 30.0  # for what is in the way of a copy at home to go
FAILBACK_PATIENCE_S = 5.0  # the same while programs wait
FAILBACK_CALL_S = 60.0  # for one answer: copies that come to a stand, mounts that come up
FAILBACK_POLL_S = 0.05  # until one that was asked for has begun
FAILBACK_CLOSE_S = 1.0  # what is queued takes no longer: then programs are held up
FAILBACK_SAY_S = 10.0  # without that for so long: what a person should do is said
FAILBACK_LOOK_S = 1.0  # between two looks at what is still to be brought
ERRAND_RETRY_S = 10.0  # until somebody who has not acknowledged is asked again
ERRAND_GIVE_UP_S = 30 * 86400.0

# --- failover ---

MONITOR_INTERVAL_S = 5.0  # FO-04: between two signs of life
MONITOR_MISSES = 5  # FO-05: that may be missing
MONITOR_YELLOW = 0.25  # FO-13: of the countdown
MONITOR_GRACE = 0.25  # of an interval: for the answer to the last probe that may be missing
MONITOR_LOOKS = 10  # at a source, in one interval
MONITOR_LOOK_MAX_S = 0.5  # between two of them
MONITOR_LATE = 1.5  # of that time: a look that comes later does not count for more
MONITOR_INTERVAL_MIN_S = 0.2
MONITOR_INTERVAL_MAX_S = 3600.0
MONITOR_MISSES_MAX = 1000
MONITOR_FIRST_S = 5.0  # for the first answer of an address, when its monitor is added
MONITOR_PROBE_MAX_S = 10.0  # for one answer; no longer than the whole countdown
PROBE_HEAD_BYTES = 16 * KIB  # of what an HTTP server says before its status is over
HEARTBEAT_PATIENCE = 0.25  # of an interval: then the agent is asked by a call, too
HEARTBEATS_PER_S = 1000  # answered, at most
MONITOR_ADDRESSES = 64  # of one monitor
MONITOR_CHECKS = 8  # of one address
SCRIPT_TIMEOUT_S = 60.0
FENCE_TIMEOUT_S = 60.0  # of a fence command
SCRIPT_OUTPUT_BYTES = 64 * 1024  # of a script, kept
GUARD_TELL_S = 2.0  # until a source that could not be told that it is watched is told again
GUARD_TELL_AGAIN_S = 60.0  # the same once more: one that was under way may have come after it
GUARD_LOOK_S = (
    5.0  # between two questions of a source that nobody counts on to stop, whether it still owns its data
)
LEASE_ASK_MIN_S = 0.2  # between two requests for a lease
GUARD_LAG_S = 2.0  # between two looks of a source at what its copies lack
GUARD_LAG_OLD_S = 30.0  # an older look says nothing: the sender does not answer
SCRIPT_EVENT_BYTES = 4 * KIB  # of it, in the event of its end
SCRIPT_TERM_S = 5.0  # between SIGTERM and SIGKILL
SCRIPT_OUTPUT_GRACE_S = 0.2  # for what an ended script has printed last
SCRIPT_LOOK_S = 0.5  # between two looks at a script that runs long
SCRIPT_RUNS_KEPT = 50  # results of scripts that are remembered
SCRIPT_ARGUMENTS = 64
SCRIPT_TIMEOUT_MAX_S = 86400.0
DRILL_HOST_BYTES = 256 * MIB  # that a drill may write to its view of the host, beside the copies
DRILL_TIMEOUT_S = 300.0  # of its check
DRILL_HOLD_S = 60.0  # that a copy stands still for a drill whose agent is not heard of
DRILL_KEEP_S = 3600.0  # that a room stays for a person
DRILL_START_S = 60.0  # for the room to be there; copying is not counted
DRILL_END_S = 15.0  # for it to be gone
DRILLS_KEPT = 50  # results
SCRIPT_ON_FAILURE = ("go-on", "stop")  # the default first
SCRIPTS_FOR_OTHERS = "/etc/replicator/scripts"
FENCE_LOOK_MS = 20  # between two looks at a fence for which changes wait
PLAN_LINES = 200  # that a step of a failover may say for its report
PLAN_LINE_CHARS = 1000
PLAN_TRIES = 20  # of a step after which there is no way back, and that works sooner or later
PLAN_TRY_PAUSE_S = 0.5
PLAN_UNDO_TRIES = 3  # until what cannot be taken back is left to a person
PLAN_UNDO_PAUSE_S = 1.0
FAILOVER_AGAIN_S = 1.0  # until a task is begun again that met a full disk, a peer's nonsense and the like
FAILOVER_WORKED_S = 60.0  # a task that went on for so long had worked: what stops it then is told again
FAILOVER_TELL_S = 2.0  # for each of those who are told of a new owner
FAILOVER_REPORTS = 50  # of a group, kept
ADDRESS_PROBES = 3  # before an address is taken
ADDRESS_PROBE_S = 0.2  # for them, and for whoever has it to answer
ADDRESS_RETRY_S = 5.0  # until an address that could not be put up again is tried once more
ADDRESS_TELL_TRIES = 60  # to tell the owner of addresses that they were dropped here
ADDRESS_FREE_S = 5.0  # that nobody had it so long ago is good enough
ADDRESS_ANNOUNCED_S = (0.1, 0.5, 2.0, 5.0, 10.0)  # after it was taken and announced, again
ETHERNET_FRAME_BYTES = 2048  # of one that is looked at
FAILOVER_READY_S = 0.5  # before a source counts as failed, what does no harm is begun
ADDRESS_AHEAD_S = (
    1.5  # an address that was free so long ago, when its source was silent already, need not be asked for
)
FAILOVER_DRAIN_S = 30.0  # a copy that is promoted may take so long to apply what has arrived
DRAIN_LOOK_S = 0.01  # between two looks at a copy that applies what is left
FOLLOW_RETRY_S = 5.0  # a former owner tries again to follow the new one
SIBLINGS_LOOK_S = 15.0  # other targets of a source are asked for, and told
FAILOVER_DRAIN_MAX_S = 3600.0
MONITORS = 256
FAILOVER_BEGIN_S = 1.0  # whoever asks for a failover waits so long for it to be refused
START_FENCED_S = 30.0  # a source that comes back waits so long for an answer, if nobody has to grant it
LEASE_DRIFT = 0.01  # of one host's clock (CLOCK_BOOTTIME) against another's: 20 times what NTP slews at most
LEASE_SLACK_S = 0.2  # between the look at a lease and the end of the change that was let through
LEASE_MIN_S = 1.0
LEASE_MAX_S = 60.0
LEASE_RENEWALS = 3  # of a lease, so that one that is lost does not matter
WITNESS_RETRY_S = 1.0  # until one that has not answered, or not agreed yet, is asked again
WITNESS_POLL_S = 0.02  # between two looks at what is waited for, at least
WITNESS_OWED_S = 5.0  # until a vote that was not used is taken back once more
WITNESS_CALL_S = 2.0  # for it to answer
WITNESS_SEEN_S = 3600.0  # a group whose agents have asked since is not forgotten
ETCD_TRIES = 5  # of a change that others come before
ETCD_ANSWER_BYTES = 1 * MIB
ETCD_PASSWORD_FILE = "/etc/replicator/etcd-password"
WITNESS_GROUPS = 1024
WITNESS_CLAIMS = 1024  # journals and addresses that go with one group
WITNESS_LOG = 16  # promotions that a witness remembers of a group
WITNESS_ATTEMPTS = 16  # tries at a promotion that are remembered of a group: pending, and given up
WITNESS_RECORD_BYTES = 64 * KIB  # of a promotion that a witness keeps with its fork points
FAILOVER_CALL_S = 10.0  # for another agent to answer about failover
FAILOVER_CALL_BYTES = 1 * MIB  # one thing that is said about it
FAILOVER_HISTORY_BYTES = 1 * MIB  # of what happened to groups; then the older half goes
