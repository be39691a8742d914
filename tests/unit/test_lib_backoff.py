"""Back-off: full jitter within its bounds, and a long wait where a person must act."""


def test_waits_stay_within_the_doubling_bound_and_spread(micropython):
    micropython("""
from outpost.backoff import Backoff
firsts = set()
for _ in range(200):
    b = Backoff(1, 300)
    for n in range(14):
        wait = b.next_ms()
        assert 0 <= wait <= min(300000, 1000 << n), (n, wait)
        if n == 8:
            firsts.add(wait // 25600)
assert len(firsts) >= 8, firsts       # full jitter: all over the interval
b.reset()
assert b.next_ms() <= 1000
for _ in range(100):
    assert 150000 <= b.next_ms(True) <= 300000
""")
