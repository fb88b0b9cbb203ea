"""Memberships: which log belongs to which fibers, and which fiber has which logs."""

from fiberstore.contract.storage import Storage
from fiberstore.testing.examples import IDS, NOON, fiber, log, member, uid

_DISTINCT = 2_000


class MembershipsContract:
    """``write_memberships``, ``get_log_fibers`` and ``get_fiber_logs``."""

    def test_order_of_the_fibers_of_a_log_is_that_of_their_128_bits(self, storage: Storage) -> None:
        storage.write_memberships([member(1, key.int) for key in (*IDS[::2], *reversed(IDS[1::2]))])
        storage.write_memberships([member(2, 7), member(7, 1)])
        assert storage.get_log_fibers(uid(1)) == list(IDS)

    def test_logs_may_belong_to_several_fibers(self, storage: Storage) -> None:
        storage.write_logs([log(number) for number in range(6)])
        pairs = [(1, 8), (2, 8), (3, 8), (2, 9), (3, 9), (4, 9), (5, 7)]
        assert storage.write_memberships([member(*pair) for pair in pairs]) == len(pairs)
        members = {
            number: [row.log_id.int for row in storage.get_fiber_logs(uid(number))] for number in (7, 8, 9)
        }
        assert members == {7: [5], 8: [1, 2, 3], 9: [2, 3, 4]}
        fibers = {number: [key.int for key in storage.get_log_fibers(uid(number))] for number in range(6)}
        assert fibers == {0: [], 1: [8], 2: [8, 9], 3: [8, 9], 4: [9], 5: [7]}

    def test_fiber_logs_come_back_whole(self, storage: Storage) -> None:
        storage.write_logs([log(1, text="first"), log(2, text="second"), log(3, text="noise")])
        storage.write_memberships([member(2, 9, 8), member(1, 9, 7), member(3, 8)])
        assert storage.get_fiber_logs(uid(9)) == [storage.get_log(uid(1)), storage.get_log(uid(2))]

    def test_missing_memberships_are_an_empty_list(self, storage: Storage) -> None:
        assert storage.get_log_fibers(uid(1)) == []
        assert storage.get_fiber_logs(uid(1)) == []
        storage.write_logs([log(1)])
        storage.write_fiber(fiber(1))
        storage.write_memberships([member(3, 2), member(2, 3)])
        assert storage.get_log_fibers(uid(1)) == []
        assert storage.get_fiber_logs(uid(1)) == []

    def test_memberships_need_neither_log_nor_fiber(self, storage: Storage) -> None:
        assert storage.write_memberships([member(1, 9), member(2, 9), member(3, 8)]) == 3
        assert storage.get_log_fibers(uid(1)) == [uid(9)]
        assert storage.get_fiber_logs(uid(9)) == []
        storage.write_logs([log(2), log(3), log(4)])
        assert [row.log_id for row in storage.get_fiber_logs(uid(9))] == [uid(2)]
        storage.write_logs([log(1)])
        assert [row.log_id for row in storage.get_fiber_logs(uid(9))] == [uid(1), uid(2)]
        assert storage.get_fiber(uid(9)) is None

    def test_logs_that_are_not_stored_take_no_place_in_a_page(self, storage: Storage) -> None:
        storage.write_memberships([member(number, 9) for number in range(10)])
        storage.write_logs([log(number, NOON) for number in range(1, 10, 2)])
        pages = [storage.get_fiber_logs(uid(9), 2, offset) for offset in (0, 2, 4, 6)]
        assert [[row.log_id.int for row in page] for page in pages] == [[1, 3], [5, 7], [9], []]

    def test_duplicates_of_memberships_are_no_op(self, storage: Storage) -> None:
        storage.write_logs([log(1), log(2)])
        assert storage.write_memberships([member(1, 9), member(1, 9, 4), member(2, 9)]) == 2
        assert storage.write_memberships([member(1, 9, 5), member(2, 9)]) == 0
        assert storage.write_memberships([member(1, 9), member(9, 1), member(1, 8)]) == 2
        assert storage.get_log_fibers(uid(1)) == [uid(8), uid(9)]
        assert [row.log_id for row in storage.get_fiber_logs(uid(9))] == [uid(1), uid(2)]

    def test_duplicates_within_a_large_batch_count_once(self, storage: Storage) -> None:
        batch = [member(number, number % 7) for number in range(_DISTINCT)]
        storage.write_memberships(batch[:10])
        assert storage.write_memberships([*batch, *batch[::-1]] * 5) == _DISTINCT - 10
        assert storage.write_memberships(batch) == 0
        assert storage.get_log_fibers(uid(13)) == [uid(6)]

    def test_batch_of_memberships_may_be_any_iterable_and_empty(self, storage: Storage) -> None:
        assert storage.write_memberships([]) == 0
        assert storage.write_memberships(iter(())) == 0
        assert storage.write_memberships(member(number, 9) for number in range(3)) == 3
        assert storage.write_memberships((member(2, 9), member(3, 9))) == 1
        assert storage.get_log_fibers(uid(3)) == [uid(9)]
