"""The commands by their names, so that neither the list of all nor one of them loads the others."""

COMMANDS = {
    "activate": (
        "generations",
        (
            "Make a config version the active one, whose fibers are shown. "
            "Prints the command that switches back."
        ),
    ),
    "checkpoint": (
        "checkpoints",
        "Named positions, such as the last line that a program has read; without a command, list them.",
    ),
    "close": (
        "actions",
        "Close fibers: no more logs are expected of them.",
    ),
    "context": (
        "context",
        "Print a log and its neighbours in time; the log itself is marked, and need not fit the filters.",
    ),
    "copy": (
        "copy",
        (
            "Copy a whole store into another, and compare both by counts and checksums; "
            "exit with 1 if they differ."
        ),
    ),
    "db": (
        "db",
        "Build, check, copy and compact a store.",
    ),
    "demo": (
        "ingest",
        "Generate the logs of a small web shop, ingest them, and show the result.",
    ),
    "diff": (
        "generations",
        (
            "Compare the fibers of two config versions by their logs: "
            "unchanged, split, merged, moved, new, gone."
        ),
    ),
    "doctor": (
        "doctor",
        "Check a store; exit with 1 if something is wrong.",
    ),
    "export": (
        "transfer",
        "Write logs, fibers, keys, memberships or traces into files.",
    ),
    "fibers": (
        "fibers",
        "Print fibers, oldest first: all of them, or those that fit what is given.",
    ),
    "grep": (
        "logs",
        "Print the logs whose text a pattern matches somewhere; on a terminal it is highlighted.",
    ),
    "histogram": (
        "histogram",
        "Count logs in steps of time, those without any too; with `--fibers`, count fibers.",
    ),
    "import": (
        "transfer",
        "Store the logs, fibers, keys or memberships of files, or logs of OpenTelemetry.",
    ),
    "ingest": (
        "ingest",
        "Read log files into a store, join their lines into fibers, and resume where the last run stopped.",
    ),
    "keys": (
        "keys",
        "Print the names of keys, or the values of one name, with the number of fibers that have each.",
    ),
    "logs": (
        "logs",
        "Print logs, oldest first: all of them, or those that fit what is given.",
    ),
    "merge": (
        "actions",
        "Make fibers part of another: their logs and pins move to it, and they are deleted.",
    ),
    "pin": (
        "actions",
        "Keep fibers with their logs, or single logs, from `prune`, however old they are.",
    ),
    "prune": (
        "prune",
        "Delete old fibers and logs, the oldest first.",
    ),
    "redact": (
        "redact",
        "Replace what a pattern matches in the text of logs, then write the store anew without the old text.",
    ),
    "reopen": (
        "actions",
        "Open fibers again that were closed.",
    ),
    "reprocess": (
        "generations",
        "Make the fibers of other rules from the logs that are stored; those there are stay, beside them.",
    ),
    "rules": (
        "rules",
        "Rules files, which say how log files are read.",
    ),
    "show": (
        "fibers",
        "Print a fiber, or all that have a key: its keys, attributes, and lines in the order of time.",
    ),
    "stats": (
        "stats",
        "Print the content of a store: rows, times, sources, types of fibers, config versions.",
    ),
    "tail": (
        "tail",
        "Print the newest logs, then with `-f` those that are stored, in the order they are; nothing twice.",
    ),
    "timeline": (
        "timeline",
        "Show fibers over time: a lane each, with its logs as points, by source.",
    ),
    "unpin": (
        "actions",
        "Keep fibers, or single logs, from `prune` no longer.",
    ),
    "versions": (
        "generations",
        "Config versions, and the generations of fibers made by them; without a command, list them.",
    ),
}
"""The module in ``commands/`` of each, and its line in the list, which its own help begins with."""
