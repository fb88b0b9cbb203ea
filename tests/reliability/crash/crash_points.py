"""The files that victims write: what is done to them, and what they must hold after a kill."""

import itertools
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from fiberstore import DamagedFileError, DuckDBStorage, copy_store, create_engine
from fiberstore.atomic_files import hidden_folders
from fiberstore.doctor import examine
from fiberstore.duckdb.rescue import rescue
from fiberstore.ingest.pipeline import IngestReport, ingest
from fiberstore.ingest.rules import load_rules
from fiberstore.sql import migrate
from tests.contract.test_migrations import PLAIN_DDL, catalog, tables
from tests.ingest.test_ingest import RULES, State, state_of, without_ids
from tests.ingest.test_ingest import write_logs as write_log_files
from tests.reliability.crash.kills import Aim, Death, Strike, ViolationError, kill
from tests.reliability.crash.victim import INGEST_BATCH_ROWS, backup_path
from tests.reliability.crash.workers import EPOCH, LANES, LOGS, Contents, Step, epoch_us, rows, step

_KEYS_AT_ONCE = 500
_KEYS_CHECKED = 2_000
_RECORDS_READ = 20
_LOG_LINES = 1_000
_ALL_LOGS = 1_000_000  # more than there are
_OLD_ROWS = 3_000

_SELECTED = {
    "raw_logs": "log_id, epoch_us(timestamp) AS timestamp, source_id, raw_text",
    "fibers": "fiber_id, fiber_type, attributes::VARCHAR AS attributes, closed",
    "fiber_memberships": "log_id, fiber_id, config_version",
}
# Each column with an index of its own, its place in what is selected, and how many keys one look-up may have
# before DuckDB prefers to scan the table. The key of two columns is looked up by writing a pair again.
INDEXED = (
    ("raw_logs", "log_id", 0, _KEYS_AT_ONCE),
    ("raw_logs", "timestamp", 1, _KEYS_AT_ONCE),
    ("raw_logs", "source_id", 2, 1),
    ("fibers", "fiber_id", 0, _KEYS_AT_ONCE),
    ("fibers", "fiber_type", 1, 1),
    ("fiber_memberships", "fiber_id", 1, 1),
)


class Mode(NamedTuple):
    """Way in which a victim is run and killed.

    Attributes:
        program: The victim's.
        aim: When it is killed.
        scene: Which file it writes, of ``SCENES``.
        lanes: Those it writes, if it does.
        settings: DuckDB's for the victim, as the query of a URL.
        most_interrupts: How many times Ctrl-C comes before the kill is drawn from 0 to this.
    """

    program: str
    aim: Aim
    scene: str
    lanes: tuple[str, ...] = ()
    settings: str = ""
    most_interrupts: int = 0


def kept_files(path: Path) -> Path:
    """Return the folder of copies of a database and its logs, as the last kill left them."""
    return path.with_suffix(".killed")


def keep_files(path: Path) -> None:
    """Copy them, before anybody opens the database and so changes them."""
    folder = kept_files(path)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in path.parent.glob(f"{path.name}*"):
        shutil.copy2(file, folder)


class LaneFile:
    """A store that is written, killed and written on, again and again; it knows what must be in it.

    Args:
        path: The file.
        lanes: All lanes that are ever written to it.
        strikes: How many kills it is used for.
    """

    def __init__(self, path: Path, lanes: tuple[str, ...], strikes: int) -> None:
        self.path = path
        self._lanes = lanes
        self._strikes_left = strikes
        self._contents = Contents()  # what was acknowledged
        self._next: Counter[str] = Counter()  # the first transaction of each lane that was not
        self._gone: set[object] = set()  # keys that were there once
        with DuckDBStorage(path) as storage:
            storage.init_schema()

    def strike(self, mode: Mode, dice: random.Random) -> Strike:
        """Run the victim, kill it, open the file again, check it, and write on.

        Raises:
            ViolationError: It holds something else than what was acknowledged, or some of what was in flight.
        """
        if mode.program == "open":
            self._acknowledge(
                kill(Aim("end step", 1, 0, "step"), dice, "bulk", self.path, f"{LOGS}:{self._next[LOGS]}")
            )
        death = kill(
            mode.aim,
            dice,
            mode.program,
            self.path,
            *self._arguments(mode),
            settings=mode.settings,
            interrupts=dice.randint(0, mode.most_interrupts),
        )
        keep_files(self.path)
        left = len(hidden_folders(self.path.parent))
        self._check_files(death)
        hit = death.in_flight[mode.aim.phase] > 0
        if mode.aim.in_checkpoint:
            hit = hit and self._is_written_since(death)
        in_flight = self._acknowledge(death)
        rescued = False
        try:
            whole = self._check(in_flight, dice)
        except DamagedFileError:  # see fiberstore.duckdb.rescue
            torn, self.path = self.path, self.path.with_name(f"rescued-{self.path.name}")
            rescue(torn, self.path)
            whole, rescued = self._check(in_flight, dice), True
        self._strikes_left -= 1
        return Strike(death, hit, len(in_flight), whole, self._strikes_left == 0, rescued, left)

    def _arguments(self, mode: Mode) -> list[object]:
        return [f"{lane}:{self._next[lane]}" for lane in mode.lanes]

    def _check_files(self, death: Death) -> None:
        """Check what the kill has left beside the file."""

    def _is_written_since(self, death: Death) -> bool:
        """Tell whether the file was written after the last report; its time is coarse, but never too late."""
        times_ns = [int(words[-1]) for words in death.lines if words[0] == "end"]
        return self.path.stat().st_mtime_ns > max(times_ns, default=0)

    def _acknowledge(self, death: Death) -> list[Step]:
        """Expect what was acknowledged; return what was in flight."""
        acknowledged = dict.fromkeys(death.steps("end"))  # twice, if Ctrl-C came just then
        for lane, number in acknowledged:
            assert number == self._next[lane]
            self._expect(step(lane, number))
            self._next[lane] += 1
        return [step(*begun) for begun in dict.fromkeys(death.steps("begin")) if begun not in acknowledged]

    def _check(self, in_flight: list[Step], dice: random.Random) -> int:
        """Return how many of those in flight are there."""
        if dice.random() < 0.5:  # DuckDB 1.x lost indexes by this
            DuckDBStorage(self.path).close()
        with DuckDBStorage(self.path) as storage:
            found = Contents.scanned(storage)
            whole = next((len(some) for some in _subsets(in_flight) if found == self._with(some)), None)
            if whole is None:
                raise ViolationError(
                    f"not what was acknowledged: {found.differences(self._contents)}; "
                    f"{len(in_flight)} in flight"
                )
            keys: set[object] = set()
            for transaction in in_flight:
                keys |= {log.log_id for log in transaction.logs} | {
                    epoch_us(log.timestamp) for log in transaction.logs
                }
                keys |= {fiber.fiber_id for fiber in transaction.begun}
            check_indexes(storage, self._gone | keys, dice)
            self._write_on(storage)
            self._read(storage, dice)
        return whole

    def _expect(self, done: Step) -> None:
        self._contents.add(done)
        self._gone |= {loser for loser, _ in done.merged}

    def _with(self, steps: Iterable[Step]) -> Contents:
        contents = self._contents.copy()
        for done in steps:
            contents.add(done)
        return contents

    def _write_on(self, storage: DuckDBStorage) -> None:
        """Write the next of each lane twice: what was interrupted, or what has not begun."""
        for lane in self._lanes:
            transaction = step(lane, self._next[lane])
            for _ in range(2):
                transaction.write(storage)
            self._expect(transaction)
            self._next[lane] += 1
        found = Contents.scanned(storage)
        if found != self._contents:
            raise ViolationError(f"after writing on: {found.differences(self._contents)}")

    def _read(self, storage: DuckDBStorage, dice: random.Random) -> None:
        """Compare what the storage's methods return with what the file must hold."""
        for fiber_id in dice.sample([*self._contents.fibers], min(_RECORDS_READ, len(self._contents.fibers))):
            fiber = storage.get_fiber(fiber_id)
            if fiber is None or fiber.fiber_type != self._contents.fibers[fiber_id][0]:
                raise ViolationError(f"get_fiber gives {fiber!r}")
            joined = {log_id for log_id, other in self._contents.memberships if other == fiber_id}
            logs = {log.log_id for log in storage.get_fiber_logs(fiber_id, 10**9)}
            if logs != joined & self._contents.logs.keys():
                raise ViolationError(f"get_fiber_logs({fiber_id}) gives {len(logs)} logs")
        for log_id in dice.sample([*self._contents.logs], min(_RECORDS_READ, len(self._contents.logs))):
            log = storage.get_log(log_id)
            if log is None or log.raw_text != self._contents.logs[log_id][2]:
                raise ViolationError(f"get_log gives {log!r}")


class CalledFile(LaneFile):
    """A store that is written while it is backed up, compacted, copied and examined."""

    def __init__(self, path: Path, strikes: int) -> None:
        path.parent.mkdir()
        super().__init__(path, LANES[:2], strikes)
        self._copy = path.with_name("copy.duckdb")
        with DuckDBStorage(self._copy) as copy:
            copy.init_schema()

    def strike(self, mode: Mode, dice: random.Random) -> Strike:
        """Do as for any store, then make every call once more.

        Raises:
            ViolationError: A backup is not a snapshot, a copy differs, something is left, or the doctor
                finds something.
        """
        done = super().strike(mode, dice)
        if left := hidden_folders(self.path.parent):
            raise ViolationError(f"the kill left {done.left} unfinished files, an opening {len(left)}")
        with DuckDBStorage(self.path) as storage, self._opened_copy() as copy:
            copied = copy_store(storage, copy)
            if not copied.is_equal:
                raise ViolationError(f"the copy differs: {copied.differences}")
            storage.compact()
            if (found := Contents.scanned(storage)) != self._contents:
                raise ViolationError(f"after compact: {found.differences(self._contents)}")
            last = backup_path(self.path, 0)
            storage.backup(last)
            _examine(storage)
            _examine(copy)
        self._check_backup(last, {lane: range(next_, next_ + 1) for lane, next_ in self._next.items()})
        names = {file.name for file in self.path.parent.iterdir() if not file.is_dir()}
        known = ("store.duckdb", "rescued-", "copy.duckdb")
        if others := sorted(name for name in names if not name.startswith(known)):
            raise ViolationError(f"left in the folder: {others}")
        return done

    def _opened_copy(self) -> DuckDBStorage:
        try:
            return DuckDBStorage(self._copy)
        except DamagedFileError:  # see fiberstore.duckdb.rescue
            torn, self._copy = self._copy, self._copy.with_name(f"rescued-{self._copy.name}")
            rescue(torn, self._copy)
            return DuckDBStorage(self._copy)

    def _arguments(self, mode: Mode) -> list[object]:
        return [mode.aim.phase, self._copy, *super()._arguments(mode)]

    def _check_files(self, death: Death) -> None:
        """Check that each backup holds what was acknowledged before it began, and nothing of half."""
        for place, words in enumerate(death.lines):
            if words[:2] == ["begin", "backup"]:
                ended = ["end", "backup", words[2]]
                end = next((n for n, line in enumerate(death.lines) if line[:3] == ended), None)
                path = backup_path(self.path, int(words[2]))
                if path.exists():
                    before, until = Death(death.lines[:place], ""), Death(death.lines[:end], "")
                    self._check_backup(
                        path,
                        {
                            lane: range(
                                _next(before, "end", lane, next_), _next(until, "begin", lane, next_) + 1
                            )
                            for lane, next_ in ((lane, self._next[lane]) for lane in self._lanes)
                        },
                    )
                elif end is not None:
                    raise ViolationError(f"a backup that was acknowledged is not there: {path}")

    def _check_backup(self, path: Path, nexts: dict[str, range]) -> None:
        """Check a backup and remove it.

        Args:
            path: The file.
            nexts: For each lane, which transaction may be the first that it does not hold.
        """
        with DuckDBStorage(path, read_only=True) as backup:
            found = Contents.scanned(backup)
            _examine(backup)
        (lane, firsts), (other, seconds) = nexts.items()
        contents = self._with(step(lane, n) for n in range(self._next[lane], firsts.start))
        for first in firsts:
            both = contents.copy()
            for number in range(self._next[other], seconds.stop):
                if number >= seconds.start and found == both:
                    path.unlink()
                    return
                both.add(step(other, number))
            contents.add(step(lane, first))
        raise ViolationError(f"{path} is no snapshot of {nexts}: {found.differences(self._contents)}")


def _next(death: Death, word: str, lane: str, otherwise: int) -> int:
    return max((number + 1 for of, number in death.steps(word) if of == lane), default=otherwise)


def _examine(storage: DuckDBStorage) -> None:
    """See that the doctor finds nothing but what the lanes write, and an unfinished file until it is gone."""
    known = ("outside their activity", "(it may come later)", "removes it")
    if found := [finding.text for finding in examine(storage) if not finding.text.endswith(known)]:
        raise ViolationError(f"the doctor finds {found} in {storage.engine.url.database}")


def _subsets(steps: list[Step]) -> Iterator[tuple[Step, ...]]:
    for size in range(len(steps) + 1):
        yield from itertools.combinations(steps, size)


def check_indexes(storage: DuckDBStorage, absent: Iterable[object], dice: random.Random) -> None:
    """Verify each index against a scan of its table.

    Args:
        storage: The store.
        absent: Keys to look up beside those of the rows.
        dice: Chooses the keys, if there are many.

    Raises:
        ViolationError: An index finds more or less.
    """
    scanned = {table: rows(storage, f"SELECT {columns} FROM {table}") for table, columns in _SELECTED.items()}
    for table, column, place, keys_at_once in INDEXED:
        by_key: dict[object, list[tuple[object, ...]]] = {}
        for row in scanned[table]:
            by_key.setdefault(row[place], []).append(row)
        kind = type(next(iter(by_key), None))
        others = [key for key in absent if isinstance(key, kind) and key not in by_key]
        keys = dice.sample([*by_key], min(len(by_key), _KEYS_CHECKED)) + others[-_KEYS_CHECKED:]
        for start in range(0, len(keys), keys_at_once):
            chunk = keys[start : start + keys_at_once]
            found = rows(storage, look_up(table, column, len(chunk)), [_parameter(key) for key in chunk])
            if Counter(found) != Counter(row for key in chunk for row in by_key.get(key, ())):
                raise ViolationError(f"the index on {table}.{column} and a scan of the table differ")


def look_up(table: str, column: str, keys: int) -> str:
    """Return a query for that many keys that DuckDB answers by the index."""
    return f"SELECT {_SELECTED[table]} FROM {table} WHERE {table}.{column} IN ({', '.join('?' * keys)})"


def _parameter(key: object) -> object:
    return EPOCH + timedelta(microseconds=key) if isinstance(key, int) else key


class MigratedFile:
    """A file that ``init_schema`` is killed on, empty or with tables of plain DDL and rows."""

    def __init__(self, path: Path, *, with_tables: bool) -> None:
        self.path = path
        if with_tables:
            engine = create_engine(path)
            with engine.begin() as connection:
                for statement in PLAIN_DDL.strip().rstrip(";").split(";"):
                    connection.exec_driver_sql(statement)
                connection.exec_driver_sql(
                    "INSERT INTO raw_logs SELECT gen_random_uuid(), now(), 'old', 'old line', now(), 7 "
                    f"FROM range({_OLD_ROWS})"
                )
                connection.exec_driver_sql(
                    "INSERT INTO fibers SELECT gen_random_uuid(), 'old', 7, NULL, now(), now(), true "
                    "FROM range(99)"
                )
            engine.dispose()
        self._before = self._seen()

    def strike(self, mode: Mode, dice: random.Random) -> Strike:
        """Kill the migration, and check that its schema is whole or not there, and every old row is.

        If it is not there, the next kill gets the same file, or the migration is run to its end.

        Raises:
            ViolationError: It is not so.
        """
        death = kill(mode.aim, dice, mode.program, self.path)
        keep_files(self.path)
        found = self._seen()
        if found.rows != self._before.rows:
            raise ViolationError(f"{len(found.rows)} of {len(self._before.rows)} old rows")
        is_there = found.revision is not None
        if not is_there and (found != self._before or death.in_flight["migration"] == 0):
            raise ViolationError(f"no revision, but {sorted(found.tables)}; report {death.lines[-1]}")
        if is_there and (found.revision != migrate.head() or found.differences):
            raise ViolationError(f"revision {found.revision}, but {found.differences}")
        ended = is_there or dice.random() < 0.5
        if ended:
            self._finish()
        return Strike(death, death.in_flight["migration"] > 0, ended=ended)

    def _finish(self) -> None:
        with DuckDBStorage(self.path) as storage:
            storage.init_schema()
            for number in range(9):
                step(LANES[0], number).write(storage)
                step(LANES[0], number).write(storage)
            check_indexes(storage, (), random.Random(0))
        found = self._seen()
        if found.differences or not self._before.rows <= found.rows:
            raise ViolationError(f"after init_schema: {found.differences}, {len(found.rows)} rows")

    def _seen(self) -> "_Seen":
        engine = create_engine(self.path)
        with engine.connect() as connection:
            names = tables(engine)
            rows = [
                tuple(map(str, row))
                for table in names & {"raw_logs", "fibers"}
                for row in connection.exec_driver_sql(f"SELECT * FROM {table}")
            ]
            revision = migrate.current(connection)
        seen = _Seen(names, catalog(engine), frozenset(rows), revision, migrate.differences(engine))
        engine.dispose()
        return seen


class _Seen(NamedTuple):
    tables: set[str]
    catalog: list[tuple[str, ...]]
    rows: frozenset[tuple[str, ...]]
    revision: str | None
    differences: list[str]


class IngestedFile:
    """A store that log files are ingested into, and what must be in it after each batch."""

    def __init__(self, path: Path, inputs: "IngestInputs", strikes: int) -> None:
        self.path = path
        self._inputs = inputs
        self._strikes_left = strikes

    def strike(self, mode: Mode, dice: random.Random) -> Strike:
        """Kill the ingest, check that whole batches are there, and after the last kill run it to its end.

        Raises:
            ViolationError: It is not so.
        """
        death = kill(mode.aim, dice, mode.program, self.path, self._inputs.rules_file)
        keep_files(self.path)
        self._strikes_left -= 1
        read = max((int(words[2]) for words in death.lines if words[:2] == ["end", "batch"]), default=0)
        with DuckDBStorage(self.path) as storage:
            found = state_of(storage)
            if len(found.logs) < read:
                raise ViolationError(f"{len(found.logs)} logs, {read} were acknowledged")
            if not _are_equal(found, self._inputs.state_after(len(found.logs))):
                raise ViolationError(
                    f"{len(found.logs)} logs, with fibers and memberships that do not belong to them"
                )
            if self._strikes_left == 0:
                self._inputs.ingest(storage)
                if not _are_equal(state_of(storage), self._inputs.state_after(_ALL_LOGS)):
                    raise ViolationError("the ingest ended otherwise than one that was not killed")
        return Strike(death, death.in_flight["batch"] > 0, ended=self._strikes_left == 0)


def _are_equal(found: State, whole: State) -> bool:
    """Compare by lines: which id a merged fiber keeps depends on where batches begin, as after a kill."""
    return found.logs == whole.logs and without_ids(found) == without_ids(whole)


class IngestInputs:
    """Log files, and the states of a store that they are ingested into without a kill.

    Attributes:
        rules_file: The rules.
    """

    def __init__(self, folder: Path) -> None:
        self.rules_file = folder / "rules.toml"
        self.rules_file.write_text(RULES)
        self._states: dict[int, State] = {}
        write_log_files(folder, _LOG_LINES)

    def state_after(self, logs: int) -> State:
        """Return the state of a store that has the first logs of the files."""
        if logs not in self._states:
            with DuckDBStorage(":memory:") as storage:
                storage.init_schema()
                if logs:
                    with suppress(_EnoughError):
                        ingest(storage, load_rules(self.rules_file), batch_rows=logs, on_batch=_stop)
                self._states[logs] = state_of(storage)
        return self._states[logs]

    def ingest(self, storage: DuckDBStorage) -> None:
        """Ingest the files to their end."""
        ingest(storage, load_rules(self.rules_file), batch_rows=INGEST_BATCH_ROWS)


class _EnoughError(Exception):
    """Ends an ingest after its first batch."""


def _stop(report: IngestReport) -> None:
    raise _EnoughError(report.logs_read)
