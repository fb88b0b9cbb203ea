"""The logs that stood last in the files of a source when these were read before: they may have grown."""

from uuid import UUID

from fiberstore.ingest.known_files import KnownFile, KnownFiles, Tail


class LastLogs:
    """The last logs of files, each until its line is read again.

    Args:
        known: The files of the source; what became of their last logs is noted there.
    """

    def __init__(self, known: KnownFiles) -> None:
        self._known = known
        self._expected: dict[str, Tail] = {}
        self._ended: dict[str, int] = {}

    def expect(self, file: KnownFile) -> None:
        """Take note of the last log of a file that is to be read."""
        if file.tail is not None and file.name not in self._ended:
            self._expected.setdefault(file.name, Tail(UUID(file.tail), file.tail_line, file.twin))

    def line_of(self, file: KnownFile) -> int:
        """Return the number of the first line of the last log, or 0 if none is expected."""
        tail = self._expected.get(file.name)
        return 0 if tail is None else tail.line

    def note_read(self, file: KnownFile, log_id: int) -> None:
        """Take note of the id that the last log has now."""
        tail = self._expected.pop(file.name, None)
        if tail is not None and tail.log_id.int != log_id:
            self._known.replaced[log_id] = tail

    def note_dropped(self, file: KnownFile, number: int, text: str) -> None:
        """Take note of a line that begins no log; it may have been cut when its file was read before."""
        if self._expected and self.line_of(file) == number:
            self._known.dropped.append((self._expected.pop(file.name), text))

    def note_end(self, file: KnownFile, number: int, log_id: int) -> None:
        """Take note of the log that stands last now; its number is 0 if there is none."""
        if number >= self._ended.get(file.name, 0):  # of several copies, the longest
            self._ended[file.name] = number
            file.tail = str(UUID(int=log_id)) if number else None
            file.tail_line = number
