"""The commands by their names, so that neither the list of all nor one of them loads the others."""

_LINES = {
    "activate": (
        "Make a config version the active one, whose fibers are shown. Prints the command that switches back."
    ),
    "checkpoint": (
        "Named positions, such as the last line that a program has read; without a command, list them."
    ),
    "close": "Close fibers: no more logs are expected of them.",
    "context": (
        "Print a log and its neighbours in time; the log itself is marked, and need not fit the filters."
    ),
    "copy": (
        "Copy a whole store into another, and compare both by counts and checksums; exit with 1 if "
        "they differ."
    ),
    "db": "Build, check, copy and compact a store.",
    "demo": "Generate the logs of a small web shop, ingest them, and show the result.",
    "diff": (
        "Compare the fibers of two config versions by their logs: unchanged, split, merged, moved, new, gone."
    ),
    "doctor": "Check a store; exit with 1 if something is wrong.",
    "export": "Write logs, fibers, keys, memberships or traces into files.",
    "fibers": "Print fibers, oldest first: all of them, or those that fit what is given.",
    "grep": "Print the logs whose text a pattern matches somewhere; on a terminal it is highlighted.",
    "histogram": "Count logs in steps of time, those without any too; with `--fibers`, count fibers.",
    "import": "Store the logs, fibers, keys or memberships of files, or logs of OpenTelemetry.",
    "ingest": (
        "Read log files into a store, join their lines into fibers, and resume where the last run stopped."
    ),
    "keys": "Print the names of keys, or the values of one name, with the number of fibers that have each.",
    "logs": "Print logs, oldest first: all of them, or those that fit what is given.",
    "merge": "Make fibers part of another: their logs and pins move to it, and they are deleted.",
    "pin": "Keep fibers with their logs, or single logs, from `prune`, however old they are.",
    "prune": "Delete old fibers and logs, the oldest first.",
    "redact": (
        "Replace what a pattern matches in the text of logs, then write the store anew without the old text."
    ),
    "reopen": "Open fibers again that were closed.",
    "reprocess": (
        "Make the fibers of other rules from the logs that are stored; those there are stay, beside them."
    ),
    "rules": "Rules files, which say how log files are read.",
    "show": "Print a fiber, or all that have a key: its keys, attributes, and lines in the order of time.",
    "stats": "Print the content of a store: rows, times, sources, types of fibers, config versions.",
    "tail": (
        "Print the newest logs, then with `-f` those that are stored, in the order they are; nothing twice."
    ),
    "timeline": "Show fibers over time: a lane each, with its logs as points, by source.",
    "unpin": "Keep fibers, or single logs, from `prune` no longer.",
    "versions": "Config versions, and the generations of fibers made by them; without a command, list them.",
}

_MODULES = {
    "actions": ["close", "merge", "pin", "reopen", "unpin"],
    "checkpoints": ["checkpoint"],
    "fibers": ["fibers", "show"],
    "generations": ["activate", "diff", "reprocess", "versions"],
    "ingest": ["demo", "ingest"],
    "logs": ["grep", "logs"],
    "transfer": ["export", "import"],
}  # of commands that do not stand alone in a module of their name
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

COMMANDS = {name: (_MODULE_OF.get(name, name), line) for name, line in _LINES.items()}
"""The module in ``commands/`` of each, and its line in the list, which its own help begins with."""
